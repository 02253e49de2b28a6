"""Train a run on k folds, predict every photo with the model that never saw it, and print the cross-validated score.

Groups (a scene, a tile, a site, a photographer) are never torn. Any key of the run's file can be replaced, as in
`visionapps fit`: --trainer.max_epochs 5
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionapps.cli.table import render
from visionapps.errors import ConfigError, DataError
from visionapps.files import whole_output

if TYPE_CHECKING:
    from visionapps.competition.predicting import CrossValidation
    from visionapps.data.class_dataset import ClassDataset
    from visionapps.data.dataset import Dataset, Split
    from visionapps.data.fold_leaks import AnyPhoto, Leak
    from visionapps.data.folds import FoldItem, FoldPlan
    from visionapps.data.object_dataset import ObjectDataset
    from visionapps.inference.bundle import Bundle
    from visionapps.training.folds import Study

_OF_A_PLAN = ("k", "group", "block_px", "block_m", "stratify", "buffer", "seed")
_SHOWN = 3  # leaks in a message
_CLASSES = 12  # columns of the plan's table
_SCORES = ("mean_dice", "mean_iou", "accuracy", "ap", "ap50", "top1", "mean_recall")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", type=Path, required=True, metavar="YAML", help="file of the run; see configs/")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the folds (runs/<name of the config>_folds)")
    parser.add_argument("--only", metavar="N,N,...", help="train these folds, from 0 (all)")
    parser.add_argument("--resume", action="store_true", help="go on: finished folds are skipped, a half one continued")
    parser.add_argument("--plan-only", action="store_true", help="make and check the plan, and train nothing")
    plan = parser.add_argument_group("plan")
    plan.add_argument("--plan", type=Path, metavar="FILE", help="read the plan there, or write it there if it is new")
    plan.add_argument("--k", type=int, metavar="N", help="folds (5)")
    plan.add_argument("--group", metavar="REGEX", help="searched in photo names: what it finds names the group")
    plan.add_argument("--block-px", type=int, metavar="N", help="cut photos into blocks; each is a group")
    plan.add_argument("--block-m", type=float, metavar="M", help="one group per square of the map, in metres")
    plan.add_argument(
        "--buffer",
        type=float,
        metavar="D",
        help="nothing trains that near to what validates: metres, or pixels of blocks (0)",
    )
    plan.add_argument(
        "--stratify", choices=("area", "presence", "none"), help="what folds share evenly of each class (area)"
    )
    plan.add_argument("--seed", type=int, metavar="N", help="of the draw (0)")
    plan.add_argument("--join-alike", action="store_true", help="photos that look alike share a fold")
    plan.add_argument("--together", type=Path, metavar="CSV", help="table of photo,group: equal groups share a fold")
    oof = parser.add_argument_group("out-of-fold predictions")
    oof.add_argument("--oof", type=Path, metavar="DIR", help="the store (OUT/oof)")
    oof.add_argument("--oof-size", metavar="HxW", help="size in which scores are stored (each photo's own)")
    oof.add_argument("--tta", choices=("none", "flips", "d4"), default="none", help="average mirrored views (none)")
    oof.add_argument("--scales", metavar="S,S,...", default="1", help="average views at these scales: 0.75,1,1.25")
    oof.add_argument("--no-oof", action="store_true", help="train only")
    oof.add_argument("--device", default="auto", help="that predicts: cpu, cuda, ... (auto)")
    parser.set_defaults(settings=[])


def run(options: argparse.Namespace) -> int:
    """Plan, train, predict, and print what the folds say."""
    from visionapps.cli.check import read_dataset
    from visionapps.data.fold_leaks import fold_items
    from visionapps.data.folds import FoldPlan

    _refuse_data_settings(options.settings)
    out: Path = options.out or Path("runs") / f"{options.config.stem}_folds"
    size = _size(options.oof_size)
    dataset = read_dataset(options.config)
    place = options.plan or out / "plan.json"
    plan = FoldPlan.load(place) if place.is_file() else None
    if plan is not None:
        _require_like(plan, options, place)
    photos, names = _examined(dataset, _split(dataset, plan, options))
    items = fold_items(photos, len(names))
    if plan is None:
        plan = _make(items, photos, _split(dataset, None, options), options)
    else:
        plan.require(items, str(options.config))
        if options.together is not None:
            _require_together(plan, items, options.together, place)
    only = _only(options.only, plan.k)
    print(_plan_table(plan, items, names))
    _refuse_leaks(plan, items, photos, dataset)
    if options.plan is not None and not options.plan.is_file():
        plan.save(options.plan)
        print(f"\nplan             {options.plan}")
    if options.plan_only:
        if options.plan is None:
            raise ConfigError("--plan-only: goes with --plan FILE, where the plan is written")
        return 0
    return _train(options, out, plan, only, photos, size)


def _train(
    options: argparse.Namespace,
    out: Path,
    plan: "FoldPlan",
    only: Sequence[int],
    photos: "Sequence[AnyPhoto]",
    size: tuple[int, int] | None,
) -> int:
    """Train and predict fold by fold."""
    from visionapps.segmentation.base import Segmentor
    from visionapps.training.folds import Study, train_fold

    maps = True
    study = Study(out, options.config, plan, tuple(options.settings))
    study.begin(resume=options.resume)
    bundles: list[Bundle] = []
    store = options.oof or out / "oof"
    for fold in only:
        skipped = " (trained already)" if study.done(fold) else ""
        print(f"\n== fold {fold} of {plan.k}{skipped}: {study.folder(fold)}", flush=True)
        bundles.append(train_fold(study, fold))
        maps = isinstance(bundles[-1].model, Segmentor)
        if maps and not options.no_oof:
            _predict(options, study, fold, photos, size, store)
    if options.no_oof or not maps:
        print(f"\n{_metrics_table(only, bundles)}")
        if not maps:
            print("\nout-of-fold scores are maps; of this kind of model each fold has its report and bundle")
        return 0
    return _judge(out, store)


def _predict(
    options: argparse.Namespace,
    study: "Study",
    fold: int,
    photos: "Sequence[Any]",
    size: tuple[int, int] | None,
    store: Path,
) -> None:
    """Add a fold to the store, unless it is there."""
    from visionapps.cli.compute import numbers
    from visionapps.competition.oof import OofStore, OofWriter
    from visionapps.inference.bundle import load
    from visionapps.inference.views import Views
    from visionapps.training.folds import predict_fold

    views = Views(flips=options.tta, scales=numbers(options.scales, "--scales"))
    labels = load(study.bundle(fold)).labels
    how = {"flips": views.flips, "scales": list(views.scales)}
    writer = OofWriter(store, labels=labels, plan=study.plan, size=size, how=how)
    if fold in OofStore.open(store).members:
        return
    predict_fold(study, fold, photos, writer, views=views, device=options.device)


def _judge(out: Path, folder: Path) -> int:
    """Print and write down what the store is worth."""
    from visionapps.competition.oof import OofStore
    from visionapps.competition.predicting import cross_validate

    store = OofStore.open(folder)
    megabytes = f"{store.bytes / 1e6:.1f} MB for {len(store.names)} photos"
    if not all(photo.truth for photo in store.photos.values()):
        print(f"\nout of fold      {folder} ({megabytes}); without masks there is nothing to judge")
        return 0
    result = cross_validate(store)
    path = out / "cv.json" if folder == out / "oof" else folder.with_name(f"{folder.name}_cv.json")
    with whole_output(path, overwrite=True) as part:
        part.write_text(json.dumps(result.to_dict(), indent=1) + "\n")
    print(f"\nEvery photo drawn by the model that never saw it:\n\n{_score_table(result)}\n")
    print(f"out of fold      {folder} ({megabytes})")
    print(f"all numbers      {path}")
    missing = store.missing()
    if missing:
        print(f"folds to come    {', '.join(map(str, missing))} (--only {','.join(map(str, missing))} --resume)")
    return 0


def _score_table(result: "CrossValidation") -> str:
    """One line per class: Dice over all photos, and how it varies from fold to fold."""

    def shown(value: float) -> float | None:
        return None if value != value else value  # NaN

    rows: list[tuple[object, ...]] = []
    folds = list(result.folds.values())
    for k, name in enumerate(result.names):
        mean, deviation = result.spread(lambda scores, k=k: scores.dice[k])  # type: ignore[misc]
        own = [shown(scores.dice[k]) for scores in folds]
        rows.append(
            (name, shown(result.pooled.dice[k]), shown(result.pooled.iou[k]), shown(mean), shown(deviation), *own)
        )
    mean, deviation = result.spread(lambda scores: scores.mean_dice)
    own = [shown(scores.mean_dice) for scores in folds]
    pooled = result.pooled
    rows.append(("mean", shown(pooled.mean_dice), shown(pooled.mean_iou), shown(mean), shown(deviation), *own))
    titles = [f"fold {fold}" for fold in result.folds]
    return render(("class", "Dice, pooled", "IoU, pooled", "Dice, mean", "deviation", *titles), rows)


def _metrics_table(only: Sequence[int], bundles: "Sequence[Bundle]") -> str:
    """What each fold's validation gave."""
    metrics = [bundle.card.get("metrics") or {} for bundle in bundles]
    keys = [key for key in _SCORES if any(isinstance(found.get(key), float) for found in metrics)]
    rows: list[tuple[object, ...]] = [
        (str(fold), *(found.get(key) for key in keys)) for fold, found in zip(only, metrics, strict=True)
    ]
    columns = [[found[key] for found in metrics if isinstance(found.get(key), float)] for key in keys]
    means = [sum(column) / len(column) for column in columns]
    rows.append(("mean", *means))
    if len(bundles) > 1:
        spread = [
            (sum((v - m) ** 2 for v in column) / (len(column) - 1)) ** 0.5 if len(column) > 1 else None
            for column, m in zip(columns, means, strict=True)
        ]
        rows.append(("deviation", *spread))
    return render(("fold", *keys), rows)


