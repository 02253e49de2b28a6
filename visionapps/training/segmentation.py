"""The segmentation task: what happens to a batch, and what is written down about it."""

from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from visionapps.data.crops import Sample
from visionapps.data.seen import Seen, joined
from visionapps.inference.seen_files import stored_seen
from visionapps.losses import meet, weights_in
from visionapps.metrics.confusion import Confusion, Scores
from visionapps.segmentation.base import Segmentor
from visionapps.structures import LabelSpace
from visionapps.training.data import SegmentationData
from visionapps.training.optim import Curve, LayerRates
from visionapps.training.task import RunningMean, Task, round_up


class SegmentationTask(Task):
    """Trains a segmentation model; validates with the mean Dice over classes.

    Args:
        model: a model built by a function of visionapps.models; its named weights are loaded when training starts.
        loss: takes logits (B, K, H, W) and labels (B, H, W); one of visionapps.losses.
        optimizer: any optimizer of torch.optim.
        scheduler: any scheduler of torch.optim.lr_scheduler, stepped once per epoch (ReduceLROnPlateau: after each
            validation, on the mean Dice); or leave it out and give a curve.
        curve: a learning-rate curve over the whole run (visionapps.training.optim.Cosine, Poly, Curve), stepped with
            every optimizer step.
        layer_rates: how learning rate and weight decay differ between layers.
    """

    SCORE = "val/dice"  # mean over classes of the Dice on all validation pixels
    DATA = SegmentationData
    model: Segmentor

    def __init__(
        self,
        model: Segmentor,
        loss: nn.Module,
        optimizer: OptimizerCallable,
        *,
        scheduler: LRSchedulerCallable | None = None,
        curve: Curve | None = None,
        layer_rates: LayerRates = LayerRates(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(model, optimizer, scheduler=scheduler, curve=curve, layer_rates=layer_rates)
        self.loss = loss
        self.scores: Scores | None = None
        self._confusion: Confusion | None = None
        self._losses = RunningMean()
        self._seen_before: list[Seen | None] = []

    def meet(self, data: SegmentationData) -> None:
        self._confusion = Confusion(len(data.labels), ignore=data.labels.ignore)
        meet(self.loss, data.class_counts())

    def load_pretrained(self, labels: LabelSpace) -> None:
        self.model.load_pretrained()

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) raw to (B, K, H, W) logits."""
        logits: Tensor = self.model(image.contiguous(memory_format=torch.channels_last))
        return logits

    def loss_of(self, batch: Sample) -> Tensor:
        loss: Tensor = self.loss(self(batch.image), batch.labels)
        return loss

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        loss = self.loss_of(batch)
        self._losses.add(loss)
        # Reading a number back waits for the device, and self.log costs a third of a millisecond: so every N steps.
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (self.trainer.global_step + 1) % every == 0:
            self.log("train/loss", self._losses.read(), prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self._losses = RunningMean()
        if self._confusion is not None:
            self._confusion.reset()

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        assert self._confusion is not None
        logits = self(batch.image)
        self._losses.add(self.loss(logits, batch.labels))
        self._confusion.update(logits, batch.labels)

    def on_validation_epoch_end(self) -> None:
        assert self._confusion is not None
        assert self.labels is not None
        self.scores = scores = self._confusion.compute()
        summary = {
            self.SCORE: scores.mean_dice,
            "val/iou": scores.mean_iou,
            "val/accuracy": scores.accuracy,
            "val/loss": self._losses.read(),
        }
        # The matrix is summed over processes already: every process logs the same numbers.
        self.log_dict(summary, prog_bar=True, sync_dist=False)
        per_class = zip(self.labels.names, scores.dice, strict=True)
        self.log_dict({f"val/dice/{name}": float(dice) for name, dice in per_class}, sync_dist=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down, as plain data, all that is needed to rebuild the model without the config."""
        assert self.labels is not None
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        seen = joined([data.seen(), *self._seen_before])
        checkpoint["visionapps"] = {
            "recipe": self.model.recipe,
            "spec": self.model.spec.to_dict(),
            "labels": self.labels.to_dict(),
            "tile": round_up(data.val_tile, self.model.levels[-1].stride),
            "resize": list(data.dataset.resize) if data.dataset.resize else None,
            "metrics": self.scores.to_dict(self.labels.names) if self.scores else {},
            "class_weights": {part: list(weights) for part, weights in weights_in(self.loss).items()},
            "seen": None if seen is None else {n: torch.from_numpy(a.copy()) for n, a in seen.arrays().items()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What the run saw before it was interrupted is seen, whatever it goes on with."""
        super().on_load_checkpoint(checkpoint)
        self._seen_before.append(stored_seen(checkpoint["visionapps"].get("seen"), "the checkpoint"))
