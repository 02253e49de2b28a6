"""The data side of a detection run: examined photos, random items to train on, whole photos or tiles to validate on."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Sampler

from visionapps.boxes import Batch
from visionapps.data.object_crops import EvalObjects, RandomObjects, View, collate_objects
from visionapps.data.object_dataset import ObjectDataset, ObjectPhoto
from visionapps.data.object_doctor import ObjectExamination, examine_objects
from visionapps.data.object_transforms import ObjectAugment
from visionapps.errors import ConfigError
from visionapps.structures import LabelSpace
from visionapps.training.loading import batches, place, training_batches, worker_count

log = logging.getLogger(__name__)

_SORTED = 16  # batches among which items of like shape are brought together: enough to pad little, still random
_LARGE = 3000  # px: a whole photo with a longer side than this fills the memory of most devices
_CUT = 0.02  # share of objects larger than a tile that is worth a warning


class DetectionData(LightningDataModule):
    """Photos and objects of one dataset, divided into training and validation.

    Args:
        dataset: where photos and annotations are, what they mean, and how to divide them.
        view: how photos become what the network sees.
        batch_size: items in a batch of one process.
        augment: random changes of an item; visionapps.data.object_transforms.object_aerial is a good start.
        workers: processes that prepare batches; None: one less than the cores, at most 8.
        seed: fixes which items are drawn, whatever the number of workers.

    Attributes:
        masks: whether targets have masks; a task whose model learns from masks sets it before the first loader.
    """

    def __init__(
        self,
        dataset: ObjectDataset,
        *,
        view: View,
        batch_size: int,
        augment: ObjectAugment | None = None,
        workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ConfigError(f"data: batch_size {batch_size} must be at least 1")
        self.dataset = dataset
        self.view = view
        self.batch_size = batch_size
        self.augment = augment
        self.workers = worker_count(workers)
        self.seed = seed
        self.masks = False
        self.examination: ObjectExamination | None = None

    @property
    def labels(self) -> LabelSpace:
        """The classes that annotations are mapped to; known after setup."""
        return self._examined().labels

    @property
    def category_ids(self) -> tuple[int, ...]:
        """(K,) number of each class in COCO files; known after setup."""
        return self._examined().category_ids

    @property
    def bands(self) -> int:
        """Bands of every photo; known after setup."""
        return self._examined().bands

    @property
    def dtype(self) -> str:
        """Data type of the raw pixels, as numpy names it; known after setup."""
        return self._examined().dtype

    @property
    def train_photos(self) -> tuple[ObjectPhoto, ...]:
        """What training draws from; known after setup."""
        return self._examined().train

    @property
    def val_photos(self) -> tuple[ObjectPhoto, ...]:
        """What validation goes over; keys of its batches number them. Known after setup."""
        return self._examined().val

    @property
    def most_objects(self) -> int:
        """The greatest number of objects in one photo, whichever split it is in; known after setup."""
        return max((len(photo.objects) for photo in (*self.train_photos, *self.val_photos)), default=0)

    def setup(self, stage: str) -> None:
        """Examine the photos (decoding each once, ever) and refuse to go on with bad ones."""
        if self.examination is not None:
            return
        self.examination = examine_objects(self.dataset, progress=True)
        self.examination.raise_on_errors()
        for warning in view_warnings(self.view, self.examination.train):
            log.warning("%s", warning)

    def random_objects(self) -> RandomObjects:
        """What training draws; one epoch long."""
        return RandomObjects(
            self.train_photos, view=self.view, augment=self.augment, seed=self.seed, masks=self._with_masks()
        )

    def rehearsal_batch(self) -> Batch:
        """The two training photos with the most objects, as training would see them."""
        fullest = sorted(self.train_photos, key=lambda photo: -len(photo.objects))[:2]
        view = replace(self.view, per_epoch=2)
        items = RandomObjects(fullest, view=view, augment=self.augment, seed=self.seed, masks=self._with_masks())
        return collate_objects([items[0], items[1]])

    def train_dataloader(self) -> DataLoader[Batch]:
        items = self.random_objects()
        order = EpochOrder(items, self.batch_size, *place(self.trainer))
        return training_batches(
            items,
            order,
            collate=collate_objects,
            batch_size=self.batch_size,
            workers=self.workers,
            trainer=self.trainer,
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        items = EvalObjects(self.val_photos, view=self.view, masks=self._with_masks())
        order = list(range(len(items)))
        if self.view.tile is None:  # tiles stay together, so that a photo is complete soon
            order.sort(key=lambda index: _likeness(items.shape(index)))
        rank, world = place(self.trainer)
        # No padding to equal counts: each item is counted once, by one process.
        own = order[rank::world]
        return batches(items, own, collate=collate_objects, batch_size=self.batch_size, workers=self.workers)

    def _with_masks(self) -> bool:
        model = getattr(self.trainer.lightning_module, "model", None) if self.trainer else None
        return self.masks or bool(getattr(model, "gives_masks", False))

    def _examined(self) -> ObjectExamination:
        if self.examination is None:
            raise ConfigError("data: call setup('fit') before asking for labels, photos or loaders")
        return self.examination


class EpochOrder(Sampler[int]):
    """Indices of RandomObjects for one epoch after another, shared evenly among processes.

    Neighbouring batches exchange items so that each holds like shapes, which spares padding; the batches of such a
    stretch come in random order. Lightning calls set_epoch, so a resumed run goes on with the items that it would have
    drawn.

    Args:
        items: what is indexed; its length is an epoch.
        batch_size: items of a batch.
        rank: number of this process.
        world: number of processes.
    """

    def __init__(self, items: RandomObjects, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self._items = items
        self._batch = batch_size
        self._rank = rank
        self._world = world
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch, counted from 0."""
        self._epoch = epoch

    def __len__(self) -> int:
        # Equal for all processes: one with a batch more would wait for the others for ever.
        return len(self._items) // self._world

    def __iter__(self) -> Iterator[int]:
        first = self._epoch * len(self._items)
        own = range(first + self._rank, first + len(self) * self._world, self._world)
        for start in range(0, len(own), self._batch * _SORTED):
            yield from self._stretch(own[start : start + self._batch * _SORTED])

    def _stretch(self, indices: range) -> list[int]:
        """The same indices, those of like shape in one batch; an incomplete batch is drawn of all shapes and last."""
        shapes = {index: self._items.shape(index) for index in indices}
        if len(set(shapes.values())) == 1:
            return list(indices)
        rng = np.random.default_rng((1 << 34, indices[0]))
        # Whoever drops the incomplete batch would else drop the largest photos, in every epoch.
        mixed = [indices[i] for i in rng.permutation(len(indices))]
        full = len(mixed) // self._batch * self._batch
        alike = sorted(mixed[:full], key=lambda index: (_likeness(shapes[index]), index))
        batches = [alike[start : start + self._batch] for start in range(0, full, self._batch)]
        return [index for i in rng.permutation(len(batches)) for index in batches[i]] + mixed[full:]


def view_warnings(view: View, photos: Sequence[ObjectPhoto]) -> list[str]:
    """What a person may want to change about a view of these photos."""
    if not photos:
        return []
    largest = max((photo.size for photo in photos), key=max)
    if view.tile is None and view.rescale is None and max(largest) > _LARGE:
        return [
            f"view: photos of up to {largest[0]} x {largest[1]} px are seen whole and at full size; if memory runs out "
            "or steps are slow, set view.tile or view.rescale"
        ]
    if view.tile is None:
        return []
    boxes = np.concatenate([photo.objects.boxes[~photo.objects.ignored] for photo in photos])
    large = int((np.max(boxes[:, 2:] - boxes[:, :2], axis=1, initial=0.0) > view.tile).sum())
    if large > _CUT * len(boxes):
        return [
            f"view: {large} of {len(boxes)} objects are longer than a tile of {view.tile} px, so every tile cuts them "
            f"and they are ignored where less than {view.keep:.0%} is left; choose a larger tile, or whole photos"
        ]
    return []


def _likeness(shape: tuple[int, int]) -> tuple[int, int]:
    """Sorts (h, w) so that neighbours need little padding: by proportions, then by size."""
    height, width = shape
    return round(4 * float(np.log2(height / width))), height * width
