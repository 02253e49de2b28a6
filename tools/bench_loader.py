"""What a training crop costs: decoding the photo anew beside the store's memory map, augmentation, collation.

    python tools/bench_loader.py [--megapixels 12] [--size 512] [--crops 200]

Everything is measured in one process with one thread, in CPU milliseconds, on a generated photo with 25 classes; the
times beside the goals are means, because augmentation draws its steps and the mean is what an epoch pays.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image

from visionapps.cli.table import render
from visionapps.data.crops import RandomCrops, Sample, collate, cut, init_worker, to_sample
from visionapps.data.dataset import Dataset, Policies, Split
from visionapps.data.doctor import examine
from visionapps.data.landscape import landscape
from visionapps.data.transforms import aerial

CLASSES = 25
BATCH = 8
CROP_GOAL, AUGMENT_GOAL = 2.0, 2.5  # ms per crop


class Cost(NamedTuple):
    """CPU milliseconds of one call."""

    mean: float
    median: float


def write_photo(folder: Path, megapixels: float, seed: int) -> None:
    """A 4:3 JPEG of a generated landscape tiled to the size, and a mask with many classes."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    width = height * 4 // 3
    rng = np.random.default_rng(seed)
    image, labels = landscape(1024, 1024, rng)
    repeat = -(-height // 1024), -(-width // 1024)
    photo = np.tile(image, (*repeat, 1))[:height, :width]
    patches = rng.integers(0, CLASSES // 6, repeat).repeat(1024, 0).repeat(1024, 1)[:height, :width]
    mask = (np.tile(labels, repeat)[:height, :width] + 6 * patches).astype(np.uint8)
    for name in ("images", "masks"):
        (folder / name).mkdir(exist_ok=True)
    Image.fromarray(photo).save(folder / f"images/site{seed}.jpg", quality=90)
    Image.fromarray(mask).save(folder / f"masks/site{seed}.png")


def measure(call: Callable[[int], Any], count: int) -> Cost:
    """Time call(0), call(1), ... after one for warming up."""
    call(0)
    times = []
    for index in range(count):
        began = time.thread_time()
        call(index)
        times.append((time.thread_time() - began) * 1e3)
    return Cost(statistics.fmean(times), statistics.median(times))


def stored_crops(folder: Path, size: int) -> tuple[RandomCrops, float]:
    """Random crops without augmentation from the store, and the seconds it took to fill it."""
    dataset = Dataset(
        images=str(folder / "images"),
        masks=str(folder / "masks"),
        classes=tuple(f"class{k}" for k in range(CLASSES)),
        split=Split(val_fraction=0.34),
        policies=Policies(near_duplicate="warn"),
        cache=str(folder / "cache"),
    )
    began = time.perf_counter()
    found = examine(dataset)
    found.raise_on_errors()
    return RandomCrops(found.train, size=size, length=1000), time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, default=12, help="size of the photo (default: 12)")
    parser.add_argument("--size", type=int, default=512, help="height and width of a crop in pixels (default: 512)")
    parser.add_argument("--crops", type=int, default=200, help="crops to measure (default: 200)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    init_worker(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(3):
            write_photo(folder, options.megapixels, seed)
        crops, ingest = stored_crops(folder, options.size)
        report(folder, crops, ingest, options.crops)


def report(folder: Path, crops: RandomCrops, ingest: float, count: int) -> None:
    """Measure and print the table."""
    photo = folder / "images" / "site0.jpg"
    drawn = [crops.draw(i) for i in range(count)]
    cuts = [cut(crops.photos[number], window) for number, window in drawn]
    samples = [to_sample(*both) for both in cuts]
    augment, rng = aerial(), np.random.default_rng(0)
    batch = [samples[i % count] for i in range(BATCH)]
    zoomed = RandomCrops(crops.photos, size=crops.size, length=1000, scale=(0.75, 1.33))

    def decode(index: int) -> Sample:
        pixels = cv2.imread(str(photo), cv2.IMREAD_COLOR_RGB)
        window = drawn[index][1]
        return to_sample(pixels[window.slices], cuts[index][1])

    collated = measure(lambda _: collate(batch), count)
    costs = {
        "decode the JPEG anew, then crop": measure(decode, 5),
        "crop from the store, to tensors": measure(crops.__getitem__, count),
        "the same, drawn at scale 0.75-1.33": measure(zoomed.__getitem__, count),
        "only draw the place, class-balanced": measure(crops.draw, count),
        "augment: aerial()": measure(lambda i: augment(*cuts[i], rng), count),
        f"collate, per crop of a batch of {BATCH}": Cost(collated.mean / BATCH, collated.median / BATCH),
    }
    anew, crop, _, _, augmented, joined = (cost.mean for cost in costs.values())
    rows = [(step, *cost, anew / cost.mean) for step, cost in costs.items()]
    print(render(["step", "mean ms", "median ms", "decode / step"], rows))
    goals = [
        (f"crop of {crops.size} px after the first epoch", crop, CROP_GOAL),
        ("augment and collate", augmented + joined, AUGMENT_GOAL),
    ]
    judged = [(*goal, "yes" if goal[1] <= goal[2] else "NO") for goal in goals]
    print("\n" + render(["goal", "ms per crop", "at most", "met"], judged))
    photos = len(list((folder / "images").iterdir()))
    print(f"\nstoring a photo, once ever: {ingest / photos:.2f} s (wall; decode, map, check, write)")


if __name__ == "__main__":
    main()
