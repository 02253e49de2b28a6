"""Submissions under examination: what rows there should be, and everything that is wrong with those that are."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from visionapps.errors import ConfigError, DataError
from visionapps.inference.dialects import Dialect, Size
from visionapps.inference.submission_rows import (
    Places,
    Row,
    csv_lines,
    decode_rows,
    parse_rows,
    parse_text,
    row_runs,
    to_places,
)
from visionapps.inference.void_masks import VoidCheck
from visionapps.masks import check_runs, merge_runs

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
    void_only: int = 0  # masks that hold background and void alone


def verify(
    path: Path,
    dialect: Dialect,
    *,
    classes: int | None = None,
    sample: Path | None = None,
    sizes: Mapping[str, Size] | None = None,
    masks: Iterable[NamedMask] = (),
    allow_empty: bool = False,
) -> Report:
    """Decode every row of a submission and report everything that is wrong with it.

    Checked are the header, the form of ids, rows that are missing, superfluous or doubled, sizes that rows tell, runs
    that are malformed, leave the image or overlap another row of it, and, for the masks given, every pixel.

    Args:
        path: the CSV.
        dialect: its rules.
        classes: labels of the model, the background included; None: as the dialect says, or as the file has them.
        sample: the competition's sample_submission.csv, for ids, order, and sizes where its rows tell them.
        sizes: (H, W) of the test images by id: others must not have rows; these must, unless the absent is skipped.
        masks: file name (without suffix) and label map of images to compare with; also tells sizes that the dialect
            leaves open. Those that the sample does not name are passed over, as in writing.
        allow_empty: 255 is void in the masks, even where none holds anything else but background.

    Raises:
        DataError: a file is missing or is no CSV, a mask is unusable, or all are of 0 and 255 and mean nothing here.
        ConfigError: the sample is of another dialect.
    """
    problems: list[str] = []
    rows = list(parse_rows(path, dialect, problems=problems))
    written = _written(rows, dialect, classes=classes)
    wanted = None if sample is None else read_sample(sample, dialect)
    problems += _id_problems(rows, dialect, written=written, wanted=None if wanted is None else wanted.keys)
    problems += _image_problems(rows, sizes, dialect)
    known = {**(wanted.sizes if wanted else {}), **(sizes or {})}
    known = {row.image: size for row in rows if (size := dialect.resize or known.get(row.image))}
    problems += _size_problems(rows, known)
    of_image = by_image(_usable(rows, dialect, written=written, known=known, problems=problems))
    overlaps = {image: found for image, own in of_image.items() if (found := _overlap(image, own, dialect))}
    problems += overlaps.values()
    left_out, voids = 0, VoidCheck(written)
    asked = None if wanted is None else images_of(wanted.keys, dialect)
    for name, mask in masks:
        image = dialect.image_of(name)
        if asked is not None and image not in asked:
            left_out += 1
            continue
        places = to_places(name, mask, dialect=dialect, written=written, classes=classes)
        own = [] if image in overlaps else of_image.get(image, [])
        problems += _differences(places, own, image=image, dialect=dialect, written=written)
        voids.add(mask)
    voids.refuse(path, allow_empty=allow_empty)
    return count_rows(rows, dialect, written=written, voids=voids, left_out=left_out, problems=problems)


def _usable(
    rows: Sequence[Row],
    dialect: Dialect,
    *,
    written: Sequence[int],
    known: Mapping[str, Size],
    problems: list[str],
) -> Iterator[Row]:
    """Rows whose pixels can be told; what is wrong with the others goes to the problems."""
    for row in _first_of_each(rows, dialect):
        if dialect.per_class and row.label not in written:
            problems.append(f"line {row.line} ({row.key}): label {row.label} has no rows in this dialect")
        elif found := _run_problem(row, dialect, known.get(row.image) or row.size):
            problems.append(found)
        else:
            yield row


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
    twice = [] if dialect.instances else [key for key, count in counts.items() if count > 1]
    if twice:
        yield f"{len(twice)} ids stand there more than once: {some(twice)}"
    if dialect.absent == "skip":  # which rows there are is the masks' affair
        yield from _order_problems(list(by_image(rows)), wanted and list(dict.fromkeys(_images(wanted, dialect))), ())
        return
    if wanted is None:
        labels = written if dialect.per_class else (0,)
        expected = [dialect.key(image, label) for image in dict.fromkeys(row.image for row in rows) for label in labels]
    else:
        expected = list(wanted)
    missing = [key for key in expected if key not in counts]
    if missing:
        yield f"{len(missing)} rows are missing: {some(missing)}"
    yield from _order_problems(list(counts), wanted, missing)


def _order_problems(found: Sequence[str], wanted: Sequence[str] | None, missing: Sequence[str]) -> Iterator[str]:
    """Ids that the sample does not have, or has in another order; those that are missing may be none of the matter."""
    if wanted is None:
        return
    asked, there = frozenset(wanted), frozenset(found)
    extra = [key for key in found if key not in asked]
    if extra:
        yield f"{len(extra)} rows are not in the sample: {some(extra)}"
    expected = [key for key in wanted if key in there]
    if not missing and not extra and list(found) != expected:
        i = next(i for i, (got, want) in enumerate(zip(found, expected, strict=True)) if got != want)
        yield f"rows are in another order than in the sample, first row {i + 1}: {found[i]}, not {expected[i]}"


def _image_problems(rows: Iterable[Row], sizes: Mapping[str, Size] | None, dialect: Dialect) -> Iterator[str]:
    """Rows of no image, and images without rows where each has some."""
    if sizes is None:
        return
    there = {row.image for row in rows}
    strange = sorted(there - sizes.keys())
    if strange:
        yield f"{len(strange)} ids belong to no image: {some(strange)}"
    without = [image for image in sizes if image not in there]
    if without and dialect.absent == "row":
        yield f"{len(without)} images have no rows: {some(without)}"


def _size_problems(rows: Iterable[Row], sizes: Mapping[str, Size]) -> Iterator[str]:
    """Rows that tell another size than the mask should have, or than other rows of their image."""
    told: dict[str, Size] = {}
    for row in rows:
        if row.size is None:
            continue
        size = sizes.get(row.image) or told.setdefault(row.image, row.size)
        if row.size != size:
            yield (
                f"line {row.line} ({row.key}): height {row.size[0]}, width {row.size[1]}, but the mask of "
                f"{row.image} is {size[0]} x {size[1]}"
            )


def _first_of_each(rows: Iterable[Row], dialect: Dialect) -> Iterator[Row]:
    """Without rows whose id stood there before: they are reported once, as doubled. Instances may share an id."""
    seen = set()
    for row in rows:
        if dialect.instances or row.key not in seen:
            seen.add(row.key)
            yield row


def _run_problem(row: Row, dialect: Dialect, size: Size | None) -> str | None:
    pixels = size[0] * size[1] if size else None
    try:
        check_runs(parse_text(row.text, dialect, size), pixels, base=dialect.base)
    except DataError as error:
        return f"line {row.line} ({row.key}): {error}"
    return None


def _overlap(image: str, rows: Sequence[Row], dialect: Dialect) -> str | None:
    if dialect.overlap:
        return None
    found = _shared_pixel(image, rows, dialect) if dialect.instances else None
    if found:
        return found
    try:
        merge_runs(row_runs(rows, dialect), None, base=dialect.base)
    except DataError as error:
        return f"image {image}: {error}"
    return None


def _shared_pixel(image: str, rows: Sequence[Row], dialect: Dialect) -> str | None:
    """The first pixel that two rows of an image claim, whatever their classes."""
    runs = [parse_text(row.text, dialect) for row in rows]
    together, owners = np.concatenate(runs), np.repeat([row.line for row in rows], [len(own) for own in runs])
    by_start = np.argsort(together[:, 0], kind="stable")
    together, owners = together[by_start], owners[by_start]
    twice = together[1:, 0] < together[:-1].sum(axis=1)
    if not twice.any():
        return None
    i = int(np.argmax(twice))
    lines = sorted((int(owners[i]), int(owners[i + 1])))
    return (
        f"image {image}: lines {lines[0]} and {lines[1]} both claim pixel {together[i + 1, 0]}; rows of an image must "
        "not overlap"
    )


def _differences(
    places: Places, rows: Sequence[Row], *, image: str, dialect: Dialect, written: Sequence[int]
) -> Iterator[str]:
    """In what the rows of an image differ from its mask."""
    if not rows and dialect.absent == "row":
        yield f"image {image}: cannot be compared with its mask, no row of it can be used"
        return
    try:
        differs = _differing(rows, places, dialect=dialect, written=written)
    except DataError as error:  # sizes that only the mask tells
        yield f"image {image}: {error}"
        return
    if differs.any():
        row, col = np.argwhere(differs)[0]
        yield (
            f"image {image}: {int(differs.sum())} of {differs.size} pixels differ from the mask, the first at "
            f"row {row}, column {col}"
        )


def _differing(rows: Sequence[Row], places: Places, *, dialect: Dialect, written: Sequence[int]) -> NDArray[np.bool_]:
    """(h, w): where the rows say something else than the mask."""
    size = places.shape[0], places.shape[1]
    if not dialect.overlap or not dialect.per_class:
        return np.not_equal(decode_rows(rows, size, dialect=dialect, written=written), places)
    differs = np.zeros(size, np.bool_)
    for place, label in enumerate(written, 1):  # one at a time: classes may share pixels
        own = [row for row in rows if row.label == label]
        differs |= decode_rows(own, size, dialect=dialect, written=written) != np.where(places == place, place, 0)
    return differs


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
    voids: VoidCheck,
    left_out: int = 0,
    problems: Sequence[str] = (),
) -> Report:
    """What a list of rows holds, and the masks that were compared with it."""
    return Report(
        rows=len(rows),
        images=len({row.image for row in rows}),
        labels=len(written) if dialect.per_class else 1,
        filled=sum(bool(row.text) for row in rows),
        compared=voids.masks,
        left_out=left_out,
        problems=tuple(problems),
        void_only=voids.void_only,
    )


class Sample(NamedTuple):
    """What a competition's sample_submission.csv asks for."""

    keys: list[str]  # of rows, each once, in its order
    sizes: dict[str, Size]  # of masks by image, where rows tell them


