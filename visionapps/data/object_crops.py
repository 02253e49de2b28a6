"""What a detector sees of the photos: whole ones or tiles, drawn at random to train on, complete to validate on.

Each item is a Batch of one image; ``collate_objects`` joins them. A box of an item lies in the photo at
``box / factor + (col, row, col, row)`` with the item's factor and origin (row, col): exactly, for photos are scaled by
that factor and not to a rounded size. Everything stays in raw pixels; normalising is the model's first step.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from visionapps.boxes import Batch, Targets
from visionapps.data.copy_paste import cut_patch, paste
from visionapps.data.examples import Example, Photo, read_example, to_batch
from visionapps.data.mosaic import mosaic, quarters
from visionapps.data.object_draws import ObjectIndex, PhotoOrder, draw_window
from visionapps.data.object_transforms import ObjectAugment
from visionapps.errors import ConfigError
from visionapps.structures import Rescale
from visionapps.windows import Window, starts

MULTIPLE = 32  # batches are padded to multiples of this many pixels: fewer shapes, and strides divide them
MOST_PASTED = 4  # objects that copy-paste adds to one picture


@dataclass(frozen=True)
class View:
    """How photos become network input.

    Args:
        tile: train and validate on tiles of this many pixels, cut from the photos as they are; None: on whole photos.
        overlap: pixels that neighbouring tiles of validation share; None: a quarter of the tile.
        rescale: whole photos are scaled so, in training, validation and later; None: they keep their size.
        scale: range of a random factor on the resolution in training, drawn log-uniformly; (1, 1) for none.
        keep: an object of which less than this share is left by the edge of a tile or picture is no object any more
            but ignored: it is neither to be found nor background. In (0, 1]; 1: whatever is cut is ignored.
        per_epoch: items of an epoch; None: as many as there are photos, or as many tiles as cover their area once.
        around: share of the training items in [0, 1] that are drawn to show an object, all objects alike; the others
            are drawn evenly, tiles by area and photos in turn. So at most 1 - around of them are empty. None: half
            of the tiles, and none of the whole photos.
        balance: share in [0, 1] of the draws of an object for which the class is drawn first, all classes alike, so
            that rare ones are seen; counts where ``around`` or ``copy_paste`` draws objects.
        mosaic: probability that a training item is put together of four.
        copy_paste: probability that objects of other photos are set into a training item.
    """

    tile: int | None = None
    overlap: int | None = None
    rescale: Rescale | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    keep: float = 0.8
    per_epoch: int | None = None
    around: float | None = None
    balance: float = 0.0
    mosaic: float = 0.0
    copy_paste: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", tuple(self.scale))
        if self.tile is not None and self.tile < 1:
            raise ConfigError(f"view: tile {self.tile} must be at least 1 pixel, or none for whole photos")
        if self.tile is not None and self.rescale is not None:
            raise ConfigError(
                "view: tile and rescale exclude each other: tiles are cut from photos as they are; set one of them"
            )
        if self.overlap is not None and not (self.tile is not None and 0 <= self.overlap < self.tile):
            raise ConfigError(f"view: overlap {self.overlap} is for tiles, and must be in [0, tile {self.tile})")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"view: scale {self.scale} must be two positive factors, the smaller first")
        if not 0 < self.keep <= 1:
            raise ConfigError(f"view: keep {self.keep} must be in (0, 1]")
        if self.per_epoch is not None and self.per_epoch < 1:
            raise ConfigError(f"view: per_epoch {self.per_epoch} must be at least 1")
        for name in ("around", "balance", "mosaic", "copy_paste"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"view: {name} {value} must be in [0, 1]")

    @property
    def shared(self) -> int:
        """Pixels that neighbouring tiles of validation share."""
        return (self.tile or 0) // 4 if self.overlap is None else self.overlap

    def factor(self, photo: Photo) -> float:
        """Pixels of the network's input per pixel of a photo, before any random scale."""
        return self.rescale.factor(*photo.size) if self.rescale is not None else 1.0


class Place(NamedTuple):
    """What an item shows."""

    photo: int  # number of the photo
    window: Window  # in its pixels, inside it
    factor: float  # pixels of the item per pixel of the photo


