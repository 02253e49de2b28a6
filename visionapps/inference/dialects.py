"""How a competition wants its run-length CSV: a value that is written down once, here or in a small YAML file."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from visionapps.errors import ConfigError, DataError
from visionapps.masks import Order
from visionapps.structures import IGNORE

Encoding = Literal["pairs", "coco", "coco_zlib"]
Nearest = Literal["pillow", "opencv"]
Absent = Literal["row", "skip"]
Size = tuple[int, int]

_SIZE_CELLS = ("height", "width")
_PLACEHOLDERS = ("id", "class", "mask", *_SIZE_CELLS)


class RowParts(NamedTuple):
    """What the cells of one row say."""

    image: str
    label: int | None  # None: rows have no class
    text: str  # of the runs; "" when there are none
    size: Size | None  # None: rows do not tell it


@dataclass(frozen=True)
class Dialect:
    """The rules of one submission file.

    Attributes:
        order: "row" reads pixels left to right and then down, "column" down and then right.
        base: the number of the first pixel, 1 or 0.
        relative: starts count from the end of the run before (SIIM-ACR).
        encoding: "pairs" of start and length; "coco", the compressed counts of a COCO file; or "coco_zlib", the same
            deflated and in base 64 (Open Images, Human Protein Atlas).
        header: the titles of the columns.
        row_id: the cells of a row, apart by commas. "{id}" alone merges all classes into one binary row per image; with
            "{class}" in it, in the same cell or in one of its own, every class gets a row. "{height}" and "{width}" are
            the size of the mask, "{mask}" its runs, which are the last cell if nothing else is said. Other characters
            stand for themselves: "{id}.jpg_{class}", "{id},{class}", "{id},{mask},{class}".
        image_id: a regular expression with one group, matched at the start of a mask's file name without its suffix;
            the group is the {id}.
        labels: the labels that are written, ascending or not; None: all but the background 0.
        names: what stands for each of the labels in {class}; None: their numbers.
        instances: 0 writes all of a class in one row; 4 or 8 give every piece that hangs together, by edges or by edges
            and corners, a row of its own with the same id.
        absent: "row" writes the empty text for what does not occur, "skip" leaves the row out.
        overlap: whether rows of an image may claim the same pixel, which is a matter of verification only.
        empty: the text of a row without foreground.
        resize: (H, W) that masks are brought to by nearest neighbour, or None to keep their size.
        nearest: whose nearest neighbour: "pillow" takes the pixel under the centre of the new one, "opencv" the one
            under its upper left corner (INTER_NEAREST).
    """

    order: Order
    base: int = 1
    relative: bool = False
    encoding: Encoding = "pairs"
    header: tuple[str, ...] = ("ImageId", "EncodedPixels")
    row_id: str = "{id}"
    image_id: str = "(.+)"
    labels: tuple[int, ...] | None = None
    names: tuple[str, ...] | None = None
    instances: Literal[0, 4, 8] = 0
    absent: Absent = "row"
    overlap: bool = False
    empty: str = ""
    resize: Size | None = None
    nearest: Nearest = "pillow"

    def __post_init__(self) -> None:
        for name in ("header", "labels", "names", "resize"):  # YAML brings lists
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        _check_pixels(self)
        _check_ids(self)

    @property
    def per_class(self) -> bool:
        """Whether every class has a row of its own."""
        return "{class}" in self.row_id

    def written(self, classes: int | None) -> tuple[int, ...]:
        """The labels that are foreground, for a model of so many classes (None: not known)."""
        if self.labels is not None:
            return self.labels
        if classes is not None:
            if not 2 <= classes <= IGNORE:
                raise ConfigError(f"submission: {classes} classes; 2 to {IGNORE} are possible, the background included")
            return tuple(range(1, classes))
        if self.per_class:
            raise ConfigError("submission: how many classes have rows is not known; give --classes or --labels")
        return tuple(range(1, IGNORE))

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The form of every cell of a row, the one of the runs included."""
        cells = tuple(self.row_id.split(","))
        return cells if "{mask}" in self.row_id else (*cells, "{mask}")

    @property
    def tells_size(self) -> bool:
        """Whether rows say how large their mask is."""
        return "{height}" in self.row_id and "{width}" in self.row_id

    def image_of(self, name: str) -> str:
        """The {id} of a mask's file name (without suffix)."""
        return image_of(name, self.image_id)

    def key(self, image: str, label: int) -> str:
        """What tells a row from others: its cells of {id} and {class}, apart by commas."""
        return _fill(self._key_form, {"id": image, "class": self.class_text(label)})

    def class_text(self, label: int) -> str:
        """What stands for a label in {class}."""
        if self.names is None or self.labels is None or label not in self.labels:
            return str(label)
        return self.names[self.labels.index(label)]

    def cells(self, image: str, label: int, text: str, size: Size) -> tuple[str, ...]:
        """The cells of a row; without runs the one of the mask holds the empty text alone."""
        values = {"id": image, "class": self.class_text(label), "mask": text}
        values |= dict(zip(_SIZE_CELLS, map(str, size), strict=True))
        return tuple(self.empty if "{mask}" in form and not text else _fill(form, values) for form in self.columns)

    def split(self, cells: Sequence[str], *, masks: bool = True) -> RowParts:
        """What the cells of a row say.

        Args:
            cells: as many as the header has titles.
            masks: whether the cell of the runs is looked at.

        Raises:
            DataError: a cell does not have its form, and which.
        """
        found = {"mask": ""}
        for title, form, pattern, cell in zip(self.header, self.columns, self._patterns, cells, strict=True):
            if "{mask}" in form and (not masks or cell.strip() == self.empty):
                continue
            match = pattern.fullmatch(cell)
            if not match:
                what = "id" if "{id}" in form else f"column {title}:"
                raise DataError(f"{what} {cell[:80]!r} does not have the form {form}{self._known_names(form)}")
            found |= match.groupdict()
        size = (int(found["height"]), int(found["width"])) if self.tells_size else None
        cell = next((cell for form, cell in zip(self.columns, cells, strict=True) if "{class}" in form), "")
        return RowParts(found["id"], self._label_of(found.get("class"), cell), found["mask"], size)

    def split_key(self, key: str) -> tuple[str, int | None]:
        """The image and, where every class has a row, the label of a row's key."""
        found = _pattern(self._key_form, self.names).fullmatch(key)
        if not found:
            raise DataError(f"id {key!r} does not have the form {self._key_form}{self._known_names(self._key_form)}")
        return found["id"], self._label_of(found.groupdict().get("class"), key)

    @cached_property
    def _key_form(self) -> str:
        return ",".join(form for form in self.columns if "{id}" in form or "{class}" in form)

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str], ...]:
        return tuple(_pattern(form, self.names) for form in self.columns)

    def _label_of(self, text: str | None, cell: str) -> int | None:
        if text is None:
            return None
        if self.names is not None and self.labels is not None:
            return self.labels[self.names.index(text)]
        if text != str(int(text)):
            raise DataError(  # such an id would match no other file
                f"id {cell[:80]!r} holds the class {text}, which would be written as {int(text)}; if the competition "
                f"wants that, give labels and names: --labels 1,2 --names {','.join(k.zfill(len(text)) for k in '12')}"
            )
        return int(text)

    def _known_names(self, form: str) -> str:
        shown = self.names is not None and "{class}" in form
        return f"; its classes are {', '.join(self.names or ())}" if shown else ""


