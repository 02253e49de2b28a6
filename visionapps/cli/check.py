"""Examine a dataset and a run before any training, and report everything at once.

Datasets have masks (--masks), objects (--annotations: COCO, VOC, YOLO, CSV), or photos with one class each (--train).
With --config the run is built as well, its weights are loaded, and one step is taken on two crops. Exit code 1 if
something forbids training.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionapps.cli.table import render
from visionapps.errors import ConfigError
from visionapps.files import refuse_existing, whole_output

if TYPE_CHECKING:
    from visionapps.data.class_dataset import ClassDataset
    from visionapps.data.class_doctor import ClassExamination
    from visionapps.data.dataset import Dataset, Problem
    from visionapps.data.doctor import Examination
    from visionapps.data.object_dataset import ObjectDataset
    from visionapps.data.object_doctor import ObjectExamination
    from visionapps.data.store import Photo

_SHOWN = 3  # problems per kind on the terminal
_SPLIT = ("group", "block_px", "block_m", "val_fraction", "val_groups", "seed")
_PLAIN = ("mask_suffix", "void_ids", "void_colors", "resize", "cache", "cache_gb")
_OF_DATASETS = ("masks", "annotations", "classes", "bands", "policy", *_PLAIN, *_SPLIT)  # which a config has


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from visionapps.cli import check_classes, check_objects

    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", type=Path, metavar="YAML", help="the file of a run; its data.dataset is examined")
    check_classes.add_train(what)
    what.add_argument("--images", type=Path, metavar="DIR", help="folder of photos; then also --masks or --annotations")
    parser.add_argument("--masks", type=Path, metavar="DIR", help="folder of masks with the same names")
    parser.add_argument("--mask-suffix", metavar="TEXT", help="what mask names have more than image names: _mask")
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="YAML",
        help="list of names, or of {name, ids, color} or, for objects, {name, ids, names, ignore}",
    )
    parser.add_argument("--void-ids", type=int, nargs="+", metavar="N", help="mask values that count nowhere")
    parser.add_argument("--void-colors", nargs="+", metavar="#RRGGBB", help="mask colours that count nowhere")
    parser.add_argument("--bands", nargs="+", metavar="BAND", help="bands by 1-based number or name")
    parser.add_argument("--resize", type=int, nargs=2, metavar=("H", "W"), help="size that photos are stored in")
    split = parser.add_argument_group("split")
    split.add_argument("--group", metavar="REGEX", help="searched in photo names: what it finds names the group")
    split.add_argument("--block-px", type=int, metavar="N", help="cut photos into blocks; each is a group")
    split.add_argument("--block-m", type=float, metavar="M", help="one group per square of the map, in metres")
    split.add_argument("--val-fraction", type=float, metavar="F", help="share of pixels that validate (0.2)")
    split.add_argument("--val-groups", nargs="+", metavar="NAME", help="groups that validate, instead of a draw")
    split.add_argument("--seed", type=int, metavar="N", help="of the draw (0)")
    parser.add_argument(
        "--policy", nargs="+", default=[], metavar="KIND=WHAT", help="what to do about a kind: soft_mask=fix"
    )
    parser.add_argument("--cache", metavar="DIR", help="where decoded photos are kept")
    parser.add_argument("--cache-gb", type=float, metavar="GB", help="most that the cache may hold (32)")
    parser.add_argument("--all", action="store_true", help=f"show every problem, not the first {_SHOWN} of a kind")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole report there as well")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing FILE")
    check_objects.configure(parser)
    check_classes.configure(parser)


def run(options: argparse.Namespace) -> int:
    """Examine, print, and say by the exit code whether training may begin."""
    from dataclasses import replace

    from visionapps.cli import check_classes, check_objects
    from visionapps.cli.check_balance import balance_report
    from visionapps.data.class_dataset import ClassDataset
    from visionapps.data.dataset import Dataset
    from visionapps.data.doctor import examine

    if options.json is not None:
        refuse_existing(options.json, options.overwrite)
    check_objects.require_annotations(options)
    check_objects.refuse_beside_config(options, (*_OF_DATASETS, *check_objects.READING))
    check_classes.require_train(options)
    dataset = read_dataset(options.config) if options.config else _from_options(options)
    if isinstance(dataset, ClassDataset):
        return check_classes.examine(dataset, options)
    if not isinstance(dataset, Dataset):
        return check_objects.examine(dataset, options)
    found = examine(dataset, progress=True)
    if options.config and found.train:
        found = replace(found, problems=(*found.problems, *rehearsed(options.config, found)))
    print("\n\n".join(_report(dataset, found, options.all)))
    if options.json is not None:
        with whole_output(options.json, options.overwrite) as path:
            path.write_text(json.dumps(found.to_dict() | balance_report(found), indent=1) + "\n")
    return 1 if found.errors else 0


def rehearsed(config: Path, found: "Examination | ObjectExamination | ClassExamination") -> "Sequence[Problem]":
    """Problems of a run that show when its model takes a step; none where the config has no model."""
    if "model" not in read_yaml(config):  # a dataset only
        return ()
    from visionapps.training.rehearsal import rehearse

    return rehearse(config, found)


def read_dataset(config: Path) -> "Dataset | ObjectDataset | ClassDataset":
    """The dataset of a run's YAML file, from data.dataset or data.init_args.dataset: of objects if it has annotations,
    of classes if it has train.

    Raises:
        ConfigError: no such file, no YAML, no dataset in it, or a key or value that does not fit.
    """
    from visionapps.cli import check_classes, check_objects

    content = read_yaml(config)
    data = content.get("data") if isinstance(content, Mapping) else None
    place = "data"
    if isinstance(data, Mapping) and "init_args" in data:
        data, place = data["init_args"], "data.init_args"
    if not isinstance(data, Mapping) or not isinstance(data.get("dataset"), Mapping):
        there = ", ".join(map(str, data)) if isinstance(data, Mapping) else "nothing"
        raise ConfigError(f"{config}: no dataset under {place}, only {there}; write the dataset at {place}.dataset")
    settings, where = data["dataset"], f"{config}: {place}.dataset"
    if "train" in settings:
        return check_classes.build(settings, where)
    return check_objects.build(settings, where) if "annotations" in settings else build_dataset(settings, where)


def build_dataset(settings: Mapping[str, Any], where: str) -> "Dataset":
    """A dataset from plain data.

    Args:
        settings: as in YAML.
        where: names their place in messages.

    Raises:
        ConfigError: a key that no setting has, a value of the wrong type, or settings that contradict each other.
    """
    from visionapps.data.dataset import Dataset, Policies, Split
    from visionapps.data.labels import ClassDef

    refuse_unknown(settings, Dataset, where)
    for key, kind in (("split", Split), ("policies", Policies)):
        if isinstance(settings.get(key), Mapping):
            refuse_unknown(settings[key], kind, f"{where}.{key}")
    refuse_strange_classes(settings.get("classes"), ClassDef, where)
    if not isinstance(settings.get("extra"), list | tuple | None):
        raise ConfigError(f"{where}: extra is a list; write - {{images: ..., masks: ...}}")
    dataset: Dataset = parse_settings(settings, Dataset, where)
    return dataset


def parse_settings(settings: Mapping[str, Any], kind: type, where: str) -> Any:
    """An instance of a dataclass from plain data.

    Raises:
        ConfigError: a value of the wrong type, or settings that contradict each other.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--dataset", type=kind)
    try:
        return parser.instantiate(parser.parse_object({"dataset": dict(settings)})).dataset
    except ArgumentError as error:
        text = " ".join(str(error).split()).replace('Parser key "dataset.', f'{where}, key "')
        raise ConfigError(text if where in text else f"{where}: {text}") from error


