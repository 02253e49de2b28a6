"""Annotations as their files hold them, in columns: what the readers of all forms give, before anything is judged.

Shapes: I images, N objects, C categories.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from visionapps.data.object_dataset import Form

FLAGS = ("crowd", "difficult", "truncated")
LARGEST = 2**53  # whole numbers below it are exact as float64
_WORDS = {"true": True, "yes": True, "t": True, "y": True, "": False, "unspecified": False}  # how text says so
_WORDS |= {"false": False, "no": False, "f": False, "n": False}


class Category(NamedTuple):
    """A class as files call it."""

    id: int | None  # number, where the form has numbers
    name: str | None  # name, where the form has names

    def __str__(self) -> str:
        return self.name if self.name is not None else str(self.id)


class Note(NamedTuple):
    """Something that a reader could not read."""

    kind: str  # a field of ObjectPolicies
    file: str
    message: str


class ImageRow(NamedTuple):
    """An image as a file lists it."""

    name: str  # as written, with forward slashes; may lack its suffix
    number: int  # -1: the form has none
    size: tuple[int, int]  # H, W; (0, 0): the file does not say
    place: str  # file, and where in it
    hint: str = ""  # folder of the annotation file below the folder of annotations


def read_flag(value: Any, name: str) -> bool:
    """A flag as programs write it: any number but 0, true, yes; nothing at all is no.

    Raises:
        ValueError: it is neither; the text says so and names the flag.
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    text = value.strip().lower() if isinstance(value, str) else value
    if isinstance(text, str) and text in _WORDS:
        return _WORDS[text]
    try:
        number = float(text)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isnan(number):
        raise ValueError(f"{name} is {repr(value)[:40]}, but 0 or 1 is expected; correct it")
    return number != 0


@dataclass(frozen=True, eq=False)
class ObjectTable:
    """All annotations of a set, unjudged.

    Attributes:
        form: of the files.
        images: (I,) as listed.
        categories: (C,) as listed, or as met.
        image: (N,) int64 place in images; -1: the file does not list it.
        category: (N,) int64 place in categories; -1: the file does not list it.
        boxes: (N, 4) float64 x0 y0 x1 y1, numbers of the file.
        flags: (N,) bool each of crowd, difficult and truncated.
        areas: (N,) float64 pixels; NaN: the file does not say.
        ids: (N,) int64; -1: the file does not say.
        scores: (N,) float64; None: these are annotations.
        shapes: (N,) polygons [[x, y, x, y, ...], ...] or run lengths {"size", "counts"} as written, None where an
            object has neither; None: nobody has one.
        files: that were read.
        file: (N,) int64 place in files.
        line: (N,) int64 line of text, or number of the annotation in COCO.
        unknown: texts of categories that objects name and the file does not list, by object.
        relative: the numbers are shares of the size of the image.
        notes: what could not be read.
    """

    form: Form
    images: list[ImageRow]
    categories: list[Category]
    image: np.ndarray
    category: np.ndarray
    boxes: np.ndarray
    flags: dict[str, np.ndarray]
    areas: np.ndarray
    ids: np.ndarray
    scores: np.ndarray | None
    shapes: list[Any] | None
    files: list[str]
    file: np.ndarray
    line: np.ndarray
    unknown: dict[int, str] = field(default_factory=dict)
    relative: bool = False
    notes: list[Note] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.boxes)

    def place(self, row: int) -> str:
        """Where an object stands: the file, and the line or number in it."""
        word = "annotation" if self.form == "coco" else "line"
        return f"{self.files[int(self.file[row])]}: {word} {int(self.line[row])}"


