"""The plan of `visionapps folds`: made from the options, or checked against them, and searched for leaks."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionapps.errors import ConfigError, DataError

if TYPE_CHECKING:
    from visionapps.data.class_dataset import ClassDataset
    from visionapps.data.dataset import Dataset, Split
    from visionapps.data.fold_leaks import AnyPhoto, Leak
    from visionapps.data.folds import FoldItem, FoldPlan
    from visionapps.data.object_dataset import ObjectDataset

_OF_A_PLAN = ("k", "group", "block_px", "block_m", "stratify", "buffer", "seed")
_SHOWN = 3  # leaks in a message


def examined(
    dataset: "Dataset | ObjectDataset | ClassDataset", split: "Split"
) -> "tuple[tuple[AnyPhoto, ...], tuple[str, ...]]":
    """All photos of a dataset with their groups, and the names of its classes."""
    from dataclasses import replace

    from visionapps.data.class_dataset import ClassDataset
    from visionapps.data.dataset import Dataset

    if isinstance(dataset, ClassDataset):
        from visionapps.data.class_doctor import examine_classes

        if dataset.val is not None:
            raise ConfigError("dataset.val: folds divide the photos of dataset.train; leave val out")
        classes = examine_classes(replace(dataset, split=split), progress=True)
        classes.raise_on_errors()
        return classes.train, classes.labels.names
    if isinstance(dataset, Dataset):
        from visionapps.data.doctor import examine
        from visionapps.data.extra import require_apart

        maps = examine(replace(dataset, split=split), progress=True)
        maps.raise_on_errors()
        require_apart(maps.extra, maps.train, dataset.policies)
        return maps.train, maps.coding.labels.names
    from visionapps.data.object_doctor import examine_objects

    objects = examine_objects(replace(dataset, split=split), progress=True)
    objects.raise_on_errors()
    return objects.train, objects.labels.names


def split_of(
    dataset: "Dataset | ObjectDataset | ClassDataset", plan: "FoldPlan | None", options: argparse.Namespace
) -> "Split":
    """How groups are formed, with nothing to validate: as the plan has it, or the options, or the config."""
    from visionapps.data.dataset import Split

    ways = ("group", "block_px", "block_m")
    found: dict[str, Any] = {way: getattr(options, way) for way in ways}
    if plan is not None:
        found = {way: plan.rule.get(way) for way in ways}
    elif all(value is None for value in found.values()):
        found = {way: getattr(dataset.split, way) for way in ways}
    return Split(**found, val_fraction=0.0)


def make(
    items: "Sequence[FoldItem]", photos: "Sequence[AnyPhoto]", split: "Split", options: argparse.Namespace
) -> "FoldPlan":
    from visionapps.data.fold_leaks import families, pictures, same_in_table
    from visionapps.data.folding import plan_folds
    from visionapps.data.footprints import ground_boxes

    buffer = options.buffer or 0.0
    boxes = ground_boxes(items) if buffer else {}
    if buffer and not boxes and split.block_px is None:
        raise ConfigError("--buffer: no photo lies on the map, so none is near; leave it out, or use --block-px")
    together = families(items, pictures(photos)) if options.join_alike else []
    if options.together is not None:
        together += same_in_table(options.together, items)
    return plan_folds(
        items,
        5 if options.k is None else options.k,
        seed=options.seed or 0,
        stratify=options.stratify or "area",
        rule={"group": split.group, "block_px": split.block_px, "block_m": split.block_m},
        together=together,
        boxes=boxes,
        buffer=buffer,
    )


def require_like(plan: "FoldPlan", options: argparse.Namespace, place: Path) -> None:
    """Raise ConfigError for an option that says otherwise than a plan that is there already."""
    kept = {"k": plan.k, "seed": plan.seed, **plan.rule}
    for name in _OF_A_PLAN:
        wanted = getattr(options, name)
        if wanted is not None and wanted != kept.get(name):
            raise ConfigError(
                f"--{name.replace('_', '-')} {wanted}: but the plan {place} was made with {kept.get(name)}; leave the "
                "option out, or make a new plan in another file and folder"
            )


def require_together(plan: "FoldPlan", items: "Sequence[FoldItem]", table: Path, place: Path) -> None:
    """Raise ConfigError where a plan that is there already tears what a table holds together."""
    from visionapps.data.fold_leaks import same_in_table

    for one, other in same_in_table(table, items):
        if plan.folds[one] != plan.folds[other]:
            raise ConfigError(
                f"--together {table}: {one} and {other} lie in two folds of {place}; make a new plan in another file "
                "and folder"
            )


def refuse_leaks(
    plan: "FoldPlan",
    items: "Sequence[FoldItem]",
    photos: "Sequence[AnyPhoto]",
    dataset: "Dataset | ObjectDataset | ClassDataset",
) -> None:
    """Raise DataError where a model would be judged on what it has seen; a lenient policy only tells."""
    from visionapps.data.fold_leaks import leaks, pictures
    from visionapps.data.footprints import ground_boxes

    found = leaks(plan, items, pictures(photos), ground_boxes(items))
    overlapping = [leak for leak in found if leak.kind == "overlap"]
    if overlapping:
        raise DataError(
            f"folds: {len(overlapping)} pairs of photos of different folds show the same ground "
            f"({_pairs(overlapping)}); keep them together (--group, --block-m, --together), or leave them out with "
            "a --buffer"
        )
    similar = [leak for leak in found if leak.kind == "near_duplicate"]
    action = dataset.policies.action("near_duplicate")
    if not similar:
        return
    text = f"{len(similar)} pairs of photos of different folds look alike ({_pairs(similar)})"
    if action == "error":
        raise DataError(
            f"folds: {text}; keep them together with --join-alike or --group, or set policies.near_duplicate to drop "
            "or warn"
        )
    print(f"\n{text}; " + ("they leave training" if action == "dropped" else "the score will be too good"))


def _pairs(found: "Sequence[Leak]") -> str:
    shown = sorted(found, key=lambda leak: -leak.amount)[:_SHOWN]
    return ", ".join(f"{leak.one} and {leak.other} {leak.amount:.2f}" for leak in shown)
