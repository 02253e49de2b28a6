"""The half of `visionapps check` that examines datasets of photos with one class each: options and report."""

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionapps.cli.table import render
from visionapps.errors import ConfigError
from visionapps.files import whole_output

if TYPE_CHECKING:
    from visionapps.data.class_dataset import ClassDataset
    from visionapps.data.class_doctor import ClassExamination

_ROWS = 60  # classes listed; of more the smallest


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options that only datasets of classes have."""
    group = parser.add_argument_group("photos with one class each (--train)")
    group.add_argument("--val", type=Path, metavar="PATH", help="the same for validation (a part of --train)")


def add_train(group: "argparse._MutuallyExclusiveGroup") -> None:
    """The option that names such a dataset, among those that name others."""
    group.add_argument(
        "--train", type=Path, metavar="PATH", help="folder of a folder per class, CSV list (image,class), or CIFAR"
    )


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """The options as the plain data of a dataset; what was not given is left to its default."""
    from visionapps.cli.check import read_yaml, split_policies

    split = ("group", "val_fraction", "val_groups", "seed")
    settings: dict[str, Any] = {"train": str(options.train), "policies": split_policies(options.policy)}
    settings["split"] = {name: getattr(options, name) for name in split if getattr(options, name) is not None}
    if options.val is not None:
        settings["val"] = str(options.val)
    if options.classes is not None:
        table = read_yaml(options.classes)
        settings["classes"] = table["classes"] if isinstance(table, Mapping) else table
    if options.bands:
        settings["bands"] = [int(b) if b.isdigit() else b for b in options.bands]
    for name in ("cache", "cache_gb"):
        if getattr(options, name) is not None:
            settings[name] = getattr(options, name)
    return settings


def build(settings: Mapping[str, Any], where: str) -> "ClassDataset":
    """A dataset of classes from plain data.

    Raises:
        ConfigError: a key that no setting has, a value of the wrong type, or settings that contradict each other.
    """
    from visionapps.cli.check import parse_settings, refuse_unknown
    from visionapps.data.class_dataset import ClassDataset, ClassPolicies
    from visionapps.data.dataset import Split

    refuse_unknown(settings, ClassDataset, where)
    for key, kind in (("split", Split), ("policies", ClassPolicies)):
        if isinstance(settings.get(key), Mapping):
            refuse_unknown(settings[key], kind, f"{where}.{key}")
    dataset: ClassDataset = parse_settings(settings, ClassDataset, where)
    return dataset


def examine(dataset: "ClassDataset", options: argparse.Namespace) -> int:
    """Examine, print, and say by the exit code whether training may begin."""
    from visionapps.cli.check import rehearsed
    from visionapps.data.class_doctor import examine_classes

    found = examine_classes(dataset, progress=True)
    if options.config and found.train and not found.errors:
        found = replace(found, problems=(*found.problems, *rehearsed(options.config, found)))
    print("\n\n".join(_report(found, options.all)))
    if options.json is not None:
        with whole_output(options.json, options.overwrite) as path:
            path.write_text(json.dumps(found.to_dict(), indent=1) + "\n")
    return 1 if found.errors else 0


def _report(found: "ClassExamination", everything: bool) -> Iterable[str]:
    from visionapps.cli.check import problem_lines, problem_table

    photos = (*found.train, *found.val)
    head = f"{found.source}: {len(photos)} usable photos of {len(found.labels)} classes"
    yield head + (f", {found.bands} bands of {found.dtype}" if photos else "")
    if found.problems:
        yield problem_table(found)
        yield "\n".join(problem_lines(found.problems, everything))
    if photos:
        yield _class_table(found, everything)
        yield _split_table(found)
    if found.errors:
        yield f"{len(found.errors)} of {len(found.problems)} problems forbid training; mend them, or set policies."
    else:
        yield "Nothing forbids training."


def _class_table(found: "ClassExamination", everything: bool) -> str:
    ours, theirs = found.class_photos("train"), found.class_photos("val")
    rows = list(zip(found.labels.names, ours, theirs, strict=True))
    rest = ""
    if len(rows) > _ROWS and not everything:
        rows = sorted(rows, key=lambda row: row[1])[:_ROWS]
        rest = f"\nthe {_ROWS} smallest of {len(found.labels)} classes; --all shows them"
    return render(("class", "train photos", "val photos"), rows) + rest


def _split_table(found: "ClassExamination") -> str:
    rows = []
    for name, photos in (("train", found.train), ("val", found.val)):
        sizes = sorted({p.size for p in photos}, key=lambda size: size[0] * size[1])
        shown = " to ".join(f"{h} x {w}" for h, w in (sizes[:1] + sizes[-1:] if len(sizes) > 1 else sizes))
        rows.append((name, len(photos), shown, len({p.group for p in photos})))
    return render(("split", "photos", "sizes (H x W)", "groups"), rows)


def require_train(options: argparse.Namespace) -> None:
    """Refuse options that belong to other kinds of datasets, or to this one without its photos."""
    if options.val is not None and options.train is None:
        raise ConfigError("--val: goes with --train; give that, too")
    for name in ("masks", "annotations", "void_ids", "void_colors", "resize", "block_px", "block_m"):
        if options.train is not None and getattr(options, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')}: photos with one class have none; leave it out, or --train")
