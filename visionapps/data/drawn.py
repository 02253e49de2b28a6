"""What training really saw of each class: crops are counted as they reach the network, after all random changes.

K classes.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from visionapps.errors import DataError

_HEADER = ("epoch", "class", "crops", "crops_with_class", "share_of_crops", "pixels", "share_of_pixels")


@dataclass(frozen=True)
class Drawn:
    """Counts of some crops.

    Attributes:
        crops: how many.
        holding: (K,) how many of them hold any pixel of each class.
        pixels: (K,) labelled pixels of each class.
    """

    crops: int
    holding: tuple[int, ...]
    pixels: tuple[int, ...]

    @classmethod
    def none(cls, classes: int) -> "Drawn":
        """Nothing counted yet."""
        return cls(0, (0,) * classes, (0,) * classes)

    @classmethod
    def of(cls, labels: np.ndarray, classes: int) -> "Drawn":
        """Count a batch.

        Args:
            labels: (B, h, w) uint8; from K on they count nowhere.
            classes: K.
        """
        # In half the time of numpy's bincount, which first widens the labels to 64 bits. Exact to 2^24 px of a crop.
        counts = np.stack([cv2.calcHist([crop], [0], None, [256], [0, 256]).ravel() for crop in labels])
        counts = counts[:, :classes].astype(np.int64)
        return cls(len(labels), tuple((counts > 0).sum(axis=0).tolist()), tuple(counts.sum(axis=0).tolist()))

    def __add__(self, other: "Drawn") -> "Drawn":
        return Drawn.of_row([a + b for a, b in zip(self.to_row(), other.to_row(), strict=True)])

    def to_row(self) -> list[int]:
        """1 + 2 K whole numbers, which add up."""
        return [self.crops, *self.holding, *self.pixels]

    @classmethod
    def of_row(cls, row: Sequence[int]) -> "Drawn":
        """What to_row gave."""
        classes = (len(row) - 1) // 2
        crops, *counts = (int(n) for n in row)
        return cls(crops, tuple(counts[:classes]), tuple(counts[classes:]))

    @property
    def share_of_crops(self) -> np.ndarray:
        """(K,) share of the crops that hold each class."""
        return np.array(self.holding) / max(1, self.crops)

    @property
    def share_of_pixels(self) -> np.ndarray:
        """(K,) share of the labelled pixels that belong to each class."""
        return np.array(self.pixels) / max(1, sum(self.pixels))


@dataclass(frozen=True)
class DrawnTable:
    """What was drawn in each epoch of a run, beside what there is.

    Attributes:
        names: K class names.
        photos: the training photos, counted as if each were a crop.
        epochs: what was drawn, by the number of the epoch.
    """

    names: tuple[str, ...]
    photos: Drawn
    epochs: dict[int, Drawn]

    @property
    def total(self) -> Drawn:
        """All epochs together."""
        return sum(self.epochs.values(), Drawn.none(len(self.names)))

    def write(self, path: Path) -> None:
        """Write a CSV file, one line per epoch and class; the photos come first, as the epoch "photos"."""
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_HEADER)
            for epoch, drawn in [("photos", self.photos), *self.epochs.items()]:
                shares = zip(drawn.share_of_crops, drawn.share_of_pixels, strict=True)
                for k, (crops, pixels) in enumerate(shares):
                    counts = (drawn.crops, drawn.holding[k], f"{crops:.6f}", drawn.pixels[k], f"{pixels:.8f}")
                    writer.writerow((epoch, self.names[k], *counts))

    @classmethod
    def read(cls, path: Path) -> "DrawnTable":
        """Read what ``write`` wrote.

        Raises:
            DataError: it is not such a file.
        """
        found: dict[str, list[tuple[str, int, int, int]]] = {}
        try:
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    counts = (row["class"], int(row["crops"]), int(row["crops_with_class"]), int(row["pixels"]))
                    found.setdefault(row["epoch"], []).append(counts)
            drawn: dict[str, Drawn] = {}
            for epoch, rows in found.items():
                holding, pixels = tuple(row[2] for row in rows), tuple(row[3] for row in rows)
                drawn[epoch] = Drawn(rows[0][1], holding, pixels)
            photos = drawn.pop("photos")
            names = tuple(name for name, *_ in found["photos"])
            return cls(names, photos, {int(epoch): counts for epoch, counts in drawn.items()})
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise DataError(f"{path}: is no table of what training drew ({error!r}); it is written by fit") from error
