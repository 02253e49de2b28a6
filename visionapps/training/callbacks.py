"""What may happen around the steps of a run: freezing, averaging, and knowing where the time goes."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar, WeightAveraging
from torch import Tensor, nn

from visionapps.backbones.base import Backbone
from visionapps.classification.base import Classifier
from visionapps.errors import ConfigError


class FreezeBackbone(Callback):
    """Keep the backbone, or its first part, as it was pretrained for the first epochs, then train all of it.

    Statistics of batch normalisation and whatever else differs in training stand still as well while it is frozen.
    What the model itself keeps fixed is never unfrozen, and layers that no weights were loaded into (the pyramid of a
    plain transformer) are never frozen.

    Args:
        epochs: how many epochs to freeze for; -1: for the whole run.
        stride: freeze only what the map of this stride is computed from: 4 is the stem and first stage of a ResNet,
            the usual choice for detectors (Ren et al. 2015 keep the first layers of VGG). None: the whole backbone.
    """

    def __init__(self, epochs: int = 1, stride: int | None = None) -> None:
        if epochs < -1:
            raise ConfigError(f"FreezeBackbone: epochs is a number of epochs, or -1 for all, not {epochs}")
        self.epochs = epochs
        self.stride = stride
        self._chosen: list[nn.Parameter] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        backbone = _backbone_of(pl_module)
        below = list(backbone.parameters()) if self.stride is None else parameters_below(backbone, self.stride)
        new = backbone.fresh if isinstance(backbone, Backbone) else ()
        fresh = {id(parameter) for module in new for parameter in module.parameters()}
        self._chosen = [parameter for parameter in below if parameter.requires_grad and id(parameter) not in fresh]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._chosen:  # the model keeps all of it fixed, in its own way
            return
        frozen = self.epochs == -1 or trainer.current_epoch < self.epochs
        for parameter in self._chosen:
            parameter.requires_grad_(not frozen)
        backbone = _backbone_of(pl_module).train()
        if self.stride is None:
            backbone.train(not frozen)
        elif frozen:
            _rest(backbone)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Validation in the middle of an epoch sets the whole model back to training mode.
        if not trainer.sanity_checking:
            self.on_train_epoch_start(trainer, pl_module)


def parameters_below(backbone: nn.Module, stride: int) -> list[nn.Parameter]:
    """The parameters that the map of a stride is computed from, found by asking for gradients: right for any network.

    Raises:
        ConfigError: the backbone has no such map.
    """
    if not isinstance(backbone, Backbone):
        raise ConfigError(
            f"FreezeBackbone: stride {stride} means a map of a pyramid, which a classifier has not; leave it out to "
            "freeze all but the head, or let layer_rates.depth_decay slow its first layers"
        )
    strides = [level.stride for level in backbone.levels]
    if stride not in strides:
        raise ConfigError(
            f"FreezeBackbone: stride {stride} is none of the backbone's, which are {', '.join(map(str, strides))}"
        )
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    if not parameters:
        return []
    was_training = backbone.training
    backbone.eval()  # no statistics may move
    side = 2 * strides[-1]
    with torch.enable_grad(), torch.autocast(parameters[0].device.type, enabled=False):
        image = torch.zeros(1, len(backbone.spec.bands), side, side, device=parameters[0].device)
        reached = backbone(image)[strides.index(stride)].sum()
        gradients = torch.autograd.grad(reached, parameters, allow_unused=True)
    backbone.train(was_training)
    return [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]


def _rest(module: nn.Module) -> None:
    """Set the parts of a module whose parameters are all fixed to evaluation mode."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        module.eval()
        return
    for child in module.children():
        _rest(child)


def _backbone_of(pl_module: LightningModule) -> nn.Module:
    """The backbone of a model; of a classifier all but its head."""
    model = pl_module.model
    if isinstance(model, Classifier):
        return model.network.features
    backbone = model.backbone  # type: ignore[union-attr]
    assert isinstance(backbone, Backbone)
    return backbone


class Averaging(WeightAveraging):
    """Validate and save an exponential moving average of the weights, with a memory that grows from nothing.

    Step n weighs the average by min(decay, (1 + n) / (10 + n)), so that runs of a few hundred steps do not drag their
    beginning along, as they do with a constant decay.

    Args:
        decay: the greatest weight of the average, in [0, 1); 1 / (1 - decay) steps are remembered.

    Source: Polyak and Juditsky 1992 (averaging); the growing decay is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, decay: float = 0.998) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"Averaging: decay {decay} must be in [0, 1)")
        self.decay = decay
        super().__init__(use_buffers=True, multi_avg_fn=self._mix)

    def _mix(self, averages: list[Tensor], currents: list[Tensor], steps: Tensor | int) -> None:
        if not averages[0].is_floating_point():  # counters of batch normalisation
            torch._foreach_copy_(averages, currents)
            return
        count = int(steps)
        torch._foreach_lerp_(averages, currents, 1 - min(self.decay, (1 + count) / (10 + count)))


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
