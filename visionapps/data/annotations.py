"""Annotations of a set of images, from files of any form, checked and in one shape.

Shapes: N objects, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from visionapps.data.coco_files import is_coco, read_coco
from visionapps.data.csv_files import is_csv, read_csv
from visionapps.data.dataset import Problem
from visionapps.data.images import Header
from visionapps.data.object_classes import Matching, match_classes
from visionapps.data.object_dataset import Form, ObjectDataset
from visionapps.data.object_listing import Listing, list_images
from visionapps.data.object_masks import Polygon, box_mask, mask_area, polygons_of, shape_mask
from visionapps.data.object_problems import Sheet, edges, everywhere, judge
from visionapps.data.object_table import Category, ObjectTable
from visionapps.data.voc_files import is_voc, read_voc
from visionapps.data.yolo_files import is_yolo, read_yolo
from visionapps.errors import ConfigError, DataError
from visionapps.masks import CocoRle
from visionapps.objects import Objects
from visionapps.structures import LabelSpace

IGNORED = "ignored"  # in the tally: objects of an ignored class that were not spread


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """An image and its objects, as annotated or as detected.

    Attributes:
        name: path below the folder of images, with suffix and forward slashes.
        image_id: its number in COCO files.
        size: (H, W); (0, 0): nobody says.
        objects: what is in it.
        places: where each object stands: file, and line or number; empty for detections.
        polygons: outlines of each object in half-open pixels, where its file had polygons; None: nobody had.
        truncated: (N,) bool, VOC's word for an object cut by the edge of the image or by another; None: nobody is.
    """

    name: str
    image_id: int
    size: tuple[int, int]
    objects: Objects
    places: tuple[str, ...] = ()
    polygons: tuple[tuple[Polygon, ...] | None, ...] | None = None
    truncated: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class AnnotationSet:
    """The annotations of a set of images.

    Attributes:
        images: by name; those without objects too.
        labels: the label space.
        category_ids: (K,) the number of each class in COCO files.
        problems: everything that is wrong, whatever became of it.
        tally: how many objects met which fate, by kind of problem, action and class.
        headers: what the image files say about themselves, by name; empty if nobody looked.
        form: of the files.
    """

    images: tuple[AnnotatedImage, ...]
    labels: LabelSpace
    category_ids: tuple[int, ...]
    problems: tuple[Problem, ...] = ()
    tally: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    headers: Mapping[str, Header] = field(default_factory=dict)
    form: Form = "coco"

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that the policies do not forgive."""
        return tuple(p for p in self.problems if p.action == "error")


class _Parts(NamedTuple):
    """Columns of the objects that stay, sorted by image."""

    rows: np.ndarray  # (M,) of the table
    labels: np.ndarray
    masks: list[CocoRle] | None
    areas: np.ndarray
    polygons: list[tuple[Polygon, ...] | None] | None