def _plan_table(plan: "FoldPlan", items: "Sequence[FoldItem]", names: Sequence[str]) -> str:
    """One line per fold: photos, groups, and its share of each class."""
    from visionapps.data.folding import class_table

    table = class_table(plan, items)
    whole = table.sum(0)
    area = [sum(i.size[0] * i.size[1] for i in items if plan.folds[i.name] == fold) for fold in range(plan.k)]
    rows: list[tuple[object, ...]] = []
    for fold in range(plan.k):
        own = plan.names(fold)
        shares = [f"{table[fold, c] / whole[c]:.0%}" if whole[c] else "-" for c in range(min(_CLASSES, len(names)))]
        groups = len({plan.groups[name] for name in own})
        out = len(plan.excluded.get(fold, ())), len(plan.trimmed.get(fold, {}))
        buffer = [f"{out[0]} out, {out[1]} cut"] if plan.rule.get("buffer") else []
        rows.append((str(fold), len(own), groups, f"{area[fold] / sum(area):.0%}", *buffer, *shares))
    titles = ["in buffer"] if plan.rule.get("buffer") else []
    return render(("fold", "photos", "groups", "area", *titles, *names[:_CLASSES]), rows)


def _make(
    items: "Sequence[FoldItem]", photos: "Sequence[AnyPhoto]", split: "Split", options: argparse.Namespace
) -> "FoldPlan":
    from visionapps.data.fold_leaks import families, ground_boxes, pictures, same_in_table
    from visionapps.data.folding import plan_folds

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


