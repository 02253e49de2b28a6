"""What many people write first: read a window, label it, write it; where windows overlap, the last one wins."""

import argparse
from itertools import product

import numpy as np
import rasterio
import torch
from harness import Clocked, Job, Mapper, label_profile, run, unit
from rasterio.windows import Window


def peer(model: Clocked, options: argparse.Namespace) -> Mapper:
    """Windows snapped back at the far edges, so that all have the same size."""

    def draw(job: Job) -> None:
        with rasterio.open(job.image) as image, rasterio.open(job.output, "w", **label_profile(job)) as drawn:
            step = job.tile - job.overlap
            rows = range(0, image.height - job.overlap, step)
            cols = range(0, image.width - job.overlap, step)
            corners = [
                (min(r, image.height - job.tile), min(c, image.width - job.tile)) for r, c in product(rows, cols)
            ]
            for begin in range(0, len(corners), job.batch):
                group = corners[begin : begin + job.batch]
                windows = [Window(col, row, job.tile, job.tile) for row, col in group]
                logits = model(unit(np.stack([image.read(window=window) for window in windows])))
                for window, labels in zip(windows, torch.argmax(logits, 1).to(torch.uint8).numpy(), strict=True):
                    drawn.write(labels, 1, window=window)

    return draw


if __name__ == "__main__":
    run(peer, "rasterio")
