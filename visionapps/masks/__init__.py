"""Run lengths: the one codec between label maps and the text that competitions and COCO ask for.

Runs are an (N, 2) int64 array of (start, length), ascending and apart, counted along the reading order of the pixels:
``row`` reads left to right and then down, ``column`` reads down and then right. ``base`` is the number of the first
pixel, 1 in nearly every competition. Shapes: H x W pixels, N runs.
"""

from visionapps.masks.coco import CocoRle, coco_to_runs, counts_to_runs, runs_to_coco
from visionapps.masks.runs import (
    LabelRuns,
    Order,
    Runs,
    check_runs,
    decode,
    decode_labels,
    encode,
    encode_labels,
    label_runs,
    merge_runs,
)
from visionapps.masks.text import format_runs, parse_runs

__all__ = [
    "CocoRle",
    "LabelRuns",
    "Order",
    "Runs",
    "check_runs",
    "coco_to_runs",
    "counts_to_runs",
    "decode",
    "decode_labels",
    "encode",
    "encode_labels",
    "format_runs",
    "label_runs",
    "merge_runs",
    "parse_runs",
    "runs_to_coco",
]
