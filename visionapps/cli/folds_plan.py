"""The plan of `visionapps folds`: made from the options, or checked against them, and searched for leaks."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionapps.errors import ConfigError, DataError

if TYPE_CHECKING:
    from visionapps.data.class_dataset import ClassDataset
    from visionapps.data.dataset import Dataset, Findings, Split
    from visionapps.data.fold_leaks import AnyPhoto, Leak
    from visionapps.data.folds import FoldItem, FoldPlan
    from visionapps.data.object_dataset import ObjectDataset
    from visionapps.structures import LabelSpace

    AnyDataset = Dataset | ObjectDataset | ClassDataset

_DEFAULT_K = 5
_WAYS = ("group", "block_px", "block_m")  # in which a split forms groups
_OF_A_PLAN = ("k", "group", "block_px", "block_m", "stratify", "buffer", "seed")
_SHOWN = 3  # leaks in a message


def refuse_senseless(options: argparse.Namespace) -> None:
    """Raise ConfigError for options of a plan that are wrong whatever the dataset is, before that is read."""
    from visionapps.data.folding import require_sense

    if options.plan_only and options.plan is None:
        raise ConfigError("--plan-only: goes with --plan FILE, where the plan is written")
    require_sense(_DEFAULT_K if options.k is None else options.k, seed=options.seed or 0, buffer=options.buffer or 0.0)
    if options.group is not None:
        try:
            re.compile(options.group)
        except re.error as error:
            raise ConfigError(f"--group {options.group}: is no regular expression ({error}); mend it") from error


def examined(
    dataset: "AnyDataset", plan: "FoldPlan | None", options: argparse.Namespace
) -> "tuple[tuple[AnyPhoto, ...], LabelSpace, Split]":
    """All photos of a dataset with their groups, its classes, and how groups were formed."""
    from dataclasses import replace

    from visionapps.data.class_dataset import ClassDataset
    from visionapps.data.dataset import Dataset

    split = _split(dataset, plan, options)
    if isinstance(dataset, ClassDataset):
        from visionapps.data.class_doctor import examine_classes

        if dataset.val is not None:
            raise ConfigError("dataset.val: folds divide the photos of dataset.train; leave val out")
        classes = examine_classes(replace(dataset, split=split), progress=True)
        _refuse_problems(classes, split, dataset.split)
        return classes.train, classes.labels, split
    if isinstance(dataset, Dataset):
        from visionapps.data.doctor import examine
        from visionapps.data.extra import require_apart

        maps = examine(replace(dataset, split=split), progress=True)
        _refuse_problems(maps, split, dataset.split)
        require_apart(maps.extra, maps.train, dataset.policies)
        return maps.train, maps.coding.labels, split
    from visionapps.data.object_doctor import examine_objects

    objects = examine_objects(replace(dataset, split=split), progress=True)
    _refuse_problems(objects, split, dataset.split)
    return objects.train, objects.labels, split


def _refuse_problems(found: "Findings", split: "Split", stated: "Split") -> None:
    """Raise DataError for a dataset that is not good; groups of an option or a plan are not those of its file."""
    torn = [problem for problem in found.errors if problem.kind == "split"]
    if torn and any(getattr(split, way) != getattr(stated, way) for way in _WAYS):
        raise DataError(f"folds: not every photo can be put into a group; the first: {torn[0].message}")
    found.raise_on_errors()


def _split(dataset: "AnyDataset", plan: "FoldPlan | None", options: argparse.Namespace) -> "Split":
    """How groups are formed, with nothing to validate: as the plan has it, or the options, or the config."""
    from visionapps.data.dataset import Split

    found: dict[str, Any] = {way: getattr(options, way) for way in _WAYS}
    if plan is not None:
        found = {way: plan.rule.get(way) for way in _WAYS}
    elif all(value is None for value in found.values()):
        found = {way: getattr(dataset.split, way) for way in _WAYS}
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
        _DEFAULT_K if options.k is None else options.k,
        seed=options.seed or 0,
        stratify=options.stratify or "area",
        rule={way: getattr(split, way) for way in _WAYS} | ({"join": "alike"} if options.join_alike else {}),
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


def require_kept(
    plan: "FoldPlan",
    items: "Sequence[FoldItem]",
    photos: "Sequence[AnyPhoto]",
    options: argparse.Namespace,
    place: Path,
) -> None:
    """Raise ConfigError where a plan that is there already tears what options hold together."""
    from visionapps.data.fold_leaks import alike, pictures, same_in_table

    torn, option = [], f"--together {options.together}"
    if options.together is not None:
        torn = [pair for pair in same_in_table(options.together, items) if plan.folds[pair[0]] != plan.folds[pair[1]]]
    if options.join_alike and not torn:
        option = "--join-alike"
        found = alike(items, pictures(photos), [plan.folds[item.name] for item in items])
        torn = [(leak.one, leak.other) for leak in found]
    if torn:
        raise ConfigError(
            f"{option}: {torn[0][0]} and {torn[0][1]} lie in two folds of {place}; leave the option out, or make a new "
            "plan in another file and folder"
        )


def refuse_leaks(
    plan: "FoldPlan",
    items: "Sequence[FoldItem]",
    photos: "Sequence[AnyPhoto]",
    dataset: "AnyDataset",
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
