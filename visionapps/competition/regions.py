"""Regions of a label map and their neighbours, from which the holes of all classes follow without looking at pixels.

A hole of a class is what other classes hold inside it: pixels that hang together (4-connected) and reach no edge of the
photo. It never cuts a region of another label, so it is a set of regions, and one pass over the pixels serves all
classes, also after some of them were filled.

Shapes: K classes, H W photo, N regions, P pairs, C cells, M holes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from visionapps.competition.components import join, label_components
from visionapps.compiled import compiled
from visionapps.structures import IGNORE

_ROOM = 64  # holes that a table begins with


class Regions(NamedTuple):
    """Stretches of one label (4-connected), and which of them touch."""

    owners: NDArray[np.uint8]  # (N,) label
    areas: NDArray[np.int64]  # (N,) pixels
    edges: NDArray[np.bool_]  # (N,) whether it reaches an edge of the photo
    pairs: NDArray[np.int32]  # (P, 2) regions with a common border; some more than once


class Cells(NamedTuple):
    """Labelled pixels of one region and one true label."""

    regions: NDArray[np.int32]  # (C,)
    truths: NDArray[np.uint8]  # (C,)
    counts: NDArray[np.int64]  # (C,)


class HoleTable(NamedTuple):
    """Holes of all classes in one photo. ``falls`` and ``fall_hits`` are of labelled pixels."""

    holes: NDArray[np.int64]  # (M, 4) label that encloses it, pixels, labelled ones, those whose truth is that label
    falls: NDArray[np.int64]  # (M, K) by the label that they have now
    fall_hits: NDArray[np.int64]  # (M, K) whose truth is that label, too


def regions_of(labels: NDArray[np.uint8]) -> tuple[Regions, NDArray[np.int32]]:
    """The regions of a photo.

    Args:
        labels: (H, W).

    Returns:
        The regions, and (H, W) which one each pixel is of, in [0, N).
    """
    ids = np.empty(labels.shape, np.int32)
    count = label_components(labels, ids, diagonal=False, nobody=-1)
    owners, areas, edges = np.zeros(count, np.uint8), np.zeros(count, np.int64), np.zeros(count, np.bool_)
    pairs = np.empty((_borders(ids, np.empty((0, 2), np.int32)), 2), np.int32)
    _borders(ids, pairs)
    _survey(labels, ids, owners, areas, edges)
    return Regions(owners, areas, edges, pairs), ids


def cells_of(ids: NDArray[np.int32], truth: NDArray[np.uint8]) -> Cells:
    """What the pixels of each region really are.

    Args:
        ids: (H, W) regions.
        truth: (H, W) labels, 255 for pixels without one.
    """
    return Cells(*_cells(ids, np.ascontiguousarray(truth)))


def filled(found: Regions, largest: Sequence[int]) -> NDArray[np.uint8]:
    """(N,) labels of the regions after each class has filled what it encloses, one class after the other by label.

    Args:
        found: the regions.
        largest: (K,) pixels of the largest hole that is filled; 0: none.
    """
    owners = found.owners.copy()
    _fill(np.array(largest, np.int64), found._replace(owners=owners))
    return owners


def fill_holes(labels: NDArray[np.uint8], largest: Sequence[int]) -> None:
    """Fill what classes enclose, in place, one class after the other by label.

    Args:
        labels: (H, W).
        largest: (K,) pixels of the largest region that is filled; 0: none.
    """
    if not any(largest) or not labels.size:
        return
    found, ids = regions_of(labels)
    owners = filled(found, largest)
    if (owners != found.owners).any():
        labels[...] = owners[ids]


def hole_table(found: Regions, cells: Cells, classes: int, skipped: int | None) -> HoleTable:
    """All holes of all classes, as the labels are.

    Args:
        found: the regions.
        cells: and what they really are.
        classes: K.
        skipped: label whose holes are not wanted; None: all are.
    """
    return HoleTable(*_hole_table(found, cells, classes, -1 if skipped is None else skipped))


def overlap_of(owners: NDArray[np.uint8], cells: Cells, classes: int) -> NDArray[np.int64]:
    """(K, 3) labelled pixels of each class in prediction and truth, in the prediction, and in the truth.

    Args:
        owners: (N,) labels of the regions.
        cells: what they really are.
        classes: K.
    """
    found = np.zeros((classes, 3), np.int64)
    _overlap(owners[cells.regions], cells.truths, cells.counts, found)
    return found


def label_overlap(labels: NDArray[np.uint8], truth: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """The same of a photo.

    Args:
        labels: (H, W) in [0, K).
        truth: (H, W) in [0, K), 255 for pixels without a label.
        classes: K.
    """
    found = np.zeros((classes, 3), np.int64)
    _label_overlap(labels, truth, found)
    return found


@compiled
def _label_overlap(labels: Any, truth: Any, found: Any) -> None:
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            own, true = labels[y, x], truth[y, x]
            if true != IGNORE:
                found[own, 0] += own == true
                found[own, 1] += 1
                found[true, 2] += 1


@compiled
def _overlap(predicted: Any, truths: Any, counts: Any, found: Any) -> None:
    for i in range(len(predicted)):
        found[predicted[i], 0] += counts[i] if predicted[i] == truths[i] else 0
        found[predicted[i], 1] += counts[i]
        found[truths[i], 2] += counts[i]


@compiled
def _survey(labels: Any, ids: Any, owners: Any, areas: Any, edges: Any) -> None:
    height, width = ids.shape
    for y in range(height):
        for x in range(width):
            i = ids[y, x]
            owners[i] = labels[y, x]
            areas[i] += 1
        edges[ids[y, 0]] = edges[ids[y, width - 1]] = True
    for x in range(width):
        edges[ids[0, x]] = edges[ids[height - 1, x]] = True


@compiled
def _borders(ids: Any, pairs: Any) -> Any:
    """Write pairs of neighbours as far as there is room; a border that goes straight on is written once.

    Returns:
        How many there are.
    """
    height, width = ids.shape
    count = 0
    for y in range(height):
        for x in range(width):
            own = ids[y, x]
            if x > 0 and ids[y, x - 1] != own:
                other = ids[y, x - 1]
                if y == 0 or ids[y - 1, x] != own or ids[y - 1, x - 1] != other:
                    if count < len(pairs):
                        pairs[count, 0], pairs[count, 1] = other, own
                    count += 1
            if y > 0 and ids[y - 1, x] != own:
                other = ids[y - 1, x]
                if x == 0 or ids[y, x - 1] != own or ids[y - 1, x - 1] != other:
                    if count < len(pairs):
                        pairs[count, 0], pairs[count, 1] = other, own
                    count += 1
    return count


@compiled
def _cells(ids: Any, truth: Any) -> Any:
    """Cells in lists by region: each names the next one of its region, the last used comes first."""
    height, width = ids.shape
    regions, truths = np.empty(ids.size, np.int32), np.empty(ids.size, np.uint8)
    counts, others = np.zeros(ids.size, np.int64), np.empty(ids.size, np.int32)
    heads = np.full(ids.max() + 1 if ids.size else 0, np.int32(-1))
    used = 0
    for y in range(height):
        for x in range(width):
            i, true = ids[y, x], truth[y, x]
            if true == IGNORE:
                continue
            cell = heads[i]
            while cell >= 0 and truths[cell] != true:
                cell = others[cell]
            if cell < 0:
                cell = np.int32(used)
                regions[cell], truths[cell], others[cell] = i, true, heads[i]
                heads[i] = cell
                used += 1
            counts[cell] += 1
    return regions[:used].copy(), truths[:used].copy(), counts[:used].copy()


@compiled
def _enclose(label: Any, found: Any, firsts: Any, areas: Any) -> None:
    """Of each region the first one of the hole that it is part of, -1 where of none; areas of holes stand at these."""
    owners = found.owners
    for i in range(len(owners)):
        firsts[i] = i
    for p in range(len(found.pairs)):
        a, b = found.pairs[p, 0], found.pairs[p, 1]
        if owners[a] != label and owners[b] != label:
            join(firsts, a, b)
    for i in range(len(owners)):  # first ones come first, so their own first one is known
        first = firsts[firsts[i]]
        firsts[i] = first
        if first == i:
            areas[i] = 0
        if found.edges[i]:
            areas[first] = -1
        elif areas[first] >= 0:
            areas[first] += found.areas[i]
    for i in range(len(owners)):
        if owners[i] == label or areas[firsts[i]] < 0:
            firsts[i] = -1


@compiled
def _fill(largest: Any, found: Any) -> None:
    count = len(found.owners)
    firsts, areas = np.empty(count, np.int32), np.empty(count, np.int64)
    for label in range(len(largest)):
        if largest[label] == 0:
            continue
        _enclose(label, found, firsts, areas)
        for i in range(count):
            if firsts[i] >= 0 and areas[firsts[i]] <= largest[label]:
                found.owners[i] = label


@compiled
def _hole_table(found: Any, cells: Any, classes: Any, skipped: Any) -> Any:
    count = len(found.owners)
    firsts, areas, numbers = np.empty(count, np.int32), np.empty(count, np.int64), np.empty(count, np.int32)
    holes = np.zeros((_ROOM, 4), np.int64)
    falls, hits = np.zeros((_ROOM, classes), np.int64), np.zeros((_ROOM, classes), np.int64)
    used = 0
    for label in range(classes):
        if label == skipped:
            continue
        _enclose(label, found, firsts, areas)
        before = used
        for i in range(count):
            if firsts[i] != i:
                continue
            if used == len(holes):
                holes = np.concatenate((holes, np.zeros_like(holes)))
                falls, hits = np.concatenate((falls, np.zeros_like(falls))), np.concatenate((hits, np.zeros_like(hits)))
            holes[used, 0], holes[used, 1] = label, areas[i]
            numbers[i] = used
            used += 1
        if used == before:
            continue
        for c in range(len(cells.counts)):
            region, true, pixels = cells.regions[c], cells.truths[c], cells.counts[c]
            if firsts[region] < 0:
                continue
            hole, owner = numbers[firsts[region]], found.owners[region]
            holes[hole, 2] += pixels
            holes[hole, 3] += pixels if true == label else 0
            falls[hole, owner] += pixels
            hits[hole, owner] += pixels if true == owner else 0
    return holes[:used].copy(), falls[:used].copy(), hits[:used].copy()
