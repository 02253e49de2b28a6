"""A competition's metric as a function of pixel counts, for very many candidates at once.

Shapes: K classes, I photos, T candidates, S numbers that add up over photos.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionapps.errors import ConfigError
from visionapps.metrics.competition import CompetitionMetric, Global, PerImage
from visionapps.metrics.measures import Overlap, share

Sums = NDArray[np.float64]


class Objective:
    """Dice or IoU, of each photo or of all together, from the pixels that prediction and truth have in common.

    Sums are, of each photo's value, value and number (S = 2); of all photos together, the three areas (S = 3).
    """

    def __init__(self, metric: CompetitionMetric) -> None:
        """
        Args:
            metric: what the competition scores by.

        Raises:
            ConfigError: it needs more than counts of pixels.
        """
        if not isinstance(metric, PerImage | Global) or not isinstance(metric.measure, Overlap):
            raise ConfigError(
                f"metric {metric.name}: rules can be tuned on dice_per_image, dice_global, iou_per_image and "
                "iou_global, which follow from counts of pixels; tune on the nearest of them"
            )
        if isinstance(metric, PerImage) and metric.mean == "images" and metric.empty == "skip":
            raise ConfigError(
                f"metric {metric.name}: mean images with empty skip couples the classes of a photo; tune with mean "
                "cells or classes"
            )
        self.metric = metric
        self._dice = metric.measure.formula == "dice"
        self._by_photo = isinstance(metric, PerImage)
        self._counts = np.array([k in metric.kept for k in range(metric.classes)])

    def sums(self, both: NDArray[Any], predicted: NDArray[Any], true: NDArray[Any]) -> Sums:
        """What photos bring.

        Args:
            both: (I, ...) pixels of a class in prediction and truth.
            predicted: (I, ...) pixels in the prediction.
            true: (I, ...) pixels in the truth, broadcastable to the others.

        Returns:
            (S, ...) added over the photos.
        """
        if not self._by_photo:
            every = np.broadcast_to(true, np.shape(both))
            return np.stack([np.sum(part, axis=0, dtype=np.float64) for part in (both, predicted, every)])
        total = predicted + true
        there = total > 0
        whole = np.maximum(total if self._dice else total - both, 1)
        value = (2 * both if self._dice else both) / whole
        if self.metric.empty == "skip":
            return np.stack([value.sum(0), there.sum(0, dtype=np.float64)])
        if self.metric.empty == "one":
            value = np.where(there, value, 1.0)
        return np.stack([value.sum(0), np.full(value.shape[1:], float(len(value)))])

    def score(self, sums: Sums) -> NDArray[np.float64]:
        """(...) the score of sums (K, S, ...), NaN where nothing is there to be scored."""
        kept = sums[self._counts]
        if self._by_photo and self.metric.mean != "classes":
            return share(kept[:, 0].sum(0), kept[:, 1].sum(0))
        if not self._by_photo and self.metric.mean == "pooled":
            return self._filled(self._ratio(kept.sum(0)))
        values = self.per_class(sums)[self._counts]
        known = ~np.isnan(values)
        return share(np.where(known, values, 0).sum(0), known.sum(0))

    def per_class(self, sums: Sums) -> NDArray[np.float64]:
        """(K, ...) scores of the classes; NaN where one is not scored, or nothing of it is there."""
        own = np.moveaxis(sums, 1, 0)
        values = share(own[0], own[1]) if self._by_photo else self._filled(self._ratio(own))
        values[~self._counts] = np.nan
        return values

    def _ratio(self, areas: NDArray[Any]) -> NDArray[np.float64]:
        both, total = areas[0], areas[1] + areas[2]
        return share(2 * both, total) if self._dice else share(both, total - both)

    def _filled(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        empty = self.metric.empty
        return values if empty == "skip" else np.where(np.isnan(values), float(empty == "one"), values)
