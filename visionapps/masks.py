"""Run lengths: the one codec between label maps and the text that competitions and COCO ask for.

Runs are an (N, 2) int64 array of (start, length), ascending and apart, counted along the reading order of the pixels:
``row`` reads left to right and then down, ``column`` reads down and then right. ``base`` is the number of the first
pixel, 1 in nearly every competition. Shapes: H x W pixels, N runs.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from visionapps.errors import DataError

Order = Literal["row", "column"]
Runs = NDArray[np.int64]

_CHUNK = 1 << 20  # pixels compared at a time: the booleans of one comparison stay in the second-level cache


class CocoRle(TypedDict):
    """A run-length mask as COCO files hold it."""

    size: list[int]  # H, W
    counts: str


class LabelRuns(NamedTuple):
    """A label map as the stretches of equal label that cover it, in reading order."""

    starts: NDArray[np.int64]  # (M,) 0-based; the first is 0
    lengths: NDArray[np.int64]  # (M,)
    labels: NDArray[Any]  # (M,) the dtype of the map


def label_runs(labels: NDArray[Any], *, order: Order) -> LabelRuns:
    """Cut a label map into stretches of equal label, in one pass over its pixels.

    Args:
        labels: (H, W) bool or integer.
        order: how the pixels are read.

    Raises:
        DataError: the map is not two-dimensional or holds floats.
    """
    if labels.ndim != 2 or labels.dtype.kind not in "bui":
        raise DataError(
            f"mask: shape {labels.shape} of {labels.dtype}, but a two-dimensional map of bool or integers is expected; "
            "take the argmax or a threshold first"
        )
    lines = labels if order == "row" else labels.T
    if not lines.size:
        empty = np.zeros(0, np.int64)
        return LabelRuns(empty, empty, np.zeros(0, labels.dtype))
    pieces = _changes_flat(lines.reshape(-1)) if lines.flags.c_contiguous else _changes_across(lines)
    starts = np.concatenate([np.zeros(1, np.int64), *pieces])
    lengths = np.diff(starts, append=lines.size)
    return LabelRuns(starts, lengths, lines[np.divmod(starts, lines.shape[1])])


def _changes_flat(pixels: NDArray[Any]) -> Iterator[NDArray[np.int64]]:
    """Where a pixel differs from the one before it."""
    differs = np.empty(min(_CHUNK, pixels.size), np.bool_)
    for first in range(1, pixels.size, _CHUNK):
        count = min(_CHUNK, pixels.size - first)
        np.not_equal(pixels[first : first + count], pixels[first - 1 : first - 1 + count], out=differs[:count])
        yield np.flatnonzero(differs[:count]) + first


def _changes_across(lines: NDArray[Any]) -> Iterator[NDArray[np.int64]]:
    """The same for lines that run across memory: compare in the memory's order and sort the few changes.

    Five times as fast as transposing the pixels first, and without a copy of them.
    """
    count, length = lines.shape
    step = max(1, _CHUNK // length)
    for first in range(0, count, step):
        slab = lines[first : first + step]
        before = lines[first - 1 : first - 1 + len(slab)] if first else lines[: len(slab) - 1]
        # The first pixel of a line follows the last pixel of the line before it; the very first follows nothing.
        line = np.flatnonzero(slab[len(slab) - len(before) :, 0] != before[:, -1]) + (first or 1)
        # Transposed, the comparison walks along memory.
        column, offset = np.divmod(np.flatnonzero(slab[:, 1:].T != slab[:, :-1].T), len(slab))
        changes = np.concatenate([line * length, (offset + first) * length + column + 1])
        changes.sort()
        yield changes


def encode(mask: NDArray[Any], *, order: Order, base: int = 1) -> Runs:
    """The runs of a binary mask.

    Args:
        mask: (H, W) bool or integer; everything but 0 is foreground.
        order: how the pixels are read.
        base: the number of the first pixel.

    Returns:
        (N, 2) start and length.

    Raises:
        DataError: the mask is not two-dimensional or holds floats.
    """
    starts, lengths, labels = label_runs(mask, order=order)
    inside = labels != 0
    starts, ends = starts[inside], (starts + lengths)[inside]
    # Different labels that touch are one run of foreground.
    joined = starts[1:] == ends[:-1]
    starts, ends = starts[np.append(True, ~joined)[: len(starts)]], ends[np.append(~joined, True)[: len(ends)]]
    return np.stack([starts + base, ends - starts], axis=1)


def encode_labels(labels: NDArray[Any], classes: Sequence[int], *, order: Order, base: int = 1) -> list[Runs]:
    """The runs of several classes of a label map, in one pass over its pixels however many classes there are.

    Args:
        labels: (H, W) bool or integer.
        classes: the labels wanted, in any order; one that does not occur has no runs.
        order: how the pixels are read.
        base: the number of the first pixel.

    Returns:
        One (N, 2) array of start and length per class.
    """
    starts, lengths, found = label_runs(labels, order=order)
    by_label = np.argsort(found, kind="stable")  # stable: runs of one label stay in reading order
    ordered = found[by_label]
    runs = np.stack([starts + base, lengths], axis=1)[by_label]
    # Compared as Python integers, so that a class outside the range of the map's dtype is just absent.
    present, firsts = np.unique(ordered, return_index=True)
    bounds = [*firsts.tolist(), len(ordered)]
    place = {int(label): slice(bounds[i], bounds[i + 1]) for i, label in enumerate(present)}
    return [runs[place.get(label, slice(0, 0))] for label in classes]


def check_runs(runs: NDArray[Any], pixels: int | None, *, base: int = 1) -> None:
    """Raise DataError unless runs ascend, do not overlap, and lie inside the image.

    Args:
        runs: (N, 2) start and length.
        pixels: H * W, or None when the size is not known.
        base: the number of the first pixel.
    """
    starts, lengths = runs[:, 0], runs[:, 1]
    ends = starts + lengths  # of the pixel after each run
    limit = np.iinfo(np.int64).max if pixels is None else pixels + base
    # Lengths are compared, not ends alone: start + length may wrap around.
    wrong = (starts < base) | (lengths < 1) | (starts > limit) | (lengths > limit - np.maximum(starts, 0))
    wrong[1:] |= starts[1:] < ends[:-1]
    if not wrong.any():
        return
    i = int(np.argmax(wrong))
    start, length, where = int(starts[i]), int(lengths[i]), f"run {i + 1} ({starts[i]} {lengths[i]})"
    if length < 1:
        raise DataError(f"{where}: length {length}, but a run has at least one pixel")
    if start < base:
        raise DataError(f"{where}: start {start}, but the first pixel has number {base}; check base 0 or 1")
    if start > limit or length > limit - start:
        raise DataError(
            f"{where}: ends at pixel {start + length - 1}, but the last pixel is {limit - 1}; check size and base"
        )
    raise DataError(
        f"{where}: starts before run {i} ends at pixel {int(ends[i - 1]) - 1}; runs must ascend without overlap"
    )


def format_runs(runs: Runs, *, relative: bool = False) -> str:
    """Runs as text, "start length start length ...".

    Args:
        runs: (N, 2) start and length.
        relative: write each start as the distance from the end of the run before it (SIIM-ACR); the first is absolute.
    """
    if relative and len(runs):
        runs = runs.copy()
        runs[1:, 0] -= (runs[:-1, 0] + runs[:-1, 1]).copy()
    return " ".join(map(str, runs.ravel().tolist()))


def parse_runs(text: str, *, relative: bool = False) -> Runs:
    """Runs from text; "" gives none. Their order and range are left to ``check_runs`` and ``decode``.

    Raises:
        DataError: a word is no whole number, or a start has no length.
    """
    words = text.split()
    try:
        if "_" in text:  # int() would take 1_000 for a thousand
            raise ValueError(text)
        numbers = np.array(list(map(int, words)), np.int64)
    except (ValueError, OverflowError) as error:
        i = next((i for i, word in enumerate(words) if not _is_int64(word)), 0)
        raise DataError(
            f"run {i // 2 + 1}: {words[i][:40]!r} is no whole number; pairs of start and length are expected"
        ) from error
    if len(numbers) % 2:
        raise DataError(
            f"run {len(numbers) // 2 + 1}: start {numbers[-1]} has no length; an even count of numbers is expected, "
            f"got {len(numbers)}; the text may be cut off"
        )
    runs = numbers.reshape(-1, 2)
    if relative and len(runs):
        runs[:, 0] = np.cumsum(runs[:, 0]) + np.concatenate([[0], np.cumsum(runs[:-1, 1])])
    return runs


def _is_int64(word: str) -> bool:
    digits = word.removeprefix("-")
    return digits.isascii() and digits.isdigit() and -(2**63) <= int(word) < 2**63


def decode(runs: NDArray[Any], shape: tuple[int, int], *, order: Order, base: int = 1) -> NDArray[np.bool_]:
    """The binary mask of runs.

    Args:
        runs: (N, 2) start and length.
        shape: (H, W).
        order: how the pixels are read.
        base: the number of the first pixel.

    Returns:
        (H, W) bool; column order gives a Fortran-ordered array.

    Raises:
        DataError: runs overlap, do not ascend, or leave the image; the message names the first such run.
    """
    return decode_labels({1: runs}, shape, order=order, base=base).view(np.bool_)


def decode_labels(
    runs: Mapping[int, NDArray[Any]], shape: tuple[int, int], *, order: Order, base: int = 1, background: int = 0
) -> NDArray[np.uint8]:
    """The label map of the runs of several classes.

    Args:
        runs: (N, 2) start and length per label in [0, 255].
        shape: (H, W).
        order: how the pixels are read.
        base: the number of the first pixel.
        background: label of the pixels in no run.

    Returns:
        (H, W) uint8; column order gives a Fortran-ordered array.

    Raises:
        DataError: runs are malformed, see ``check_runs``, or two classes claim the same pixel.
    """
    height, width = shape
    starts, lengths, labels = merge_runs(runs, height * width, base=base)
    gaps = np.diff(starts + lengths, prepend=0) - lengths  # pixels of background before each run
    counts = np.append(np.stack([gaps, lengths], axis=1).ravel(), height * width - int((gaps + lengths).sum()))
    values = np.full(len(counts), background, np.uint8)
    values[1::2] = labels
    pixels = np.repeat(values, counts)
    return pixels.reshape(height, width) if order == "row" else pixels.reshape(width, height).T


def merge_runs(runs: Mapping[int, NDArray[Any]], pixels: int | None, *, base: int = 1) -> LabelRuns:
    """The runs of several classes in one list by start; the stretches between them are left out.

    Args:
        runs: (N, 2) start and length per label in [0, 255].
        pixels: H * W, or None when the size is not known.
        base: the number of the first pixel.

    Raises:
        DataError: runs are malformed, see ``check_runs``, or two classes claim the same pixel.
    """
    for label, own in runs.items():
        try:
            check_runs(own, pixels, base=base)
        except DataError as error:
            raise DataError(f"label {label}, {error}") from error
    together = np.concatenate([np.zeros((0, 2), np.int64), *runs.values()])
    labels = np.repeat(np.array(list(runs), np.uint8), [len(own) for own in runs.values()])
    by_start = np.argsort(together[:, 0], kind="stable")
    starts, lengths, labels = together[by_start, 0] - base, together[by_start, 1], labels[by_start]
    twice = starts[1:] < (starts + lengths)[:-1]
    if twice.any():
        i = int(np.argmax(twice))
        raise DataError(
            f"labels {labels[i]} and {labels[i + 1]} both claim pixel {starts[i + 1] + base}; classes overlap"
        )
    return LabelRuns(starts, lengths, labels)


def runs_to_coco(runs: Runs, shape: tuple[int, int], *, base: int = 1) -> CocoRle:
    """Column-major runs as COCO's compressed run-length mask.

    Args:
        runs: (N, 2) start and length, read by column.
        shape: (H, W).
        base: the number of the first pixel.
    """
    from pycocotools import mask as coco

    height, width = shape
    check_runs(runs, height * width, base=base)
    # COCO counts background and foreground in turn; a last stretch of background is left out when it is empty.
    ends = runs.sum(axis=1) - base
    counts = np.stack([np.diff(ends, prepend=0) - runs[:, 1], runs[:, 1]], axis=1).ravel()
    rest = height * width - int(counts.sum())
    if rest:
        counts = np.append(counts, rest)
    packed = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": packed["counts"].decode("ascii")}


def coco_to_runs(rle: Mapping[str, Any], *, base: int = 1) -> Runs:
    """The column-major runs of a COCO run-length mask, compressed (text or bytes) or not (a list of counts).

    Read here rather than by pycocotools, which leaves pixels uninitialised where the counts fall short of the size.

    Raises:
        DataError: the counts cannot be read, or do not add up to the size.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        packed = rle["counts"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"COCO run lengths cannot be read ({error}); size [H, W] and counts are expected") from error
    runs, pixels = counts_to_runs(packed, base=base)
    if pixels != height * width:
        raise DataError(
            f"COCO run lengths: the counts add up to {pixels} pixels, but the size {height} x {width} has "
            f"{height * width}; the annotation is cut off or belongs to another image"
        )
    return runs