class RandomObjects(Dataset[Batch]):
    """Training items: whole photos or tiles, with whatever View and augmentation make of them.

    Item i depends on the seed and i alone, whichever worker makes it and in whatever order; i may be any whole
    number, so an epoch is a range of indices of its own: see visionapps.data.crops.EpochIndices. Key, origin and
    factor of an item are those of its photo before augmentation; of a mosaic, those of its first part.

    Args:
        photos: what to draw from.
        view: how photos become items.
        augment: changes every item; None leaves them as they are.
        seed: another seed, other items.
        masks: whether targets have masks.

    Raises:
        ConfigError: there is nothing to draw from.
    """

    def __init__(
        self,
        photos: Sequence[Photo],
        *,
        view: View,
        augment: ObjectAugment | None = None,
        seed: int = 0,
        masks: bool = False,
    ) -> None:
        if not photos:
            raise ConfigError("objects: there is no photo to draw from; check the folders and the split")
        if seed < 0:
            raise ConfigError(f"objects: seed {seed} must be at least 0")
        self.photos = tuple(photos)
        self.view = view
        self.masks = masks
        self._augment = augment
        self._seed = seed
        self._order = PhotoOrder(len(photos), seed)
        self._objects = ObjectIndex(self.photos)
        around = (0.5 if view.tile else 0.0) if view.around is None else view.around
        self._around = around if len(self._objects) else 0.0
        area = [max(1.0, h * w / view.tile**2) if view.tile else 1.0 for h, w in (p.size for p in photos)]
        self._area = np.cumsum(area)

    def __len__(self) -> int:
        return self.view.per_epoch or max(1, round(float(self._area[-1])))

    def __getitem__(self, index: int) -> Batch:
        rng = np.random.default_rng((self._seed, index))
        photo, target = self._choose(index, rng)
        factor = self._factor(photo, rng)
        place = Place(photo, self._window(photo, target, None, factor, rng), factor)
        example = self._mosaic(place, target, rng) if rng.random() < self.view.mosaic else self._read(place)
        if len(self._objects) and rng.random() < self.view.copy_paste:
            example = self._paste(example, rng)
        if self._augment is not None:
            example = self._augment(example, rng)
        origin = place.window.row, place.window.col
        return to_batch(example, keep=self.view.keep, key=photo, origin=origin, factor=factor)

    def shape(self, index: int) -> tuple[int, int]:
        """(h, w) of item ``index`` before augmentation; costs microseconds, no pixel is read."""
        rng = np.random.default_rng((self._seed, index))
        photo, target = self._choose(index, rng)
        factor = self._factor(photo, rng)
        window = self._window(photo, target, None, factor, rng)
        return max(1, round(window.height * factor)), max(1, round(window.width * factor))

    def _choose(self, index: int | None, rng: np.random.Generator) -> tuple[int, int | None]:
        """The number of a photo, and of the object that shall be seen; whole photos go round in turn by the index."""
        if self._around and rng.random() < self._around:
            return self._objects.draw(rng, self.view.balance)
        if self.view.tile is None and index is not None:
            return self._order[index], None
        return int(np.searchsorted(self._area, rng.random() * self._area[-1], side="right")), None

    def _factor(self, photo: int, rng: np.random.Generator) -> float:
        low, high = self.view.scale
        drawn = float(np.exp(rng.uniform(np.log(low), np.log(high)))) if low < high else low
        if self.view.tile is not None:  # of a whole number of pixels, so that every item has the size of the tile
            return self.view.tile / max(1, round(self.view.tile / drawn))
        return self.view.factor(self.photos[photo]) * drawn

    def _window(
        self, photo: int, target: int | None, size: tuple[int, int] | None, factor: float, rng: np.random.Generator
    ) -> Window:
        """A window for ``size`` (h, w) pixels of an item; None: for a whole item."""
        source = self.photos[photo]
        if size is None and self.view.tile is None:
            return Window(0, 0, *source.size)
        wanted = size or (self.view.tile or 0,) * 2
        extent = int(np.ceil(wanted[0] / factor - 1e-6)), int(np.ceil(wanted[1] / factor - 1e-6))
        return draw_window(rng, source.size, extent, None if target is None else source.objects.boxes[target])

    def _read(self, place: Place) -> Example:
        return read_example(self.photos[place.photo], place.window, place.factor, masks=self.masks)

    def _mosaic(self, place: Place, target: int | None, rng: np.random.Generator) -> Example:
        """Four windows side by side in a picture of the size of the first one's item."""
        size = round(place.window.height * place.factor), round(place.window.width * place.factor)
        if min(size) < 2:
            return self._read(place)
        corners = quarters(size, rng)
        parts = []
        for number, corner in enumerate(corners):
            photo, factor = place.photo, place.factor
            if number:
                photo, target = self._choose(None, rng)
                factor = self._factor(photo, rng)
            window = self._window(photo, target, (corner.height, corner.width), factor, rng)
            parts.append(self._read(Place(photo, window, factor)))
        return mosaic(size, corners, parts)

    def _paste(self, example: Example, rng: np.random.Generator) -> Example:
        patches = []
        for _ in range(int(rng.integers(1, MOST_PASTED, endpoint=True))):
            photo, number = self._objects.draw(rng, self.view.balance)
            patch = cut_patch(self.photos[photo], number, self._factor(photo, rng), masks=self.masks)
            patches += [] if patch is None else [patch]
        return paste(example, patches, rng)


