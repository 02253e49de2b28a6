"""Where training looks: which photo, and which cell of it, so that rare classes are seen.

Everything is drawn from the generator that is given. K classes; a cell is CELL x CELL px.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from visionapps.data.balance import AreaBins, bins_of, refuse_empty_bins, require_weights, shares_around
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
    """Draws a class, and a cell of a photo where it occurs; a few bytes per cell and class, microseconds per draw.

    Of one class, or of one bin of its areas, cells are drawn in proportion to how many of their pixels it has.
    """

    def __init__(
        self,
        photos: Sequence[Counted],
        weights: Sequence[float] | None = None,
        *,
        area_bins: AreaBins = None,
        side: int = CELL,
    ) -> None:
        """
        Args:
            photos: at least one; all with presence of the same K classes.
            weights: K relative frequencies, or None for equal ones; classes that occur nowhere are never drawn.
            area_bins: as in Balance: a bin of the class is drawn first, those that hold any cell alike.
            side: height and width of a crop in pixels, which areas are shares of.

        Raises:
            ConfigError: nothing can be drawn, or a bin cannot be filled.
        """
        self._sizes = [p.size for p in photos]
        self._columns, found, first = [], [], [0]
        for photo in photos:  # one at a time: together they are large, and few classes occur in a cell
            presence = photo.presence
            kinds, places, counts = _places(presence, photo.weight)
            shares = np.ones(len(kinds), np.float32)
            if area_bins is not None:
                shares = shares_around(presence, photo.size, side).reshape(-1, presence.shape[2])[places, kinds]
            found.append((kinds, (places + first[-1]).astype(np.int32), counts, shares))
            self._columns.append(presence.shape[1])
            first.append(first[-1] + presence.shape[0] * presence.shape[1])
        self._first = np.array(first)  # cells are numbered throughout the photos
        classes, cells, counts, shares = (np.concatenate(column) for column in zip(*found, strict=True))
        occurs = np.bincount(classes, minlength=presence.shape[2]) > 0
        self._weights = _class_weights(occurs, weights)
        self._bins = _bin_count(area_bins)
        bins = bins_of(classes, shares, area_bins)
        if isinstance(area_bins, tuple | list):
            drawn = np.diff(self._weights, prepend=0.0)[classes] > 0
            filled = np.bincount(bins[drawn], minlength=self._bins) > 0
            refuse_empty_bins(filled, shares[drawn], area_bins)
        groups = classes.astype(np.int64) * self._bins + bins
        order = np.argsort(groups, kind="stable")
        self._cells = cells[order]
        self._total = np.cumsum(counts[order], dtype=np.float64)  # exact to 2^53 pixels
        self._ends = np.searchsorted(groups[order], np.arange(len(occurs) * self._bins), side="right")

    def draw(self, rng: np.random.Generator) -> tuple[int, Window]:
        """The number of a photo and a cell of it."""
        drawn = int(np.searchsorted(self._weights, rng.random() * self._weights[-1], side="right"))
        start, end = self._group(drawn, rng)
        before = self._total[start - 1] if start else 0.0
        target = before + rng.random() * (self._total[end - 1] - before)
        # Rounding may put the target on the end of the last cell.
        at = min(start + int(np.searchsorted(self._total[start:end], target, side="right")), end - 1)
        cell = int(self._cells[at])
        number = int(np.searchsorted(self._first, cell, side="right")) - 1
        row, col = (CELL * i for i in divmod(cell - int(self._first[number]), self._columns[number]))
        height, width = self._sizes[number]
        return number, Window(row, col, min(CELL, height - row), min(CELL, width - col))

    def _group(self, label: int, rng: np.random.Generator) -> tuple[int, int]:
        """The places of a class, or of a bin of it: [start, end)."""
        first = label * self._bins
        start = int(self._ends[first - 1]) if first else 0
        ends = self._ends[first : first + self._bins]
        if self._bins == 1:
            return start, int(ends[0])
        filled = np.flatnonzero(np.diff(ends, prepend=start))
        chosen = int(filled[rng.integers(len(filled))])
        return int(ends[chosen - 1]) if chosen else start, int(ends[chosen])


def _places(presence: np.ndarray, weight: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class, cell and pixels of the class, for every class in every cell of a photo; ordered by class."""
    by_class = presence.reshape(-1, presence.shape[2]).T
    kinds, places = np.nonzero(by_class)
    counts = by_class[kinds, places]
    return kinds.astype(np.uint8), places, counts if weight == 1 else counts * np.float32(weight)


def _bin_count(bins: AreaBins) -> int:
    if bins is None:
        return 1
    return bins if isinstance(bins, int) else len(bins) + 1


def _class_weights(occurs: np.ndarray, weights: Sequence[float] | None) -> np.ndarray:
    """Running sum of the probabilities of the classes, without those that occur nowhere."""
    if weights is not None:
        require_weights(weights, len(occurs))
    effective = occurs * np.asarray(1.0 if weights is None else weights, dtype=np.float64)
    if not effective.any():
        raise ConfigError(
            "crops: no class with a positive weight occurs in the photos, so there is nothing to balance; "
            "check the masks, or set balance to 0"
        )
    return np.cumsum(effective)
