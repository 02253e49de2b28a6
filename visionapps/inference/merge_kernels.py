"""Compiled loops over the boxes of a scene, each of which looks only at boxes nearby.

Shapes: N boxes, T cells of a table, E entries in them.

Boxes are kept in cells by their size: a box of longer side s lies on the level of the smallest power of two that is not
below s, in cells of that side, so that it touches four of them at most. Two boxes whose IoU is above t have longer
sides of a ratio above t, so that a box finds all it has to be compared with on a few levels, in a few cells.

All boxes are x0 y0 x1 y1 in float64, finite, and not empty. Sides are numbered 0 left, 1 top, 2 right, 3 bottom.
"""

from typing import Any, NamedTuple

import numpy as np

from visionapps.compiled import compiled

_LEVELS = 64  # sides of up to 2 ** 63 pixels
_LEAST = 1e-9  # share by which bounds of a search are widened, so that rounding loses no pair
_WEIGHTLESS = 1e-12  # stands in for a score of 0, with which nothing could be averaged


class Grid(NamedTuple):
    """Boxes by class, level and cell: an open-addressed table whose slots are heads of lists."""

    keys: np.ndarray  # (T, 3) int64: column, row, class and level
    heads: np.ndarray  # (T,) int64: the slot's first entry; -1: a free slot
    nexts: np.ndarray  # (E,) int64: the entry after this one; -1: none
    items: np.ndarray  # (E,) int64: number of a box
    state: np.ndarray  # (3,) int64: entries so far, lowest and highest level so far


def new_grid(count: int) -> Grid:
    """Room for so many boxes to be entered."""
    slots = 1 << max(4, (8 * count - 1).bit_length())
    state = np.array([0, _LEVELS, -1])
    entries = np.empty(4 * count, np.int64)
    return Grid(np.empty((slots, 3), np.int64), np.full(slots, -1), entries, entries.copy(), state)


@compiled
def _level(side: Any) -> Any:
    """The smallest L >= 0 with 2 ** L >= side, and 2 ** L."""
    level, size = 0, 1.0
    while size < side and level < _LEVELS - 1:
        level, size = level + 1, size * 2
    return level, size


@compiled
def _slot(grid: Any, x: Any, y: Any, z: Any) -> Any:
    """Where a cell stands in the table, or would."""
    last = len(grid.heads) - 1
    # Knuth's multiplier, and large odd numbers: neighbouring cells shall not be neighbours in the table.
    place = (x * 73856093 ^ y * 19349663 ^ z * 83492791) * 2654435761
    at = (place ^ (place >> 29)) & last
    while grid.heads[at] >= 0 and (grid.keys[at, 0] != x or grid.keys[at, 1] != y or grid.keys[at, 2] != z):
        at = (at + 1) & last
    return at


@compiled
def _enter(grid: Any, item: Any, box: Any, label: Any) -> None:
    """Put a box into the cells that it touches."""
    level, size = _level(max(box[2] - box[0], box[3] - box[1]))
    left, top = int(np.floor(box[0] / size)), int(np.floor(box[1] / size))
    right = min(int(np.floor(box[2] / size)), left + 1)
    bottom = min(int(np.floor(box[3] / size)), top + 1)
    z = label * _LEVELS + level
    for y in range(top, bottom + 1):
        for x in range(left, right + 1):
            at, entry = _slot(grid, x, y, z), grid.state[0]
            grid.keys[at, 0], grid.keys[at, 1], grid.keys[at, 2] = x, y, z
            grid.items[entry], grid.nexts[entry] = item, grid.heads[at]
            grid.heads[at] = entry
            grid.state[0] = entry + 1
    grid.state[1], grid.state[2] = min(grid.state[1], level), max(grid.state[2], level)


@compiled
def _levels(grid: Any, box: Any, least: Any, most: Any) -> Any:
    """The levels on which boxes stand whose longer side is ``least`` to ``most`` times that of a box."""
    side = max(box[2] - box[0], box[3] - box[1])
    low, _ = _level(side * least * (1 - _LEAST))
    high, _ = _level(side * most * (1 + _LEAST))
    return max(low, grid.state[1]), min(high, grid.state[2])


