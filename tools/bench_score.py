"""Scoring a submission of the UAV competition's size beside the usual notebook: read, decode, loop.

    python tools/bench_score.py [--images 112] [--side 1024] [--smooth] [--metrics dice_per_image map_per_image ...]

Made-up maps of 25 classes with ragged borders, or smooth ones; the submission is the truth shifted by some pixels. Both
ways run in one process on the same two files, reading included, and must agree. Times are CPU seconds of this process,
which depend less on who else uses the machine; the way of notebooks is measured on some of the images and scaled.
"""

import argparse
import csv
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy import ndimage

from visionapps import masks
from visionapps.cli.table import render
from visionapps.competition.scoring import score_submission
from visionapps.inference.dialects import load_dialect

CLASSES = 25
DIFFERENT = 4  # maps that are drawn; the others are copies of them, moved


def drawn_map(rng: np.random.Generator, side: int, ragged: bool) -> np.ndarray:
    """Blobs of all classes, whose borders may be ragged by single pixels, the hardest case for run lengths."""
    coarse = ndimage.gaussian_filter(rng.standard_normal((CLASSES, side // 8, side // 8)), (0, 4, 4))
    coarse += rng.normal(0, 0.02, (CLASSES, 1, 1))  # some classes are rare
    labels = np.kron(coarse.argmax(0), np.ones((8, 8), np.uint8)).astype(np.uint8)
    if not ragged:
        return labels
    rows, cols = np.mgrid[: labels.shape[0], : labels.shape[1]]
    jitter = rng.integers(-1, 2, (2, *labels.shape))
    return labels[(rows + jitter[0]) % labels.shape[0], (cols + jitter[1]) % labels.shape[1]]


def write(path: Path, maps: list[np.ndarray], images: int, shift: int) -> None:
    with path.open("w", newline="") as file:
        file.write("ImageClassId,rle_mask\n")
        for i in range(images):
            labels = np.roll(maps[i % len(maps)], i * 13, 1)
            for k, runs in enumerate(masks.encode_labels(np.roll(labels, shift, 1), range(1, CLASSES), order="row"), 1):
                file.write(f"{i}_{k},{masks.format_runs(runs)}\n")


def usual_score(submission: Path, truth: Path, images: int, side: int) -> float:
    """The notebook's way: decode both masks of a row, then compare pixels."""
    csv.field_size_limit(2**31 - 1)

    def decode(text: str) -> np.ndarray:
        flat = np.zeros(side * side, np.uint8)
        words = text.split()
        for start, length in zip(map(int, words[0::2]), map(int, words[1::2]), strict=True):
            flat[start - 1 : start - 1 + length] = 1
        return flat.reshape(side, side)

    with submission.open(newline="") as ours, truth.open(newline="") as theirs:
        pairs = zip(csv.DictReader(ours), csv.DictReader(theirs), strict=True)
        scores = []
        for mine, true in pairs:
            if len(scores) == images * (CLASSES - 1):
                break
            a, b = decode(mine["rle_mask"]), decode(true["rle_mask"])
            total = int(a.sum(dtype=np.int64) + b.sum(dtype=np.int64))
            scores.append(2 * int((a * b).sum(dtype=np.int64)) / total if total else 1.0)
    return float(np.mean(scores))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=112)
    parser.add_argument("--side", type=int, default=1024, help="pixels of a side, as the dialect resizes to")
    parser.add_argument("--smooth", action="store_true", help="borders without single pixels: fewer runs")
    parser.add_argument("--usual-images", type=int, default=8, help="images that the notebook's way is measured on")
    parser.add_argument("--metrics", nargs="+", default=["dice_per_image", "iou_global", "map_per_image"])
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    maps = [drawn_map(rng, options.side, not options.smooth) for _ in range(DIFFERENT)]
    dialect = load_dialect("hrud")
    with tempfile.TemporaryDirectory() as folder:
        submission, truth = Path(folder) / "submission.csv", Path(folder) / "truth.csv"
        few = [Path(folder) / "few_submission.csv", Path(folder) / "few_truth.csv"]
        for path, images, shift in (
            (submission, options.images, 3),
            (truth, options.images, 0),
            (few[0], options.usual_images, 3),
            (few[1], options.usual_images, 0),
        ):
            write(path, maps, images, shift)
        size = (submission.stat().st_size + truth.stat().st_size) / 1e6
        score_submission(few[0], few[1], dialect=dialect, metric="map_per_image")  # compiles and imports
        begin = time.process_time()
        usual = usual_score(*few, images=options.usual_images, side=options.side)
        usual_seconds = (time.process_time() - begin) * options.images / options.usual_images
        ours = score_submission(*few, dialect=dialect, metric="dice_per_image").boards[0].score
        assert abs(usual - ours) < 1e-12, (usual, ours)
        rows: list[list[object]] = [["decode and loop: dice_per_image", usual, usual_seconds, 1.0]]
        for name in options.metrics:
            begin = time.process_time()
            found = score_submission(submission, truth, dialect=dialect, metric=name)
            seconds = time.process_time() - begin
            rows.append([f"visionapps: {name}", found.boards[0].score, seconds, usual_seconds / seconds])
    print(f"{options.images * (CLASSES - 1)} rows of {options.side} x {options.side}, {size:.0f} MB of text")
    print(render(["method", "score", "CPU seconds", "times as fast as the loop's Dice"], rows))


if __name__ == "__main__":
    main()
