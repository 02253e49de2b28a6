"""Between label maps and their runs, in one pass and without a copy of the pixels."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from visionapps.errors import DataError

Order = Literal["row", "column"]
Runs = NDArray[np.int64]

_CHUNK = 1 << 20  # pixels compared or painted at a time: those of one comparison stay in the second-level cache
_RUNS = 1 << 15  # runs checked or painted at a time: what is made of them is small beside the mask


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
    lines = _lines(labels, order)
    bounds, found = _stretches(lines)
    return LabelRuns(bounds[:-1], np.diff(bounds), found)


def _lines(labels: NDArray[Any], order: Order) -> NDArray[Any]:
    """The pixels so that they are read row by row."""
    if labels.ndim != 2 or labels.dtype.kind not in "bui":
        raise DataError(
            f"mask: shape {labels.shape} of {labels.dtype}, but a two-dimensional map of bool or integers is expected; "
            "take the argmax or a threshold first"
        )
    return labels if order == "row" else labels.T


def _stretches(lines: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """(M + 1,) where stretches begin, and the number of pixels; (M,) their labels."""
    if not lines.size:
        return np.zeros(1, np.int64), np.zeros(0, lines.dtype)
    bounds = _gather(_changes(lines), first=(0,), last=(lines.size,))
    labels = np.empty(len(bounds) - 1, lines.dtype)
    for i in range(0, len(labels), _RUNS):  # in parts: both coordinates of all would be the largest arrays here
        starts = bounds[i : min(i + _RUNS, len(labels))]
        labels[i : i + _RUNS] = lines[np.divmod(starts, lines.shape[1])]
    return bounds, labels


def _gather(pieces: Iterable[NDArray[np.int64]], *, first: Sequence[int], last: Sequence[int]) -> NDArray[np.int64]:
    """All pieces in one array, which grows in place: at no time are there two of them."""
    found = np.array([*first, *[0] * _RUNS], np.int64)
    count = len(first)
    for piece in pieces:
        if count + len(piece) + len(last) > len(found):
            found.resize(max(count + len(piece) + len(last), len(found) * 5 // 4), refcheck=False)
        found[count : count + len(piece)] = piece
        count += len(piece)
    found[count : count + len(last)] = last
    found.resize(count + len(last), refcheck=False)
    return found


def _changes(lines: NDArray[Any], *, binary: bool = False) -> Iterator[NDArray[np.int64]]:
    """Where a pixel differs from the one before it, ascending; binary: only in being 0 or not."""
    binary = binary and lines.dtype != np.bool_
    if lines.flags.c_contiguous:
        return _changes_flat(lines.reshape(-1), binary)
    return _changes_across(lines, binary)


def _changes_flat(pixels: NDArray[Any], binary: bool) -> Iterator[NDArray[np.int64]]:
    differs = np.empty(min(_CHUNK, pixels.size), np.bool_)
    for first in range(1, pixels.size, _CHUNK):
        count = min(_CHUNK, pixels.size - first)
        part = pixels[first - 1 : first + count]
        part = part != 0 if binary else part
        np.not_equal(part[1:], part[:-1], out=differs[:count])
        yield np.flatnonzero(differs[:count]) + first


def _changes_across(lines: NDArray[Any], binary: bool) -> Iterator[NDArray[np.int64]]:
    """For lines that run across memory: compare in the memory's order and sort the few changes.

    Five times as fast as transposing the pixels first, and without a copy of them.
    """
    count, length = lines.shape
    step = max(1, _CHUNK // length)
    for first in range(0, count, step):
        slab = lines[max(first - 1, 0) : first + step]
        slab = slab != 0 if binary else slab  # numpy keeps the layout
        before, slab = (slab[:-1], slab[1:]) if first else (slab[:-1], slab)
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
    lines = _lines(mask, order)
    if not lines.size:
        return np.zeros((0, 2), np.int64)
    # Foreground begins and ends in turn: where it does so is the result already, but for the lengths.
    first, last = lines[0, 0] != 0, lines[-1, -1] != 0
    ends = _gather(_changes(lines, binary=True), first=(0,) * int(first), last=(lines.size,) * int(last))
    runs = ends.reshape(-1, 2)
    runs[:, 1] -= runs[:, 0]
    runs[:, 0] += base
    return runs


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
    bounds, found = _stretches(_lines(labels, order))
    # Compared as Python integers, so that a class outside the range of the map's dtype is just absent.
    present = set(np.unique(found).tolist())
    none = np.zeros((0, 2), np.int64)
    return [_runs_of(label, bounds, found, base) if label in present else none.copy() for label in classes]


def _runs_of(label: int, bounds: NDArray[np.int64], found: NDArray[Any], base: int) -> Runs:
    places = np.flatnonzero(found == label)
    runs = np.empty((len(places), 2), np.int64)
    np.take(bounds, places, out=runs[:, 0], mode="clip")  # "raise" would fill a copy of the output first
    places += 1
    np.take(bounds, places, out=runs[:, 1], mode="clip")
    runs[:, 1] -= runs[:, 0]
    runs[:, 0] += base
    return runs


def check_runs(runs: NDArray[Any], pixels: int | None, *, base: int = 1) -> None:
    """Raise DataError unless runs ascend, do not overlap, and lie inside the image.

    Args:
        runs: (N, 2) start and length.
        pixels: H * W, or None when the size is not known.
        base: the number of the first pixel.
    """
    limit = np.iinfo(np.int64).max if pixels is None else pixels + base
    for first in range(0, len(runs), _RUNS):
        before = max(first - 1, 0)  # the run before the first of a part is looked at twice
        _check_part(runs[before : first + _RUNS], before, limit, base)


def _check_part(runs: NDArray[Any], before: int, limit: int, base: int) -> None:
    """Check neighbouring runs.

    Args:
        runs: (N, 2) start and length.
        before: how many runs come before these.
        limit: the number of the pixel after the last.
        base: the number of the first pixel.
    """
    starts, lengths = runs[:, 0], runs[:, 1]
    ends = starts + lengths  # of the pixel after each run
    # Lengths are compared, not ends alone: start + length may wrap around.
    wrong = (starts < base) | (lengths < 1) | (starts > limit) | (lengths > limit - np.maximum(starts, 0))
    wrong[1:] |= starts[1:] < ends[:-1]
    if not wrong.any():
        return
    i = int(np.argmax(wrong))
    start, length, where = int(starts[i]), int(lengths[i]), f"run {before + i + 1} ({starts[i]} {lengths[i]})"
    if length < 1:
        raise DataError(f"{where}: length {length}, but a run has at least one pixel")
    if start < base:
        raise DataError(f"{where}: start {start}, but the first pixel has number {base}; check base 0 or 1")
    if start > limit or length > limit - start:
        raise DataError(
            f"{where}: ends at pixel {start + length - 1}, but the last pixel is {limit - 1}; check size and base"
        )
    end = int(ends[i - 1]) - 1
    raise DataError(f"{where}: starts before run {before + i} ends at pixel {end}; runs must ascend without overlap")


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
    pixels = np.empty(height * width, np.uint8)
    if len(runs) == 1:  # nothing to merge, and nothing to copy
        ((label, own),) = runs.items()
        _check_label(label, own, height * width, base)
        _paint(pixels, own[:, 0], own[:, 1], np.broadcast_to(np.uint8(label), len(own)), base, background)
    else:
        _paint(pixels, *merge_runs(runs, height * width, base=base), 0, background)
    return pixels.reshape(height, width) if order == "row" else pixels.reshape(width, height).T


def _paint(
    pixels: NDArray[np.uint8],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    labels: NDArray[np.uint8],
    base: int,
    background: int,
) -> None:
    """Fill all pixels, part by part, each with as many runs as end within a chunk of pixels."""
    i = done = 0
    while i < len(starts):
        some = slice(i, i + _RUNS)
        ends = starts[some] + lengths[some] - base
        count = max(1, int(np.searchsorted(ends, done + _CHUNK, "right")))
        ends = ends[:count]
        if count == 1:  # one long run, or one after a long gap: nothing of its size beside the mask
            start = int(starts[i]) - base
            pixels[done:start], pixels[start : ends[0]] = background, labels[i]
        else:
            both = np.empty((count, 2), np.int64)  # pixels of background, and of the run after them
            both[:, 1] = lengths[i : i + count]
            both[:, 0] = np.diff(ends, prepend=done) - both[:, 1]
            values = np.full((count, 2), background, np.uint8)
            values[:, 1] = labels[i : i + count]
            pixels[done : ends[-1]] = np.repeat(values.ravel(), both.ravel())
        i, done = i + count, int(ends[-1])
    pixels[done:] = background


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
        _check_label(label, own, pixels, base)
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


def _check_label(label: int, runs: NDArray[Any], pixels: int | None, base: int) -> None:
    try:
        check_runs(runs, pixels, base=base)
    except DataError as error:
        raise DataError(f"label {label}, {error}") from error
