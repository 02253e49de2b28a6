"""The half of `visionapps check` that examines datasets of objects: options, report and comparison."""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionapps.cli.table import render
from visionapps.errors import ConfigError
from visionapps.files import whole_output

if TYPE_CHECKING:
    from visionapps.data.annotations import AnnotationSet
    from visionapps.data.object_dataset import ObjectDataset
    from visionapps.data.object_doctor import ObjectExamination

FORMS = ("auto", "coco", "voc", "yolo", "csv")
READING = ("form", "origin", "inclusive", "no_masks", "leave_out", "ignore")  # the options of add_reading


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options that only datasets of objects have."""
    group = parser.add_argument_group("objects (with --annotations instead of --masks)")
    group.add_argument("--annotations", type=Path, metavar="PATH", help="COCO file, or folder of VOC or YOLO, or CSV")
    add_reading(group)
    group.add_argument("--quick", action="store_true", help="read headers of photos only: truncated ones are not found")
    group.add_argument("--against", type=Path, metavar="PATH", help="compare with other annotations of the same photos")
    group.add_argument("--against-form", choices=FORMS, default="auto", help="of those (auto)")


def add_reading(group: "argparse._ArgumentGroup") -> None:
    """The options that say how annotation files are read; shared with convert."""
    group.add_argument("--form", choices=FORMS, default="auto", help="of the annotations (auto: by what is there)")
    group.add_argument("--origin", type=float, metavar="N", help="number of the first pixel (1 in VOC, else 0)")
    group.add_argument(
        "--inclusive",
        choices=("true", "false"),
        help="x1 y1 are the last pixels inside a box (true in VOC with origin 1, else false)",
    )
    group.add_argument("--no-masks", action="store_true", help="leave polygons and run lengths aside")
    group.add_argument("--leave-out", nargs="+", metavar="CLASS", help="classes of the files to leave out")
    group.add_argument("--ignore", nargs="+", metavar="CLASS", help="classes whose objects need not be found")


def reading_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Settings of a dataset from the options of ``add_reading``."""
    settings: dict[str, Any] = {"annotations": str(options.annotations)}
    if options.form != "auto":
        settings["form"] = options.form
    if options.origin is not None:
        settings["origin"] = options.origin
    if options.inclusive is not None:
        settings["inclusive"] = options.inclusive == "true"
    if options.no_masks:
        settings["masks"] = False
    for name in ("leave_out", "ignore"):
        given = getattr(options, name)
        if given:
            settings[name] = [int(word) if word.isdigit() else word for word in given]
    return settings


def build(settings: Mapping[str, Any], where: str) -> "ObjectDataset":
    """A dataset of objects from plain data.

    Raises:
        ConfigError: a key that no setting has, a value of the wrong type, or settings that contradict each other.
    """
    from visionapps.cli.check import parse_settings, refuse_strange_classes, refuse_unknown
    from visionapps.data.dataset import Split
    from visionapps.data.object_dataset import ObjectClass, ObjectDataset, ObjectPolicies

    refuse_unknown(settings, ObjectDataset, where)
    for key, kind in (("split", Split), ("policies", ObjectPolicies)):
        if isinstance(settings.get(key), Mapping):
            refuse_unknown(settings[key], kind, f"{where}.{key}")
    refuse_strange_classes(settings.get("classes"), ObjectClass, where)
    dataset: ObjectDataset = parse_settings(settings, ObjectDataset, where)
    return dataset


def examine(dataset: "ObjectDataset", options: argparse.Namespace) -> int:
    """Examine, print, and say by the exit code whether training may begin."""
    from visionapps.cli.check import rehearsed
    from visionapps.data.object_doctor import examine_objects

    found = examine_objects(dataset, progress=True, pixels=not options.quick)
    if options.config and found.train and not options.quick:
        found = replace(found, problems=(*found.problems, *rehearsed(options.config, found)))
    parts = list(_report(dataset, found, options.all))
    if options.against is not None:
        parts.append("\n".join(_compared(dataset, options.against, options.against_form)))
    print("\n\n".join(parts))
    if options.json is not None:
        with whole_output(options.json, options.overwrite) as path:
            path.write_text(json.dumps(found.to_dict(), indent=1) + "\n")
    return 1 if found.errors else 0


