"""The two programs that compute COCO's arrays of precision and recall, fed and read in one way.

Shapes: T IoU thresholds, R recall levels, K classes, A area ranges, M caps.
"""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from typing import Any, Literal, NamedTuple

import numpy as np

from visionapps.errors import ConfigError
from visionapps.metrics.object_table import ObjectTable, Rows

EngineName = Literal["pycocotools", "faster"]
AREAS = ("all", "small", "medium", "large")  # up to 32^2, up to 96^2 and above, in pixels of the annotation's area
_OF_TYPE = {"box": "bbox", "mask": "segm"}


class CocoArrays(NamedTuple):
    """What an evaluation gives, NaN where a class has nothing to be found."""

    precision: np.ndarray  # (T, R, K, A, M) float64
    recall: np.ndarray  # (T, K, A, M) float64


def run_pycocotools(table: ObjectTable, caps: Sequence[int]) -> CocoArrays:
    """The reference. Its loops are Python: 50 CPU seconds for 5,000 images with 100 detections each.

    Class by class, which changes no number and needs a tenth of the memory with 80 classes: it keeps every match of
    every image until it is done.

    Args:
        table: truth and detections.
        caps: detections of a class in an image that are looked at, ascending.
    """
    from pycocotools.cocoeval import COCOeval

    precision, recall = _nothing(table, caps)
    for k, rows in _by_class(table):
        evaluation = COCOeval(*rows, _OF_TYPE[table.kind])
        evaluation.params.maxDets = list(caps)
        with redirect_stdout(io.StringIO()):
            evaluation.evaluate()
            evaluation.accumulate()
        precision[:, :, k] = evaluation.eval["precision"][:, :, 0]
        recall[:, k] = evaluation.eval["recall"][:, 0]
    return CocoArrays(_defined(precision), _defined(recall))


def run_faster(table: ObjectTable, caps: Sequence[int]) -> CocoArrays:
    """The same by faster-coco-eval, whose loops are compiled.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from faster_coco_eval.core.faster_eval_api import COCOeval_faster
    except ImportError as error:
        raise ConfigError(
            "engine faster: faster-coco-eval is not installed; `pip install 'visionapps[eval]'`, or take the engine "
            "pycocotools"
        ) from error

    precision, recall = _nothing(table, caps)
    for k, rows in _by_class(table):
        evaluation = COCOeval_faster(*rows, _OF_TYPE[table.kind], print_function=_silent)
        evaluation.params.maxDets = list(caps)
        evaluation.evaluate()
        evaluation.accumulate()
        shape = (*precision.shape[:2], 1, *precision.shape[3:])
        precision[:, :, k] = np.asarray(evaluation.eval["precision"]).reshape(shape)[:, :, 0]
        recall[:, k] = np.asarray(evaluation.eval["recall"]).reshape(shape[0], *shape[2:])[:, 0]
    return CocoArrays(_defined(precision), _defined(recall))


class _Annotations:
    """As much of pycocotools' COCO as an evaluation asks of it: the rows of one class, ready made.

    Building a COCO object instead copies every row twice and draws a polygon around every box.
    """

    def __init__(self, rows: list[dict[str, Any]], images: dict[int, dict[str, int]], label: int) -> None:
        self.rows, self.imgs, self.label = rows, images, label
        self.print_function = _silent

    def getImgIds(self) -> list[int]:  # noqa: N802
        return list(self.imgs)

    def getCatIds(self) -> list[int]:  # noqa: N802
        return [self.label]

    def getAnnIds(self, **_: object) -> list[dict[str, Any]]:  # noqa: N802
        return self.rows

    def loadAnns(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:  # noqa: N802
        return rows

    def annToRLE(self, row: dict[str, Any]) -> Any:  # noqa: N802
        return row["segmentation"]


def _by_class(table: ObjectTable) -> Iterator[tuple[int, tuple[_Annotations, _Annotations]]]:
    """Truth and detections of every class that has something to be found, over the images where it occurs."""
    sorted_sides = [_by_label(rows, table.num_classes) for rows in (table.truth, table.found)]
    for k in np.flatnonzero(table.true_counts).tolist():
        sides = [_dicts(parts[k]) for parts in sorted_sides]
        images = sorted({row["image_id"] for side in sides for row in side})
        # The engine for masks wants sizes; run lengths carry their own, so these are not looked at.
        sizes = {i: {"id": i, "height": 1, "width": 1} for i in images}
        yield k, (_Annotations(sides[0], sizes, k), _Annotations(sides[1], sizes, k))


def _by_label(rows: Rows, num_classes: int) -> list[Rows]:
    """The rows of each class, in one pass over all."""
    order = np.argsort(rows.labels, kind="stable")
    bounds = np.searchsorted(rows.labels[order], np.arange(1, num_classes))
    return [rows.take(part) for part in np.split(order, bounds)]


def _dicts(rows: Rows) -> list[dict[str, Any]]:
    """The objects of a class as both programs want them.

    Ids begin at 1: pycocotools takes a match with id 0 for none. Difficult objects get an area outside of all ranges:
    so they are ignored, and matched like any other object, each once; a flag of their own both programs overwrite.
    """
    areas = np.where(rows.ignored & ~rows.crowd, math.inf, rows.areas).tolist()
    boxes, crowd = rows.corners_and_sides.tolist(), rows.crowd.astype(int).tolist()
    labels, images, scores = rows.labels.tolist(), rows.image.tolist(), rows.scores.tolist()
    columns = zip(images, labels, boxes, areas, crowd, scores, strict=True)
    made = [
        {"id": i, "image_id": image, "category_id": label, "bbox": box, "area": area, "iscrowd": many, "score": score}
        for i, (image, label, box, area, many, score) in enumerate(columns, 1)
    ]
    if rows.masks is not None:
        for row, mask in zip(made, rows.masks, strict=True):
            row["segmentation"] = dict(mask)
    return made


def _nothing(table: ObjectTable, caps: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    shape = (table.num_classes, len(AREAS), len(caps))
    return np.full((10, 101, *shape), -1.0), np.full((10, *shape), -1.0)


def _defined(values: np.ndarray) -> np.ndarray:
    return np.where(values < 0, math.nan, values)


def _silent(*_: object) -> None:
    """Both programs report progress line by line."""
