"""PASCAL VOC's average precision, by eleven points (until 2009) and by area (since 2010).

It differs from COCO's AP at the same IoU: a detection belongs to the object of its class that it overlaps most, found
already or not, so a second choice does not exist. Source: Everingham et al. 2010, and the development kit's VOCevaldet.
Shapes: K classes, D detections, G true objects.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from visionapps.errors import ConfigError
from visionapps.metrics.curves import Outcome, outcomes
from visionapps.metrics.object_matching import nearest, overlaps
from visionapps.metrics.object_table import ObjectTable, Rows, make_table
from visionapps.objects import Objects

Points = Literal["area", "eleven"]


@dataclass(frozen=True, eq=False)
class VocScores:
    """Average precision as PASCAL VOC counts it.

    Attributes:
        mean: over the classes that have something to be found; NaN if none has.
        per_class: (K,) NaN where a class has nothing to be found.
        iou: that a detection needed.
        points: how the area under the curve was taken.
        inclusive: whether sides were counted one pixel longer.
    """

    mean: float
    per_class: np.ndarray
    iou: float
    points: Points
    inclusive: bool

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain data for JSON, undefined values as None."""
        shown = [None if math.isnan(value) else value for value in (self.mean, *map(float, self.per_class))]
        head = {"map": shown[0], "iou": self.iou, "points": self.points, "inclusive": self.inclusive}
        return head | {"classes": dict(zip(names, shown[1:], strict=True))}


def voc_scores(
    truth: Sequence[Objects],
    found: Sequence[Objects],
    num_classes: int,
    *,
    iou: float = 0.5,
    points: Points = "area",
    inclusive: bool = False,
) -> VocScores:
    """Score the detections of a set of images.

    Args:
        truth: annotated objects of each image; difficult ones count neither way, nor do crowds.
        found: detections of each image, in the same order.
        num_classes: K.
        iou: that a detection needs at least, in (0, 1].
        points: "area" under the monotone curve, or the mean of its values at the recalls 0, 0.1, ..., 1.
        inclusive: count the sides of all boxes one pixel longer. The development kit does so because its files name
            the last pixel inside; where boxes are half-open, as everywhere here, the plain difference is that side
            already, and this option reproduces numbers of programs that added the pixel once more.

    Raises:
        DataError: truth and detections do not fit each other or the classes.
        ConfigError: iou or points is none of these.
    """
    table = make_table(truth, found, num_classes)
    return voc_table(table, iou=iou, points=points, inclusive=inclusive)


def voc_table(table: ObjectTable, *, iou: float = 0.5, points: Points = "area", inclusive: bool = False) -> VocScores:
    """The same of a table of boxes that is made already; for the arguments see ``voc_scores``."""
    if not 0 < iou <= 1 or points not in _AREAS:
        raise ConfigError(f"voc: iou {iou} must be in (0, 1] and points {points!r} one of {', '.join(_AREAS)}")
    if inclusive:
        table = replace(table, truth=_longer(table.truth), found=_longer(table.found))
    hits, counted = _judge(table, iou)
    per_class = np.array([_AREAS[points](outcome) for outcome in outcomes(table, hits, counted)])
    defined = per_class[~np.isnan(per_class)]
    return VocScores(float(defined.mean()) if len(defined) else math.nan, per_class, iou, points, inclusive)


def _judge(table: ObjectTable, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """(D,) which detections are right, and which count."""
    pairs = overlaps(table, least=threshold)
    same = table.found.labels[pairs.found] == table.truth.labels[pairs.truth]
    _, at = nearest(pairs.take(same), len(table.found))
    touching = np.flatnonzero(at >= 0)
    ignored = table.truth.ignored[at[touching]]
    counted = np.ones(len(table.found), bool)
    counted[touching[ignored]] = False
    claims = touching[~ignored]
    _, first = np.unique(at[claims], return_index=True)  # a lower index is a better detection
    hits = np.zeros(len(table.found), bool)
    hits[claims[first]] = True
    return hits, counted


def _longer(rows: Rows) -> Rows:
    return replace(rows, boxes=rows.boxes + np.array([0.0, 0.0, 1.0, 1.0]))


def _by_area(outcome: Outcome) -> float:
    if not outcome.positives:
        return math.nan
    envelope = np.maximum.accumulate(outcome.precision[::-1])[::-1]
    return float((envelope * np.diff(outcome.recall, prepend=0.0)).sum())


def _by_eleven(outcome: Outcome) -> float:
    if not outcome.positives:
        return math.nan
    envelope = np.append(np.maximum.accumulate(outcome.precision[::-1])[::-1], 0.0)
    # Counts are compared, not quotients: 3 of 10 objects are the recall 0.3.
    found = np.cumsum(outcome.hits) * 10
    return float(envelope[np.searchsorted(found, np.arange(11) * outcome.positives)].mean())


_AREAS = {"area": _by_area, "eleven": _by_eleven}
