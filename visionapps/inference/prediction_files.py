"""Detections from files of any form, brought to the images and labels of a truth.

Shapes: N detections, K classes.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visionapps.data.annotations import AnnotationSet, find_form, read_table
from visionapps.data.coco_files import coco_key, load_json
from visionapps.data.object_masks import polygons_of, shape_mask
from visionapps.data.object_problems import DECIMALS, edges
from visionapps.data.object_table import Category, ObjectTable
from visionapps.errors import DataError
from visionapps.masks import CocoRle, coco_to_runs
from visionapps.objects import Objects

_LISTED = 4  # names in a message
_log = logging.getLogger(__name__)
Key = int | str  # of an image or a class: its number, or its name


@dataclass(frozen=True, eq=False)
class Predictions:
    """Detections as their file holds them.

    Attributes:
        source: of messages.
        images: names or numbers.
        image: (N,) place in images.
        classes: names or numbers.
        label: (N,) place in classes.
        boxes: (N, 4) x0 y0 x1 y1, half-open; in shares of the image's size where ``relative``; NaN: see the shape.
        scores: (N,).
        shapes: polygons or run lengths; None: boxes only.
        numbered: numbers of classes are those of COCO files, not places in a list.
        relative: boxes and polygons are shares of the size.
        shift: to be taken from the corners of polygons.
    """

    source: str
    images: list[Key]
    image: np.ndarray
    classes: list[Key]
    label: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    shapes: list[Any] | None
    numbered: bool = True
    relative: bool = False
    shift: float = 0.0


def read_predictions(path: Path, form: str = "auto") -> Predictions:
    """Read detections.

    Args:
        path: a COCO list of results or a COCO file with scores, a folder of YOLO files with confidences, of VOC files
            with scores, or a CSV file with scores.
        form: of the files; auto: seen from what is there.

    Raises:
        DataError: nothing can be read there, something cannot be read, or there are no scores.
    """
    if path.suffix.lower() == ".json" and path.is_file():
        data = load_json(path)
        if isinstance(data, list):
            return _of_results(path, data)
    table = read_table(path, find_form(path, form))
    notes = [note for note in table.notes if note.kind != "shared_name"]  # classes match by name
    if notes:
        raise DataError(f"{notes[0].message} ({len(notes)} such places)")
    if len(table) and (table.scores is None or np.isnan(table.scores).any()):
        bad = 0 if table.scores is None else int(np.flatnonzero(np.isnan(table.scores))[0])
        raise DataError(
            f"{table.place(bad)}: has no score; detections need one: the sixth number of a YOLO row, <score> in VOC, a "
            "column score in CSV, score in COCO"
        )
    return _of_table(str(path), table)


def place_predictions(predictions: Predictions, truth: AnnotationSet) -> list[Objects]:
    """Give detections to the images of a truth.

    Args:
        predictions: as read. Images match by number or by name, with or without suffix and folder; classes by name, or
            by number.
        truth: which images and classes there are.

    Returns:
        One entry per image of the truth, in its order; empty where nothing was found.

    Raises:
        DataError: no image matches, two are the same, a class is unknown, or a detection was written twice.
    """
    images = _images(predictions, truth)
    labels = _labels(predictions, truth)[predictions.label]
    image = images[predictions.image]
    boxes = _in_pixels(predictions, truth, image)
    rows = np.flatnonzero(image >= 0)
    rows = rows[np.argsort(image[rows], kind="stable")]
    masks = None
    if predictions.shapes is not None:
        masks = [_mask(predictions, truth, int(row), int(image[row])) for row in rows]
        boxes = _with_boxes(boxes, rows, masks)
    _refuse_repeated(predictions, image[rows], labels[rows], boxes[rows], predictions.scores[rows])
    bounds = np.searchsorted(image[rows], np.arange(len(truth.images) + 1))
    found = []
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        part = rows[begin:end]
        own = None if masks is None else tuple(masks[begin:end])
        found.append(Objects(boxes[part], labels[part], predictions.scores[part], masks=own))
    return found


def _of_results(path: Path, rows: list[Any]) -> Predictions:
    for i, row in enumerate(rows):
        keys = ("image_id", "category_id", "score")
        if (
            not isinstance(row, Mapping)
            or any(key not in row for key in keys)
            or not row.keys() & {"bbox", "segmentation"}
        ):
            raise DataError(
                f"{path}: result {i} is {str(row)[:60]}, but image_id, category_id, score and bbox or segmentation are "
                "expected"
            )
    images, image = _numbered(path, rows, "image_id")
    classes, label = _numbered(path, rows, "category_id")
    nowhere = [float("nan")] * 4
    try:
        boxes = np.array([row.get("bbox") or nowhere for row in rows], np.float64).reshape(len(rows), 4)
        scores = np.array([row["score"] for row in rows], np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: a bbox is no list of four numbers, or a score no number ({error})") from error
    boxes[:, 2:] += boxes[:, :2]
    _refuse_inverted(boxes, lambda row: f"{path}: result {row}")
    shapes = [row.get("segmentation") for row in rows]
    whole = bool(rows) and all(shapes)
    if not whole and np.isnan(boxes).any():
        raise DataError(f"{path}: some results have no bbox and others no segmentation; give all of them one of both")
    return Predictions(str(path), images, image, classes, label, boxes, scores, shapes if whole else None)


def _numbered(path: Path, rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[Key], np.ndarray]:
    """The different numbers or names under a key, taken as annotation files have them, and which each row has."""
    places: dict[Key, int] = {}
    index = []
    for i, row in enumerate(rows):
        key = coco_key(row[name])
        if key is None:
            raise DataError(f"{path}: result {i}: {name} is {row[name]}, but a number or a name is expected")
        index.append(places.setdefault(key, len(places)))
    return list(places), np.array(index, np.int64)


def _refuse_inverted(boxes: np.ndarray, place: Callable[[int], str]) -> None:
    inverted = np.flatnonzero((boxes[:, 2:] < boxes[:, :2]).any(1))  # never so where a box is left out
    if len(inverted):
        box = ", ".join(f"{value:g}" for value in boxes[inverted[0]])
        raise DataError(
            f"{place(int(inverted[0]))}: box {box} is inverted; x1 and y1 must not lie before x0 and y0 "
            f"({len(inverted)} such boxes)"
        )


def _of_table(source: str, table: ObjectTable) -> Predictions:
    first, last = edges(table.form, None, None)
    boxes = table.boxes - [first, first, last, last]
    _refuse_inverted(boxes, table.place)
    numbered = table.form != "yolo"
    unlisted = np.flatnonzero((table.category < 0) | (table.image < 0))
    if len(unlisted):
        raise DataError(f"{table.place(int(unlisted[0]))}: its image or its category is not listed in the file")
    whole = table.shapes is not None and all(shape is not None for shape in table.shapes)
    return Predictions(
        source,
        [row.name for row in table.images],
        table.image,
        [_class_key(category) for category in table.categories],
        table.category,
        boxes,
        np.zeros(len(table)) if table.scores is None else table.scores,
        table.shapes if whole else None,
        numbered,
        table.relative,
        first,
    )


def _class_key(category: Category) -> Key:
    if category.name is not None:
        return category.name
    return -1 if category.id is None else category.id


def _images(predictions: Predictions, truth: AnnotationSet) -> np.ndarray:
    """(I,) place of each image in the truth; -1: the truth has no such image."""
    by_number = {image.image_id: i for i, image in enumerate(truth.images)}
    by_name: dict[str, int] = {}
    doubtful: set[str] = set()
    for i, image in enumerate(truth.images):
        for name in _names_of(image.name):
            if by_name.setdefault(name, i) != i:
                doubtful.add(name)
    places = []
    for key in predictions.images:
        found = by_number.get(key) if isinstance(key, int) else None
        if isinstance(key, str):
            names = [name for name in _names_of(key) if name in by_name and name not in doubtful]
            found = by_name[names[0]] if names else None
        places.append(-1 if found is None else found)
    _part_rivals(predictions, places, truth)
    unknown = [str(key) for key, place in zip(predictions.images, places, strict=True) if place < 0]
    if unknown and len(unknown) == len(places):
        raise DataError(
            f"{predictions.source}: none of its {len(unknown)} images (such as {', '.join(unknown[:_LISTED])}) is "
            f"in the annotations, which have {truth.images[0].name} (number {truth.images[0].image_id}) and others; "
            "give the annotations of the same images"
        )
    if unknown:
        _log.warning(
            "%s: %d of %d images (such as %s) are not in the annotations; what was found there is not judged",
            predictions.source,
            len(unknown),
            len(places),
            ", ".join(unknown[:_LISTED]),
        )
    return np.array(places, np.int64)


def _part_rivals(predictions: Predictions, places: list[int], truth: AnnotationSet) -> None:
    """Where several predicted images could be one image, that with its whole path is it, and the others are none."""
    rivals: dict[int, list[int]] = {}
    for i, place in enumerate(places):
        rivals.setdefault(place, []).append(i)
    for place, several in rivals.items():
        names = [str(predictions.images[i]) for i in several]
        if place < 0 or len(set(names)) == 1:
            continue
        plain, stem = _whole_names(truth.images[place].name)
        written = {name: _whole_names(name) for name in names}
        exact = {n for n, own in written.items() if own[0] == plain} or {n for n, own in written.items() if stem in own}
        if len(exact) != 1:
            raise DataError(
                f"{predictions.source}: {names[0]} and {names[1]} could both be {truth.images[place].name} of the "
                "annotations; name images in both by their path below one folder"
            )
        for i, name in zip(several, names, strict=True):
            if name not in exact:
                places[i] = -1


def _names_of(name: str) -> list[str]:
    """A name as it may be written, the exact one first: without suffix, without folder."""
    whole = _whole_names(name)
    return list(dict.fromkeys([*whole, *(each.rpartition("/")[2] for each in whole)]))


def _whole_names(name: str) -> list[str]:
    """A name with its folders, with and without suffix."""
    plain = name.replace("\\", "/").removeprefix("./")
    return [plain, plain[: -len(Path(plain).suffix)] if Path(plain).suffix else plain]


def _labels(predictions: Predictions, truth: AnnotationSet) -> np.ndarray:
    """(C,) label of each class of the predictions."""
    names = {name: k for k, name in enumerate(truth.labels.names)}
    by_number = {number: k for k, number in enumerate(truth.category_ids)}
    if not predictions.numbered and truth.form != "yolo":  # YOLO counts the classes of its list from 0
        by_number = {k: k for k in range(len(truth.labels))}
    used = set(predictions.label.tolist())
    labels = []
    for place, key in enumerate(predictions.classes):
        label = by_number.get(key) if isinstance(key, int) else names.get(key)
        if label is None and place in used:
            listed = ", ".join(f"{name} ({i})" for name, i in list(zip(names, by_number, strict=True))[:8])
            raise DataError(
                f"{predictions.source}: class {key!r} is none of the annotations, which have {listed}"
                f"{', ...' if len(names) > 8 else ''}; predict and evaluate with one class table"
            )
        labels.append(0 if label is None else label)
    return np.array(labels, np.int64)


def _in_pixels(predictions: Predictions, truth: AnnotationSet, image: np.ndarray) -> np.ndarray:
    boxes = predictions.boxes.copy()
    if predictions.relative and len(boxes):
        sizes = np.array([i.size for i in truth.images] + [(0, 0)], np.float64)[image]
        _require_sizes(predictions, truth, image)
        boxes *= sizes[:, [1, 0, 1, 0]]
    return np.asarray(np.round(boxes, DECIMALS))  # as the truth is


def _require_sizes(predictions: Predictions, truth: AnnotationSet, image: np.ndarray) -> None:
    for i in np.unique(image[image >= 0]).tolist():
        if 0 in truth.images[i].size:
            raise DataError(
                f"{predictions.source}: needs the size of {truth.images[i].name}, which the annotations do not say; "
                "give the folder of images"
            )


def _mask(predictions: Predictions, truth: AnnotationSet, row: int, image: int) -> CocoRle:
    assert predictions.shapes is not None
    height, width = truth.images[image].size
    shape = predictions.shapes[row]
    try:
        if not isinstance(shape, Mapping):
            scale = (width, height) if predictions.relative else (1, 1)
            parts = [np.array(part).reshape(-1, 2) * scale - predictions.shift for part in polygons_of(shape)]
            shape = [part.ravel().tolist() for part in parts]
        return shape_mask(shape, (height, width))
    except DataError as error:
        name = truth.images[image].name
        raise DataError(f"{predictions.source}: the mask of a detection in {name} cannot be read: {error}") from error


def _with_boxes(boxes: np.ndarray, rows: np.ndarray, masks: list[CocoRle]) -> np.ndarray:
    """Boxes, those that a file leaves out drawn around the masks."""
    boxes = boxes.copy()
    for row, mask in zip(rows.tolist(), masks, strict=True):
        if np.isnan(boxes[row]).any():
            boxes[row] = _around(mask)
    return boxes


def _around(mask: CocoRle) -> tuple[int, int, int, int]:
    """The box of the pixels of a mask; without any, of no size."""
    height = mask["size"][0]
    runs = coco_to_runs(mask, base=0)
    if not len(runs):
        return 0, 0, 0, 0
    first, last = runs[:, 0], runs[:, 0] + runs[:, 1] - 1
    left, right = int(first[0] // height), int(last[-1] // height) + 1
    if (first // height != last // height).any():  # from the end of one column into the next
        return left, 0, right, height
    return left, int((first % height).min()), right, int((last % height).max()) + 1


def _refuse_repeated(predictions: Predictions, *columns: np.ndarray) -> None:
    """The same image predicted twice, as by padded shares of several processes, counts all its detections twice."""
    whole = np.column_stack(columns)
    distinct, counts = np.unique(whole, axis=0, return_counts=True)
    repeated = len(whole) - len(distinct)
    if repeated:
        first = distinct[np.argmax(counts)]
        box = ", ".join(f"{value:g}" for value in first[2:6])
        raise DataError(
            f"{predictions.source}: {repeated} of {len(whole)} detections stand there twice, with the same image, "
            f"class, box and score, such as box {box} with score {first[6]:.6g}; the same images were predicted twice, "
            "and each repetition would count as a false detection: write every image once"
        )
