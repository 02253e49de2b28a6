"""Train a run on k folds, predict every photo with the model that never saw it, and print the cross-validated score.

Groups (a scene, a tile, a site, a photographer) are never torn. Any key of the run's file can be replaced, as in
`visionapps fit`: --trainer.max_epochs 5
"""

import argparse
import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from visionapps.errors import ConfigError
from visionapps.files import whole_output

if TYPE_CHECKING:
    from visionapps.competition.oof import OofWriter
    from visionapps.data.fold_leaks import AnyPhoto
    from visionapps.inference.bundle import Bundle
    from visionapps.inference.views import Views
    from visionapps.structures import LabelSpace
    from visionapps.training.folds import Study

_KEYS = ("seed_everything", "trainer", "model", "data", "optimizer", "lr_scheduler")  # first words of a run's keys


class Look(NamedTuple):
    """How photos are looked at out of fold, and in which size (H, W) their scores are stored; None: each one's own."""

    views: "Views"
    size: tuple[int, int] | None


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
    from visionapps.cli.folds_plan import examined, make, refuse_leaks, refuse_senseless, require_kept, require_like
    from visionapps.cli.folds_table import plan_table
    from visionapps.data.fold_leaks import fold_items
    from visionapps.data.folds import FoldPlan

    _refuse_settings(options)
    refuse_senseless(options)
    out: Path = options.out or Path("runs") / f"{options.config.stem}_folds"
    look = None if options.plan_only or options.no_oof else _look(options)
    dataset = read_dataset(options.config)
    place = options.plan or out / "plan.json"
    plan = FoldPlan.load(place) if place.is_file() else None
    if plan is not None:
        require_like(plan, options, place)
    photos, labels, split = examined(dataset, plan, options)
    items = fold_items(photos, len(labels))
    if plan is None:
        plan = make(items, photos, split, options)
    else:
        plan.require(items, str(options.config))
        require_kept(plan, items, photos, options, place)
    only = _only(options.only, plan.k)
    print(plan_table(plan, items, labels.names))
    refuse_leaks(plan, items, photos, dataset)
    if options.plan is not None and not options.plan.is_file():
        plan.save(options.plan)
        print(f"\nplan             {options.plan}")
    if options.plan_only:
        return 0
    from visionapps.training.folds import Study

    study = Study(out, options.config, plan, tuple(options.settings))
    return _train(options, study, only, photos, labels, look)


def _look(options: argparse.Namespace) -> "Look":
    """How photos are looked at out of fold: found wrong now rather than after the first fold is trained."""
    from visionapps.cli.compute import numbers
    from visionapps.inference.network import choose_device
    from visionapps.inference.views import Views

    choose_device(options.device)
    return Look(Views(flips=options.tta, scales=numbers(options.scales, "--scales")), _size(options.oof_size))


def _train(
    options: argparse.Namespace,
    study: "Study",
    only: Sequence[int],
    photos: "Sequence[AnyPhoto]",
    labels: "LabelSpace",
    look: "Look | None",
) -> int:
    """Train and predict fold by fold."""
    from visionapps.cli.folds_table import metrics_table
    from visionapps.data.store import Photo
    from visionapps.training.folds import predict_fold, train_fold

    maps = [photo for photo in photos if isinstance(photo, Photo)]
    store: Path = options.oof or study.oof
    writer = _writer(study, store, only, labels, look) if maps and look is not None else None
    study.begin(resume=options.resume)
    bundles: list[Bundle] = []
    for fold in only:
        skipped = " (trained already)" if study.done(fold) else ""
        print(f"\n== fold {fold} of {study.plan.k}{skipped}: {study.folder(fold)}", flush=True)
        bundles.append(train_fold(study, fold))
        if writer is not None and look is not None:
            predict_fold(study, fold, maps, writer, views=look.views, device=options.device)
    if writer is None:
        print(f"\n{metrics_table(only, bundles)}")
        if not maps:
            print("\nout-of-fold scores are maps; of this kind of model each fold has its report and bundle")
        return 0
    return _judge(study.out, store)


def _writer(study: "Study", store: Path, only: Sequence[int], labels: "LabelSpace", look: "Look") -> "OofWriter":
    """The store of a study, refused before anything is trained where it holds something else."""
    from visionapps.competition.oof import OofWriter

    study.require_place(store)
    how = {"flips": look.views.flips, "scales": list(look.views.scales)}
    writer = OofWriter(store, labels=labels, plan=study.plan, size=look.size, how=how)
    study.require_own(writer, only)
    return writer


def _judge(out: Path, folder: Path) -> int:
    """Print and write down what the store is worth."""
    from visionapps.cli.folds_table import score_table
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
    print(f"\nEvery photo drawn by the model that never saw it:\n\n{score_table(result)}\n")
    print(f"out of fold      {folder} ({megabytes})")
    print(f"all numbers      {path}")
    missing = store.missing()
    if missing:
        print(f"folds to come    {', '.join(map(str, missing))} (--only {','.join(map(str, missing))} --resume)")
    return 0


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


def _refuse_settings(options: argparse.Namespace) -> None:
    """Raise ConfigError for what is neither an option nor a key of the run's file, or means nothing here."""
    settings: list[str] = options.settings
    for place, word in enumerate(settings):
        key, _, _ = word.partition("=")
        if key in ("--data", "--data.init_args") or key.startswith(("--data.init_args.dataset", "--data.dataset")):
            raise ConfigError(f"{key}: the plan is made from the file's dataset; change it in the file")
        if not key.startswith("-") or key[1:2].isdigit() or key[1:2] == ".":  # the value of the key before it
            if place:
                continue
        elif key.startswith("--") and key[2:].split(".")[0] in _KEYS:
            continue
        near = get_close_matches(key.strip("-").replace("-", "_"), vars(options), 1)
        hint = f"did you mean --{near[0].replace('_', '-')}?" if near else "see `visionapps folds --help`"
        raise ConfigError(f"{key}: is no option, and no key of the run's file such as --trainer.max_epochs; {hint}")
    if settings and options.plan_only:
        raise ConfigError(f"{settings[0]}: means nothing with --plan-only, which trains nothing; leave it out")