@compiled
def _cells(box: Any, level: Any) -> Any:
    """The cells of a level that a box touches: columns [left, right], rows [top, bottom]."""
    size = 2.0**level
    left, top = int(np.floor(box[0] / size)), int(np.floor(box[1] / size))
    return left, top, int(np.floor(box[2] / size)), int(np.floor(box[3] / size))


@compiled
def _area(box: Any) -> Any:
    return (box[2] - box[0]) * (box[3] - box[1])


@compiled
def _common(a: Any, b: Any) -> Any:
    """Area that two boxes share."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    return width * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


@compiled
def _iou(a: Any, b: Any) -> Any:
    common = _common(a, b)
    return common / (_area(a) + _area(b) - common)


@compiled
def suppress(boxes: Any, labels: Any, iou: Any, kept: Any, grid: Any) -> None:
    """Keep each box that overlaps no better one of its class by more than ``iou``.

    Args:
        boxes: (N, 4) best first.
        labels: (N,) int64.
        iou: in (0, 1].
        kept: (N,) bool, to be filled.
        grid: empty, with room for N.
    """
    for i in range(len(boxes)):
        kept[i] = not _is_covered(boxes, i, labels[i], iou, grid)
        if kept[i]:
            _enter(grid, i, boxes[i], labels[i])


@compiled
def _is_covered(boxes: Any, i: Any, label: Any, iou: Any, grid: Any) -> Any:
    box = boxes[i]
    low, high = _levels(grid, box, iou, 1 / iou)
    for level in range(low, high + 1):
        left, top, right, bottom = _cells(box, level)
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                entry = grid.heads[_slot(grid, x, y, label * _LEVELS + level)]
                while entry >= 0:
                    if _iou(boxes[grid.items[entry]], box) > iou:
                        return True
                    entry = grid.nexts[entry]
    return False


@compiled
def fuse(boxes: Any, scores: Any, labels: Any, iou: Any, owner: Any, fused: Any, grid: Any) -> Any:
    """Average boxes of one class that overlap: each joins the average that it overlaps most, and moves it.

    Source: Solovyev, Wang and Gabruseva, Weighted boxes fusion, 2021, section 3.

    Args:
        boxes: (N, 4) best first.
        scores: (N,) float64, the weights of the averages.
        labels: (N,) int64.
        iou: a box joins an average that it overlaps by more.
        owner: (N,) int64, to be filled: the number of the average that each box belongs to.
        fused: (N, 4), the first of which are filled: the averages, numbered by their best box.
        grid: empty, with room for N.

    Returns:
        How many averages there are.
    """
    count = 0
    sums, weights = np.zeros((len(boxes), 4)), np.zeros(len(boxes))
    for i in range(len(boxes)):
        mine = _nearest(fused, boxes[i], labels[i], iou, grid)
        if mine < 0:
            mine, count = count, count + 1
        weight = max(scores[i], _WEIGHTLESS)
        weights[mine] += weight
        for k in range(4):
            sums[mine, k] += weight * boxes[i, k]
            fused[mine, k] = sums[mine, k] / weights[mine]
        owner[i] = mine
        _enter(grid, mine, fused[mine], labels[i])  # where it stood before it stays entered, which does no harm
    return count


@compiled
def _nearest(fused: Any, box: Any, label: Any, iou: Any, grid: Any) -> Any:
    """The average that a box overlaps most, the first of equals; -1 if none by more than ``iou``."""
    best, most = -1, iou
    low, high = _levels(grid, box, iou, 1 / iou)
    for level in range(low, high + 1):
        left, top, right, bottom = _cells(box, level)
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                entry = grid.heads[_slot(grid, x, y, label * _LEVELS + level)]
                while entry >= 0:
                    item = grid.items[entry]
                    overlap = _iou(fused[item], box)
                    if overlap > most or (overlap == most and 0 <= item < best):
                        best, most = item, overlap
                    entry = grid.nexts[entry]
    return best
