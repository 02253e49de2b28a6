"""How a competition wants its run-length CSV: a value that is written down once, here or in a small YAML file."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from visionapps.errors import ConfigError, DataError
from visionapps.masks import Order
from visionapps.structures import IGNORE


@dataclass(frozen=True)
class Dialect:
    """The rules of one submission file.

    Attributes:
        order: "row" reads pixels left to right and then down, "column" down and then right.
        base: the number of the first pixel, 1 or 0.
        relative: starts count from the end of the run before (SIIM-ACR).
        header: titles of the id column and of the mask column.
        row_id: the id of a row: "{id}" alone merges all classes into one binary row per image; with "{class}" in it
            every class gets a row of its own. Other characters stand for themselves: "{id}.jpg_{class}".
        image_id: a regular expression with one group, matched at the start of a mask's file name without its suffix;
            the group is the {id}.
        labels: the labels that are written, ascending or not; None: all but the background 0.
        empty: the text of a row without foreground.
        resize: (H, W) that masks are brought to by nearest neighbour, or None to keep their size.
    """

    order: Order
    base: int = 1
    relative: bool = False
    header: tuple[str, str] = ("ImageId", "EncodedPixels")
    row_id: str = "{id}"
    image_id: str = "(.+)"
    labels: tuple[int, ...] | None = None
    empty: str = ""
    resize: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("header", "labels", "resize"):  # YAML brings lists
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

    def image_of(self, name: str) -> str:
        """The {id} of a mask's file name (without suffix)."""
        found = re.match(self.image_id, name)
        if not found or not found[1]:
            raise DataError(
                f"{name}: the id rule {self.image_id!r} finds no id in this file name; "
                "rename the mask, or give another --image-id"
            )
        return found[1]

    def key(self, image: str, label: int) -> str:
        """The id of a row; binary rows have no label in it."""
        return self.row_id.replace("{class}", str(label)).replace("{id}", image)

    def split_key(self, key: str) -> tuple[str, int | None]:
        """The image and, where every class has a row, the label of a row id."""
        pattern = re.escape(self.row_id).replace(r"\{id\}", "(?P<id>.+)").replace(r"\{class\}", "(?P<label>[0-9]+)")
        found = re.fullmatch(pattern, key)
        if not found:
            raise DataError(f"id {key!r} does not have the form {self.row_id}")
        return found["id"], int(found["label"]) if self.per_class else None


def load_dialect(name: str) -> Dialect:
    """A built-in dialect by name, or one from a YAML file whose keys are the attributes of Dialect.

    Raises:
        ConfigError: there is no such name or file, or the file cannot be read as a dialect.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"dialect {name!r}: neither built in ({', '.join(BUILT_IN)}) nor a YAML file; check the path")
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no readable YAML ({error})") from error
    try:
        return dialect_from_dict(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def dialect_from_dict(data: Any) -> Dialect:
    """A dialect from plain data.

    Raises:
        ConfigError: a key is unknown or missing, or a value cannot work.
    """
    known = [field.name for field in fields(Dialect)]
    if not isinstance(data, Mapping):
        raise ConfigError(f"a mapping with the keys {', '.join(known)} is expected, got {type(data).__name__}")
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"unknown key {key!r}; {hint}")
    if "order" not in data:
        raise ConfigError("the key order is missing; give row or column")
    return Dialect(**data)


def _check_pixels(dialect: Dialect) -> None:
    if dialect.order not in ("row", "column"):
        raise ConfigError(f"dialect: order {dialect.order!r} is unknown; give row or column")
    if dialect.base not in (0, 1) or isinstance(dialect.base, bool):
        raise ConfigError(f"dialect: base {dialect.base!r} must be 0 or 1, the number of the first pixel")
    if not isinstance(dialect.relative, bool):
        raise ConfigError(f"dialect: relative {dialect.relative!r} must be true or false")
    if not isinstance(dialect.empty, str):
        raise ConfigError(f"dialect: empty {dialect.empty!r} must be text; write it in quotes")
    labels, resize = dialect.labels, dialect.resize
    if labels is not None and not (
        isinstance(labels, tuple) and 1 <= len(set(labels)) == len(labels) <= 255 and all(map(_is_label, labels))
    ):
        raise ConfigError(f"dialect: labels {labels!r} must be 1 to 255 different whole numbers from 0 to 255")
    if resize is not None and not (
        isinstance(resize, tuple) and len(resize) == 2 and all(type(side) is int and side > 0 for side in resize)
    ):
        raise ConfigError(f"dialect: resize {resize!r} must be two positive whole numbers, height and width")


def _is_label(value: object) -> bool:
    return type(value) is int and 0 <= value <= 255


def _check_ids(dialect: Dialect) -> None:
    header = dialect.header
    if not (isinstance(header, tuple) and len(header) == 2 and all(isinstance(title, str) for title in header)):
        raise ConfigError(f"dialect: header {header!r} must be two titles, of the id column and of the mask column")
    if header[0] == header[1]:
        raise ConfigError(f"dialect: both columns are titled {header[0]!r}; their titles must differ")
    parts = re.findall(r"\{(.*?)\}", dialect.row_id) if isinstance(dialect.row_id, str) else []
    if sorted(parts) not in (["id"], ["class", "id"]):
        raise ConfigError(f"dialect: row_id {dialect.row_id!r} must hold {{id}} once, and {{class}} at most once")
    try:
        groups = re.compile(dialect.image_id).groups
    except (re.error, TypeError) as error:
        raise ConfigError(f"dialect: image_id {dialect.image_id!r} is no regular expression ({error})") from error
    if groups != 1:
        raise ConfigError(f"dialect: image_id {dialect.image_id!r} must have exactly one group (...), it has {groups}")


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

BUILT_IN = {"hrud": HRUD, "kaggle": KAGGLE}
