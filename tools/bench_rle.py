"""Run lengths of a large mask beside the usual numpy tricks and pycocotools: speed, peak memory and their ratios.

    python tools/bench_rle.py [--side 10000] [--octaves 7] [--all]

The mask is a landscape of 25 classes whose borders are as ragged as those of drawn masks: on photos of Dubai a run of
one label is 34 to 103 pixels long, here about 40. Every method meets the same mask in one process, one after the other.
Times are CPU seconds, the best of three for ours and of one for the others; memory is traced in a run of its own,
because tracing slows the clock, and counts the result but not the mask.
"""

import argparse
import time
import tracemalloc
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from visionapps import masks
from visionapps.cli.table import render

CLASSES = 25
TILE = 2000  # px
DECAY = 2.6  # of the height of noise from octave to octave


def landscape(side: int, octaves: int) -> np.ndarray:
    """(side, side) uint8 labels: levels of fractal noise, in mirrored tiles."""
    rng = np.random.default_rng(0)
    height = np.zeros((TILE, TILE), np.float32)
    for octave in range(octaves):
        cells = 2 * 2**octave
        noise = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
        height += np.asarray(noise.resize((TILE, TILE), Image.Resampling.BICUBIC)) / DECAY**octave
    levels = np.quantile(height, np.arange(1, CLASSES) / CLASSES)
    # Levels are shuffled, so that neighbours in height are not neighbours in number.
    tile = rng.permutation(CLASSES).astype(np.uint8)[np.searchsorted(levels, height)]
    tile = np.block([[tile, tile[:, ::-1]], [tile[::-1], tile[::-1, ::-1]]])
    copies = -(-side // (2 * TILE))
    return np.ascontiguousarray(np.tile(tile, (copies, copies))[:side, :side])


def usual_encode(mask: np.ndarray, order: str) -> np.ndarray:
    """The trick of most competition notebooks: zeros on both ends, then compare neighbours."""
    pixels = mask.ravel() if order == "row" else mask.T.ravel()
    padded = np.concatenate([[0], pixels, [0]])
    runs = np.flatnonzero(padded[1:] != padded[:-1]) + 1
    runs[1::2] -= runs[::2]
    return runs.reshape(-1, 2)


def usual_text(runs: np.ndarray) -> str:
    """How notebooks write it."""
    return " ".join(str(x) for x in runs.ravel())


def usual_decode(text: str, shape: tuple[int, int], order: str) -> np.ndarray:
    """How notebooks read it: words to arrays, and a loop over runs."""
    words = text.split()
    starts, lengths = (np.asarray(x, dtype=int) for x in (words[0::2], words[1::2]))
    flat = np.zeros(shape[0] * shape[1], np.uint8)
    for start, length in zip(starts - 1, lengths, strict=True):
        flat[start : start + length] = 1
    return flat.reshape(shape) if order == "row" else flat.reshape(shape[::-1]).T


def diff_decode(runs: np.ndarray, shape: tuple[int, int], order: str) -> np.ndarray:
    """The trick of encoding the other way round: plus one where a run begins, minus one behind it, and their sum."""
    steps = np.zeros(shape[0] * shape[1] + 1, int)
    steps[runs[:, 0] - 1] += 1
    steps[runs.sum(axis=1) - 1] -= 1
    flat = steps[:-1].cumsum().astype(np.uint8)
    return flat.reshape(shape) if order == "row" else flat.reshape(shape[::-1]).T


def measure(method: Callable[[], Any], repeats: int = 3) -> tuple[float, float]:
    """Best CPU seconds, and peak MB that tracemalloc sees (pycocotools' own C buffers are not among them)."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        method()
        times.append(time.process_time() - begin)
    tracemalloc.start()
    method()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return min(times), peak / 1e6


Method = tuple[str, Callable[[], Any]]


def binary_groups(mask: np.ndarray, order: str, *, texts: bool) -> Iterable[list[Method]]:
    """What is done with a mask of one class: the first method of each group is ours."""
    runs = masks.encode(mask, order=order)
    assert np.array_equal(runs, usual_encode(mask, order))
    assert np.array_equal(masks.decode(runs, mask.shape, order=order), mask)
    yield [
        (f"encode by {order}: visionapps", lambda: masks.encode(mask, order=order)),
        (f"encode by {order}: concatenate and diff", lambda: usual_encode(mask, order)),
    ] + ([("encode by column: pycocotools", lambda: coco.encode(np.asfortranarray(mask)))] if order == "column" else [])
    yield [
        (f"decode by {order}: visionapps", lambda: masks.decode(runs, mask.shape, order=order)),
        (f"decode by {order}: diff and cumulative sum", lambda: diff_decode(runs, mask.shape, order)),
    ] + ([("decode by column: pycocotools", decoded_by_coco(mask))] if order == "column" else [])
    if not texts:
        return
    text = masks.format_runs(runs)
    assert text == usual_text(runs)
    yield [
        (f"mask to text by {order}: visionapps", lambda: masks.format_runs(masks.encode(mask, order=order))),
        (f"mask to text by {order}: concatenate and diff", lambda: usual_text(usual_encode(mask, order))),
    ]
    yield [
        (
            f"text to mask by {order}: visionapps",
            lambda: masks.decode(masks.parse_runs(text), mask.shape, order=order),
        ),
        (f"text to mask by {order}: loop of slices", lambda: usual_decode(text, mask.shape, order)),
    ]


def decoded_by_coco(mask: np.ndarray) -> Callable[[], Any]:
    """Decoding of what pycocotools itself encodes, which is what we write, too."""
    packed = coco.encode(np.asfortranarray(mask))
    ours = masks.runs_to_coco(masks.encode(mask, order="column"), mask.shape)
    assert ours["counts"].encode() == packed["counts"]
    return lambda: coco.decode(packed)


def label_group(labels: np.ndarray, order: str) -> list[Method]:
    """What is done with all classes."""
    wanted = range(1, CLASSES)
    return [
        (f"24 classes by {order}: visionapps", lambda: masks.encode_labels(labels, wanted, order=order)),
        (f"24 classes by {order}: concatenate and diff", lambda: [usual_encode(labels == k, order) for k in wanted]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=10_000, help="pixels of a side of the square mask")
    parser.add_argument("--octaves", type=int, default=7, help="of the noise: more make the borders more ragged")
    parser.add_argument("--all", action="store_true", help="texts and 24 classes, too, where others take minutes")
    options = parser.parse_args()
    labels = landscape(options.side, options.octaves)
    mask = (labels < CLASSES // 2).astype(np.uint8)
    rows: list[list[object]] = []
    for order in ("row", "column"):
        for group in [
            *binary_groups(mask, order, texts=options.all),
            *([label_group(labels, order)] if options.all else []),
        ]:
            ours = measure(group[0][1])
            for name, method in group:
                seconds, peak = ours if method is group[0][1] else measure(method, repeats=1)
                rows.append([name, round(mask.size / seconds / 1e6), seconds, peak, seconds / ours[0], peak / ours[1]])
    by_row, by_column = (len(masks.encode(mask, order=order)) for order in ("row", "column"))
    lengths = [labels.size / len(masks.label_runs(labels, order=order).starts) for order in ("row", "column")]
    print(
        f"{options.side} x {options.side} px; binary: {by_row} runs by row, {by_column} by column; {CLASSES} classes: "
        f"a run has {lengths[0]:.0f} px by row, {lengths[1]:.0f} by column"
    )
    print(render(["method", "MPx/s", "CPU s", "peak MB", "time, ours = 1", "memory, ours = 1"], rows))


if __name__ == "__main__":
    main()