def _refuse_leaks(
    plan: "FoldPlan",
    items: "Sequence[FoldItem]",
    photos: "Sequence[AnyPhoto]",
    dataset: "Dataset | ObjectDataset | ClassDataset",
) -> None:
    """Raise DataError where a model would be judged on what it has seen; a lenient policy only tells."""
    from visionapps.data.fold_leaks import ground_boxes, leaks, pictures

    found = leaks(plan, items, pictures(photos), ground_boxes(items))
    overlapping = [leak for leak in found if leak.kind == "overlap"]
    if overlapping:
        raise DataError(
            f"folds: {len(overlapping)} pairs of photos of different folds show the same ground "
            f"({_pairs(overlapping)}); keep them together (--group, --block-m), or leave them out with a --buffer"
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


def _examined(
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

        maps = examine(replace(dataset, split=split), progress=True)
        maps.raise_on_errors()
        return maps.train, maps.coding.labels.names
    from visionapps.data.object_doctor import examine_objects

    objects = examine_objects(replace(dataset, split=split), progress=True)
    objects.raise_on_errors()
    return objects.train, objects.labels.names


def _split(
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


def _require_like(plan: "FoldPlan", options: argparse.Namespace, place: Path) -> None:
    """Raise ConfigError for an option that says otherwise than a plan that is there already."""
    kept = {"k": plan.k, "seed": plan.seed, **plan.rule}
    for name in _OF_A_PLAN:
        wanted = getattr(options, name)
        if wanted is not None and wanted != kept.get(name):
            raise ConfigError(
                f"--{name.replace('_', '-')} {wanted}: but the plan {place} was made with {kept.get(name)}; leave the "
                "option out, or make a new plan in another file and folder"
            )


def _require_together(plan: "FoldPlan", items: "Sequence[FoldItem]", table: Path, place: Path) -> None:
    """Raise ConfigError where a plan that is there already tears what a table holds together."""
    from visionapps.data.fold_leaks import same_in_table

    for one, other in same_in_table(table, items):
        if plan.folds[one] != plan.folds[other]:
            raise ConfigError(
                f"--together {table}: {one} and {other} lie in two folds of {place}; make a new plan in another file "
                "and folder"
            )


def _only(text: str | None, k: int) -> tuple[int, ...]:
    if text is None:
        return tuple(range(k))
    try:
        found = sorted({int(part) for part in text.split(",") if part.strip()})
    except ValueError as error:
        raise ConfigError(f"--only {text}: expected folds with commas between, such as 0,2") from error
    if not found or found[0] < 0 or found[-1] >= k:
        raise ConfigError(f"--only {text}: the plan has {k} folds from 0 to {k - 1}")
    return tuple(found)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise ConfigError(f"--oof-size {text}: expected height x width in pixels, such as 600x800")
    return int(parts[0]), int(parts[1])


def _refuse_data_settings(settings: Sequence[str]) -> None:
    for word in settings:
        if word.startswith(("--data.init_args.dataset", "--data.dataset")):
            raise ConfigError(f"{word.split('=')[0]}: the plan is made from the file's dataset; change it in the file")
