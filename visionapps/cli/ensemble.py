"""Several models as one: a file of members and weights, weights that fit out-of-fold predictions, or one mean model.

visionapps ensemble make A B C --tta d4 --weights 2,1,1 --out all.yaml         a file that stands wherever a bundle does
visionapps ensemble fit OOF_A OOF_B --metric dice_per_image --out all.yaml     weights fitted to out-of-fold predictions
visionapps ensemble blend OOF_A OOF_B --weights 2,1 --out OOF_AB               their mean as one store, to tune rules on
visionapps ensemble average top_*.ckpt --config run.yaml --out bundle          mean weights: one model, one forward pass

`fit` takes stores that `visionapps folds` wrote for one plan; its members are the bundles of all folds of a store, and
they look at images as the stores did. With --oof DIR it also writes the mean with these weights, as `blend` does.
`average --config` takes new statistics of batch normalisation from crops of the run's training photos, and tells the
scores on its validation photos; --greedy keeps only checkpoints that do not make the mean worse.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from visionapps.cli.table import render
from visionapps.errors import ConfigError
from visionapps.files import refuse_existing, refuse_sources

if TYPE_CHECKING:
    from torch import Tensor

    from visionapps.competition.ensemble import EnsembleSpec
    from visionapps.competition.oof import OofStore
    from visionapps.competition.weights import Fitted
    from visionapps.inference.bundle import Bundle


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    steps = parser.add_subparsers(dest="step", required=True, metavar="make | fit | blend | average")
    _configure_make(steps.add_parser("make", help="write the file of an ensemble, after a look at its members"))
    _configure_fit(steps.add_parser("fit", help="weights from out-of-fold predictions"))
    _configure_blend(steps.add_parser("blend", help="one out-of-fold store with the mean of several"))
    _configure_average(steps.add_parser("average", help="one bundle with the mean of the weights of checkpoints"))


def _configure_make(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE", help="folders written by export")
    parser.add_argument("--weights", metavar="W,W,...", help="how much each counts (equal)")
    _add_views(parser)
    _add_out(parser, "YAML", "file to write")


def _configure_fit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stores", nargs="+", type=Path, metavar="OOF", help="out-of-fold stores of one plan")
    parser.add_argument("--metric", default="dice_global", metavar="NAME", help="or a YAML file (dice_global)")
    parser.add_argument("--empty", choices=("one", "zero", "skip"), help="what an empty mask that is right counts")
    parser.add_argument("--exclude", metavar="C,C,...", help="classes that do not count")
    parser.add_argument(
        "--method", choices=("best", "equal", "likelihood", "greedy", "simplex"), default="best", help="(best)"
    )
    parser.add_argument("--photos", type=int, metavar="N", help="search on at most N photos (as many as fit in memory)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of their draw (0)")
    parser.add_argument("--oof", type=Path, metavar="DIR", help="write the blended out-of-fold store, too")
    _add_views(parser, "those of the stores")
    parser.set_defaults(tta=None, scales=None)
    _add_out(parser, "YAML", "file to write")


def _configure_blend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stores", nargs="+", type=Path, metavar="OOF", help="out-of-fold stores of one plan")
    parser.add_argument("--weights", metavar="W,W,...", help="how much each counts (equal)")
    _add_out(parser, "DIR", "folder of the new store")


def _configure_average(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CKPT", help="of one run, or bundles of one model")
    parser.add_argument("--weights", metavar="W,W,...", help="how much each counts (equal)")
    parser.add_argument("--config", type=Path, metavar="YAML", help="file of the run: photos for statistics and scores")
    parser.add_argument("--crops", type=int, default=512, metavar="N", help="that statistics are taken from (512)")
    parser.add_argument("--greedy", action="store_true", help="leave out checkpoints that make the mean worse")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (auto)")
    _add_out(parser, "BUNDLE", "folder to write")


def _add_views(parser: argparse.ArgumentParser, usual: str = "none") -> None:
    parser.add_argument(
        "--tta", choices=("none", "flips", "d4"), default="none", help=f"average mirrored views ({usual})"
    )
    parser.add_argument("--scales", metavar="S,S,...", default="1", help="average views at these scales: 0.75,1,1.25")
    parser.add_argument("--tile", type=int, metavar="PX", help="side of the tiles; needed where members' tiles differ")


def _add_out(parser: argparse.ArgumentParser, metavar: str, text: str) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar=metavar, help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace it")


def run(options: argparse.Namespace) -> int:
    """Do one of them."""
    refuse_existing(options.out, options.overwrite)
    from visionapps.runtime import keep_freed_memory

    keep_freed_memory()  # before the first tensor
    steps: dict[str, Callable[[argparse.Namespace], int]] = {
        "make": _make,
        "fit": _fit,
        "blend": _blend,
        "average": _average,
    }
    return steps[options.step](options)


def _make(options: argparse.Namespace) -> int:
    _require_yaml(options.out)
    weights = _weights(options.weights, len(options.bundles), "bundles")
    _save(_spec(options, list(zip(options.bundles, weights or [1.0] * len(options.bundles), strict=True))), options)
    return 0


def _spec(
    options: argparse.Namespace, members: Sequence[tuple[Path, float]], fitted: dict[str, Any] | None = None
) -> "EnsembleSpec":
    from visionapps.cli.compute import numbers
    from visionapps.competition.ensemble import EnsembleSpec, Member

    scales = numbers(options.scales, "--scales")
    made = tuple(Member(bundle, weight) for bundle, weight in members)
    return EnsembleSpec(made, options.tta, scales, options.tile, fitted or {})


def _require_yaml(out: Path) -> None:
    from visionapps.competition.ensemble import is_spec

    if not is_spec(out):
        raise ConfigError(f"{out}: the file of an ensemble ends in .yaml, by which verbs know it")


def _save(spec: "EnsembleSpec", options: argparse.Namespace) -> None:
    spec.require_fitting()
    spec.save(options.out, options.overwrite)
    total = sum(spec.weights)
    rows = [(str(member.bundle), f"{member.weight / total:.1%}") for member in spec.members]
    print(render(("member", "share"), rows))
    views = len(spec.views)
    count, passes = len(spec.members), spec.forwards
    print(
        f"\n{count} member{'s'[: count != 1]} x {views} view{'s'[: views != 1]}: "
        f"{passes} forward pass{'es'[: 2 * (passes != 1)]} per tile"
    )
    print(f"ensemble  {options.out}")
    print(f"next      visionapps predict {options.out} IMAGES --out MAPS")


def _weights(text: str | None, count: int, what: str) -> list[float] | None:
    from visionapps.cli.compute import numbers

    if text is None:
        return None
    found = list(numbers(text, "--weights"))
    if len(found) != count:
        raise ConfigError(f"--weights: {len(found)} numbers for {count} {what}; give one for each")
    return found


def _average(options: argparse.Namespace) -> int:
    from visionapps.competition.soup import average, greedy_soup, normalisations

    if options.greedy and (options.config is None or options.weights):
        raise ConfigError("--greedy: needs --config YAML of the run, whose validation photos judge, and no --weights")
    refuse_sources(options.out, [*options.checkpoints, options.config])
    if options.crops < 1:
        raise ConfigError(f"--crops {options.crops}: at least 1 is needed")
    weights = _weights(options.weights, len(options.checkpoints), "checkpoints")
    if options.config is None:
        bundle = average(options.checkpoints, weights)
        count = len(normalisations(bundle.model))
        if count:
            print(
                f"statistics of {count} batch normalisations are means, too; --config YAML takes new ones from photos"
            )
    else:
        photos = _Photos(options)
        if options.greedy:
            soup = greedy_soup(options.checkpoints, photos.score, photos.finish)
            bundle, alone, found = soup.bundle, list(soup.alone), soup.score
            used = set(soup.used)
        else:
            alone = [(path, photos.score_of(path)) for path in options.checkpoints]
            bundle = photos.finish(average(options.checkpoints, weights))
            found, used = photos.score(bundle), set(options.checkpoints)
        rows = [(str(path), value, "yes" if path in used else "no") for path, value in alone]
        print(render(("checkpoint", "mean Dice", "in the mean"), [*rows, ("mean of weights", found, "")]))
        bundle.card["metrics"] = {"mean_dice": found}
    bundle.save(options.out, options.overwrite)
    print(f"\nbundle  {options.out}")
    return 0


class _Photos:
    """What a run's photos are good for: statistics from the training ones, scores from the others."""

    def __init__(self, options: argparse.Namespace) -> None:
        from visionapps.inference.network import choose_device
        from visionapps.training.data import SegmentationData
        from visionapps.training.run import build

        self._options = options
        self._device = choose_device(options.device)
        data = build(options.config, options.out, [])[2]
        if not isinstance(data, SegmentationData):
            raise ConfigError(f"{options.config}: no run of a segmentation model; leave --config out")
        data.setup("fit")
        self._data = data

    def finish(self, bundle: "Bundle") -> "Bundle":
        """The bundle with new statistics of batch normalisation."""
        from visionapps.competition.soup import recompute_statistics

        looked = recompute_statistics(bundle.model.to(self._device), self._images())
        return replace(bundle, card=bundle.card | {"statistics_from_crops": looked})

    def score_of(self, path: Path) -> float:
        """Mean Dice of a checkpoint on the validation photos."""
        from visionapps.competition.soup import read_model

        return self.score(read_model(path))

    def score(self, bundle: "Bundle") -> float:
        """Mean Dice on the validation photos."""
        from visionapps.inference.evaluation import evaluate_photos, require_same_classes
        from visionapps.inference.predictor import Predictor

        found = self._data.examination
        assert found is not None, "set up"
        require_same_classes(bundle.labels, found.coding.labels, str(self._options.config))
        predictor = Predictor(bundle.segmentor, device=str(self._device), precision="fp32")
        return evaluate_photos(predictor, found.val, found.coding.labels).mean_dice

    def _images(self) -> "Iterator[Tensor]":
        from visionapps.data.crops import collate

        crops, size, count = self._data.random_crops(), self._data.batch_size, self._options.crops
        for first in range(0, count, size):
            yield collate([crops[i] for i in range(first, min(first + size, count))]).image


