"""Runs as the text of competitions: pairs of start and length."""

from collections.abc import Iterator

import numpy as np

from visionapps.errors import DataError
from visionapps.masks.runs import Runs

_RUNS = 1 << 15  # runs written or read at a time: a Python number and its text take five times what they say


def format_runs(runs: Runs, *, relative: bool = False) -> str:
    """Runs as text, "start length start length ...".

    Args:
        runs: (N, 2) start and length.
        relative: write each start as the distance from the end of the run before it (SIIM-ACR); the first is absolute.
    """
    if relative and len(runs):
        runs = runs.copy()
        runs[1:, 0] -= (runs[:-1, 0] + runs[:-1, 1]).copy()
    parts = (runs[i : i + _RUNS].ravel().tolist() for i in range(0, len(runs), _RUNS))
    return " ".join(" ".join(map(str, part)) for part in parts)


def parse_runs(text: str, *, relative: bool = False) -> Runs:
    """Runs from text; "" gives none. Their order and range are left to ``check_runs`` and ``decode``.

    Raises:
        DataError: a word is no whole number, or a start has no length.
    """
    parts, count = [], 0
    for words in _words(text):
        try:
            if "_" in text:  # int() would take 1_000 for a thousand
                raise ValueError(text)
            parts.append(np.array(list(map(int, words)), np.int64))
        except (ValueError, OverflowError) as error:
            i = next((i for i, word in enumerate(words) if not _is_int64(word)), 0)
            raise DataError(
                f"run {(count + i) // 2 + 1}: {words[i][:40]!r} is no whole number; pairs of start and length are "
                "expected"
            ) from error
        count += len(words)
    numbers = np.concatenate([np.zeros(0, np.int64), *parts])
    if len(numbers) % 2:
        raise DataError(
            f"run {len(numbers) // 2 + 1}: start {numbers[-1]} has no length; an even count of numbers is expected, "
            f"got {len(numbers)}; the text may be cut off"
        )
    runs = numbers.reshape(-1, 2)
    if relative and len(runs):
        runs[:, 0] = np.cumsum(runs[:, 0]) + np.concatenate([[0], np.cumsum(runs[:-1, 1])])
    return runs


def _words(text: str) -> Iterator[list[str]]:
    """The words of a text in parts."""
    first = 0
    while first < len(text):
        last = first + 16 * _RUNS
        while last < len(text) and not text[last].isspace():
            last += 1
        yield text[first:last].split()
        first = last


def _is_int64(word: str) -> bool:
    digits = word.removeprefix("-")
    return digits.isascii() and digits.isdigit() and -(2**63) <= int(word) < 2**63
