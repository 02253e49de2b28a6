"""The classification task: what happens to a batch, and what is written down about it."""

from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn import functional as F

from visionapps.backbones.classifiers import require_size
from visionapps.classification.base import Classifier
from visionapps.data.class_crops import ClassSample
from visionapps.errors import ConfigError
from visionapps.metrics.topk import ClassScores, TopK
from visionapps.networks.base import Outputs
from visionapps.structures import LabelSpace
from visionapps.training.class_data import ClassificationData
from visionapps.training.optim import Curve, LayerRates
from visionapps.training.task import RunningMean, Task

_LISTED = 100  # classes up to which each has a line of its own in the log


class ClassificationTask(Task):
    """Trains a classifier with cross entropy; validates with the share of right first answers.

    Auxiliary classifiers, earlier exits and penalties of a network count in the loss by the weights that its paper
    gives them, and are left out of the answer.

    Args:
        model: built by visionapps.models.classifier; its named weights are loaded when training starts.
        optimizer: any optimizer of torch.optim.
        scheduler: any scheduler of torch.optim.lr_scheduler, stepped once per epoch. ReduceLROnPlateau (factor 0.1,
            mode max) is the papers' "divided by ten when the validation error stops improving": it watches top-1. Or
            leave it out and give a curve.
        curve: a learning-rate curve over the whole run (visionapps.training.optim.Cosine, Poly, Curve), stepped with
            every optimizer step.
        layer_rates: how learning rate and weight decay differ between layers; all but the head is the backbone.
        label_smoothing: share of the truth that is spread over all classes, in [0, 1); 0.1 in Szegedy et al. 2016.
    """

    SCORE = "val/top1"
    DATA = ClassificationData
    model: Classifier

    def __init__(
        self,
        model: Classifier,
        optimizer: OptimizerCallable,
        *,
        scheduler: LRSchedulerCallable | None = None,
        curve: Curve | None = None,
        layer_rates: LayerRates = LayerRates(),  # noqa: B008 - frozen
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(model, optimizer, scheduler=scheduler, curve=curve, layer_rates=layer_rates)
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"label_smoothing: {label_smoothing} must be in [0, 1); 0.1 is usual")
        self.label_smoothing = label_smoothing
        self.scores: ClassScores | None = None
        self._counts = TopK(model.num_classes)
        self._losses = RunningMean()

    def meet(self, data: ClassificationData) -> None:
        if apart := self.model.network.trained_apart:
            raise ConfigError(f"model.network: {type(self.model.network).__name__} cannot be trained by fit: {apart}")
        data.scale = self.model.spec.scale
        require_size(self.model.network, data.view.side, data.bands, where="data.view.side")

    def load_pretrained(self, labels: LabelSpace) -> None:
        self.model.load_pretrained(labels.names)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) raw to (B, K) logits."""
        logits: Tensor = self.model(image.contiguous(memory_format=torch.channels_last))
        return logits

    def loss_of(self, batch: ClassSample) -> Tensor:
        return self.loss_from(
            self.model.outputs(batch.image.contiguous(memory_format=torch.channels_last)), batch.label
        )

    def loss_from(self, outputs: Outputs, labels: Tensor) -> Tensor:
        """Cross entropy of the answer, of auxiliary logits by their weights, and the network's own penalty."""
        first, *others = (
            F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing) for logits in outputs.logits
        )
        weights = self.model.network.auxiliary
        for weight, loss in zip(weights, others, strict=True):
            first = first + weight * loss
        return first + outputs.penalty

    def training_step(self, batch: ClassSample, batch_idx: int) -> Tensor:
        loss = self.loss_of(batch)
        self._losses.add(loss)
        # Reading a number back waits for the device, and self.log costs a third of a millisecond: so every N steps.
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (self.trainer.global_step + 1) % every == 0:
            mean = self._losses.read()
            if mean != mean:
                raise ConfigError(
                    f"training: the loss is no number any more at step {self.trainer.global_step}; lower the "
                    "optimizer's lr, give the curve a warm-up, or set trainer.gradient_clip_val"
                )
            self.log("train/loss", mean, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self._losses = RunningMean()
        self._counts = TopK(self.model.num_classes)

    def validation_step(self, batch: ClassSample, batch_idx: int) -> None:
        logits = self(batch.image)
        self._losses.add(F.cross_entropy(logits, batch.label))
        self._counts.update(logits, batch.label)

    def on_validation_epoch_end(self) -> None:
        assert self.labels is not None
        self.scores = scores = self._counts.compute()
        summary = {
            self.SCORE: scores.top1,
            "val/top5": scores.top5,
            "val/mean_recall": scores.mean_recall,
            "val/loss": self._losses.read(),
        }
        # Counts are summed over processes already: every process logs the same numbers.
        self.log_dict(summary, prog_bar=True, sync_dist=False)
        if len(self.labels) <= _LISTED:
            per_class = zip(self.labels.names, scores.recall, strict=True)
            self.log_dict({f"{self.SCORE}/{name}": value for name, value in per_class}, sync_dist=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down, as plain data, all that is needed to rebuild the model without the config."""
        assert self.labels is not None
        data: ClassificationData = self.trainer.datamodule  # type: ignore[attr-defined]
        checkpoint["visionapps"] = {
            "recipe": self.model.recipe,
            "spec": self.model.spec.to_dict(),
            "labels": self.labels.to_dict(),
            "tile": data.view.side,
            "frame": asdict(data.view.frame),
            "metrics": self.scores.to_dict(self.labels.names) if self.scores else {},
        }
