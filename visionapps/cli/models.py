"""List the models and backbones that can be built.

visionapps models                      the models, for `model:` in a run's YAML file
visionapps models --backbones 'resnet*'  names of backbones, one per line
visionapps models unet                 what a model takes
visionapps models faster_rcnn          the same of a detector
visionapps models resnet34             layers, levels, size and weights of a network or backbone
"""

import argparse
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from visionapps.cli.table import render
from visionapps.errors import ConfigError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("name", nargs="?", help="a model or a backbone, to see its details")
    choice.add_argument(
        "--backbones",
        nargs="?",
        const="*",
        metavar="PATTERN",
        help="list backbones; with * and ? as wildcards, else every name that contains PATTERN",
    )
    one = parser.add_argument_group("with a name")
    one.add_argument("--all", action="store_true", help="every layer, where the table would be grouped by step")
    one.add_argument("--size", type=int, metavar="PX", help="side of the image (default: what it was published for)")
    one.add_argument("--bands", type=int, default=3, metavar="N", help="of the image (default: 3)")
    one.add_argument("--json", action="store_true", help="the same as JSON, with every layer")


def run(options: argparse.Namespace) -> int:
    """Print the list or the details that were asked for."""
    if options.backbones is not None:
        print(_backbone_names(options.backbones))
        return 0
    from visionapps.cli import models_one
    from visionapps.models import DETECTORS, SEGMENTORS

    if options.name is None:
        print(_overview({"segmentation": SEGMENTORS, "detection": DETECTORS}))
    else:
        print(models_one.describe(options))
    return 0


def _backbone_names(pattern: str) -> str:
    from visionapps.backbones import list_pyramids

    wild = any(c in pattern for c in "*?[")
    names = list_pyramids(pattern if wild else f"*{pattern}*")
    if not names:
        raise ConfigError(
            f"--backbones {pattern}: no backbone is called like that; wildcards are * and ?, e.g. 'resnet*'"
        )
    return "\n".join(names)


def _overview(kinds: Mapping[str, Mapping[str, Callable[..., Any]]]) -> str:
    from visionapps.backbones import PACKAGES, list_pyramids

    models = [(name, kind, _first_line(made)) for kind, made_by in kinds.items() for name, made in made_by.items()]
    packaged = [(name, p.install, "yes" if p.locate() else "no") for name, p in PACKAGES.items()]
    return "\n".join(
        (
            render(("model", "task", "what"), models),
            "\nEvery model takes any backbone. Pretrained weights that install without a hub (weights: package):\n",
            render(("backbone", "install", "installed"), packaged),
            f"\nAll {len(list_pyramids())} backbones: visionapps models --backbones; details: visionapps models NAME",
        )
    )


def _first_line(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]
