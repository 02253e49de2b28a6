"""Options of ``evaluate`` that say how a classifier looks at each photo: densely, by squares, at several scales, and
averaged with other bundles."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionapps.cli.table import render
from visionapps.errors import ConfigError

if TYPE_CHECKING:
    from visionapps.inference.bundle import Bundle
    from visionapps.inference.testing_tricks import PhotoTester

_OPTIONS = ("dense", "crops", "scales", "member")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    group = parser.add_argument_group(
        "looks of a classifier (the middle of each photo; dense and crops together: fused)"
    )
    group.add_argument(
        "--dense", action="store_true", help="the whole photo, the network at every position, mirrored too"
    )
    group.add_argument(
        "--crops", type=int, choices=(1, 10, 50), help="squares per scale: middle, corners too, 5 x 5 grid"
    )
    group.add_argument("--scales", metavar="S,S,...", help="shorter sides to bring photos to, in pixels: 224,256,288")
    group.add_argument(
        "--member",
        type=Path,
        action="append",
        default=[],
        metavar="BUNDLE",
        help="average with it, too; of the same classes",
    )


def given(options: argparse.Namespace) -> list[str]:
    """The options that were used, as they are written."""
    return [f"--{name}" for name in _OPTIONS if getattr(options, name, None) not in (None, False, [])]


def make_tester(bundle: "Bundle", options: argparse.Namespace) -> "PhotoTester":
    """What answers photos, as the options want it.

    Raises:
        ConfigError: the options contradict each other or the model, or members have other classes.
    """
    from visionapps.classification.fusion import TestPlan
    from visionapps.cli.compute import photos_at_once
    from visionapps.inference.bundle import load
    from visionapps.inference.testing_tricks import PhotoTester

    plan = TestPlan(
        dense=options.dense,
        crops=options.crops or (None if options.dense else 1),
        scales=scales(options),
    )
    bundles = [bundle, *(load(folder) for folder in options.member)]
    return PhotoTester(bundles, options.device, options.precision, photos_at_once(options), plan=plan)


def summary(tester: "PhotoTester") -> dict[str, Any]:
    """How photos were looked at and what it took, as plain data."""
    cost = tester.cost
    photos = max(1, cost.photos)
    return {
        "looks": tester.plan.describe(),
        "models": len(tester.bundles),
        "forwards_per_photo": cost.forwards / photos,
        "megapixels_per_photo": cost.pixels / photos / 1e6,
        "seconds_per_photo": cost.seconds / photos,
    }


def costs(tester: "PhotoTester") -> str:
    """The same for people."""
    told = summary(tester)
    models = f", {told['models']} models" if told["models"] > 1 else ""
    rows = (
        ("looks", f"{told['looks']}{models}"),
        (
            "per photo",
            f"{told['forwards_per_photo']:g} forwards, {told['megapixels_per_photo']:.3f} megapixels, "
            f"{told['seconds_per_photo']:.3f} s",
        ),
    )
    return render(("", ""), rows)


def scales(options: argparse.Namespace) -> tuple[int, ...]:
    """The shorter sides of --scales in pixels; none where it was not given.

    Raises:
        ConfigError: it holds something else.
    """
    if options.scales is None:
        return ()
    try:
        found = tuple(int(word) for word in options.scales.split(",") if word.strip())
    except ValueError:
        found = ()
    if not found:
        raise ConfigError(f"--scales {options.scales}: expected shorter sides in whole pixels, such as 224,256,288")
    return found
