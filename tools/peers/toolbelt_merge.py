"""pytorch-toolbelt: ImageSlicer and TileMerger with pyramid weights."""

import argparse

import numpy as np
from harness import Clocked, Job, Mapper, read_image, run, unit, write_labels
from pytorch_toolbelt.inference.tiles import ImageSlicer, TileMerger


def peer(model: Clocked, options: argparse.Namespace) -> Mapper:
    """Tiles are cut as the library's iterator gives them, and merged batch by batch."""

    def draw(job: Job) -> None:
        image = np.ascontiguousarray(read_image(job).transpose(1, 2, 0))
        slicer = ImageSlicer(image.shape[:2], job.tile, job.tile - job.overlap, weight="pyramid")
        merger = TileMerger(slicer.target_shape, job.classes, slicer.weight)
        tiles: list[np.ndarray] = []
        places: list[np.ndarray] = []

        def integrate() -> None:
            if tiles:
                merger.integrate_batch(model(unit(np.stack(tiles))), places)
                tiles.clear()
                places.clear()

        for (tile, _), place in zip(slicer.iter_split(image), slicer.crops, strict=True):
            tiles.append(tile.transpose(2, 0, 1))
            places.append(place)
            if len(tiles) == job.batch:
                integrate()
        integrate()
        labels = merger.merge().argmax(0).byte().numpy()
        write_labels(job, slicer.crop_to_orignal_size(labels))

    return draw


if __name__ == "__main__":
    run(peer, "pytorch-toolbelt")
