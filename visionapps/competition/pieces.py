"""Components of many lower thresholds at once: they only grow as the threshold falls.

Pixels join from the highest threshold down, so that every pixel is joined once, however many thresholds there are. What
a component is made of is kept in atoms, pixels that came at the same threshold, in one place, with one rival: far fewer
than pixels. Source: Najman and Couprie 2006, on component trees by union and find.

Shapes: K classes, H W photo, B thresholds, n pixels, N units, C cells.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from visionapps.competition.components import NOBODY, Contest, root
from visionapps.compiled import compiled
from visionapps.structures import IGNORE

_ROOM = 1024  # units and cells that tables begin with
Rows = NDArray[np.int32]


class Found(NamedTuple):
    """Units of one photo; what they are is told in visionapps.competition.tables.Units."""

    units: Rows  # (N, 7) group, class, top, size, area, count, hits
    cells: Rows  # (C, 4) unit, rival, falls, fall_hits


class Asked(NamedTuple):
    """What will be asked of components."""

    bottoms: NDArray[np.int64]  # (B,) levels, rising
    tops: NDArray[np.int64]  # levels of seeds, rising
    sizes: NDArray[np.int64]  # areas, rising from 0
    alike: bool  # components between the same two values are one unit
    classes: int


class _Forest(NamedTuple):
    """Pixels that hang together, by the first one of them, their root."""

    stages: NDArray[np.int16]  # (n,) the highest of the thresholds that a pixel reaches, -1: none
    parents: Rows  # (n,)
    tops: NDArray[np.uint8]  # (n,) highest level, at roots
    areas: Rows  # (n,) pixels, at roots
    marks: Rows  # (n,) a number of the stage, at roots: the first of its atoms, then its unit


def piece_units(won: Contest, truth: NDArray[np.uint8], asked: Asked) -> Found:
    """Units of the components of all lower thresholds; the group of a unit is the place of its threshold.

    Args:
        won: who wins the pixels of a photo.
        truth: (H, W) labels.
        asked: what is wanted.
    """
    stage_of = np.searchsorted(asked.bottoms, np.arange(256), "right") - 1
    pixels = won.level.size
    forest = _Forest(
        stage_of[won.level].astype(np.int16).reshape(-1),
        np.arange(pixels, dtype=np.int32),
        won.level.reshape(-1).copy(),
        np.ones(pixels, np.int32),
        np.full(pixels, -1, np.int32),
    )
    forest.stages[won.winner.reshape(-1) == NOBODY] = -1
    flat = Contest(*(np.ascontiguousarray(plane).reshape(-1) for plane in won))
    return Found(*_pieces(flat, np.ascontiguousarray(truth).reshape(-1), won.level.shape[1], forest, asked))


def level_units(won: Contest, truth: NDArray[np.uint8], classes: int) -> Found:
    """A unit for each class and level, all in group 0: what thresholds need, exact for all 256.

    Args:
        won: who wins the pixels of a photo.
        truth: (H, W) labels.
        classes: K.
    """
    flat = Contest(*(np.ascontiguousarray(plane).reshape(-1) for plane in won))
    return Found(*_levels(flat, np.ascontiguousarray(truth).reshape(-1), classes))


@compiled
def _levels(won: Any, truth: Any, classes: Any) -> Any:
    number = np.full(classes * 256, np.int32(-1))
    units = np.zeros((classes * 256, 7), np.int32)
    used = 0
    for p in range(len(truth)):
        key = np.int64(won.winner[p]) * 256 + won.level[p]
        u = number[key]
        if u < 0:
            u = np.int32(used)
            number[key] = u
            units[u, 1], units[u, 2] = won.winner[p], won.level[p]
            used += 1
        units[u, 4] += 1
    cell_of = np.full(used * classes, np.int32(-1))
    cells = np.zeros((used * classes, 4), np.int32)
    written = 0
    for p in range(len(truth)):
        if truth[p] == IGNORE:
            continue
        u, rival = number[np.int64(won.winner[p]) * 256 + won.level[p]], won.rival[p]
        c = cell_of[u * classes + rival]
        if c < 0:
            c = np.int32(written)
            cell_of[u * classes + rival] = c
            cells[c, 0], cells[c, 1] = u, rival
            written += 1
        units[u, 5] += 1
        units[u, 6] += truth[p] == won.winner[p]
        cells[c, 2] += 1
        cells[c, 3] += truth[p] == rival
    for u in range(used):
        units[u, 3] = units[u, 4]  # of levels, nothing asks for a size
    return units[:used].copy(), cells[:written].copy()


@compiled
def _pieces(won: Any, truth: Any, width: Any, forest: Any, asked: Any) -> Any:
    order, begins = _by_stage(forest.stages, len(asked.bottoms))
    atoms = np.empty((len(order), 6), np.int32)  # pixel, rival, next of the root, pixels, hits, fall hits
    live, alive, used = np.empty(len(order), np.int32), 0, 0
    units, unit_count = np.zeros((_ROOM, 7), np.int32), 0
    cells, cell_count = np.zeros((_ROOM, 4), np.int32), 0
    for stage in range(len(asked.bottoms) - 1, -1, -1):
        pixels = order[begins[stage] : begins[stage + 1]]
        _join_pixels(pixels, stage, won.winner, width, forest)
        used = _add_atoms(pixels, won, truth, forest, atoms, used)
        kept = 0
        for i in range(alive):
            if forest.parents[live[i]] == live[i]:
                live[kept] = live[i]
                kept += 1
        for p in pixels:
            if forest.parents[p] == p:
                live[kept] = p
                kept += 1
        alive = kept
        if not asked.alike:  # in the order in which they are read
            live[:alive] = np.sort(live[:alive])
        while unit_count + alive > len(units):
            units = np.concatenate((units, np.zeros_like(units)))
        while cell_count + used > len(cells):
            cells = np.concatenate((cells, np.zeros_like(cells)))
        first = unit_count
        unit_count = _write_units(stage, live[:alive], won.winner, forest, asked, units, first)
        cell_count = _write_cells(atoms[:used], forest, asked.classes, units, first, unit_count, cells, cell_count)
    return units[:unit_count].copy(), cells[:cell_count].copy()


@compiled
def _by_stage(stages: Any, count: Any) -> Any:
    """Pixels sorted by stage, and where each stage begins among them; those of none are left out."""
    begins = np.zeros(count + 1, np.int64)
    for stage in stages:
        if stage >= 0:
            begins[stage + 1] += 1
    begins = np.cumsum(begins)
    at = begins[:-1].copy()
    order = np.empty(begins[-1], np.int32)
    for p in range(len(stages)):
        if stages[p] >= 0:
            order[at[stages[p]]] = p
            at[stages[p]] += 1
    return order, begins


@compiled
def _join_pixels(pixels: Any, stage: Any, winner: Any, width: Any, forest: Any) -> None:
    """Join pixels of a stage with their neighbours (corners touch) of the same winner that are there."""
    stages, parents = forest.stages, forest.parents
    height = len(stages) // width
    for p in pixels:
        y, x = p // width, p % width
        own = root(parents, p)
        for v in range(max(0, y - 1), min(height, y + 2)):
            for u in range(max(0, x - 1), min(width, x + 2)):
                q = v * width + u
                there = stages[q] > stage or (stages[q] == stage and q < p)
                if not there or winner[q] != winner[p]:
                    continue
                other = root(parents, q)
                if other == own:
                    continue
                first, second = min(own, other), max(own, other)
                parents[second] = first
                forest.areas[first] += forest.areas[second]
                forest.tops[first] = max(forest.tops[first], forest.tops[second])
                own = first


@compiled
def _add_atoms(pixels: Any, won: Any, truth: Any, forest: Any, atoms: Any, used: Any) -> Any:
    """Put labelled pixels of a stage into atoms; one root has one atom per rival and stage."""
    begin = used
    for p in pixels:
        if truth[p] == IGNORE:
            continue
        own = root(forest.parents, p)
        head = forest.marks[own] if forest.marks[own] >= begin and forest.marks[own] < used else -1
        if head >= 0 and atoms[head, 0] != own:  # a number that an earlier stage left
            head = -1
        a = head
        while a >= 0 and atoms[a, 1] != won.rival[p]:
            a = atoms[a, 2]
        if a < 0:
            a = used
            used += 1
            atoms[a, 0], atoms[a, 1], atoms[a, 2] = own, won.rival[p], head
            atoms[a, 3:] = 0
            forest.marks[own] = a
        atoms[a, 3] += 1
        atoms[a, 4] += truth[p] == won.winner[p]
        atoms[a, 5] += truth[p] == won.rival[p]
    return used


@compiled
def _write_units(stage: Any, live: Any, winner: Any, forest: Any, asked: Any, units: Any, first: Any) -> Any:
    """A unit for each component, or for those that are alike; their roots are marked with it.

    Returns:
        How many units there are now.
    """
    tops, sizes = asked.tops, asked.sizes
    kinds = np.full(asked.classes * (len(tops) + 1) * len(sizes) if asked.alike else 0, np.int32(-1))
    count = first
    for r in live:
        key, top, area = np.int64(winner[r]), np.int64(forest.tops[r]), np.int64(forest.areas[r])
        u = -1
        if asked.alike:
            of_top, of_size = np.searchsorted(tops, top, "right"), np.searchsorted(sizes, area, "right") - 1
            kind = (key * (len(tops) + 1) + of_top) * len(sizes) + of_size
            top, size = tops[of_top - 1] if of_top else np.int64(0), sizes[of_size]
            u = kinds[kind]
            if u < 0:
                kinds[kind] = count
        else:
            size = area
        if u < 0:
            u = count
            count += 1
            units[u, 0], units[u, 1], units[u, 2], units[u, 3] = stage, key, top, size
        units[u, 4] += area
        forest.marks[r] = u
    return count


@compiled
def _write_cells(
    atoms: Any, forest: Any, classes: Any, units: Any, first: Any, last: Any, cells: Any, written: Any
) -> Any:
    """What the units from the first to the last hold, from the atoms of all stages so far.

    Returns:
        How many cells there are now.
    """
    cell_of = np.full((last - first) * classes, np.int32(-1))
    for a in range(len(atoms)):
        u, rival = forest.marks[root(forest.parents, atoms[a, 0])], atoms[a, 1]
        place = (u - first) * classes + rival
        c = cell_of[place]
        if c < 0:
            c = np.int32(written)
            cell_of[place] = c
            cells[c, 0], cells[c, 1] = u, rival
            written += 1
        units[u, 5] += atoms[a, 3]
        units[u, 6] += atoms[a, 4]
        cells[c, 2] += atoms[a, 3]
        cells[c, 3] += atoms[a, 5]
    return written