def image_of(name: str, rule: str) -> str:
    """The id of an image in the file name (without suffix) of its mask.

    Raises:
        DataError: the rule, a regular expression with one group, finds none.
    """
    found = re.match(rule, name)
    if not found or not found[1]:
        raise DataError(
            f"{name}: the id rule {rule!r} finds no id in this file name; rename the mask, or give another --image-id"
        )
    return found[1]


def _fill(form: str, values: Mapping[str, str]) -> str:
    # In one pass: an id may hold braces itself.
    return re.sub(r"\{(id|class|mask|height|width)\}", lambda found: values[found[1]], form)


def _pattern(form: str, names: Sequence[str] | None) -> re.Pattern[str]:
    """What matches a cell of that form, with a group for each of its placeholders."""
    digits = "[0-9]+"
    # The longest first: one name may be the beginning of another.
    classes = digits if names is None else "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    groups = {"id": "(?s:.+)", "class": classes, "mask": "(?s:.*)", "height": digits, "width": digits}
    pieces = re.split(r"\{(\w+)\}", form)
    return re.compile(
        "".join(f"(?P<{piece}>{groups[piece]})" if i % 2 else re.escape(piece) for i, piece in enumerate(pieces))
    )


def load_dialect(name: str) -> Dialect:
    """A built-in dialect by name, or one from a YAML file whose keys are the attributes of Dialect.

    Raises:
        ConfigError: there is no such name or file, or the file cannot be read as a dialect.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    path, data = read_rules(name, BUILT_IN)
    try:
        return dialect_from_dict(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def read_rules(name: str, built_in: Iterable[str]) -> tuple[Path, Any]:
    """The plain data of a dialect's YAML file, and its path.

    Raises:
        ConfigError: there is no such file, or it is no YAML.
    """
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"dialect {name!r}: neither built in ({', '.join(built_in)}) nor a YAML file; check the path")
    import yaml

    try:
        return path, yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no readable YAML ({error})") from error


def dialect_from_dict(data: Any) -> Dialect:
    """A dialect from plain data.

    Raises:
        ConfigError: a key is unknown or missing, or a value cannot work.
    """
    check_keys(data, [field.name for field in fields(Dialect)])
    if "order" not in data:
        raise ConfigError("the key order is missing; give row or column")
    return Dialect(**data)


def check_keys(data: Any, known: Sequence[str]) -> None:
    """Raise ConfigError unless data is a mapping of known keys."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"a mapping with the keys {', '.join(known)} is expected, got {type(data).__name__}")
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"unknown key {key!r}; {hint}")


