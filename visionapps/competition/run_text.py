"""Run lengths of a whole file read from their text at once: 100 MB take a fraction of a second.

Shapes: R rows, C characters, N numbers.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from visionapps.compiled import compiled
from visionapps.masks import Runs

_DIGITS = 18  # of the largest number that int64 holds whatever its digits are


def plain_runs(texts: Sequence[str]) -> list[Runs | None]:
    """The runs of each row.

    Args:
        texts: "start length start length ..." with one space between numbers; "" gives no runs.

    Returns:
        (n, 2) start and length of each row; None of a text of any other form, right or wrong.
    """
    codes = np.frombuffer("\n".join(texts).encode("utf-8", "surrogatepass"), np.uint8)
    numbers = np.empty(int(np.count_nonzero(codes <= ord(" "))) + 1, np.int64)
    counts = np.empty(int(np.count_nonzero(codes == ord("\n"))) + 1, np.int64)
    if len(counts) != max(1, len(texts)):  # a text has lines of its own
        return [None] * len(texts)
    _read_numbers(codes, numbers, counts)
    ends = np.cumsum(np.maximum(counts, 0))
    return [
        None if count < 0 else numbers[end - count : end].reshape(-1, 2)
        for count, end in zip(counts[: len(texts)].tolist(), ends.tolist(), strict=False)
    ]


@compiled
def _read_numbers(codes: NDArray[np.uint8], numbers: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
    """Fill numbers row by row, and how many each row has; -1, and none, where its text is not plain."""
    row, first, found = 0, 0, 0
    value, digits, good = 0, 0, True
    for i in range(len(codes) + 1):
        code = codes[i] if i < len(codes) else 10
        if 48 <= code <= 57:
            value = value * 10 + (code - 48)
            digits += 1
            good = good and digits <= _DIGITS
        elif code == 32 or code == 10:
            if digits:
                numbers[found] = value
                found += 1
            elif code == 32 or found > first:  # two spaces, or one at an end
                good = False
            value, digits = 0, 0
            if code == 10:
                if not good or (found - first) % 2:
                    found = first
                    counts[row] = -1
                else:
                    counts[row] = found - first
                row, first, good = row + 1, found, True
        else:
            good, digits = False, 1
