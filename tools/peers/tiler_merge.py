"""tiler: Tiler and Merger with a Hann window and the padding that its documentation recommends."""

import argparse

import numpy as np
from harness import Clocked, Job, Mapper, read_image, run, unit, write_labels
from tiler import Merger, Tiler


def peer(model: Clocked, options: argparse.Namespace) -> Mapper:
    """The tiles of the logits lie on the lattice of the tiles of the image."""

    def draw(job: Job) -> None:
        image = read_image(job)
        tiler = Tiler(image.shape, (len(image), job.tile, job.tile), overlap=job.overlap, channel_dimension=0)
        shape, padding = tiler.calculate_padding()
        tiler.recalculate(data_shape=shape)
        merger = Merger(
            Tiler(
                (job.classes, *shape[1:]), (job.classes, job.tile, job.tile), overlap=job.overlap, channel_dimension=0
            ),
            window="hann",
        )
        padded = np.pad(image, padding, mode="reflect")
        for number, tiles in tiler(padded, batch_size=job.batch):
            merger.add_batch(number, job.batch, model(unit(tiles)).numpy())
        labels = merger.merge(unpad=True, extra_padding=padding, argmax=True, dtype=np.uint8)
        write_labels(job, labels)

    return draw


if __name__ == "__main__":
    run(peer, "tiler")
