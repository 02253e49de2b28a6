"""How many objects a set of proposals covers: the ceiling of every detector that begins with it.

Shapes: N objects, P proposals of one image, M budgets (numbers of proposals per image), T thresholds of IoU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visionapps.errors import DataError
from visionapps.objects import Objects

BUDGETS = (100, 300, 1000, 2000)
# By counts, for they are exactly the numbers that COCO's evaluation uses.
IOUS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
# The areas that COCO calls small, medium and large.
_SIZES = (("small", 0.0, 32.0**2), ("medium", 32.0**2, 96.0**2), ("large", 96.0**2, np.inf))
_AT_ONCE = 256  # objects whose overlaps with all proposals are held together


@dataclass(frozen=True, eq=False)
class GroupRecall:
    """Recall of some of the objects.

    Attributes:
        name: which these are.
        objects: how many.
        recall: (M, T) share that some proposal overlaps by each threshold or more; NaN without objects.
        overlap: (M,) mean over the objects of the best overlap (MABO, where the group is a class).
    """

    name: str
    objects: int
    recall: np.ndarray
    overlap: np.ndarray

    @property
    def average(self) -> np.ndarray:
        """(M,) average recall: the mean over the thresholds."""
        return np.asarray(self.recall.mean(1))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; None where there are no objects."""
        some = self.objects > 0
        return {
            "name": self.name,
            "objects": self.objects,
            "recall": self.recall.tolist() if some else None,
            "average_recall": self.average.tolist() if some else None,
            "mean_best_overlap": self.overlap.tolist() if some else None,
        }


@dataclass(frozen=True, eq=False)
class RecallReport:
    """Recall by number of proposals, overlap, class and size.

    Attributes:
        budgets: (M,) proposals per image, the best ones.
        ious: (T,) thresholds.
        all: all objects together.
        classes: one group per class.
        sizes: small, medium and large ones, by COCO's areas.
        images: how many.
        mean_proposals: per image.
    """

    budgets: tuple[int, ...]
    ious: tuple[float, ...]
    all: GroupRecall
    classes: tuple[GroupRecall, ...]
    sizes: tuple[GroupRecall, ...]
    images: int
    mean_proposals: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "budgets": list(self.budgets),
            "ious": list(self.ious),
            "images": self.images,
            "mean_proposals": self.mean_proposals,
            "all": self.all.to_dict(),
            "classes": [group.to_dict() for group in self.classes],
            "sizes": [group.to_dict() for group in self.sizes],
        }


def recall_report(
    truth: Sequence[Objects],
    proposals: Sequence[np.ndarray],
    names: Sequence[str],
    *,
    budgets: Sequence[int] = BUDGETS,
) -> RecallReport:
    """Measure proposals against annotations.

    An object is covered by a proposal that overlaps it enough, whatever else that proposal covers. Crowds and difficult
    objects are not asked for.

    Args:
        truth: annotations of each image.
        proposals: (P, 4) of each image, best first.
        names: of the K classes.
        budgets: numbers of proposals per image, ascending.

    Raises:
        DataError: not one array of proposals per image, or budgets that do not ascend.

    Source: recall and average recall: Hosang et al., What makes for effective detection proposals?, 2016; mean average
        best overlap: Uijlings et al., Selective search for object recognition, 2013.
    """
    if len(truth) != len(proposals) or list(budgets) != sorted(set(budgets)) or not budgets or budgets[0] < 1:
        raise DataError(
            f"recall: {len(truth)} images with annotations, {len(proposals)} with proposals, and budgets "
            f"{tuple(budgets)}; expected as many images, and numbers from 1 on that ascend"
        )
    wanted = [objects.take(~objects.ignored) for objects in truth]
    rows = [best_overlaps(o.boxes, p, budgets) for o, p in zip(wanted, proposals, strict=True)]
    best = np.concatenate([np.zeros((0, len(budgets))), *rows])
    labels = np.concatenate([np.zeros(0, np.int64), *(o.labels for o in wanted)])
    areas = np.concatenate([np.zeros(0), *(o.areas for o in wanted)])
    classes = tuple(_group(name, best[labels == k]) for k, name in enumerate(names))
    sizes = tuple(_group(name, best[(areas >= low) & (areas < high)]) for name, low, high in _SIZES)
    mean = float(np.mean([len(p) for p in proposals])) if len(proposals) else 0.0
    return RecallReport(tuple(budgets), IOUS, _group("all", best), classes, sizes, len(truth), mean)


def best_overlaps(objects: np.ndarray, proposals: np.ndarray, budgets: Sequence[int]) -> np.ndarray:
    """(N, M) the greatest IoU of each object with any of the best proposals.

    Args:
        objects: (N, 4).
        proposals: (P, 4), best first.
        budgets: (M,) how many proposals count.
    """
    best = np.zeros((len(objects), len(budgets)))
    if not len(proposals):
        return best
    boxes = proposals.astype(np.float64)
    extent = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for first in range(0, len(objects), _AT_ONCE):
        part = objects[first : first + _AT_ONCE, None]
        width = np.minimum(part[..., 2], boxes[:, 2]) - np.maximum(part[..., 0], boxes[:, 0])
        height = np.minimum(part[..., 3], boxes[:, 3]) - np.maximum(part[..., 1], boxes[:, 1])
        common = np.maximum(width, 0) * np.maximum(height, 0)
        area = (part[..., 2] - part[..., 0]) * (part[..., 3] - part[..., 1])
        running = np.maximum.accumulate(common / (area + extent - common), axis=1)
        best[first : first + _AT_ONCE] = running[:, [min(m, len(boxes)) - 1 for m in budgets]]
    return best


def _group(name: str, best: np.ndarray) -> GroupRecall:
    if not len(best):
        nothing = np.full((best.shape[1], len(IOUS)), np.nan)
        return GroupRecall(name, 0, nothing, nothing[:, 0])
    recall = (best[:, :, None] >= np.array(IOUS)).mean(0)
    return GroupRecall(name, len(best), recall, best.mean(0))