def sample_keys(sample: Path, dialect: Dialect) -> list[str]:
    """The keys of the rows that a sample asks for, see ``read_sample``."""
    return read_sample(sample, dialect).keys


def read_sample(sample: Path, dialect: Dialect) -> Sample:
    """What a competition's sample_submission.csv asks for; its masks are not looked at.

    Raises:
        ConfigError: its header or its ids are not those of the dialect.
        DataError: it cannot be read, holds no rows, an id twice, or two sizes for one image.
    """
    header, *lines = [cells for _, cells in csv_lines(sample)]
    if tuple(header) != dialect.header:
        raise ConfigError(
            f"{sample}: header {','.join(header)!r}, but the dialect writes {','.join(dialect.header)!r}; "
            "choose another dialect, or set --header"
        )
    try:
        parts = [dialect.split([*cells, *[""] * len(header)][: len(header)], masks=False) for cells in lines]
    except DataError as error:
        raise ConfigError(f"{sample}: {error}; choose another dialect, or set --row-id") from error
    keys = [dialect.key(part.image, part.label or 0) for part in parts]
    if not keys:
        raise DataError(f"{sample}: holds a header and no row; give the competition's sample_submission.csv")
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice and not dialect.instances:
        raise DataError(f"{sample}: {some(twice)} stand there more than once; give the competition's own file")
    sizes: dict[str, Size] = {}
    for part in parts:
        if part.size and sizes.setdefault(part.image, part.size) != part.size:
            raise DataError(f"{sample}: image {part.image} has two sizes; give the competition's own file")
    return Sample(list(dict.fromkeys(keys)), sizes)


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
    ids = [dialect.image_of(name) for name in names]
    keys = {dialect.key(image, label) for image in ids if image in images for label in labels}
    match_keys(keys, wanted, sample=sample, dialect=dialect, ids=ids)


