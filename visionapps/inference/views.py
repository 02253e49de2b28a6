"""Test-time views: a tile seen mirrored, turned and at other scales, and its scores brought back to where they belong.

Shapes: B tiles, C bands, S score planes, h w tile.
"""

import itertools
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from visionapps.errors import ConfigError

Flips = Literal["none", "flips", "d4"]
_TURNS = {"none": (0,), "flips": (0, 2), "d4": (0, 1, 2, 3)}


@dataclass(frozen=True)
class View:
    """One way to look at a tile: mirrored left to right (or not), then turned, then resized."""

    mirrored: bool = False
    turns: int = 0  # quarter turns, anticlockwise
    scale: float = 1.0

    def apply(self, images: Tensor, *, stride: int) -> Tensor:
        """What the network sees: (B, C, h, w) float to (B, C, h', w'), whole multiples of the stride if resized."""
        if self.mirrored:
            images = images.flip(-1)
        if self.turns:
            images = torch.rot90(images, self.turns, (-2, -1))
        height, width = (max(1, round(n * self.scale / stride)) * stride for n in images.shape[-2:])
        return images if self.scale == 1 else _resize(images, height, width)

    def restore(self, scores: Tensor, height: int, width: int) -> Tensor:
        """Scores of what ``apply`` gave, at the places of the tile: (B, S, h', w') to (B, S, height, width)."""
        return self.turn_back(self.resize_back(scores, height, width))

    def resize_back(self, scores: Tensor, height: int, width: int) -> Tensor:
        """The first half of ``restore``: in the size of the tile, mirrored and turned as the network saw it."""
        return _resize(scores, *((width, height) if self.turns % 2 else (height, width)))

    def turn_back(self, scores: Tensor) -> Tensor:
        """The other half. Sums of several members need it once only."""
        if self.turns:
            scores = torch.rot90(scores, -self.turns, (-2, -1))
        return scores.flip(-1) if self.mirrored else scores


@dataclass(frozen=True)
class Views:
    """Which views of a tile a network sees; the mean of their probabilities counts.

    Attributes:
        flips: "none"; "flips": four, mirrored along none, one or both axes; "d4": all eight symmetries of the square.
            Aerial images have no upright side, so that all of them are likely to the model.
        scales: factors of the tile's side; each is combined with each flip.
    """

    flips: Flips = "none"
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))
        if self.flips not in get_args(Flips):
            raise ConfigError(f"views: flips {self.flips!r} unknown; choose from {', '.join(get_args(Flips))}")
        if not self.scales or len(set(self.scales)) < len(self.scales) or not all(0.1 <= s <= 10 for s in self.scales):
            raise ConfigError(f"views: scales {self.scales}; give different factors from 0.1 to 10, such as 1 1.5")

    def all(self) -> tuple[View, ...]:
        """Every view, the tile as it is first wherever 1 is the first scale."""
        mirrors = (False,) if self.flips == "none" else (False, True)
        return tuple(View(m, t, s) for s, t, m in itertools.product(self.scales, _TURNS[self.flips], mirrors))

    def __len__(self) -> int:
        return len(self.all())


ONE_VIEW = Views()


def _resize(planes: Tensor, height: int, width: int) -> Tensor:
    if planes.shape[-2:] == (height, width):
        return planes
    shrinks = height < planes.shape[-2] or width < planes.shape[-1]
    return F.interpolate(planes, size=(height, width), mode="bilinear", align_corners=False, antialias=shrinks)
