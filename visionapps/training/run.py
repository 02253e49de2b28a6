"""One run: a YAML file in, a folder with checkpoints, logs and pictures out."""

import logging
import re
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningCLI

from visionapps.data.class_dataset import ClassPhoto
from visionapps.data.object_dataset import ObjectPhoto
from visionapps.data.store import Photo
from visionapps.errors import ConfigError, VisionAppsError, WeightsError
from visionapps.runtime import keep_freed_memory
from visionapps.training.callbacks import Bar, SaveWhenInterrupted, WaitingForData
from visionapps.training.counting import CountDrawn
from visionapps.training.task import Task

LAST, BEST = "last.ckpt", "best.ckpt"
_CHOSEN_BY_TASK = "the task's score"  # stands in the checkpoint callback until the task is known
log = logging.getLogger(__name__)


class _Run(LightningCLI):
    """LightningCLI that stops after building, and whose errors are ours."""

    def __init__(self, args: list[str], defaults: dict[str, Any]) -> None:
        super().__init__(
            model_class=LightningModule,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=args,  # those of this run, not of the process
            run=False,
            trainer_defaults=defaults,
            seed_everything_default=0,
            save_config_callback=None,
            parser_kwargs={"exit_on_error": False, "description": "One run of visionapps fit."},
        )

    def before_instantiate_classes(self) -> None:
        keep_freed_memory()


