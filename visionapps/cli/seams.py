"""Measure how much a map changes where tiles meet, against how much it changes anywhere.

The scene is drawn twice, on two lattices of tiles that are half a step apart, and the labels are compared near the
seams of either lattice and far from all of them. Nothing is written.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from visionapps.cli.table import render

if TYPE_CHECKING:
    from collections.abc import Generator

    from visionapps.inference.engine import Engine, Scene
    from visionapps.inference.products import Band
    from visionapps.inference.seams import Ring, SeamReport
    from visionapps.inference.sources import Source


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from visionapps.cli.compute import add_map_options

    parser.add_argument("bundle", type=Path, help="folder written by `visionapps export`")
    parser.add_argument("image", help="photo or raster, larger than a tile")
    add_map_options(parser)


def run(options: argparse.Namespace) -> int:
    """Draw twice, compare, and print the table."""
    from visionapps.cli.compute import make_reading, take_ensemble
    from visionapps.inference.bundle import load
    from visionapps.runtime import keep_freed_memory

    keep_freed_memory()  # before the first tensor
    take_ensemble(options)
    reading = make_reading(load(options.bundle), options)
    source = reading.open(options.image)
    try:
        report = _measure(reading.shown(source), options)
    finally:
        source.close()
    _print(report)
    return 0


def _measure(source: "Source", options: argparse.Namespace) -> "SeamReport":
    from contextlib import closing

    from tqdm import tqdm

    from visionapps.cli.compute import make_computing
    from visionapps.inference.engine import Engine, Scene
    from visionapps.inference.plan import shifted
    from visionapps.inference.seams import seam_report

    computing = make_computing(options)
    bundles = computing.load()
    first = computing.engine(bundles)
    second = Engine(first.network, batch=computing.tiling.batch, threads=computing.threads)
    layout = computing.settled(bundles).plan(source.shape, first.network, dtype=source.dtype)
    moved = shifted(layout, multiple=first.network.stride)
    scenes = [Scene(source, plan, range(len(plan.rows.starts))) for plan in (layout, moved)]
    with tqdm(total=sum(s.tiles for s in scenes), disable=None, desc=Path(options.image).stem, unit="tile") as bar:

        def count(tiles: int) -> None:
            bar.update(tiles)

        first.progress = second.progress = count
        with closing(_bands(first, scenes[0])) as bands, closing(_bands(second, scenes[1])) as others:
            return seam_report(bands, others, layout, moved)


def _bands(engine: "Engine", scene: "Scene") -> "Generator[Band, None, None]":
    from visionapps.errors import DataError

    for _, outcome in engine.run([scene]):
        if isinstance(outcome, DataError):
            raise outcome
        yield outcome


def _print(report: "SeamReport") -> None:
    named = (("where tiles blend", report.seams), ("interior", report.interior), ("everywhere", report.everywhere))
    rows = [(f"{_span(ring)} px from a seam", *_cells(ring)) for ring in report.rings if ring.pixels]
    rows += [(name, *_cells(ring)) for name, ring in named]
    print(render(("pixels", "compared", "labelled otherwise", "share"), rows))
    if not report.everywhere.differing:
        print("\nThe two maps are the same: where tiles lie does not matter.")
    elif not report.interior.pixels:
        print(
            "\nNo pixel is far from all seams: choose larger tiles or a smaller overlap to compare with the interior."
        )
    elif report.excess is None:
        print("\nFar from all seams the two maps are the same.")
    else:
        print(
            f"\nAt seams labels differ {report.excess:.2f} times as often as in the interior (1: no seams to be seen)."
        )


def _span(ring: "Ring") -> str:
    return f"{ring.begin:g} to {ring.end:g}" if ring.end != float("inf") else f"over {ring.begin:g}"


def _cells(ring: "Ring") -> tuple[int, int, str]:
    return ring.pixels, ring.differing, "-" if ring.share is None else f"{ring.share:.3%}"
