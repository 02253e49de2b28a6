"""geoai: predict_geotiff from file to file, spline blending."""

import argparse

import numpy as np
from geoai.inference import predict_geotiff
from harness import Clocked, Job, Mapper, run


def peer(model: Clocked, options: argparse.Namespace) -> Mapper:
    """Scores become labels in the library's own hook before it writes."""

    def draw(job: Job) -> None:
        predict_geotiff(
            model,
            str(job.image),
            str(job.output),
            tile_size=job.tile,
            overlap=job.overlap,
            batch_size=job.batch,
            num_classes=job.classes,
            output_dtype="uint8",
            output_nodata=255,
            preprocess_fn=lambda tile: tile.astype(np.float32) / 255,
            postprocess_fn=lambda scores: scores.argmax(0, keepdims=True).astype(np.uint8),
            device="cpu",
            compress="deflate",
            verbose=False,
        )

    return draw


if __name__ == "__main__":
    run(peer, "geoai-py")
