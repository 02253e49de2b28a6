"""A competition's metric as a function of pixel counts, for very many candidates at once.

Shapes: K classes, I photos, T candidates, S numbers that add up over photos.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from visionapps.compiled import compiled
from visionapps.errors import ConfigError
from visionapps.metrics.competition import CompetitionMetric, Global, PerImage
from visionapps.metrics.measures import Overlap, share

Sums = NDArray[np.float64]
_EMPTY = {"zero": 0, "one": 1, "skip": 2}


class Kind(NamedTuple):
    """An objective, as compiled loops know it."""

    by_photo: bool
    dice: bool
    empty: int  # one of _EMPTY


@compiled
def worth(both: Any, predicted: Any, true: Any, kind: Kind) -> Any:
    """The value of a class in a photo; where neither side has it, what the metric says, and 0 if it says nothing."""
    total = predicted + true
    if total <= 0:
        return 1.0 if kind.empty == 1 else 0.0
    return 2 * both / total if kind.dice else both / (total - both)


@compiled
def counted(predicted: Any, true: Any, kind: Kind) -> Any:
    """1 where a class in a photo has a value, 0 where not."""
    return 1.0 if predicted + true > 0 or kind.empty != 2 else 0.0


@compiled
def _add(both: Any, predicted: Any, true: Any, kind: Kind, found: Any) -> None:
    for i in range(len(both)):
        for t in range(both.shape[1]):
            if kind.by_photo:
                found[0, t] += worth(both[i, t], predicted[i, t], true[i, t], kind)
                found[1, t] += counted(predicted[i, t], true[i, t], kind)
            else:
                found[0, t] += both[i, t]
                found[1, t] += predicted[i, t]
                found[2, t] += true[i, t]


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
        self.kind = Kind(self._by_photo, self._dice, _EMPTY[metric.empty])
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
        shape = np.shape(both)
        flat_shape = shape[0], int(np.prod(shape[1:]))
        flat = [
            np.ascontiguousarray(np.broadcast_to(part, shape), np.float64).reshape(flat_shape)
            for part in (both, predicted, true)
        ]
        found = np.zeros((2 if self._by_photo else 3, flat_shape[1]))
        _add(flat[0], flat[1], flat[2], self.kind, found)
        return found.reshape(-1, *shape[1:])

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
