"""What `visionapps models NAME` shows of one model, network or backbone."""

import argparse
import dataclasses
import difflib
import inspect
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from visionapps.cli.table import render
from visionapps.errors import ConfigError

if TYPE_CHECKING:
    from visionapps.networks.anatomy import Layer
    from visionapps.networks.base import Network
    from visionapps.structures import InputSpec


def describe(options: argparse.Namespace) -> str:
    """The details of ``options.name``: a wiring function, or a network of the zoo.

    Raises:
        ConfigError: there is neither, or the network cannot take images of such a size.
    """
    from visionapps.networks.catalogue import entries

    if "/" not in options.name and options.name not in entries():
        from visionapps.models import WIRINGS  # takes a second, so only for names that may be among them

        if options.name in WIRINGS:
            from visionapps.cli.models import refuse_options

            refuse_options(options, f"{options.name} is a model, not a network", ("all", "size", "bands", "json"))
            return _describe_model(WIRINGS[options.name])
        if close := difflib.get_close_matches(options.name, WIRINGS, n=1):
            _require_network(options.name, f"; or the model {close[0]}?")
    facts = _facts(options)
    return json.dumps(facts, indent=2) if options.json else _text(facts)


def _require_network(name: str, hint: str) -> None:
    """Refuse a name of timm that it does not have, with what else could be meant."""
    from visionapps.backbones.classifiers import classifier_spec, published_frame
    from visionapps.networks.others import UNDEFINED

    try:
        classifier_spec(name)
        published_frame(name)
    except ConfigError as error:
        if any(reason in str(error) for reason in UNDEFINED.values()):  # it says what to take instead
            raise
        raise ConfigError(f"{error}{hint}") from error


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