def _images(keys: Iterable[str], dialect: Dialect) -> Iterator[str]:
    return (dialect.split_key(key)[0] for key in keys)


def images_of(keys: Iterable[str], dialect: Dialect) -> frozenset[str]:
    """The images that the keys of rows belong to."""
    return frozenset(_images(keys, dialect))


def match_keys(
    keys: Collection[str], wanted: Collection[str], *, sample: Path, dialect: Dialect, ids: Sequence[str]
) -> None:
    """Raise DataError unless the rows that can be written are those that the sample asks for.

    Args:
        keys: of the rows that can be written for images that the sample names.
        wanted: those that it asks for.
        sample: its file, for messages.
        dialect: its rules; where absent classes are skipped, only images have to match.
        ids: of all masks, the superfluous included, to show where none matches.
    """
    asked = frozenset(wanted)
    missing = [key for key in wanted if key not in keys]
    if missing:
        advice = "predict those images too, or check --image-id and --classes"
        if not asked & frozenset(keys):
            advice = f"the masks have the ids {some(ids)}; {advice}"
        raise DataError(f"{sample}: {len(missing)} of {len(wanted)} ids have no mask: {some(missing)}; {advice}")
    extra = [key for key in keys if key not in asked]
    if extra and dialect.absent == "row":
        raise DataError(
            f"{sample}: lacks {len(extra)} rows of images that it names: {some(sorted(extra))}; check --classes"
        )


def some(ids: Sequence[str]) -> str:
    """The first few of a list, for a message."""
    return ", ".join(ids[:_SHOWN]) + (", ..." if len(ids) > _SHOWN else "")
