"""Label photos with a model that never saw them, for a student to learn from: masks with 255 where it is not sure.

visionapps pseudo runs/a/bundle unlabelled --out pseudo --keep 0.5
visionapps pseudo all.yaml      unlabelled --out pseudo --soft --tta d4

Predictions are kept in OUT/predictions, so that other numbers take seconds: run it again with --overwrite. The labels
appear in OUT/masks when all are written. A dataset takes them as `extra: [{images: unlabelled, masks: pseudo}]`.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionapps.cli.table import render
from visionapps.errors import ConfigError, DataError, VisionAppsError

if TYPE_CHECKING:
    from visionapps.competition.pseudo import Rule, Tally
    from visionapps.inference.draw import Order
    from visionapps.inference.drawing import Job
    from visionapps.inference.engine import Engine
    from visionapps.inference.tiling import Tiling

_SHOWN = 5  # names of photos


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from visionapps.cli.compute import add_map_options

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("bundle", type=Path, help="folder written by `visionapps export`, or the .yaml of an ensemble")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="photo, raster, folder, or list (@scenes.txt)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of labels and predictions")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--confidence", type=float, metavar="P", help="keep pixels whose label is at least that probable (0.9)"
    )
    chosen.add_argument(
        "--keep", type=float, metavar="SHARE", help="keep that share of the pixels of each class, the surest ones"
    )
    parser.add_argument(
        "--soft", action="store_true", help="probabilities of all classes instead of masks (all pixels, if not said)"
    )
    parser.add_argument("--skip-seen", action="store_true", help="leave out photos that trained the model")
    parser.add_argument(
        "--vouch", action="store_true", help="for a bundle that does not know what trained it: none of these photos did"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace labels that are there")
    add_map_options(parser)


def run(options: argparse.Namespace) -> int:
    """Check, predict, choose, write, and tell what was kept."""
    from visionapps.cli.compute import make_computing, make_reading, take_ensemble
    from visionapps.competition.pseudo_files import (
        begin_predictions,
        refuse_taken,
        require_own_pixels,
        tally,
        teacher_of,
        write_labels,
    )
    from visionapps.competition.pseudo_unseen import require_known, require_unseen
    from visionapps.data.pseudo_table import MASKS, PREDICTIONS, PseudoTable
    from visionapps.data.seen import joined
    from visionapps.inference.draw import Order, plan_jobs
    from visionapps.inference.geotiff import MapOptions
    from visionapps.inference.inputs import list_inputs
    from visionapps.runtime import keep_freed_memory

    keep_freed_memory()  # before the first tensor
    rule = _rule(options)
    take_ensemble(options)
    _require_maps(options)
    _refuse_models(options.inputs)
    inputs = list_inputs(options.inputs)
    refuse_taken(options.out, options.overwrite)  # before anything is read
    computing = make_computing(options, ("confidence", "probabilities") if options.soft else ("confidence",))
    bundles = computing.load()
    teachers = {folder: bundle.seen for folder, bundle in zip(computing.bundles, bundles, strict=True)}
    require_known(teachers, vouch=options.vouch)
    reading = make_reading(bundles[0], options)
    plan_jobs(inputs, options.out / PREDICTIONS, scores=True)  # names that collide are told before anything is read
    require_own_pixels(inputs, reading)
    checked = require_unseen(
        teachers, inputs, reading, skip=options.skip_seen, each=lambda items: _bar(items, "comparing with training")
    )
    jobs = plan_jobs(checked.inputs, options.out / PREDICTIONS, scores=True)
    engine = computing.engine(bundles)
    teacher = teacher_of(computing, reading, engine.arithmetic)
    pending = begin_predictions(options.out, jobs, teacher, checked.digests, overwrite=options.overwrite)
    labels = bundles[0].labels
    order = Order(reading, computing, labels, MapOptions(overviews=False), arithmetic=engine.arithmetic)
    outside = _predict(pending, engine, order, computing.settled(bundles)) if pending else []
    jobs = [job for job in jobs if job.image not in outside]
    if not jobs:
        raise ConfigError(f"{options.aoi}: meets none of the images; check the file and its reference system")
    found = tally(jobs, labels.names, rule)
    found.require_any(rule)
    report = {"rule": rule.to_dict(), "teacher": teacher, "report": found.to_dict()}
    digests = {job.image.stem: checked.digests[job.image.stem] for job in jobs}
    table = PseudoTable(labels.names, options.soft, digests, joined(list(teachers.values())), report)
    masks = options.out / MASKS
    write_labels(masks, jobs, table, found, labels=labels, reading=reading, overwrite=options.overwrite)
    _print(found, rule, options, checked.left_out)
    return 0


def _rule(options: argparse.Namespace) -> "Rule":
    from visionapps.competition.pseudo import CONFIDENCE, Rule

    said = options.confidence is not None or options.keep is not None
    return Rule(options.confidence, options.keep) if said or options.soft else Rule(CONFIDENCE)


def _require_maps(options: argparse.Namespace) -> None:
    from visionapps.inference.bundle import purpose_of

    for folder in (options.bundle, *options.member):
        if (purpose := purpose_of(folder)) != "segmentation":
            raise ConfigError(f"{folder}: is made for {purpose}, but pseudo-labels are masks; give one that draws maps")


def _refuse_models(inputs: list[str]) -> None:
    """A second teacher without --member would be taken for an image, and refused as one that cannot be read."""
    from visionapps.competition.ensemble import is_spec
    from visionapps.inference.bundle import MODEL

    for text in inputs:
        if (Path(text) / MODEL).is_file():
            raise ConfigError(f"{text}: is a bundle, no image; average it with the teacher by --member {text}")
        if is_spec(Path(text)) and not text.startswith("@"):  # a list may have any name
            raise ConfigError(
                f"{text}: is the file of an ensemble, no image; one teacher comes first, and photos follow it"
            )


def _predict(jobs: "list[Job]", engine: "Engine", order: "Order", tiling: "Tiling") -> list[Any]:
    """Draw what is missing; images outside of the area of interest are given back."""
    from tqdm import tqdm

    from visionapps.inference.draw import Desk, draw
    from visionapps.inference.survey import Surveyor

    surveyor = Surveyor(order.reading, engine.network, tiling, products=order.computing.products)
    sheets, failures, outside = surveyor.survey(jobs, each=lambda items: _bar(items, "looking at images"))
    tiles = sum(sheet.plan.tiles for sheet in sheets)
    bar: Any = tqdm(total=tiles, disable=None, desc=f"{len(sheets)} images", unit="tile", smoothing=0)
    with bar, Desk(order, on_found=bar.update) as desk:
        engine.progress = bar.update
        draw(desk, engine, sheets)
    failures = [*failures, *desk.failures]
    if failures:
        raise _first(failures, len(jobs))
    return [job.image for job in outside]


def _first(failures: "list[Any]", count: int) -> VisionAppsError:
    """What is said where photos cannot be labelled: nothing is written then but their predictions."""
    others = f"; and {len(failures) - 1} more of {count} images" if len(failures) > 1 else ""
    return DataError(
        f"{failures[0].error}{others}. No labels are written; mend or take out the image and run this again: what is "
        "predicted is kept"
    )


def _bar(items: Iterable[Any], text: str) -> Iterable[Any]:
    from tqdm import tqdm

    bar: Iterable[Any] = tqdm(items, disable=None, desc=text, unit="image", leave=False, delay=1)
    return bar


def _print(found: "Tally", rule: "Rule", options: argparse.Namespace, left_out: tuple[str, ...]) -> None:
    rows = [
        (
            row["class"],
            row["pixels"],
            _share(row["share_kept"]),
            row["confidence"],
            row["confidence_kept"],
            row["least"],
        )
        for row in found.rows()
    ]
    total = found.to_dict()
    rows.append(("all", total["pixels"], _share(total["share_kept"]), None, None, None))
    print(render(("class", "pixels", "kept", "mean confidence", "of those kept", "kept from"), rows))
    print()
    if found.empty:
        more = ", ..." if len(found.empty) > _SHOWN else ""
        print(f"without any      {len(found.empty)} photos: {', '.join(found.empty[:_SHOWN])}{more}")
    if left_out:
        more = ", ..." if len(left_out) > _SHOWN else ""
        print(f"trained on       {len(left_out)} photos, left out: {', '.join(left_out[:_SHOWN])}{more}")
    kind = "soft labels" if options.soft else "masks"
    print(f"{kind:<16} {len(found.counts)} in {options.out / 'masks'}")
    print(f"all numbers      {options.out / 'masks' / 'pseudo.json'}")
    print(f"predictions      {options.out / 'predictions'} (to choose again; may be deleted)")


def _share(part: float | None) -> str:
    return "-" if part is None else f"{part:.1%}"
