"""Between a label map and its rows in a submission: resize, number, encode; parse, decode."""

import base64
import binascii
import csv
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from visionapps.errors import DataError
from visionapps.inference.dialects import Dialect, Nearest, Size
from visionapps.masks import (
    Runs,
    counts_to_runs,
    decode_labels,
    encode_labels,
    format_runs,
    parse_runs,
    runs_to_coco,
)
from visionapps.structures import IGNORE

_FIELD_LIMIT = 2**31 - 1  # characters of one CSV field; the default of 131072 is less than one detailed mask
_INFLATED_LIMIT = 2**28  # bytes that one cell may inflate to; a real mask of 100 megapixels has a few million

Places = NDArray[np.uint8]


class Row(NamedTuple):
    """One line of a submission."""

    line: int  # in the file, from 1
    key: str  # its cells of id and class as they stand there
    image: str
    label: int | None  # None: a binary row
    text: str  # the runs; "" when there are none
    size: Size | None = None  # of the mask, where rows tell it


def resize_nearest(labels: NDArray[Any], size: Size, rule: Nearest = "pillow") -> NDArray[Any]:
    """Bring a label map to another size by nearest neighbour, as Pillow or OpenCV does.

    The pixel i of h takes the pixel floor((i + 0.5) * H / h) by Pillow's NEAREST, the one below its centre, and
    floor(i * H / h) by OpenCV's INTER_NEAREST, the one below its upper left corner, both as rounded by the library.

    Args:
        labels: (H, W).
        size: (h, w).
        rule: whose.

    Returns:
        (h, w) in the same dtype.
    """
    if labels.shape == size:
        return labels
    rows, cols = (_nearest(n, full, rule) for n, full in zip(size, labels.shape, strict=True))
    resized: NDArray[Any] = labels[rows][:, cols]
    return resized


def _nearest(count: int, full: int, rule: Nearest) -> NDArray[np.int64]:
    if rule == "pillow":
        # One step after the other in float64, as Pillow goes: where a centre falls on an edge, the sum of its rounding
        # errors decides on the side, and neither whole numbers nor a product of the place has the same ones.
        steps = np.full(count, full / count)
        steps[0] /= 2
        return np.minimum(np.cumsum(steps).astype(np.int64), full - 1)
    # In OpenCV's own floats, which do round some edges to the side before: floor(i * H / h) differs from it.
    corners = np.floor(np.arange(count) * (1.0 / (count / full))).astype(np.int64)
    return np.asarray(np.minimum(corners, full - 1))


def to_places(
    name: str, mask: NDArray[Any], *, dialect: Dialect, written: Sequence[int], classes: int | None
) -> Places:
    """A label map as its rows see it: 0 where nothing is written, else the 1-based place of the row of an image.

    Args:
        name: of the mask, for messages.
        mask: (H, W) labels.
        dialect: sizes and rows.
        written: labels that are foreground.
        classes: labels of the model; None: only what is written, the background and the ignore label are known.

    Returns:
        (h, w) uint8 at the dialect's size.

    Raises:
        DataError: the mask holds a label that is not known.
    """
    mask = check_mask(name, mask, {0, IGNORE, *written, *range(classes or 0)}, dialect.resize, dialect.nearest)
    table = np.zeros(256, np.uint8)
    table[list(written)] = np.arange(1, len(written) + 1) if dialect.per_class else 1
    return table[mask]


def plain_bytes(mask: NDArray[Any]) -> NDArray[Any]:
    """A bool mask as bytes of 0 and 1; others as they are. Pillow gives masks of one bit as bools of 0 and 255."""
    return (mask.view(np.uint8) != 0).view(np.uint8) if mask.dtype == np.bool_ else mask


