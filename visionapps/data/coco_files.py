"""COCO files: the annotations of a set in one JSON, and lists of results."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from visionapps.data.object_table import FLAGS, LARGEST, Category, ImageRow, Note, ObjectTable, join_tables, read_flag
from visionapps.errors import DataError

_WHOLE = re.compile(r"-?[0-9]{1,15}")
_FLAG_KEYS = {"crowd": ("iscrowd",), "difficult": ("ignore", "difficult"), "truncated": ("truncated",)}


def is_coco(path: Path) -> bool:
    """Whether a path names a JSON file, or a folder with some."""
    return path.suffix.lower() == ".json" if path.is_file() else any(path.rglob("*.json"))


def read_coco(path: Path, *, shapes: bool = True) -> ObjectTable:
    """Read a COCO file, or all of a folder as one set.

    Args:
        path: a JSON file of images, annotations and categories, or a folder; images of a file in a subfolder are
            looked for in the subfolder of that name first.
        shapes: keep polygons and run lengths.

    Raises:
        DataError: a file is missing, is no JSON or not of this form.
    """
    if path.is_file():
        return _read_file(path, "", shapes)
    files = sorted(p for p in path.rglob("*.json") if not p.name.startswith("."))
    if not files:
        raise DataError(f"{path}: no COCO file here; expected a .json file, or a folder with some")
    hints = [PurePosixPath(p.relative_to(path).parent.as_posix()) for p in files]
    return join_tables(
        [_read_file(p, "" if str(h) == "." else str(h), shapes) for p, h in zip(files, hints, strict=True)]
    )


def load_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: it is missing or no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        raise DataError(f"{path}: is no valid JSON ({error}); the file may be cut off: write it again") from error


def _read_file(path: Path, hint: str, shapes: bool) -> ObjectTable:
    data = load_json(path)
    if isinstance(data, list):
        raise DataError(
            f"{path}: is a list, as COCO results are, but annotations are expected: a mapping with images, annotations "
            "and categories"
        )
    lists = {}
    for key in ("images", "annotations", "categories"):
        part = data.get(key) if isinstance(data, dict) else None
        if not isinstance(part, list):
            raise DataError(f"{path}: has no list {key!r}; a COCO file has images, annotations and categories")
        lists[key] = part
    notes: list[Note] = []
    images, numbers = _images(lists["images"], path, hint, notes)
    categories, places = _categories(lists["categories"], path, notes)
    rows = [row for row in lists["annotations"] if isinstance(row, dict)]
    if len(rows) < len(lists["annotations"]):
        count = len(lists["annotations"]) - len(rows)
        notes.append(Note("unreadable", str(path), f"{path}: {count} annotations are no mappings; remove them"))
    boxes, readable = _boxes(rows)
    ids = _whole([row.get("id", -1) for row in rows])
    for i in np.flatnonzero(~readable).tolist():
        text = f"{path}: annotation {_name(rows[i], i)}: bbox is {str(rows[i].get('bbox'))[:60]}, but x, y, width and"
        notes.append(Note("unreadable", str(path), f"{text} height are expected; write four numbers"))
    flags, strange = _flags(rows)
    for i, text in sorted(strange.items()):
        notes.append(Note("unreadable", str(path), f"{path}: annotation {_name(rows[i], i)}: {text}"))
        readable[i] = False
    if not readable.all():
        rows = [row for row, good in zip(rows, readable.tolist(), strict=True) if good]
        boxes, ids, flags = boxes[readable], ids[readable], {name: flag[readable] for name, flag in flags.items()}
    category = [places.get(coco_key(row.get("category_id")), -1) for row in rows]
    found = [row.get("segmentation") or None for row in rows] if shapes else []
    scores = [row.get("score") for row in rows]
    return ObjectTable(
        "coco",
        images,
        categories,
        np.array([numbers.get(coco_key(row.get("image_id")), -1) for row in rows], np.int64),
        np.array(category, np.int64),
        boxes,
        flags,
        _numbers([row.get("area") for row in rows]),
        ids,
        _numbers(scores) if any(score is not None for score in scores) else None,
        found if any(shape is not None for shape in found) else None,
        [str(path)],
        np.zeros(len(rows), np.int64),
        np.where(ids < 0, np.arange(len(rows)), ids),
        {i: str(rows[i].get("category_id")) for i, place in enumerate(category) if place < 0},
        notes=notes,
    )


def _images(
    rows: Sequence[Any], path: Path, hint: str, notes: list[Note]
) -> tuple[list[ImageRow], dict[int | str | None, int]]:
    """The images, and the place of each number."""
    images: list[ImageRow] = []
    places: dict[int | str | None, int] = {}
    for i, row in enumerate(rows):
        name, number = (row.get("file_name"), row.get("id")) if isinstance(row, dict) else (None, None)
        if not isinstance(name, str) or not name or coco_key(number) is None:
            text = f"{path}: image {i} of the list has no id or no file_name; give it both, or remove it"
            notes.append(Note("unreadable", str(path), text))
            continue
        key = coco_key(number)
        size = (_side(row.get("height")), _side(row.get("width")))
        images.append(ImageRow(name, key if isinstance(key, int) else -1, size, f"{path}: image {number}", hint))
        if key in places:
            text = f"{path}: image {number}: two images have this number ({images[places[key]].name} and {name}); "
            notes.append(Note("duplicate_image", str(path), text + "objects go to the first; number them apart"))
        places.setdefault(key, len(images) - 1)
    return images, places


def _categories(
    rows: Sequence[Any], path: Path, notes: list[Note]
) -> tuple[list[Category], dict[int | str | None, int]]:
    found: dict[int | str | None, Category] = {}
    numbers: dict[str, int | str] = {}
    for i, row in enumerate(rows):
        number = coco_key(row.get("id")) if isinstance(row, dict) else None
        if number is None:
            text = f"{path}: category {i} of the list has no id; give it a whole number"
            notes.append(Note("unreadable", str(path), text))
        elif number in found:
            text = f"{path}: category {number}: two categories have this number; number them apart"
            notes.append(Note("unreadable", str(path), text))
        else:
            name = str(number if row.get("name") is None else row["name"])
            if name in numbers:
                text = f"{path}: category {number}: is called {name!r} like category {numbers[name]}, so both are one "
                text += "class; name one of them otherwise, or keep them apart by ids in classes"
                notes.append(Note("shared_name", str(path), text))
            numbers.setdefault(name, number)
            found[number] = Category(number if isinstance(number, int) else None, name)
    ordered = sorted(found, key=lambda key: (not isinstance(key, int), key))
    return [found[key] for key in ordered], {key: i for i, key in enumerate(ordered)}


def _boxes(rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4) x0 y0 x1 y1, and (N,) bool which could be read; a missing box is that of the polygons."""
    given = [row.get("bbox") for row in rows]
    readable = np.ones(len(rows), bool)
    try:
        if any(isinstance(box, str) for box in given):
            raise ValueError
        boxes = np.array(given, np.float64).reshape(len(rows), 4)
    except (ValueError, TypeError, OverflowError):  # some are no four numbers: find them one by one
        boxes = np.zeros((len(rows), 4))
        for i, box in enumerate(given):
            one = _around(rows[i].get("segmentation")) if box is None or box == [] else _four(box)
            readable[i] = one is not None
            boxes[i] = one or 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # infinities are reported later
        boxes[:, 2:] += boxes[:, :2]
    return boxes, readable


