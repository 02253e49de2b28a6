"""What a classifier sees of photos: random squares to train on, and the middle of each photo to judge by.

B batch, C bands, h w pixels of a square. Everything stays in raw pixels; normalising is the model's first step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from visionapps.data.class_dataset import ClassPhoto, as_bands
from visionapps.data.images import resize_image
from visionapps.data.transforms import Augment, by_bands
from visionapps.errors import ConfigError
from visionapps.structures import Frame

_ASPECT = (3 / 4, 4 / 3)  # of crops by area, Szegedy et al. 2015


class ClassSample(NamedTuple):
    """One square, or after ``collate_classes`` a batch of them with B in front."""

    image: Tensor  # (C, h, w) raw dtype
    label: Tensor  # () int64
    key: Tensor  # () int64 number of the photo


@dataclass(frozen=True)
class ClassView:
    """How photos become squares.

    Args:
        side: of the squares, in pixels.
        scale: the shorter side of a photo is brought to a size drawn evenly from this range, in pixels, then a square
            is cut anywhere: (256, 256) in Krizhevsky et al. 2012, (256, 512) the scale jitter of Simonyan and Zisserman
            2015. None: to ``side``.
        area: instead: a part of the photo with this range of shares of its area, of an aspect from 3/4 to 4/3, is
            resized to the square: (0.08, 1) in Szegedy et al. 2015.
        pad: pixels of zeros around a photo before a square is cut: 4 for CIFAR in He et al. 2016.
        flip: mirror every other square, left to right.
        share: of the shorter side that is seen when a model is judged; see Frame. None: 0.875, or 1 where neither scale
            nor area is given.
    """

    side: int = 224
    scale: tuple[int, int] | None = None
    area: tuple[float, float] | None = None
    pad: int = 0
    flip: bool = True
    share: float | None = None

    def __post_init__(self) -> None:
        for name in ("scale", "area"):  # YAML brings lists
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        if self.scale is not None and self.area is not None:
            raise ConfigError("view: scale and area are two ways to draw a square; keep one")
        if self.side < 1 or self.pad < 0:
            raise ConfigError(f"view: side {self.side} must be at least 1 px, pad {self.pad} at least 0")
        if self.scale is not None and not self.side <= self.scale[0] <= self.scale[1]:
            raise ConfigError(f"view: scale {list(self.scale)} must ascend from side {self.side} or more")
        if self.area is not None and not 0 < self.area[0] <= self.area[1] <= 1:
            raise ConfigError(f"view: area {list(self.area)} must be shares in (0, 1], ascending")
        if self.area is not None and self.pad:
            raise ConfigError("view: pad goes with scale, or alone; crops by area have no border, leave pad out")

    @property
    def frame(self) -> Frame:
        """How photos are cut when a model is judged."""
        plain = self.scale is None and self.area is None
        return Frame(self.side, self.share if self.share is not None else 1.0 if plain else 0.875)

    @property
    def largest(self) -> int:
        """Shorter side in pixels that photos are brought to at most, in training or when a model is judged."""
        return max(min(self.frame.size(1, 1)), *(self.scale or (self.side,)))


class RandomSquares(Dataset[ClassSample]):
    """Squares of photos in random order, each photo once per epoch.

    Item i depends on the seed and i alone, whichever worker makes it; i may be any whole number, so an epoch of its own
    is a range of its own indices: see EpochIndices.

    Args:
        photos: what to draw from.
        labels: (N,) of the photos, where they are not the photos' own.
        view: how a square is drawn.
        augment: changes every square; its label maps are empty.
        bands: of every square; grey photos are repeated.
        seed: another seed, other squares.
    """

    def __init__(
        self,
        photos: Sequence[ClassPhoto],
        *,
        view: ClassView,
        labels: np.ndarray | None = None,
        augment: Augment | None = None,
        bands: int = 3,
        seed: int = 0,
    ) -> None:
        if not photos:
            raise ConfigError("squares: there is no photo to draw from; check the folders and the split")
        self.photos = tuple(photos)
        self.labels = np.array([p.label for p in photos], np.int64) if labels is None else labels
        self._view = view
        self._augment = augment
        self._bands = bands
        self._seed = seed

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> ClassSample:
        epoch, place = divmod(index, len(self.photos))
        number = int(_order(self._seed, epoch, len(self.photos))[place])
        rng = np.random.default_rng((self._seed, index))
        image = random_square(as_bands(self.photos[number].image(), self._bands), self._view, rng)
        if self._augment is not None:
            image, _ = self._augment(image, np.zeros(image.shape[:2], np.uint8), rng)
        return to_class_sample(image, int(self.labels[number]), number)


class MiddleSquares(Dataset[ClassSample]):
    """The middle of every photo, once and in order.

    Args:
        photos: in this order.
        frame: how they are cut.
        bands: of every square; grey photos are repeated.
    """

    def __init__(self, photos: Sequence[ClassPhoto], *, frame: Frame, bands: int = 3) -> None:
        self.photos = tuple(photos)
        self._frame = frame
        self._bands = bands

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> ClassSample:
        photo = self.photos[index]
        return to_class_sample(middle_square(as_bands(photo.image(), self._bands), self._frame), photo.label, index)


def middle_square(image: np.ndarray, frame: Frame) -> np.ndarray:
    """What a classifier sees of a photo when it is judged: (H, W, C) to (side, side, C), same dtype."""
    scaled = resize_image(image, frame.size(*image.shape[:2]))
    return _cut(scaled, (scaled.shape[0] - frame.side) // 2, (scaled.shape[1] - frame.side) // 2, frame.side)


def random_square(image: np.ndarray, view: ClassView, rng: np.random.Generator) -> np.ndarray:
    """What a classifier sees of a photo in training: (H, W, C) to (side, side, C), same dtype."""
    if view.area is not None:
        square = _by_area(image, view.side, view.area, rng)
    else:
        low, high = view.scale or (view.side, view.side)
        short = int(rng.integers(low, high, endpoint=True))
        scaled = resize_image(image, Frame(short, 1.0).size(*image.shape[:2]))
        if view.pad:
            border = (view.pad,) * 4
            scaled = by_bands(scaled, lambda part: cv2.copyMakeBorder(part, *border, cv2.BORDER_CONSTANT, value=0))
        top, left = (int(rng.integers(length - view.side, endpoint=True)) for length in scaled.shape[:2])
        square = _cut(scaled, top, left, view.side)
    return np.ascontiguousarray(square[:, ::-1]) if view.flip and rng.random() < 0.5 else square


def _by_area(image: np.ndarray, side: int, area: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    for _ in range(10):  # of long photos few tries fit
        wanted = rng.uniform(*area) * height * width
        aspect = float(np.exp(rng.uniform(*np.log(_ASPECT))))
        w, h = round(float(np.sqrt(wanted * aspect))), round(float(np.sqrt(wanted / aspect)))
        if 1 <= w <= width and 1 <= h <= height:
            top, left = (int(rng.integers(room, endpoint=True)) for room in (height - h, width - w))
            return resize_image(np.ascontiguousarray(image[top : top + h, left : left + w]), (side, side))
    return middle_square(image, Frame(side, 1.0))


def _cut(image: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    return np.ascontiguousarray(image[top : top + side, left : left + side])


def to_class_sample(image: np.ndarray, label: int, key: int) -> ClassSample:
    """(h, w, C) pixels as a contiguous tensor of their own, with label and number of the photo."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    return ClassSample(torch.from_numpy(planes), torch.tensor(label), torch.tensor(key))


def collate_classes(samples: list[ClassSample]) -> ClassSample:
    """A batch: (B, C, h, w) raw, (B,) and (B,)."""
    batch: ClassSample = default_collate(samples)
    return batch


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """(count,) the photos of an epoch; of another stream of chance than the squares."""
    order: np.ndarray = np.random.default_rng((1 << 33, seed, epoch)).permutation(count)
    return order
