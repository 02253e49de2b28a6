"""Options that every verb shares which applies a model, and what they mean."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from visionapps.errors import ConfigError

if TYPE_CHECKING:
    from visionapps.competition.ensemble import EnsembleSpec
    from visionapps.competition.finishing import Finishing
    from visionapps.inference.bundle import Bundle
    from visionapps.inference.predictor import Predictor
    from visionapps.inference.work import Computing, Reading


log = logging.getLogger(__name__)
_PHOTOS = 32  # squares that a classifier is given at a time


def add_map_options(parser: argparse.ArgumentParser) -> None:
    """Everything about how a map is computed: the same for every verb that draws one."""
    add_compute_options(parser)
    _add_drawing_options(parser)
    add_input_options(parser)
    _add_place_options(parser)


def add_compute_options(parser: argparse.ArgumentParser) -> None:
    """How the model is applied."""
    group = parser.add_argument_group("computing")
    group.add_argument("--tile", type=int, metavar="PX", help="side of the tiles (chosen: 512 for large images)")
    group.add_argument("--overlap", type=int, metavar="PX", help="pixels that tiles share (a sixteenth of the tile)")
    group.add_argument("--batch", type=int, metavar="N", help="tiles at a time (chosen by the device)")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (auto: cuda if there is one)")
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="auto: bf16 where the processor has it, fp16 on older GPUs, else fp32",
    )


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """How images are read."""
    group = parser.add_argument_group("reading")
    group.add_argument("--bands", metavar="B,B,...", help="bands by number from 1 or name, in the model's order: 4,3,2")
    group.add_argument("--scale", type=float, metavar="VALUE", help="raw value that means 1.0: 10000, 65535, ...")
    group.add_argument(
        "--nodata", type=float, metavar="VALUE", help="raw value that means no data, where files hide it"
    )


def _add_place_options(parser: argparse.ArgumentParser) -> None:
    """Where rasters are drawn, and how large their pixels are."""
    group = parser.add_argument_group("where")
    group.add_argument("--aoi", type=Path, metavar="FILE", help="vector file: draw only inside its polygons")
    group.add_argument(
        "--gsd", type=float, metavar="M", help="metres per pixel to read rasters at (the bundle's; 0: the rasters' own)"
    )


def _add_drawing_options(parser: argparse.ArgumentParser) -> None:
    """How maps are computed, beyond what judging photos needs."""
    group = parser.add_argument_group("better maps")
    group.add_argument("--tta", choices=("none", "flips", "d4"), default="none", help="average mirrored views (none)")
    group.add_argument("--scales", metavar="S,S,...", default="1", help="average views at these scales: 0.75,1,1.25")
    group.add_argument(
        "--member", type=Path, action="append", default=[], metavar="BUNDLE", help="average with it, too"
    )
    group.add_argument("--weights", metavar="W,W,...", help="of BUNDLE and its members (equal)")
    group.add_argument(
        "--exact", action="store_true", help="the map that the model would draw of the whole scene at once, no blending"
    )
    group.add_argument("--compile", action="store_true", help="torch.compile the model: slow start, faster tiles")
    group.add_argument("--threads", type=int, default=2, metavar="N", help="that decode pixels (2)")


def take_ensemble(options: argparse.Namespace) -> None:
    """Where ``options.bundle`` is the file of an ensemble, let its first member stand there, and remember the file.

    Raises:
        ConfigError: the file is wrong, or options say what it says already.
        WeightsError: its members cannot be averaged.
    """
    from visionapps.competition.ensemble import EnsembleSpec, is_spec

    if options.bundle is None or not is_spec(options.bundle):
        return
    said = {"--member": "member", "--weights": "weights", "--tta": "tta", "--scales": "scales"}
    given = [text for text, name in said.items() if getattr(options, name, None) not in (None, [], "none", "1")]
    if given:
        raise ConfigError(f"{options.bundle}: the ensemble's file says this itself; leave out {', '.join(given)}")
    spec = EnsembleSpec.load(options.bundle)
    spec.require_fitting()
    options.ensemble, options.ensemble_file, options.bundle = spec, options.bundle, spec.bundles[0]
    options.tile = spec.tile if options.tile is None else options.tile


def ensemble_of(options: argparse.Namespace) -> "EnsembleSpec | None":
    """What ``take_ensemble`` found."""
    found: EnsembleSpec | None = getattr(options, "ensemble", None)
    return found


def add_rules_option(parser: argparse.ArgumentParser) -> None:
    """How labels follow from probabilities."""
    parser.add_argument(
        "--postprocess",
        metavar="FILE",
        help="rules that `visionapps tune` wrote (the bundle's or ensemble's); none: without any",
    )


def make_finish(bundle: "Bundle", options: argparse.Namespace, extras: tuple[str, ...] = ()) -> "Finishing | None":
    """The rules of the options, of an ensemble's file, or of a bundle that stands alone; None where there are none."""
    given, ensemble = getattr(options, "postprocess", None), ensemble_of(options)
    stored = ensemble.postprocess if ensemble else bundle.postprocess
    together = ensemble is not None or bool(getattr(options, "member", None))
    if given is None and together and bundle.postprocess is not None and (ensemble is None or stored is None):
        log.warning(
            "%s: its rules were tuned on its own scores, so an ensemble does not take them; give --postprocess FILE%s",
            options.bundle,
            ", or postprocess: in the ensemble's file" if ensemble else "",
        )
        return None
    if given == "none" or (given is None and stored is None):
        return None
    from visionapps.competition.finishing import Finishing, read_rules, rules_of
    from visionapps.competition.postprocess import PostProcess
    from visionapps.inference.products import Products

    process: PostProcess | None
    if given is not None:
        process = read_rules(Path(given), bundle.labels)
    elif ensemble is not None:
        process = ensemble.rules(bundle.labels, options.ensemble_file)
    else:
        process = rules_of(bundle.postprocess, bundle.labels, options.bundle)
    assert process is not None, "there are rules"
    return Finishing(process, bundle.labels, Products(extras))  # type: ignore[arg-type]  # checked there


