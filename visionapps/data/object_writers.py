"""Writing annotations and detections in every form, whole or not at all.

Shapes: N objects of an image, K classes.
"""

import csv
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, tee
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from visionapps.data.annotations import AnnotatedImage, AnnotationSet
from visionapps.data.csv_files import WRITTEN
from visionapps.data.label_folders import (
    CLASSES,
    FOLDERS,
    keep_table,
    label_files,
    refuse_foreign,
    refuse_other_classes,
)
from visionapps.data.object_dataset import Form
from visionapps.data.object_masks import Polygon, mask_area, mask_polygons, shape_mask
from visionapps.data.object_problems import DECIMALS, edges
from visionapps.data.voc_files import voc_text
from visionapps.errors import DataError
from visionapps.files import whole_output
from visionapps.objects import Objects
from visionapps.structures import LabelSpace

_DEPTH = 3  # bands that a VOC file states; no reader of boxes looks at it


@dataclass
class Writing:
    """What the writers of all forms need, and what they could not express.

    Attributes:
        labels: the label space.
        category_ids: (K,) numbers of the classes in COCO and CSV.
        first: added to x0 y0; see object_problems.edges.
        last: added to x1 y1.
        scored: scores are written, where objects have them.
        results: detections: every object has a score, and COCO files are lists of results.
        ids: numbers of the objects that have one; others get what is free from 1 on.
        lost: what the form cannot express, and how often it occurred.
    """

    labels: LabelSpace
    category_ids: Sequence[int]
    first: float = 0.0
    last: float = 0.0
    scored: bool = False
    results: bool = False
    ids: frozenset[int] = frozenset()
    lost: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._free = (number for number in count(1) if number not in self.ids)
        self._given: set[int] = set()

    def number(self, own: int) -> int:
        """The number of an object: its own, if it has one that nobody had before."""
        number = own if own >= 0 and own not in self._given else next(self._free)
        self._given.add(number)
        return number

    def boxes(self, image: AnnotatedImage) -> np.ndarray:
        """(N, 4) numbers of the file."""
        moved = image.objects.boxes + np.array([self.first, self.first, self.last, self.last])
        return np.asarray(np.round(moved, DECIMALS))

    def lose(self, what: str, times: int) -> None:
        if times:
            self.lost[what] += times


