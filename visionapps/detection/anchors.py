"""Anchors: boxes of fixed sizes and shapes at every position of a feature map, from strides that are known.

Shapes: A anchors per position, L levels, h w one feature map.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from visionapps.errors import ConfigError

RATIOS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Anchors:
    """Boxes at every position of every level (Ren et al., 2015, section 3.1.1; Lin et al., 2017, section 4.1).

    Position (row, col) of a level of stride s stands at ((col + offset) * s, (row + offset) * s) in the image,
    whatever the size of the image: the stride is never computed from sizes. Within a position, anchors are ordered by
    ratio first and by size second.

    Args:
        strides: pixels per position of each level, finest first.
        sizes: per level, square roots of the anchors' areas, in pixels; equally many on all levels.
        ratios: height / width.
        offset: 0 for networks whose strided convolutions are padded on both sides: position 0 of a ResNet looks at
            pixel 0, and RoIAlign without half-pixel shift reads it there, too; 0.5, the middle of the cell, for
            networks that cut the image into patches.
        rounded: corners around the position in whole pixels, as torchvision's detectors were trained with.

    Raises:
        ConfigError: numbers that cannot be.

    Source: Ren et al., Faster R-CNN, 2015; Lin et al., Feature Pyramid Networks, 2017.
    """

    strides: tuple[int, ...]
    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...] = RATIOS
    offset: float = 0.0
    rounded: bool = True
    _shapes: tuple[tuple[tuple[float, float], ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "strides", tuple(self.strides))  # YAML brings lists
        object.__setattr__(self, "sizes", tuple(tuple(sizes) for sizes in self.sizes))
        object.__setattr__(self, "ratios", tuple(self.ratios))
        if len(self.sizes) != len(self.strides) or not self.strides:
            raise ConfigError(
                f"anchors: {len(self.strides)} levels (strides {self.strides}), but sizes for {len(self.sizes)}; give "
                "one list of sizes per level"
            )
        if len({len(sizes) for sizes in self.sizes}) != 1 or not self.sizes[0] or not self.ratios:
            raise ConfigError(
                f"anchors: sizes {self.sizes} with ratios {self.ratios}; every level needs equally many, at least one, "
                "because all levels share one head"
            )
        numbers = [*self.strides, *self.ratios, *(size for sizes in self.sizes for size in sizes)]
        if not all(math.isfinite(number) and number > 0 for number in numbers):
            raise ConfigError(
                f"anchors: strides {self.strides}, sizes {self.sizes} and ratios {self.ratios} must all be positive"
            )
        object.__setattr__(self, "_shapes", tuple(tuple(self._corners(sizes)) for sizes in self.sizes))

    @property
    def per_position(self) -> int:
        """A, the same on every level."""
        return len(self.sizes[0]) * len(self.ratios)

    def boxes(self, maps: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, ...]:
        """The anchors of feature maps of these (h, w), finest level first: one (h * w * A, 4) float32 per level.

        They are shared between calls: do not write to them.
        """
        if len(maps) != len(self.strides):
            raise ConfigError(f"anchors: made for {len(self.strides)} levels, but there are {len(maps)} feature maps")
        return tuple(
            _spread(shapes, stride, self.offset, (int(h), int(w)), device)
            for shapes, stride, (h, w) in zip(self._shapes, self.strides, maps, strict=True)
        )

    def _corners(self, sizes: Sequence[float]) -> list[tuple[float, float]]:
        """(x1, y1) of each anchor around 0; x0 = -x1 and y0 = -y1."""
        # In float32, and halves rounded to even, exactly as the anchors that published weights belong to.
        root = torch.tensor(self.ratios, dtype=torch.float32, device="cpu").sqrt()
        scale = torch.tensor(sizes, dtype=torch.float32, device="cpu")
        half = torch.stack(((1 / root)[:, None] * scale, root[:, None] * scale), -1).flatten(0, 1) / 2
        return [(x, y) for x, y in (half.round() if self.rounded else half).tolist()]


@lru_cache(maxsize=64)  # levels times sizes of images; training at many scales makes them anew, which is cheap
def _spread(
    shapes: tuple[tuple[float, float], ...], stride: int, offset: float, size: tuple[int, int], device: torch.device
) -> Tensor:
    """Anchors of one level, (h * w * A, 4)."""
    # Tensors born in inference mode could not take part in training later.
    with torch.inference_mode(False), torch.no_grad():
        half = torch.tensor(shapes, dtype=torch.float32)
        base = torch.cat((-half, half), 1)
        y, x = (((torch.arange(n, dtype=torch.float32) + offset) * stride) for n in size)
        place = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)  # (h, w, 2)
        boxes = place.repeat(1, 1, 2)[:, :, None] + base
        return boxes.flatten(0, 2).to(device)