class _SaveConfig(Callback):
    """Write the complete settings once training begins: a run that is refused before leaves no folder behind."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(self._text)


@dataclass(frozen=True)
class Finished:
    """What a run leaves for those who look at it."""

    checkpoint: Path  # the best one by the task's score on the validation photos
    val: tuple[Photo, ...] | tuple[ObjectPhoto, ...] | tuple[ClassPhoto, ...]  # the photos it was validated on
    seconds: float  # of training, validation included
    task: LightningModule
    data: LightningDataModule
    first: bool = True  # whether this process is the one of several that reports


def build(config: Path, out: Path, overrides: list[str]) -> tuple[Trainer, LightningModule, LightningDataModule, str]:
    """Build all parts of a run without starting it.

    Args:
        config: the run's YAML file.
        out: the run's folder; checkpoints and logs go there.
        overrides: settings that replace those of the file, as ``--trainer.max_epochs`` ``5``.

    Returns:
        Trainer, task, data and the complete config as YAML.

    Raises:
        ConfigError: a key is misspelt, a value is of the wrong type, or parts cannot work together.
    """
    if not config.is_file():
        raise ConfigError(
            f"{config}: no such file; give the run's YAML file, for example configs/landcover/dubai_unet.yaml"
        )
    # Tuples come back from YAML as lists, which our types take.
    warnings.filterwarnings("ignore", message=r"(?s).*round-trip")
    # It advises against args= beside sys.argv; ours are the part of sys.argv that belongs to the run.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`")  # Lightning 2.6 on torch 2.15
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "litlogger" not in record.msg)
    try:
        run = _Run(["--config", str(config), *overrides], _trainer_defaults(out))
    except VisionAppsError:
        raise
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
        raise ConfigError(f"{config}: {_first_cause(error)}") from error
    text = run.parser.dump(run.config, skip_none=False)
    # Lightning takes another bar where rich happens to be installed; here it looks the same everywhere.
    callbacks: list[Callback] = run.trainer.callbacks  # type: ignore[attr-defined]
    for place, callback in enumerate(callbacks):
        if isinstance(callback, TQDMProgressBar | RichProgressBar):
            callbacks[place] = Bar(int(callback.refresh_rate))
        if isinstance(callback, ModelCheckpoint) and callback.monitor == _CHOSEN_BY_TASK:
            callback.monitor = run.model.SCORE if isinstance(run.model, Task) else None
    return run.trainer, run.model, run.datamodule, text


def fit(config: Path, out: Path, overrides: list[str], *, resume: bool = False) -> Finished:
    """Train until the config's end; leave checkpoints, logs and the complete ``config.yaml`` in ``out``.

    Args:
        config: the run's YAML file.
        out: the run's folder.
        overrides: settings that replace those of the file.
        resume: go on from ``out/checkpoints/last.ckpt``.

    Raises:
        ConfigError: the run cannot be built.
        WeightsError: there is no checkpoint to resume from, or it does not fit.
    """
    checkpoints = out / "checkpoints"
    if resume and not (checkpoints / LAST).is_file():
        raise WeightsError(f"{checkpoints / LAST}: no checkpoint to resume from; leave --resume out to start anew")
    trainer, task, data, text = build(config, out, overrides)
    trainer.callbacks.append(_SaveConfig(out / "config.yaml", text))  # type: ignore[attr-defined]
    if isinstance(task, Task):  # before the loggers make the run's folder
        data.setup("fit")
        task.prepare(data, pretrained=not resume)
    began = time.perf_counter()
    try:
        trainer.fit(task, data, ckpt_path=str(checkpoints / LAST) if resume else None)
    except RuntimeError as error:
        if resume and "state_dict" in str(error):
            raise WeightsError(
                f"{checkpoints / LAST}: does not fit the model of {config}: {_first_cause(error)}; "
                "resume with the config that it was trained with"
            ) from error
        raise
    except SystemExit:  # Lightning's answer to Ctrl-C, after it has cleaned up
        if trainer.interrupted and (checkpoints / LAST).is_file():
            log.warning(
                "the run is saved: `visionapps fit --config %s --out %s --resume` goes on from here", config, out
            )
        raise KeyboardInterrupt from None
    examination = getattr(data, "examination", None) if isinstance(task, Task) else None
    photos = examination.val if examination else ()
    seconds = time.perf_counter() - began
    return Finished(checkpoints / BEST, photos, seconds, task, data, trainer.is_global_zero)


def _trainer_defaults(out: Path) -> dict[str, Any]:
    folder = out / "checkpoints"
    best = ModelCheckpoint(folder, "best", monitor=_CHOSEN_BY_TASK, mode="max", enable_version_counter=False)
    # Not save_last of the first one: since 2.6 that saves only where the score is the best so far, and a run without
    # progress would be resumed from there.
    last = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    callbacks: list[Callback] = [
        best,
        last,
        SaveWhenInterrupted(folder / LAST),
        WaitingForData(),
        CountDrawn(drawn_file(out)),
        LearningRateMonitor(logging_interval="step"),
    ]
    loggers = [
        {
            "class_path": "lightning.pytorch.loggers.CSVLogger",
            "init_args": {"save_dir": str(out / "logs"), "name": "", "version": _session(out)},
        },
        {
            "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
            "init_args": {"save_dir": str(out), "name": "", "version": "tensorboard", "default_hp_metric": False},
        },
    ]
    return {
        "callbacks": callbacks,
        "logger": loggers,
        "default_root_dir": str(out),
        "precision": _best_precision(),
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,  # the data module divides the work itself
    }


def log_files(out: Path) -> list[Path]:
    """The metrics.csv files of a run, one for each time that it was started or resumed, in that order."""
    return sorted((out / "logs").glob("*/metrics.csv"))


def drawn_file(out: Path) -> Path:
    """Where a run counts what its training crops showed of each class."""
    return out / "drawn.csv"


def _session(out: Path) -> str:
    # A folder of its own for each: Lightning's CSV log starts with an empty file and would forget the run so far.
    return f"start_{len(log_files(out)):03d}"


def _best_precision() -> str:
    """bf16 on a GPU that has it: half the time or less, the exponent range of fp32.

    Not on the CPU: there the backward pass takes longer in bf16 by what the forward pass gains, AVX512-BF16 included.
    """
    return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"


def _first_cause(error: BaseException) -> str:
    """Where and why, out of a parser's nested message: the keys that lead to the fault, and the innermost reason.

    Of a setting that may be of several kinds, what is wrong with the one that was meant; else all kinds that it may be.
    """
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    keys = [match[1] for line in lines if (match := re.match(r'Parser key "(.+?)":?', line))]
    noise = (
        "Given value",
        "Subtypes:",
        "Errors:",
        "Does not validate",
        "Expected a <class 'NoneType'>",
        "Expected a dot import path",
        "Expected a path",
        "Problem with",
    )
    reasons = [line for line in lines if not line.startswith(noise) and not re.fullmatch(r'Parser key ".+?":', line)]
    where = f"{'.'.join(keys)}: " if keys else ""
    if where.endswith("extra: ") and reasons and reasons[0].startswith("Expected a <class 'tuple'>"):
        return f"{where}is a list; write - {{images: ..., masks: ...}}"
    kinds = [line.removeprefix("Expected ") for line in dict.fromkeys(reasons) if line.startswith("Expected a ")]
    meant = [line for line in reasons if not line.startswith("Expected a ")]
    if len(kinds) > 1 and not meant:
        return f"{where}Expected {', or '.join(kinds)}"
    return where + (meant or reasons or [" ".join(lines[:2])])[0]
