"""Precision of objects over thresholds of IoU, where objects are connected components: the Data Science Bowl's score.

Shapes: K classes, T thresholds, N predicted and M true objects.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from visionapps.errors import ConfigError
from visionapps.metrics.measures import Mask, Parts, class_crops, share

Formula = Literal["jaccard", "precision", "f1", "f2", "coco"]
# COCO's ten, each the double nearest to its decimal text.
THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
_RECALLS = np.linspace(0, 1, 101)  # where COCO looks at a curve


@dataclass(frozen=True)
class ObjectPrecision:
    """How many objects are found, as a mean over thresholds of IoU.

    Parts are (K, T, 3): hits, invented and missed objects. An object is found if its IoU with one that is not taken yet
    lies above the threshold; of all pairings the one with the most hits counts. From 0.5 on there is only one.

    Attributes:
        thresholds: of IoU, each in (0, 1).
        formula: of hits TP, invented FP and missed FN: "jaccard" TP / (TP + FP + FN) (Data Science Bowl 2018, TGS),
            "precision" TP / (TP + FP), "f1", "f2" with recall weighted twice (Airbus ships), or "coco", the average
            precision of objects that all have the same confidence: then their order cannot matter, the curve has
            one step, and AP is the precision times the share of the 101 recalls that are reached. COCO's hits need an
            IoU of at least the threshold.
        connectivity: 8 joins pixels that touch at a corner, 4 does not.

    Source: Caicedo et al. 2019, Nucleus segmentation across imaging experiments; Lin et al. 2014, Microsoft COCO.
    """

    thresholds: tuple[float, ...] = THRESHOLDS
    formula: Formula = "jaccard"
    connectivity: Literal[4, 8] = 8

    def __post_init__(self) -> None:
        good = isinstance(self.thresholds, tuple) and len(self.thresholds) > 0
        if not good or not all(isinstance(t, float) and 0 < t < 1 for t in self.thresholds):
            raise ConfigError(f"metric map: thresholds {self.thresholds!r} must be numbers between 0 and 1")
        if self.formula not in get_args(Formula):
            raise ConfigError(f"metric map: formula {self.formula!r} is unknown; give {' or '.join(get_args(Formula))}")
        if self.connectivity not in (4, 8):
            raise ConfigError(f"metric map: connectivity {self.connectivity!r} must be 4 or 8")

    @property
    def name(self) -> str:
        """map."""
        return "map"

    def parts(self, prediction: NDArray[Any], truth: NDArray[Any], classes: int) -> Parts:
        """(K, T, 3) int64; see ``Measure``."""
        found = np.zeros((classes, len(self.thresholds), 3), np.int64)
        for k, predicted, true in class_crops(prediction, truth, classes):
            found[k] = self.of_overlaps(*object_overlaps(predicted, true, connectivity=self.connectivity))
        return found

    def of_overlaps(
        self, both: NDArray[np.int64], predicted: NDArray[np.int64], true: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The parts of one class from its objects, however they were told apart.

        Args:
            both: (N, M) pixels that a predicted object shares with a true one.
            predicted: (N,) pixels of each predicted object.
            true: (M,) pixels of each true one.

        Returns:
            (T, 3) hits, invented and missed objects.
        """
        iou = both / np.maximum(predicted[:, None] + true[None] - both, 1)
        hits = [_hits(iou >= t if self.formula == "coco" else iou > t) for t in self.thresholds]
        return np.array([(n, len(predicted) - n, len(true) - n) for n in hits], np.int64)

    def ratio(self, parts: Parts) -> NDArray[np.float64]:
        """The formula at each threshold, and the mean over them."""
        hits, invented, missed = (np.asarray(parts[..., i], np.float64) for i in range(3))
        if self.formula == "jaccard":
            values = share(hits, hits + invented + missed)
        elif self.formula in ("f1", "f2"):
            weight = 1.0 if self.formula == "f1" else 4.0
            values = share((1 + weight) * hits, (1 + weight) * hits + weight * missed + invented)
        else:
            # Where nothing is predicted or nothing is to be found, but not both, nothing is right.
            precision = np.where(hits + invented + missed > 0, np.nan_to_num(share(hits, hits + invented)), np.nan)
            recall = np.nan_to_num(share(hits, hits + missed))
            reached = np.searchsorted(_RECALLS, recall, side="right") / len(_RECALLS)
            values = precision * reached if self.formula == "coco" else precision
        mean: NDArray[np.float64] = values.mean(-1)
        return mean


def object_overlaps(
    predicted: Mask, true: Mask, *, connectivity: int = 8
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Connected objects of two (H, W) masks: shared pixels (N, M), pixels of each predicted (N,) and true (M,) one."""
    from scipy import ndimage

    structure = np.ones((3, 3)) if connectivity == 8 else None
    ours, ours_count = ndimage.label(predicted, structure)
    theirs, theirs_count = ndimage.label(true, structure)
    width = theirs_count + 1
    cells = np.bincount(
        ours.reshape(-1).astype(np.int64) * width + theirs.reshape(-1), minlength=(ours_count + 1) * width
    )
    table = cells.reshape(ours_count + 1, width)
    return table[1:, 1:], table[1:].sum(1), table[:, 1:].sum(0)


def _hits(fits: NDArray[np.bool_]) -> int:
    """The most pairs of a predicted and a true object that fit, each in one pair at most; (N, M) bool."""
    if not fits.any():
        return 0
    if fits.sum(0).max() == 1 and fits.sum(1).max() == 1:
        return int(fits.sum())
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    matched = maximum_bipartite_matching(csr_array(fits), perm_type="column")
    return int((matched >= 0).sum())
