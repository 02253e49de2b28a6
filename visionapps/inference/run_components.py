"""Pieces of a mask that hang together, found on its runs: no map of labels is made.

L is the number of pixels of a line, in whatever order lines are read: neighbours are the same.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from visionapps.compiled import compiled
from visionapps.masks import Runs

Ints = NDArray[np.int64]


def components(runs: NDArray[Any], line_px: int, *, neighbours: Literal[4, 8], base: int = 1) -> list[Runs]:
    """Cut the runs of a binary mask into those of its connected components.

    Args:
        runs: (N, 2) start and length, ascending and apart, as ``encode`` gives them.
        line_px: L, the width of the mask for runs read by row, its height for runs read by column.
        neighbours: 4: pixels hang together by edges; 8: by corners, too.
        base: the number of the first pixel.

    Returns:
        One (M, 2) array per component, in the order of their first pixels.

    Source: L. He, Y. Chao, K. Suzuki, "A run-based two-scan labeling algorithm", IEEE Transactions on Image Processing
        17(5), 2008.
    """
    if not len(runs):
        return []
    lines, starts, ends = _cut_at_lines(runs, line_px, base)
    owners = _join(lines, starts - lines * line_px, ends - lines * line_px, 1 if neighbours == 8 else 0)
    by_owner = np.argsort(owners, kind="stable")  # stable: pieces of one component stay in reading order
    owners, starts, ends = owners[by_owner], starts[by_owner], ends[by_owner]
    # A piece that ends with its line and one that begins the next are a single run again.
    fresh = np.ones(len(starts), np.bool_)
    fresh[1:] = (starts[1:] != ends[:-1]) | (owners[1:] != owners[:-1])
    firsts = np.flatnonzero(fresh)
    starts, ends = starts[firsts], ends[np.append(firsts[1:], len(ends)) - 1]
    found = np.stack([starts + base, ends - starts], axis=1)
    return np.split(found, np.flatnonzero(np.diff(owners[firsts])) + 1)


def _cut_at_lines(runs: NDArray[Any], line_px: int, base: int) -> tuple[Ints, Ints, Ints]:
    """Line, first pixel and the pixel after the last, 0-based, of what each run has in each line."""
    starts, ends = runs[:, 0] - base, runs[:, 0] + runs[:, 1] - base
    firsts = starts // line_px
    counts = (ends - 1) // line_px - firsts + 1
    before = np.cumsum(counts) - counts
    lines = np.arange(int(counts.sum())) + np.repeat(firsts - before, counts)
    starts, ends = np.repeat(starts, counts), np.repeat(ends, counts)
    return lines, np.maximum(starts, lines * line_px), np.minimum(ends, (lines + 1) * line_px)


@compiled
def _join(lines: Ints, starts: Ints, ends: Ints, reach_px: int) -> Ints:
    """The component of every piece of a line, numbered as they are met.

    Args:
        lines: ascending.
        starts: within the line.
        ends: of the pixel after the piece.
        reach_px: how far a piece of the line before may lie aside and still touch.
    """
    count = len(lines)
    parents = np.arange(count)
    above = 0  # the first piece of the line before that may touch
    for i in range(count):
        while above < i and (
            lines[above] < lines[i] - 1 or (lines[above] == lines[i] - 1 and ends[above] + reach_px <= starts[i])
        ):
            above += 1
        j = above
        while j < i and lines[j] == lines[i] - 1 and starts[j] < ends[i] + reach_px:
            a, b = _root(parents, i), _root(parents, j)
            parents[max(a, b)] = min(a, b)  # the first piece stays the root: it names the component
            j += 1
    owners = np.empty(count, np.int64)
    found = 0
    for i in range(count):
        if parents[i] == i:
            owners[i] = found
            found += 1
        else:
            owners[i] = owners[parents[i]]  # parents come before
    return owners


@compiled
def _root(parents: Ints, i: int) -> int:
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i
