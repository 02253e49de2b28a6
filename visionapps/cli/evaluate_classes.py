"""What ``evaluate`` does with a classifier: how often its first answers are right, class by class.

visionapps evaluate BUNDLE --config run.yaml --split val    the photos of a run
visionapps evaluate BUNDLE --classes-of PATH                a folder of a folder per class, a CSV list, or CIFAR
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from visionapps.cli.table import class_table
from visionapps.errors import ConfigError
from visionapps.files import refuse_existing, whole_output

if TYPE_CHECKING:
    from visionapps.data.class_dataset import ClassDataset, ClassPhoto
    from visionapps.inference.bundle import Bundle

# What evaluate asks about classifiers; all its other options are those of maps and boxes.
_PHOTOS = {"bundle", "config", "split", "classes_of", "bands", "json", "pictures", "overwrite"}
_LOOKS = {"dense", "crops", "scales", "member", "batch", "device", "precision"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options that only classifiers have."""
    from visionapps.cli import evaluate_testing

    group = parser.add_argument_group("classifiers")
    group.add_argument(
        "--classes-of", type=Path, metavar="PATH", help="folder of a folder per class, CSV list (image,class), or CIFAR"
    )
    group.add_argument("--pictures", type=Path, metavar="DIR", help="draw confusion and worst photos there")
    evaluate_testing.add_options(parser)
    parser.set_defaults(parser=parser)


def wanted(options: argparse.Namespace) -> bool:
    """Whether a classifier is to be evaluated."""
    from visionapps.cli import evaluate_testing
    from visionapps.inference.bundle import purpose_of

    classifies = options.bundle is not None and purpose_of(options.bundle) == "classification"
    if options.classes_of is not None and not classifies:
        raise ConfigError("--classes-of: needs the bundle of a classifier; see --help")
    looks = evaluate_testing.given(options)
    if looks and not classifies:
        raise ConfigError(f"{', '.join(looks)}: say how a classifier looks at photos; give the bundle of one")
    return classifies


def run(options: argparse.Namespace) -> int:
    """Evaluate, and print the table."""
    _refuse_other_options(options)
    if options.json is not None:
        refuse_existing(options.json, options.overwrite)
    if options.pictures is not None:
        refuse_existing(options.pictures, options.overwrite)
    from visionapps.cli import evaluate_testing
    from visionapps.inference.bundle import load
    from visionapps.training.class_report import draw_class_evaluation, judge_photos

    bundle = load(options.bundle)
    tester = evaluate_testing.make_tester(bundle, options)
    photos = photos_of(options, tester.bundles)
    scores, answers = judge_photos([bundle], photos, predictor=tester)
    print(f"{class_table(bundle.labels, scores)}\n\n{evaluate_testing.costs(tester)}")
    if options.json is not None:
        with whole_output(options.json, options.overwrite) as path:
            summary = scores.to_dict(bundle.labels.names) | {"testing": evaluate_testing.summary(tester)}
            path.write_text(json.dumps(summary, indent=1) + "\n")
    if options.pictures is not None:
        with whole_output(options.pictures, options.overwrite) as folder:
            folder.mkdir()
            draw_class_evaluation(scores, answers, bundle, folder)
    return 0


def _refuse_other_options(options: argparse.Namespace) -> None:
    """Raise ConfigError for options that a classifier has no use for."""
    own = (_PHOTOS | _LOOKS) - ({"split"} if options.classes_of is not None else set())
    default = options.parser.get_default
    given = [name for name, value in vars(options).items() if name not in own and value != default(name)]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(
            f"{names}: the bundle holds a classifier, whose photos stand in --config YAML (with --split) or "
            "--classes-of PATH; leave that out"
        )


def photos_of(options: argparse.Namespace, bundles: "Sequence[Bundle]") -> "tuple[ClassPhoto, ...]":
    """The photos to judge, their labels those of the first bundle, no smaller than the bundles look at them.

    Raises:
        ConfigError: it is not said which, the dataset has other classes, or its photos are kept too small.
        DataError: the dataset cannot be used as it is.
    """
    from visionapps.cli import evaluate_testing
    from visionapps.data.class_doctor import examine_classes
    from visionapps.inference.classifying import frame_of

    if (options.config is None) == (options.classes_of is None):
        raise ConfigError(
            "evaluate BUNDLE: give either --config YAML or --classes-of PATH for a classifier; see --help"
        )
    bundle = bundles[0]
    side = max(evaluate_testing.scales(options) or [min(frame_of(each).size(1, 1)) for each in bundles])
    dataset = _dataset(options, bundle, side)
    dataset.require_px(side, "--scales" if options.scales else str(options.bundle))
    found = examine_classes(dataset, progress=True)
    found.raise_on_errors()
    if found.labels.names != bundle.labels.names:
        raise ConfigError(
            f"{options.bundle}: knows the classes {_some(bundle.labels.names)}, but the dataset has "
            f"{_some(found.labels.names)}; evaluate on data of the same classes in the same order (dataset.classes)"
        )
    if options.config is None:
        return (*found.train, *found.val)
    photos = {"val": found.val, "train": found.train, "all": (*found.train, *found.val)}[options.split]
    if not photos:
        raise ConfigError(f"{options.config}: the split {options.split} has no photo; choose another --split")
    return photos


def _dataset(options: argparse.Namespace, bundle: "Bundle", side: int) -> "ClassDataset":
    """The photos that the options name; those of --classes-of are kept large enough for a shorter side of ``side``."""
    from visionapps.cli.check import read_dataset
    from visionapps.data.class_dataset import ClassDataset, ClassPolicies
    from visionapps.data.dataset import Split

    if options.config is not None:
        dataset = read_dataset(options.config)
        if not isinstance(dataset, ClassDataset):
            raise ConfigError(f"{options.config}: its dataset has no classes of photos, which the bundle names")
        return replace(dataset, bands=tuple(_bands(options)) or dataset.bands)
    # All photos are judged: nothing is divided, and what only training minds is left aside.
    lenient = ClassPolicies(
        empty_class="warn",
        duplicate="warn",
        contested="warn",
        bands="fix",
        near_duplicate="warn",
        one_sided_class="warn",
    )
    plain = ClassDataset(
        str(options.classes_of), classes=bundle.labels.names, split=Split(val_fraction=0.0), policies=lenient
    )
    return replace(plain, bands=tuple(_bands(options)) or None, keep_px=max(plain.keep_px or 0, side))


def _bands(options: argparse.Namespace) -> list[int | str]:
    from visionapps.cli.compute import listed

    return [int(b) if b.isdigit() else b for b in listed(options.bands)]


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f", ... ({len(names)})" if len(names) > 5 else "")