def check_mask(name: str, mask: NDArray[Any], known: set[int], resize: Size | None, nearest: Nearest) -> Places:
    """A label map at its final size, in bytes.

    Raises:
        DataError: it is no label map, or holds a label that is not known.
    """
    if mask.ndim != 2 or mask.dtype.kind not in "bui" or not mask.size:
        raise DataError(f"{name}: mask of shape {mask.shape} and {mask.dtype}; a map of (H, W) labels is expected")
    mask = resize_nearest(mask, resize, nearest) if resize else mask
    if mask.dtype.itemsize > 1:
        low, high = int(mask.min()), int(mask.max())
        if low < 0 or high > 255:
            raise _unknown(name, low if low < 0 else high, known)
        mask = mask.astype(np.uint8)
    labels = plain_bytes(mask).view(np.uint8)
    strange = np.array([label not in known for label in range(256)])[labels]
    if strange.any():
        raise _unknown(name, int(labels[strange][0]), known)
    return labels


def _unknown(name: str, label: int, known: set[int]) -> DataError:
    labels = sorted(known - {IGNORE})
    gapless = len(labels) > 2 and labels[-1] - labels[0] == len(labels) - 1
    text = f"{labels[0]} to {labels[-1]}" if gapless else ", ".join(map(str, labels[:20]))
    return DataError(
        f"{name}: mask has label {label}, but the labels here are {text} and {IGNORE} for void; "
        "give the right --classes or --labels, or map the label first"
    )


def encode_rows(
    places: Places, image: str, *, dialect: Dialect, written: Sequence[int]
) -> list[tuple[str, tuple[str, ...]]]:
    """The key and the cells of every row of an image, from what ``to_places`` gives."""
    labels, size = written if dialect.per_class else written[:1], (places.shape[0], places.shape[1])
    all_runs = encode_labels(places, range(1, len(labels) + 1), order=dialect.order, base=dialect.base)
    rows = []
    for label, runs in zip(labels, all_runs, strict=True):
        for own in _instances(runs, size, dialect):
            rows.append((dialect.key(image, label), dialect.cells(image, label, _text(own, size, dialect), size)))
    return rows


def _instances(runs: Runs, size: Size, dialect: Dialect) -> list[Runs]:
    """The runs of each row of a class; one row of none where the absent has a row, too."""
    if not len(runs):
        return [runs] if dialect.absent == "row" else []
    if not dialect.instances:
        return [runs]
    from visionapps.inference.run_components import components  # numba takes a while to import

    line_px = size[1] if dialect.order == "row" else size[0]
    return components(runs, line_px, neighbours=dialect.instances, base=dialect.base)


def _text(runs: Runs, size: Size, dialect: Dialect) -> str:
    if not len(runs):
        return ""
    if dialect.encoding == "pairs":
        return format_runs(runs, relative=dialect.relative)
    counts = runs_to_coco(runs, size, base=dialect.base)["counts"]
    if dialect.encoding == "coco":
        return counts
    return base64.b64encode(zlib.compress(counts.encode("ascii"), 9)).decode("ascii")


def parse_text(text: str, dialect: Dialect, size: Size | None = None) -> Runs:
    """The runs that the text of a row means.

    Args:
        text: as ``Row.text`` has it; "" gives none.
        dialect: its rules.
        size: (H, W) where it is known: COCO's counts must add up to it.

    Raises:
        DataError: the text is malformed, or does not belong to a mask of that size.
    """
    return parse_sized(text, dialect, size)[0]


def parse_sized(text: str, dialect: Dialect, size: Size | None = None) -> tuple[Runs, int | None]:
    """The same, and how many pixels the mask has by the text; None where it does not tell."""
    if dialect.encoding == "pairs":
        return parse_runs(text, relative=dialect.relative), None
    if not text:
        return np.zeros((0, 2), np.int64), None
    runs, pixels = counts_to_runs(_counts(text, dialect), base=dialect.base)
    if size is not None and pixels != size[0] * size[1]:
        raise DataError(
            f"the counts add up to {pixels} pixels, but a mask of {size[0]} x {size[1]} has {size[0] * size[1]}; "
            "check the size"
        )
    return runs, pixels


