"""Training a model on as its run was trained, for a few epochs at lower rates: what follows a step of compression."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from visionapps.errors import ConfigError
from visionapps.training.run import BEST, build
from visionapps.training.task import Task

_PREFIX = "model."  # where a task keeps its model


class LowerRates(Callback):
    """Multiply every learning rate of the run, whatever scheduler it has.

    Args:
        factor: > 0; a tenth is usual for training on (Han et al. 2015, section 3.3: 1/10 to 1/100).
    """

    def __init__(self, factor: float) -> None:
        if not factor > 0:
            raise ConfigError(f"retraining: a rate of {factor:g} times that of the run; give a positive factor")
        self.factor = factor

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= self.factor
                if "initial_lr" in group:
                    group["initial_lr"] *= self.factor
        for config in trainer.lr_scheduler_configs:
            rates = getattr(config.scheduler, "base_lrs", None)
            if rates is not None:
                config.scheduler.base_lrs = [rate * self.factor for rate in rates]


def retrain(
    model: nn.Module, config: Path, *, epochs: int, rate: float = 0.1, overrides: Sequence[str] = ()
) -> float | None:
    """Train a model on in place, and keep the best state of the epochs by the score of the task.

    Rules that were imposed on weights (masks, codebooks, few values) hold throughout.

    Args:
        model: of the recipe that the config has.
        config: YAML file of the run; its pretrained weights are not loaded.
        epochs: >= 1.
        rate: factor on the learning rates of the run.
        overrides: settings that replace those of the file.

    Returns:
        The best score on the validation photos; None: nothing was validated.

    Raises:
        ConfigError: the config builds another model, or the run cannot be built.
    """
    if epochs < 1:
        raise ConfigError(f"retraining: {epochs} epochs; give at least 1")
    with tempfile.TemporaryDirectory(prefix="visionapps_retrain_") as folder:
        # Few epochs, so each is judged, however seldom the run was.
        each = ["--trainer.check_val_every_n_epoch", "1", "--trainer.val_check_interval", "1.0"]
        settings = ["--trainer.max_epochs", str(epochs), *each, *overrides]
        trainer, task, data, _ = build(config, Path(folder), settings)
        if not isinstance(task, Task):
            raise ConfigError(f"{config}: {type(task).__name__} is no task of visionapps; it has no model to train on")
        data.setup("fit")
        task.prepare(data, pretrained=False)
        if task.model.recipe != getattr(model, "recipe", None):
            raise ConfigError(
                f"{config}: builds another model than the bundle holds; give the config that it was trained with"
            )
        task.model = model.train()  # type: ignore[assignment]  # Lightning leaves modes as they are
        trainer.callbacks.append(LowerRates(rate))  # type: ignore[attr-defined]
        trainer.fit(task, data)
        best = Path(folder) / "checkpoints" / BEST
        if not best.is_file():
            model.cpu()
            return None
        # Averaged weights stand there under the same names, where the run averages.
        saved = torch.load(best, map_location="cpu", weights_only=True)
        state = {k.removeprefix(_PREFIX): v for k, v in saved["state_dict"].items() if k.startswith(_PREFIX)}
        model.cpu().load_state_dict(state)
        return float(score) if (score := trainer.checkpoint_callback.best_model_score) is not None else None  # type: ignore[union-attr]
