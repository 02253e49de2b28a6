"""Compiled loops over boxes that the edges of tiles cut: which of them another box explains, and which belong together.

Shapes: N boxes, P pairs. Boxes, tiles and sides are as in ``merge_kernels``.

One rule serves both questions. An object that reaches beyond a tile is seen by it as far as the tile goes; so a box is
a tile's view of a larger one if it is about as large as the part of the larger one inside the tile, and ends at the
tile's edge wherever the larger one goes on.
"""

from typing import Any, NamedTuple

import numpy as np

from visionapps.compiled import compiled
from visionapps.inference.merge_kernels import _LEVELS, _area, _cells, _common, _enter, _levels, _slot

_FAR = 2.0**40  # times the side of a box: all larger ones


class Rules(NamedTuple):
    """When boxes of different tiles are of one object."""

    agree: float  # IoU that a box must have with what its tile shows of a larger one
    cover: float  # share of a cut box that a surer one has to cover to explain it, whatever its shape
    slack: float  # pixels by which boxes may miss edges


class Views(NamedTuple):
    """Boxes and the tiles that saw them."""

    boxes: np.ndarray  # (N, 4)
    tiles: np.ndarray  # (N, 4) the tile of each; infinite for what is no tile's view
    cut: np.ndarray  # (N, 4) bool: the box ends at this side of its tile, and the image goes on there
    labels: np.ndarray  # (N,) int64
    scores: np.ndarray  # (N,)


@compiled
def _beyond(box: Any, frame: Any, side: Any) -> Any:
    """Pixels by which a box reaches beyond a side of a frame."""
    return frame[side] - box[side] if side < 2 else box[side] - frame[side]


@compiled
def _agreement(large: Any, box: Any, tile: Any) -> Any:
    """IoU of a box with the part of a larger one that its tile shows."""
    shown = np.empty(4)
    for k in range(2):
        shown[k], shown[k + 2] = max(large[k], tile[k]), min(large[k + 2], tile[k + 2])
        if shown[k] >= shown[k + 2]:
            return 0.0
    common = _common(shown, box)
    return common / (_area(shown) + _area(box) - common)


@compiled
def _same(a: Any, b: Any) -> Any:
    return a[0] == b[0] and a[1] == b[1] and a[2] == b[2] and a[3] == b[3]


@compiled
def _explains(views: Any, w: Any, c: Any, rules: Any) -> Any:
    """Whether box c, which is cut, is a part of box w, which another tile saw better."""
    box, large, tile = views.boxes[c], views.boxes[w], views.tiles[c]
    if _same(views.tiles[w], tile) or not _area(large) > _area(box):
        return False
    goes_on = False
    for side in range(4):
        goes_on = goes_on or (views.cut[c, side] and _beyond(large, tile, side) > rules.slack)
        if views.cut[w, side] and _beyond(box, large, side) > rules.slack:
            return False  # each of them has seen what the other has not
    if not goes_on:
        return False
    if _agreement(large, box, tile) >= rules.agree:
        return True
    return views.scores[w] >= views.scores[c] and _common(large, box) >= rules.cover * _area(box)


@compiled
def find_explained(views: Any, rules: Any, grid: Any, dropped: Any) -> None:
    """Mark the cut boxes that a box of another tile explains.

    Args:
        views: the boxes.
        rules: when one explains another.
        grid: empty, with room for N.
        dropped: (N,) bool, to be filled.
    """
    boxes, labels = views.boxes, views.labels
    for i in range(len(boxes)):
        _enter(grid, i, boxes[i], labels[i])
    for c in range(len(boxes)):
        dropped[c] = views.cut[c].any() and _is_explained(views, c, rules, grid)


@compiled
def _is_explained(views: Any, c: Any, rules: Any, grid: Any) -> Any:
    box, label = views.boxes[c], views.labels[c]
    low, high = _levels(grid, box, min(rules.agree, rules.cover), _FAR)
    for level in range(low, high + 1):
        left, top, right, bottom = _cells(box, level)
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                entry = grid.heads[_slot(grid, x, y, label * _LEVELS + level)]
                while entry >= 0:
                    if _explains(views, grid.items[entry], c, rules):
                        return True
                    entry = grid.nexts[entry]
    return False


