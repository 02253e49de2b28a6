"""Everything that is said about the detections of a set of images: scores, curves, confusion, causes of errors.

Shapes: K classes, D detections, G true objects.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visionapps.metrics.bootstrap import Interval, ap_interval
from visionapps.metrics.coco import CocoScores, score_table
from visionapps.metrics.coco_engine import EngineName
from visionapps.metrics.curves import Curves, draw_up
from visionapps.metrics.object_confusion import ObjectConfusion, confuse
from visionapps.metrics.object_errors import FAR, ObjectErrors, explain_errors
from visionapps.metrics.object_matching import overlaps
from visionapps.metrics.object_table import ObjectTable, make_table
from visionapps.metrics.voc import VocScores, voc_table
from visionapps.objects import Objects


@dataclass(frozen=True, eq=False)
class ObjectEvaluation:
    """What is known about the detections of a set of images.

    Attributes:
        names: K classes.
        table: truth and detections as boxes.
        box: COCO's scores of the boxes.
        mask: and of the masks, where truth and detections have them.
        interval: of AP at IoU 0.5, from drawing the images again.
        voc: PASCAL VOC's, by eleven points and by area, if asked for.
        curves: precision and recall at IoU 0.5.
        confusion: true against detected classes, at the thresholds with the best F1.
        errors: what keeps AP at IoU 0.5 from 1.
    """

    names: tuple[str, ...]
    table: ObjectTable
    box: CocoScores
    mask: CocoScores | None
    interval: Interval
    voc: tuple[VocScores, ...]
    curves: Curves
    confusion: ObjectConfusion
    errors: ObjectErrors

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, undefined values as None."""
        parts: dict[str, Any] = {
            "images": self.table.images,
            "objects": int(self.table.true_counts.sum()),
            "detections": len(self.table.found),
            "coco": {"box": self.box.to_dict(self.names)},
            "ap50_interval": [None if math.isnan(end) else end for end in self.interval],
            "voc": [scores.to_dict(self.names) for scores in self.voc],
            "curves": self.curves.to_dict(self.names),
            "confusion": self.confusion.to_dict(self.names),
            "errors": self.errors.to_dict(),
        }
        if self.mask is not None:
            parts["coco"]["mask"] = self.mask.to_dict(self.names)
        return parts


def evaluate_objects(
    truth: Sequence[Objects],
    found: Sequence[Objects],
    names: Sequence[str],
    *,
    engine: EngineName = "pycocotools",
    voc: bool = False,
    score: float | None = None,
) -> ObjectEvaluation:
    """Judge the detections of a set of images.

    Args:
        truth: annotated objects of each image.
        found: detections of each image, in the same order; boxes are judged, and masks where all have them.
        names: K classes.
        engine: of COCO's scores.
        voc: PASCAL VOC's scores, too.
        score: least score in the confusion matrix, in [0, 1]; None: that with the best F1, for each class.

    Raises:
        DataError: truth and detections do not fit each other or the classes.
        ConfigError: the engine is not installed.
    """
    table = make_table(truth, found, len(names))
    pairs = overlaps(table, least=FAR)
    curves = draw_up(table, pairs)
    # A class that has no threshold of its own shows its false detections from one half on; where scores are no shares
    # of 1, all of them.
    usual = 0.5 if curves.shares else float(table.found.scores.min(initial=0.0))
    thresholds = [usual if math.isnan(t) else t for t in curves.thresholds] if score is None else [score] * len(names)
    masks = has_masks(truth) and has_masks(found)
    return ObjectEvaluation(
        names=tuple(names),
        table=table,
        box=score_table(table, engine=engine),
        mask=score_table(make_table(truth, found, len(names), kind="mask"), engine=engine) if masks else None,
        interval=ap_interval(table, pairs, np.random.default_rng(0)),
        voc=tuple(voc_table(table, points=points) for points in ("eleven", "area")) if voc else (),
        curves=curves,
        confusion=confuse(table, pairs, np.array(thresholds)),
        errors=explain_errors(table, pairs),
    )


def has_masks(objects: Sequence[Objects]) -> bool:
    """Whether every object has a mask, and there is one."""
    filled = [one for one in objects if len(one)]
    return bool(filled) and all(one.masks is not None for one in filled)


def rank_images(evaluation: ObjectEvaluation) -> list[tuple[int, float, int]]:
    """The images, worst first: index, F1 and number of errors, at the thresholds of the confusion matrix.

    Images without objects and detections are perfect. Of equal F1 the one with more errors comes first.
    """
    table, confusion = evaluation.table, evaluation.confusion
    right, wrong = (
        np.bincount(table.found.image[which], minlength=table.images) for which in (confusion.right, confusion.wrong)
    )
    missed = np.bincount(table.truth.image[confusion.missed], minlength=table.images)
    whole = 2 * right + wrong + missed
    f1 = np.where(whole > 0, 2 * right / np.maximum(whole, 1), 1.0)
    errors = wrong + missed
    order = np.lexsort((-errors, f1))
    return [(int(i), float(f1[i]), int(errors[i])) for i in order]
