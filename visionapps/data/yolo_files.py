"""YOLO files: one txt per image, a row per object, numbers as shares of the image's size."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visionapps.data.object_table import Category, ImageRow, Note, ObjectTable, TableBuilder
from visionapps.errors import DataError

_NAMES = ("classes.txt", "obj.names", "labels.txt", "_darknet.labels")
_OTHERS = (*_NAMES, "train.txt", "val.txt", "test.txt", "readme.txt", "license.txt")  # txt files that are no labels
_MOST_CLASSES = 10_000  # larger numbers are no classes but columns in another order


def is_yolo(path: Path) -> bool:
    """Whether a path names a data.yaml, or a folder with label files."""
    if path.is_file():
        return path.suffix.lower() in (".yaml", ".yml")
    return any(p.name.lower() not in _OTHERS for p in path.rglob("*.txt"))


def read_yolo(path: Path, *, shapes: bool = True) -> ObjectTable:
    """Read a folder of YOLO files, subfolders too.

    Args:
        path: the folder, or a data.yaml: then the labels are in ``labels`` beside it, else in its folder. Names of
            classes come from data.yaml or classes.txt in the folder or above it.
        shapes: keep polygons.

    Raises:
        DataError: there is no such file at all, or the names of classes cannot be read.
    """
    root = path
    if path.is_file():
        root = path.parent / "labels" if (path.parent / "labels").is_dir() else path.parent
    files = [p for p in sorted(root.rglob("*.txt")) if p.name.lower() not in _OTHERS and not p.name.startswith(".")]
    if not files:
        raise DataError(f"{path}: no YOLO file here; expected a folder of .txt files, one per image")
    names = class_names(path if path.is_file() else root)
    builder = TableBuilder("yolo", relative=True)
    for number, name in sorted(names.items()):
        builder.category(number, Category(number, name))
    for file in files:
        _read_file(builder, file, file.relative_to(root).with_suffix("").as_posix(), shapes)
    if not names:
        for number in range(max((c.id or 0 for c in builder.categories), default=0)):
            builder.category(number, Category(number, None))  # a class that happens not to occur
    return _in_order(builder)


def class_names(path: Path) -> dict[int, str]:
    """The names of classes by number, from a data.yaml or from a list beside the labels; empty: nobody says.

    Raises:
        DataError: data.yaml has no names, or is no YAML.
    """
    folders = [path.parent] if path.is_file() else [path, path.parent]
    tables = [path] if path.is_file() else [f / n for f in folders for n in ("data.yaml", "dataset.yaml")]
    for table in tables:
        if table.is_file():
            return _yaml_names(table)
    for listed in (f / n for f in folders for n in _NAMES):
        if listed.is_file():
            lines = [line.strip() for line in listed.read_text(encoding="utf-8", errors="replace").splitlines()]
            return {i: line for i, line in enumerate(lines) if line}
    return {}


def _yaml_names(path: Path) -> dict[int, str]:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is no valid YAML ({' '.join(str(error).split())}); mend it") from error
    names = data.get("names") if isinstance(data, Mapping) else None
    if isinstance(names, list):
        return {i: str(name) for i, name in enumerate(names)}
    if isinstance(names, Mapping) and all(str(key).isdecimal() for key in names):
        return {int(key): str(name) for key, name in names.items()}
    raise DataError(f"{path}: has no names; expected names: [car, ...], or names: {{0: car, ...}}")


def _read_file(builder: TableBuilder, file: Path, stem: str, shapes: bool) -> None:
    builder.images.append(ImageRow(stem, -1, (0, 0), str(file)))
    builder.files.append(str(file))
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        builder.notes.append(Note("unreadable", str(file), f"{file}: is no text ({error}); write it again"))
        return
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            category, values = _class_number(words[0]), [float(word) for word in words[1:]]
            box, extras = _box(values, shapes)
        except ValueError as error:
            text = f"{file}: line {number}: {error}; expected: class x_centre y_centre width height, as shares"
            builder.notes.append(Note("unreadable", str(file), text))
            continue
        place = builder.category(category, Category(category, None))
        builder.add(box, place, number, extras=extras)


def _class_number(word: str) -> int:
    value = float(word)  # some tools write 0.0
    if not value.is_integer() or not 0 <= value < _MOST_CLASSES:
        raise ValueError(f"{word!r} is no class number")
    return int(value)


def _box(values: list[float], shapes: bool) -> tuple[tuple[float, ...], dict[str, Any]]:
    """Corners, and a polygon or a score if the row has one."""
    if len(values) in (4, 5):
        x, y, w, h = values[:4]
        scored: dict[str, Any] = {"score": values[4]} if len(values) == 5 else {}
        return (x - w / 2, y - h / 2, x + w / 2, y + h / 2), scored
    # A polygon; an odd count ends with a score.
    if len(values) < 6:
        raise ValueError(f"{len(values)} numbers after the class")
    points = values[: len(values) // 2 * 2]
    across, down = points[0::2], points[1::2]
    extras: dict[str, Any] = {"shape": [points]} if shapes else {}
    if len(values) % 2:
        extras["score"] = values[-1]
    return (min(across), min(down), max(across), max(down)), extras


def _in_order(builder: TableBuilder) -> ObjectTable:
    """Categories by number, whatever order they were met in."""
    order = sorted(range(len(builder.categories)), key=lambda i: builder.categories[i].id or 0)
    place = {old: new for new, old in enumerate(order)}
    builder.rows = [(row[0], place[row[1]], *row[2:]) for row in builder.rows]
    builder.categories = [builder.categories[i] for i in order]
    return builder.table()
