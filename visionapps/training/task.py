"""What all tasks have in common: the model meets its data, an optimizer is made, a checkpoint knows its classes."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from visionapps.classification.base import Classifier
from visionapps.detection.base import Detector
from visionapps.errors import ConfigError, WeightsError
from visionapps.segmentation.base import Segmentor
from visionapps.structures import LabelSpace
from visionapps.training.optim import Curve, LayerRates, parameter_groups, scale_rates

EIGHT_BIT = 255.0  # InputSpec.scale of photos; other data types need one of their own


class Task(LightningModule):
    """A model, and how it is trained; what happens to a batch is said by SegmentationTask and DetectionTask.

    Args:
        model: built by a function of visionapps.models.
        optimizer: any optimizer of torch.optim.
        scheduler: any scheduler of torch.optim.lr_scheduler.
        curve: a learning-rate curve over the whole run, instead.
        layer_rates: how learning rate and weight decay differ between layers.

    Attributes:
        SCORE: the number that the best checkpoint is chosen by, as it is logged; more is better.
        DATA: the data module that the task learns from.
        labels: the classes; None until they are taken from the data.
    """

    SCORE: ClassVar[str]
    DATA: ClassVar[type[LightningDataModule]]
    model: Segmentor | Detector | Classifier

    def __init__(
        self,
        model: Segmentor | Detector | Classifier,
        optimizer: OptimizerCallable,
        *,
        scheduler: LRSchedulerCallable | None,
        curve: Curve | None,
        layer_rates: LayerRates,
    ) -> None:
        super().__init__()
        if scheduler is not None and curve is not None:
            raise ConfigError("model: give a scheduler or a curve, not both: each would set the learning rate")
        self.model = model
        self._makers = _Makers(optimizer, scheduler)
        self.curve = curve
        self.layer_rates = layer_rates
        self.labels: LabelSpace | None = None

    def prepare(self, data: Any, *, pretrained: bool) -> None:
        """Take the classes from the data and check that the model can learn from it; do nothing the second time.

        Args:
            data: the data module after setup.
            pretrained: load the weights that the model's config names.

        Raises:
            ConfigError: the model does not fit the data.
            WeightsError: the weights cannot be found, or do not fit.
        """
        if self.labels is not None:
            return
        if not isinstance(data, self.DATA):
            raise ConfigError(
                f"data: {type(self).__name__} learns from {self.DATA.__name__}, but the run has "
                f"{type(data).__name__}; set data.class_path to {self.DATA.__module__}.{self.DATA.__name__}"
            )
        labels: LabelSpace = data.labels  # type: ignore[attr-defined]
        require_fitting(self.model, labels, bands=data.bands, dtype=data.dtype)  # type: ignore[attr-defined]
        self.meet(data)
        if pretrained:
            self.load_pretrained(labels)
        self.labels = labels

    def meet(self, data: Any) -> None:
        """What else a task takes from its data, and checks, before weights are loaded."""

    def load_pretrained(self, labels: LabelSpace) -> None:
        """Load the weights that the model's config names."""
        raise NotImplementedError

    def loss_of(self, batch: Any) -> Tensor:
        """The loss of a batch as a training step has it; the model is in training mode."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Prepare, unless that is done; weights are not loaded when a run is resumed."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.prepare(data, pretrained=stage == "fit" and self.trainer.ckpt_path is None)

    def on_fit_start(self) -> None:
        self.model.to(memory_format=torch.channels_last)

    def configure_optimizers(self) -> Any:
        groups = parameter_groups(self.model, self.layer_rates, images=self._images_per_step())
        optimizer = scale_rates(self._makers.optimizer(groups))
        if self.curve is not None:
            total = int(self.trainer.estimated_stepping_batches)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": self.curve.scheduler(optimizer, total), "interval": "step"},
            }
        if self._makers.scheduler is None:
            return optimizer
        scheduler = self._makers.scheduler(optimizer)
        setting: dict[str, Any] = {"scheduler": scheduler, "interval": "epoch"}
        if isinstance(scheduler, ReduceLROnPlateau):
            if scheduler.mode != "max":
                raise ConfigError(
                    f"scheduler: ReduceLROnPlateau watches {self.SCORE}, of which more is better; with mode: "
                    f"{scheduler.mode} it would lower the rate while the score rises: set scheduler.init_args.mode: max"
                )
            setting |= {"monitor": self.SCORE, "frequency": self.trainer.check_val_every_n_epoch or 1}
        return {"optimizer": optimizer, "lr_scheduler": setting}

    def _images_per_step(self) -> int:
        """Images that one optimizer step has seen, on all processes."""
        trainer: Any = self.trainer
        return int(trainer.datamodule.batch_size * trainer.accumulate_grad_batches * trainer.world_size)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on from a checkpoint whose labels mean something else."""
        saved = LabelSpace.from_dict(checkpoint["visionapps"]["labels"])
        if self.labels is not None and saved.names != self.labels.names:
            raise WeightsError(
                f"the checkpoint was trained on the classes {', '.join(saved.names)}, but the data has "
                f"{', '.join(self.labels.names)}; use the data that it was trained on, or start a new run"
            )


@dataclass(frozen=True)
class _Makers:
    """What makes optimizer and scheduler. A copy of a task shares them: they hold on to the parser of the run and what
    it built, which cannot be copied once several processes talk to each other, and averages of weights copy tasks."""

    optimizer: OptimizerCallable
    scheduler: LRSchedulerCallable | None

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Makers":
        return self


def require_fitting(model: Segmentor | Detector | Classifier, labels: LabelSpace, *, bands: int, dtype: str) -> None:
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


def round_up(value: int, multiple: int) -> int:
    """The least multiple that is not below the value."""
    return -(-value // multiple) * multiple


class RunningMean:
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
