"""Draw maps of photos, folders and rasters of any size with a bundle, or find objects in them with a detector.

A raster becomes a GeoTIFF that lies where the raster lies (NAME.tif), a photo an index PNG (NAME.png); overlays are
called NAME_overlay.tif or NAME_overlay.jpg, polygons NAME.gpkg (or what --vectors says), --scores NAME_scores.tif.
Pixels without data get the value 255. An interrupted run goes on where it was when it is started again.

A classifier writes classes.csv: a line per photo, with its first answers and their scores.

A detector writes boxes: NAME.gpkg or NAME.geojson that lie where the raster lies, detections.json and images.json (COCO
results), detections.csv, or folders yolo and voc. Large images are cut into tiles and every object is told once.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from visionapps.cli.table import render
from visionapps.errors import ConfigError, VisionAppsError

if TYPE_CHECKING:
    from visionapps.inference.dispatch import Workers
    from visionapps.inference.draw import Desk, Order
    from visionapps.inference.drawing import Job
    from visionapps.inference.engine import Engine, Tally
    from visionapps.inference.survey import Estimate, Failure, Sheet, Surveyor

T = TypeVar("T")
_TOP = 3  # classes named in the summary
_ROWS = 40  # scenes listed in the summary; of more, only failures are told one by one
VECTORS = ("gpkg", "geojson", "fgb", "parquet")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from visionapps.cli.compute import add_map_options, add_rules_option
    from visionapps.cli.predict_classes import add_class_options
    from visionapps.cli.predict_objects import add_object_options

    parser.add_argument(
        "bundle", type=Path, help="folder written by `visionapps export`, or the .yaml file of an ensemble"
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="photo, raster, folder, list (@scenes.txt), /vsi... or https://..."
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the maps")
    parser.add_argument(
        "--kind", choices=("mask", "overlay", "both", "none"), default="mask", help="which pictures to draw (mask)"
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace existing maps")
    existing.add_argument("--skip-existing", action="store_true", help="leave out images whose maps are there already")
    parser.add_argument("--dry-run", action="store_true", help="say what it would take, and draw nothing")
    _add_output_options(parser)
    add_object_options(parser)
    add_class_options(parser)
    add_map_options(parser)
    add_rules_option(parser)
    _add_worker_options(parser)
    parser.set_defaults(parser=parser)


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("files")
    group.add_argument("--vectors", choices=VECTORS, help="draw polygons, too, in this format")
    group.add_argument("--vector-classes", metavar="C,C,...", help="names of the classes to draw polygons of (all)")
    group.add_argument("--simplify", type=float, default=1.0, metavar="PX", help="tolerance of their outlines (1)")
    group.add_argument("--min-area", type=float, default=0.0, metavar="M2", help="leave out smaller polygons (0)")
    group.add_argument(
        "--scores", metavar="S,S,...", help="of confidence, entropy, probabilities, disagreement, overlap: 8-bit bands"
    )
    group.add_argument("--compress", choices=("deflate", "zstd"), default="deflate", help="of GeoTIFFs (deflate)")
    group.add_argument("--cog", action="store_true", help="cloud-optimised GeoTIFFs")
    group.add_argument(
        "--overviews",
        action=argparse.BooleanOptionalAction,
        help="smaller copies inside GeoTIFFs (over 8192 pixels a side)",
    )


def _add_worker_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("more than one processor")
    group.add_argument("--workers", type=int, metavar="N", help="processes (one, in this process)")
    group.add_argument("--devices", metavar="D,D,...", help="one process each: cuda:0,cuda:1")
    group.add_argument(
        "--ray", nargs="?", const="local", metavar="ADDRESS", help="workers of a Ray cluster (auto: the running one)"
    )


def run(options: argparse.Namespace) -> int:
    """Predict every input; a bad file does not stop the others, but makes the exit code 1."""
    from visionapps.runtime import keep_freed_memory

    keep_freed_memory()  # before the first tensor
    from visionapps.cli import predict_classes, predict_objects
    from visionapps.cli.compute import take_ensemble
    from visionapps.inference.bundle import purpose_of

    take_ensemble(options)
    purpose = purpose_of(options.bundle)
    predict_classes.refuse_other_options(options, options.parser, classifier=purpose == "classification")
    if purpose == "classification":
        return predict_classes.run(options)
    predict_objects.refuse_other_options(options, options.parser, detector=purpose == "detection")
    if purpose == "detection":
        return predict_objects.run(options)
    jobs = _jobs(options)
    if not jobs:
        print("nothing to do: all maps are there already")
        return 0
    order, engine, surveyor = _prepare(options)
    sheets, failures, outside = surveyor.survey(jobs, each=lambda items: _bar(items, "looking at images"))
    if failures and len(jobs) == 1:
        raise failures[0].error
    if outside:
        print(f"{len(outside)} of {len(jobs)} images lie outside of {options.aoi}", file=sys.stderr)
    if not sheets and not failures:
        raise ConfigError(f"{options.aoi}: meets none of the images; check the file and its reference system")
    if options.dry_run:
        _print_plan(sheets, surveyor.estimate(sheets, timed=True) if sheets else None)
        return _print_failures(failures, len(jobs))

    from visionapps.inference.draw import Desk

    began = time.perf_counter()
    with _tile_bar(sheets) as bar, Desk(order, on_found=lambda tiles: bar.update(tiles)) as desk:
        desk.failures.extend(failures)
        tally = _draw(desk, sheets, order, engine, options, bar)
    if desk.failures and len(jobs) == 1:
        raise desk.failures[0].error
    if desk.drawn:
        _print_drawn(desk, order.labels.names, tally, time.perf_counter() - began)
    return _print_failures(desk.failures, len(jobs))


def _jobs(options: argparse.Namespace) -> "list[Job]":
    from visionapps.inference.draw import plan_jobs
    from visionapps.inference.inputs import list_inputs

    jobs = plan_jobs(
        list_inputs(options.inputs),
        options.out,
        masks=options.kind in ("mask", "both"),
        overlays=options.kind in ("overlay", "both"),
        scores=bool(options.scores),
        vectors=f".{options.vectors}" if options.vectors else None,
    )
    if not jobs[0].outputs:
        raise ConfigError("--kind none draws nothing by itself; add --vectors or --scores")
    if options.skip_existing:
        jobs = [rest for job in jobs if (rest := job.without_existing()).outputs]
    for job in jobs:
        job.refuse_existing(options.overwrite)
    return jobs


def _prepare(options: argparse.Namespace) -> "tuple[Order, Engine, Surveyor]":
    from visionapps.cli.compute import listed, make_computing, make_finish, make_reading
    from visionapps.inference.draw import Order
    from visionapps.inference.geotiff import MapOptions
    from visionapps.inference.survey import Surveyor
    from visionapps.inference.vectors import VectorOptions

    extras = listed(options.scores)
    if options.vectors and "confidence" not in extras:
        extras.append("confidence")  # of each polygon
    computing = make_computing(options, tuple(extras))
    bundles = computing.load()
    if finish := make_finish(bundles[0], options, computing.products.extras):
        computing = replace(computing, products=finish.computed)
    reading = make_reading(bundles[0], options)
    maps = MapOptions(
        overwrite=options.overwrite, compression=options.compress, overviews=options.overviews, cog=options.cog
    )
    vectors = VectorOptions(options.simplify, options.min_area, tuple(listed(options.vector_classes)) or None)
    _check_names(vectors.classes, bundles[0].labels.names)
    elsewhere = _wants_workers(options)
    # The driver of workers only plans: it takes no room on a GPU that is theirs.
    engine = (replace(computing, device="cpu", compiled=False) if elsewhere else computing).engine(bundles)
    arithmetic = f"workers, {computing.device}, {computing.precision}" if elsewhere else engine.arithmetic
    order = Order(reading, computing, bundles[0].labels, maps, vectors, arithmetic, finish)
    return order, engine, Surveyor(reading, engine.network, computing.settled(bundles), products=computing.products)


def _draw(
    desk: "Desk", sheets: "list[Sheet]", order: "Order", engine: "Engine", options: argparse.Namespace, bar: Any
) -> "Tally":
    """Here, in processes of this machine, or on a cluster: the files are the same."""
    from visionapps.inference.draw import draw, draw_elsewhere

    engine.progress = bar.update
    workers = _workers(order, options)
    if workers is None:
        draw(desk, engine, sheets)
        return engine.tally
    with workers:
        clock = draw_elsewhere(desk, workers, sheets, on_tiles=bar.update)
    tally = workers.tally
    spent = {stage: seconds / workers.count for stage, seconds in tally.clock.seconds.items()}
    tally.clock.seconds = spent | clock.seconds
    return tally


def _workers(order: "Order", options: argparse.Namespace) -> "Workers | None":
    if options.devices and (options.workers is not None or options.ray is not None):
        raise ConfigError("--devices names a process each on this machine; leave out --workers and --ray")
    if options.ray is not None:
        from visionapps.inference.ray_workers import RayWorkers

        address = None if options.ray == "local" else options.ray
        return RayWorkers(order.computing, order.reading, workers=options.workers or 2, address=address)
    if not _wants_workers(options):
        return None
    from visionapps.inference.workers import LocalWorkers, local_devices

    if options.devices:
        devices = tuple(device.strip() for device in options.devices.split(",") if device.strip())
    else:
        devices = local_devices(options.workers, options.device)
    return LocalWorkers(order.computing, order.reading, devices=devices)


def _wants_workers(options: argparse.Namespace) -> bool:
    return options.ray is not None or options.workers is not None or options.devices is not None


def _check_names(classes: tuple[str, ...] | None, names: tuple[str, ...]) -> None:
    unknown = [name for name in classes or () if name not in names]
    if unknown:
        raise ConfigError(f"--vector-classes: no class {', '.join(unknown)}; there are {', '.join(names)}")


def _bar(items: Iterable[T], text: str) -> Iterator[T]:
    from tqdm import tqdm

    bar: Iterable[T] = tqdm(items, disable=None, desc=text, unit="image", leave=False, delay=1)
    yield from bar


def _tile_bar(sheets: "list[Sheet]") -> Any:
    """Tiles over all scenes: they take the same time each, unlike files."""
    from tqdm import tqdm

    tiles = sum(sheet.plan.tiles for sheet in sheets)
    name = sheets[0].job.image.stem if len(sheets) == 1 else f"{len(sheets)} images"
    # The mean over the whole run: a guess from the last tiles jumps where many have no data.
    return tqdm(total=tiles, disable=None, desc=name, unit="tile", smoothing=0)


def _print_plan(sheets: "list[Sheet]", estimate: "Estimate | None") -> None:
    if estimate is None:
        return
    rows = []
    for sheet in sheets[:_ROWS]:
        plan = sheet.plan
        rows.append(
            (
                sheet.job.image.name,
                f"{sheet.shape[0]} x {sheet.shape[1]}",
                f"{len(plan.rows.starts)} x {len(plan.cols.starts)}",
                f"{plan.rows.tile} x {plan.cols.tile}",
                f"{plan.rows.overlap}, {plan.cols.overlap}",
                f"{plan.repeated:.2f}",
            )
        )
    print(render(("file", "height x width", "tiles", "tile px", "overlap px", "computed / drawn"), rows))
    if len(sheets) > _ROWS:
        print(f"... and {len(sheets) - _ROWS} more")
    memory = estimate.memory
    scenes = f"{len(sheets)} scene{'s'[: len(sheets) != 1]}"
    print(
        f"\n{scenes}, {estimate.pixels / 1e6:,.1f} megapixels in {estimate.tiles:,} tiles; "
        f"{estimate.repeated:.2f} pixels computed per pixel drawn (padding included)"
    )
    if estimate.seconds is not None:
        print(f"about {_duration(estimate.seconds)} of computing on one device, less where there is no data")
    print(
        f"about {memory.total / 1e6:,.0f} MB beside the model: {memory.pixels / 1e6:,.0f} pixels, "
        f"{memory.strips / 1e6:,.0f} overlaps, {memory.bands / 1e6:,.0f} finished rows, "
        f"{memory.batch / 1e6:,.0f} scores, {memory.network / 1e6:,.0f} inside the network"
    )


def _print_drawn(desk: "Desk", names: tuple[str, ...], tally: "Tally", seconds: float) -> None:
    drawn = sorted(desk.drawn, key=lambda item: item[0].image.name)
    rows = []
    for job, result in drawn[:_ROWS]:
        valid = sum(result.pixels)
        top = sorted(zip(result.pixels, names, strict=True), reverse=True)[:_TOP]
        listed = ", ".join(f"{name} {count / valid:.0%}" for count, name in top if count)
        size = f"{result.shape[0]} x {result.shape[1]}"
        rows.append((Path(job.image.name).name, size, f"{result.valid:.1%}", listed, " ".join(map(str, job.outputs))))
    print(render(("file", "height x width", "valid", "most of it", "drawn to"), rows))
    if len(drawn) > _ROWS:
        print(f"... and {len(drawn) - _ROWS} more")
    if tally.finished:
        print(_how_it_went(tally, seconds), file=sys.stderr)


def _how_it_went(tally: "Tally", seconds: float) -> str:
    """One line for those who want to know where the time went."""
    from visionapps.inference.draw import WRITE
    from visionapps.inference.engine import COMPUTE, MERGE, READ
    from visionapps.runtime import peak_memory

    spent = tally.clock.seconds
    stages = {
        "network": spent.get(COMPUTE, 0.0) + spent.get(MERGE, 0.0),
        "reading": spent.get(READ, 0.0),
        "writing": spent.get(WRITE, 0.0),
    }
    slowest = max(stages, key=lambda name: stages[name])
    total = max(seconds, 1e-9)
    shares = ", ".join(f"{name} {value / total:.0%}" for name, value in stages.items())
    peak = peak_memory() / 2**20
    rate = tally.finished / total / 1e6
    text = (
        f"{tally.finished / 1e6:,.1f} megapixels in {_duration(seconds)} ({rate:.2f} a second); "
        f"busy: {shares}; bottleneck: {slowest}; {tally.computed / tally.finished:.2f} pixels computed per pixel drawn"
    )
    text += f"; {tally.tiles:,} tiles" + (f", {tally.skipped:,} of them without data" if tally.skipped else "")
    return f"{text}; peak memory {peak:,.0f} MB{_gpu_memory()}"


def _gpu_memory() -> str:
    import torch

    if not torch.cuda.is_available():
        return ""
    return f", {torch.cuda.max_memory_allocated() / 2**20:,.0f} MB on the GPU"


def _print_failures(failures: "list[Failure]", jobs: int) -> int:
    for failure in failures:
        print(f"failed: {_one_line(failure.job.image.name, failure.error)}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {jobs} files failed", file=sys.stderr)
    return 1 if failures else 0


def _one_line(image: str, error: VisionAppsError) -> str:
    text = " ".join(str(error).split())
    return text if image in text else f"{image}: {text}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
