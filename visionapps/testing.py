"""Contract checks for parts of your own, and small fakes: offline, in milliseconds, on the CPU."""

import itertools

import numpy as np
import torch
from torch import Tensor, nn

from visionapps.backbones.base import Backbone
from visionapps.data.transforms import Augment
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
