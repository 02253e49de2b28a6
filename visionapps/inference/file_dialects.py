"""How a competition wants masks as files in a folder or an archive: a value like a Dialect, with the same ids."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from visionapps.errors import ConfigError, DataError
from visionapps.inference.dialects import (
    BUILT_IN,
    Dialect,
    Nearest,
    Size,
    check_image_id,
    check_keys,
    check_labels,
    check_resize,
    dialect_from_dict,
    image_of,
    read_rules,
)
from visionapps.structures import IGNORE

SUFFIXES = (".png", ".tif", ".tiff", ".bmp")  # lossless


@dataclass(frozen=True)
class FileDialect:
    """The rules of a submission of mask files.

    Attributes:
        file: the name of a file within the folder or archive, folders included: "{id}.png", "labels/{id}_mask.tif".
            With "{class}" in it every class gets a binary file of its own.
        foreground: the value of foreground in binary files, else 0; None writes index masks, a value for each label.
        image_id: as for a Dialect: its one group is the {id} in a mask's file name.
        labels: those that are foreground, or, of index masks, those that are written as they are; all others become
            ``void``. None: all but the background 0, or all.
        values: what an index mask holds for a label, as (label, value) pairs; others stay as they are.
        void: what an index mask holds where nothing is predicted.
        resize: (H, W) that masks are brought to by nearest neighbour, or None to keep their size.
        nearest: whose nearest neighbour, as for a Dialect.
    """

    file: str
    foreground: int | None = None
    image_id: str = "(.+)"
    labels: tuple[int, ...] | None = None
    values: tuple[tuple[int, int], ...] = ()
    void: int = 0
    resize: Size | None = None
    nearest: Nearest = "pillow"

    def __post_init__(self) -> None:
        for name in ("labels", "resize"):  # YAML brings lists
            value: Any = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        values: Any = self.values
        if isinstance(values, Mapping):
            object.__setattr__(self, "values", tuple(values.items()))
        _check(self)

    @property
    def per_class(self) -> bool:
        """Whether every class has a file of its own."""
        return "{class}" in self.file

    def image_of(self, name: str) -> str:
        """The {id} of a mask's file name (without suffix)."""
        return image_of(name, self.image_id)

    def name_of(self, image: str, label: int = 0) -> str:
        """The name of a file."""
        texts = {"id": image, "class": str(label)}
        return re.sub(r"\{(id|class)\}", lambda found: texts[found[1]], self.file)

    def split(self, name: str) -> tuple[str, int | None]:
        """The image and, where every class has a file, the label of a file's name.

        Raises:
            DataError: the name does not have the form.
        """
        found = self._pattern.fullmatch(name)
        if not found:
            raise DataError(f"file {name!r} does not have the form {self.file}")
        return found["id"], int(found["label"]) if self.per_class else None

    def is_name(self, name: str) -> bool:
        """Whether a file may be called so."""
        return self._pattern.fullmatch(name) is not None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        form = re.escape(self.file).replace(r"\{id\}", "(?P<id>[^/]+)").replace(r"\{class\}", "(?P<label>[0-9]+)")
        return re.compile(form)

    def written(self, classes: int | None) -> tuple[int, ...]:
        """The labels that binary files are about, or that index masks may hold, for a model of so many classes."""
        written = self._written(classes)
        _refuse_unwritten(self.values, written)
        return written

    def _written(self, classes: int | None) -> tuple[int, ...]:
        if self.labels is not None:
            return self.labels
        first = 0 if self.foreground is None else 1
        if classes is not None:
            if not 2 <= classes <= IGNORE:
                raise ConfigError(f"submission: {classes} classes; 2 to {IGNORE} are possible, the background included")
            return tuple(range(first, classes))
        if self.per_class:
            raise ConfigError("submission: how many classes have files is not known; give --classes or --labels")
        return tuple(range(first, IGNORE))

    def value_of(self, label: int) -> int:
        """What an index mask holds for a label."""
        return dict(self.values).get(label, label)