def refuse_unknown(settings: Mapping[str, Any], kind: type, where: str) -> None:
    """Raise ConfigError for a key that is no field of a dataclass, with the nearest that is."""
    import dataclasses
    import difflib

    known = [field.name for field in dataclasses.fields(kind)]
    for key in settings:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            raise ConfigError(f"{where}: there is no setting {key!r}; {hint}")


def refuse_strange_classes(table: Any, kind: type, where: str) -> None:
    """Raise ConfigError for a class table that is no list of names or of mappings with the fields of a dataclass."""
    import dataclasses

    keys = f"{{{', '.join(field.name for field in dataclasses.fields(kind))}}}"
    if table is not None and not isinstance(table, list | tuple):
        raise ConfigError(f"{where}: classes: is {table!r}, but a list of names or of {keys} is expected")
    for i, entry in enumerate(table or (), 1):
        if isinstance(entry, Mapping):
            refuse_unknown(entry, kind, f"{where}.classes")
            if "name" not in entry:
                raise ConfigError(f"{where}: classes: entry {i} has no name; write {keys}")
        elif not isinstance(entry, str | kind):
            raise ConfigError(
                f"{where}: classes: entry {i} is {entry!r}, but a name or a mapping {keys} is expected; put names that "
                "look like numbers or switches in quotes"
            )


