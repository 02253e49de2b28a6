"""Tune the rules after the network on out-of-fold predictions, by the competition's own metric; no image is read.

visionapps tune runs/x_folds/oof --metric dice_per_image --empty one --rules threshold,min_area,holes --out tuned.yaml
visionapps tune runs/x_folds/oof --metric metric.yaml --into runs/x_folds/fold_0/bundle   and the bundle obeys the rules
visionapps tune runs/x_folds/oof --metric metric.yaml --into all.yaml                     and so does an ensemble

Rules: threshold; triplet (a seed threshold, and a lower one down to which it grows); min_area of components;
min_present pixels of a class in a photo; keep the largest components; holes that are filled. The table ends with what
to expect of new photos: each fold scored with rules that were tuned on the others.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionapps.cli.table import render
from visionapps.errors import ConfigError, OutputError
from visionapps.files import refuse_existing, whole_output

if TYPE_CHECKING:
    from visionapps.competition.ensemble import EnsembleSpec
    from visionapps.competition.nested import Tuned
    from visionapps.competition.oof import OofStore
    from visionapps.inference.bundle import Bundle
    from visionapps.metrics.competition import CompetitionMetric

_BACKGROUNDS = ("background", "unlabeled", "unlabelled", "nothing")  # "other" is often a class that is scored


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("oof", type=Path, help="folder of out-of-fold predictions that `visionapps folds` wrote")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write rules and scores there, as YAML")
    parser.add_argument(
        "--into",
        type=Path,
        action="append",
        default=[],
        metavar="BUNDLE",
        help="save the rules with this bundle, or in this file of an ensemble",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE, and rules that BUNDLE has")
    metric = parser.add_argument_group("metric")
    metric.add_argument("--metric", default="dice_per_image", metavar="NAME", help="or a YAML file (dice_per_image)")
    metric.add_argument(
        "--empty", choices=("one", "zero", "skip"), help="worth of a class that neither truth nor prediction has"
    )
    metric.add_argument("--exclude", metavar="C,C,...", help="classes that do not count")
    metric.add_argument(
        "--config", type=Path, metavar="YAML", help="file of a run: its classes must be those of the predictions"
    )
    search = parser.add_argument_group("search")
    search.add_argument(
        "--rules", default="threshold,min_area,holes", metavar="R,R,...", help="(threshold,min_area,holes); see above"
    )
    search.add_argument(
        "--calibrate",
        choices=("temperature", "platt", "isotonic"),
        help="scores to probabilities, of each class, first",
    )
    search.add_argument(
        "--background",
        metavar="CLASS",
        help="that all others compete with (the only one that the metric excludes, or one that is called "
        f"{', '.join(_BACKGROUNDS)}); none: the runner-up of each pixel is its rival",
    )
    search.add_argument("--seed", type=int, default=0, metavar="N", help="of the order of the search (0)")


def run(options: argparse.Namespace) -> int:
    """Tune, print the table, save the rules."""
    if options.out is None and not options.into:
        raise ConfigError("tune: give --out FILE for the rules, or --into BUNDLE, or both")
    if options.out is not None:
        if options.out.is_dir():  # said now, not after the search
            raise OutputError(f"{options.out}: is a folder, but the rules are a file; give a file name inside it")
        refuse_existing(options.out, options.overwrite)
    from visionapps.cli.compute import listed
    from visionapps.competition.nested import tune_nested
    from visionapps.competition.oof import OofStore
    from visionapps.competition.tuning import Tuner, Tuning

    store = OofStore.open(options.oof)
    store.require_whole()
    targets = [_target(folder, store, options.overwrite) for folder in options.into]
    if options.config is not None:
        _require_classes(options.config, store)
    metric = metric_of(options, store.labels.names)
    background = _background(options.background, store.labels.names, metric)
    tuning = Tuning(tuple(listed(options.rules)), options.calibrate, background, options.seed)
    tuned = tune_nested(Tuner(store, metric, tuning, bar=_bar))
    print(_table(tuned, store.labels.names, background))
    plain = {
        "postprocess": tuned.process.to_dict(store.labels.names),
        "metric": metric.to_dict(),
        "scores": tuned.to_dict(store.labels.names),
        "tuned_on": {"plan": store.plan, "photos": len(store.names), "size": list(store.size) if store.size else None},
    }
    if tuned.nested.score <= tuned.before.score:
        print("warning: on photos that rules were not tuned on they gain nothing; try fewer rules", file=sys.stderr)
    _save(options, plain, targets)
    return 0


def _target(path: Path, store: "OofStore", overwrite: bool) -> "Bundle | EnsembleSpec":
    """What will keep the rules, looked at before anything is computed."""
    from visionapps.competition.ensemble import EnsembleSpec, is_spec
    from visionapps.inference.bundle import description_of, load
    from visionapps.inference.evaluation import require_same_classes
    from visionapps.structures import LabelSpace

    found: Bundle | EnsembleSpec
    if is_spec(path):
        found = EnsembleSpec.load(path)
        found.require_fitting()
        labels = LabelSpace.from_dict(description_of(found.bundles[0])["labels"])
    else:
        found = load(path)
        labels = found.labels
        assert found.segmentor is not None  # or an error says what it is
    require_same_classes(labels, store.labels, str(path))
    if found.postprocess is not None and not overwrite:
        raise ConfigError(f"{path}: has rules already; replace them with --overwrite")
    return found


def _require_classes(config: Path, store: "OofStore") -> None:
    from visionapps.cli.check import read_dataset
    from visionapps.data.dataset import Dataset
    from visionapps.inference.evaluation import require_same_classes

    dataset = read_dataset(config)
    if not isinstance(dataset, Dataset):
        raise ConfigError(f"{config}: is no run of a segmentation model; rules are for label maps")
    require_same_classes(store.labels, dataset.coding().labels, str(store.folder))


def metric_of(options: argparse.Namespace, names: tuple[str, ...]) -> "CompetitionMetric":
    """From --metric, a name or a file, and --empty and --exclude beside it; classes by name or label."""
    from visionapps.cli.check import read_yaml
    from visionapps.cli.compute import listed
    from visionapps.metrics.competition import build_metric

    spec: dict[str, Any] = {"name": options.metric}
    if options.metric.endswith((".yaml", ".yml")):
        given = read_yaml(Path(options.metric))
        given = given.get("metric", given) if isinstance(given, dict) else given
        if not isinstance(given, str | dict):
            raise ConfigError(f"{options.metric}: no metric in it; expected metric: {{name: dice_per_image, ...}}")
        spec = {"name": given} if isinstance(given, str) else dict(given)
    spec |= {"empty": options.empty} if options.empty else {}
    words = listed(options.exclude)
    spec |= {"exclude": [int(w) if w.isdigit() and w not in names else w for w in words]} if words else {}
    return build_metric(spec, names)


def _background(given: str | None, names: Sequence[str], metric: "CompetitionMetric") -> int | None:
    """The class that others compete with: named, excluded from the metric as the only one, or called so."""
    if given == "none" and given not in names:
        return None
    if given is not None:
        if given not in names:
            raise ConfigError(f"--background {given}: no such class; there are {', '.join(names)}, or none")
        return list(names).index(given)
    left_out = [k for k in range(len(names)) if k not in metric.kept]
    if len(left_out) == 1:
        return left_out[0]
    return next((k for k, name in enumerate(names) if name.lower() in _BACKGROUNDS), None)


def _table(tuned: "Tuned", names: Sequence[str], background: int | None) -> str:
    """A line per class, the scores of all, and what is left of the gain on other photos."""

    def shown(value: float) -> float | None:
        return None if value != value else value

    rows: list[tuple[object, ...]] = []
    for k, name in enumerate(names):
        judged = (shown(part.classes[k]) for part in (tuned.before, tuned.after, tuned.nested))
        rule = tuned.process.rules[k].to_dict()
        kind = {"calibration": rule["calibration"]["kind"]} if "calibration" in rule else {}
        text = ", ".join(f"{key} {value}" for key, value in (rule | kind).items())
        rows.append((name, *judged, text or ("background" if k == background else "as it is")))
    rows.append(("all", tuned.before.score, tuned.after.score, tuned.nested.score, ""))
    gain, real = tuned.after.score - tuned.before.score, tuned.nested.score - tuned.before.score
    folds = ", ".join(f"{g.fold}: {g.before:.4f} -> {g.after:.4f}" for g in tuned.folds)
    table = render(("class", "before", "tuned", "nested", "rule"), rows)
    return (
        f"{table}\n\nscore {tuned.before.score:.4f} -> {tuned.after.score:.4f} ({gain:+.4f}) on the photos tuned on; "
        f"{tuned.nested.score:.4f} ({real:+.4f}) expected of new photos, so {tuned.overfitting:.4f} is overfitting\n"
        f"folds, with rules tuned on the others: {folds}"
    )


def _save(options: argparse.Namespace, plain: dict[str, Any], targets: "list[Bundle | EnsembleSpec]") -> None:
    import yaml

    if options.out is not None:
        with whole_output(options.out, options.overwrite) as path:
            path.write_text(yaml.safe_dump(plain, sort_keys=False))
        print(f"rules: {options.out}")
    from dataclasses import replace

    from visionapps.competition.ensemble import EnsembleSpec

    rules, worth = plain["postprocess"], {"tuned": {key: plain[key] for key in plain if key != "postprocess"}}
    for path, target in zip(options.into, targets, strict=True):
        if isinstance(target, EnsembleSpec):
            replace(target, postprocess=rules, fitted={**target.fitted, **worth}).save(path, overwrite=True)
        else:
            replace(target, postprocess=rules, card={**target.card, **worth}).save(path, overwrite=True)
        print(f"rules saved with {path}")


def _bar(names: Sequence[str], text: str) -> Iterator[str]:
    from tqdm import tqdm

    bar: Iterable[str] = tqdm(names, disable=None, desc=text, unit="photo", leave=False)
    yield from bar