@dataclass
class TableBuilder:
    """Gathers a table object by object, for forms that are read line by line.

    Attributes:
        form: of the files.
        images: as listed so far.
        categories: met so far; ``category`` gives the place of one.
        notes: what could not be read.
        relative: see ObjectTable.
    """

    form: Form
    images: list[ImageRow] = field(default_factory=list)
    categories: list[Category] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    relative: bool = False
    files: list[str] = field(default_factory=list)
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    _places: dict[Any, int] = field(default_factory=dict)

    def category(self, key: int | str, made: Category) -> int:
        """The place of a category, listed now if it was not before."""
        if key not in self._places:
            self._places[key] = len(self.categories)
            self.categories.append(made)
        return self._places[key]

    def add(self, box: Sequence[float], category: int, line: int, *, extras: Mapping[str, Any] | None = None) -> None:
        """Add an object to the image and file that were listed last.

        Args:
            box: four numbers.
            category: place in categories.
            line: in the file.
            extras: some of image, crowd, difficult, truncated, area, id, score, shape.
        """
        more = extras or {}
        flags = tuple(bool(more.get(name)) for name in FLAGS)
        numbers = (more.get("area", math.nan), more.get("id", -1), more.get("score"), more.get("shape"))
        image = more.get("image", len(self.images) - 1)
        self.rows.append((image, category, tuple(box), flags, *numbers, len(self.files) - 1, line))

    def table(self) -> ObjectTable:
        """Everything that was added."""
        columns = list(zip(*self.rows, strict=True)) or [()] * 10
        image, category, boxes, flags, areas, ids, scores, shapes, files, lines = columns
        flag = np.array(flags, bool).reshape(-1, len(FLAGS))
        known = [math.nan if score is None else score for score in scores]
        return ObjectTable(
            self.form,
            self.images,
            self.categories,
            np.array(image, np.int64),
            np.array(category, np.int64),
            np.array(boxes, np.float64).reshape(-1, 4),
            {name: flag[:, i] for i, name in enumerate(FLAGS)},
            np.array(areas, np.float64),
            np.array(ids, np.int64),
            np.array(known, np.float64) if any(score is not None for score in scores) else None,
            list(shapes) if any(shape is not None for shape in shapes) else None,
            self.files,
            np.array(files, np.int64),
            np.array(lines, np.int64),
            relative=self.relative,
            notes=self.notes,
        )


def join_tables(tables: Sequence[ObjectTable]) -> ObjectTable:
    """Several tables of one form as one: categories of one name are one; numbers that repeat are given anew."""
    if len(tables) == 1:
        return tables[0]
    categories: list[Category] = []
    places: dict[Any, int] = {}
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("image", "category", "file")}
    unknown: dict[int, str] = {}
    images, files, objects = 0, 0, 0
    for table in tables:
        index = np.full(len(table.categories) + 1, -1, np.int64)  # the last one serves category -1
        for i, category in enumerate(table.categories):
            key = category.name if category.name is not None else category.id
            if key not in places:
                places[key] = len(categories)
                categories.append(category)
            index[i] = places[key]
        columns["category"].append(index[table.category])
        columns["image"].append(np.where(table.image < 0, -1, table.image + images))
        columns["file"].append(table.file + files)
        unknown |= {row + objects: text for row, text in table.unknown.items()}
        images, files, objects = images + len(table.images), files + len(table.files), objects + len(table)
    together = {name: np.concatenate(parts) for name, parts in columns.items()}
    for name in ("boxes", "areas", "ids", "line"):
        together[name] = np.concatenate([getattr(table, name) for table in tables])
    return replace(
        tables[0],
        images=_renumbered([row for table in tables for row in table.images]),
        categories=categories,
        image=together["image"],
        category=together["category"],
        boxes=together["boxes"],
        flags={name: np.concatenate([table.flags[name] for table in tables]) for name in FLAGS},
        areas=together["areas"],
        ids=_renumbered_ids([table.ids for table in tables]),
        scores=_joined_scores(tables),
        shapes=_joined_shapes(tables),
        files=[name for table in tables for name in table.files],
        file=together["file"],
        line=together["line"],
        unknown=unknown,
        notes=[note for table in tables for note in table.notes],
    )


def _renumbered(rows: list[ImageRow]) -> list[ImageRow]:
    if len({row.number for row in rows}) == len(rows):
        return rows
    return [row._replace(number=i) for i, row in enumerate(rows, 1)]


def _renumbered_ids(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Numbers that are unique within each file but not among all are counted from 1; repeats within a file stay."""
    ids = np.concatenate(parts)
    within = sum(len(np.unique(part)) for part in parts)
    if len(np.unique(ids)) == within:
        return ids
    offset, moved = 0, []
    for part in parts:
        moved.append(np.where(part < 0, part, part + offset))
        offset += int(part.max(initial=0)) + 1
    return np.concatenate(moved)


def _joined_scores(tables: Iterable[ObjectTable]) -> np.ndarray | None:
    if all(table.scores is None for table in tables):
        return None
    return np.concatenate([np.full(len(t), math.nan) if t.scores is None else t.scores for t in tables])


def _joined_shapes(tables: Iterable[ObjectTable]) -> list[Any] | None:
    if all(table.shapes is None for table in tables):
        return None
    return [shape for t in tables for shape in (t.shapes if t.shapes is not None else [None] * len(t))]