def load_rules(name: str) -> Dialect | FileDialect:
    """A dialect of rows or of files: built in by name, or from a YAML file; the key ``file`` makes it one of files.

    Raises:
        ConfigError: there is no such name or file, or the file cannot be read as a dialect.
    """
    built_in: dict[str, Dialect | FileDialect] = {**BUILT_IN, **BUILT_IN_FILES}
    if name in built_in:
        return built_in[name]
    path, data = read_rules(name, built_in)
    try:
        return file_dialect_from_dict(data) if isinstance(data, Mapping) and "file" in data else dialect_from_dict(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def file_dialect_from_dict(data: Any) -> FileDialect:
    """A dialect of files from plain data.

    Raises:
        ConfigError: a key is unknown or missing, or a value cannot work.
    """
    check_keys(data, [field.name for field in fields(FileDialect)])
    if "file" not in data:
        raise ConfigError('the key file is missing; give the form of file names, such as "{id}.png"')
    return FileDialect(**data)


def _check(dialect: FileDialect) -> None:
    file: Any = dialect.file
    parts = re.findall(r"\{(.*?)\}", file) if isinstance(file, str) else []
    if sorted(parts) not in (["id"], ["class", "id"]):
        raise ConfigError(f"dialect: file {file!r} must hold {{id}} once, and {{class}} at most once")
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or "\\" in file or str(path) != file:
        raise ConfigError(f"dialect: file {file!r} must be a plain relative path, folders apart by /")
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"dialect: file {file!r} must end in {', '.join(SUFFIXES)}; JPEG smears labels")
    foreground: Any = dialect.foreground
    if foreground is not None and not (_is_byte(foreground) and foreground):
        raise ConfigError(f"dialect: foreground {foreground!r} must be a whole number from 1 to 255, or left out")
    if foreground is None and dialect.per_class:
        raise ConfigError(f"dialect: file {file!r} has {{class}}, so files are binary; give foreground, such as 255")
    check_labels(dialect.labels)
    check_resize(dialect.resize)
    check_image_id(dialect.image_id)
    if dialect.nearest not in ("pillow", "opencv"):
        raise ConfigError(f"dialect: nearest {dialect.nearest!r} is unknown; known are pillow, opencv")
    _check_values(dialect.values, dialect)


def _check_values(values: Any, dialect: FileDialect) -> None:
    if not isinstance(values, tuple) or not all(
        isinstance(pair, Sequence) and len(pair) == 2 and all(map(_is_byte, pair)) for pair in values
    ):
        raise ConfigError(f"dialect: values {values!r} must map labels to values, both whole numbers from 0 to 255")
    if not _is_byte(dialect.void):
        raise ConfigError(f"dialect: void {dialect.void!r} must be a whole number from 0 to 255")
    if values and dialect.foreground is not None:
        raise ConfigError("dialect: values are for index masks, foreground is for binary ones; give one of them")
    if dialect.labels is not None:
        _refuse_unwritten(values, dialect.labels)


def _refuse_unwritten(values: Sequence[tuple[int, int]], written: Sequence[int]) -> None:
    """Raise ConfigError if a value is that of a label which would be written as void, whatever was meant."""
    strange = [label for label, _ in values if label not in written]
    if strange:
        few = len(written) < 3 or written[-1] - written[0] != len(written) - 1
        known = ", ".join(map(str, written)) if few else f"{written[0]} to {written[-1]}"
        raise ConfigError(
            f"dialect: values name the label {strange[0]}, which is not among the labels that are written ({known}); "
            "add it to labels or raise --classes, or leave it out: void is for where nothing is predicted"
        )


def _is_byte(value: object) -> bool:
    return type(value) is int and 0 <= value <= 255


# A file of labels for each image, or of 0 and 255.
PNG = FileDialect(file="{id}.png")
PNG_BINARY = FileDialect(file="{id}.png", foreground=255)

BUILT_IN_FILES = {"png": PNG, "png-binary": PNG_BINARY}
