"""Submissions under examination: what rows there should be, and everything that is wrong with those that are."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionapps.errors import ConfigError, DataError
from visionapps.inference.dialects import Dialect
from visionapps.inference.submission_rows import Places, Row, csv_lines, decode_rows, parse_rows, row_runs, to_places
from visionapps.masks import check_runs, merge_runs, parse_runs

_SHOWN = 5  # ids that a message lists

NamedMask = tuple[str, NDArray[Any]]


@dataclass(frozen=True)
class Report:
    """What a submission holds, and everything that is wrong with it."""

    rows: int
    images: int
    labels: int  # rows per image
    filled: int  # rows with runs
    compared: int = 0  # images whose pixels were compared with the masks
    left_out: int = 0  # masks that the sample does not ask for
    problems: tuple[str, ...] = ()


def verify(
    path: Path,
    dialect: Dialect,
    *,
    classes: int | None = None,
    sample: Path | None = None,
    masks: Iterable[NamedMask] = (),
) -> Report:
    """Decode every row of a submission and report everything that is wrong with it.

    Checked are the header, the form of ids, rows that are missing, superfluous or doubled, runs that are malformed,
    leave the image or overlap another class, and, for the masks given, every pixel.

    Args:
        path: the CSV.
        dialect: its rules.
        classes: labels of the model, the background included; None: as the dialect says, or as the file has them.
        sample: the competition's sample_submission.csv, for ids and order.
        masks: file name (without suffix) and label map of images to compare with; also tells sizes that the dialect
            leaves open.

    Raises:
        DataError: a file is missing or is no CSV, or a mask is unusable.
        ConfigError: the sample is of another dialect.
    """
    problems: list[str] = []
    rows = list(parse_rows(path, dialect, problems=problems))
    written = _written(rows, dialect, classes=classes)
    wanted = None if sample is None else sample_keys(sample, dialect)
    problems += _id_problems(rows, dialect, written=written, wanted=wanted)
    usable = []
    for row in _first_of_each(rows):
        if dialect.per_class and row.label not in written:
            problems.append(f"line {row.line} ({row.key}): label {row.label} has no rows in this dialect")
        elif not (found := _run_problem(row, dialect)):
            usable.append(row)
        else:
            problems.append(found)
    of_image = by_image(usable)
    for image in list(of_image):
        found = _overlap(image, of_image[image], dialect)
        if found:
            problems.append(found)
            del of_image[image]
    compared = 0
    for name, mask in masks:
        places = to_places(name, mask, dialect=dialect, written=written, classes=classes)
        image = dialect.image_of(name)
        problems += _differences(places, of_image.get(image, []), image=image, dialect=dialect, written=written)
        compared += 1
    return count_rows(rows, dialect, written=written, compared=compared, problems=problems)


def _written(rows: Sequence[Row], dialect: Dialect, *, classes: int | None) -> tuple[int, ...]:
    """The labels that should have rows; where nobody says, those that the file has."""
    if classes is None and dialect.labels is None and dialect.per_class:
        return tuple(sorted({row.label for row in rows if row.label is not None and row.label <= 255})[:255])
    return dialect.written(classes)


def _id_problems(
    rows: Sequence[Row], dialect: Dialect, *, written: Sequence[int], wanted: Sequence[str] | None
) -> Iterator[str]:
    """Rows that are doubled, missing, superfluous or, against a sample, in another order."""
    counts = Counter(row.key for row in rows)
    twice = [key for key, count in counts.items() if count > 1]
    if twice:
        yield f"{len(twice)} ids stand there more than once: {_some(twice)}"
    if wanted is None:
        labels = written if dialect.per_class else (0,)
        expected = [dialect.key(image, label) for image in dict.fromkeys(row.image for row in rows) for label in labels]
    else:
        expected = list(wanted)
    missing = [key for key in expected if key not in counts]
    if missing:
        yield f"{len(missing)} rows are missing: {_some(missing)}"
    if wanted is None:
        return
    asked = frozenset(wanted)
    extra = [key for key in counts if key not in asked]
    if extra:
        yield f"{len(extra)} rows are not in the sample: {_some(extra)}"
    if not missing and not extra and list(counts) != expected:
        i = next(i for i, (got, want) in enumerate(zip(counts, expected, strict=True)) if got != want)
        yield f"rows are in another order than in the sample, first row {i + 1}: {list(counts)[i]}, not {expected[i]}"


def _first_of_each(rows: Iterable[Row]) -> Iterator[Row]:
    """Without rows whose id stood there before: they are reported once, as doubled."""
    seen = set()
    for row in rows:
        if row.key not in seen:
            seen.add(row.key)
            yield row


def _run_problem(row: Row, dialect: Dialect) -> str | None:
    pixels = dialect.resize[0] * dialect.resize[1] if dialect.resize else None
    try:
        check_runs(parse_runs(row.text, relative=dialect.relative), pixels, base=dialect.base)
    except DataError as error:
        return f"line {row.line} ({row.key}): {error}"
    return None


def _overlap(image: str, rows: Sequence[Row], dialect: Dialect) -> str | None:
    try:
        merge_runs(row_runs(rows, dialect), None, base=dialect.base)
    except DataError as error:
        return f"image {image}: {error}"
    return None


def _differences(
    places: Places, rows: Sequence[Row], *, image: str, dialect: Dialect, written: Sequence[int]
) -> Iterator[str]:
    """In what the rows of an image differ from its mask."""
    if not rows:
        yield f"image {image}: cannot be compared with its mask, no row of it can be used"
        return
    size = places.shape[0], places.shape[1]
    try:
        differs = decode_rows(rows, size, dialect=dialect, written=written) != places
    except DataError as error:  # sizes that only the mask tells
        yield f"image {image}: {error}"
        return
    if differs.any():
        row, col = np.argwhere(differs)[0]
        yield (
            f"image {image}: {int(differs.sum())} of {differs.size} pixels differ from the mask, the first at "
            f"row {row}, column {col}"
        )


def by_image(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by their image, in the order of their first row."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.image, []).append(row)
    return found


def count_rows(
    rows: Sequence[Row],
    dialect: Dialect,
    *,
    written: Sequence[int],
    compared: int = 0,
    left_out: int = 0,
    problems: Sequence[str] = (),
) -> Report:
    """What a list of rows holds."""
    return Report(
        rows=len(rows),
        images=len({row.image for row in rows}),
        labels=len(written) if dialect.per_class else 1,
        filled=sum(bool(row.text) for row in rows),
        compared=compared,
        left_out=left_out,
        problems=tuple(problems),
    )


def sample_keys(sample: Path, dialect: Dialect) -> list[str]:
    """The row ids that a competition's sample_submission.csv asks for, in its order.

    Raises:
        ConfigError: its header or its ids are not those of the dialect.
        DataError: it cannot be read, holds no rows, or an id twice.
    """
    header, *lines = [cells for _, cells in csv_lines(sample)]
    if tuple(header) != dialect.header:
        raise ConfigError(
            f"{sample}: header {','.join(header)!r}, but the dialect writes {','.join(dialect.header)!r}; "
            "choose another dialect, or set --header"
        )
    keys = [cells[0] for cells in lines]
    if not keys:
        raise DataError(f"{sample}: holds a header and no row; give the competition's sample_submission.csv")
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise DataError(f"{sample}: {_some(twice)} stand there more than once; give the competition's own file")
    try:
        images_of(keys, dialect)
    except DataError as error:
        raise ConfigError(f"{sample}: {error}; choose another dialect, or set --row-id") from error
    return keys


def match_sample(names: Iterable[str], dialect: Dialect, *, sample: Path, classes: int | None = None) -> None:
    """Check by names alone, before any mask is decoded, that there is a mask for every id of the sample.

    Args:
        names: file names of the masks, without suffix.
        dialect: the rules of ids.
        sample: the competition's sample_submission.csv.
        classes: labels of the model, the background included.

    Raises:
        DataError: ids of the sample have no mask, or it lacks rows of an image that it names.
    """
    wanted = sample_keys(sample, dialect)
    images = images_of(wanted, dialect)
    labels = dialect.written(classes) if dialect.per_class else (0,)
    ids = (dialect.image_of(name) for name in names)
    match_keys(
        {dialect.key(image, label) for image in ids if image in images for label in labels}, wanted, sample=sample
    )


def images_of(keys: Iterable[str], dialect: Dialect) -> frozenset[str]:
    """The images that row ids belong to."""
    return frozenset(dialect.split_key(key)[0] for key in keys)


def match_keys(keys: Collection[str], wanted: Collection[str], *, sample: Path) -> None:
    """Raise DataError unless the rows that can be written are those that the sample asks for."""
    missing = [key for key in wanted if key not in keys]
    if missing:
        raise DataError(
            f"{sample}: {len(missing)} of {len(wanted)} ids have no mask: {_some(missing)}; "
            "predict those images too, or check --image-id and --classes"
        )
    asked = frozenset(wanted)
    extra = [key for key in keys if key not in asked]
    if extra:
        raise DataError(
            f"{sample}: lacks {len(extra)} rows of images that it names: {_some(sorted(extra))}; check --classes"
        )


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_SHOWN]) + (", ..." if len(ids) > _SHOWN else "")
