"""Counts what training draws, epoch by epoch, and leaves it in the run's folder."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from visionapps.data.drawn import Drawn, DrawnTable
from visionapps.training.data import SegmentationData


class CountDrawn(Callback):
    """Write what every epoch showed of each class: a CSV file that is complete after each epoch.

    Crops are counted in this process just before they go to the device, so the counts are those of the batches that
    were learnt from, whatever the number of workers; several processes add theirs up. They are kept in the checkpoint:
    a run that is resumed goes on counting. With several processes an epoch that was interrupted counts only what came
    after, and its number of crops says so.

    Runs on other data than photos with masks are left alone.

    Args:
        path: of the file; its folder is made when there is something to write.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._epochs: dict[int, Drawn] = {}
        self._current: Drawn | None = None
        self._processes = 1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = _data_of(trainer)
        self._processes = trainer.world_size
        if data is not None:
            data.counting = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = _data_of(trainer)
        if data is not None and self._current is None:
            self._current = Drawn.none(len(data.labels))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        data = _data_of(trainer)
        if data is not None and self._current is not None and data.batch_counts is not None:
            self._current += data.batch_counts
            data.batch_counts = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = _data_of(trainer)
        if data is None or self._current is None:
            return
        row = torch.tensor(self._current.to_row(), device=pl_module.device)
        summed = trainer.strategy.reduce(row, reduce_op="sum")
        self._epochs[trainer.current_epoch] = Drawn.of_row(torch.as_tensor(summed).tolist())
        self._current = None
        if trainer.is_global_zero:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            DrawnTable(data.labels.names, data.photo_counts(), self._epochs).write(self._path)

    def state_dict(self) -> dict[str, Any]:
        """Plain data for the checkpoint."""
        # What the other processes counted of an epoch is not here; half of it would be worse than nothing.
        current = self._current.to_row() if self._current is not None and self._processes == 1 else None
        return {"epochs": {epoch: drawn.to_row() for epoch, drawn in self._epochs.items()}, "current": current}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting where the checkpoint was written."""
        self._epochs = {int(epoch): Drawn.of_row(row) for epoch, row in state_dict["epochs"].items()}
        self._current = Drawn.of_row(state_dict["current"]) if state_dict["current"] else None


def _data_of(trainer: Trainer) -> SegmentationData | None:
    data = trainer.datamodule  # type: ignore[attr-defined]
    return data if isinstance(data, SegmentationData) else None