def _facts(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is known and measured of one network, as plain data."""
    from visionapps.networks.anatomy import BYTES, anatomy
    from visionapps.networks.catalogue import PREFIX, entries, facts
    from visionapps.networks.grouping import grouped

    name, entry = options.name, entries().get(options.name)
    network, bands = _network(name, options.bands, options.size)
    native = (entry.native if entry else None) or network.native
    side = options.size or native
    try:
        found = anatomy(network, (bands, side, side))
    except ConfigError as error:
        if side == native:
            raise
        raise ConfigError(f"{name}, --size {side}: {error}; its native size is {native}") from error
    measured = facts().get(name)
    about = {key: value for key, value in dataclasses.asdict(entry).items() if value} if entry else {}
    return {
        "name": name,
        **about,
        "image": list(found.shape),
        "parameters": found.parameters,
        "unused_parameters": found.unused,
        "multiply_adds": found.multiply_adds,
        "memory_bytes": BYTES * found.memory,
        "depth": found.depth,
        "depth_with_pooling": found.depth_with_pooling,
        "layers": [_plain(layer) for layer in (found.layers if options.all or options.json else grouped(found.layers))],
        "backbone": _own_backbone(name, measured) if name.startswith(PREFIX) else _library_backbone(name),
        "heads": measured["heads"] if measured else _heads(name),
        "weights": [] if name.startswith(PREFIX) else _weights(name),
    }


def _network(name: str, bands: int | None, size: int | None) -> "tuple[Network, int]":
    """The classifier without memory, and the bands of the image that it is shown."""
    import torch

    from visionapps.networks.catalogue import OWN, PREFIX, own_network

    for option, value in (("size", size), ("bands", bands)):
        if value is not None and value < 1:
            raise ConfigError(f"--{option} {value}: must be at least 1")
    own = name.removeprefix(PREFIX) if name.startswith(PREFIX) else ""
    with torch.device("meta"):
        if own:
            built = own_network(name, **({} if bands is None else {"bands": bands}))
            return built, bands or int(inspect.signature(OWN[own].build).parameters["bands"].default)
        from visionapps.backbones.classifiers import network  # takes a second
        from visionapps.structures import RGB, InputSpec

        bands = bands or 3
        names = RGB if bands == 3 else tuple(f"band {i}" for i in range(bands))
        spec = InputSpec(names, mean=(0.5,) * bands, std=(0.5,) * bands)
        return network(name, num_classes=1000, spec=spec, side=size), bands


def _plain(layer: "Layer") -> dict[str, Any]:
    from visionapps.networks.anatomy import BYTES

    # Networks of timm stand within two others, which are not of interest here.
    name = layer.name.replace("features.body.model.", "").replace("features.body", "").replace("head.body.", "")
    return {
        "name": name,
        "kind": layer.kind,
        "output": list(layer.output),
        "memory_bytes": BYTES * layer.memory,
        "parameters": layer.parameters,
        "multiply_adds": layer.multiply_adds,
        "receptive_field": layer.field,
        "sees_whole_image": bool(layer.trace and layer.trace.whole),
        "stride": None if layer.stride is None else float(layer.stride),
    }


def _own_backbone(name: str, measured: Mapping[str, Any] | None) -> dict[str, Any]:
    if measured is not None:
        return {"levels": measured["levels"], "why_none": measured["why"]}
    from visionapps.backbones import levels_of

    try:
        return {"levels": [list(level) for level in levels_of(name)], "why_none": ""}
    except ConfigError as error:
        return {"levels": [], "why_none": str(error)}


def _library_backbone(name: str) -> dict[str, Any]:
    import torch

    from visionapps.backbones import pyramid

    try:
        with torch.device("meta"):
            backbone = pyramid(name)
    except ConfigError as error:
        return {"levels": [], "why_none": str(error)}
    count = sum(p.numel() for p in backbone.parameters())
    return {"levels": [list(level) for level in backbone.levels], "why_none": "", "parameters": count}


def _heads(name: str) -> list[str]:
    """Which heads stand on a network that was not measured for the catalogue."""
    from visionapps.models.heads import HEADS, refusal

    return [key for key, head in HEADS.items() if refusal(head, name) is None]


def _weights(name: str) -> list[dict[str, str]]:
    """The settings of ``weights`` that a network of a library has."""
    from visionapps.backbones import PACKAGES
    from visionapps.backbones.hub import cached_file, pretrained_card, published_tags
    from visionapps.backbones.weights import default_spec

    architecture = name.partition(".")[0]
    found = []
    if architecture in PACKAGES:
        packaged = PACKAGES[architecture]
        state = "installed" if packaged.locate() else packaged.install
        found.append({"weights": "package", **_normalisation(packaged.spec), "where": state})
    for tag in published_tags(architecture):
        setting = f"hub:{tag}"
        state = "in the local cache" if cached_file(pretrained_card(architecture, tag)) else "to be downloaded"
        found.append({"weights": setting, **_normalisation(default_spec(architecture, setting)), "where": state})
    return found


def _normalisation(spec: "InputSpec") -> dict[str, str]:
    return {"mean": " ".join(f"{m:g}" for m in spec.mean), "std": " ".join(f"{s:g}" for s in spec.std)}


def _text(facts: dict[str, Any]) -> str:
    """The same for people."""
    title = ", ".join(str(facts[key]) for key in ("title", "year", "source") if key in facts)
    lines = [f"{facts['name']}: {title}" if title else facts["name"]]
    if "note" in facts:
        lines.append(f"note: {facts['note']}")
    if "instead" in facts:
        lines.append(f"not what its name promises; the right one is {facts['instead']}")
    return "\n\n".join(("\n".join(lines), _layer_table(facts["layers"]), _totals(facts), *_uses(facts)))


def _layer_table(layers: list[dict[str, Any]]) -> str:
    rows = [
        (
            each["name"] or "(network)",
            each["kind"],
            "x".join(map(str, each["output"])),
            _memory(each["memory_bytes"]),
            f"{each['parameters']:,}".rjust(11),
            _millions(each["multiply_adds"]).rjust(13),
            _seen(each),
            "" if each["stride"] is None else f"{each['stride']:g}",
        )
        for each in layers
    ]
    return render(("layer", "kind", "output", "memory", " parameters", "multiply-adds", "sees px", "stride"), rows)


def _seen(layer: dict[str, Any]) -> str:
    if layer["sees_whole_image"]:
        return "all"
    if layer["receptive_field"] is None:
        return "?"
    rows, cols = layer["receptive_field"]
    return f"{rows}" if rows == cols else f"{rows}x{cols}"


def _totals(facts: dict[str, Any]) -> str:
    bands, height, width = facts["image"]
    lines = [
        f"image {height} x {width}, {bands} bands; outputs are (channels x) rows x columns, memory in single precision",
        f"parameters     {facts['parameters']:,}",
        f"multiply-adds  {facts['multiply_adds']:,}",
        f"memory         {_memory(facts['memory_bytes'])} of one image on its way, itself included",
        f"depth          {facts['depth']} weight layers on the longest path ({facts['depth_with_pooling']} with pools)",
    ]
    if facts["unused_parameters"]:
        lines.insert(2, f"               {facts['unused_parameters']:,} of them are not used outside training")
    return "\n".join(lines)


def _uses(facts: dict[str, Any]) -> list[str]:
    backbone = facts["backbone"]
    parts = []
    if backbone["levels"]:
        count = f": {backbone['parameters'] / 1e6:.2f} million parameters" if "parameters" in backbone else ""
        parts.append(f"as a backbone{count}\n\n{render(('stride', 'channels'), backbone['levels'])}")
    else:
        parts.append(f"no backbone: {backbone['why_none']}")
    parts.append(f"heads: {', '.join(facts['heads']) or 'none'}")
    weights = [tuple(each.values()) for each in facts["weights"]]
    parts.append(
        render(("weights", "mean", "std", "where"), weights) if weights else "No pretrained weights are published."
    )
    return parts


def _memory(count: int) -> str:
    if not count:
        return "-"
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 // 10 else f"{count / 2**10:.1f} KiB"


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M" if count >= 1e5 else f"{count:,}"
