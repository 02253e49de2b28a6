"""How much AP depends on which images happen to be in the set: an interval from drawing images again.

Shapes: I images, K classes, D detections.
"""

from typing import NamedTuple

import numpy as np

from visionapps.metrics.curves import RECALLS
from visionapps.metrics.object_matching import Pairs, match_classes
from visionapps.metrics.object_table import ObjectTable

DRAWS = 200  # the ends of the interval are then known to about a tenth of its width


class Interval(NamedTuple):
    """Where AP lies in 95 of 100 sets of as many images; both NaN if nothing is to be found."""

    low: float
    high: float


class _Class(NamedTuple):
    """The detections of a class that count, best first."""

    image: np.ndarray  # (N,)
    hits: np.ndarray  # (N,) float64, 0 or 1
    objects: np.ndarray  # (I,) float64, to be found in each image


def ap_interval(
    table: ObjectTable, pairs: Pairs, rng: np.random.Generator, *, iou: float = 0.5, draws: int = DRAWS
) -> Interval:
    """The interval of the mean AP at one IoU.

    Each draw takes I images with replacement; what an image brings is taken as often as it is drawn. Classes that a
    draw lacks are left out of its mean. Sets with copies have a slightly higher AP, as precision is made monotone, so
    the interval is moved to where its middle is the AP itself. Images that are near copies of each other make it too
    narrow.

    Args:
        table: truth and detections.
        pairs: their overlaps from at least ``iou`` on.
        rng: draws the images.
        iou: that a detection needs.
        draws: how many sets are drawn, >= 1.

    Source: Efron 1979, the bootstrap; the bias is removed.
    """
    classes = _classes(table, match_classes(table, pairs, iou))
    if not classes:
        return Interval(float("nan"), float("nan"))
    values = []
    for _ in range(draws):
        times = np.bincount(rng.integers(table.images, size=table.images), minlength=table.images).astype(np.float64)
        present = [one for one in classes if times @ one.objects > 0]
        if present:
            values.append(np.mean([_ap(one, times) for one in present]))
    if not values:
        return Interval(float("nan"), float("nan"))
    own = np.mean([_ap(one, np.ones(table.images)) for one in classes])
    low, high = np.clip(np.quantile(values, (0.025, 0.975)) - np.mean(values) + own, 0, 1)
    return Interval(float(low), float(high))


def _classes(table: ObjectTable, matched: np.ndarray) -> list[_Class]:
    """The classes that have something to be found."""
    hits = matched >= 0
    hits[hits] = ~table.truth.ignored[matched[hits]]
    counted = np.flatnonzero(hits | (matched < 0))
    order = counted[np.lexsort((-table.found.scores[counted], table.found.labels[counted]))]
    bounds = np.searchsorted(table.found.labels[order], np.arange(1, table.num_classes))
    wanted = ~table.truth.ignored
    found = []
    for k, rows in enumerate(np.split(order, bounds)):
        true = table.truth.image[wanted & (table.truth.labels == k)]
        if len(true):
            objects = np.bincount(true, minlength=table.images).astype(np.float64)
            found.append(_Class(table.found.image[rows], hits[rows].astype(np.float64), objects))
    return found


def _ap(one: _Class, times: np.ndarray) -> float:
    """COCO's AP where image i is there ``times[i]`` times."""
    weight = times[one.image]
    right = np.cumsum(weight * one.hits)
    precision = right / np.maximum(np.cumsum(weight), 1.0)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(envelope[np.searchsorted(right / (times @ one.objects), RECALLS)].mean())
