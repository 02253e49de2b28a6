"""How much the place of the tiles shows in a map: maps on two lattices, compared by the distance to their seams.

Shapes: H W raster, h rows of a band.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from visionapps.errors import ConfigError
from visionapps.inference.plan import Axis, Plan
from visionapps.inference.products import Band
from visionapps.inference.sources import INVALID

_NEAR = 16  # pixels that count as near to a seam where tiles do not overlap


class Ring(NamedTuple):
    """The pixels whose distance to the nearest seam lies in [begin, end)."""

    begin: float
    end: float
    pixels: int  # with data in both maps
    differing: int  # of these, labelled otherwise by the two maps

    @property
    def share(self) -> float | None:
        """Differing pixels of all; None where there are none."""
        return self.differing / self.pixels if self.pixels else None


@dataclass(frozen=True)
class SeamReport:
    """What two maps of one scene say about each other.

    Attributes:
        near: pixels to each side of a seam in which two tiles are blended; a seam is the middle of an overlap.
        rings: by growing distance, without gaps.
    """

    near: float
    rings: tuple[Ring, ...]

    @property
    def seams(self) -> Ring:
        """Where tiles of either lattice are blended."""
        return self._between(0, self.near)

    @property
    def interior(self) -> Ring:
        """At least as far away from blending as blending is wide."""
        return self._between(2 * self.near, math.inf)

    @property
    def everywhere(self) -> Ring:
        """All pixels."""
        return self._between(0, math.inf)

    @property
    def excess(self) -> float | None:
        """How much more often labels differ at seams than in the interior: 1 means that seams cannot be told from it.

        None where the interior is empty or has no difference to compare with.
        """
        at_seams, inside = self.seams.share, self.interior.share
        return at_seams / inside if at_seams is not None and inside else None

    def _between(self, begin: float, end: float) -> Ring:
        rings = [ring for ring in self.rings if begin <= ring.begin and ring.end <= end]
        return Ring(begin, end, sum(r.pixels for r in rings), sum(r.differing for r in rings))


def seam_report(bands: Iterable[Band], others: Iterable[Band], layout: Plan, other: Plan) -> SeamReport:
    """Compare two maps of one scene while they are drawn; memory does not grow with the height.

    Where a map differs because of where its tiles lie, it differs near the seams of one lattice, where the other
    lattice sees the same pixels in the middle of a tile. What differs far from both has other causes: strides, and
    context that ends at different places.

    Args:
        bands: of one map, from top to bottom; plane 0 are labels.
        others: of the other map, the same pixels in any other bands.
        layout: of the first map.
        other: of the other map, half a step away; see ``shifted``.

    Raises:
        ConfigError: the plans are of different sizes, or neither has a seam.
    """
    shape = layout.rows.length, layout.cols.length
    if shape != (other.rows.length, other.cols.length):
        raise ConfigError(
            f"seams: plans of {shape[0]} x {shape[1]} px and of {other.rows.length} x {other.cols.length} px; "
            "compare maps of one scene"
        )
    if layout.tiles == 1 and other.tiles == 1:
        raise ConfigError(
            f"seams: one tile covers all {shape[0]} x {shape[1]} px, so there is no seam to measure; "
            "choose a larger scene or a smaller --tile"
        )
    near = max(_NEAR, *(axis.overlap for axis in (layout.rows, layout.cols))) / 2
    edges = _edges(near, max(axis.step for axis in (layout.rows, layout.cols)) / 4)
    rows, cols = (
        np.searchsorted(edges, _distances(*axes), side="right").astype(np.uint8)
        for axes in ((layout.rows, other.rows), (layout.cols, other.cols))
    )
    pixels, differing = np.zeros(len(edges) + 1, np.int64), np.zeros(len(edges) + 1, np.int64)
    for row, first, second in _in_step(bands, others):
        ring = np.minimum(rows[row : row + len(first), None], cols)  # the nearest seam of either direction
        valid = (first != INVALID) & (second != INVALID)
        pixels += np.bincount(ring[valid], minlength=len(pixels))
        differing += np.bincount(ring[valid & (first != second)], minlength=len(pixels))
    bounds = itertools.pairwise((0.0, *edges, math.inf))
    return SeamReport(near, tuple(Ring(*b, int(n), int(d)) for b, n, d in zip(bounds, pixels, differing, strict=True)))


def _edges(near: float, farthest: float) -> list[float]:
    """Inner bounds of the rings: half of what is near, then doubling as long as there is something beyond."""
    edges = [near / 2, near, 2 * near]
    while 2 * edges[-1] < farthest:
        edges.append(2 * edges[-1])
    return edges


def _distances(*axes: Axis) -> np.ndarray:
    """(length,) from the centre of each pixel to the nearest seam of any of the lattices; inf where there is none."""
    seams = sorted(start + axis.overlap / 2 for axis in axes for start in axis.starts[1:])
    bounds = np.array([-math.inf, *seams, math.inf])
    centres = np.arange(axes[0].length) + 0.5
    after = np.searchsorted(bounds, centres)
    return np.asarray(np.minimum(centres - bounds[after - 1], bounds[after] - centres))


def _in_step(bands: Iterable[Band], others: Iterable[Band]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The labels of both maps in common pieces: first row, (h, W) of one and (h, W) of the other."""
    ends = iter(bands), iter(others)
    rest = [np.empty((0, 0), np.uint8) for _ in ends]
    row = 0
    while True:
        for side, stream in enumerate(ends):
            if not len(rest[side]):
                band = next(stream, None)
                rest[side] = band.planes[0] if band is not None else np.empty((0, 0), np.uint8)
        height = min(map(len, rest))
        if not height:
            assert not any(map(len, rest)), "both maps must have the same rows"
            return
        yield row, rest[0][:height], rest[1][:height]
        rest = [labels[height:] for labels in rest]
        row += height