def counts_to_runs(packed: str | bytes | Sequence[int], *, base: int = 1) -> tuple[Runs, int]:
    """The column-major runs of COCO's counts, compressed or not, and how many pixels the counts cover.

    Raises:
        DataError: the counts cannot be read.
    """
    try:
        if isinstance(packed, str | bytes):
            counts = _unpack_counts(packed.encode("ascii") if isinstance(packed, str) else packed)
        else:
            counts = np.array(packed, np.int64).reshape(-1)
        if (counts < 0).any():
            raise ValueError(f"count {counts.min()} is negative")
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"COCO run lengths cannot be read ({error}); size [H, W] and counts are expected") from error
    ends = np.cumsum(counts)
    runs = np.stack([ends[0::2][: len(counts) // 2] + base, counts[1::2]], axis=1)
    return runs[runs[:, 1] > 0], int(counts.sum())


def _unpack_counts(packed: bytes) -> NDArray[np.int64]:
    """COCO's compressed counts: five bits a character, low bits first, each count as the change from the last but one.

    Source: maskApi.c of the COCO API, rleFrString.
    """
    digits = np.frombuffer(packed, np.uint8).astype(np.int64) - 48
    if not len(digits):
        return digits
    last = (digits & 0x20) == 0
    if not last[-1] or (digits < 0).any() or (digits > 63).any():
        raise ValueError("the compressed counts are cut off or hold foreign characters")
    firsts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    sizes = np.diff(firsts, append=len(digits))
    if sizes.max() > 12:
        raise ValueError("a compressed count is longer than 60 bits")
    shifts = 5 * (np.arange(len(digits)) - np.repeat(firsts, sizes))
    counts = np.add.reduceat((digits & 0x1F) << shifts, firsts)
    negative = (digits[last] & 0x10) != 0
    counts -= negative * (np.int64(1) << (5 * sizes))
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts
