"""What an ensemble costs beside the forward passes of its members, and what it holds beside those of one model.

    python tools/bench_ensemble.py
    python tools/bench_ensemble.py --members 10 --classes 25 --tile 512 --json ensemble.json

One thread, CPU seconds of the process, everything in one process. "over forward" is all CPU time of a call of the
network (views, probabilities, means) over that which its members' forward passes took in the same call: 1.05 is 5 % for
everything else. "peak" is how far the resident memory rises above its level before the call, for one model with one
view and for the whole ensemble: nothing is kept per member. The stub is a single convolution, so that its column shows
what everything else costs: read it in ms per pass and megapixel.
"""

import argparse
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visionapps.backbones.base import Backbone
from visionapps.cli.table import render
from visionapps.inference.network import Network
from visionapps.inference.views import Views
from visionapps.models import unet
from visionapps.runtime import keep_freed_memory
from visionapps.segmentation.base import Decoder, Segmentor
from visionapps.structures import InputSpec, Level

MODELS = ("stub", "resnet10t", "tf_efficientnet_lite0", "resnet34")


class Image(Backbone):
    """The image itself as the only level."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = InputSpec()
        self.levels = (Level(1, 3),)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return (image,)


class Pixelwise(Decoder):
    """A convolution of one pixel."""

    stride = 1

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, classes, 1)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        logits: Tensor = self.layer(features[0])
        return logits


class Timed:
    """Adds up the CPU time of the forward passes of models."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.seconds, self.passes = 0.0, 0
        for model in models:
            model.register_forward_pre_hook(self._begin)
            model.register_forward_hook(self._end)

    def _begin(self, *_: Any) -> None:
        self._began = time.process_time()

    def _end(self, *_: Any) -> None:
        self.seconds += time.process_time() - self._began
        self.passes += 1


class Peak:
    """The highest resident memory while it is entered, in MB above its level at the beginning."""

    def __enter__(self) -> "Peak":
        self._stop, self._base, self._most = threading.Event(), resident(), 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self._most = max(self._most, resident())

    @property
    def megabytes(self) -> float:
        return max(0, self._most - self._base) / 1e6


def resident() -> int:
    """Bytes of this process that are in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def model_of(name: str, classes: int, seed: int) -> Segmentor:
    torch.manual_seed(seed)
    if name == "stub":
        return Segmentor(Image(), Pixelwise(classes), classes).eval()
    return unet(name, classes).eval()


def measure(name: str, options: argparse.Namespace) -> dict[str, object]:
    """One line of the table."""
    members = [model_of(name, options.classes, seed) for seed in range(options.members)]
    tiles = np.random.default_rng(0).integers(0, 256, (1, 3, options.tile, options.tile), dtype=np.uint8)
    alone = Network(members[:1], device="cpu", precision=options.precision)
    together = Network(members, views=Views(options.flips), device="cpu", precision=options.precision)
    alone(tiles)
    with Peak() as one:
        alone(tiles)
    timed = Timed(members)
    ratios, beside = [], []
    with Peak() as all_of_them:
        for _ in range(options.repeat):
            timed.seconds, timed.passes, began = 0.0, 0, time.process_time()
            together(tiles)
            total = time.process_time() - began
            ratios.append(total / timed.seconds)
            beside.append((total - timed.seconds) / timed.passes / tiles[0, 0].size * 1e9)
    return {
        "model": name,
        "passes": timed.passes,
        "forward, s": timed.seconds,
        "over forward": float(np.median(ratios)),
        "beside, ms per pass and megapixel": float(np.median(beside)),
        "peak of one, MB": one.megabytes,
        "peak of all, MB": all_of_them.megabytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS, help="(all)")
    parser.add_argument("--members", type=int, default=10, metavar="N", help="(10)")
    parser.add_argument("--flips", choices=("none", "flips", "d4"), default="d4", help="(d4)")
    parser.add_argument("--classes", type=int, default=25, metavar="K", help="(25)")
    parser.add_argument("--tile", type=int, default=512, metavar="PX", help="(512)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="(fp32)")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="the median counts (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    rows = [measure(name, options) for name in options.models]
    print(render(list(rows[0]), [list(row.values()) for row in rows]))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