def _fit(options: argparse.Namespace) -> int:
    from visionapps.cli.tune import metric_of
    from visionapps.competition.blend import members_of, refuse_target
    from visionapps.competition.oof import OofStore
    from visionapps.competition.weights import fit_weights, require_one_plan

    _require_yaml(options.out)
    stores = [OofStore.open(folder) for folder in options.stores]
    require_one_plan(stores)
    _take_views(options, stores)
    members = [[pair for fold in sorted(store.members) for pair in members_of(store, fold)] for store in stores]
    _spec(options, [(bundle, 1.0) for own in members for bundle, _ in own]).require_fitting()  # before a long search
    if options.oof is not None:
        refuse_target(options.oof, options.stores, options.overwrite)
    metric = metric_of(options, stores[0].labels.names)
    fitted = fit_weights(stores, metric, method=options.method, most=options.photos, seed=options.seed)
    _print_fit(options.stores, fitted)
    shares = [
        (bundle, weight * share / stores[0].k)
        for own, weight in zip(members, fitted.weights, strict=True)
        for bundle, share in own
        if weight > 0
    ]
    spec = _spec(options, shares, {"metric": metric.to_dict()} | fitted.to_dict([str(path) for path in options.stores]))
    if options.oof is not None:
        _write_blend(stores, fitted.weights, options.oof, options.overwrite)
    print()
    _save(spec, options)
    return 0


