"""The data side of a segmentation run: examined photos, random crops to train on, tiles to validate on."""

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Sampler

from visionapps.data.crops import EpochIndices, EvalTiles, RandomCrops, Sample, collate, init_worker
from visionapps.data.dataset import Dataset
from visionapps.data.doctor import Examination, examine
from visionapps.data.seen import Seen
from visionapps.data.transforms import Augment
from visionapps.errors import ConfigError
from visionapps.structures import LabelSpace


@dataclass(frozen=True)
class Crops:
    """How training crops are drawn.

    Args:
        size: height and width in pixels.
        per_epoch: crops that make one epoch; None: as many as cover the area of the training photos once.
        balance: share of the crops in [0, 1] that are drawn around a class chosen evenly among all, so that rare
            classes are seen; the others are drawn evenly over the area.
        scale: range of a random factor on the ground resolution, (1, 1) for none.
        weights: how often a balanced crop is drawn for each class, relative; None: all classes alike.
    """

    size: int = 512
    per_epoch: int | None = None
    balance: float = 0.5
    scale: tuple[float, float] = (1.0, 1.0)
    weights: tuple[float, ...] | None = None


class Share(Sampler[int]):
    """Every world-th index of an order, so that processes share the crops of an epoch evenly.

    Lightning's own distributed sampler would wrap the order and no longer tell it the epoch.
    """

    def __init__(self, order: EpochIndices, rank: int, world: int) -> None:
        self._order = order
        self._rank = rank
        self._world = world

    def set_epoch(self, epoch: int) -> None:
        self._order.set_epoch(epoch)

    def __len__(self) -> int:
        # Equal for all processes: one with a batch more would wait for the others for ever.
        return len(self._order) // self._world

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self._order, self._rank, len(self) * self._world, self._world)


class SegmentationData(LightningDataModule):
    """Photos and masks of one folder pair, divided into training and validation.

    Args:
        dataset: where the photos and masks are, what the masks mean, and how to divide them.
        crops: how training crops are drawn.
        batch_size: crops in a batch of one process.
        augment: random changes of a crop; visionapps.data.transforms.aerial is a good start.
        val_tile: validation runs on tiles of this size in pixels; None: the crop size.
        workers: processes that prepare batches; None: one less than the cores, at most 8.
        seed: fixes which crops are drawn, whatever the number of workers.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        crops: Crops,
        batch_size: int,
        augment: Augment | None = None,
        val_tile: int | None = None,
        workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ConfigError(f"data: batch_size {batch_size} must be at least 1")
        self.dataset = dataset
        self.crops = crops
        self.batch_size = batch_size
        self.augment = augment
        self.val_tile = val_tile or crops.size
        self.workers = min(8, max(0, (os.cpu_count() or 1) - 1)) if workers is None else workers
        self.seed = seed
        self.examination: Examination | None = None
        self._seen: Seen | None = None

    @property
    def labels(self) -> LabelSpace:
        """The classes that the masks are mapped to; known after setup."""
        return self._examined().coding.labels

    @property
    def bands(self) -> int:
        """Bands of every photo; known after setup."""
        return self._examined().bands

    @property
    def dtype(self) -> str:
        """Data type of the raw pixels, as numpy names it; known after setup."""
        return self._examined().dtype

    def setup(self, stage: str) -> None:
        """Examine the photos (decoding each once, ever) and refuse to go on with bad ones."""
        if self.examination is None:
            self.examination = examine(self.dataset, progress=True)
            self.examination.raise_on_errors()

    def seen(self) -> Seen:
        """What training on these photos shows a model; known after setup."""
        if self._seen is None:
            self._seen = Seen.of(self._examined().learned)
        return self._seen

    def random_crops(self) -> RandomCrops:
        """What training draws from; one epoch long."""
        crops, photos = self.crops, self._examined().learned
        area = sum(photo.size[0] * photo.size[1] * photo.weight for photo in photos)
        return RandomCrops(
            photos,
            size=crops.size,
            length=crops.per_epoch or max(1, round(area / crops.size**2)),
            augment=self.augment,
            seed=self.seed,
            balance=crops.balance,
            scale=crops.scale,
            weights=crops.weights,
        )

    def rehearsal_batch(self) -> Sample:
        """Two crops, as training would see them first."""
        crops = self.random_crops()
        return collate([crops[0], crops[1]])

    def train_dataloader(self) -> DataLoader[Sample]:
        drawn = self.random_crops()
        order = Share(EpochIndices(len(drawn)), *self._place())
        return self._loader(drawn, order, drop_last=len(order) >= self.batch_size)

    def val_dataloader(self) -> DataLoader[Sample]:
        tiles = EvalTiles(self._examined().val, size=self.val_tile, overlap=self.val_tile // 8)
        rank, world = self._place()
        # No padding to equal counts: each tile is counted once, by one process.
        return self._loader(tiles, range(rank, len(tiles), world), drop_last=False)

    def _place(self) -> tuple[int, int]:
        """This process's number, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(self, items: RandomCrops | EvalTiles, order: Iterable[int], *, drop_last: bool) -> DataLoader[Sample]:
        return DataLoader(
            items,
            batch_size=self.batch_size,
            sampler=order,
            num_workers=self.workers,
            collate_fn=collate,
            drop_last=drop_last,
            persistent_workers=self.workers > 0,
            worker_init_fn=init_worker,
            pin_memory=torch.cuda.is_available(),
        )

    def _examined(self) -> Examination:
        if self.examination is None:
            raise ConfigError("data: call setup('fit') before asking for labels or loaders")
        return self.examination
