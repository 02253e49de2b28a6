"""What a network's forward costs on one core of this CPU, with PyTorch's defaults and with our recipe.

    python tools/bench_forward.py
    python tools/bench_forward.py --bundle BUNDLE --images DIR --masks DIR

Every row is a process of its own (settings of malloc hold for a whole process), measured in CPU seconds of one thread,
the rows in turns, so that a busy machine slows all of them. The network is segmentation_models_pytorch's U-Net on
MobileNetV2 with 25 classes. Goals, against fp32 in PyTorch's own layout at batch 4: 1.9 in fp32, 3.5 in bf16.

With a bundle, photos and index masks (value = label, 255 = void) it also says what bf16 does to labels and Dice.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from visionapps.cli.table import render
from visionapps.data.images import read_mask
from visionapps.files import list_files
from visionapps.inference.bundle import load
from visionapps.inference.predictor import Predictor
from visionapps.inference.sources import photo_source
from visionapps.metrics.confusion import Confusion
from visionapps.runtime import cpu_has_bf16, keep_freed_memory

_CLASSES = 25


class Variant(NamedTuple):
    """One way to run the forward."""

    batch: int
    bf16: bool = False
    channels_last: bool = False
    keep_memory: bool = False

    @property
    def name(self) -> str:
        words = ["bf16" if self.bf16 else "fp32"]
        words += ["channels_last"] if self.channels_last else []
        words += ["mallopt"] if self.keep_memory else []
        return " + ".join(words)


DEFAULT = Variant(4)
_KINDS = (
    {},
    {"keep_memory": True},
    {"channels_last": True},
    {"channels_last": True, "keep_memory": True},
    {"bf16": True},
    {"bf16": True, "channels_last": True},
    {"bf16": True, "channels_last": True, "keep_memory": True},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, metavar="PX", help="side of a tile (512)")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1, 2, 4], metavar="B", help="tiles at a time (1 2 4)"
    )
    parser.add_argument("--tiles", type=int, default=8, metavar="N", help="tiles per measurement (8)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="processes per row; the median counts (3)")
    parser.add_argument("--bundle", type=Path, help="trained model to compare bf16 with fp32 on")
    parser.add_argument("--images", type=Path, metavar="DIR", help="photos for it")
    parser.add_argument("--masks", type=Path, metavar="DIR", help="their index masks, of the same names")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # a variant as JSON: this is a child
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure:
        print(json.dumps(measure(Variant(**json.loads(options.measure)), options.size, options.tiles)))
        return
    if options.bundle:
        if not (options.images and options.masks):
            parser.error("--bundle needs --images and --masks")
        compare_labels(options.bundle, options.images, options.masks)
        return
    compare_variants(options)


def measure(variant: Variant, size: int, tiles: int) -> dict[str, float]:
    """CPU seconds and page faults per tile of one variant; to be called once per process."""
    if variant.keep_memory:
        keep_freed_memory()
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    model = smp.Unet("tu-mobilenetv2_100", classes=_CLASSES, encoder_weights=None).eval()
    images = torch.rand(variant.batch, 3, size, size)
    if variant.channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    rounds = -(-tiles // variant.batch)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=variant.bf16):
        model(images)  # kernels are chosen and memory is fetched
        faults, began = _faults(), time.process_time()
        for _ in range(rounds):
            model(images)
        seconds = time.process_time() - began
    done = rounds * variant.batch
    return {"seconds": seconds / done, "faults": (_faults() - faults) / done}


def compare_variants(options: argparse.Namespace) -> None:
    """Measure all variants in turns and print them against PyTorch's default at batch 4."""
    variants = [Variant(batch, **kind) for kind in _KINDS for batch in options.batches]
    variants = list(dict.fromkeys([DEFAULT, *variants]))
    if not cpu_has_bf16():
        print("this processor has no bf16 arithmetic: those rows will be slow", file=sys.stderr)
    seconds: dict[Variant, list[float]] = {variant: [] for variant in variants}
    faults: dict[Variant, float] = {}
    ratios: dict[Variant, list[float]] = {variant: [] for variant in variants}
    for _ in range(options.repeats):
        for variant in variants:
            found = _in_a_process(variant, options)
            seconds[variant].append(found["seconds"])
            ratios[variant].append(seconds[DEFAULT][-1] / found["seconds"])
            faults[variant] = found["faults"]
    rows = [
        (
            variant.name,
            variant.batch,
            round(1000 * statistics.median(seconds[variant])),
            f"{statistics.median(ratios[variant]):.2f}",
            f"{min(ratios[variant]):.2f} to {max(ratios[variant]):.2f}",
            round(faults[variant]),
        )
        for variant in variants
    ]
    print(f"tiles of {options.size} px, one thread, load {os.getloadavg()[0]:.1f} beside")
    print(render(("forward", "batch", "CPU ms per tile", "times the default", "in each round", "page faults"), rows))


def compare_labels(bundle: Path, images: Path, masks: Path) -> None:
    """Dice of a trained model in fp32 and in bf16, and how many labels differ."""
    keep_freed_memory()
    labels = load(bundle).labels
    predictors = [Predictor(load(bundle).model, device="cpu", precision=p) for p in ("fp32", "bf16")]
    counts = [Confusion(len(labels), ignore=labels.ignore) for _ in predictors]
    pixels = differing = 0
    mask_of = {path.stem: path for path in list_files(masks)}
    for image in list_files(images):
        if image.stem not in mask_of:
            sys.exit(f"{image}: no mask of this name in {masks}")
        truth = torch.from_numpy(np.ascontiguousarray(read_mask(mask_of[image.stem]).values))[None]
        maps = []
        for predictor, confusion in zip(predictors, counts, strict=True):
            drawn = np.concatenate([rows for _, rows in predictor.segment(photo_source(image))])
            confusion.update(torch.from_numpy(drawn)[None], truth)
            maps.append(drawn)
        pixels += maps[0].size
        differing += int((maps[0] != maps[1]).sum())
    full, half = (confusion.compute() for confusion in counts)
    table = [(name, *dice, dice[1] - dice[0]) for name, *dice in zip(labels.names, full.dice, half.dice, strict=True)]
    table.append(("mean", full.mean_dice, half.mean_dice, half.mean_dice - full.mean_dice))
    rows = [(name, f"{a:.4f}", f"{b:.4f}", f"{change:+.4f}") for name, a, b, change in table]
    print(render(("Dice", "fp32", "bf16", "difference"), rows))
    print(f"{differing / pixels:.3%} of {pixels / 1e6:.1f} million labels differ")


def _in_a_process(variant: Variant, options: argparse.Namespace) -> dict[str, float]:
    words = [sys.executable, __file__, "--measure", json.dumps(variant._asdict())]
    words += ["--size", str(options.size), "--tiles", str(options.tiles)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _faults() -> int:
    """Pages that the kernel has given to this process anew."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


if __name__ == "__main__":
    main()