def _four(box: Any) -> tuple[float, ...] | None:
    good = isinstance(box, list) and len(box) == 4 and all(_is_number(value) for value in box)
    return tuple(map(float, box)) if good else None


def _around(shape: Any) -> tuple[float, ...] | None:
    """x, y, width and height of polygons."""
    if not isinstance(shape, list) or not shape:
        return None
    flat = [value for part in shape if isinstance(part, list) for value in part]
    if len(flat) < 6 or len(flat) % 2 or not all(_is_number(value) for value in flat):
        return None
    x, y = flat[0::2], flat[1::2]
    return min(x), min(y), max(x) - min(x), max(y) - min(y)


def _flags(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """(N,) bool of each flag, and what is wrong with those that cannot be read, by row."""
    flags = {name: np.zeros(len(rows), bool) for name in FLAGS}
    strange: dict[int, str] = {}
    for name, keys in _FLAG_KEYS.items():
        for i, row in enumerate(rows):
            for key in keys:
                value = row.get(key)
                if value is None or value is False or value == 0:  # nearly all
                    continue
                try:
                    flags[name][i] |= read_flag(value, name)
                except ValueError as error:
                    strange.setdefault(i, str(error))
    return flags, strange


def _numbers(values: Sequence[Any]) -> np.ndarray:
    """(N,) float64, NaN for what is no number."""
    return np.array([float(value) if _is_number(value) else math.nan for value in values], np.float64)


def _whole(values: Sequence[Any]) -> np.ndarray:
    """(N,) int64, -1 for what is no whole number."""
    keys = [coco_key(value) for value in values]
    return np.array([key if isinstance(key, int) else -1 for key in keys], np.int64)


def coco_key(value: Any) -> int | str | None:
    """An id as files mean it: 3, 3.0 and "3" are one."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return value if abs(value) < LARGEST else str(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < LARGEST else None
    text = str(value).strip()
    return int(text) if _WHOLE.fullmatch(text) else text or None


def _name(row: Mapping[str, Any], place: int) -> str:
    return str(row["id"]) if "id" in row else f"number {place} of the list"


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < LARGEST


def _side(value: Any) -> int:
    key = coco_key(value)
    return key if isinstance(key, int) and key > 0 else 0
