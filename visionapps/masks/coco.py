"""Runs as COCO files hold them: counts of background and foreground in turn, read by column."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from visionapps.errors import DataError
from visionapps.masks.runs import Runs, check_runs


class CocoRle(TypedDict):
    """A run-length mask as COCO files hold it."""

    size: list[int]  # H, W
    counts: str


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
