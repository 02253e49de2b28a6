"""The segmentation task: what happens to a batch, and what is written down about it."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from visionapps.data.crops import Sample
from visionapps.errors import ConfigError, WeightsError
from visionapps.metrics.confusion import Confusion, Scores
from visionapps.segmentation.base import Segmentor
from visionapps.structures import LabelSpace
from visionapps.training.optim import Curve, LayerRates, parameter_groups, scale_rates

EIGHT_BIT = 255.0  # InputSpec.scale of photos; other data types need one of their own
SCORE = "val/dice"  # mean over classes of the Dice on all validation pixels: what the best checkpoint is chosen by


class SegmentationTask(LightningModule):
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
        super().__init__()
        if scheduler is not None and curve is not None:
            raise ConfigError("model: give a scheduler or a curve, not both: each would set the learning rate")
        self.model = model
        self.loss = loss
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.curve = curve
        self.layer_rates = layer_rates
        self.labels: LabelSpace | None = None
        self.scores: Scores | None = None
        self._confusion: Confusion | None = None
        self._losses = _RunningMean()

    def prepare(self, data: Any, *, pretrained: bool) -> None:
        """Take the classes from the data and check that the model can learn from it; do nothing the second time.

        Args:
            data: a SegmentationData after setup.
            pretrained: load the weights that the model's config names.

        Raises:
            ConfigError: the model does not fit the data.
            WeightsError: the weights cannot be found, or do not fit.
        """
        if self.labels is not None:
            return
        labels: LabelSpace = data.labels
        require_fitting(self.model, labels, bands=data.bands, dtype=data.dtype)
        if pretrained:
            self.model.load_pretrained()
        self.labels = labels
        self._confusion = Confusion(len(labels), ignore=labels.ignore)

    def setup(self, stage: str) -> None:
        """Prepare, unless that is done; weights are not loaded when a run is resumed."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.prepare(data, pretrained=stage == "fit" and self.trainer.ckpt_path is None)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) raw to (B, K, H, W) logits."""
        logits: Tensor = self.model(image.contiguous(memory_format=torch.channels_last))
        return logits

    def on_fit_start(self) -> None:
        self.model.to(memory_format=torch.channels_last)

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        loss: Tensor = self.loss(self(batch.image), batch.labels)
        self._losses.add(loss)
        # Reading a number back waits for the device, and self.log costs a third of a millisecond: so every N steps.
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (self.trainer.global_step + 1) % every == 0:
            self.log("train/loss", self._losses.read(), prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self._losses = _RunningMean()
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
            SCORE: scores.mean_dice,
            "val/iou": scores.mean_iou,
            "val/accuracy": scores.accuracy,
            "val/loss": self._losses.read(),
        }
        # The matrix is summed over processes already: every process logs the same numbers.
        self.log_dict(summary, prog_bar=True, sync_dist=False)
        per_class = zip(self.labels.names, scores.dice, strict=True)
        self.log_dict({f"val/dice/{name}": float(dice) for name, dice in per_class}, sync_dist=False)

    def configure_optimizers(self) -> Any:
        optimizer = scale_rates(self.make_optimizer(parameter_groups(self.model, self.layer_rates)))
        if self.curve is not None:
            total = int(self.trainer.estimated_stepping_batches)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": self.curve.scheduler(optimizer, total), "interval": "step"},
            }
        if self.make_scheduler is None:
            return optimizer
        scheduler = self.make_scheduler(optimizer)
        setting: dict[str, Any] = {"scheduler": scheduler, "interval": "epoch"}
        if isinstance(scheduler, ReduceLROnPlateau):
            setting |= {"monitor": SCORE, "frequency": self.trainer.check_val_every_n_epoch or 1}
        return {"optimizer": optimizer, "lr_scheduler": setting}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down, as plain data, all that is needed to rebuild the model without the config."""
        assert self.labels is not None
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        checkpoint["visionapps"] = {
            "recipe": self.model.recipe,
            "spec": self.model.spec.to_dict(),
            "labels": self.labels.to_dict(),
            "tile": _round_up(data.val_tile, self.model.levels[-1].stride),
            "resize": list(data.dataset.resize) if data.dataset.resize else None,
            "metrics": self.scores.to_dict(self.labels.names) if self.scores else {},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on from a checkpoint whose labels mean something else."""
        saved = LabelSpace.from_dict(checkpoint["visionapps"]["labels"])
        if self.labels is not None and saved.names != self.labels.names:
            raise WeightsError(
                f"the checkpoint was trained on the classes {', '.join(saved.names)}, but the data has "
                f"{', '.join(self.labels.names)}; use the data that it was trained on, or start a new run"
            )


def require_fitting(model: Segmentor, labels: LabelSpace, *, bands: int, dtype: str) -> None:
    """Check that a model can learn from the data at all.

    Args:
        model: about to be trained.
        labels: classes of the data.
        bands: bands of every photo.
        dtype: of the raw pixels, as numpy names it.

    Raises:
        ConfigError: it has another number of classes or bands, or another range of values than the data.
    """
    if len(labels) != model.num_classes:
        raise ConfigError(
            f"model: num_classes is {model.num_classes}, but the data has {len(labels)} classes "
            f"({', '.join(labels.names)}); set num_classes to {len(labels)}"
        )
    if bands != len(model.spec.bands):
        raise ConfigError(
            f"model: takes {len(model.spec.bands)} bands ({', '.join(model.spec.bands)}), but the photos have {bands}; "
            "choose bands in the dataset, or describe all of them in the model's spec"
        )
    if model.spec.scale == EIGHT_BIT and dtype != "uint8":
        raise ConfigError(
            f"model: a raw value of {EIGHT_BIT:g} means 1.0, but the photos hold {dtype}; give the value that does as "
            "scale in the model's spec (10000 for Sentinel-2 reflectance, 65535 for full-range 16 bit, 1 for 0..1)"
        )


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


class _RunningMean:
    """The mean of scalars that stay on their device until it is read."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, value: Tensor) -> None:
        value = value.detach().float()
        self._sum = value if self._sum is None else self._sum + value
        self._count += 1

    def read(self) -> float:
        """The mean since the last reading, NaN for none; starts anew."""
        mean = float("nan") if self._sum is None else float(self._sum) / self._count
        self._sum, self._count = None, 0
        return mean
