"""What may happen around the steps of a run: freezing, and knowing where the time goes."""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import nn

from visionapps.errors import ConfigError


class FreezeBackbone(Callback):
    """Keep the backbone as it was pretrained for the first epochs, then train all of it.

    Its batch-normalisation statistics stand still as well while it is frozen.

    Args:
        epochs: how many epochs to freeze for; -1: for the whole run.
    """

    def __init__(self, epochs: int = 1) -> None:
        if epochs < -1:
            raise ConfigError(f"FreezeBackbone: epochs is a number of epochs, or -1 for all, not {epochs}")
        self.epochs = epochs

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        frozen = self.epochs == -1 or trainer.current_epoch < self.epochs
        backbone: nn.Module = pl_module.model.backbone  # type: ignore[union-attr,assignment]
        backbone.requires_grad_(not frozen)
        backbone.train(not frozen)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Validation in the middle of an epoch sets the whole model back to training mode.
        if not trainer.sanity_checking:
            self.on_train_epoch_start(trainer, pl_module)


class Bar(TQDMProgressBar):
    """Lightning's progress bar, drawn at most ten times a second: drawing it for every step costs 0.3 ms of each.

    It leaves out the number of the log folder, which says nothing here.
    """

    _drawn = 0.0  # time of the last drawing

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if now - self._drawn >= 0.1 or batch_idx + 1 == self.total_train_batches:
            self._drawn = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


class SaveWhenInterrupted(Callback):
    """On Ctrl-C, write the state of the run, so that --resume goes on from this very step.

    Args:
        path: checkpoint to write.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt) and trainer.global_step > 0:
            trainer.save_checkpoint(self._path, weights_only=False)


class WaitingForData(Callback):
    """Log the share of training time spent waiting for batches as ``time/data_wait``, once per epoch.

    Above a few percent, more workers or a faster disk make training faster.
    """

    def __init__(self) -> None:
        self._waited = 0.0
        self._started = 0.0
        self._last = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._waited = 0.0
        self._started = self._last = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._waited += time.perf_counter() - self._last

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._last = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        spent = time.perf_counter() - self._validated
        self._started += spent
        self._last += spent

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = time.perf_counter() - self._started
        pl_module.log("time/data_wait", self._waited / total if total > 0 else 0.0)
