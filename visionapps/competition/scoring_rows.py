"""Rows of a submission, of a solution file or of a folder of true masks, as runs by image and class."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from visionapps.errors import DataError
from visionapps.inference.dialects import Dialect
from visionapps.inference.submission import mask_files, read_masks
from visionapps.inference.submission_rows import Row, csv_lines, mark_problems, parse_sized, to_places
from visionapps.inference.void_masks import VoidCheck
from visionapps.masks import Runs, check_runs, encode_labels, merge_runs
from visionapps.metrics.run_areas import RunTable

Cell = tuple[str, int]  # image and label; the label of a binary row is 1
Size = tuple[int, int]

USAGE = "Usage"  # the column of Kaggle's solution files that tells the public rows from the private ones
_MANY = 1 << 22  # characters of runs from which on compiled reading is worth the import
_SHOWN = 5  # ids or problems that a message lists


@dataclass(frozen=True)
class RowSet:
    """What one side says.

    Attributes:
        source: of messages.
        runs: of each (image, label) in the order of the file; several where objects have rows of their own.
        usage: of each, where a column tells it.
        sizes: (H, W) of images, where it is told.
        pixels: of images, where counts tell them.
        ascending: whether a file's rows may be compared with another's by order; a folder has none.
    """

    source: Path
    runs: dict[Cell, list[Runs]]
    usage: dict[Cell, str] = field(default_factory=dict)
    sizes: dict[str, Size] = field(default_factory=dict)
    pixels: dict[str, int] = field(default_factory=dict)
    ascending: bool = True

    @property
    def images(self) -> tuple[str, ...]:
        """In the order in which they are first named."""
        return tuple(dict.fromkeys(image for image, _ in self.runs))


def read_rows(
    path: Path, dialect: Dialect, *, usage: str | None = None, sizes: Mapping[str, Size] | None = None
) -> RowSet:
    """The rows of a CSV.

    Args:
        path: the file.
        dialect: its rules.
        usage: of a solution file: the title of the column that divides its rows. Other columns are passed over. None:
            a submission, which has the columns of the dialect and no others.
        sizes: (H, W) of images where rows do not tell it.

    Raises:
        DataError: it cannot be read, or rows are malformed, doubled or overlap; all that is wrong is counted.
    """
    found = RowSet(path, {})
    problems: list[str] = []
    lines: dict[Cell, int] = {}
    rows = list(_rows(path, dialect, usage, problems))
    plain = _plain_runs([row.text for row, _ in rows], dialect)
    for (row, part), read in zip(rows, plain, strict=True):
        cell = row.image, 1 if row.label is None else row.label
        if cell in found.runs and not dialect.instances:
            problems.append(f"line {row.line} ({row.key}): stands there already, in line {lines[cell]}")
            continue
        if part is not None and found.usage.setdefault(cell, part) != part:
            problems.append(f"line {row.line} ({row.key}): {usage} {part!r}, but {found.usage[cell]!r} above")
        if row.size is not None and found.sizes.setdefault(row.image, row.size) != row.size:
            problems.append(f"line {row.line} ({row.key}): size {row.size}, but {found.sizes[row.image]} above")
        try:
            size = row.size or dialect.resize or (sizes or {}).get(row.image)
            runs, pixels = parse_sized(row.text, dialect, size) if read is None else (read, None)
        except DataError as error:
            problems.append(f"line {row.line} ({row.key}): {error}")
            continue
        if pixels is not None and found.pixels.setdefault(row.image, pixels) != pixels:
            problems.append(
                f"line {row.line} ({row.key}): its counts add up to {pixels} pixels, but those of another row of "
                f"{row.image} to {found.pixels[row.image]}"
            )
        lines.setdefault(cell, row.line)
        found.runs.setdefault(cell, [])
        if len(runs):
            found.runs[cell].append(runs)
    problems += _run_problems(found, dialect, {**(sizes or {}), **found.sizes})
    _refuse(path, problems)
    return found


def _plain_runs(texts: list[str], dialect: Dialect) -> Sequence[Runs | None]:
    """The runs of the texts that can be read at once; None for the others, which ``parse_text`` reads or refuses."""
    if dialect.encoding != "pairs" or dialect.relative or sum(map(len, texts)) < _MANY:
        return [None] * len(texts)
    from visionapps.competition.run_text import plain_runs  # numba takes a while to import

    return plain_runs(texts)


def _rows(path: Path, dialect: Dialect, usage: str | None, problems: list[str]) -> Iterator[tuple[Row, str | None]]:
    """Rows and what they are for; the columns may stand in any order where there may be others."""
    (_, header), *lines = csv_lines(path)
    if not lines and (usage is not None or dialect.absent == "row"):
        raise DataError(f"{path}: holds a header and no row; give a file with rows")
    if (usage is None and tuple(header) != dialect.header) or not set(dialect.header) <= set(header):
        raise DataError(
            f"{path}: header {','.join(header)!r}, but the dialect has {','.join(dialect.header)!r}; choose another "
            "--dialect, or exchange the two files"
        )
    if usage is None:  # what is uploaded; a solution file stays here
        problems += mark_problems(path)
    places = [header.index(title) for title in dialect.header]
    use = header.index(usage) if usage in header else None
    if use is None and usage not in (None, USAGE):
        raise DataError(
            f"{path}: has no column {usage!r}; its columns are {', '.join(header)}; give the title of the one that "
            "divides its rows"
        )
    for line, cells in lines:
        if len(cells) != len(header):
            problems.append(f"line {line}: {len(cells)} columns, but the header has {len(header)}")
            continue
        own = [cells[i] for i in places]
        try:
            image, label, text, size = dialect.split(own)
        except DataError as error:
            problems.append(f"line {line}: {error}")
            continue
        key = dialect.key(image, 1 if label is None else label)
        yield Row(line, key, image, label, text, size), None if use is None else cells[use].strip()


def _run_problems(rows: RowSet, dialect: Dialect, sizes: Mapping[str, Size]) -> Iterator[str]:
    """Of each image the first row that is malformed; else two rows that claim one pixel."""
    groups = list(rows.runs.items())
    flat = [(cell, runs) for cell, own in groups for runs in own]
    table = RunTable.of([runs for _, runs in flat], base=dialect.base)
    limits = [_pixels(sizes.get(image, dialect.resize)) for (image, _), _ in flat]
    ends = np.array([np.iinfo(np.int64).max if limit is None else limit for limit in limits], np.int64)
    bad = table.malformed(None)
    if bad is not None or (table.ends > ends[table.rows]).any():
        words = list(_malformed(flat, limits, dialect))  # one by one
        yield from words or [f"{dialect.key(*flat[bad or 0][0])}: has a run that ends farther away than in any image"]
        return
    if dialect.overlap:
        return
    names = rows.images
    number = {image: i for i, image in enumerate(names)}
    image = table.overlapping(np.array([number[cell[0]] for cell, _ in flat], np.int64))
    if image is not None:
        yield f"image {names[image]}: {_overlap([own for own in flat if own[0][0] == names[image]], dialect)}"


def _pixels(size: Size | None) -> int | None:
    return None if size is None else size[0] * size[1]


def _malformed(flat: Sequence[tuple[Cell, Runs]], pixels: Sequence[int | None], dialect: Dialect) -> Iterator[str]:
    for ((image, label), runs), limit in zip(flat, pixels, strict=True):
        try:
            check_runs(runs, limit, base=dialect.base)
        except DataError as error:
            yield f"{dialect.key(image, label)}: {error}"


def _overlap(rows: Sequence[tuple[Cell, Runs]], dialect: Dialect) -> str:
    labels = [label for (_, label), _ in rows]
    if len(set(labels)) < len(labels):
        return "two of its objects claim one pixel; rows must not overlap in this dialect"
    try:
        merge_runs({label: runs for (_, label), runs in rows}, None, base=dialect.base)
    except DataError as error:
        return str(error)
    return "two of its rows claim one pixel"


def read_folder(folder: Path, dialect: Dialect, *, classes: int | None = None) -> RowSet:
    """True index masks as the rows that they would have; void (255) is background, as in every submission.

    Args:
        folder: of PNG, TIFF or BMP masks, value = label.
        dialect: rows, sizes and ids.
        classes: labels of the model, where the dialect names none.

    Raises:
        DataError: a mask cannot be read or has a label that is not known, two have one id, or all are of 0 and 255.
    """
    written = dialect.written(classes)
    labels = written if dialect.per_class else (1,)
    found = RowSet(folder, {}, ascending=False)
    voids = VoidCheck(written)
    for name, mask in read_masks(mask_files(folder)):
        image = dialect.image_of(name)
        if image in found.sizes:
            raise DataError(f"{folder}: two masks have the id {image!r}; keep one, or change image_id of the dialect")
        places = to_places(name, mask, dialect=dialect, written=written, classes=classes)
        voids.add(mask)
        found.sizes[image] = places.shape[0], places.shape[1]
        runs = encode_labels(places, range(1, len(labels) + 1), order=dialect.order, base=dialect.base)
        for label, own in zip(labels, runs, strict=True):
            if dialect.instances:
                found.runs[image, label] = pieces(own, found.sizes[image], dialect, dialect.instances)
            else:
                found.runs[image, label] = [own] if len(own) else []
    voids.refuse(folder)
    return found


def pieces(runs: Runs, size: Size, dialect: Dialect, neighbours: Literal[4, 8]) -> list[Runs]:
    """The runs of each piece of a mask that hangs together."""
    from visionapps.inference.run_components import components  # numba takes a while to import

    line_px = size[1] if dialect.order == "row" else size[0]
    return components(runs, line_px, neighbours=neighbours, base=dialect.base)


def match_rows(prediction: RowSet, truth: RowSet, dialect: Dialect) -> bool:
    """Check that both sides have the same rows, of the same sizes. Returns whether those of both have the same order.

    Raises:
        DataError: rows are missing or superfluous, or sizes differ; the message names some.
    """
    missing = [dialect.key(*cell) for cell in truth.runs if cell not in prediction.runs]
    extra = [dialect.key(*cell) for cell in prediction.runs if cell not in truth.runs]
    problems = []
    if missing and dialect.absent == "row":
        problems.append(f"{len(missing)} of {len(truth.runs)} rows are missing: {_some(missing)}")
    if extra and dialect.absent == "row":
        problems.append(f"{len(extra)} rows are not in {truth.source}: {_some(extra)}")
    strange = [image for image in prediction.images if image not in truth.sizes] if not truth.ascending else []
    if strange and dialect.absent == "skip":  # a folder has all images that there are
        problems.append(f"{len(strange)} images are not in {truth.source}: {_some(strange)}")
    for image, size in prediction.sizes.items():
        if truth.sizes.get(image, size) != size:
            problems.append(f"image {image} has the size {size}, but {truth.sizes[image]} in {truth.source}")
    for image, pixels in prediction.pixels.items():
        if truth.pixels.get(image, pixels) != pixels:
            problems.append(
                f"image {image}: its counts add up to {pixels} pixels, but to {truth.pixels[image]} in {truth.source}"
            )
    _refuse(prediction.source, problems)
    ours, theirs = ([cell for cell in a.runs if cell in b.runs] for a, b in ((prediction, truth), (truth, prediction)))
    return not truth.ascending or ours == theirs


def usage_of(cells: Sequence[Cell], truth: RowSet) -> dict[Cell, str]:
    """What each cell is for, if the truth tells it; a cell without a row is for what the rows of its image are for.

    Raises:
        DataError: the truth does not tell it of an image.
    """
    if not truth.usage:
        return {}
    of_image: dict[str, set[str]] = {}
    for (image, _), part in truth.usage.items():
        of_image.setdefault(image, set()).add(part)
    found = dict(truth.usage)
    for cell in cells:
        if cell in found:
            continue
        image, label = cell
        parts = sorted(of_image.get(image, ()))
        if len(parts) != 1:
            why = f"image {image} has rows of {' and of '.join(parts)}" if parts else f"it has no row of image {image}"
            raise DataError(
                f"{truth.source}: {why} and does not tell which leaderboard label {label} of it counts for; give it a "
                "row there"
            )
        found[cell] = parts[0]
    return found


def _refuse(path: Path, problems: Sequence[str]) -> None:
    if problems:
        more = f" (the first of {len(problems)} problems)" if len(problems) > 1 else ""
        raise DataError(
            f"{path}: {problems[0]}{more}; `visionapps submit --verify` lists all that is wrong with a file"
        )


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_SHOWN]) + (", ..." if len(ids) > _SHOWN else "")
