"""Pack bundles, rules and code into one folder that writes a submission where there is no internet, and in time.

visionapps pack ensemble.yaml --dialect hrud --sample sample_submission.csv --out package
visionapps pack a_bundle b_bundle --tta d4 --dialect dialect.yaml --sample sample_submission.csv --seconds 32400 --out p
visionapps pack ... --wheels --has have.txt --python 3.12    with what the notebook lacks; have.txt: its `pip freeze`

The folder holds a notebook and run.py, which install it, find the test images, time a few of them, leave out members,
scales or views until all fits into the time and memory given, saying what, and write and verify the submission.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from visionapps.cli.table import render
from visionapps.errors import ConfigError
from visionapps.files import refuse_existing

if TYPE_CHECKING:
    from visionapps.competition.ensemble import EnsembleSpec
    from visionapps.competition.pack_wheels import Target

_SHOWN = 12  # files that are listed one by one, the largest


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "bundles", nargs="+", type=Path, metavar="BUNDLE", help="folders written by export, or the .yaml of an ensemble"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the package, a new folder")
    model = parser.add_argument_group("how images are drawn if there is time")
    model.add_argument("--weights", metavar="W,W,...", help="of the bundles (equal)")
    model.add_argument("--tta", choices=("none", "flips", "d4"), default="none", help="average mirrored views (none)")
    model.add_argument("--scales", metavar="S,S,...", default="1", help="average views at these scales: 0.75,1,1.25")
    model.add_argument("--tile", type=int, metavar="PX", help="side of the tiles; needed where members' tiles differ")
    model.add_argument(
        "--postprocess",
        metavar="FILE",
        help="rules that `visionapps tune` wrote (the ensemble's, a single bundle's); none: no rules",
    )
    competition = parser.add_argument_group("competition")
    competition.add_argument("--sample", type=Path, required=True, metavar="FILE", help="its sample_submission.csv")
    competition.add_argument("--dialect", required=True, metavar="NAME", help="as for submit: a name or a YAML file")
    competition.add_argument("--images", type=Path, metavar="FOLDER", help="test images, to hold the sample against")
    limits = parser.add_argument_group("limits, which run.py may be told anew")
    limits.add_argument("--seconds", type=float, default=32400.0, metavar="S", help="that a run may take (32400)")
    limits.add_argument("--memory", type=float, default=13.0, metavar="GIB", help="that its process may take (13)")
    wheels = parser.add_argument_group("wheels")
    wheels.add_argument("--wheels", action="store_true", help="download what the notebook lacks; this needs internet")
    wheels.add_argument("--has", type=Path, metavar="FILE", help="what `pip freeze` prints in the notebook (nothing)")
    wheels.add_argument("--python", metavar="X.Y", help="its Python (the one of this machine)")
    wheels.add_argument("--platform", metavar="NAME", help="its platform (manylinux_2_35_x86_64)")


def run(options: argparse.Namespace) -> int:
    """Write the package and list what is in it."""
    refuse_existing(options.out, overwrite=False)
    from visionapps.competition.budget import Limits
    from visionapps.competition.pack_making import Contents, make_package
    from visionapps.inference.file_dialects import load_rules

    Limits.of(options.seconds, options.memory)  # refuses what cannot be
    contents = Contents(
        spec=_spec(options),
        rules=load_rules(options.dialect),
        sample=options.sample,
        postprocess=None if options.postprocess in (None, "none") else Path(options.postprocess),
        plain=options.postprocess == "none",
        images=options.images,
        seconds=options.seconds,
        memory=options.memory,
    )
    packed = make_package(contents, options.out, target=_target(options))
    largest = sorted(packed.files.items(), key=lambda item: -item[1])
    rows = [(name, f"{size / 1e6:.2f}") for name, size in largest[:_SHOWN]]
    print(render(("file", "MB"), rows))
    if len(largest) > _SHOWN:
        print(f"... and {len(largest) - _SHOWN} more")
    total = sum(packed.files.values()) / 1e6
    print(f"\n{packed.folder}: {len(packed.files)} files, {total:,.1f} MB; upload it, and run submit.ipynb or run.py")
    if options.wheels:
        print(f"wheels downloaded: {', '.join(packed.wheels) or 'none, the notebook has all that is needed'}")
    if packed.unused:
        import logging

        logging.getLogger(__name__).warning(
            "%s: rules of bundles were tuned on their own scores, so an ensemble does not take them; give "
            "--postprocess FILE, or none",
            ", ".join(map(str, packed.unused)),
        )
    return 0


def _spec(options: argparse.Namespace) -> "EnsembleSpec":
    from visionapps.cli.compute import numbers
    from visionapps.competition.ensemble import EnsembleSpec, Member, is_spec

    files = [path for path in options.bundles if is_spec(path)]
    if files:
        said = {"--weights": options.weights is None, "--tta": options.tta == "none", "--scales": options.scales == "1"}
        given = [text for text, left_out in {**said, "--tile": options.tile is None}.items() if not left_out]
        if given or len(options.bundles) > 1:
            what = ", ".join(given) or "the other bundles"
            raise ConfigError(f"{files[0]}: the ensemble's file says this itself; leave out {what}")
        return EnsembleSpec.load(files[0])
    weights = numbers(options.weights, "--weights") if options.weights else (1.0,) * len(options.bundles)
    if len(weights) != len(options.bundles):
        raise ConfigError(f"--weights: {len(weights)} numbers for {len(options.bundles)} bundles; give one per bundle")
    members = tuple(Member(bundle, weight) for bundle, weight in zip(options.bundles, weights, strict=True))
    return EnsembleSpec(members, options.tta, numbers(options.scales, "--scales"), options.tile)


def _target(options: argparse.Namespace) -> "Target | None":
    from visionapps.competition.pack_wheels import Target, read_installed

    if not options.wheels:
        given = {"--has": options.has, "--python": options.python, "--platform": options.platform}
        useless = [name for name, value in given.items() if value is not None]
        if useless:
            raise ConfigError(f"pack: {', '.join(useless)} tells which wheels are downloaded; add --wheels")
        return None
    words = {"python": options.python, "platform": options.platform}
    has = read_installed(options.has) if options.has else {}
    return Target(**{key: value for key, value in words.items() if value is not None}, has=has)
