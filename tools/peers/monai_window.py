"""MONAI: sliding_window_inference with gaussian weights over the whole image in memory."""

import argparse

from harness import Clocked, Job, Mapper, read_image, run, unit, write_labels
from monai.inferers import sliding_window_inference


def peer(model: Clocked, options: argparse.Namespace) -> Mapper:
    """--variant names the blending: gaussian (default) or constant."""

    def draw(job: Job) -> None:
        logits = sliding_window_inference(
            unit(read_image(job))[None],
            roi_size=job.tile,
            sw_batch_size=job.batch,
            predictor=model,
            overlap=job.overlap / job.tile,
            mode=options.variant or "gaussian",
        )
        write_labels(job, logits[0].argmax(0).byte().numpy())

    return draw


if __name__ == "__main__":
    run(peer, "monai")