def _compared(dataset: "ObjectDataset", path: Path, form: Any) -> list[str]:
    from visionapps.data.annotations import read_annotations
    from visionapps.data.object_compare import compare, in_words

    other = replace(dataset, annotations=str(path), form=form, origin=None, inclusive=None, leave_out=(), ignore=())
    sets: list[AnnotationSet] = [read_annotations(each) for each in (dataset, other)]
    found = compare(sets[0], sets[1], (dataset, other))
    return in_words(found, (str(dataset.annotations), str(path)))


def _report(dataset: "ObjectDataset", found: "ObjectExamination", everything: bool) -> Iterable[str]:
    from visionapps.cli.check import problem_lines, problem_table

    photos = len(found.train) + len(found.val)
    head = f"{dataset.annotations} ({found.form}) of {dataset.images}: {photos} usable photos"
    yield head + (f", {found.bands} bands of {found.dtype}" if photos else "")
    if found.problems:
        yield problem_table(found)
        yield "\n".join(problem_lines(found.problems, everything))
    if found.tally:
        rows = [(*key, count) for key, count in sorted(found.tally.items())]
        yield render(("objects met", "outcome", "class", "objects"), rows)
    if photos:
        facts = found.to_dict()["splits"]
        yield _class_table(found, facts)
        yield _split_table(facts)
    if found.errors:
        yield f"{len(found.errors)} of {len(found.problems)} problems forbid training; mend them, or set policies."
    else:
        yield "Nothing forbids training."


def _class_table(found: "ObjectExamination", facts: Mapping[str, Any]) -> str:
    rows = []
    for name, number in zip(found.labels.names, found.category_ids, strict=True):
        both = [facts[side] for side in ("train", "val")]
        counts = [side[what][name] for what in ("class_objects", "class_photos") for side in both]
        rows.append((name, str(number), *counts))
    return render(("class", "id", "train objects", "val objects", "train photos", "val photos"), rows)


def _split_table(facts: Mapping[str, Any]) -> str:
    header = (
        "split",
        "photos",
        "empty",
        "objects",
        "ignored",
        "per photo",
        "most",
        "small",
        "medium",
        "large",
        "groups",
        "",
    )
    rows = []
    for name in ("train", "val"):
        side = facts[name]
        count = len(side["photos"])
        groups: Sequence[str] = side["groups"]
        listed = ", ".join(groups[:6]) + (", ..." if len(groups) > 6 else "")
        mean = side["objects"] / count if count else 0.0
        sizes = [side["sizes"][size] for size in ("small", "medium", "large")]
        cells = (name, count, side["empty_photos"], side["objects"], side["ignored_objects"], f"{mean:5.1f}")
        rows.append((*cells, side["most_objects"], *sizes, len(groups), listed))
    return render(header, rows)


def require_annotations(options: argparse.Namespace) -> None:
    """Refuse options of objects without objects."""
    for name in ("against", *READING):
        if _is_given(options, name) and options.annotations is None and options.config is None:
            raise ConfigError(f"--{name.replace('_', '-')}: goes with --annotations; give them")


def refuse_beside_config(options: argparse.Namespace, names: Sequence[str]) -> None:
    """Refuse options that a config would silently overrule, for it says the same of its dataset."""
    for name in names:
        if options.config is not None and _is_given(options, name):
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{option}: {options.config} says that of its dataset; write it there, or leave {option} out"
            )


def _is_given(options: argparse.Namespace, name: str) -> bool:
    value = getattr(options, name, None)
    return value is not None and value is not False and value not in ([], "auto")
