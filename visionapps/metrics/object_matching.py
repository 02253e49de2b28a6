"""Which detection found which object, for all images at once: overlaps as a sparse list, matched in rounds.

Shapes: G true objects, D detections, P pairs that overlap.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from visionapps.metrics.object_table import ObjectTable, Rows

_DENSE = 1 << 22  # entries of an overlap matrix that are computed at a time: 32 MB


class Pairs(NamedTuple):
    """Detections and objects of the same image that overlap, of whatever classes."""

    found: np.ndarray  # (P,) int64 index into the detections, ascending
    truth: np.ndarray  # (P,) int64 index into the truth
    iou: np.ndarray  # (P,) float64; of crowds: the share of the detection that lies inside

    def take(self, which: np.ndarray) -> "Pairs":
        """Some of them: (P,) bool."""
        return Pairs(self.found[which], self.truth[which], self.iou[which])


def overlaps(table: ObjectTable, *, least: float) -> Pairs:
    """All pairs whose IoU is at least ``least``, > 0, computed by pycocotools as for its own scores.

    Images with many objects are computed in stripes from top to bottom, so that a scene with 100,000 objects that lie
    apart costs little more than its pairs.
    """
    shapes = _shapes(table.found), _shapes(table.truth)
    true, found = table.truth.firsts(table.images), table.found.firsts(table.images)
    parts = []
    for i in range(table.images):
        g, d = np.arange(true[i], true[i + 1]), np.arange(found[i], found[i + 1])
        if len(g) and len(d):
            parts += [_dense(table, shapes, (rows, cols), least) for rows, cols in _stripes(table, d, g)]
    if not parts:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    whole = Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    order = np.lexsort((whole.truth, whole.found))
    return whole.take(order)


def match(pairs: Pairs, wanted: np.ndarray, crowd: np.ndarray, found: int) -> np.ndarray:
    """Let every detection, best first, take the object that it wants most among those that are left.

    All images go at once: in each round a detection takes what it wants most where no better detection could still
    take that. This gives what one loop over the detections gives, in about as many rounds as objects stand in each
    other's way.

    Args:
        pairs: who may take what; a lower index is a better detection.
        wanted: (P, N) columns to prefer by, the first decides, then the next; higher is preferred, and among equals
            the later object, as in pycocotools.
        crowd: (G,) bool: may be taken any number of times.
        found: D.

    Returns:
        (D,) index of the object taken, or -1.
    """
    taken_by = np.full(found, -1, np.int64)
    keys = (pairs.truth, *wanted.T[::-1])
    order = np.lexsort((*(-key for key in keys), pairs.found))
    by, of = pairs.found[order], pairs.truth[order]
    used = np.zeros(len(crowd), bool)
    first = np.empty(len(crowd), np.int64)
    while len(by):
        favourite = np.diff(by, prepend=-1) != 0
        first[of[::-1]] = by[::-1]  # of repeated indices the last assignment stays: the best detection
        sure = favourite & (crowd[of] | (first[of] == by))
        taken_by[by[sure]] = of[sure]
        used[of[sure]] = True
        left = (taken_by[by] < 0) & ~(used & ~crowd)[of]
        by, of = by[left], of[left]
    return taken_by


def match_classes(table: ObjectTable, pairs: Pairs, threshold: float) -> np.ndarray:
    """COCO's rule at one IoU: objects of the own class, those that count before those that are ignored, the nearest.

    Args:
        table: truth and detections.
        pairs: at least those with an IoU of ``threshold``.
        threshold: in (0, 1].

    Returns:
        (D,) index of the object found, or -1.
    """
    same = table.found.labels[pairs.found] == table.truth.labels[pairs.truth]
    near = pairs.take(same & (pairs.iou >= min(threshold, 1 - 1e-10)))
    wanted = np.stack([~table.truth.ignored[near.truth], near.iou], axis=1).astype(np.float64)
    return match(near, wanted, table.truth.crowd, len(table.found))


def nearest(pairs: Pairs, found: int) -> tuple[np.ndarray, np.ndarray]:
    """(D,) the greatest IoU of each detection or 0, and (D,) with which object, the first of equals, or -1."""
    order = np.lexsort((-pairs.iou, pairs.found))
    by = pairs.found[order]
    first = order[np.diff(by, prepend=-1) != 0]
    iou, at = np.zeros(found), np.full(found, -1, np.int64)
    iou[pairs.found[first]], at[pairs.found[first]] = pairs.iou[first], pairs.truth[first]
    return iou, at


def _stripes(table: ObjectTable, d: np.ndarray, g: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if len(d) * len(g) <= _DENSE:
        yield d, g
        return
    d = d[np.argsort(table.found.boxes[d, 1], kind="stable")]
    top, bottom = table.truth.boxes[g, 1], table.truth.boxes[g, 3]
    step = 256
    for start in range(0, len(d), step):
        rows = d[start : start + step]
        high, low = table.found.boxes[rows, 1].min(), table.found.boxes[rows, 3].max()
        cols = g[(bottom > high) & (top < low)]
        if len(cols):
            yield rows, cols


def _dense(table: ObjectTable, shapes: tuple[Any, Any], which: tuple[np.ndarray, np.ndarray], least: float) -> Pairs:
    from pycocotools import mask as coco

    found, true = (_some(all_of, index) for all_of, index in zip(shapes, which, strict=True))
    iou = np.asarray(coco.iou(found, true, table.truth.crowd[which[1]].astype(np.uint8)))
    row, col = np.nonzero(iou >= least)
    return Pairs(which[0][row], which[1][col], iou[row, col])


def _shapes(rows: Rows) -> Any:
    return rows.corners_and_sides if rows.masks is None else rows.masks


def _some(shapes: Any, which: np.ndarray) -> Any:
    return shapes[which] if isinstance(shapes, np.ndarray) else [shapes[i] for i in which]
