"""The data side of a segmentation run: examined photos, random crops to train on, tiles to validate on."""

import logging
from dataclasses import dataclass

import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from visionapps.class_weights import ClassCounts
from visionapps.data.balance import AreaBins, Balance, Sliding, class_counts
from visionapps.data.crops import EpochIndices, EvalTiles, RandomCrops, Sample, collate
from visionapps.data.dataset import Dataset
from visionapps.data.doctor import Examination, examine
from visionapps.data.drawn import Drawn
from visionapps.data.seen import Seen
from visionapps.data.transforms import Augment
from visionapps.errors import ConfigError
from visionapps.structures import LabelSpace
from visionapps.training.loading import Share, batches, place, training_batches, worker_count

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Crops:
    """How training crops are drawn.

    Args:
        size: height and width in pixels.
        per_epoch: crops that make one epoch; None: as many as cover the area of the training photos once.
        balance: share of the crops in [0, 1] that are drawn around a class chosen evenly among all, so that rare
            classes are seen; the others are drawn evenly over the area. {start, end, epochs}: it slides over so many
            epochs, then stays.
        scale: range of a random factor on the ground resolution, (1, 1) for none.
        weights: how often a balanced crop is drawn for each class, relative; None: all classes alike.
        area_bins: places of a class are divided by how much of a crop around them it covers, and drawn alike from all
            bins, so that its small objects are seen as often as its large fields: the number of bins, or the shares
            between them, ascending. None: in proportion to its pixels.
    """

    size: int = 512
    per_epoch: int | None = None
    balance: float | Sliding = 0.5
    scale: tuple[float, float] = (1.0, 1.0)
    weights: tuple[float, ...] | None = None
    area_bins: AreaBins = None


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

    Attributes:
        counting: whether crops are counted on their way to the device; CountDrawn sets it.
        batch_counts: of the training batch that went there last.
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
        self.workers = worker_count(workers)
        self.seed = seed
        self.examination: Examination | None = None
        self.counting = False
        self.batch_counts: Drawn | None = None
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
            for problem in self.examination.problems:
                if problem.kind == "taught_by_validation":  # what a score is worth is to be known where it is told
                    log.warning("%s", problem.message)

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
            balance=Balance(crops.balance, crops.weights, crops.area_bins),
            scale=crops.scale,
        )

    def class_counts(self) -> ClassCounts:
        """How often each class occurs in what training draws from; known after setup."""
        return class_counts(self.labels.names, self._examined().learned)

    def photo_counts(self) -> Drawn:
        """The training photos, counted as if each were one crop, whatever the weight of its source."""
        counts = np.array([photo.class_pixels for photo in self._examined().learned])
        return Drawn.of_row([len(counts), *(counts > 0).sum(axis=0), *counts.sum(axis=0)])

    def rehearsal_batch(self) -> Sample:
        """Two crops, as training would see them first."""
        crops = self.random_crops()
        return collate([crops[0], crops[1]])

    def train_dataloader(self) -> DataLoader[Sample]:
        drawn = self.random_crops()
        order = Share(EpochIndices(len(drawn)), *place(self.trainer))
        return training_batches(
            drawn,
            order,
            collate=collate,
            batch_size=self.batch_size,
            workers=self.workers,
            trainer=self.trainer,
        )

    def val_dataloader(self) -> DataLoader[Sample]:
        tiles = EvalTiles(self._examined().val, size=self.val_tile, overlap=self.val_tile // 8)
        rank, world = place(self.trainer)
        # No padding to equal counts: each tile is counted once, by one process.
        order = range(rank, len(tiles), world)
        return batches(tiles, order, collate=collate, batch_size=self.batch_size, workers=self.workers)

    def on_before_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Count what the next step learns from, while it is still in the memory of this process."""
        if self.counting and self.trainer is not None and self.trainer.training:
            self.batch_counts = Drawn.of(batch.labels.numpy(), len(self.labels))
        return batch

    def _examined(self) -> Examination:
        if self.examination is None:
            raise ConfigError("data: call setup('fit') before asking for labels or loaders")
        return self.examination
