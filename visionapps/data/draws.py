"""Where training looks: which photo, and which cell of it, so that rare classes are seen.

Everything is drawn from the generator that is given. K classes; a cell is CELL x CELL px.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from visionapps.data.dataset import CELL
from visionapps.errors import ConfigError
from visionapps.windows import Window


class Counted(Protocol):
    """What drawing needs of a photo; see visionapps.data.store.Photo."""

    @property
    def size(self) -> tuple[int, int]: ...  # (H, W)
    @property
    def presence(self) -> np.ndarray: ...  # (ceil(H / CELL), ceil(W / CELL), K) labelled pixels per cell and class
    @property
    def weight(self) -> float: ...  # how often it is drawn, relative to its area


class ClassCells:
    """Draws a class, and a cell of a photo where it occurs; a few bytes per cell and class, microseconds per draw."""

    def __init__(self, photos: Sequence[Counted], weights: Sequence[float] | None = None) -> None:
        """
        Args:
            photos: at least one; all with presence of the same K classes.
            weights: K relative frequencies, or None for equal ones; classes that occur nowhere are never drawn.
        """
        self._sizes = [p.size for p in photos]
        self._columns, found, first = [], [], [0]
        for photo in photos:  # one at a time: together they are large, and few classes occur in a cell
            presence = photo.presence
            by_class = presence.reshape(-1, presence.shape[2]).T
            kinds, places = np.nonzero(by_class)
            counts = by_class[kinds, places]
            weighted = counts if photo.weight == 1 else counts * np.float32(photo.weight)
            found.append((kinds.astype(np.uint8), (places + first[-1]).astype(np.int32), weighted))
            self._columns.append(presence.shape[1])
            first.append(first[-1] + by_class.shape[1])
        self._first = np.array(first)  # cells are numbered throughout the photos
        classes, cells, counts = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.argsort(classes, kind="stable")
        self._cells = cells[order]
        self._total = np.cumsum(counts[order], dtype=np.float64)  # exact to 2^53 pixels
        self._ends = np.searchsorted(classes[order], np.arange(len(by_class)), side="right")
        self._weights = _class_weights(np.diff(self._ends, prepend=0) > 0, weights)

    def draw(self, rng: np.random.Generator) -> tuple[int, Window]:
        """The number of a photo and a cell of it."""
        drawn = int(np.searchsorted(self._weights, rng.random() * self._weights[-1], side="right"))
        start = int(self._ends[drawn - 1]) if drawn else 0
        before = self._total[start - 1] if start else 0.0
        target = before + rng.random() * (self._total[self._ends[drawn] - 1] - before)
        at = start + int(np.searchsorted(self._total[start : self._ends[drawn]], target, side="right"))
        cell = int(self._cells[at])
        number = int(np.searchsorted(self._first, cell, side="right")) - 1
        row, col = (CELL * i for i in divmod(cell - int(self._first[number]), self._columns[number]))
        height, width = self._sizes[number]
        return number, Window(row, col, min(CELL, height - row), min(CELL, width - col))


def _class_weights(occurs: np.ndarray, weights: Sequence[float] | None) -> np.ndarray:
    """Running sum of the probabilities of the classes, without those that occur nowhere."""
    given = np.ones(len(occurs)) if weights is None else np.asarray(weights, dtype=np.float64)
    if given.shape != occurs.shape or not np.all(np.isfinite(given)) or np.any(given < 0):
        raise ConfigError(f"crops: weights {list(given)} must be {len(occurs)} numbers >= 0, one per class")
    effective = given * occurs
    if not effective.any():
        raise ConfigError(
            "crops: no class with a positive weight occurs in the photos, so there is nothing to balance; "
            "check the masks, or set balance to 0"
        )
    return np.cumsum(effective)
