"""What tuning has to know of a photo, counted once: so many pixels that stand or fall together, and whose they are.

A unit is such a set of pixels: those of one class and level, a component, or a hole. Rules only ask for its highest
level and its area, so that any number of rules can be judged without the pixels.

Shapes: K classes, I photos, N units, C cells, R photos of a class, Q pairs of photo and rival, T candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from visionapps.competition.pieces import Found
from visionapps.competition.regions import HoleTable

Ints = NDArray[np.int32]
Counts = NDArray[Any]  # of int32, or of uint16


@dataclass(frozen=True, eq=False)
class Units:
    """The units of one class in all photos, and their cells: what falls to each rival if the unit goes.

    ``count``, ``hits``, ``falls`` and ``fall_hits`` are of labelled pixels only, ``areas`` of all.
    """

    images: Ints  # (N,) index of the photo
    tops: Ints  # (N,) highest level
    sizes: Ints  # (N,) what rules on areas ask for: of one component, where the unit is several that are alike
    areas: Ints  # (N,) of all its pixels
    count: Ints  # (N,)
    hits: Ints  # (N,) whose truth is the class
    cell_units: Ints  # (C,) the unit of a cell
    rivals: Ints  # (C,) label that the pixels of the cell fall to
    falls: Ints  # (C,)
    fall_hits: Ints  # (C,) whose truth is the rival


@dataclass(eq=False)
class UnitList:
    """Collects units photo by photo."""

    classes: int
    groups: int = 1  # that units may be of
    _parts: list[tuple[int, Found]] = field(default_factory=list)
    _found: int = 0

    def add(self, image: int, found: Found) -> None:
        """Take the units of a photo."""
        cells = found.cells
        cells[:, 0] += self._found
        self._parts.append((image, found))
        self._found += len(found.units)

    def by_class(self) -> list[list[Units]]:
        """Of each group and each of the K classes its units; those of one photo in the order in which they came."""
        numbers = [(image, len(part.units)) for image, part in self._parts]
        images = np.repeat(*np.array(numbers, np.int32).reshape(-1, 2).T)
        units = np.concatenate([np.zeros((0, 7), np.int32), *(part.units for _, part in self._parts)])
        cells = np.concatenate([np.zeros((0, 4), np.int32), *(part.cells for _, part in self._parts)])
        keys = units[:, 0] * self.classes + units[:, 1]
        cell_keys = keys[cells[:, 0]]
        order, cell_order = np.argsort(keys, kind="stable"), np.argsort(cell_keys, kind="stable")
        bounds = np.arange(self.groups * self.classes + 1)
        begins, cell_begins = (np.searchsorted(k[o], bounds) for k, o in ((keys, order), (cell_keys, cell_order)))
        place = np.empty(len(order), np.int32)
        place[order] = np.arange(len(order))
        cells[:, 0] = place[cells[:, 0]] - begins[cell_keys]
        columns = [images[order], *units[order].T[2:].copy()]
        cell_columns = cells[cell_order].T.copy()
        found = []
        for key in range(self.groups * self.classes):
            own, its = slice(begins[key], begins[key + 1]), slice(cell_begins[key], cell_begins[key + 1])
            found.append(Units(*(values[own] for values in columns), *(values[its] for values in cell_columns)))
        return [found[group * self.classes :][: self.classes] for group in range(self.groups)]


def hole_units(table: HoleTable) -> Found:
    """A unit for each hole: what is in it would go to the class that encloses it."""
    holes = table.holes
    nothing = np.zeros(len(holes), np.int64)
    units = np.stack([nothing, holes[:, 0], nothing, holes[:, 1], holes[:, 1], holes[:, 2], holes[:, 3]], axis=1)
    own, rivals = np.nonzero(table.falls)
    cells = np.stack([own, rivals, table.falls[own, rivals], table.fall_hits[own, rivals]], axis=1)
    return Found(units.astype(np.int32), cells.astype(np.int32))


class Index(NamedTuple):
    """Where a class takes part: its photos, and from whom it takes pixels there."""

    rows: Ints  # (R,) photos, rising
    pairs: Ints  # (Q, 2) place among the rows and rival, rising

    @classmethod
    def of(cls, units: Units) -> "Index":
        """Of units."""
        rows = np.unique(units.images)
        keys = np.unique(_pair_keys(units, rows))
        return cls(rows, np.stack(np.divmod(keys, _LABELS), axis=1).astype(np.int32))


_LABELS = 256


class Standing(NamedTuple):
    """What a class keeps under each of T candidates.

    What is of rivals takes nearly all the memory that tuning takes, so it is of 16 bits where that is enough.
    """

    places: Index
    pixels: Ints  # (R, T) labelled pixels
    hits: Ints  # (R, T) of these, whose truth is the class
    area: Ints  # (R, T) pixels
    held: Counts  # (Q, T) labelled pixels kept from a rival
    held_hits: Counts  # (Q, T) of these, whose truth is the rival

    def pick(self, number: int) -> "Standing":
        """One of the candidates."""
        return Standing(self.places, *(part[:, number : number + 1].copy() for part in self[1:]))

    def present(self, least: NDArray[Any]) -> "Standing":
        """Nothing is kept of a photo that has fewer pixels of the class than (T,) or (1,)."""
        stays = self.area >= least
        own = [part * stays for part in (self.pixels, self.hits, self.area)]
        held = [part * stays[self.places.pairs[:, 0]] for part in (self.held, self.held_hits)]
        return Standing(self.places, *own, *held)

    @classmethod
    def joined(cls, parts: "Sequence[Standing]") -> "Standing":
        """Candidates of several, one after the other; all of one index."""
        columns = (np.concatenate(part, axis=1) for part in zip(*(part[1:] for part in parts), strict=True))
        return cls(parts[0].places, *columns)


def stand(units: Units, index: Index, *, tops: Sequence[int], sizes: Sequence[int], size_of: NDArray[Any]) -> Standing:
    """What a class keeps if its units need a top of at least t and a size of at least s, for all pairs of them.

    Args:
        units: of the class.
        index: has all photos and rivals of the units.
        tops: thresholds, rising.
        sizes: rising.
        size_of: (N,) size of each unit.

    Returns:
        Candidates in the order of pairs, sizes changing fastest.
    """
    shape = len(tops) + 1, len(sizes) + 1
    # A unit passes the first so many thresholds; summed from the end, a place has all that pass the one before it.
    passed = np.searchsorted(tops, units.tops, "right"), np.searchsorted(sizes, size_of, "right")
    place = np.ravel_multi_index(passed, shape)

    def added(rows: NDArray[Any], places: NDArray[Any], weights: Ints, count: int, kind: type = np.int32) -> Any:
        where = rows.astype(np.int64) * (shape[0] * shape[1]) + places
        table = np.bincount(where, weights, count * shape[0] * shape[1]).astype(np.int32).reshape(count, *shape)
        kept = table[:, ::-1, ::-1].cumsum(1, dtype=np.int32).cumsum(2, dtype=np.int32)[:, ::-1, ::-1]
        return np.ascontiguousarray(kept[:, 1:, 1:], kind).reshape(count, len(tops) * len(sizes))

    rows = np.searchsorted(index.rows, units.images)
    keys = index.pairs[:, 0].astype(np.int64) * _LABELS + index.pairs[:, 1]
    pairs, places = np.searchsorted(keys, _pair_keys(units, index.rows)), place[units.cell_units]
    own = (added(rows, place, part, len(index.rows)) for part in (units.count, units.hits, units.areas))
    most = np.bincount(pairs, units.falls).max(initial=0)  # a candidate keeps no more of a pair than there is
    kind = np.uint16 if most <= np.iinfo(np.uint16).max else np.int32
    held = (added(pairs, places, part, len(keys), kind) for part in (units.falls, units.fall_hits))
    return Standing(index, *own, *held)


def _pair_keys(units: Units, rows: Ints) -> NDArray[np.int64]:
    """(C,) of each cell its place among the photos and its rival as one number."""
    places = np.searchsorted(rows, units.images[units.cell_units]).astype(np.int64)
    return places * _LABELS + units.rivals