def find_form(path: Path, asked: str = "auto") -> Form:
    """The form of the files at a path.

    Raises:
        DataError: there is nothing, or nothing of a known form, or several.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give the annotations")
    if asked != "auto":
        return asked  # type: ignore[return-value]
    tests: dict[Form, Any] = {"coco": is_coco, "voc": is_voc, "csv": is_csv, "yolo": is_yolo}
    found = [form for form, test in tests.items() if test(path)]
    if not found:
        raise DataError(
            f"{path}: no annotations here; expected a COCO .json, a folder of VOC .xml, a folder of YOLO .txt or a "
            "data.yaml, or a .csv"
        )
    if len(found) > 1:
        raise DataError(f"{path}: holds annotations in the forms {' and '.join(found)}; choose one with form")
    return found[0]


def read_table(path: Path, form: str = "auto", *, shapes: bool = True, images: Path | None = None) -> ObjectTable:
    """Annotations as their files hold them; see the readers of each form.

    Args:
        path: of the annotations.
        form: of the files; auto: seen from what is there.
        shapes: keep polygons and run lengths.
        images: their folder, if it is at hand.

    Raises:
        DataError: nothing can be read there.
    """
    found = find_form(path, form)
    if found == "coco":
        return read_coco(path, shapes=shapes)
    if found == "voc":
        return read_voc(path)
    return read_yolo(path, shapes=shapes, images=images) if found == "yolo" else read_csv(path)


def read_annotations(dataset: ObjectDataset, *, spread: bool = True) -> AnnotationSet:
    """Read, place, check and mend the annotations of a dataset; of image files only headers are read.

    Args:
        dataset: folders, form, classes, origin and policies; where ``images`` is empty no image file is looked for.
        spread: an object of a class of ``dataset.ignore`` becomes one of every class, as training and evaluation want
            it; False: each stays one object, a difficult one of a class of its own, counted in the tally.

    Returns:
        What the policies left, and all problems. Annotations that a policy refuses are not among the objects.

    Raises:
        ConfigError: the class table contradicts itself or the files.
        DataError: there are no annotations, or no image belongs to them.
    """
    images = Path(dataset.images) if dataset.images else None
    table = read_table(Path(dataset.annotations), dataset.form, shapes=dataset.masks, images=images)
    matching = _matching(table, dataset, spread)
    listing = list_images(table, dataset)
    table = replace(table, image=np.append(listing.index, -1)[table.image])
    sheet = judge(table, dataset, matching, listing.names, listing.sizes)
    sheet.count(IGNORED, np.flatnonzero(sheet.keep & np.append(matching.alone, False)[table.category]), "own class")
    parts = _parts(sheet, dataset, listing, len(matching.labels))
    notes = [Problem(n.kind, n.file, n.message, dataset.policies.action(n.kind)) for n in table.notes]
    unnamed = _unnamed(table.categories, dataset)
    return AnnotationSet(
        tuple(_images(sheet, listing, parts)),
        matching.labels,
        matching.category_ids,
        (*notes, *listing.problems, *unnamed, *sheet.problems),
        dict(sheet.tally),
        listing.headers,
        table.form,
    )


def _matching(table: ObjectTable, dataset: ObjectDataset, spread: bool) -> Matching:
    """What the categories mean; where files could not be read, that is why a class is missing."""
    try:
        keys = dataset.leave_out, dataset.ignore, dataset.annotations
        return match_classes(table.categories, dataset.classes, *keys, spread=spread)
    except ConfigError as error:
        lost = [note.message for note in table.notes if note.kind == "unreadable"]
        if not lost:
            raise
        text = f"{lost[0]} ({len(lost)} such places)"
        raise DataError(f"{text}; {str(error).removeprefix(f'{dataset.annotations}: ')}") from error


def _unnamed(categories: Sequence[Category], dataset: ObjectDataset) -> list[Problem]:
    if dataset.classes is not None or not categories or any(c.name is not None for c in categories):
        return []
    text = (
        f"{dataset.annotations}: the files number their classes and do not name them; add a data.yaml or classes.txt "
        "with the names, or set classes"
    )
    return [Problem("unnamed_classes", dataset.annotations, text, "warning")]


def _parts(sheet: Sheet, dataset: ObjectDataset, listing: Listing, classes: int) -> _Parts:
    rows = np.flatnonzero(sheet.keep & (sheet.label >= 0))
    labels = sheet.label[rows]
    anywhere = np.flatnonzero(everywhere(sheet))
    rows = np.concatenate([rows, np.repeat(anywhere, classes)])
    labels = np.concatenate([labels, np.tile(np.arange(classes), len(anywhere))])
    order = np.lexsort([rows, sheet.table.image[rows]])
    rows, labels = rows[order], labels[order]
    masks, polygons = _masks(sheet, dataset, rows, listing)
    kept = sheet.keep[rows]
    rows, labels = rows[kept], labels[kept]
    boxes = sheet.boxes[rows]
    if masks is not None:
        masks = [m for m, good in zip(masks, kept.tolist(), strict=True) if good]
    areas = sheet.table.areas[rows].copy()
    lacking = np.flatnonzero(~((areas > 0) & np.isfinite(areas)))
    if masks is None:
        areas[lacking] = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))[lacking]
    else:
        areas[lacking] = mask_area([masks[i] for i in lacking.tolist()])
    if polygons is not None:
        polygons = [p for p, good in zip(polygons, kept.tolist(), strict=True) if good]
    return _Parts(rows, labels, masks, areas, polygons)


def _masks(
    sheet: Sheet, dataset: ObjectDataset, rows: np.ndarray, listing: Listing
) -> tuple[list[CocoRle] | None, list[tuple[Polygon, ...] | None] | None]:
    """A mask and the polygons of each row, or None if no object has any."""
    shapes, table = sheet.table.shapes, sheet.table
    if shapes is None or not any(shapes[row] is not None for row in rows.tolist()):
        return None, None
    shift = edges(table.form, dataset.origin, dataset.inclusive)[0]
    masks: list[CocoRle] = []
    polygons: list[tuple[Polygon, ...] | None] = []
    failed: dict[int, str] = {}
    for row in rows.tolist():
        h, w = listing.sizes[table.image[row]].tolist()
        outline: tuple[Polygon, ...] | None = None
        mask = None
        try:
            if shapes[row] is not None:
                outline = _in_pixels(shapes[row], (w, h) if table.relative else (1, 1), shift)
                mask = shape_mask(shapes[row] if outline is None else outline, (h, w))
        except DataError as error:
            failed[row] = str(error)
        masks.append(mask if mask is not None else box_mask(sheet.boxes[row], (h, w)))
        polygons.append(outline if mask is not None else None)
    bad, lacking = np.zeros(len(table), bool), np.zeros(len(table), bool)
    bad[list(failed)] = True
    lacking[[row for row in rows.tolist() if shapes[row] is None]] = True
    sheet.report("bad_mask", bad, lambda row: f"its mask cannot be read: {failed[row]}")
    sheet.report(
        "missing_mask",
        lacking,
        lambda row: (
            "it has no mask, but others have; draw it, set policies.missing_mask: fix (takes the box), or masks: false"
        ),
    )
    return masks, polygons if any(p is not None for p in polygons) else None


def _in_pixels(shape: Any, scale: tuple[int, int], shift: float) -> tuple[Polygon, ...] | None:
    """The polygons of a shape in half-open pixels; None for run lengths."""
    if isinstance(shape, Mapping):
        return None
    found = []
    for part in polygons_of(shape):
        points = np.array(part).reshape(-1, 2) * scale - shift
        found.append(tuple(np.round(points, 6).ravel().tolist()))
    return tuple(found)


def _images(sheet: Sheet, listing: Listing, parts: _Parts) -> list[AnnotatedImage]:
    table, rows = sheet.table, parts.rows
    used = [i for i, name in enumerate(listing.names) if name]
    used.sort(key=lambda i: listing.names[i])
    image = table.image[rows]
    begins, ends = np.searchsorted(image, used), np.searchsorted(image, used, side="right")
    boxes, flags = sheet.boxes[rows], {name: flag[rows] for name, flag in table.flags.items()}
    difficult, ids = sheet.difficult[rows], sheet.ids[rows]
    scores = None if table.scores is None else table.scores[rows]
    places = [table.place(row) for row in rows.tolist()]
    found = []
    for i, begin, end in zip(used, begins.tolist(), ends.tolist(), strict=True):
        part = slice(begin, end)
        objects = Objects(
            boxes[part],
            parts.labels[part],
            None if scores is None else scores[part],
            flags["crowd"][part],
            difficult[part],
            parts.areas[part],
            ids[part],
            None if parts.masks is None else tuple(parts.masks[part]),
        )
        outlines = None if parts.polygons is None else tuple(parts.polygons[part])
        cut = flags["truncated"][part] if flags["truncated"].any() else None
        height, width = listing.sizes[i].tolist()
        number = listing.numbers[i]
        place = tuple(places[part])
        found.append(AnnotatedImage(listing.names[i], number, (height, width), objects, place, outlines, cut))
    return found
