"""Make a trained bundle smaller: prune it, let its weights share values, or leave each of them two or three values.

visionapps compress BUNDLE --out NEW --prune 0.8 --share 5                        no training: quick, and often too much
visionapps compress BUNDLE --out NEW --prune 0.8 --share 5 --config run.yaml --retrain-epochs 4
visionapps compress BUNDLE --out NEW --ternary --config run.yaml --retrain-epochs 20
visionapps compress BUNDLE --out NEW --exit-budget 0.5 --config run.yaml          MSDNet: easy photos leave early
visionapps compress BUNDLE --out NEW --gates 0.6 --config run.yaml --retrain-epochs 20     ResNet: skips blocks

Steps come in this order, each trained for the epochs given; the table shows file, weights, time and score before and
after. The new bundle is used like any other. Time falls only with steps that leave computation out: zeros among the
weights of a convolution are multiplied as well.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from visionapps.cli.table import render
from visionapps.errors import ConfigError
from visionapps.files import refuse_existing, whole_output

if TYPE_CHECKING:
    from torch.nn import Module

    from visionapps.compression.compress import Retrain, Step
    from visionapps.compression.judging import Judge, Weighed
    from visionapps.inference.bundle import Bundle


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("bundle", type=Path, help="folder written by `visionapps export`")
    parser.add_argument("--out", type=Path, required=True, metavar="NEW", help="folder of the new bundle")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    steps = parser.add_argument_group("steps")
    steps.add_argument("--prune", type=float, metavar="SHARE", help="make this share of the weights zero: 0.8")
    steps.add_argument("--per-layer", action="store_true", help="the same share in every layer (all layers compete)")
    steps.add_argument("--share", type=int, metavar="BITS", help="at most 2^BITS values per layer, by k-means: 5")
    steps.add_argument("--share-linear", type=int, metavar="BITS", help="of linear layers (as --share)")
    few = steps.add_mutually_exclusive_group()
    few.add_argument("--ternary", action="store_true", help="three values per layer, learnt; needs retraining")
    few.add_argument("--xnor", action="store_true", help="two values per filter, as in XNOR-Net; needs retraining")
    steps.add_argument(
        "--keep", action="append", default=[], metavar="PATTERN", help="layers to leave as they are: '*objectness*'"
    )
    steps.add_argument(
        "--gates",
        type=float,
        metavar="SHARE",
        help="of a resnet20, 56 or 110: compute each block for this share of photos",
    )
    steps.add_argument(
        "--exit-budget",
        type=float,
        metavar="SHARE",
        help="of a network with exits: mean cost of a photo, 1 is all of it",
    )
    judging = parser.add_argument_group("retraining and judging")
    judging.add_argument("--config", type=Path, metavar="YAML", help="the run that the bundle was trained with")
    judging.add_argument("--split", choices=("val", "train", "all"), default="val", help="whose score is shown (val)")
    judging.add_argument("--retrain-epochs", type=int, default=0, metavar="N", help="after each step (0)")
    judging.add_argument("--retrain-rate", type=float, default=0.1, metavar="F", help="times the run's rates (0.1)")
    judging.add_argument("--device", default="auto", help="of the judging: cpu, cuda, ... (auto)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there as well")


def run(options: argparse.Namespace) -> int:
    """Compress, weigh both bundles, print the table."""
    steps = _steps(options)
    if options.retrain_epochs < 0 or (options.retrain_epochs and options.config is None):
        raise ConfigError("compress --retrain-epochs N: give a number from 0 on, and the run's --config YAML")
    refuse_existing(options.out, options.overwrite)
    if options.json is not None:
        refuse_existing(options.json, options.overwrite)
    if options.out.exists() and options.out.resolve() == options.bundle.resolve():
        raise ConfigError(f"{options.out}: is the bundle itself; give another folder, so that both can be compared")
    from visionapps.runtime import keep_freed_memory

    keep_freed_memory()  # before the first tensor
    from visionapps.compression.compress import compress
    from visionapps.compression.judging import seconds_per_tile, weigh
    from visionapps.inference.bundle import load

    bundle = load(options.bundle)
    judge = _judge(options)
    before = weigh(options.bundle, judge=judge)
    if options.gates is not None:
        bundle = _gated(bundle, options)
    if steps:
        bundle = compress(bundle, steps, retrain=_retraining(bundle, options))
    if options.exit_budget is not None:
        bundle = _with_exits(bundle, options)
    bundle.save(options.out, options.overwrite)
    after = weigh(options.out, judge=judge)
    done = list(bundle.card["compression"])
    seconds = seconds_per_tile([load(options.bundle), load(options.out)])
    print(_table(before, after, seconds))
    print(f"\n{'; '.join(done)}\nbundle  {options.out}")
    if options.json is not None:
        numbers: dict[str, object] = {"steps": done, "seconds_per_tile": seconds, "before": before.to_dict()}
        numbers["after"] = after.to_dict()
        with whole_output(options.json, options.overwrite) as path:
            path.write_text(json.dumps(numbers, indent=1) + "\n")
    return 0


def _steps(options: argparse.Namespace) -> "list[Step]":
    few = options.ternary or options.xnor
    if few and (options.share is not None or options.prune is not None):
        raise ConfigError(
            "compress: --ternary and --xnor fix the values of weights; give them without --prune, --share"
        )
    if options.share_linear is not None and options.share is None:
        raise ConfigError("compress --share-linear: give --share BITS of the other layers, too")
    adaptive = options.gates is not None or options.exit_budget is not None
    if options.prune is None and options.share is None and not few and not adaptive:
        raise ConfigError(
            "compress: nothing to do; give --prune, --share, --ternary, --xnor, --gates or --exit-budget, see --help"
        )
    if adaptive and options.config is None:
        raise ConfigError("compress --gates, --exit-budget: need photos; give the run's --config YAML")
    if options.gates is not None and not options.retrain_epochs:
        raise ConfigError("compress --gates: gates are learnt; give --retrain-epochs N, a few at least")
    if few and not options.retrain_epochs:
        raise ConfigError(
            "compress --ternary, --xnor: few values are learnt; give the run's --config YAML and --retrain-epochs N"
        )
    if options.per_layer and options.prune is None:
        raise ConfigError("compress --per-layer: says how weights are pruned; give --prune SHARE, too")
    from visionapps.compression.few_values import BinaryWeights, TernaryWeights
    from visionapps.compression.pruning import Prune
    from visionapps.compression.sharing import Share

    keep = tuple(options.keep)
    steps: list[Step] = []
    if options.prune is not None:
        steps.append(Prune(options.prune, "layer" if options.per_layer else "global", keep))
    if options.share is not None:
        steps.append(Share(options.share, options.share_linear, keep))
    if options.ternary:
        steps.append(TernaryWeights(keep=keep))
    if options.xnor:
        steps.append(BinaryWeights(keep))
    return steps


def _judge(options: argparse.Namespace) -> "Judge | None":
    if options.config is None:
        return None
    from visionapps.cli.check import read_dataset
    from visionapps.compression.judging import make_judge

    return make_judge(read_dataset(options.config), options.split, device=options.device)


def _gated(bundle: "Bundle", options: argparse.Namespace) -> "Bundle":
    from visionapps.compression.adaptive import with_gates

    gated = with_gates(bundle, options.gates)
    train_on = _retraining(gated, options)
    assert train_on is not None, "asked for above"
    train_on(gated.model)
    return gated


def _with_exits(bundle: "Bundle", options: argparse.Namespace) -> "Bundle":
    from visionapps.cli.check import read_dataset
    from visionapps.compression.adaptive import set_exit_budget
    from visionapps.data.class_dataset import ClassDataset
    from visionapps.data.class_doctor import examine_classes

    dataset = read_dataset(options.config)
    if not isinstance(dataset, ClassDataset):
        raise ConfigError(f"{options.config}: its dataset has no classes of photos, but exits are those of classifiers")
    return set_exit_budget(bundle, examine_classes(dataset).val, options.exit_budget)


def _retraining(bundle: "Bundle", options: argparse.Namespace) -> "Retrain | None":
    if not options.retrain_epochs:
        return None
    from visionapps.training.retrain import retrain

    network = (bundle.model.recipe or {}).get("arguments", {}).get("network")  # gates may have changed it
    overrides = ["--model.init_args.model.init_args.network", network] if network else []

    def train_on(model: "Module") -> None:
        epochs, rate = options.retrain_epochs, options.retrain_rate
        with redirect_stdout(sys.stderr):  # the bars of the training are no result
            retrain(model, options.config, epochs=epochs, rate=rate, overrides=overrides)

    return train_on


def _table(before: "Weighed", after: "Weighed", seconds: Sequence[float]) -> str:
    def times(a: float, b: float) -> str:
        return f"{a / b:.1f} x" if b and not math.isnan(a / b) else "-"

    def kilobytes(count: int) -> str:
        return f"{count / 1000:,.1f} kB"

    rows: list[tuple[object, ...]] = [
        ("weights on disk", kilobytes(before.file_bytes), kilobytes(after.file_bytes),
         times(before.file_bytes, after.file_bytes)),
    ]  # fmt: skip
    names = {
        "dense": "every bit of every weight",
        "sparse": "not zero, and gaps",
        "shared": "numbers of shared values",
        "coded": "Huffman-coded",
    }
    for key, name in names.items():
        a, b = getattr(before.stages, key), getattr(after.stages, key)
        rows.append((f"  {name}", kilobytes(a), kilobytes(b), times(before.stages.dense, b)))
    rows += [
        ("zeros among weights", f"{before.zeros:.1%}", f"{after.zeros:.1%}", ""),
        ("most values in a layer", f"{before.values:,}", f"{after.values:,}", ""),
        (
            "seconds per tile, CPU",
            f"{seconds[0]:.4f}",
            f"{seconds[1]:.4f}",
            times(*seconds),
        ),
    ]
    if before.score is not None and after.score is not None:
        change = after.score.value - before.score.value
        spent = (before.score.seconds, after.score.seconds)
        rows.append(("seconds per photo judged", f"{spent[0]:.4f}", f"{spent[1]:.4f}", times(*spent)))
        if before.score.multiply_adds and after.score.multiply_adds:
            costs = (before.score.multiply_adds, after.score.multiply_adds)
            rows.append(
                ("multiply-adds per photo", f"{costs[0] / 1e6:,.1f} M", f"{costs[1] / 1e6:,.1f} M", times(*costs))
            )
        rows.append((before.score.name, f"{before.score.value:.4f}", f"{after.score.value:.4f}", f"{change:+.4f}"))
    return render(("", "before", "after", "change"), rows)
