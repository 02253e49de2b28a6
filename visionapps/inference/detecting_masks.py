"""Masks of objects in tiles as run lengths of the whole image.

Shapes: H W image, h w tile.
"""

from collections.abc import Sequence

import numpy as np

from visionapps.masks import CocoRle, Runs, coco_to_runs, encode, runs_to_coco


def placed(mask: np.ndarray, row: int, col: int, shape: tuple[int, int]) -> CocoRle:
    """The run lengths of a mask that covers a part of an image, in time that does not depend on the image's size.

    Args:
        mask: (h, w) bool.
        row: where its first row lies in the image.
        col: where its first column lies.
        shape: (H, W) of the image; what of the mask lies outside is left out.
    """
    top, left = max(0, -row), max(0, -col)
    inside = mask[top : max(0, shape[0] - row), left : max(0, shape[1] - col)]
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(rows):
        return runs_to_coco(np.zeros((0, 2), np.int64), shape, base=0)
    inside = inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    row, col = row + top + int(rows[0]), col + left + int(columns[0])
    # A row of background below keeps runs from going on in the next column.
    runs = encode(np.pad(inside, ((0, 1), (0, 0))), order="column", base=0)
    columns, rows = np.divmod(runs[:, 0], len(inside) + 1)
    starts = (columns + col) * shape[0] + rows + row
    return runs_to_coco(_merged(np.stack([starts, runs[:, 1]], axis=1)), shape, base=0)


def union(masks: Sequence[CocoRle]) -> tuple[CocoRle, float]:
    """All pixels of some masks of one image, at least one, and how many these are."""
    runs = _merged(np.concatenate([coco_to_runs(mask, base=0) for mask in masks]))
    height, width = masks[0]["size"]
    return runs_to_coco(runs, (height, width), base=0), float(runs[:, 1].sum())


def _merged(runs: Runs) -> Runs:
    """Runs that overlap or touch as one, in ascending order."""
    if not len(runs):
        return runs
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    ends = np.maximum.accumulate(runs.sum(1))
    first = np.flatnonzero(np.append(True, runs[1:, 0] > ends[:-1]))
    last = np.append(first[1:], len(runs)) - 1
    return np.stack([runs[first, 0], ends[last] - runs[first, 0]], axis=1)
