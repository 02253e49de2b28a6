"""Draw maps of photos, folders and rasters with a bundle.

A raster becomes a GeoTIFF that lies where the raster lies (NAME.tif), a photo an index PNG (NAME.png); overlays are
called NAME_overlay.tif or NAME_overlay.jpg. Pixels without data get the value 255.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionapps.cli.table import render
from visionapps.errors import DataError, VisionAppsError
from visionapps.files import refuse_existing

if TYPE_CHECKING:
    from visionapps.inference.bundle import Bundle
    from visionapps.inference.drawing import Drawn, Job
    from visionapps.inference.predictor import Predictor

_TOP = 3  # classes named in the summary


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("bundle", type=Path, help="folder written by `visionapps export`")
    parser.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help="photo, raster, or folder of them")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the maps")
    parser.add_argument("--kind", choices=("mask", "overlay", "both"), default="mask", help="what to draw (mask)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing maps")
    add_compute_options(parser)
    add_input_options(parser)


def add_compute_options(parser: argparse.ArgumentParser) -> None:
    """How the model is applied; the same for every verb that applies one."""
    group = parser.add_argument_group("computing")
    group.add_argument("--tile", type=int, metavar="PX", help="side of the tiles (that of the bundle)")
    group.add_argument("--overlap", type=int, metavar="PX", help="pixels that tiles share (a quarter of the tile)")
    group.add_argument("--batch", type=int, default=4, metavar="N", help="tiles at a time (4)")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (auto: cuda if there is one)")
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto: bf16 on cuda, fp32 on cpu; bf16 is twice as fast on processors that have it",
    )


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """How images are read; the same for every verb that applies a model."""
    group = parser.add_argument_group("reading")
    group.add_argument("--bands", metavar="B,B,...", help="bands by number from 1 or name, in the model's order: 4,3,2")
    group.add_argument("--scale", type=float, metavar="VALUE", help="raw value that means 1.0: 10000, 65535, ...")
    group.add_argument(
        "--nodata", type=float, metavar="VALUE", help="raw value that means no data, where files hide it"
    )


def run(options: argparse.Namespace) -> int:
    """Predict every input; a bad file does not stop the others, but makes the exit code 1."""
    from visionapps.runtime import keep_freed_memory

    keep_freed_memory()  # before the first tensor
    from visionapps.inference.draw import plan_jobs

    masks, overlays = options.kind in ("mask", "both"), options.kind in ("overlay", "both")
    jobs = plan_jobs(options.inputs, options.out, masks=masks, overlays=overlays)
    for job in jobs:
        for output in job.outputs:
            refuse_existing(output, options.overwrite)

    from visionapps.inference.bundle import load

    bundle = load(options.bundle)
    drawn, failed = _draw_all(jobs, bundle, make_predictor(bundle, options), options)
    if failed and len(jobs) == 1:
        raise failed[0][1]
    if drawn:
        print(_summary(drawn, bundle.labels.names))
    for job, error in failed:
        print(f"failed: {_one_line(job.image, error)}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(jobs)} files failed", file=sys.stderr)
    return 1 if failed else 0


def make_predictor(bundle: "Bundle", options: argparse.Namespace) -> "Predictor":
    """The bundle's model, set up by the computing options."""
    from visionapps.inference.predictor import Predictor

    return Predictor(
        bundle.model,
        tile=options.tile or bundle.tile,
        overlap=options.overlap,
        device=options.device,
        batch=options.batch,
        precision=options.precision,
        resize=bundle.resize,
    )


def band_list(text: str | None) -> list[str] | None:
    """The bands named by --bands."""
    return [band.strip() for band in text.split(",") if band.strip()] if text else None


def _draw_all(
    jobs: "list[Job]", bundle: "Bundle", predictor: "Predictor", options: argparse.Namespace
) -> "tuple[list[tuple[Job, Drawn]], list[tuple[Job, VisionAppsError]]]":
    from tqdm import tqdm

    from visionapps.inference.draw import draw
    from visionapps.inference.sources import open_source

    drawn: list[tuple[Job, Drawn]] = []
    failed: list[tuple[Job, VisionAppsError]] = []
    bands = band_list(options.bands)
    form = "{l_bar}{bar}| {n:.1f}/{total} files [{elapsed}<{remaining}]"
    with tqdm(total=len(jobs), disable=None, bar_format=form) as bar:
        for number, job in enumerate(jobs):
            bar.set_description(job.image.name)
            try:
                source = open_source(job.image, bundle.spec, bands=bands, scale=options.scale, nodata=options.nodata)
                try:
                    progress = _Progress(bar, number)
                    done = draw(
                        predictor,
                        source,
                        job,
                        labels=bundle.labels,
                        spec=bundle.spec,
                        overwrite=options.overwrite,
                        progress=progress,
                    )
                finally:
                    source.close()
                drawn.append((job, done))
            except DataError as error:  # this file's own fault; a full disk or a wrong option stops everything
                failed.append((job, error))
            bar.update(number + 1 - bar.n)
    return drawn, failed


class _Progress:
    """Moves a bar of files by the share of tiles done."""

    def __init__(self, bar: Any, files_done: int) -> None:
        self._bar, self._files_done = bar, files_done

    def __call__(self, done: int, total: int) -> None:
        self._bar.update(self._files_done + done / total - self._bar.n)


def _summary(drawn: "list[tuple[Job, Drawn]]", names: tuple[str, ...]) -> str:
    rows = []
    for job, result in drawn:
        valid = sum(result.pixels)
        top = sorted(zip(result.pixels, names, strict=True), reverse=True)[:_TOP]
        listed = ", ".join(f"{name} {count / valid:.0%}" for count, name in top if count)
        size = f"{result.shape[0]} x {result.shape[1]}"
        rows.append((job.image.name, size, f"{result.valid:.1%}", listed, " ".join(map(str, job.outputs))))
    return render(("file", "height x width", "valid", "most of it", "drawn to"), rows)


def _one_line(image: Path, error: VisionAppsError) -> str:
    text = " ".join(str(error).split())
    return text if str(image) in text else f"{image}: {text}"
