"""Which classes a detector takes for which, what it overlooks and what it invents.

Shapes: K classes, D detections, P pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visionapps.metrics.object_matching import Pairs, match
from visionapps.metrics.object_table import ObjectTable


@dataclass(frozen=True, eq=False)
class ObjectConfusion:
    """Counts of true class against detected class.

    Attributes:
        matrix: (K + 1, K + 1) int64; rows are true classes, columns detected ones, the last of both is background:
            ``matrix[k, K]`` objects of class k were overlooked, ``matrix[K, k]`` detections of class k show nothing.
        thresholds: (K,) least score of the detections that were counted.
        iou: that a detection needs with an object.
        right: (D,) bool, detections that were counted and show an object of their class.
        wrong: (D,) bool, those that do not.
        missed: (G,) bool, objects that no detection of their class shows.
    """

    matrix: np.ndarray
    thresholds: np.ndarray
    iou: float
    right: np.ndarray
    wrong: np.ndarray
    missed: np.ndarray

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "iou": self.iou,
            "thresholds": dict(zip(names, map(float, self.thresholds), strict=True)),
            "names": [*names, "background"],
            "matrix": self.matrix.tolist(),
        }


def confuse(table: ObjectTable, pairs: Pairs, thresholds: np.ndarray, *, iou: float = 0.5) -> ObjectConfusion:
    """Count true against detected classes.

    Detections, best first, take one object each of whatever class: one of their own class before one of another, then
    the nearest. Those on a crowd or on a difficult object of their class count nowhere, and so do these objects.

    Args:
        table: truth and detections.
        pairs: their overlaps from at least ``iou`` on.
        thresholds: (K,) least score of a detection that counts; NaN: none of the class does.
        iou: that a detection needs with an object, in (0, 1].
    """
    shown = table.found.scores >= thresholds[table.found.labels]  # never so where the threshold is NaN
    ignored = table.truth.ignored[pairs.truth]
    same = table.found.labels[pairs.found] == table.truth.labels[pairs.truth]
    # What need not be found excuses only detections of its own class.
    usable = shown[pairs.found] & (pairs.iou >= min(iou, 1 - 1e-10)) & (same | ~ignored)
    near, own, counts = pairs.take(usable), same[usable], ~ignored[usable]
    wanted = np.stack([own & counts, own, near.iou], axis=1).astype(np.float64)
    matched = match(near, wanted, table.truth.crowd, len(table.found))

    background = table.num_classes
    hit = matched >= 0
    overlooked = ~table.truth.ignored
    overlooked[matched[hit]] = False
    excused = hit.copy()
    excused[hit] = table.truth.ignored[matched[hit]]
    counted = shown & ~excused
    rows = np.full(len(table.found), background)
    rows[hit] = table.truth.labels[matched[hit]]
    matrix = np.zeros((background + 1, background + 1), np.int64)
    np.add.at(matrix, (rows[counted], table.found.labels[counted]), 1)
    np.add.at(matrix, (table.truth.labels[overlooked], background), 1)
    right = counted & (rows == table.found.labels)
    missed = ~table.truth.ignored
    missed[matched[right]] = False
    return ObjectConfusion(matrix, thresholds, iou, right, counted & ~right, missed)