def make_reading(bundle: "Bundle", options: argparse.Namespace) -> "Reading":
    """How images are opened for a bundle."""
    from visionapps.inference.work import Reading

    return Reading(
        bundle.spec,
        bands=tuple(listed(options.bands)) or None,
        scale=options.scale,
        nodata=options.nodata,
        gsd=bundle.gsd if options.gsd is None else options.gsd or None,
        resize=bundle.resize,
        area=options.aoi,
    )


def make_computing(options: argparse.Namespace, extras: tuple[str, ...] = ()) -> "Computing":
    """How the network of ``options.bundle`` and its members is set up."""
    from visionapps.inference.products import Products
    from visionapps.inference.tiling import Tiling
    from visionapps.inference.views import Views
    from visionapps.inference.work import Computing

    weights = numbers(options.weights, "--weights") if options.weights else None
    members = (options.bundle, *options.member)
    if weights is not None and len(weights) != len(members):
        raise ConfigError(f"--weights: {len(weights)} numbers for {len(members)} bundles; give one per bundle")
    views = Views(flips=options.tta, scales=numbers(options.scales, "--scales"))
    if ensemble := ensemble_of(options):
        members, weights, views = ensemble.bundles, ensemble.weights, ensemble.views
    return Computing(
        bundles=members,
        weights=weights,
        views=views,
        tiling=Tiling(options.tile, options.overlap, options.batch),
        exact=options.exact,
        products=Products(extras),  # type: ignore[arg-type]  # checked there
        device=options.device,
        precision=options.precision,
        compiled=options.compile,
        threads=options.threads,
    )


def make_predictor(bundle: "Bundle", options: argparse.Namespace) -> "Predictor":
    """The bundle's model, set up by the computing options."""
    from visionapps.inference.predictor import Predictor

    ensemble = ensemble_of(options)
    return Predictor(
        ensemble.computing(device=options.device, precision=options.precision).network()
        if ensemble
        else bundle.segmentor,
        tile=options.tile,
        overlap=options.overlap,
        device=options.device,
        batch=options.batch,
        precision=options.precision,
        resize=bundle.resize,
        finish=make_finish(bundle, options),
    )


def photos_at_once(options: argparse.Namespace) -> int:
    """The --batch of a classifier: squares that go through it together.

    Raises:
        ConfigError: it is below 1.
    """
    if options.batch is not None and options.batch < 1:
        raise ConfigError(f"--batch {options.batch}: must be at least 1; leave it out for {_PHOTOS}")
    return options.batch or _PHOTOS


def listed(text: str | None) -> list[str]:
    """The words of a list such as red,green,blue."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def numbers(text: str, option: str) -> tuple[float, ...]:
    """The numbers of a list such as 0.75,1,1.25."""
    try:
        found = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"{option} {text}: expected numbers with commas between, such as 0.75,1,1.25") from error
    if not found or min(found) <= 0:
        raise ConfigError(f"{option} {text}: expected positive numbers, such as 0.75,1,1.25")
    return found
