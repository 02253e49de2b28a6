"""Test-time views: the same tile seen mirrored, turned and at other scales, its scores brought back and averaged."""

from dataclasses import dataclass
from typing import Literal

Flips = Literal["none", "flips", "d4"]


@dataclass(frozen=True)
class Views:
    """Which views of a tile a network sees."""

    flips: Flips = "none"
    scales: tuple[float, ...] = (1.0,)


ONE_VIEW = Views()
