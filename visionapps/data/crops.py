"""What the network sees of the photos: random crops to train on, and tiles that cover everything once to validate on.

B batch, C bands, h w pixels of a crop. Everything stays in raw pixels; normalising is the model's first step.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate

from visionapps.data.balance import Balance, require_weights
from visionapps.data.draws import ClassCells
from visionapps.data.transforms import Augment, by_bands
from visionapps.errors import ConfigError
from visionapps.structures import IGNORE
from visionapps.windows import Window, starts


class Photo(Protocol):
    """What crops need of a stored photo; see visionapps.data.store.Photo."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> tuple[int, int]: ...  # (H, W)
    @property
    def presence(self) -> np.ndarray: ...  # (ceil(H / CELL), ceil(W / CELL), K) labelled pixels per cell and class
    @property
    def weight(self) -> float: ...  # how often it is drawn, relative to its area
    def image(self, window: Window) -> np.ndarray: ...  # (h, w, C), window inside the photo
    def labels(self, window: Window) -> np.ndarray: ...  # (h, w) uint8
    def draw_labels(self, window: Window, rng: np.random.Generator) -> np.ndarray: ...  # the same, where not soft


class Sample(NamedTuple):
    """One crop, or after ``collate`` a batch of them with B in front."""

    image: Tensor  # (C, h, w) raw dtype
    labels: Tensor  # (h, w) uint8, 255 counts nowhere


class Shares(NamedTuple):
    """How often each class occurs, as shares of the labelled pixels."""

    drawn: np.ndarray  # (K,) in the crops that were drawn
    photos: np.ndarray  # (K,) in the photos themselves


