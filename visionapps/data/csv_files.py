"""CSV files: a row per object, columns found by their usual names."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visionapps.data.object_table import FLAGS, LARGEST, Category, ImageRow, Note, ObjectTable, TableBuilder, read_flag
from visionapps.errors import DataError

SUFFIXES = (".csv", ".tsv")
_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "filename", "file_name", "image_path", "path", "file", "img", "image_name", "imageid"),
    "x0": ("xmin", "x_min", "x0", "x1", "left", "bbox_xmin"),
    "y0": ("ymin", "y_min", "y0", "y1", "top", "bbox_ymin"),
    "x1": ("xmax", "x_max", "x1", "x2", "right", "bbox_xmax"),
    "y1": ("ymax", "y_max", "y1", "y2", "bottom", "bbox_ymax"),
    "x": ("x", "bbox_x"),
    "y": ("y", "bbox_y"),
    "w": ("w", "width", "bbox_width", "bbox_w"),
    "h": ("h", "height", "bbox_height", "bbox_h"),
    "class": ("class", "label", "class_name", "category", "name", "label_name", "labelname", "category_name"),
    "category_id": ("category_id", "class_id"),
    "score": ("score", "confidence", "conf", "probability"),
    "image_id": ("image_id",),
    "image_width": ("image_width", "img_width"),
    "image_height": ("image_height", "img_height"),
    "crowd": ("crowd", "iscrowd", "isgroupof"),
    "difficult": ("difficult", "ignore"),
    "truncated": ("truncated", "istruncated"),
    "area": ("area",),
    "id": ("id", "annotation_id"),
}
WRITTEN = (
    *("image", "image_id", "image_width", "image_height", "xmin", "ymin", "xmax", "ymax", "class", "category_id"),
    *("score", "crowd", "difficult", "truncated", "area", "id"),
)


def is_csv(path: Path) -> bool:
    """Whether a path names a CSV file, or a folder with some."""
    return path.suffix.lower() in SUFFIXES if path.is_file() else any(path.glob("*.csv"))


def read_csv(path: Path) -> ObjectTable:
    """Read a CSV file with a header, or one without: image, xmin, ymin, xmax, ymax, class. A row without a box lists
    an image without objects.

    Raises:
        DataError: the file is missing, is no CSV, or lacks a column.
    """
    if path.is_dir():
        files = sorted(path.glob("*.csv"))
        if len(files) != 1:
            raise DataError(f"{path}: has {len(files)} CSV files; name the one with the annotations")
        path = files[0]
    lines = _lines(path)
    header = [word.strip().lower() for word in lines[0]]
    columns = _columns(header)
    first = 1
    if not _has_box(columns) and len(header) == 6 and all(_is_number(word) or not word for word in header[1:5]):
        columns, first = {"image": 0, "x0": 1, "y0": 2, "x1": 3, "y1": 4, "class": 5}, 0
    if "image" not in columns or not _has_box(columns) or not {"class", "category_id"} & columns.keys():
        raise DataError(
            f"{path}: has the columns {', '.join(header)}, but an image, a box (xmin ymin xmax ymax, or x y width "
            "height) and a class are needed; name them so in the first line"
        )
    # Open Images: shares of the size of the image
    builder = TableBuilder("csv", relative="imageid" in header and "labelname" in header)
    builder.files.append(str(path))
    rows = _Rows(builder, columns, str(path))
    for number, words in enumerate(lines[first:], first + 1):
        if any(word.strip() for word in words):
            rows.read(words, number)
    return builder.table()


def _lines(path: Path) -> list[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            delimiter = max(",;\t", key=head.count)
            file.seek(0)
            lines = list(csv.reader(file, delimiter=delimiter))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is no CSV in UTF-8 ({error}); save it as one") from error
    if not lines or not lines[0]:
        raise DataError(f"{path}: is empty; the first line names the columns")
    return lines


def _columns(header: Sequence[str]) -> dict[str, int]:
    """Places of the columns that are there. In "x1 y1 x2 y2", x1 is the left side; in "x0 y0 x1 y1" the right one."""
    found: dict[str, int] = {}
    for key, names in _COLUMNS.items():
        for name in names:
            taken = (
                key in ("x1", "y1") and header.index(name) in (found.get("x0"), found.get("y0"))
                if name in header
                else True
            )
            if not taken:
                found[key] = header.index(name)
                break
    if "x0" in found and "x1" in found:  # then these are of the image
        for key, size in (("w", "image_width"), ("h", "image_height")):
            if key in found:
                found.setdefault(size, found[key])
    return found


def _has_box(columns: Mapping[str, int]) -> bool:
    return {"x0", "y0", "x1", "y1"} <= columns.keys() or {"x", "y", "w", "h"} <= columns.keys()


class _Rows:
    """Puts rows of a file into a builder."""

    def __init__(self, builder: TableBuilder, columns: Mapping[str, int], file: str) -> None:
        self.builder, self.columns, self.file = builder, columns, file
        self.images: dict[str, int] = {}
        corners = {"x0", "y0", "x1", "y1"} <= columns.keys()
        self.box = ("x0", "y0", "x1", "y1") if corners else ("x", "y", "w", "h")

    def read(self, words: Sequence[str], line: int) -> None:
        cells = {key: words[i].strip() if i < len(words) else "" for key, i in self.columns.items()}
        name = cells["image"]
        if not name:
            self._note(line, "the image has no name; write it")
            return
        if name not in self.images:
            self.images[name] = len(self.builder.images)
            size = (_whole(cells.get("image_height"), 0), _whole(cells.get("image_width"), 0))
            number = _whole(cells.get("image_id"), -1)
            place = f"{self.file}: line {line}"
            self.builder.images.append(ImageRow(name, number, (max(0, size[0]), max(0, size[1])), place))
        corners = [cells[key] for key in self.box]
        if not any(corners):
            return  # an image without objects
        try:
            box = [float(text) for text in corners]
        except ValueError:
            self._note(line, f"the box is {', '.join(map(repr, corners))}, but four numbers are expected; write them")
            return
        if self.box[0] == "x":
            box[2:] = [box[0] + box[2], box[1] + box[3]]
        try:
            extras = self._extras(cells, name)
            category = self._category(cells)
        except ValueError as error:
            self._note(line, str(error))
            return
        self.builder.add(box, category, line, extras=extras)

    def _category(self, cells: Mapping[str, str]) -> int:
        number = _whole(cells.get("category_id"), -1)
        name = cells.get("class") or None
        known = None if number < 0 else number
        if name is None and known is None:
            raise ValueError("the object has no class; write it")
        return self.builder.category(name if name is not None else number, Category(known, name))

    def _extras(self, cells: Mapping[str, str], name: str) -> dict[str, Any]:
        extras: dict[str, Any] = {"image": self.images[name]}
        extras |= {flag: read_flag(cells.get(flag), flag) for flag in FLAGS}
        extras["id"] = _whole(cells.get("id"), -1)
        extras["area"] = float(cells["area"]) if _is_number(cells.get("area")) else math.nan
        if cells.get("score"):
            extras["score"] = float(cells["score"]) if _is_number(cells["score"]) else math.nan
        return extras

    def _note(self, line: int, what: str) -> None:
        self.builder.notes.append(Note("unreadable", self.file, f"{self.file}: line {line}: {what}"))


def _is_number(text: str | None) -> bool:
    try:
        float(text or "")
    except ValueError:
        return False
    return True


def _whole(text: str | None, default: int) -> int:
    if not _is_number(text):
        return default
    value = float(text or "")
    return int(value) if value.is_integer() and abs(value) < LARGEST else default
