"""What `visionapps models NAME` shows of one model, network or backbone."""

import argparse
import dataclasses
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from visionapps.cli.table import render
from visionapps.errors import ConfigError

if TYPE_CHECKING:
    from visionapps.structures import InputSpec


def describe(options: argparse.Namespace) -> str:
    """The details of ``options.name``: a wiring function, or a network of the zoo."""
    from visionapps.models import WIRINGS

    if options.name in WIRINGS:
        return _describe_model(WIRINGS[options.name])
    return _describe_backbone(options.name)


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
