"""TerraTorch: tiled_inference over the whole image in memory, overlaps blended."""

import argparse

from harness import Clocked, Job, Mapper, read_image, run, unit, write_labels
from terratorch.tasks.tiled_inference import tiled_inference


def peer(model: Clocked, options: argparse.Namespace) -> Mapper:
    """The library's own border of 8 px is cropped from every chip: without one (delta 0) it returns nothing."""

    def draw(job: Job) -> None:
        logits = tiled_inference(
            model,
            unit(read_image(job))[None],
            out_channels=job.classes,
            crop=job.tile,
            stride=job.tile - job.overlap,
            batch_size=job.batch,
        )
        write_labels(job, logits[0].argmax(0).byte().numpy())

    return draw


if __name__ == "__main__":
    run(peer, "terratorch")
