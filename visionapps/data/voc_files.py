"""Pascal VOC files: one XML per image."""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from visionapps.data.object_table import LARGEST, Category, ImageRow, Note, ObjectTable, TableBuilder, read_flag
from visionapps.errors import DataError

_OBJECT = re.compile(rb"<object[\s>]")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def is_voc(path: Path) -> bool:
    """Whether a path names an XML file, or a folder with some."""
    return path.suffix.lower() == ".xml" if path.is_file() else any(path.rglob("*.xml"))


def read_voc(path: Path) -> ObjectTable:
    """Read a folder of VOC files, subfolders too. Each is of the image with its own stem, else of its ``filename``.

    Raises:
        DataError: there is no such file at all.
    """
    files = sorted(path.rglob("*.xml")) if path.is_dir() else [path]
    files = [p for p in files if not p.name.startswith(".")]
    if not files or not files[0].is_file():
        raise DataError(f"{path}: no VOC file here; expected a folder of .xml files, one per image")
    root = path if path.is_dir() else path.parent
    builder = TableBuilder("voc")
    for file in files:
        _read_file(builder, file, file.relative_to(root).with_suffix("").as_posix())
    return builder.table()


def _read_file(builder: TableBuilder, file: Path, stem: str) -> None:
    # defusedxml: entities that blow up, and files that fetch others, are refused.
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    try:
        content = file.read_bytes()
        root = fromstring(content)
    except (ParseError, DefusedXmlException, OSError, ValueError, LookupError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        builder.notes.append(_note(file, f"is no valid XML ({reason}); write it again, or remove it"))
        return
    if root.tag != "annotation":
        builder.notes.append(_note(file, f"begins with <{root.tag}>, but a VOC file with <annotation>"))
        return
    size = tuple(_side(root.findtext(f"size/{name}")) for name in ("height", "width"))
    written = (root.findtext("filename") or "").strip()
    builder.images.append(ImageRow(stem, -1, (size[0], size[1]), str(file), written))
    builder.files.append(str(file))
    lines = [content.count(b"\n", 0, match.start()) + 1 for match in _OBJECT.finditer(content)]
    for i, element in enumerate(root.findall("object")):
        _read_object(builder, element, f"{file}: line {lines[i] if i < len(lines) else 0}", lines[i : i + 1])


def _read_object(builder: TableBuilder, element: Any, place: str, line: list[int]) -> None:
    corners = [(element.findtext(f"bndbox/{name}") or "").strip() for name in _CORNERS]
    name = (element.findtext("name") or "").strip()
    try:
        box = _numbers(corners)
        if not name:
            raise ValueError("the object has no <name>; write its class")
        extras: dict[str, Any] = {flag: read_flag(element.findtext(flag), flag) for flag in ("difficult", "truncated")}
    except ValueError as error:
        builder.notes.append(Note("unreadable", place.rsplit(":", 1)[0], f"{place}: {error}"))
        return
    score = element.findtext("score")
    if score is not None:
        try:
            extras["score"] = float(score)
        except ValueError:
            extras["score"] = math.nan
    builder.add(box, builder.category(name, Category(None, name)), line[0] if line else 0, extras=extras)


def voc_text(
    name: str, size: tuple[int, int], depth: int, objects: Iterable[tuple[str, str, str, str, str | None]]
) -> str:
    """One VOC file.

    Args:
        name: of the image, with suffix.
        size: (H, W).
        depth: bands of the image.
        objects: class name, four numbers as "xmin ymin xmax ymax", difficult and truncated as "0" or "1", and the
            score or None.
    """
    folder, _, file = name.rpartition("/")
    lines = [
        "<annotation>",
        f"  <folder>{escape(folder)}</folder>",
        f"  <filename>{escape(file)}</filename>",
        f"  <size><width>{size[1]}</width><height>{size[0]}</height><depth>{depth}</depth></size>",
        "  <segmented>0</segmented>",
    ]
    for label, numbers, difficult, truncated, score in objects:
        box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(_CORNERS, numbers.split(), strict=True))
        lines += [
            "  <object>",
            f"    <name>{escape(label)}</name>",
            "    <pose>Unspecified</pose>",
            f"    <truncated>{truncated}</truncated>",
            f"    <difficult>{difficult}</difficult>",
            f"    <bndbox>{box}</bndbox>",
            *([f"    <score>{score}</score>"] if score is not None else []),
            "  </object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])


def _note(file: Path, what: str) -> Note:
    return Note("unreadable", str(file), f"{file}: {what}")


def _numbers(corners: list[str]) -> list[float]:
    try:
        return [float(text) for text in corners]
    except ValueError:
        there, wanted = ", ".join(map(repr, corners)), ", ".join(_CORNERS)
        raise ValueError(f"bndbox has {there}, but four numbers are expected: {wanted}; write them") from None


def _side(text: str | None) -> int:
    try:
        value = float(text or "")
    except ValueError:
        return 0
    return int(value) if value.is_integer() and 0 < value < LARGEST else 0
