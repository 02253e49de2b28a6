"""Checkpoints to be averaged, or to be members of an ensemble: the best k, the ends of cycles, the mean of the last."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging

from visionapps.competition.soup import normalisations, recompute_statistics
from visionapps.errors import ConfigError
from visionapps.training.optim import CosineRestarts
from visionapps.training.task import Task


class KeepBest(ModelCheckpoint):
    """Keep the k best checkpoints by the task's score, as ``checkpoints/top_EPOCH.ckpt``.

    ``visionapps ensemble average`` makes one bundle of them.

    Args:
        count: k, at least 1.
    """

    def __init__(self, count: int = 3) -> None:
        if count < 1:
            raise ConfigError(f"KeepBest: count {count} must be at least 1 checkpoint")
        self.count = count
        super().__init__(
            filename="top_{epoch:03d}",
            save_top_k=count,
            monitor="the task's score",  # the task is known to setup
            mode="max",
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, Task):
            raise ConfigError("KeepBest: needs a task of visionapps, which says by what score a checkpoint is better")
        self.monitor = pl_module.SCORE
        self.dirpath = str(folder_of(trainer))
        super().setup(trainer, pl_module, stage)


class Snapshots(Callback):
    """Save a member of an ensemble at the end of every cycle of the learning rate, as ``checkpoints/cycle_N.ckpt``.

    Each cycle ends in a minimum of its own, so one run gives as many members as it has cycles. The run's curve must be
    CosineRestarts, and its cycles must divide the epochs.

    Source: Huang et al. 2017, Snapshot Ensembles.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epochs(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done, each = trainer.current_epoch + 1, self._epochs(trainer, pl_module)
        if done % each == 0:
            trainer.save_checkpoint(folder_of(trainer) / f"cycle_{done // each}.ckpt", weights_only=False)

    @staticmethod
    def _epochs(trainer: Trainer, pl_module: LightningModule) -> int:
        """Epochs of a cycle."""
        curve = getattr(pl_module, "curve", None)
        if not isinstance(curve, CosineRestarts):
            raise ConfigError(
                "Snapshots: the learning rate has no cycles; set model.init_args.curve to "
                "visionapps.training.optim.CosineRestarts"
            )
        epochs = trainer.max_epochs or 0
        if epochs < 1 or epochs % curve.cycles:
            raise ConfigError(
                f"Snapshots: max_epochs {trainer.max_epochs} is no multiple of the {curve.cycles} cycles, so that they "
                f"would end within an epoch; take {max(1, round(epochs / curve.cycles)) * curve.cycles}"
            )
        return epochs // curve.cycles


class LateAveraging(WeightAveraging):
    """Validate and save the plain mean of the weights at the ends of the last epochs (SWA).

    Before each validation the mean gets statistics of batch normalisation of its own, from crops of the training
    photos. A validation in the middle of an epoch adds nothing to the mean. Let the learning rate stay up while it is
    taken: Curve (constant), or Cosine with ``final`` 0.1 or so.

    Args:
        start: share of the run in [0, 1) after which the mean begins; before, it is the model itself.
        batches: that the statistics are taken from, at least 1.

    Source: Izmailov et al. 2018.
    """

    def __init__(self, start: float = 0.75, batches: int = 32) -> None:
        if not 0 <= start < 1:
            raise ConfigError(f"LateAveraging: start {start} is a share of the run in [0, 1)")
        if batches < 1:
            raise ConfigError(f"LateAveraging: batches {batches} must be at least 1")
        self.start = start
        self.batches = batches
        self._first = 0  # the epoch whose end begins the mean
        super().__init__(use_buffers=False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and (trainer.max_epochs or 0) < 1:
            raise ConfigError("LateAveraging: the length of the run is not known; set trainer.max_epochs")
        self._first = int(self.start * (trainer.max_epochs or 0))
        super().setup(trainer, pl_module, stage)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return False  # both are counted here: Lightning's epoch hook comes after the validation

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the mean up to date, and validate with it."""
        average = self._average_model
        if average is not None and not trainer.sanity_checking:
            epoch, ends = trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
            if epoch >= self._first and epoch > self._latest_update_epoch and ends:
                average.update_parameters(pl_module)
                self._latest_update_epoch = epoch
                _renew(average.module.model, trainer, self.batches)  # type: ignore[arg-type]
            elif not average.n_averaged:
                average.module.load_state_dict(pl_module.state_dict())
        super().on_validation_epoch_start(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"latest_update_epoch": self._latest_update_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._latest_update_epoch = state_dict["latest_update_epoch"]


def folder_of(trainer: Trainer) -> Path:
    """Where a run keeps its checkpoints."""
    return Path(trainer.default_root_dir) / "checkpoints"


def _renew(model: torch.nn.Module, trainer: Trainer, batches: int) -> None:
    """New statistics from the first crops of training, the same ones every time."""
    if not normalisations(model):
        return
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    size = data.batch_size

    def images() -> Any:
        from visionapps.data.crops import collate

        crops = data.random_crops()
        for first in range(0, batches * size, size):
            yield collate([crops[first + i] for i in range(size)]).image

    recompute_statistics(model, images())