class RandomCrops(Dataset[Sample]):
    """Crops at random places, some of them where a rare class is.

    Item i depends on the seed and i alone, whichever worker makes it and in whatever order; i may be any whole
    number, so an epoch of its own crops is a range of its own indices: see EpochIndices.
    With the probability of ``balance`` a crop is drawn for a class: the class first, then a bin of its areas if there
    are any, then a cell of 64 x 64 px in proportion to how many of its pixels lie there, then any crop around that
    cell. Otherwise every place is as likely as another. A rate that slides over epochs depends on i // length.

    Args:
        photos: what to draw from; one smaller than the crop is padded, the image by reflection, the labels with 255.
        size: height and width of a crop, in pixels.
        length: crops that count as one epoch.
        augment: changes every crop; None leaves them as they are.
        seed: another seed, other crops.
        balance: how often, and how, crops are drawn for a class; a number is its rate.
        scale: smallest and largest zoom; a window of size / zoom is drawn and resized, log-uniformly.

    Raises:
        ConfigError: an argument is out of range, or there is nothing to draw from.
    """

    def __init__(
        self,
        photos: Sequence[Photo],
        *,
        size: int,
        length: int,
        augment: Augment | None = None,
        seed: int = 0,
        balance: Balance | float = 0.5,
        scale: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        if not photos:
            raise ConfigError("crops: there is no photo to draw from; check the folders and the split")
        if size < 1 or length < 1 or seed < 0:
            raise ConfigError(f"crops: size {size} and length {length} must be at least 1, seed {seed} at least 0")
        if not 0 < scale[0] <= scale[1]:
            raise ConfigError(f"crops: scale {scale} must be positive and ascending")
        self.photos = tuple(photos)
        self.size = size
        self._length = length
        self._augment = augment
        self._seed = seed
        self._balance = balance = balance if isinstance(balance, Balance) else Balance(balance)
        self._log_scale = np.log(scale[0]), np.log(scale[1])
        self._pixels = np.cumsum([max(1, round(p.size[0] * p.size[1] * p.weight)) for p in photos])
        self._cells = None
        if balance.ever:
            self._cells = ClassCells(self.photos, balance.weights, area_bins=balance.area_bins, side=size)
        elif balance.weights is not None:  # told now, not when somebody turns the balance on
            require_weights(balance.weights, photos[0].presence.shape[2])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        rng = self._generator(index)
        image, labels = self._cut(index, rng)
        if self._augment is not None:
            image, labels = self._augment(image, labels, rng)
        return to_sample(image, labels)

    def draw(self, index: int) -> tuple[int, Window]:
        """Which photo item ``index`` shows, and which window of it; the window may stick out of a small photo."""
        return self._draw(index, self._generator(index))

    def _generator(self, index: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, index))

    def _cut(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        number, window = self._draw(index, rng)
        image, labels = cut(self.photos[number], window, rng)
        return resize(image, labels, self.size)

    def _draw(self, index: int, rng: np.random.Generator) -> tuple[int, Window]:
        side = max(1, round(self.size / np.exp(rng.uniform(*self._log_scale))))
        if self._cells is not None and rng.random() < self._balance.at(index // self._length):
            number, cell = self._cells.draw(rng)
        else:
            number = int(np.searchsorted(self._pixels, rng.integers(self._pixels[-1]), side="right"))
            cell = None
        height, width = self.photos[number].size
        rows = (cell.row, cell.row_end) if cell else None
        cols = (cell.col, cell.col_end) if cell else None
        return number, Window(_start(rng, height, side, rows), _start(rng, width, side, cols), side, side)


class EpochIndices(Sampler[int]):
    """Indices of RandomCrops for one epoch after another: new crops each time, with persistent workers too.

    Lightning calls set_epoch, so a resumed run goes on with the crops that it would have drawn; it also divides the
    indices among processes. The seed belongs to RandomCrops.

    Args:
        length: crops of an epoch, all processes together.
    """

    def __init__(self, length: int) -> None:
        if length < 1:
            raise ConfigError(f"crops: length {length} of an epoch must be at least 1")
        self._length = length
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch, counted from 0."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        first = self._epoch * self._length
        return iter(range(first, first + self._length))


class Tile(NamedTuple):
    """One item of EvalTiles."""

    photo: int  # number of the photo
    window: Window  # what the network sees; may stick out of the photo at the bottom and right
    core: Window  # the part that counts here; the cores of a photo cover it exactly once


class EvalTiles(Dataset[Sample]):
    """Every pixel of every photo, once: tiles of one size on a fixed lattice, with context around what counts.

    Neighbours overlap for context, and the labels of each are 255 outside its own core, so that a metric summed over
    the tiles counts every labelled pixel once.

    Args:
        photos: in this order.
        size: height and width of a tile, in pixels; more than a photo has is padded like in RandomCrops.
        overlap: pixels that neighbours share, in [0, size).
    """

    def __init__(self, photos: Sequence[Photo], *, size: int, overlap: int = 0) -> None:
        self.photos = tuple(photos)
        self.tiles = tuple(
            Tile(number, Window(row, col, size, size), Window(core_row, core_col, core_height, core_width))
            for number, photo in enumerate(photos)
            for row, core_row, core_height in _spans(photo.size[0], size, overlap)
            for col, core_col, core_width in _spans(photo.size[1], size, overlap)
        )

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> Sample:
        number, window, core = self.tiles[index]
        image, labels = cut(self.photos[number], window)
        counted = np.full_like(labels, IGNORE)
        inner = core.shift(-window.row, -window.col).slices
        counted[inner] = labels[inner]
        return to_sample(image, counted)


def cut(photo: Photo, window: Window, rng: np.random.Generator | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A window of a photo, wherever it lies; outside, the image is reflected and the labels are 255.

    Args:
        photo: what to cut from.
        window: of it.
        rng: draws labels of photos whose labels are probabilities; None: the most probable ones are taken.

    Returns:
        (h, w, C) in the photo's dtype and (h, w) uint8; possibly read-only views.
    """
    height, width = photo.size
    inside = window.intersect(Window(0, 0, height, width))
    image, labels = photo.image(inside), photo.labels(inside) if rng is None else photo.draw_labels(inside, rng)
    if inside == window:
        return image, labels
    top, left = inside.row - window.row, inside.col - window.col
    border = top, window.height - inside.height - top, left, window.width - inside.width - left
    image = by_bands(image, lambda part: cv2.copyMakeBorder(part, *border, cv2.BORDER_REFLECT_101))
    return image, cv2.copyMakeBorder(labels, *border, cv2.BORDER_CONSTANT, value=IGNORE)


def resize(image: np.ndarray, labels: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A square crop and its labels at another size; as they are if the size is right."""
    side = labels.shape[0]
    if side == size:
        return image, labels
    # Averaging takes seven times as long, and below a factor of two linear sampling aliases little.
    method = cv2.INTER_AREA if side >= 2 * size else cv2.INTER_LINEAR
    resized = by_bands(image, lambda part: cv2.resize(part, (size, size), interpolation=method))
    return resized, cv2.resize(labels, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)


def to_sample(image: np.ndarray, labels: np.ndarray) -> Sample:
    """(h, w, C) and (h, w) arrays as contiguous tensors of their own."""
    planes = np.stack(cv2.split(image)) if image.dtype == np.uint8 else image.transpose(2, 0, 1).copy()
    return Sample(torch.from_numpy(planes), torch.from_numpy(labels.copy()))


def collate(samples: list[Sample]) -> Sample:
    """A batch: (B, C, h, w) in the raw dtype and (B, h, w) uint8, both contiguous, in shared memory if in a worker."""
    batch: Sample = default_collate(samples)
    return batch


def init_worker(worker: int) -> None:
    """For DataLoader(worker_init_fn=...): one thread per worker, as the workers are the parallelism.

    Args:
        worker: its number, which DataLoader gives; nothing here depends on it.
    """
    cv2.setNumThreads(0)


def drawn_share(crops: RandomCrops, count: int) -> Shares:
    """What class balancing makes of the data: draw crops and count their labelled pixels, before augmentation.

    Args:
        crops: the items 0 to count - 1 are drawn.
        count: number of crops, >= 1.
    """
    in_photos = np.sum([p.presence.sum(axis=(0, 1), dtype=np.float64) for p in crops.photos], axis=0)
    drawn = np.zeros(256)
    for index in range(count):
        number, window = crops.draw(index)
        drawn += np.bincount(cut(crops.photos[number], window)[1].ravel(), minlength=256)
    drawn = drawn[: len(in_photos)]
    return Shares(drawn / max(1.0, drawn.sum()), in_photos / max(1.0, in_photos.sum()))


def _start(rng: np.random.Generator, length: int, side: int, cell: tuple[int, int] | None) -> int:
    """Where a crop begins along one axis: anywhere in the photo, or anywhere around a cell (begin, end)."""
    # A crop longer than the photo may begin before it, but never leaves any of it out.
    low, high = min(0, length - side), max(0, length - side)
    if cell is not None:
        # A crop shorter than the cell lies inside it instead.
        first, last = sorted((cell[1] - side, cell[0]))
        low, high = max(low, min(first, high)), min(high, max(last, low))
    return int(rng.integers(low, high, endpoint=True))


def _spans(length: int, size: int, overlap: int) -> Iterator[tuple[int, int, int]]:
    """(start of the tile, start of its core, length of its core) along one axis; cores meet in mid-overlap."""
    begins = starts(length, size, overlap)
    edges = [0, *(b + overlap // 2 for b in begins[1:]), length]
    for begin, low, high in zip(begins, edges[:-1], edges[1:], strict=True):
        yield begin, low, high - low