@compiled
def _quality(views: Any, hull: Any, i: Any, rules: Any) -> Any:
    """How well box i is its tile's view of a hull: IoU; 0 if it is none."""
    goes_on = False
    for side in range(4):
        beyond = _beyond(hull, views.tiles[i], side) > rules.slack
        if beyond and not views.cut[i, side]:
            return 0.0
        goes_on = goes_on or beyond
    quality = _agreement(hull, views.boxes[i], views.tiles[i]) if goes_on else 0.0
    return quality if quality >= rules.agree else 0.0


@compiled
def _widen(hull: Any, box: Any) -> None:
    for k in range(2):
        hull[k], hull[k + 2] = min(hull[k], box[k]), max(hull[k + 2], box[k + 2])


@compiled
def _pair_quality(views: Any, a: Any, b: Any, reach: Any, rules: Any) -> Any:
    """How well two boxes are the views that two tiles have of one object; 0 if they are not."""
    one, other = views.boxes[a], views.boxes[b]
    if _same(views.tiles[a], views.tiles[b]):
        return 0.0
    for k in range(2):
        if max(one[k], other[k]) - min(one[k + 2], other[k + 2]) > reach[a, k] + reach[b, k]:
            return 0.0  # they do not even touch
    hull = one.copy()
    _widen(hull, other)
    return min(_quality(views, hull, a, rules), _quality(views, hull, b, rules))


@compiled
def find_pairs(views: Any, reach: Any, rules: Any, grid: Any, pairs: Any, qualities: Any) -> Any:
    """Find boxes that two tiles may have of one object that neither has seen whole.

    Args:
        views: boxes that are cut.
        reach: (N, 2) how far from its tile's edge a box may end, in x and y.
        rules: when they may.
        grid: empty with room for N, or filled by an earlier call.
        pairs: (P, 2) int64, to be filled with the smaller number first; with P = 0 pairs are counted only.
        qualities: (P,) to be filled.

    Returns:
        How many pairs there are, some of them maybe twice.
    """
    boxes, count = views.boxes, 0
    if grid.state[0] == 0:
        for i in range(len(boxes)):
            _enter(grid, i, boxes[i], views.labels[i])
    near, margin = np.empty(4), 2 * reach.max()
    for a in range(len(boxes)):
        for k in range(2):
            near[k], near[k + 2] = boxes[a, k] - margin, boxes[a, k + 2] + margin
        low, high = _levels(grid, boxes[a], 1.0, _FAR)  # the larger one of a pair is found from the smaller one
        for level in range(low, high + 1):
            left, top, right, bottom = _cells(near, level)
            for y in range(top, bottom + 1):
                for x in range(left, right + 1):
                    entry = grid.heads[_slot(grid, x, y, views.labels[a] * _LEVELS + level)]
                    while entry >= 0:
                        b = grid.items[entry]
                        quality = 0.0 if a == b else _pair_quality(views, a, b, reach, rules)
                        if quality > 0 and count < len(pairs):
                            pairs[count, 0], pairs[count, 1] = min(a, b), max(a, b)
                            qualities[count] = quality
                        count += quality > 0
                        entry = grid.nexts[entry]
    return count


@compiled
def join(views: Any, pairs: Any, rules: Any, owner: Any, hulls: Any) -> None:
    """Join boxes pair by pair, as long as each of a group is its tile's view of the hull of all.

    Args:
        views: the boxes.
        pairs: (P, 2) int64, the surest first.
        rules: when boxes are views of a hull.
        owner: (N,) int64, holding 0 to N - 1; afterwards the smallest number in each box's group.
        hulls: (N, 4), holding the boxes; afterwards the hull of each group at its owner.
    """
    following = np.full(len(owner), -1)  # the members of a group are a list that begins with its owner
    last = owner.copy()
    for p in range(len(pairs)):
        one, other = owner[pairs[p, 0]], owner[pairs[p, 1]]
        if one == other:
            continue
        one, other = min(one, other), max(one, other)
        hull = hulls[one].copy()
        _widen(hull, hulls[other])
        if not _all_see(views, hull, one, following, rules) or not _all_see(views, hull, other, following, rules):
            continue
        following[last[one]], last[one], hulls[one] = other, last[other], hull
        while other >= 0:
            owner[other] = one
            other = following[other]


@compiled
def _all_see(views: Any, hull: Any, first: Any, following: Any, rules: Any) -> Any:
    while first >= 0:
        if _quality(views, hull, first, rules) == 0:
            return False
        first = following[first]
    return True