def _counts(text: str, dialect: Dialect) -> bytes:
    try:
        if dialect.encoding == "coco":
            return text.strip().encode("ascii")
        inflate = zlib.decompressobj()
        counts = inflate.decompress(base64.b64decode(text.strip(), validate=True), _INFLATED_LIMIT)
    except (UnicodeEncodeError, binascii.Error, zlib.error, ValueError) as error:
        raise DataError(f"the text cannot be read as {dialect.encoding} ({error}); check --encoding") from error
    if not inflate.eof:
        raise DataError(f"the deflated counts are cut off, or inflate to more than {_INFLATED_LIMIT} bytes")
    return counts


def decode_rows(rows: Iterable[Row], size: Size, *, dialect: Dialect, written: Sequence[int]) -> Places:
    """The opposite of ``encode_rows``: (h, w) uint8, the 1-based place of the row that claims a pixel, 0 for none.

    Raises:
        DataError: runs are malformed or leave the image, or two rows claim one pixel.
    """
    place = {label: i for i, label in enumerate(written, 1)} if dialect.per_class else {1: 1}
    runs = {place[label]: own for label, own in row_runs(rows, dialect, size).items()}
    return decode_labels(runs, size, order=dialect.order, base=dialect.base)


def row_runs(rows: Iterable[Row], dialect: Dialect, size: Size | None = None) -> dict[int, Runs]:
    """The runs of an image by label; those of a binary row under 1. Instances of a class are put together by start.

    Raises:
        DataError: a text is malformed.
    """
    found: dict[int, list[Runs]] = {}
    for row in rows:
        found.setdefault(1 if row.label is None else row.label, []).append(parse_text(row.text, dialect, size))
    return {label: runs[0] if len(runs) == 1 else _by_start(np.concatenate(runs)) for label, runs in found.items()}


def _by_start(runs: Runs) -> Runs:
    return runs[np.argsort(runs[:, 0], kind="stable")]


def read_submission(path: Path, dialect: Dialect) -> list[Row]:
    """The rows of a submission in the order of the file.

    Raises:
        DataError: the file is missing or not in this dialect; the message names the first bad line.
    """
    problems: list[str] = []
    rows = list(parse_rows(path, dialect, problems=problems))
    if problems:
        raise DataError(f"{path}: {problems[0]}")
    return rows


def parse_rows(path: Path, dialect: Dialect, *, problems: list[str]) -> Iterator[Row]:
    """Rows whose id has the right form; what is wrong with the others goes to problems."""
    (line, header), *lines = csv_lines(path)
    problems += mark_problems(path)
    if tuple(header) != dialect.header:
        problems.append(f"line {line}: header {','.join(header)!r}, but {','.join(dialect.header)!r} is expected")
    width = len(dialect.header)
    for line, cells in lines:
        if len(cells) != width:
            titles = ", ".join(dialect.header)
            problems.append(f"line {line}: {len(cells)} columns, but {width} are expected ({titles})")
            continue
        try:
            image, label, text, size = dialect.split(cells)
        except DataError as error:
            problems.append(f"line {line}: {error}")
            continue
        yield Row(line, _key(cells, dialect), image, label, text, size)


def _key(cells: Sequence[str], dialect: Dialect) -> str:
    """The cells that tell rows apart, as they stand in the file."""
    forms = zip(dialect.columns, cells, strict=True)
    return ",".join(cell for form, cell in forms if "{id}" in form or "{class}" in form)


def mark_problems(path: Path) -> list[str]:
    """What is wrong with a file that begins with a byte order mark, which ``csv_lines`` passes over; else nothing."""
    with path.open("rb") as file:
        if file.read(len(BOM_UTF8)) != BOM_UTF8:
            return []
    return [
        "line 1: begins with a byte order mark, as Excel writes it, which some readers take for a part of the title; "
        "save the file as UTF-8 without one"
    ]


def csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Lines of a CSV with their numbers; empty ones are skipped, and so is a byte order mark at its beginning.

    Raises:
        DataError: there is no such file, or it is empty or no text.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path")
    limit = csv.field_size_limit(_FIELD_LIMIT)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, cells) for cells in reader if cells]
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: is no readable CSV ({error})") from error
    finally:
        csv.field_size_limit(limit)  # it is a setting of the whole process
    if not lines:
        raise DataError(f"{path}: the file is empty; a header and rows are expected")
    yield from lines