def _check_pixels(dialect: Dialect) -> None:
    if dialect.order not in ("row", "column"):
        raise ConfigError(f"dialect: order {dialect.order!r} is unknown; give row or column")
    if dialect.base not in (0, 1) or isinstance(dialect.base, bool):
        raise ConfigError(f"dialect: base {dialect.base!r} must be 0 or 1, the number of the first pixel")
    for name in ("relative", "overlap"):
        if not isinstance(getattr(dialect, name), bool):
            raise ConfigError(f"dialect: {name} {getattr(dialect, name)!r} must be true or false")
    _check_choices(dialect)
    if not isinstance(dialect.empty, str):
        raise ConfigError(f"dialect: empty {dialect.empty!r} must be text; write it in quotes")
    check_labels(dialect.labels)
    check_resize(dialect.resize)


def _check_choices(dialect: Dialect) -> None:
    for name, known in (("encoding", Encoding), ("absent", Absent), ("nearest", Nearest)):
        if getattr(dialect, name) not in get_args(known):
            raise ConfigError(
                f"dialect: {name} {getattr(dialect, name)!r} is unknown; known are {', '.join(get_args(known))}"
            )
    instances: Any = dialect.instances
    if type(instances) is not int or instances not in (0, 4, 8):
        raise ConfigError(
            f"dialect: instances {instances!r} must be 0 (a class is one row), 4 or 8 (neighbours of a pixel)"
        )
    if dialect.encoding != "pairs" and (dialect.order != "column" or dialect.relative):
        raise ConfigError(
            f"dialect: encoding {dialect.encoding!r} reads by column and knows no relative starts; give order: column"
        )


def check_labels(labels: object, owner: str = "dialect") -> None:
    """Raise ConfigError unless these are labels, or None."""
    if labels is not None and not (
        isinstance(labels, tuple) and 1 <= len(set(labels)) == len(labels) <= 255 and all(map(_is_label, labels))
    ):
        raise ConfigError(f"{owner}: labels {labels!r} must be 1 to 255 different whole numbers from 0 to 255")


def check_resize(resize: object, owner: str = "dialect") -> None:
    """Raise ConfigError unless this is a size, or None."""
    if resize is not None and not (
        isinstance(resize, tuple) and len(resize) == 2 and all(type(side) is int and side > 0 for side in resize)
    ):
        raise ConfigError(f"{owner}: resize {resize!r} must be two positive whole numbers, height and width")