class EvalObjects(Dataset[Batch]):
    """Validation items: every photo whole, or as tiles that cover it; never augmented.

    Tiles lie on the lattice of ``windows.starts`` and are cut at the photo's edges, so those are smaller.

    Args:
        photos: in this order; keys number them.
        view: how photos become items.
        masks: whether targets have masks.
    """

    def __init__(self, photos: Sequence[Photo], *, view: View, masks: bool = False) -> None:
        self.photos = tuple(photos)
        self.view = view
        self.masks = masks
        self.places = tuple(place for number in range(len(photos)) for place in self._places(number))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Batch:
        photo, window, factor = self.places[index]
        example = read_example(self.photos[photo], window, factor, masks=self.masks)
        return to_batch(example, keep=self.view.keep, key=photo, origin=(window.row, window.col), factor=factor)

    def shape(self, index: int) -> tuple[int, int]:
        """(h, w) of item ``index``."""
        _, window, factor = self.places[index]
        return max(1, round(window.height * factor)), max(1, round(window.width * factor))

    def _places(self, number: int) -> list[Place]:
        photo, tile = self.photos[number], self.view.tile
        whole = Window(0, 0, *photo.size)
        if tile is None:
            return [Place(number, whole, self.view.factor(photo))]
        rows, cols = (starts(length, tile, self.view.shared) for length in photo.size)
        return [Place(number, whole.intersect(Window(r, c, tile, tile)), 1.0) for r, c in itertools.product(rows, cols)]


def collate_objects(batches: list[Batch]) -> Batch:
    """Join batches into one, padded with zeros to a common size that is a multiple of 32 px.

    Args:
        batches: at least one; of the same bands and dtype, all with masks or none, all with proposals or none.
    """
    sizes = [size for batch in batches for size in batch.sizes]
    height, width = (-(-max(size[axis] for size in sizes) // MULTIPLE) * MULTIPLE for axis in (0, 1))
    first = batches[0].image
    image = torch.zeros((len(sizes), first.shape[1], height, width), dtype=first.dtype)
    planes = [plane for batch in batches for plane in batch.image]
    for target, plane, (h, w) in zip(image, planes, sizes, strict=True):
        target[:, :h, :w] = plane[:, :h, :w]
    proposals = [batch.proposals for batch in batches if batch.proposals is not None]
    assert len(proposals) in (0, len(batches))
    return Batch(
        image,
        tuple(sizes),
        _joined_targets([target for batch in batches for target in batch.targets]),
        tuple(_packed([p for each in proposals for p in each])) if proposals else None,
        tuple(key for batch in batches for key in batch.keys),
        tuple(origin for batch in batches for origin in batch.origins),
        tuple(factor for batch in batches for factor in batch.factors),
    )


def _joined_targets(targets: list[Targets]) -> tuple[Targets, ...]:
    boxes, labels, ignore = (_packed([target[i] for target in targets]) for i in range(3))  # type: ignore[misc]
    masks: list[Tensor | None] = [target.masks for target in targets]
    return tuple(Targets(*parts) for parts in zip(boxes, labels, ignore, masks, strict=True))


def _packed(parts: list[Tensor]) -> list[Tensor]:
    """The same tensors in one storage: a worker passes each storage on through a file descriptor of its own."""
    return list(torch.split(torch.cat(parts), [len(part) for part in parts]))
