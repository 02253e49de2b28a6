"""The data side of a classification run: examined photos, random squares to train on, their middles to validate on."""

from collections.abc import Sequence

import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from visionapps.data.class_crops import (
    ClassSample,
    ClassView,
    MiddleSquares,
    RandomSquares,
    collate_classes,
)
from visionapps.data.class_dataset import ClassDataset, ClassPhoto
from visionapps.data.class_doctor import ClassExamination, examine_classes
from visionapps.data.colour_noise import Both, ColourNoise, principal_colours
from visionapps.data.crops import EpochIndices
from visionapps.data.transforms import Augment
from visionapps.errors import ConfigError
from visionapps.structures import LabelSpace
from visionapps.training.loading import Share, batches, place, training_batches, worker_count


class ClassificationData(LightningDataModule):
    """Photos with one class each, divided into training and validation.

    Args:
        dataset: where the photos are, their classes, and how to divide them.
        view: how photos become squares.
        batch_size: squares in a batch of one process.
        augment: random changes of a square, as for segmentation; visionapps.data.transforms.aerial for photos from
            above. Changes of scale and place belong to the view.
        colour_noise: sigma of noise along the principal colours of the training photos; 0.1 in Krizhevsky et al. 2012.
        label_noise: share in [0, 1] of the training labels that are drawn anew from all classes, for experiments (Zhang
            et al. 2017). Validation keeps its labels.
        workers: processes that prepare batches; None: one less than the cores, at most 8.
        seed: fixes which squares are drawn, whatever the number of workers.
    """

    def __init__(
        self,
        dataset: ClassDataset,
        *,
        view: ClassView,
        batch_size: int,
        augment: Augment | None = None,
        colour_noise: float = 0.0,
        label_noise: float = 0.0,
        workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ConfigError(f"data: batch_size {batch_size} must be at least 1")
        if not 0 <= label_noise <= 1 or colour_noise < 0:
            raise ConfigError(
                f"data: label_noise {label_noise} must be in [0, 1], colour_noise {colour_noise} not negative"
            )
        dataset.require_px(view.largest, "data.view")
        self.dataset = dataset
        self.view = view
        self.batch_size = batch_size
        self.augment = augment
        self.colour_noise = colour_noise
        self.label_noise = label_noise
        self.workers = worker_count(workers)
        self.seed = seed
        self.scale = 255.0  # raw value that means 1; the task takes it from its model
        self.examination: ClassExamination | None = None

    @property
    def labels(self) -> LabelSpace:
        """The classes; known after setup."""
        return self._examined().labels

    @property
    def bands(self) -> int:
        """Bands of every photo; known after setup."""
        return self._examined().bands

    @property
    def dtype(self) -> str:
        """Data type of the raw pixels, as numpy names it; known after setup."""
        return self._examined().dtype

    @property
    def train_photos(self) -> tuple[ClassPhoto, ...]:
        """What training draws from; known after setup."""
        return self._examined().train

    @property
    def val_photos(self) -> tuple[ClassPhoto, ...]:
        """What validation goes over; keys of its batches number them. Known after setup."""
        return self._examined().val

    def setup(self, stage: str) -> None:
        """Examine the photos (decoding each once, ever) and refuse to go on with bad ones."""
        if self.examination is None:
            self.examination = examine_classes(self.dataset, progress=True)
            self.examination.raise_on_errors()

    def random_squares(self) -> RandomSquares:
        """What training draws; one epoch long."""
        photos = self.train_photos
        labels = np.array([photo.label for photo in photos], np.int64)
        if self.label_noise:
            labels = with_noise(labels, self.label_noise, len(self.labels), self.seed)
        return RandomSquares(
            photos, view=self.view, labels=labels, augment=self._augment(), bands=self.bands, seed=self.seed
        )

    def middle_squares(self, photos: Sequence[ClassPhoto] | None = None) -> MiddleSquares:
        """Photos as they are judged; those that validate, if none are given."""
        return MiddleSquares(self.val_photos if photos is None else photos, frame=self.view.frame, bands=self.bands)

    def rehearsal_batch(self) -> ClassSample:
        """Two squares, as training would see them first."""
        squares = self.random_squares()
        return collate_classes([squares[0], squares[1]])

    def train_dataloader(self) -> DataLoader[ClassSample]:
        squares = self.random_squares()
        order = Share(EpochIndices(len(squares)), *place(self.trainer))
        return training_batches(
            squares,
            order,
            collate=collate_classes,
            batch_size=self.batch_size,
            workers=self.workers,
            trainer=self.trainer,
        )

    def val_dataloader(self) -> DataLoader[ClassSample]:
        squares = self.middle_squares()
        rank, world = place(self.trainer)
        # No padding to equal counts: each photo is counted once, by one process.
        own = range(rank, len(squares), world)
        return batches(squares, own, collate=collate_classes, batch_size=self.batch_size, workers=self.workers)

    def _augment(self) -> Augment | None:
        if not self.colour_noise:
            return self.augment
        colours = principal_colours(self.train_photos, bands=self.bands, scale=self.scale)
        noise = ColourNoise(colours, self.scale, self.colour_noise)
        return noise if self.augment is None else Both(self.augment, noise)

    def _examined(self) -> ClassExamination:
        if self.examination is None:
            raise ConfigError("data: call setup('fit') before asking for labels, photos or loaders")
        return self.examination


def with_noise(labels: np.ndarray, share: float, classes: int, seed: int) -> np.ndarray:
    """Labels of which each is drawn anew from all classes with a probability; some of those stay what they were.

    Source: Zhang, Bengio, Hardt, Recht and Vinyals 2017, "partially corrupted labels".
    """
    rng = np.random.default_rng((1 << 32, seed))
    drawn = rng.integers(classes, size=len(labels))
    noisy: np.ndarray = np.where(rng.random(len(labels)) < share, drawn, labels)
    return noisy
