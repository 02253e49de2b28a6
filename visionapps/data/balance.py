"""How often training looks for a class, and which of its places: settings that a person writes, as plain data.

K classes; a cell is CELL x CELL px; a share is a part of one.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from visionapps.class_weights import ClassCounts
from visionapps.data.dataset import CELL
from visionapps.errors import ConfigError

AreaBins = int | tuple[float, ...] | None
_MOST_BINS = 100  # more hold single cells


class Labelled(Protocol):
    """What counting needs of a photo; see visionapps.data.store.Photo."""

    @property
    def class_pixels(self) -> tuple[int, ...]: ...  # (K,)
    @property
    def weight(self) -> float: ...  # how often it is drawn, relative to its area


@dataclass(frozen=True)
class Sliding:
    """A rate that changes evenly from epoch to epoch, then stays.

    Args:
        start: in the first epoch, in [0, 1].
        end: from the last of ``epochs`` on, in [0, 1].
        epochs: over so many, at least 2.

    Raises:
        ConfigError: a rate or the number of epochs is out of range.
    """

    start: float
    end: float
    epochs: int

    def __post_init__(self) -> None:
        for name, rate in (("start", self.start), ("end", self.end)):
            if not 0 <= rate <= 1:
                raise ConfigError(f"crops: balance.{name} is {rate}; choose a value in [0, 1]")
        if self.epochs < 2:
            raise ConfigError(f"crops: balance.epochs is {self.epochs}, but a change takes at least 2 epochs")

    def at(self, epoch: int) -> float:
        """The rate in an epoch, counted from 0."""
        done = min(epoch / (self.epochs - 1), 1)
        return self.start + (self.end - self.start) * done


@dataclass(frozen=True)
class Balance:
    """Which of the crops are drawn around a class, which class, and which of its places.

    Args:
        rate: share of the crops in [0, 1] that are drawn for a class, one for all epochs or sliding.
        weights: how often each of the K classes is drawn, relative; None: all that occur alike.
        area_bins: places of a class are divided by how much of a crop around them it covers, and every bin is drawn
            alike, so that small objects are seen as often as large fields: the number of bins, between the smallest and
            the largest share of each class in equal ratios; or the shares between the bins, ascending. None: one bin.

    Raises:
        ConfigError: a rate or a share is out of range.
    """

    rate: float | Sliding = 0.5
    weights: tuple[float, ...] | None = None
    area_bins: AreaBins = None

    def __post_init__(self) -> None:
        if self.rate is None:  # YAML makes null of a key without a value
            raise ConfigError(
                "crops: balance has no value; write 0 to draw crops evenly over the area, or leave the line out for 0.5"
            )
        if not isinstance(self.rate, Sliding) and not 0 <= self.rate <= 1:
            raise ConfigError(f"crops: balance {self.rate} must be in [0, 1]")
        bins = self.area_bins
        if isinstance(bins, int):
            if not 1 <= bins <= _MOST_BINS:
                raise ConfigError(f"crops: area_bins is {bins}; choose a number from 1 to {_MOST_BINS}")
        elif bins is not None:
            edges = [0.0, *bins, 1.0]
            if len(edges) < 3 or any(a >= b for a, b in itertools.pairwise(edges)):
                raise ConfigError(
                    f"crops: area_bins {list(bins)} must be shares of a crop between 0 and 1, ascending, such as "
                    "[0.01, 0.1]; or give the number of bins"
                )

    @property
    def ever(self) -> bool:
        """Whether any crop is drawn for a class."""
        return max(self.rate.start, self.rate.end) > 0 if isinstance(self.rate, Sliding) else self.rate > 0

    def at(self, epoch: int) -> float:
        """The rate in an epoch, counted from 0."""
        return self.rate.at(epoch) if isinstance(self.rate, Sliding) else self.rate


def require_weights(weights: Sequence[float], classes: int) -> None:
    """Refuse weights of crops that are not those of K classes.

    Args:
        weights: as in Balance.
        classes: K.

    Raises:
        ConfigError: they are more or fewer, or one is negative or no number.
    """
    given = np.asarray(weights, dtype=np.float64)
    if given.shape != (classes,) or not np.all(np.isfinite(given)) or np.any(given < 0):
        raise ConfigError(f"crops: weights {given.tolist()} must be {classes} numbers >= 0, one per class")


def class_counts(names: Sequence[str], photos: Sequence[Labelled]) -> ClassCounts:
    """How often classes occur in photos that crops are drawn from, each as often as it is drawn.

    Args:
        names: K class names.
        photos: all with K classes.
    """
    # A class that occurs is never rounded to one that does not, which would weigh nothing in a loss.
    counts = [[max(round(n * photo.weight), min(n, 1)) for n in photo.class_pixels] for photo in photos]
    return ClassCounts.of_photos(names, counts)


def shares_around(presence: np.ndarray, size: tuple[int, int], side: int) -> np.ndarray:
    """How much of a crop each class covers, if the crop lies around a cell.

    Crops are counted in whole cells: as many as come closest to their side, the cell in their middle, moved inwards at
    the border of the photo as crops are.

    Args:
        presence: (gh, gw, K) labelled pixels per cell and class.
        size: (H, W) of the photo.
        side: height and width of a crop, in pixels.

    Returns:
        (gh, gw, K) float32 shares in [0, 1] of the pixels of such a crop that lie in the photo.
    """
    cells = max(1, round(side / CELL))
    total = np.zeros((presence.shape[0] + 1, presence.shape[1] + 1, presence.shape[2]))
    total[1:, 1:] = presence.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    (top, bottom), (left, right) = (_spans(count, cells) for count in presence.shape[:2])
    inside = total[np.ix_(bottom, right)] - total[np.ix_(top, right)] - total[np.ix_(bottom, left)]
    inside += total[np.ix_(top, left)]
    rows, cols = (
        np.minimum(CELL * end, length) - CELL * begin
        for begin, end, length in (
            (top, bottom, size[0]),
            (left, right, size[1]),
        )
    )
    share: np.ndarray = (inside / (rows[:, None] * cols)[..., None]).astype(np.float32)
    return share


def bins_of(classes: np.ndarray, shares: np.ndarray, bins: AreaBins) -> np.ndarray:
    """The bin of each place.

    Args:
        classes: (N,) class of each place.
        shares: (N,) how much of a crop it covers there, > 0.
        bins: as in Balance.

    Returns:
        (N,) numbers from 0, small areas first; bins of a class may be empty.
    """
    if bins is None:
        return np.zeros(len(classes), np.int64)
    if not isinstance(bins, int):
        return np.searchsorted(np.array(bins, shares.dtype), shares, side="right")
    found, ratios = np.zeros(len(classes), np.int64), np.log(shares)
    for label in np.unique(classes):
        own = classes == label
        edges = np.linspace(ratios[own].min(), ratios[own].max(), bins + 1)[1:-1]
        found[own] = np.searchsorted(edges, ratios[own], side="right")
    return found


def refuse_empty_bins(filled: np.ndarray, shares: np.ndarray, bins: Sequence[float]) -> None:
    """Raise ConfigError for a bin that no class fills.

    Args:
        filled: (bins,) whether any place of a class that may be drawn lies there.
        shares: of all these places.
        bins: the shares between the bins.
    """
    if filled.all():
        return
    edges = [0.0, *bins, 1.0]
    empty = int(np.flatnonzero(~filled)[0])
    raise ConfigError(
        f"crops: area_bins: no class covers {edges[empty]:.3%} to {edges[empty + 1]:.3%} of a crop anywhere, so this "
        f"bin cannot be filled; what occurs is {shares.min():.3%} to {shares.max():.3%}: choose shares between them, "
        "or give the number of bins"
    )


def _spans(count: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """First cell, and the one after the last, of the crop around each cell along one axis."""
    cells = min(cells, count)
    begin = np.clip(np.arange(count) - (cells - 1) // 2, 0, count - cells)
    return begin, begin + cells
