"""Precision of objects over thresholds of IoU, where objects are pieces of masks: the Data Science Bowl's score.

Shapes: K classes, T thresholds, N predicted and M true objects, P pairs that share pixels.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from visionapps.errors import ConfigError
from visionapps.metrics.measures import Mask, Parts, class_crops, share

Int64s = NDArray[np.int64]
Formula = Literal["jaccard", "precision", "f1", "f2", "coco"]
Objects = Literal["components", "whole"]
# COCO's ten, each the double nearest to its decimal text.
THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
_RECALLS = np.linspace(0, 1, 101)  # where COCO looks at a curve


class ObjectPairs(NamedTuple):
    """The objects of one class in one image, and which of them meet."""

    predicted: Int64s  # (P,) in [0, N)
    true: Int64s  # (P,) in [0, M)
    both_px: Int64s  # (P,) pixels that the two share, > 0
    predicted_px: Int64s  # (N,)
    true_px: Int64s  # (M,)


@dataclass(frozen=True)
class ObjectPrecision:
    """How many objects are found, as a mean over thresholds of IoU.

    Parts are (K, T, 3): hits, invented and missed objects. An object is found if its IoU with one that is not taken yet
    lies above the threshold; of all pairings the one with the most hits counts. From 0.5 on there is only one.

    Attributes:
        thresholds: of IoU, each in (0, 1); one or several.
        formula: of hits TP, invented FP and missed FN: "jaccard" TP / (TP + FP + FN) (Data Science Bowl 2018),
            "precision" TP / (TP + FP), "f1", "f2" with recall weighted twice (Airbus ships), or "coco", the average
            precision of objects that all have the same confidence: then their order cannot matter, the curve has
            one step, and AP is the precision times the share of the 101 recalls that are reached. COCO's hits need an
            IoU of at least the threshold.
        connectivity: 8 joins pixels that touch at a corner, 4 does not.
        objects: "components", each connected piece of a class, or "whole", all of a class in an image as one object
            (TGS salt).

    Source: Caicedo et al. 2019, Nucleus segmentation across imaging experiments; Lin et al. 2014, Microsoft COCO.
    """

    thresholds: tuple[float, ...] = THRESHOLDS
    formula: Formula = "jaccard"
    connectivity: Literal[4, 8] = 8
    objects: Objects = "components"

    def __post_init__(self) -> None:
        given: Any = self.thresholds
        if isinstance(given, float):  # YAML brings one as it is
            object.__setattr__(self, "thresholds", (given,))
        good = isinstance(self.thresholds, tuple) and len(self.thresholds) > 0
        if not good or not all(isinstance(t, float) and 0 < t < 1 for t in self.thresholds):
            raise ConfigError(f"metric map: thresholds {self.thresholds!r} must be numbers between 0 and 1")
        if self.formula not in get_args(Formula):
            raise ConfigError(f"metric map: formula {self.formula!r} is unknown; give {' or '.join(get_args(Formula))}")
        if self.connectivity not in (4, 8):
            raise ConfigError(f"metric map: connectivity {self.connectivity!r} must be 4 or 8")
        if self.objects not in get_args(Objects):
            raise ConfigError(f"metric map: objects {self.objects!r} is unknown; give {' or '.join(get_args(Objects))}")

    @property
    def name(self) -> str:
        """map."""
        return "map"

    def parts(self, prediction: NDArray[Any], truth: NDArray[Any], classes: int) -> Parts:
        """(K, T, 3) int64; see ``Measure``."""
        found = np.zeros((classes, len(self.thresholds), 3), np.int64)
        for k, predicted, true in class_crops(prediction, truth, classes):
            whole = self.objects == "whole"
            pairs = whole_pairs(predicted, true) if whole else object_pairs(predicted, true, self.connectivity)
            found[k] = self.of_pairs(pairs)
        return found

    def of_pairs(self, pairs: ObjectPairs) -> NDArray[np.int64]:
        """(T, 3) hits, invented and missed objects of one class, however its objects were told apart."""
        objects, wanted = len(pairs.predicted_px), len(pairs.true_px)
        iou = pairs.both_px / (
            pairs.predicted_px[pairs.predicted] + pairs.true_px[pairs.true] - pairs.both_px
        )  # > 0 / > 0: these pairs share pixels
        hits = [_hits(pairs, iou >= t if self.formula == "coco" else iou > t) for t in self.thresholds]
        return np.array([(n, objects - n, wanted - n) for n in hits], np.int64)

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


def whole_pairs(predicted: Mask, true: Mask) -> ObjectPairs:
    """Two (H, W) masks as one object each; none where a mask is empty."""
    both, ours, theirs = (int(np.count_nonzero(mask)) for mask in (predicted & true, predicted, true))
    meet = np.zeros(min(both, 1), np.int64)
    return ObjectPairs(meet, meet, _not_none(both), _not_none(ours), _not_none(theirs))


def _not_none(pixels: int) -> Int64s:
    return np.array([pixels] if pixels else [], np.int64)


def object_pairs(predicted: Mask, true: Mask, connectivity: int = 8) -> ObjectPairs:
    """The connected objects of two (H, W) masks, and which of them meet."""
    from scipy import ndimage

    structure = np.ones((3, 3)) if connectivity == 8 else None
    ours, _ = ndimage.label(predicted, structure)
    theirs, theirs_count = ndimage.label(true, structure)
    meet = (ours > 0) & (theirs > 0)
    both = sparse_pairs(ours[meet] - 1, theirs[meet] - 1, theirs_count)
    sizes = (np.bincount(ours.reshape(-1), minlength=1)[1:], np.bincount(theirs.reshape(-1), minlength=1)[1:])
    return ObjectPairs(*both, *sizes)


def sparse_pairs(
    predicted: NDArray[Any], true: NDArray[Any], true_count: int, pixels: NDArray[np.int64] | None = None
) -> tuple[Int64s, Int64s, Int64s]:
    """Pairs of objects without doubles, and their pixels: a table of all would not fit where masks are full of specks.

    Args:
        predicted: (n,) object of a pixel, or of a stretch of pixels.
        true: (n,) the other one that it belongs to.
        true_count: M.
        pixels: (n,) of each stretch; None: 1.
    """
    keys, place = np.unique(predicted.astype(np.int64) * max(1, true_count) + true, return_inverse=True)
    both = np.bincount(place, minlength=len(keys)) if pixels is None else np.zeros(len(keys), np.int64)
    if pixels is not None:
        np.add.at(both, place, pixels)
    return (*np.divmod(keys, max(1, true_count)), both)


def _hits(pairs: ObjectPairs, fits: NDArray[np.bool_]) -> int:
    """The most pairs that fit, each object in one of them at most."""
    ours, theirs = pairs.predicted[fits], pairs.true[fits]
    if len(np.unique(ours)) == len(np.unique(theirs)) == len(ours):
        return len(ours)
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    shape = len(pairs.predicted_px), len(pairs.true_px)
    graph = csr_array((np.ones(len(ours), np.int8), (ours, theirs)), shape=shape)
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())
