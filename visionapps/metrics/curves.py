"""Precision and recall over the score threshold, class by class; the threshold with the best F1; calibration.

Shapes: K classes, D detections, G true objects.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from visionapps.metrics.object_matching import Pairs, match_classes
from visionapps.metrics.object_table import ObjectTable

RECALLS = np.linspace(0, 1, 101)  # where COCO reads precision
_BINS = 10  # of the score, for calibration


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of the detections of a class, best first, at one IoU. Ignored ones are left out.

    Attributes:
        scores: (N,) descending.
        hits: (N,) bool.
        positives: objects to be found.
    """

    scores: np.ndarray
    hits: np.ndarray
    positives: int

    @property
    def recall(self) -> np.ndarray:
        """(N,) with the n + 1 best detections; NaN if there is nothing to be found."""
        found: np.ndarray = np.cumsum(self.hits)
        return found / self.positives if self.positives else np.full(len(found), math.nan)

    @property
    def precision(self) -> np.ndarray:
        """(N,) with the n + 1 best detections."""
        return np.asarray(np.cumsum(self.hits) / np.arange(1, len(self.hits) + 1))

    @property
    def ap(self) -> float:
        """COCO's: precision, made monotone, read at 101 recalls; NaN if there is nothing to be found."""
        if not self.positives:
            return math.nan
        envelope = np.maximum.accumulate(self.precision[::-1])[::-1]
        place = np.searchsorted(self.recall, RECALLS)
        return float(np.append(envelope, 0.0)[place].mean())

    @property
    def best(self) -> "Operating":
        """The threshold with the greatest F1; of equals the lowest, which finds more."""
        last = np.flatnonzero(np.diff(self.scores, append=-math.inf))  # of equal scores a threshold takes all
        if not self.positives or not len(last):
            return Operating(math.nan, math.nan, math.nan, math.nan)
        hits = np.cumsum(self.hits)[last]
        f1 = 2 * hits / (last + 1 + self.positives)
        at = len(f1) - 1 - int(np.argmax(f1[::-1]))
        if not hits[at]:
            return Operating(math.nan, 0.0, 0.0, 0.0)
        precision, recall = hits[at] / (last[at] + 1), hits[at] / self.positives
        return Operating(float(self.scores[last[at]]), float(precision), float(recall), float(f1[at]))

    def sampled(self) -> list[tuple[float, float, float]]:
        """(recall, precision, score) at COCO's 101 recalls as far as they are reached; precision as it is."""
        if not self.positives or not len(self.scores):
            return []
        place = np.unique(np.searchsorted(self.recall, RECALLS))
        place = place[place < len(self.scores)]
        columns = (self.recall[place], self.precision[place], self.scores[place])
        return [(float(r), float(p), float(s)) for r, p, s in zip(*columns, strict=True)]

    @property
    def shares(self) -> bool:
        """Whether all scores lie in [0, 1], so that they can be held against precision."""
        return bool(((self.scores >= 0) & (self.scores <= 1)).all())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: how far scores lie from precision, averaged over detections in ten bins; NaN
        where scores are no shares of 1.

        Source: Naeini et al. 2015, for detections Kueppers et al. 2020 (without the position).
        """
        if not len(self.scores) or not self.shares:
            return math.nan
        which = np.minimum((self.scores * _BINS).astype(np.int64), _BINS - 1)
        gap = np.bincount(which, self.scores - self.hits, _BINS)
        return float(np.abs(gap).sum() / len(self.scores))


@dataclass(frozen=True)
class Operating:
    """A threshold and what it gives. All in [0, 1]; NaN where a class has nothing to be found or nothing found."""

    threshold: float  # keep detections with at least this score
    precision: float
    recall: float
    f1: float

    def to_dict(self) -> dict[str, float | None]:
        """Plain data, undefined values as None."""
        values = {"threshold": self.threshold, "precision": self.precision, "recall": self.recall, "f1": self.f1}
        return {name: None if math.isnan(value) else value for name, value in values.items()}


@dataclass(frozen=True, eq=False)
class Curves:
    """The curves of all classes at one IoU.

    Attributes:
        iou: that a detection needs.
        classes: K outcomes.
    """

    iou: float
    classes: tuple[Outcome, ...]

    @property
    def shares(self) -> bool:
        """Whether all scores of all classes lie in [0, 1]; if not, they are in a unit of their own: logits, percent."""
        return all(outcome.shares for outcome in self.classes)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """(K,) with the best F1 of each class; NaN where it is not defined."""
        return tuple(outcome.best.threshold for outcome in self.classes)

    def told(self, label: int) -> Operating:
        """What the threshold with the best F1 of a class gives; without the threshold if scores are no shares of 1."""
        best = self.classes[label].best
        return best if self.shares else replace(best, threshold=math.nan)

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain data for JSON; ``thresholds`` by class name are what predict can be told: shares of 1 alone."""
        best = {name: self.told(k) for k, name in enumerate(names)}
        return {
            "iou": self.iou,
            "thresholds": {name: b.threshold for name, b in best.items() if not math.isnan(b.threshold)},
            "best_f1": {name: b.to_dict() for name, b in best.items()},
            "calibration_error": {
                name: None if math.isnan(e := outcome.calibration_error) or not self.shares else e
                for name, outcome in zip(names, self.classes, strict=True)
            },
            "points": {name: outcome.sampled() for name, outcome in zip(names, self.classes, strict=True)},
        }


def draw_up(table: ObjectTable, pairs: Pairs, *, iou: float = 0.5) -> Curves:
    """The curves of all classes.

    Args:
        table: truth and detections.
        pairs: their overlaps from at least ``iou`` on.
        iou: that a detection needs with an object of its class.
    """
    matched = match_classes(table, pairs, iou)
    hits = (matched >= 0) & ~table.truth.ignored[matched] if len(table.truth) else np.zeros(len(matched), bool)
    counted = hits | (matched < 0)
    return Curves(iou, outcomes(table, hits, counted))


def outcomes(table: ObjectTable, hits: np.ndarray, counted: np.ndarray) -> tuple[Outcome, ...]:
    """(D,) hits of the detections that are counted, as one outcome per class, ordered as pycocotools orders them."""
    index = np.flatnonzero(counted)
    index = index[np.lexsort((-table.found.scores[index], table.found.labels[index]))]
    bounds = np.searchsorted(table.found.labels[index], np.arange(table.num_classes + 1))
    return tuple(
        Outcome(table.found.scores[part], hits[part], int(positives))
        for positives, part in zip(table.true_counts, np.split(index, bounds[1:-1]), strict=True)
    )
