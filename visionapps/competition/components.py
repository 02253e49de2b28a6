"""Compiled loops of post-processing: which class wins a pixel, and which pixels of one class hang together.

Shapes: K classes, H W photo, N components.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from visionapps.compiled import compiled

NOBODY = 255  # key of pixels that are in no component
_PIXELS = 4096  # compared at a time: they stay in the first-level cache
EVEN = 128  # the first level at which the winner is ahead: round(255 * 0.5)


class Contest(NamedTuple):
    """Who wins each pixel, whom it falls to otherwise, and by how much. All (H, W) uint8."""

    winner: NDArray[np.uint8]
    rival: NDArray[np.uint8]  # the background, or the runner-up where there is none
    level: NDArray[np.uint8]  # round(255 * winner / (winner + rival)); below EVEN where the rival has more


class Components(NamedTuple):
    """Stretches of one key that hang together."""

    ids: NDArray[np.int32]  # (H, W) in [0, N), -1 where the key is NOBODY
    keys: NDArray[np.uint8]  # (N,)
    areas: NDArray[np.int64]  # (N,) pixels
    tops: NDArray[np.uint8]  # (N,) the highest level


def contest(scores: NDArray[np.uint8], tables: NDArray[np.float32], background: int | None) -> Contest:
    """Let the classes compete for every pixel.

    With a background, the best of the other classes competes with it; without, with the runner-up. The level tells by
    how much it is ahead, and is scale-free: from EVEN on it has more than its rival. So the winners from EVEN on, and
    the rivals elsewhere, are the argmax (the lowest label wins a tie).

    Args:
        scores: (K, H, W) of uint8, K >= 2.
        tables: (K, 256) what each score of a class counts for, >= 0.
        background: its label, or None.
    """
    classes, height, width = scores.shape
    found = Contest(*(np.empty((height, width), np.uint8) for _ in range(3)))
    flat = np.ascontiguousarray(scores).reshape(classes, -1)
    winner, rival, level = (plane.reshape(-1) for plane in found)
    skipped = -1 if background is None else background
    if (tables == tables[0]).all() and (np.diff(tables[0]) > 0).all():
        _two_best(flat, winner, rival, skipped)
    else:
        _two_worth_most(flat, tables, winner, rival, skipped)
    if background is not None:
        rival[:] = background
    _measure_lead(flat, tables, winner, rival, level)
    return found


def components(keys: NDArray[np.uint8], levels: NDArray[np.uint8], *, diagonal: bool = True) -> Components:
    """Label the components of all keys in one pass.

    Args:
        keys: (H, W); pixels of equal key hang together, NOBODY belongs to none.
        levels: (H, W), whose maximum is taken over each component.
        diagonal: whether pixels that touch at a corner hang together.
    """
    ids = np.empty(keys.shape, np.int32)
    count = label_components(keys, ids, diagonal=diagonal)
    own, areas, tops = np.zeros(count, np.uint8), np.zeros(count, np.int64), np.zeros(count, np.uint8)
    _measure(keys, levels, ids, own, areas, tops)
    return Components(ids, own, areas, tops)


def label_components(keys: NDArray[np.uint8], ids: NDArray[np.int32], *, diagonal: bool, nobody: int = NOBODY) -> int:
    """Number the components in the order of their first pixels.

    Args:
        keys: (H, W); pixels of equal key hang together.
        ids: (H, W), written: the component of each pixel, -1 where it is in none.
        diagonal: whether pixels that touch at a corner hang together.
        nobody: key of pixels that are in no component; -1: all are in one.

    Returns:
        How many there are.
    """
    count: int = _label(keys, ids, np.empty(max(1, keys.size), np.int32), diagonal, nobody)
    return count


@compiled
def _two_best(scores: Any, winner: Any, rival: Any, skipped: Any) -> None:
    """The best two classes where scores compare as they are; free of branches, so that it runs on vectors."""
    classes, pixels = scores.shape
    most, next_ = np.empty(_PIXELS, np.uint8), np.empty(_PIXELS, np.uint8)
    start = 1 if skipped == 0 else 0
    for begin in range(0, pixels, _PIXELS):
        count = min(_PIXELS, pixels - begin)
        ours, theirs = winner[begin : begin + count], rival[begin : begin + count]
        most[:count] = scores[start, begin : begin + count]
        next_[:] = 0
        ours[:] = start
        theirs[:] = NOBODY
        for k in range(start + 1, classes):
            if k == skipped:
                continue
            plane, label = scores[k, begin : begin + count], np.uint8(k)
            for i in range(count):
                value, first, second = plane[i], most[i], next_[i]
                wins = value > first
                beats = (value > second) | (theirs[i] == NOBODY)
                theirs[i] = ours[i] if wins else (label if beats else theirs[i])
                next_[i] = first if wins else (value if beats else second)
                ours[i] = label if wins else ours[i]
                most[i] = value if wins else first


@compiled
def _two_worth_most(scores: Any, tables: Any, winner: Any, rival: Any, skipped: Any) -> None:
    """The best two classes by what their scores count for."""
    classes, pixels = scores.shape
    for i in range(pixels):
        first, second = NOBODY, NOBODY
        most, next_ = np.float32(-1), np.float32(-1)
        for k in range(classes):
            if k == skipped:
                continue
            value = tables[k, scores[k, i]]
            if value > most:
                second, next_ = first, most
                first, most = k, value
            elif value > next_:
                second, next_ = k, value
        winner[i], rival[i] = first, second


@compiled
def _measure_lead(scores: Any, tables: Any, winner: Any, rival: Any, level: Any) -> None:
    for i in range(len(winner)):
        first, second = winner[i], rival[i]
        ours, theirs = tables[first, scores[first, i]], tables[second, scores[second, i]]
        total = ours + theirs
        share = int(np.float32(255) * ours / total + np.float32(0.5)) if total > 0 else EVEN
        ahead = ours > theirs or (ours == theirs and first < second)
        level[i] = max(share, EVEN) if ahead else min(share, EVEN - 1)


@compiled
def root(parents: Any, i: Any) -> Any:
    """The first of all that hang together with i; the way there is made shorter."""
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i


@compiled
def join(parents: Any, a: Any, b: Any) -> Any:
    """The smaller root becomes that of both, so that a root comes before all that hang on it."""
    a, b = root(parents, a), root(parents, b)
    if a < b:
        parents[b] = a
        return a
    parents[a] = b
    return b


@compiled
def _label(keys: Any, ids: Any, parents: Any, diagonal: Any, nobody: Any) -> Any:
    """Number the components; two passes with union and find. Source: Rosenfeld and Pfaltz 1966."""
    height, width = keys.shape
    used = 0
    for y in range(height):
        for x in range(width):
            key = keys[y, x]
            if key == nobody:
                ids[y, x] = -1
                continue
            own = np.int32(-1)
            if x > 0 and keys[y, x - 1] == key:
                own = ids[y, x - 1]
            if y > 0:
                if keys[y - 1, x] == key:
                    above = ids[y - 1, x]
                    own = above if own < 0 else (own if own == above else join(parents, own, above))
                elif diagonal:  # a pixel above of the same key is joined to both of these already
                    if x > 0 and keys[y - 1, x - 1] == key:
                        above = ids[y - 1, x - 1]
                        own = above if own < 0 else (own if own == above else join(parents, own, above))
                    if x + 1 < width and keys[y - 1, x + 1] == key:
                        above = ids[y - 1, x + 1]
                        own = above if own < 0 else (own if own == above else join(parents, own, above))
            if own < 0:
                own = np.int32(used)
                parents[used] = own
                used += 1
            ids[y, x] = own
    count = 0
    for i in range(used):  # roots come first, so their final number stands there already
        if parents[i] == i:
            parents[i] = count
            count += 1
        else:
            parents[i] = parents[parents[i]]
    for y in range(height):
        for x in range(width):
            if ids[y, x] >= 0:
                ids[y, x] = parents[ids[y, x]]
    return count


@compiled
def _measure(keys: Any, levels: Any, ids: Any, own: Any, areas: Any, tops: Any) -> None:
    height, width = keys.shape
    for y in range(height):
        for x in range(width):
            i = ids[y, x]
            if i >= 0:
                own[i] = keys[y, x]
                areas[i] += 1
                tops[i] = max(tops[i], levels[y, x])
