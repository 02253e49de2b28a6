"""Label maps as polygons, while the rows come: memory follows what is open, not the height of the map.

Shapes: h W rows of a map W columns wide, P polygons, R rings, V vertices.
"""

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from visionapps.errors import ConfigError, DataError
from visionapps.inference.products import LEVELS
from visionapps.structures import IGNORE

if TYPE_CHECKING:
    from visionapps.inference.polygon_rings import Rings


class Polygon(NamedTuple):
    """One region of equal labels, connected by the sides of pixels."""

    label: int
    rings: tuple[np.ndarray, ...]  # (n, 2) float64 col and row of vertices, the last one the first again; outline first
    pixels: int
    area_m2: float  # sum over its pixels, not of the simplified outline
    confidence: float  # mean over its pixels, in [0, 1]; NaN where there is none


@dataclass(frozen=True, eq=False)
class Polygons:
    """P polygons as columns; iterate for single ones.

    Attributes:
        points: (V, 2) float64, col and row of the vertices in pixels; (0, 0) is the upper left corner of the raster.
        rings: (R + 1,) int64, where each ring begins in points. Outlines run clockwise on the screen, holes the other
            way; the last vertex of a ring is its first one.
        parts: (P + 1,) int64, where each polygon begins in rings; its first ring is the outline.
        labels: (P,) uint8.
        pixels: (P,) int64.
        areas: (P,) float64, sums over the pixels.
        confidences: (P,) float64 means over the pixels, in [0, 1]; NaN where there is none.
    """

    points: np.ndarray
    rings: np.ndarray
    parts: np.ndarray
    labels: np.ndarray
    pixels: np.ndarray
    areas: np.ndarray
    confidences: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Polygon]:
        for i in range(len(self)):
            bounds = self.rings[self.parts[i] : self.parts[i + 1] + 1]
            rings = tuple(self.points[a:b] for a, b in itertools.pairwise(bounds))
            yield Polygon(
                int(self.labels[i]), rings, int(self.pixels[i]), float(self.areas[i]), float(self.confidences[i])
            )


class Polygoniser:
    """Takes the rows of a label map from top to bottom and gives polygons soon after their last row.

    What comes out, and in which order, depends on the map alone and not on how its rows are cut into calls. Polygons of
    one map share their edges exactly, simplified or not: they neither overlap nor leave gaps, and all are valid.
    """

    def __init__(
        self,
        width: int,
        *,
        simplify_px: float = 1.0,
        min_area: float = 0.0,
        classes: Collection[int] | None = None,
    ) -> None:
        """
        Args:
            width: W, columns of the map.
            simplify_px: how far an outline may stray from the sides of the pixels, in pixels. 0 gives the exact
                outline; 1 straightens the stairs of slanted edges.
            min_area: regions with less are left out, and the place where they were stays empty. In the unit of the
                areas given to ``add``.
            classes: labels that become polygons; None: all. Pixels of others are treated like no data.

        Raises:
            ConfigError: a number is out of its range.
        """
        if width < 1:
            raise ConfigError(f"polygons: width {width} must be at least 1 pixel")
        if not 0 <= simplify_px < np.inf or not 0 <= min_area < np.inf:
            raise ConfigError(f"polygons: simplify {simplify_px} and minimum area {min_area} must not be negative")
        from visionapps.inference.polygon_state import new_state

        wanted = np.full(256, IGNORE, np.uint8)
        chosen = [label for label in range(IGNORE) if classes is None or label in classes]
        wanted[chosen] = chosen
        self._width = width
        self._state = new_state(width, classes=wanted, tolerance=simplify_px, min_area=min_area)

    def add(
        self, labels: np.ndarray, *, areas: np.ndarray | None = None, confidence: np.ndarray | None = None
    ) -> Iterator[Polygons]:
        """Take the next rows.

        Args:
            labels: (h, W) uint8; 255 is no data.
            areas: (h,) float64, the area of one pixel of each row; None: 1.
            confidence: (h, W) uint8, round(254 * q) of each pixel, 255 for none.

        Yields:
            Batches of polygons that are complete, at most 64 rows after their last one. All of them must be taken
            before the next call.

        Raises:
            DataError: the rows are not of this width, or not uint8.
        """
        rows = labels.shape[0]
        areas = np.ones(rows) if areas is None else np.ascontiguousarray(areas, np.float64)
        votes = np.empty((rows, 0), np.uint8) if confidence is None else confidence
        wide = (rows, self._width)
        if labels.shape != wide or labels.dtype != np.uint8 or areas.shape != wide[:1] or votes.shape[0] != rows:
            raise DataError(f"polygons: rows of {labels.shape} {labels.dtype}; (h, {self._width}) uint8 is expected")
        yield from self._scan(np.ascontiguousarray(labels), np.ascontiguousarray(votes), areas)

    def finish(self) -> Iterator[Polygons]:
        """End the map; yields what is still open."""
        from visionapps.inference.polygon_rings import take_rings
        from visionapps.inference.polygon_state import LAST, PENDING

        self._state.counters[LAST] = 1
        below = np.full((1, self._width), IGNORE, np.uint8)
        yield from self._scan(below, np.empty((1, 0), np.uint8), np.zeros(1))
        if self._state.counters[PENDING]:
            yield _polygons(take_rings(self._state))

    def _scan(self, labels: np.ndarray, votes: np.ndarray, areas: np.ndarray) -> Iterator[Polygons]:
        from visionapps.inference.polygon_kernels import advance
        from visionapps.inference.polygon_rings import take_rings
        from visionapps.inference.polygon_state import DUE, FULL, PENDING, grown

        done = 0
        while done < len(labels):
            done = advance(self._state, labels, votes, areas, done)
            if self._state.counters[FULL]:
                self._state = grown(self._state)
            if self._state.counters[DUE] and self._state.counters[PENDING]:
                yield _polygons(take_rings(self._state))


def _polygons(found: "Rings") -> Polygons:
    return Polygons(
        found.points, found.rings, found.parts, found.labels, found.pixels, found.areas, found.confidences / LEVELS
    )
