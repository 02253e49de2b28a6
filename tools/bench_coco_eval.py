"""How fast COCO scores are: both engines beside plain pycocotools and faster-coco-eval as their own pages show them.

python tools/bench_coco_eval.py                        5,000 images, 500,000 detections, 80 classes
python tools/bench_coco_eval.py --images 500 --reference no

Every program runs in a process of its own on the same made-up truth and detections. Seconds are CPU seconds from the
arrays of a detector to the twelve numbers: what each program needs to be fed is counted, drawing the numbers is not.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import numpy as np

from visionapps.metrics.coco import coco_scores
from visionapps.objects import Objects

WAYS = ("pycocotools, plain", "faster-coco-eval, plain", "ours, pycocotools", "ours, faster", "ours, faster, again")


def make(images: int, each: int, classes: int, seed: int) -> tuple[list[Objects], list[Objects]]:
    """Truth of 7.4 objects an image as in COCO's val2017, and detections: good, moved, of another class, invented."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    frequency = 1 / np.arange(1, classes + 1) ** 0.7
    frequency /= frequency.sum()
    for _ in range(images):
        count = int(rng.poisson(7.4))
        size = np.exp(rng.normal(3.9, 1.0, (count, 2))).clip(4, 500)
        corner = rng.uniform(0, 600, (count, 2))
        boxes = np.concatenate([corner, corner + size], 1)
        labels = rng.choice(classes, count, p=frequency)
        truth.append(Objects(boxes, labels, crowd=rng.random(count) < 0.01))
        near = rng.integers(0, max(count, 1), each // 3 if count else 0)
        moved = boxes[near] + rng.normal(0, 0.08, (len(near), 4)) * np.tile(size[near], 2)
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        kept = np.where(rng.random(len(near)) < 0.85, labels[near], rng.integers(0, classes, len(near)))
        rest = each - len(near)
        start = rng.uniform(0, 600, (rest, 2))
        false = np.concatenate([start, start + np.exp(rng.normal(3.9, 1.0, (rest, 2))).clip(4, 500)], 1)
        scores = np.concatenate([rng.beta(3, 2, len(near)), rng.beta(1, 6, rest)])
        found.append(
            Objects(
                np.concatenate([moved, false]),
                np.concatenate([kept, rng.choice(classes, rest, p=frequency)]),
                scores.round(6),
            )
        )
    return truth, found


def plain(truth: list[Objects], found: list[Objects], classes: int, api: Any, evaluation: Any) -> list[float]:
    """As the pages of both programs show it: a COCO object, loadRes of a list of results, evaluate, accumulate."""
    annotations, results = [], []
    for i, (true, detected) in enumerate(zip(truth, found, strict=True), 1):
        for box, label, crowd, area in zip(true.boxes, true.labels, true.crowd, true.areas, strict=True):
            x, y, x1, y1 = map(float, box)
            row = {"image_id": i, "category_id": int(label) + 1, "bbox": [x, y, x1 - x, y1 - y], "area": float(area)}
            annotations.append(row | {"iscrowd": int(crowd), "id": len(annotations) + 1})
        for box, label, score in zip(detected.boxes, detected.labels, detected.scores, strict=True):
            x, y, x1, y1 = map(float, box)
            row = {"image_id": i, "category_id": int(label) + 1, "bbox": [x, y, x1 - x, y1 - y], "score": float(score)}
            results.append(row)
    coco = api()
    coco.dataset = {
        "images": [{"id": i, "height": 1000, "width": 1000} for i in range(1, len(truth) + 1)],
        "categories": [{"id": k, "name": str(k)} for k in range(1, classes + 1)],
        "annotations": annotations,
    }
    coco.createIndex()
    judge = evaluation(coco, coco.loadRes(results), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return [float(value) for value in judge.stats[:12]]


def ways(truth: list[Objects], found: list[Objects], classes: int) -> dict[str, Callable[[], list[float]]]:
    """Each way to the twelve numbers."""

    def pycocotools() -> list[float]:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return plain(truth, found, classes, COCO, COCOeval)

    def faster() -> list[float]:
        from faster_coco_eval import COCO, COCOeval_faster

        return plain(truth, found, classes, COCO, COCOeval_faster)

    def ours(engine: Any) -> list[float]:
        scores = coco_scores(truth, found, classes, engine=engine)
        assert scores.engine == engine, "the engines disagree"
        return [value for value in scores.numbers.to_dict().values() if value is not None]

    return dict(zip(WAYS, (pycocotools, faster, lambda: ours("pycocotools"), lambda: ours("faster")), strict=False))


def measure(way: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one way in this process."""
    truth, found = make(options.images, options.each, options.classes, options.seed)
    run = ways(truth, found, options.classes)[way.removesuffix(", again")]
    if way.endswith("again"):  # the engine has been found right before, as in every epoch but the first
        run()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with redirect_stdout(io.StringIO()):
        numbers = run()
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"way": way, "seconds": seconds, "mb": (peak - before) / 1024, "numbers": numbers}


def main() -> None:
    """Compare all ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--each", type=int, default=100, help="detections per image")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference", choices=("yes", "no"), default="yes", help="run plain pycocotools, too")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options)))
        return
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    results = []
    for way in WAYS[options.reference == "no" :]:
        command = [sys.executable, __file__, "--way", way]
        command += [f"--{n}={getattr(options, n)}" for n in ("images", "each", "classes", "seed")]
        out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        results.append(json.loads(out))
        first = results[0]
        gap = max(abs(a - b) for a, b in zip(results[-1]["numbers"], first["numbers"], strict=True))
        print(
            f"{way:<26}{results[-1]['seconds']:8.2f} CPU s  {results[-1]['seconds'] / first['seconds']:6.3f} x"
            f"{results[-1]['mb']:8.0f} MB  twelve numbers within {gap:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