def _take_views(options: argparse.Namespace, stores: "Sequence[OofStore]") -> None:
    """Where the options do not say how the ensemble looks at a tile: as its stores were predicted."""
    from visionapps.competition.blend import views_of

    if options.tta is None or options.scales is None:
        flips, scales = views_of(stores)
        options.tta = options.tta or flips
        options.scales = options.scales or ",".join(f"{scale:g}" for scale in scales)


def _blend(options: argparse.Namespace) -> int:
    from visionapps.competition.oof import OofStore

    stores = [OofStore.open(folder) for folder in options.stores]
    weights = _weights(options.weights, len(stores), "stores") or [1.0] * len(stores)
    _write_blend(stores, weights, options.out, options.overwrite)
    print(f"next      visionapps tune {options.out} --out RULES.yaml")
    return 0


def _write_blend(stores: "Sequence[OofStore]", weights: Sequence[float], out: Path, overwrite: bool) -> None:
    """Write the mean of stores, and tell what it is worth."""
    from tqdm import tqdm

    from visionapps.competition.blend import blend
    from visionapps.competition.predicting import cross_validate

    with tqdm(desc="blending", total=len(stores[0].names), unit="photo", disable=None, leave=False) as bar:
        found = blend(stores, weights, out, overwrite=overwrite, progress=lambda _: cast(None, bar.update()))
    print(f"\nblended   {out}")
    if all(photo.truth for photo in found.photos.values()):
        pooled = cross_validate(found).pooled
        print(f"          mean Dice {pooled.mean_dice:.4f}, mean IoU {pooled.mean_iou:.4f} of all photos together")


def _print_fit(stores: Sequence[Path], fitted: "Fitted") -> None:
    rows = [
        (str(path), alone, weight) for path, alone, weight in zip(stores, fitted.alone, fitted.weights, strict=True)
    ]
    print(render(("out-of-fold store", "alone", "weight"), rows))
    print(f"\n{render(('weights', 'score'), list(fitted.scores.items()))}\n")
    print(f"taken: {fitted.method}; {fitted.score:.4f} on the photos that it was fitted to ({fitted.photos} photos)")
    if fitted.nested is not None:
        gain, kept = fitted.score - fitted.equal, fitted.nested - fitted.equal
        print(f"fitted without each fold in turn, scored on it: {fitted.nested:.4f}; equal weights: {fitted.equal:.4f}")
        print(f"of a gain of {gain:+.4f} over equal weights {kept:+.4f} is there on photos that had no say")
