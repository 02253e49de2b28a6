"""Per-class Dice, IoU, precision and recall of maps; COCO and VOC scores of detections; right answers of classifiers.

visionapps evaluate BUNDLE --images DIR --masks DIR         every image, at its own size
visionapps evaluate BUNDLE --config run.yaml --split val    the photos of a run, as training saw them
visionapps evaluate --pred DIR --masks DIR --classes FILE   masks that predict wrote, against true ones
visionapps evaluate BUNDLE --images DIR --annotations PATH  a detector on annotated images
visionapps evaluate BUNDLE --classes-of PATH                a classifier on a folder of a folder per class
visionapps evaluate --pred PATH --annotations PATH          files of detections: COCO, VOC, YOLO, CSV
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from visionapps.cli.table import score_table
from visionapps.errors import ConfigError
from visionapps.files import refuse_existing, whole_output

if TYPE_CHECKING:
    from visionapps.data.dataset import Dataset
    from visionapps.data.labels import Unknown
    from visionapps.inference.bundle import Bundle
    from visionapps.metrics.confusion import Scores

T = TypeVar("T")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from visionapps.cli import evaluate_classes, evaluate_objects
    from visionapps.cli.compute import add_compute_options, add_input_options, add_rules_option

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "bundle", type=Path, nargs="?", help="folder written by `visionapps export`, or an ensemble's .yaml"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of photos or rasters")
    parser.add_argument(
        "--pred", type=Path, metavar="PATH", help="what predict wrote: folder of index masks, or detections"
    )
    parser.add_argument("--masks", type=Path, metavar="DIR", help="folder of true masks with the same names")
    parser.add_argument("--mask-suffix", default="", metavar="TEXT", help="what mask names have more than image names")
    parser.add_argument("--config", type=Path, metavar="YAML", help="the file of a run: its classes and photos")
    parser.add_argument("--split", choices=("val", "train", "all"), default="val", help="of --config (val)")
    parser.add_argument(
        "--classes", type=Path, metavar="YAML", help="class table of the true masks (the bundle's: value = label)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there as well")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing FILE")
    add_rules_option(parser)
    evaluate_objects.configure(parser)
    evaluate_classes.configure(parser)
    add_compute_options(parser)
    add_input_options(parser)


def run(options: argparse.Namespace) -> int:
    """Evaluate, and print the table."""
    from visionapps.cli import evaluate_classes, evaluate_objects
    from visionapps.cli.compute import take_ensemble

    take_ensemble(options)
    if evaluate_classes.wanted(options):
        return evaluate_classes.run(options)
    if evaluate_objects.wanted(options):
        return evaluate_objects.run(options)
    if options.json is not None:
        refuse_existing(options.json, options.overwrite)
    names, scores, files = _of_bundle(options) if options.bundle else _of_masks(options)
    print(score_table(names, scores))
    print(f"\nmean Dice {scores.mean_dice:.3f}, mean IoU {scores.mean_iou:.3f}, accuracy {scores.accuracy:.3f}", end="")
    print(f" over {files} images and {sum(scores.support):,} labelled pixels")
    if options.json is not None:
        with whole_output(options.json, options.overwrite) as path:
            path.write_text(json.dumps({"images": files} | scores.to_dict(names), indent=1) + "\n")
    return 0


def _of_bundle(options: argparse.Namespace) -> "tuple[Sequence[str], Scores, int]":
    by_folder = options.images is not None and options.masks is not None
    if options.pred or by_folder == (options.config is not None):
        raise ConfigError("evaluate BUNDLE: give either --images DIR and --masks DIR, or --config YAML; see --help")
    from visionapps.runtime import keep_freed_memory

    keep_freed_memory()  # before the first tensor
    from visionapps.inference.bundle import load

    bundle = load(options.bundle)
    scores, files = _of_folders(bundle, options) if by_folder else _of_run(bundle, options)
    return bundle.labels.names, scores, files


def _of_folders(bundle: "Bundle", options: argparse.Namespace) -> "tuple[Scores, int]":
    from visionapps.cli.compute import listed, make_predictor
    from visionapps.data.dataset import find_pairs
    from visionapps.inference.evaluation import evaluate_files, require_same_classes
    from visionapps.inference.sources import open_source

    dataset = _dataset(options, bundle)
    coding = dataset.coding()
    require_same_classes(bundle.labels, coding.labels, str(options.bundle))
    found, problems = find_pairs(dataset)
    if problems:
        raise ConfigError(f"{problems[0].message} ({len(problems)} such files)")
    pairs = [(pair.image, pair.mask) for pair in found if pair.mask is not None]
    bands = listed(options.bands) or None
    scores = evaluate_files(
        make_predictor(bundle, options),
        _bar(pairs),
        coding,
        open_image=lambda path: open_source(path, bundle.spec, bands=bands, scale=options.scale, nodata=options.nodata),
        unknown=_unknown(dataset),
    )
    return scores, len(pairs)


def _of_run(bundle: "Bundle", options: argparse.Namespace) -> "tuple[Scores, int]":
    from visionapps.cli.compute import make_predictor
    from visionapps.data.doctor import examine
    from visionapps.inference.evaluation import evaluate_photos, require_same_classes

    found = examine(_dataset(options, bundle), progress=True)
    found.raise_on_errors()
    require_same_classes(bundle.labels, found.coding.labels, str(options.bundle))
    photos = {"val": found.val, "train": found.train, "all": (*found.train, *found.val)}[options.split]
    if not photos:
        raise ConfigError(f"{options.config}: the split {options.split} has no photo; choose another --split")
    # These photos are resized already.
    scores = evaluate_photos(make_predictor(replace(bundle, resize=None), options), _bar(photos), found.coding.labels)
    return scores, len(photos)


def _of_masks(options: argparse.Namespace) -> "tuple[Sequence[str], Scores, int]":
    if not (options.pred and options.masks and (options.classes or options.config)) or options.images:
        raise ConfigError(
            "evaluate: give a BUNDLE, or --pred DIR and --masks DIR with --classes YAML (or --config YAML); see --help"
        )
    from visionapps.inference.evaluation import compare_masks, pair_masks

    dataset = _dataset(options)
    coding = dataset.coding()
    pairs = pair_masks(options.pred, options.masks)
    return coding.labels.names, compare_masks(_bar(pairs), coding, unknown=_unknown(dataset)), len(pairs)


def _dataset(options: argparse.Namespace, bundle: "Bundle | None" = None) -> "Dataset":
    """Folders and class table: of the config, of the --classes file, or the bundle's own (value = label)."""
    from visionapps.cli.check import build_dataset, read_dataset, read_yaml
    from visionapps.data.dataset import Dataset

    if options.config is not None:
        dataset = read_dataset(options.config)
        assert isinstance(dataset, Dataset), "a dataset of objects is evaluated as objects"
        return dataset
    settings: dict[str, Any] = {"void_ids": [255]}
    if options.classes is not None:
        table = read_yaml(options.classes)
        settings |= table if isinstance(table, dict) else {"classes": table}
    elif bundle is not None:
        colors = ["#{:02X}{:02X}{:02X}".format(*color) for color in bundle.labels.colors]
        settings["classes"] = [
            {"name": name, "color": color} for name, color in zip(bundle.labels.names, colors, strict=True)
        ]
    settings |= {"images": str(options.images or options.pred), "masks": str(options.masks)}
    settings |= {"mask_suffix": options.mask_suffix} if options.mask_suffix else {}
    return build_dataset(settings, str(options.classes or "options"))


def _unknown(dataset: "Dataset") -> "Unknown":
    """What the dataset's policies say about mask values that mean nothing."""
    if dataset.policies.soft_mask == "fix":
        return "nearest"
    return "void" if dataset.policies.unknown_values == "fix" else "error"


def _bar(items: Sequence[T]) -> Iterator[T]:
    from tqdm import tqdm

    bar: Iterable[T] = tqdm(items, disable=None, unit="image")
    yield from bar
