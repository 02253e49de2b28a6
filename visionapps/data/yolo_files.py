"""YOLO files: one txt per image, a row per object, numbers as shares of the image's size."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from visionapps.data.object_table import Category, ImageRow, Note, ObjectTable, TableBuilder
from visionapps.errors import DataError
from visionapps.files import IMAGE_SUFFIXES

_NAMES = ("classes.txt", "obj.names", "labels.txt", "_darknet.labels")
_LISTS = (*_NAMES, "train.txt", "val.txt", "test.txt", "readme.txt", "license.txt")  # usually no labels
_MOST_CLASSES = 10_000  # larger numbers are no classes but columns in another order
_SLACK = 0.05  # of a box's side, by which key points may lie outside of it


class _Row(NamedTuple):
    """A row of a file."""

    line: int
    category: int
    values: list[float]
    wrong: str  # what is; empty: nothing


class _Layout(NamedTuple):
    """What rows hold."""

    points: tuple[int, int] | None  # kpt_shape: how many key points, of how many numbers each
    posed: bool  # rows look like poses, but nobody says which
    shapes: bool  # keep polygons


def is_yolo(path: Path) -> bool:
    """Whether a path names a data.yaml, or a folder with label files."""
    if path.is_file():
        return path.suffix.lower() in (".yaml", ".yml")
    return any(_is_labels(p, None) for p in path.rglob("*.txt"))


def read_yolo(path: Path, *, shapes: bool = True, images: Path | None = None) -> ObjectTable:
    """Read a folder of YOLO files, subfolders too.

    Args:
        path: the folder, or a data.yaml: then the labels are in ``labels`` beside it, else in its folder. Names of
            classes come from data.yaml or classes.txt in the folder or above it; data.yaml's kpt_shape says that rows
            are poses, of which the box is kept.
        shapes: keep polygons.
        images: their folder: an empty train.txt is the label file of an image train, if there is one.

    Raises:
        DataError: there is no such file at all, or the names of classes cannot be read.
    """
    root = path
    if path.is_file():
        root = path.parent / "labels" if (path.parent / "labels").is_dir() else path.parent
    files = [p for p in sorted(root.rglob("*.txt")) if _is_labels(p, images)]
    if not files:
        raise DataError(f"{path}: no YOLO file here; expected a folder of .txt files, one per image")
    source = path if path.is_file() else root
    names, points = class_names(source), _key_points(source)
    builder = TableBuilder("yolo", relative=True)
    for number, name in sorted(names.items()):
        builder.category(number, Category(number, name))
    found = [_rows(file, builder.notes) for file in files]
    posed = points is None and _are_poses([row.values for rows in found for row in rows if len(row.values) > 5])
    layout = _Layout(points, posed, shapes)
    for file, rows in zip(files, found, strict=True):
        builder.images.append(ImageRow(file.relative_to(root).with_suffix("").as_posix(), -1, (0, 0), str(file)))
        builder.files.append(str(file))
        _add(builder, rows, layout)
    if not names:
        for number in range(max((c.id or 0 for c in builder.categories), default=0)):
            builder.category(number, Category(number, None))  # a class that happens not to occur
    return _in_order(builder)


def _is_labels(file: Path, images: Path | None) -> bool:
    """Whether a txt file holds labels: of those that are called like a list, what stands in them tells."""
    if file.name.startswith("."):
        return False
    if file.name.lower() not in _LISTS:
        return True
    try:
        rows = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        return False
    rows = [words for words in rows if words]
    if not rows:
        return images is not None and any(p.suffix.lower() in IMAGE_SUFFIXES for p in images.rglob(f"{file.stem}.*"))
    return 2 * sum(len(words) > 4 and all(map(_is_number, words)) for words in rows) >= len(rows)


def class_names(path: Path) -> dict[int, str]:
    """The names of classes by number, from a data.yaml or from a list beside the labels; empty: nobody says.

    Raises:
        DataError: data.yaml has no names, or is no YAML.
    """
    table = _table(path)
    if table is not None:
        return _yaml_names(table)
    for listed in (folder / name for folder in (path, path.parent) for name in _NAMES):
        if listed.is_file() and not (listed.suffix == ".txt" and _is_labels(listed, None)):
            lines = [line.strip() for line in listed.read_text(encoding="utf-8", errors="replace").splitlines()]
            return {i: line for i, line in enumerate(lines) if line}
    return {}


def _table(path: Path) -> Path | None:
    """The data.yaml that describes a folder of labels, or is meant itself."""
    if path.is_file():
        return path
    tables = (folder / name for folder in (path, path.parent) for name in ("data.yaml", "dataset.yaml"))
    return next((table for table in tables if table.is_file()), None)


def _load(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is no valid YAML ({' '.join(str(error).split())}); mend it") from error
    return data if isinstance(data, Mapping) else {}


def _yaml_names(path: Path) -> dict[int, str]:
    names = _load(path).get("names")
    if isinstance(names, list):
        return {i: str(name) for i, name in enumerate(names)}
    if isinstance(names, Mapping) and all(str(key).isdecimal() for key in names):
        return {int(key): str(name) for key, name in names.items()}
    raise DataError(f"{path}: has no names; expected names: [car, ...], or names: {{0: car, ...}}")


def _key_points(path: Path) -> tuple[int, int] | None:
    """What data.yaml says about key points."""
    table = _table(path)
    shape = None if table is None else _load(table).get("kpt_shape")
    if shape is None:
        return None
    if (
        isinstance(shape, list)
        and len(shape) == 2
        and isinstance(shape[0], int)
        and shape[0] > 0
        and shape[1] in (2, 3)
    ):
        return shape[0], shape[1]
    raise DataError(f"{table}: kpt_shape is {shape!r}, but [number of key points, 2 or 3] is expected")


def _rows(file: Path, notes: list[Note]) -> list[_Row]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        notes.append(Note("unreadable", str(file), f"{file}: is no text ({error}); write it again"))
        return []
    rows = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            rows.append(_Row(number, _class_number(words[0]), [float(word) for word in words[1:]], ""))
        except ValueError as error:
            rows.append(_Row(number, -1, [], str(error)))
    return rows


def _add(builder: TableBuilder, rows: Sequence[_Row], layout: _Layout) -> None:
    """Add the objects of the file that was listed last."""
    file = builder.files[-1]
    for row in rows:
        try:
            if row.wrong:
                raise ValueError(row.wrong)
            box, extras = _box(row.values, layout)
        except ValueError as error:
            text = f"{file}: line {row.line}: {error}; expected: class x_centre y_centre width height, as shares"
            builder.notes.append(Note("unreadable", file, text))
            continue
        place = builder.category(row.category, Category(row.category, None))
        builder.add(box, place, row.line, extras=extras)


def _class_number(word: str) -> int:
    value = float(word)  # some tools write 0.0
    if not value.is_integer() or not 0 <= value < _MOST_CLASSES:
        raise ValueError(f"{word!r} is no class number")
    return int(value)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _box(values: list[float], layout: _Layout) -> tuple[tuple[float, ...], dict[str, Any]]:
    """Corners, and a polygon or a score if the row has one."""
    count = len(values)
    more = layout.points[0] * layout.points[1] if layout.points else 0
    if count in (4, 5) or (more and count in (4 + more, 5 + more)):
        x, y, w, h = values[:4]
        scored: dict[str, Any] = {"score": values[-1]} if count in (5, 5 + more) else {}
        return (x - w / 2, y - h / 2, x + w / 2, y + h / 2), scored
    if layout.points:
        shape = list(layout.points)
        raise ValueError(f"{count} numbers after the class, but kpt_shape {shape} of data.yaml means 4 and {more} more")
    # A polygon; an odd count ends with a score.
    if count < 6:
        raise ValueError(f"{count} numbers after the class")
    if layout.posed:
        raise ValueError(
            f"{count} numbers after the class that look like a box and key points, not like a polygon: write "
            "kpt_shape: [number of key points, 2 or 3] into a data.yaml beside the labels"
        )
    points = values[: count // 2 * 2]
    across, down = points[0::2], points[1::2]
    extras: dict[str, Any] = {"shape": [points]} if layout.shapes else {}
    if count % 2:
        extras["score"] = values[-1]
    return (min(across), min(down), max(across), max(down)), extras


def _are_poses(rows: Sequence[list[float]]) -> bool:
    """Whether rows that would be polygons are a box and key points: all of one length, with all points in the box.

    As polygons they would be a shape that its own second point, which is width and height, mostly lies far from.
    """
    far = 0
    for row in rows:
        found = _pairs(row) if len(row) == len(rows[0]) else set()
        if not found:  # nearly always so of the first
            return False
        far += "far" in found
    return bool(rows) and 2 * far >= len(rows)


def _pairs(values: list[float]) -> set[str]:
    """Empty if a row is no pose; else whether its second pair lies outside ("far") or inside ("near") of its box."""
    x, y, w, h = values[:4]
    if w <= 0 or h <= 0:
        return set()
    reach = (0.5 + _SLACK) * w, (0.5 + _SLACK) * h

    def inside(point: Iterable[float]) -> bool:
        return all(abs(a - b) <= r for a, b, r in zip(point, (x, y), reach, strict=False))

    found = set()
    for numbers in (3, 2):
        for score in (0, 1):
            rest = values[4 : len(values) - score]
            if not rest or len(rest) % numbers:
                continue
            points = [rest[i : i + numbers] for i in range(0, len(rest), numbers)]
            seen = [p for p in points if p[:2] != [0.0, 0.0]]  # 0 0: not in the picture
            marked = numbers == 3 and all(p[2] in (0, 1, 2) for p in points)
            if seen and all(map(inside, seen)):
                found.add("far" if marked or not inside((w, h)) else "near")
    return found


def _in_order(builder: TableBuilder) -> ObjectTable:
    """Categories by number, whatever order they were met in."""
    order = sorted(range(len(builder.categories)), key=lambda i: builder.categories[i].id or 0)
    place = {old: new for new, old in enumerate(order)}
    builder.rows = [(row[0], place[row[1]], *row[2:]) for row in builder.rows]
    builder.categories = [builder.categories[i] for i in order]
    return builder.table()
