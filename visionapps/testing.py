"""Contract checks for parts of your own, and small fakes: offline, in milliseconds, on the CPU."""

import itertools

import torch
from torch import Tensor, nn

from visionapps.backbones.base import Backbone
from visionapps.segmentation.base import Segmentor
from visionapps.structures import InputSpec, Level


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
