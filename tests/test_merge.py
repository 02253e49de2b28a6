"""Strips against accumulators of the raster's size."""

import numpy as np
import torch

from visionapps.inference.merge import StripMerger
from visionapps.inference.plan import plan

CLASSES = 4


def test_blending_equals_the_weighted_sum_over_the_whole_raster() -> None:
    """Against an accumulator of the raster's size with an outer product of ramps, in double precision."""
    layout = plan((150, 170), tile=64, overlap=24, multiple=8)
    generator = torch.Generator().manual_seed(1)
    tiles = {
        (r, c): torch.randn(CLASSES, 64, 64, generator=generator)
        for r in layout.rows.starts
        for c in layout.cols.starts
    }
    total = np.zeros((CLASSES, layout.rows.padded, layout.cols.padded))
    for (r, c), logits in tiles.items():
        weights = []
        for start, axis in ((r, layout.rows), (c, layout.cols)):
            weight = np.ones(64)
            if start > 0:
                weight[:24] = (np.arange(24) + 0.5) / 24
            if start < axis.starts[-1]:
                weight[-24:] = 1 - (np.arange(24) + 0.5) / 24
            weights.append(weight)
        total[:, r : r + 64, c : c + 64] += logits.numpy() * np.outer(*weights)
    merger = StripMerger(layout, CLASSES)
    rows = []
    for r in layout.rows.starts:
        for c in layout.cols.starts:
            merger.add(tiles[r, c].clone())
        rows.append(merger.finished_rows()[0].numpy())
    assert np.array_equal(np.concatenate(rows), total.argmax(0)[:150, :170])
