"""What the training loop costs per step over a bare PyTorch loop, with a network that costs almost nothing.

The same batches, model, memory format, loss and optimizer run through a bare loop, through the Trainer with the least
that it can do, and through visionapps as `fit` sets it up (progress bar, checkpoint callback, CSV and TensorBoard logs,
waiting time), in turns. Goal: at most 0.4 ms over the bare loop plus 0.1 ms of logging.
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from visionapps.data.crops import Sample
from visionapps.losses import CrossEntropy
from visionapps.segmentation.base import Decoder, Segmentor
from visionapps.structures import LabelSpace
from visionapps.testing import TinyBackbone
from visionapps.training.callbacks import Bar, WaitingForData
from visionapps.training.optim import LayerRates, parameter_groups
from visionapps.training.segmentation import SegmentationTask


class _Score(Decoder):
    stride = 2

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Conv2d(4, 3, 1)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        logits: Tensor = self.score(features[0])
        return logits


def _model() -> Segmentor:
    return Segmentor(TinyBackbone(channels=(4,)), _Score(), 3)


class _Same(LightningDataModule):
    """One batch again and again: no data cost in any of the loops."""

    labels = LabelSpace.named(("a", "b", "c"))
    bands = 3
    dtype = "uint8"
    val_tile = 32
    dataset = SimpleNamespace(resize=None)

    def __init__(self, steps: int) -> None:
        super().__init__()
        image = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
        labels = torch.randint(0, 3, (2, 32, 32), dtype=torch.uint8)
        self.batches = [Sample(image, labels)] * steps

    def train_dataloader(self) -> DataLoader[Sample]:
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]


def bare(steps: int, data: _Same) -> float:
    model, loss = _model().to(memory_format=torch.channels_last), CrossEntropy()
    optimizer = torch.optim.AdamW(parameter_groups(model, LayerRates()), lr=1e-3)
    model.train()
    began = time.perf_counter()
    for batch in data.train_dataloader():
        value = loss(model(batch.image.contiguous(memory_format=torch.channels_last)), batch.labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return (time.perf_counter() - began) / steps * 1e3


class _Timed(SegmentationTask):
    def on_train_start(self) -> None:
        self.began = time.perf_counter()

    def on_train_end(self) -> None:
        self.seconds = time.perf_counter() - self.began


class _Minimal(LightningModule):
    """What Lightning itself costs: the least that a module can do."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.loss = _model().to(memory_format=torch.channels_last), CrossEntropy()

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        image = batch.image.contiguous(memory_format=torch.channels_last)
        value: Tensor = self.loss(self.model(image), batch.labels)
        return value

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameter_groups(self.model, LayerRates()), lr=1e-3)

    on_train_start = _Timed.on_train_start
    on_train_end = _Timed.on_train_end


def minimal(steps: int, data: _Same) -> float:
    task = _Minimal()
    Trainer(barebones=True, max_epochs=1, accelerator="cpu").fit(task, datamodule=data)
    return task.seconds / steps * 1e3


def ours(steps: int, data: _Same, *, logs: bool) -> float:
    with tempfile.TemporaryDirectory() as folder:
        task = _Timed(_model(), CrossEntropy(), lambda groups: torch.optim.AdamW(groups, lr=1e-3))
        loggers = [CSVLogger(folder, "", "logs"), TensorBoardLogger(folder, "", "tensorboard")]
        callbacks = [ModelCheckpoint(Path(folder), save_last=True), LearningRateMonitor("epoch")] if logs else []
        Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=loggers if logs else False,
            callbacks=[*callbacks, WaitingForData(), Bar()],
            enable_checkpointing=logs,
            enable_model_summary=False,
        ).fit(task, datamodule=data)
        return task.seconds / steps * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="steps per measurement")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each loop; the fastest counts")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    data = _Same(options.steps)
    loops = {
        "bare PyTorch loop": lambda: bare(options.steps, data),
        "Lightning, barebones": lambda: minimal(options.steps, data),
        "visionapps, no logs": lambda: ours(options.steps, data, logs=False),
        "visionapps as `fit` runs it": lambda: ours(options.steps, data, logs=True),
    }
    times: dict[str, list[float]] = {name: [] for name in loops}
    bare(100, _Same(100))
    for _ in range(options.rounds):
        for name, loop in loops.items():
            times[name].append(loop())
    fastest = {name: min(t) for name, t in times.items()}
    base = fastest["bare PyTorch loop"]
    for name, value in fastest.items():
        print(f"{name:<30} {value:6.3f} ms per step   {value - base:+.3f} ms")
    over = fastest["visionapps as `fit` runs it"] - base
    print(f"goal: at most +0.5 ms with logs: {'met' if over <= 0.5 else 'missed'} ({over:+.3f})")


if __name__ == "__main__":
    main()
