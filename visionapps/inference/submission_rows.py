"""Between a label map and its rows in a submission: resize, number, encode; parse, decode."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from visionapps.errors import DataError
from visionapps.inference.dialects import Dialect
from visionapps.masks import Runs, decode_labels, encode_labels, format_runs, parse_runs
from visionapps.structures import IGNORE

_FIELD_LIMIT = 2**31 - 1  # characters of one CSV field; the default of 131072 is less than one detailed mask

Size = tuple[int, int]
Places = NDArray[np.uint8]


class Row(NamedTuple):
    """One line of a submission."""

    line: int  # in the file, from 1
    key: str  # the id as it stands there
    image: str
    label: int | None  # None: a binary row
    text: str  # the runs; "" when there are none


def resize_nearest(labels: NDArray[Any], size: Size) -> NDArray[Any]:
    """Bring a label map to another size by nearest neighbour, as Pillow's NEAREST does.

    The pixel i of h takes the pixel floor((i + 0.5) * H / h): the one below its centre.

    Args:
        labels: (H, W).
        size: (h, w).

    Returns:
        (h, w) in the same dtype.
    """
    if labels.shape == size:
        return labels
    # In whole numbers, so that no centre that falls on an edge is rounded to the wrong side.
    rows, cols = (((2 * np.arange(n) + 1) * full) // (2 * n) for n, full in zip(size, labels.shape, strict=True))
    resized: NDArray[Any] = labels[rows][:, cols]
    return resized


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
    if mask.ndim != 2 or mask.dtype.kind not in "bui" or not mask.size:
        raise DataError(f"{name}: mask of shape {mask.shape} and {mask.dtype}; a map of (H, W) labels is expected")
    mask = resize_nearest(mask, dialect.resize) if dialect.resize else mask
    known = {0, IGNORE, *written, *range(classes or 0)}
    if mask.dtype.itemsize > 1:
        low, high = int(mask.min()), int(mask.max())
        if low < 0 or high > 255:
            raise _unknown(name, low if low < 0 else high, known)
        mask = mask.astype(np.uint8)
    strange = np.array([label not in known for label in range(256)])[mask.view(np.uint8)]
    if strange.any():
        raise _unknown(name, int(mask[strange][0]), known)
    table = np.zeros(256, np.uint8)
    table[list(written)] = np.arange(1, len(written) + 1) if dialect.per_class else 1
    return table[mask.view(np.uint8)]


def _unknown(name: str, label: int, known: set[int]) -> DataError:
    labels = sorted(known - {IGNORE})
    gapless = len(labels) > 2 and labels[-1] - labels[0] == len(labels) - 1
    text = f"{labels[0]} to {labels[-1]}" if gapless else ", ".join(map(str, labels[:20]))
    return DataError(
        f"{name}: mask has label {label}, but the labels here are {text} and {IGNORE} for void; "
        "give the right --classes or --labels, or map the label first"
    )


def encode_rows(places: Places, image: str, *, dialect: Dialect, written: Sequence[int]) -> list[tuple[str, str]]:
    """The id and the text of every row of an image, from what ``to_places`` gives."""
    labels = written if dialect.per_class else written[:1]
    all_runs = encode_labels(places, range(1, len(labels) + 1), order=dialect.order, base=dialect.base)
    return [(dialect.key(image, label), _text(runs, dialect)) for label, runs in zip(labels, all_runs, strict=True)]


def _text(runs: Runs, dialect: Dialect) -> str:
    return format_runs(runs, relative=dialect.relative) if len(runs) else dialect.empty


def decode_rows(rows: Iterable[Row], size: Size, *, dialect: Dialect, written: Sequence[int]) -> Places:
    """The opposite of ``encode_rows``: (h, w) uint8, the 1-based place of the row that claims a pixel, 0 for none.

    Raises:
        DataError: runs are malformed or leave the image, or two rows claim one pixel.
    """
    place = {label: i for i, label in enumerate(written, 1)} if dialect.per_class else {1: 1}
    runs = {place[label]: own for label, own in row_runs(rows, dialect).items()}
    return decode_labels(runs, size, order=dialect.order, base=dialect.base)


def row_runs(rows: Iterable[Row], dialect: Dialect) -> dict[int, Runs]:
    """The runs of an image by label; those of a binary row under 1."""
    return {1 if row.label is None else row.label: parse_runs(row.text, relative=dialect.relative) for row in rows}


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
    for line, cells in csv_lines(path):
        if line == 1:
            if tuple(cells) != dialect.header:
                problems.append(f"line 1: header {','.join(cells)!r}, but {','.join(dialect.header)!r} is expected")
            continue
        if len(cells) != 2:
            problems.append(f"line {line}: {len(cells)} columns, but 2 are expected ({', '.join(dialect.header)})")
            continue
        try:
            image, label = dialect.split_key(cells[0])
        except DataError as error:
            problems.append(f"line {line}: {error}")
            continue
        yield Row(line, cells[0], image, label, "" if cells[1].strip() == dialect.empty else cells[1])


def csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Lines of a CSV with their numbers; empty ones are skipped.

    Raises:
        DataError: there is no such file, or it is empty or no text.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path")
    limit = csv.field_size_limit(_FIELD_LIMIT)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, cells) for cells in reader if cells]
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: is no readable CSV ({error})") from error
    finally:
        csv.field_size_limit(limit)  # it is a setting of the whole process
    if not lines:
        raise DataError(f"{path}: the file is empty; a header and rows are expected")
    yield from lines
