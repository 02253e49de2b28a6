"""What tuning has to know of a photo, counted once: so many pixels that stand or fall together, and whose they are.

A unit is such a set of pixels: those of one class and level, a component, or a hole. Rules only ask for its highest
level and its area, so that any number of rules can be judged without the pixels.

Shapes: K classes, I photos, N units, C cells, H W photo.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from visionapps.competition.components import NOBODY, Contest, components, holes
from visionapps.compiled import compiled
from visionapps.structures import IGNORE

Ints = NDArray[np.int64]
_LEVELS = 256


@dataclass(frozen=True, eq=False)
class Units:
    """The units of one class in all photos, and their cells: what falls to each rival if the unit goes.

    ``count``, ``hits``, ``falls`` and ``fall_hits`` are of labelled pixels only, ``areas`` of all.
    """

    images: Ints  # (N,) index of the photo
    tops: Ints  # (N,) highest level
    areas: Ints  # (N,) of all its pixels
    sizes: Ints  # (N,) what rules on areas ask for: of one component, where the unit is several that are alike
    count: Ints  # (N,)
    hits: Ints  # (N,) whose truth is the class
    cell_units: Ints  # (C,) the unit of a cell
    rivals: Ints  # (C,) label that the pixels of the cell fall to
    falls: Ints  # (C,)
    fall_hits: Ints  # (C,) whose truth is the rival

    def of(self, chosen: NDArray[np.bool_]) -> "Units":
        """The units of the photos that are chosen, (I,) bool; photos keep their index."""
        units = chosen[self.images]
        number = np.cumsum(units) - 1
        cells = units[self.cell_units]
        return Units(
            images=self.images[units],
            tops=self.tops[units],
            areas=self.areas[units],
            sizes=self.sizes[units],
            count=self.count[units],
            hits=self.hits[units],
            cell_units=number[self.cell_units[cells]],
            rivals=self.rivals[cells],
            falls=self.falls[cells],
            fall_hits=self.fall_hits[cells],
        )


class _Counted(NamedTuple):
    """Units of one photo, of all classes."""

    image: int
    keys: NDArray[Any]
    tops: NDArray[Any]
    areas: NDArray[Any]
    sizes: NDArray[Any]
    pixels: Ints  # labelled
    hits: Ints
    falls: Ints  # (N, K)
    fall_hits: Ints


@dataclass(eq=False)
class UnitList:
    """Collects units photo by photo."""

    classes: int
    _parts: list[list[tuple[NDArray[Any], ...]]] = field(default_factory=list)
    _found: int = 0

    def add(self, part: _Counted) -> None:
        """Take the units of a photo; empty ones are left out."""
        there = part.areas > 0
        number = np.cumsum(there) - 1 + self._found
        own, rivals = np.nonzero(part.falls)
        images = np.full(int(there.sum()), part.image)
        units = (images, *(v[there] for v in (part.keys, part.tops, part.areas, part.sizes, part.pixels, part.hits)))
        cells = (part.keys[own], number[own], rivals, part.falls[own, rivals], part.fall_hits[own, rivals])
        self._parts.append([units, cells])
        self._found += int(there.sum())

    def by_class(self) -> list[Units]:
        """Of each of the K classes its units."""
        units, cells = (
            [np.concatenate([np.zeros(0, np.int64), *column]).astype(np.int64) for column in zip(*rows, strict=True)]
            for rows in zip(*self._parts, strict=True)
        )
        found = []
        for k in range(self.classes):
            own, cell = np.flatnonzero(units[1] == k), cells[0] == k
            number = np.searchsorted(own, cells[1][cell])
            images, _, tops, areas, sizes, count, hits = (values[own] for values in units)
            rivals, falls, fall_hits = (values[cell] for values in cells[2:])
            found.append(Units(images, tops, areas, sizes, count, hits, number, rivals, falls, fall_hits))
        return found


def level_units(image: int, won: Contest, truth: NDArray[np.uint8], classes: int) -> _Counted:
    """A unit for each class and level: what thresholds need, exact for all 256."""
    ids = won.winner.astype(np.int32) * _LEVELS + won.level
    number = classes * _LEVELS
    keys, tops = np.divmod(np.arange(number), _LEVELS)
    areas = np.bincount(ids.reshape(-1), minlength=number)
    return _counted(image, keys, tops, areas, ids, won, truth, np.zeros((len(keys), classes), np.int64))


@dataclass(frozen=True)
class Grid:
    """What rules on components may ask for; components between the same two values are alike.

    Attributes:
        tops: levels of seeds, rising.
        sizes: minimum areas, rising from 0.
        alike: count those that are alike as one; False where their number matters.
    """

    tops: tuple[int, ...]
    sizes: tuple[int, ...]
    alike: bool = True


def component_units(
    image: int, won: Contest, truth: NDArray[np.uint8], *, bottom: int, classes: int, grid: Grid
) -> _Counted:
    """Units of the components of the pixels from a lower threshold on.

    Args:
        image: index of the photo.
        won: who wins its pixels.
        truth: (H, W) labels.
        bottom: level of the threshold.
        classes: K.
        grid: what will be asked.
    """
    found = components(np.where(won.level >= bottom, won.winner, np.uint8(NOBODY)), won.level)
    if not grid.alike:
        falls = np.zeros((len(found.keys), classes), np.int64)
        return _counted(image, found.keys, found.tops, found.areas, found.ids, won, truth, falls)
    tops, sizes = np.append(grid.tops, 0), np.array(grid.sizes)  # the last of tops: below all of them
    of_top = np.searchsorted(tops[:-1], found.tops, "right") - 1
    of_size = np.searchsorted(sizes, found.areas, "right") - 1
    kind = (found.keys.astype(np.int64) * len(tops) + of_top % len(tops)) * len(sizes) + of_size
    kinds, number = np.unique(kind, return_inverse=True)
    ids = np.append(number, -1).astype(np.int32)[found.ids]
    rest, size = np.divmod(kinds, len(sizes))
    keys, top = np.divmod(rest, len(tops))
    areas = np.bincount(number, found.areas, len(kinds)).astype(np.int64)
    falls = np.zeros((len(kinds), classes), np.int64)
    return _counted(image, keys, tops[top], areas, ids, won, truth, falls)._replace(sizes=sizes[size])


def hole_units(image: int, labels: NDArray[np.uint8], truth: NDArray[np.uint8], label: int, classes: int) -> _Counted:
    """A unit for each region that a class encloses; what is in it would go to the class."""
    found = holes(labels, label)
    height, width = found.ids.shape
    here = slice(found.row, found.row + height), slice(found.column, found.column + width)
    number = len(found.areas)
    own = np.full((height, width), label, np.uint8)
    inside = Contest(own, np.ascontiguousarray(labels[here]), own)
    keys = np.full(number, label)
    return _counted(
        image,
        keys,
        np.zeros(number),
        found.areas,
        found.ids,
        inside,
        truth[here],
        np.zeros((number, classes), np.int64),
    )


def _counted(
    image: int,
    keys: NDArray[Any],
    tops: NDArray[Any],
    areas: NDArray[Any],
    ids: NDArray[np.int32],
    won: Contest,
    truth: NDArray[np.uint8],
    falls: Ints,
) -> _Counted:
    count, hits = (np.zeros(len(keys), np.int64) for _ in range(2))
    fall_hits = np.zeros_like(falls)
    _count(ids, won.winner, won.rival, np.ascontiguousarray(truth), count, hits, falls, fall_hits)
    return _Counted(image, keys, tops, areas, areas, count, hits, falls, fall_hits)


@compiled
def _count(ids: Any, winner: Any, rival: Any, truth: Any, count: Any, hits: Any, falls: Any, fall_hits: Any) -> None:
    height, width = ids.shape
    for y in range(height):
        for x in range(width):
            i, true = ids[y, x], truth[y, x]
            if i < 0 or true == IGNORE:
                continue
            other = rival[y, x]
            count[i] += 1
            hits[i] += true == winner[y, x]
            falls[i, other] += 1
            fall_hits[i, other] += true == other
