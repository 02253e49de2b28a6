"""torchgeo: GridGeoSampler and DataLoader; the sums are ours, because the library ships no stitcher."""

import argparse

import rasterio
import torch
from harness import Clocked, Job, Mapper, run, write_labels
from rasterio.windows import from_bounds
from torch.utils.data import DataLoader
from torchgeo.datasets import RasterDataset, stack_samples
from torchgeo.samplers import GridGeoSampler


def peer(model: Clocked, options: argparse.Namespace) -> Mapper:
    """Mean of the logits of the tiles that see a pixel."""

    def draw(job: Job) -> None:
        with rasterio.open(job.image) as image:
            transform, height, width = image.transform, image.height, image.width
        dataset = RasterDataset(paths=str(job.image))
        sampler = GridGeoSampler(dataset, size=job.tile, stride=job.tile - job.overlap)
        total, seen = torch.zeros(job.classes, height, width), torch.zeros(height, width)
        for sample in DataLoader(dataset, batch_size=job.batch, sampler=sampler, collate_fn=stack_samples):
            logits = model(sample["image"] / 255)
            for (x, y, _), tile in zip(sample["bounds"], logits, strict=True):
                window = from_bounds(x.start, y.start, x.stop, y.stop, transform)
                row, col = round(window.row_off), round(window.col_off)
                # A chip may begin before the raster and end after it; what lies outside was filled with zeros.
                top, left = max(0, -row), max(0, -col)
                place = (slice(row + top, row + job.tile), slice(col + left, col + job.tile))
                target = total[:, *place]
                target += tile[:, top : top + target.shape[1], left : left + target.shape[2]]
                seen[place] += 1
        write_labels(job, (total / seen.clamp_min(1)).argmax(0).byte().numpy())

    return draw


if __name__ == "__main__":
    run(peer, "torchgeo")
