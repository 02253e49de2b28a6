"""Merging the boxes of a scene's tiles: CPU seconds of ours by number of boxes, beside torchvision's batched_nms.

    python tools/bench_merge.py
    python tools/bench_merge.py --boxes 100000 400000

A perfect detector looks at objects of 10 to 80 px in tiles of 512 px that share 128, and misses their places by up to
2 px. ``batched_nms`` only suppresses: it leaves the parts of cut objects standing.
"""

import argparse
import itertools
import time
from collections.abc import Callable

import numpy as np
import torch
from torchvision.ops import batched_nms

from visionapps.inference.merging import Merging, merge_tiles, nms
from visionapps.objects import Objects, joined
from visionapps.windows import Window, starts

TILE, OVERLAP, CLASSES = 512, 128, 5


def parts_of(objects: int) -> tuple[list[tuple[Window, Objects]], tuple[int, int]]:
    """What the tiles of a scene with so many objects show, 50 objects per tile's area, and the scene's size."""
    rng = np.random.default_rng(0)
    side = int((objects / 50) ** 0.5 * TILE)
    corner, size = rng.uniform(0, side - 80, (objects, 2)), rng.uniform(10, 80, (objects, 2))
    boxes, labels = np.concatenate([corner, corner + size], 1), rng.integers(0, CLASSES, objects)
    parts = []
    for row, col in itertools.product(starts(side, TILE, OVERLAP), repeat=2):
        window = Window(row, col, min(TILE, side - row), min(TILE, side - col))
        frame = np.array([col, row, window.col_end, window.row_end])
        shown = np.concatenate([np.maximum(boxes[:, :2], frame[:2]), np.minimum(boxes[:, 2:], frame[2:])], 1)
        seen = (shown[:, 2:] - shown[:, :2]).min(1) >= 4
        moved = shown[seen] + rng.uniform(-2, 2, (int(seen.sum()), 4))
        clipped = np.concatenate([np.maximum(moved[:, :2], frame[:2]), np.minimum(moved[:, 2:], frame[2:])], 1)
        parts.append((window, Objects(clipped, labels[seen], rng.uniform(0.3, 1, len(clipped)))))
    return parts, (side, side)


def seconds_of(work: Callable[[], object]) -> float:
    """CPU seconds, the least of three."""
    taken = []
    for _ in range(3):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--boxes", type=int, nargs="+", default=[25_000, 50_000, 100_000, 200_000], help="about so many"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'boxes':>8}{'objects':>9}{'found':>8}{'merge nms':>11}{'merge wbf':>11}{'our nms':>9}{'batched_nms':>13}")
    for count in options.boxes:
        objects = round(count / 2.05)
        parts, shape = parts_of(objects)
        every = joined([found for _, found in parts])
        assert every.scores is not None
        boxes, scores, labels = every.boxes, every.scores, every.labels
        tensors = torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(labels)
        found = merge_tiles(parts, shape, CLASSES)  # compiles
        merge_tiles(parts[:2], shape, CLASSES, Merging("wbf"))
        times = (
            seconds_of(lambda parts=parts, shape=shape: merge_tiles(parts, shape, CLASSES)),
            seconds_of(lambda parts=parts, shape=shape: merge_tiles(parts, shape, CLASSES, Merging("wbf"))),
            seconds_of(lambda boxes=boxes, scores=scores, labels=labels: nms(boxes, scores, labels, 0.5)),
            seconds_of(lambda tensors=tensors: batched_nms(*tensors, 0.5)),
        )
        print(
            f"{len(every):8d}{objects:9d}{len(found):8d}{times[0]:11.3f}{times[1]:11.3f}{times[2]:9.3f}{times[3]:13.3f}"
        )


if __name__ == "__main__":
    main()
