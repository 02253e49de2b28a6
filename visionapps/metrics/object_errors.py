"""Why AP is not 1: each false detection and each missed object gets one cause, and each cause its cost in AP.

Source: Bolya et al. 2020, TIDE: A General Toolbox for Identifying Object Detection Errors. Shapes: K classes,
D detections, G true objects, P pairs.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from visionapps.metrics.curves import outcomes
from visionapps.metrics.object_matching import Pairs, match_classes, nearest
from visionapps.metrics.object_table import ObjectTable

CAUSES = ("classification", "localisation", "both", "duplicate", "background", "missed")
NEAR, FAR = 0.5, 0.1  # the paper's foreground and background IoU
_CLASS, _PLACE, _BOTH, _TWICE, _NOTHING = range(5)
_FINE = -1


@dataclass(frozen=True, eq=False)
class ObjectErrors:
    """What keeps a detector from AP 1 at one IoU.

    Attributes:
        ap: of the detections as they are, mean over the classes that the truth has.
        counts: cause to the number of detections, or of missed objects.
        costs: cause to the AP that would be gained if only this cause were mended; they do not add up to 1 - ap.
        false_positive_cost: AP gained without any false detection.
        false_negative_cost: AP gained if no object were overlooked, false detections staying.
        causes: (D,) index into CAUSES of each false detection, -1 of true and ignored ones.
        missed: (G,) bool, objects that were overlooked without any detection nearby that explains it.
    """

    ap: float
    counts: dict[str, int]
    costs: dict[str, float]
    false_positive_cost: float
    false_negative_cost: float
    causes: np.ndarray
    missed: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, undefined values as None."""
        return {
            "ap50": _plain(self.ap),
            "counts": self.counts,
            "costs_in_ap": {cause: _plain(cost) for cause, cost in self.costs.items()},
            "cost_of_false_positives": _plain(self.false_positive_cost),
            "cost_of_false_negatives": _plain(self.false_negative_cost),
        }


def explain_errors(table: ObjectTable, pairs: Pairs) -> ObjectErrors:
    """Find the cause of every error, and what each cause costs.

    Args:
        table: truth and detections.
        pairs: their overlaps from IoU ``FAR`` on.
    """
    verdict = _judge(table, pairs)
    hits, counted, causes = verdict.hits, verdict.counted, verdict.causes
    free = ~table.truth.ignored & ~verdict.used
    missed = free.copy()
    missed[verdict.near[np.isin(causes, (_CLASS, _PLACE))]] = False
    base = _mean_ap(table, hits, counted)
    mended = [
        _mean_ap(*_mended(table, verdict, causes == _CLASS)),
        _mean_ap(*_mended(table, verdict, causes == _PLACE)),
        *(_mean_ap(table, hits, counted & (causes != cause)) for cause in (_BOTH, _TWICE, _NOTHING)),
        _mean_ap(table, hits, counted, without=missed),
    ]
    numbers = [int((causes == cause).sum()) for cause in range(5)] + [int(missed.sum())]
    return ObjectErrors(
        ap=base,
        counts=dict(zip(CAUSES, numbers, strict=True)),
        costs={cause: ap - base for cause, ap in zip(CAUSES, mended, strict=True)},
        false_positive_cost=_mean_ap(table, hits, counted & hits) - base,
        false_negative_cost=_mean_ap(table, hits, counted, without=free) - base,
        causes=causes,
        missed=missed,
    )


class _Verdict(NamedTuple):
    hits: np.ndarray  # (D,) bool: right
    counted: np.ndarray  # (D,) bool: right or false, not ignored
    causes: np.ndarray  # (D,) of the false ones
    near: np.ndarray  # (D,) the object that a false one was meant for, or -1
    used: np.ndarray  # (G,) bool: found


def _judge(table: ObjectTable, pairs: Pairs) -> _Verdict:
    matched = match_classes(table, pairs, NEAR)
    hits = matched >= 0
    hits[hits] = ~table.truth.ignored[matched[hits]]
    used = np.zeros(len(table.truth), bool)
    used[matched[hits]] = True
    causes, near = _causes(table, pairs.take(~table.truth.ignored[pairs.truth]), matched, used)
    return _Verdict(hits, hits | (matched < 0), causes, near, used)


def _causes(table: ObjectTable, pairs: Pairs, matched: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(D,) the cause of each false detection, and (D,) the object that it was meant for, or -1.

    Several causes may be true; they are tried in the order of the authors' program: localisation, classification,
    duplicate, background, both.
    """
    same = table.found.labels[pairs.found] == table.truth.labels[pairs.truth]
    own, own_at = nearest(pairs.take(same), len(matched))
    other, other_at = nearest(pairs.take(~same), len(matched))
    second, _ = nearest(pairs.take(same & used[pairs.truth]), len(matched))
    causes = np.full(len(matched), _BOTH)
    tests = (
        (np.maximum(own, other) <= FAR, _NOTHING),
        (second >= NEAR, _TWICE),
        (other >= NEAR, _CLASS),
        ((own >= FAR) & (own <= NEAR), _PLACE),
    )
    for true, cause in tests:  # the last that is true stays
        causes[true] = cause
    causes[matched >= 0] = _FINE
    near = np.where(causes == _CLASS, other_at, np.where(causes == _PLACE, own_at, -1))
    return causes, near


def _mended(table: ObjectTable, verdict: _Verdict, chosen: np.ndarray) -> tuple[ObjectTable, np.ndarray, np.ndarray]:
    """The table with the chosen detections put right.

    One object is found once: where another detection has found it already the chosen one is left out, and of several
    chosen ones the best stays.
    """
    index = np.flatnonzero(chosen)
    index = index[~verdict.used[verdict.near[index]]]
    _, first = np.unique(verdict.near[index], return_index=True)  # a lower index is a better detection
    kept = index[first]
    labels = table.found.labels.copy()
    labels[kept] = table.truth.labels[verdict.near[kept]]
    right, left = verdict.hits.copy(), verdict.counted & ~chosen
    right[kept] = left[kept] = True
    return replace(table, found=replace(table.found, labels=labels)), right, left


def _mean_ap(table: ObjectTable, hits: np.ndarray, counted: np.ndarray, without: np.ndarray | None = None) -> float:
    """Mean AP over the classes of the truth, as if the objects of ``without`` (G,) were not there.

    A class whose objects are all left out has nothing left to be overlooked: its AP is 1. (The authors' program says 0,
    so that a class of which nothing is found would cost nothing.)
    """
    classes = outcomes(table, hits, counted)
    positives = table.true_counts
    fewer = np.zeros_like(positives)
    if without is not None:
        fewer = np.bincount(table.truth.labels[without], minlength=table.num_classes)
    values = [
        replace(classes[k], positives=int(positives[k] - fewer[k])).ap if positives[k] > fewer[k] else 1.0
        for k in np.flatnonzero(positives)
    ]
    return float(np.mean(values)) if values else math.nan


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
