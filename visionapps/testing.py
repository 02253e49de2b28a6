"""Contract checks for parts of your own, and small fakes: offline, in milliseconds, on the CPU."""

import itertools
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from visionapps.backbones.base import Backbone
from visionapps.boxes import Batch, Detections, Targets
from visionapps.data.transforms import Augment
from visionapps.detection.base import Detector
from visionapps.inference.sources import Source
from visionapps.segmentation.base import Segmentor
from visionapps.structures import InputSpec, Level
from visionapps.windows import Window


class TinyBackbone(Backbone):
    """A few convolutions with the pyramid of a ResNet: strides 2, 4, 8, 16, 32. For tests of heads and tasks."""

    def __init__(self, spec: InputSpec | None = None, channels: tuple[int, ...] = (4, 6, 8, 10, 12)) -> None:
        super().__init__()
        self.spec = spec or InputSpec()
        self.levels = tuple(Level(2 ** (i + 1), c) for i, c in enumerate(channels))
        widths = (len(self.spec.bands), *channels)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in itertools.pairwise(widths)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for stage in self.stages:
            image = stage(image)
            maps.append(image)
        return tuple(maps)


def check_backbone(backbone: Backbone, multiples: tuple[int, int] = (2, 3)) -> None:
    """Assert that a backbone keeps its promises: ascending strides, true sizes, true channels.

    Args:
        backbone: the part under test.
        multiples: height and width of the probe, in units of the coarsest stride.
    """
    strides = [level.stride for level in backbone.levels]
    assert strides == sorted(set(strides)), f"strides must ascend, got {strides}"
    height, width = (m * strides[-1] for m in multiples)
    was_training = backbone.training
    backbone.eval()
    with torch.no_grad():
        maps = backbone(torch.zeros(1, len(backbone.spec.bands), height, width))
    backbone.train(was_training)
    assert isinstance(maps, tuple), f"forward must return a tuple, got {type(maps).__name__}"
    assert len(maps) == len(strides), f"{len(maps)} maps for {len(strides)} levels"
    for got, level in zip(maps, backbone.levels, strict=True):
        expected = (1, level.channels, height // level.stride, width // level.stride)
        assert tuple(got.shape) == expected, f"level of stride {level.stride}: shape {tuple(got.shape)}, not {expected}"


def check_segmentor(model: Segmentor, sizes: tuple[tuple[int, int], ...] = ((64, 64), (33, 50))) -> None:
    """Assert that a segmentation model returns finite logits of exactly the input's size and trains.

    Args:
        model: the part under test.
        sizes: (H, W) of the probes.
    """
    bands = len(model.spec.bands)
    was_training = model.training
    model.eval()
    for height, width in sizes:
        with torch.no_grad():
            logits = model(torch.randint(0, 256, (1, bands, height, width), dtype=torch.uint8))
        assert logits.shape == (1, model.num_classes, height, width), f"{(height, width)} became {tuple(logits.shape)}"
        assert torch.isfinite(logits).all(), "logits must be finite"
    model.train()
    model(torch.randint(0, 256, (2, bands, *sizes[0]), dtype=torch.uint8)).mean().backward()
    silent = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent, f"parameters without gradient: {', '.join(silent[:5])}"
    model.zero_grad()
    model.train(was_training)


def check_detector(model: Detector, sizes: tuple[tuple[int, int], ...] = ((96, 128), (70, 90))) -> None:
    """Assert that a detector keeps its promises: losses that train it, also without objects, and proper detections.

    Args:
        model: the part under test, on the CPU.
        sizes: (h, w) of the images of the probe.
    """
    batch = _objects_on_noise(model, sizes)
    was_training, limits = model.training, model.limits
    model.train()
    for targets in (batch.targets, tuple(_none_of(target) for target in batch.targets)):
        terms = model.losses(batch._replace(targets=targets))
        assert terms, "there must be a loss"
        for name, value in terms.items():
            assert value.shape == (), f"loss {name} is a scalar, got shape {tuple(value.shape)}"
            assert torch.isfinite(value), f"loss {name} is {float(value)} with {len(targets[0].boxes)} objects"
        torch.stack(tuple(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        if targets is batch.targets:
            silent = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
            assert not silent, f"parameters without gradient: {', '.join(silent[:5])}"
        model.zero_grad()
    model.eval()
    with torch.no_grad():
        for chosen in (limits, replace(limits, score=0.0, most=7)):  # the second certainly finds something
            model.limits = chosen
            found = model.detect(batch.image, batch.sizes, batch.proposals)
            assert len(found) == len(sizes), f"{len(found)} sets of detections for {len(sizes)} images"
            for each, size in zip(found, sizes, strict=True):
                _check_detections(each, size, model)
        judged, again = model.judge(batch)
    assert judged.keys() == terms.keys(), f"judge gives losses {list(judged)}, and losses gives {list(terms)}"
    for one, other in zip(found, again, strict=True):
        assert torch.equal(one.boxes, other.boxes), "judge and detect must find the same"
    model.limits = limits
    model.train(was_training)


def _check_detections(found: Detections, size: tuple[int, int], model: Detector) -> None:
    count, (height, width) = len(found.boxes), size
    assert found.boxes.shape == (count, 4), f"boxes have shape {tuple(found.boxes.shape)}"
    assert found.labels.shape == found.scores.shape == (count,), "one label and one score per box"
    kinds = (found.boxes.dtype, found.labels.dtype, found.scores.dtype)
    assert kinds == (torch.float32, torch.int64, torch.float32), f"boxes, labels and scores are {kinds}"
    limit = torch.tensor([width, height, width, height])
    assert ((found.boxes >= 0) & (found.boxes <= limit)).all(), f"boxes must lie in the image of {size}"
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all(), "boxes must have an area"
    assert ((found.labels >= 0) & (found.labels < model.num_classes)).all(), "labels must be in [0, K)"
    assert (found.scores.diff() <= 0).all(), "the best must come first"
    most = model.limits.most
    assert most is None or count <= most, f"{count} detections, but limits.most is {most}"
    masks = None if found.masks is None else (tuple(found.masks.shape), found.masks.dtype)
    expected = ((count, height, width), torch.bool) if model.gives_masks else None
    assert masks == expected, f"masks are {masks}, not {expected}"


def _objects_on_noise(model: Detector, sizes: tuple[tuple[int, int], ...]) -> Batch:
    """A batch with three objects in each image, the last of them ignored."""
    generator = torch.Generator().manual_seed(0)
    height, width = (max(size[i] for size in sizes) for i in (0, 1))
    image = torch.zeros(len(sizes), len(model.spec.bands), height, width, dtype=torch.uint8)
    targets, proposals = [], []
    for values, (h, w) in zip(image, sizes, strict=True):
        noise = torch.randint(0, 256, (len(values), h, w), generator=generator, dtype=torch.uint8)
        values[:, :h, :w] = noise
        corner, side = torch.rand(2, 12, 2, generator=generator) * torch.tensor([w, h]) / 2
        boxes = torch.cat((corner, corner + side + 1), 1)
        rows, cols = torch.arange(h)[:, None], torch.arange(w)
        inside = torch.stack([(cols >= x0) & (cols < x1) & (rows >= y0) & (rows < y1) for x0, y0, x1, y1 in boxes[:3]])
        labels = torch.arange(3) % model.num_classes
        ignore = torch.tensor([False, False, True])
        targets.append(Targets(boxes[:3], labels, ignore, inside.to(torch.uint8) if model.gives_masks else None))
        proposals.append(boxes)
    given = tuple(proposals) if model.needs_proposals else None
    count = len(sizes)
    return Batch(image, sizes, tuple(targets), given, tuple(range(count)), ((0, 0),) * count, (1.0,) * count)


def _none_of(target: Targets) -> Targets:
    masks = None if target.masks is None else target.masks[:0]
    return Targets(target.boxes[:0], target.labels[:0], target.ignore[:0], masks)


def check_loss(loss: nn.Module, num_classes: int = 3, ignore: int = 255) -> None:
    """Assert that a loss is a finite scalar with gradients, and that ignored pixels count nowhere.

    Args:
        loss: takes (B, K, H, W) logits and (B, H, W) uint8 labels.
        num_classes: K.
        ignore: label that counts nowhere.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, num_classes, 8, 8, generator=generator, requires_grad=True)
    labels = torch.randint(0, num_classes, (2, 8, 8), generator=generator, dtype=torch.uint8)
    labels[:, :3] = ignore
    value = loss(logits, labels)
    assert value.shape == (), f"a loss is a scalar, got shape {tuple(value.shape)}"
    assert torch.isfinite(value), f"the loss is {float(value)}"
    (gradient,) = torch.autograd.grad(value, logits)
    assert torch.isfinite(gradient).all(), "gradients must be finite"
    assert not gradient[:, :, :3].any(), "ignored pixels must have no gradient"
    nothing = loss(logits, torch.full_like(labels, ignore))
    assert float(nothing.detach()) == 0, f"a batch without labels must cost nothing, not {float(nothing.detach())}"
    nothing.backward()


def check_augment(augment: Augment, size: tuple[int, int] = (48, 48)) -> None:
    """Assert that an augmentation keeps sizes and types, invents no label, and follows its generator.

    Args:
        augment: the part under test.
        size: (h, w) of the probe.
    """
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    labels = rng.choice(np.array([0, 3, 255], np.uint8), size)
    for seed in range(8):
        first, again = (augment(image.copy(), labels.copy(), np.random.default_rng(seed)) for _ in range(2))
        assert first[0].shape == image.shape, f"image {image.shape} became {first[0].shape}"
        assert first[1].shape == labels.shape, f"labels {labels.shape} became {first[1].shape}"
        assert first[0].dtype == image.dtype, f"image {image.dtype} became {first[0].dtype}"
        assert first[1].dtype == labels.dtype, f"labels {labels.dtype} became {first[1].dtype}"
        invented = set(np.unique(first[1]).tolist()) - {0, 3, 255}
        assert not invented, f"labels {sorted(invented)} were not in the mask"
        for a, b in zip(first, again, strict=True):
            assert np.array_equal(a, b), "the same generator must give the same result"


def check_source(source: Source) -> None:
    """Assert that a source reads any window inside it in its own type and says which pixels are valid."""
    height, width = source.shape
    for window in (Window(0, 0, height, width), Window(height // 2, width // 3, 1, 1), Window(height - 1, 0, 1, width)):
        values, valid = source.read(window)
        expected = (len(source.bands), window.height, window.width)
        assert values.shape == expected, f"{window}: read {values.shape}, not {expected}"
        assert values.dtype == source.dtype, f"{window}: read {values.dtype}, but the source says {source.dtype}"
        assert valid.shape == expected[1:], f"{window}: validity {valid.shape}, not {expected[1:]}"
        assert valid.dtype == np.bool_, f"{window}: validity is {valid.dtype}, not bool"
    assert min(source.block) >= 1, f"block {source.block}: sides are at least one pixel"