def read_yaml(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no valid YAML ({error})") from error


def _from_options(options: argparse.Namespace) -> "Dataset | ObjectDataset | ClassDataset":
    from visionapps.cli import check_classes, check_objects

    if options.train is not None:
        return check_classes.build(check_classes.settings_of(options), "options")
    if options.annotations is None:
        return build_dataset(_settings(options), "options")
    for name in ("masks", "mask_suffix", "void_ids", "void_colors", "resize", "block_px"):
        if getattr(options, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')}: is for datasets with masks; leave it out, or --annotations")
    return check_objects.build(
        _settings(options) | check_objects.reading_settings(options), str(options.classes or "options")
    )


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The options as the plain data of a dataset; what was not given is left to its default."""
    if options.classes is None and options.annotations is None:
        raise ConfigError("--classes: give the class table, a YAML list of names or of {name, ids, color}")
    settings = read_settings(options.classes)
    settings["images"] = str(options.images)
    if options.annotations is None:
        settings["masks"] = None if options.masks is None else str(options.masks)
    bands = options.bands and listed_bands(options.bands)
    given = {name: getattr(options, name) for name in _PLAIN} | {"bands": bands}
    settings |= {name: value for name, value in given.items() if value is not None}
    chosen = {name: getattr(options, name) for name in _SPLIT if getattr(options, name) is not None}
    return merged(merged(settings, "split", chosen), "policies", split_policies(options.policy))


def read_settings(table: Path | None) -> dict[str, Any]:
    """What the file of --classes says about a dataset: its class table, or a mapping with more; None: nothing."""
    content = {} if table is None else read_yaml(table)
    return dict(content) if isinstance(content, Mapping) else {"classes": content}


def merged(settings: Mapping[str, Any], key: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of which the part under a key is overruled, where options say something about it."""
    part = settings.get(key)
    if not given:
        return dict(settings)
    return {**settings, key: {**part, **given} if isinstance(part, Mapping) else dict(given)}


def listed_bands(words: Sequence[str]) -> list[int | str]:
    """Bands as options say them: numbers from 1, or names."""
    return [int(word) if word.isdigit() else word for word in words]


def split_policies(given: Sequence[str]) -> dict[str, str]:
    """KIND=WHAT, as options say it, as a mapping."""
    policies = {}
    for policy in given:
        kind, equals, what = policy.partition("=")
        if not equals:
            raise ConfigError(f"--policy: {policy!r} is not KIND=WHAT, such as soft_mask=fix")
        policies[kind] = what
    return policies


def _report(dataset: "Dataset", found: "Examination", everything: bool) -> Iterable[str]:
    from visionapps.cli.check_balance import weight_table

    photos = (*found.train, *found.val)
    usable = len({p.source for p in photos})
    yield f"{dataset.images}: {usable} usable photos" + (f", {found.bands} bands of {found.dtype}" if usable else "")
    if found.problems:
        yield problem_table(found)
        yield "\n".join(problem_lines(found.problems, everything))
    if dataset.masks is not None and photos:
        yield _class_table(found)
        yield from weight_table(found)
    if photos:
        yield _split_table(found)
    if found.errors:
        yield f"{len(found.errors)} of {len(found.problems)} problems forbid training; mend them, or set policies."
    else:
        yield "Nothing forbids training."


def problem_table(found: "Examination | ObjectExamination | ClassExamination") -> str:
    """How many problems there are of each kind and outcome."""
    rows = [(kind, action, count) for (kind, action), count in sorted(found.counts.items(), key=lambda item: -item[1])]
    return render(("problem", "outcome", "count"), rows)


def problem_lines(problems: "Sequence[Problem]", everything: bool) -> Iterable[str]:
    """The problems in words: all, or the first of each kind."""
    for kind, action in dict.fromkeys((p.kind, p.action) for p in problems):
        same = [p for p in problems if (p.kind, p.action) == (kind, action)]
        shown = same if everything else same[:_SHOWN]
        yield from (f"{action}: {p.message}" for p in shown)
        if len(shown) < len(same):
            yield f"{action}: ... and {len(same) - len(shown)} more {kind}; --all shows them"


def _class_table(found: "Examination") -> str:
    train, val = found.class_pixels["train"], found.class_pixels["val"]
    rows = [
        (
            name,
            ", ".join(map(str, found.coding.ids[k])),
            f"{_share(train[k], sum(train))}",
            f"{_share(val[k], sum(val))}",
            sum(p.class_pixels[k] > 0 for p in found.train),
            sum(p.class_pixels[k] > 0 for p in found.val),
        )
        for k, name in enumerate(found.coding.labels.names)
    ]
    return render(("class", "ids", "of train", "of val", "train photos", "val photos"), rows)


def _split_table(found: "Examination") -> str:
    rows: list[tuple[object, ...]] = []
    for name, photos in (("train", found.train), ("val", found.val)):
        area = sum(p.size[0] * p.size[1] for p in photos)
        labelled = sum(sum(p.class_pixels) for p in photos)
        groups = sorted({p.group for p in photos})
        listed = ", ".join(groups[:6]) + (", ..." if len(groups) > 6 else "")
        row = (name, len(photos), area / 1e6, _share(labelled, area), _sizes(photos), len(groups), listed)
        rows.append(row)
    drawn = sum(p.size[0] * p.size[1] * p.weight for p in found.learned)
    for name, photos in found.sources().items():
        area = sum(p.size[0] * p.size[1] for p in photos)
        labelled = sum(sum(p.class_pixels) for p in photos)
        kind = "soft labels" if photos[0].soft else "masks"
        said = f"{kind} of {name}, {area * photos[0].weight / drawn:.0%} of evenly drawn crops"
        rows.append(("extra", len(photos), area / 1e6, _share(labelled, area), _sizes(photos), None, said))
    return render(("split", "photos", "megapixels", "labelled", "sizes (H x W)", "groups", ""), rows)


def _sizes(photos: Sequence["Photo"]) -> str:
    sizes = sorted({p.size for p in photos}, key=lambda size: size[0] * size[1])
    return " to ".join(f"{h} x {w}" for h, w in (sizes[:1] + sizes[-1:] if len(sizes) > 1 else sizes))


def _share(part: int, whole: int) -> str:
    return f"{part / whole:7.2%}" if whole else "      -"
