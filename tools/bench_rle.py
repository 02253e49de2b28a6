"""Run lengths of a large mask beside the usual numpy trick and pycocotools: speed, peak memory and their ratios.

    python tools/bench_rle.py [--side 10000] [--block 100]

Every method meets the same mask in one process, one after the other. Times are the best of three for ours and of one
for the others; memory is traced in a run of its own, because tracing slows the clock.
"""

import argparse
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools import mask as coco

from visionapps import masks
from visionapps.cli.table import render


def usual_encode(mask: np.ndarray, order: str) -> np.ndarray:
    """The trick of most competition notebooks: zeros on both ends, then compare neighbours."""
    pixels = mask.ravel() if order == "row" else mask.T.ravel()
    padded = np.concatenate([[0], pixels, [0]])
    runs = np.flatnonzero(padded[1:] != padded[:-1]) + 1
    runs[1::2] -= runs[::2]
    return runs.reshape(-1, 2)


def usual_decode(runs: np.ndarray, shape: tuple[int, int], order: str) -> np.ndarray:
    """The loop over runs that belongs to it."""
    flat = np.zeros(shape[0] * shape[1], np.uint8)
    for start, length in runs:
        flat[start - 1 : start - 1 + length] = 1
    return flat.reshape(shape) if order == "row" else flat.reshape(shape[::-1]).T


def measure(method: Callable[[], Any], repeats: int = 3) -> tuple[float, float]:
    """Best seconds, and peak MB that tracemalloc sees (pycocotools' own C buffers are not among them)."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        method()
        times.append(time.perf_counter() - begin)
    tracemalloc.start()
    method()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return min(times), peak / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=10_000, help="pixels of a side of the square mask")
    parser.add_argument("--block", type=int, default=100, help="pixels of a side of its patches of one label")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    patches = -(-options.side // options.block)
    labels = np.kron(rng.integers(0, 25, (patches, patches), np.uint8), np.ones((options.block,) * 2, np.uint8))
    labels = np.ascontiguousarray(labels[: options.side, : options.side])
    mask = (labels % 2).astype(np.uint8)
    runs = {order: masks.encode(mask, order=order) for order in ("row", "column")}
    for order in runs:
        assert np.array_equal(runs[order], usual_encode(mask, order))
    packed = coco.encode(np.asfortranarray(mask))
    assert masks.runs_to_coco(runs["column"], mask.shape)["counts"].encode() == packed["counts"]
    groups: list[list[tuple[str, Callable[[], Any]]]] = [
        [
            (f"encode by {order}: visionapps", lambda o=order: masks.encode(mask, order=o)),
            (f"encode by {order}: concatenate", lambda o=order: usual_encode(mask, o)),
        ]
        for order in ("row", "column")
    ]
    groups[1].append(("encode by column: pycocotools", lambda: coco.encode(np.asfortranarray(mask))))
    groups.append(
        [
            ("24 classes by row: visionapps", lambda: masks.encode_labels(labels, range(1, 25), order="row")),
            ("24 classes by row: concatenate", lambda: [usual_encode(labels == k, "row") for k in range(1, 25)]),
        ]
    )
    groups += [
        [
            (f"decode by {order}: visionapps", lambda o=order: masks.decode(runs[o], mask.shape, order=o)),
            (f"decode by {order}: loop of slices", lambda o=order: usual_decode(runs[o], mask.shape, o)),
        ]
        for order in ("row", "column")
    ]
    groups[-1].append(("decode by column: pycocotools", lambda: coco.decode(packed)))
    rows: list[list[object]] = []
    for group in groups:
        ours = measure(group[0][1])
        for name, method in group:
            seconds, peak = ours if method is group[0][1] else measure(method, repeats=1)
            rows.append([name, round(mask.size / seconds / 1e6), seconds, peak, seconds / ours[0], peak / ours[1]])
    print(f"{options.side} x {options.side} mask, {len(runs['row'])} runs by row, {len(runs['column'])} by column")
    print(render(["method", "MPx/s", "seconds", "peak MB", "time, ours = 1", "memory, ours = 1"], rows))


if __name__ == "__main__":
    main()