def _is_label(value: object) -> bool:
    return type(value) is int and 0 <= value <= 255


def _check_ids(dialect: Dialect) -> None:
    header, row_id = dialect.header, dialect.row_id
    if not (isinstance(header, tuple) and len(header) >= 2 and all(isinstance(title, str) for title in header)):
        raise ConfigError(
            f"dialect: header {header!r} must be two titles, of the id column and of the mask column, or more"
        )
    twice = next((title for title in header if header.count(title) > 1), None)
    if twice is not None:
        raise ConfigError(f"dialect: both columns are titled {twice!r}; their titles must differ")
    parts = re.findall(r"\{(.*?)\}", row_id) if isinstance(row_id, str) else []
    if parts.count("id") != 1 or len(set(parts)) != len(parts) or not set(parts) <= set(_PLACEHOLDERS):
        raise ConfigError(
            f"dialect: row_id {row_id!r} must hold {{id}} once, and {{class}}, {{height}}, {{width}} and {{mask}} at "
            "most once"
        )
    if ("height" in parts) != ("width" in parts):
        raise ConfigError(f"dialect: row_id {row_id!r} has one of {{height}} and {{width}}; give both, or none")
    kinds = ("{mask}",), ("{id}", "{class}"), ("{height}", "{width}")
    if any(sum(any(part in form for part in kind) for kind in kinds) > 1 for form in dialect.columns):
        raise ConfigError(
            f"dialect: row_id {row_id!r} has {{mask}} or a size in one cell with others; part it by commas"
        )
    if len(dialect.columns) != len(header):
        raise ConfigError(
            f"dialect: the rows {','.join(dialect.columns)} have {len(dialect.columns)} cells, but the header has "
            f"{len(header)} titles ({', '.join(header)}); both must be equal"
        )
    _check_names(dialect.names, dialect.labels)
    check_image_id(dialect.image_id)


def _check_names(names: Any, labels: tuple[int, ...] | None) -> None:
    if names is None:
        return
    if not (isinstance(names, tuple) and all(isinstance(name, str) and name for name in names)):
        raise ConfigError(f"dialect: names {names!r} must be texts, one for each of the labels; quote numbers")
    if labels is None or len(names) != len(labels) or len(set(names)) != len(names):
        raise ConfigError(
            f"dialect: {len(names)} names ({', '.join(names)}) for {len(labels or ())} labels; give labels, and a "
            "different name for each"
        )


def check_image_id(rule: str, owner: str = "dialect") -> None:
    """Raise ConfigError unless this is a regular expression with one group."""
    try:
        groups = re.compile(rule).groups
    except (re.error, TypeError) as error:
        raise ConfigError(f"{owner}: image_id {rule!r} is no regular expression ({error})") from error
    if groups != 1:
        raise ConfigError(f"{owner}: image_id {rule!r} must have exactly one group (...), it has {groups}")


# Small-UAV photos after a hurricane, 25 classes: the competition fdl21-fdl-dsba.
HRUD = Dialect(
    order="row",
    header=("ImageClassId", "rle_mask"),
    row_id="{id}_{class}",
    image_id="([^_]+)",
    labels=tuple(range(1, 25)),
    resize=(1024, 1024),
)
# What most Kaggle competitions share: one binary row per image, pixels numbered from 1 and read by column.
KAGGLE = Dialect(order="column")
# SIIM-ACR pneumothorax: starts relative to the end of the run before, -1 for a picture without foreground.
SIIM = Dialect(order="column", base=0, relative=True, empty="-1")
# Severstal steel defects: four rows a picture, the class behind the file name.
SEVERSTAL = Dialect(
    order="column", header=("ImageId_ClassId", "EncodedPixels"), row_id="{id}.jpg_{class}", labels=(1, 2, 3, 4)
)
# Data Science Bowl 2018, nuclei: a row for each of them.
DSB2018 = Dialect(order="column", instances=8)

BUILT_IN = {"hrud": HRUD, "kaggle": KAGGLE, "siim": SIIM, "severstal": SEVERSTAL, "dsb2018": DSB2018}