def write_annotations(
    annotations: AnnotationSet,
    path: Path,
    form: Form,
    *,
    origin: float | None = None,
    inclusive: bool | None = None,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write the annotations of a set.

    Args:
        annotations: what to write.
        path: a file for COCO and CSV, a folder for VOC and YOLO.
        form: of the files.
        origin: of the files written; see ObjectDataset.
        inclusive: likewise.
        overwrite: replace what is there.

    Returns:
        What the form cannot express, and how many objects had it.

    Raises:
        DataError: YOLO needs the size of an image that nobody says, or two images would share a file.
        OutputError: the path is taken, by files of other images too, or cannot be written.
    """
    first, last = edges(form, origin, inclusive)
    scored = any(image.objects.scores is not None for image in annotations.images)
    known = frozenset(n for image in annotations.images for n in image.objects.ids.tolist() if n >= 0)
    task = Writing(annotations.labels, annotations.category_ids, first, last, scored, ids=known)
    _write(annotations.images, path, form, task, overwrite, ())
    _lose_lists(annotations, form, task)
    return dict(task.lost)


def write_detections(
    path: Path,
    form: Form,
    images: Iterable[AnnotatedImage],
    labels: LabelSpace,
    category_ids: Sequence[int] | None = None,
    *,
    overwrite: bool = False,
    replacing: Collection[str] = (),
) -> dict[str, int]:
    """Write what a detector has found, image by image as it comes: COCO results, YOLO rows with a confidence, VOC
    objects with a score, CSV rows with a score.

    Args:
        path: a file for COCO and CSV, a folder for VOC and YOLO.
        form: of the files.
        images: with objects that have scores.
        labels: the label space.
        category_ids: (K,) numbers of the classes; None: from 1.
        overwrite: replace what is there.
        replacing: names of more images, whose files may be in the folder that is replaced.

    Returns:
        What the form cannot express, and how many objects had it.

    Raises:
        DataError: YOLO needs the size of an image that nobody says, or two images would share a file.
        OutputError: the path is taken, by files of other images too, or cannot be written.
    """
    first, last = edges(form, None, None)
    numbers = tuple(range(1, len(labels) + 1)) if category_ids is None else tuple(category_ids)
    task = Writing(labels, numbers, first, last, scored=True, results=True)
    _write(images, path, form, task, overwrite, replacing)
    return dict(task.lost)


def _lose_lists(annotations: AnnotationSet, form: Form, task: Writing) -> None:
    """What forms without lists of images and classes cannot express."""
    numbers = list(annotations.category_ids)
    if form in ("voc", "csv"):
        met = {label for image in annotations.images for label in image.objects.labels.tolist()}
        task.lose("classes without an object", len(numbers) - len(met))
    if form in FOLDERS:
        usual = list(range(len(numbers))) if form == "yolo" else list(range(1, len(numbers) + 1))
        task.lose("numbers of classes", len(numbers) * (numbers != usual))
        ids = [image.image_id for image in annotations.images]
        task.lose("numbers of images", len(ids) * (ids != list(range(1, len(ids) + 1))))


def _write(
    images: Iterable[AnnotatedImage], path: Path, form: Form, task: Writing, overwrite: bool, replacing: Collection[str]
) -> None:
    if form in FOLDERS:
        refuse_other_classes(path, form, task.labels.names)
        with whole_output(path, overwrite) as part:
            part.mkdir()
            written = _write_folder(images, part, form, task)
            refuse_foreign(path, form, {*written, *label_files(replacing, form)})
            if form == "yolo":
                keep_table(path, part)
        return
    with whole_output(path, overwrite) as part, part.open("w", encoding="utf-8", newline="") as file:
        if form == "csv":
            _csv(images, file, task)
        elif task.results:
            _results(images, file, task)
        else:
            _coco(images, file, task)


def _write_folder(images: Iterable[AnnotatedImage], part: Path, form: Form, task: Writing) -> list[str]:
    """A file per image; returns which."""
    if form == "yolo":
        (part / CLASSES).write_text("".join(f"{name}\n" for name in task.labels.names), encoding="utf-8")
    written: list[str] = []
    ours, names = tee(images)
    for image, file in zip(ours, label_files((each.name for each in names), form), strict=True):
        (part / file).parent.mkdir(parents=True, exist_ok=True)
        (part / file).write_text(_voc(image, task) if form == "voc" else _yolo(image, task), encoding="utf-8")
        written.append(file)
    return written


def _coco(images: Iterable[AnnotatedImage], file: TextIO, task: Writing) -> None:
    listed: list[dict[str, Any]] = []
    file.write('{"annotations": [')
    between = "\n"
    for image in images:
        height, width = image.size
        entry = {"id": image.image_id, "file_name": image.name}
        listed.append(entry | ({"height": height, "width": width} if height else {}))
        for row in _coco_rows(image, task):
            file.write(between + json.dumps(row))
            between = ",\n"
    names = [{"id": n, "name": name} for n, name in zip(task.category_ids, task.labels.names, strict=True)]
    file.write(f'\n],\n"images": {json.dumps(listed)},\n"categories": {json.dumps(names)}}}\n')


def _coco_rows(image: AnnotatedImage, task: Writing) -> Iterator[dict[str, Any]]:
    objects, truncated = image.objects, image.truncated
    columns = zip(
        _corner_and_size(task.boxes(image)).tolist(),
        objects.labels.tolist(),
        objects.ids.tolist(),
        objects.areas.tolist(),
        objects.crowd.tolist(),
        objects.difficult.tolist(),
        _scores(image, task),
        strict=True,
    )
    for i, (box, label, number, area, crowd, difficult, score) in enumerate(columns):
        row = {
            "id": task.number(number),
            "image_id": image.image_id,
            "category_id": task.category_ids[label],
            "bbox": box,
            "area": area,
            "iscrowd": int(crowd),
        }
        if difficult:
            row["ignore"] = 1
        if truncated is not None and truncated[i]:
            row["truncated"] = 1
        if score is not None:
            row["score"] = score
        outline = image.polygons[i] if image.polygons is not None else None
        if outline is not None:
            row["segmentation"] = [np.round(np.array(part) + task.first, DECIMALS).tolist() for part in outline]
        elif objects.masks is not None:
            row["segmentation"] = objects.masks[i]
        yield row


def _results(images: Iterable[AnnotatedImage], file: TextIO, task: Writing) -> None:
    file.write("[")
    between = "\n"
    for image in images:
        objects = image.objects
        boxes = _corner_and_size(task.boxes(image)).tolist()
        for i, (box, label, score) in enumerate(zip(boxes, objects.labels.tolist(), _scores(image, task), strict=True)):
            row = {"image_id": image.image_id, "category_id": task.category_ids[label], "bbox": box, "score": score}
            if objects.masks is not None:
                row["segmentation"] = objects.masks[i]
            file.write(between + json.dumps(row))
            between = ",\n"
    file.write("\n]\n")


def _voc(image: AnnotatedImage, task: Writing) -> str:
    objects = image.objects
    _lose_shapes(image, task)
    task.lose("crowd regions are written as difficult objects", int(objects.crowd.sum()))
    task.lose("ids of objects", int((objects.ids >= 0).sum()))
    difficult = (objects.crowd | objects.difficult).astype(int).astype(str).tolist()
    truncated = ["0"] * len(objects) if image.truncated is None else image.truncated.astype(int).astype(str).tolist()
    numbers = [" ".join(map(_number, box)) for box in task.boxes(image).tolist()]
    scores = [None if score is None else _text(score) for score in _scores(image, task)]
    names = [task.labels.names[label] for label in objects.labels.tolist()]
    return voc_text(image.name, image.size, _DEPTH, zip(names, numbers, difficult, truncated, scores, strict=True))


def _yolo(image: AnnotatedImage, task: Writing) -> str:
    height, width = image.size
    objects = image.objects
    if not height or not width:
        raise DataError(f"{image.name}: its size is not known, but YOLO files hold shares of it; give the images")
    task.lose("crowd regions are left out", int(objects.crowd.sum()))
    task.lose("difficult objects are written as ordinary ones", int((objects.difficult & ~objects.crowd).sum()))
    task.lose("ids of objects", int((objects.ids >= 0).sum()))
    if image.truncated is not None:
        task.lose("marks of truncated objects", int(image.truncated.sum()))
    boxes = task.boxes(image)
    low, high = boxes[:, :2], boxes[:, 2:]
    shares = np.concatenate([(low + high) / 2, high - low], 1) / [width, height, width, height]
    scores = ["" if score is None else f" {_text(score)}" for score in _scores(image, task)]
    if objects.masks is None:
        _lose_areas(objects.areas[~objects.crowd], _box_areas(objects)[~objects.crowd], "box", task)
    lines = []
    for i, label in enumerate(objects.labels.tolist()):
        if objects.crowd[i]:
            continue
        numbers = shares[i] if objects.masks is None else _yolo_outline(image, i, task)
        lines.append(f"{label} {' '.join(f'{value:.12g}' for value in numbers.tolist())}{scores[i]}\n")
    return "".join(lines)


def _yolo_outline(image: AnnotatedImage, i: int, task: Writing) -> np.ndarray:
    """The polygon of an object as shares; several parts are joined by lines that are walked both ways."""
    assert image.objects.masks is not None
    mask = image.objects.masks[i]
    parts = image.polygons[i] if image.polygons is not None else None
    if parts is None:
        parts = tuple(mask_polygons(mask))
        if not parts:
            raise DataError(f"{image.name}: an object has an empty mask, which YOLO cannot express; leave it out")
    line = _one_line(parts)
    written, own = mask_area([shape_mask([line], image.size), mask])
    task.lose("holes of masks, or seams between parts of masks", int(written != own))
    _lose_areas(image.objects.areas[[i]], written, "mask", task)
    points = np.array(line).reshape(-1, 2)
    around = np.concatenate([points.min(0), points.max(0)])
    task.lose("boxes that are not those around their masks", int(np.abs(around - image.objects.boxes[i]).max() > 1e-6))
    moved = (points + task.first) / [image.size[1], image.size[0]]
    return moved.ravel()


def _one_line(parts: Sequence[Polygon]) -> Polygon:
    """One closed line along all parts: back at its start after each, then over to the next."""
    line: list[float] = list(parts[0])
    for part in parts[1:]:
        line += [*parts[0][:2], *part, *part[:2]]
    return tuple(line + list(parts[0][:2]) if len(parts) > 1 else line)


def _csv(images: Iterable[AnnotatedImage], file: TextIO, task: Writing) -> None:
    columns = [name for name in WRITTEN if name != "score" or task.scored]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for image in images:
        _lose_shapes(image, task, areas=False)
        height, width = image.size
        head = [image.name, image.image_id, width or "", height or ""]
        if not len(image.objects):
            writer.writerow(head + [""] * (len(columns) - len(head)))
        objects = image.objects
        texts = ["" if score is None else _text(score) for score in _scores(image, task)]
        scores = [[text] if task.scored else [] for text in texts]
        for i, box in enumerate(task.boxes(image).tolist()):
            label, number = int(objects.labels[i]), int(objects.ids[i])
            flags = [int(objects.crowd[i]), int(objects.difficult[i])]
            flags.append(int(image.truncated is not None and image.truncated[i]))
            named = [task.labels.names[label], task.category_ids[label]]
            tail = [repr(float(objects.areas[i])), number if number >= 0 else ""]
            writer.writerow([*head, *map(_number, box), *named, *scores[i], *flags, *tail])


def _lose_shapes(image: AnnotatedImage, task: Writing, *, areas: bool = True) -> None:
    objects = image.objects
    task.lose("masks", 0 if objects.masks is None else len(objects))
    if areas:
        _lose_areas(objects.areas, _box_areas(objects), "box", task)


def _lose_areas(areas: np.ndarray, expressed: np.ndarray, what: str, task: Writing) -> None:
    """Count areas that a reader of the file will not find again; detections have none of their own."""
    if not task.results:
        task.lose(f"areas other than those of the {what}", int((np.abs(areas - expressed) > 1e-3).sum()))


def _box_areas(objects: Objects) -> np.ndarray:
    return np.asarray((objects.boxes[:, 2:] - objects.boxes[:, :2]).prod(1))


def _corner_and_size(boxes: np.ndarray) -> np.ndarray:
    return np.asarray(np.round(np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1), DECIMALS))


def _scores(image: AnnotatedImage, task: Writing) -> list[float | None]:
    """Scores as a float32 needs them and no longer; None where an object has none, or they are not written."""
    scores = image.objects.scores
    if scores is None and task.results:
        raise DataError(f"{image.name}: detections have scores, but these objects have none; write them as annotations")
    if scores is None or not task.scored:
        return [None] * len(image.objects)
    return [None if math.isnan(score) else float(f"{score:.9g}") for score in scores.tolist()]


def _number(value: float) -> str:
    return f"{value:.{DECIMALS}f}".rstrip("0").rstrip(".")


def _text(score: float) -> str:
    return f"{score:.9g}"
