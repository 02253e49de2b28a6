"""From folds to tuned rules for an ensemble of two kinds of model, every step timed: the table of docs/competition.md.

    python tools/competition_road.py            two cores, no GPU: about 50 minutes, most of it training
    python tools/competition_road.py --table    the table of what is there

Real photos are expected in ../shared/data/dubai, as the configs say. A step whose result is there is not done again.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from visionapps.cli.table import render
from visionapps.competition.finishing import read_rules
from visionapps.competition.oof import OofStore
from visionapps.competition.tuning import Tuner, Tuning
from visionapps.metrics.competition import build_metric

UNCOUNTED = "Unlabeled"  # 0.8 % of the pixels, of no common look
METRIC = ("--metric", "dice_per_image", "--exclude", UNCOUNTED)
LAST_EPOCH_ONLY = ("--trainer.max_epochs", "6", "--trainer.check_val_every_n_epoch", "6")
CONFIGS = {"unet": "configs/landcover/dubai_unet.yaml", "fpn": "configs/landcover/dubai_fpn.yaml"}


@dataclass(frozen=True)
class Step:
    """One command, and the file that is there when it is done."""

    name: str
    words: tuple[str, ...]
    result: Path


def steps(out: Path) -> list[Step]:
    """All commands, in their order."""
    found = []
    for kind, config in CONFIGS.items():
        folder = out / kind
        plan = () if kind == "unet" else ("--plan", str(out / "unet/plan.json"))
        base = ("folds", "--config", config, "--out", str(folder))
        group = ("--k", "4", "--group", r"^(tile\d+)_")
        found.append(Step(kind, (*base, *group, *plan, *LAST_EPOCH_ONLY), folder / "cv.json"))
        again = ("--resume", *LAST_EPOCH_ONLY, "--tta", "d4", "--oof", str(folder / "oof_d4"))
        found.append(Step(f"{kind} d4", (*base, *again), folder / "oof_d4_cv.json"))
    stores = [str(out / kind / "oof_d4") for kind in CONFIGS]
    ensemble, blend, rules = out / "ensemble.yaml", str(out / "oof"), out / "rules.yaml"
    fit = ("ensemble", "fit", *stores, *METRIC, "--out", str(ensemble), "--oof", blend, "--overwrite")
    tune = ("tune", blend, *METRIC, "--rules", "threshold,min_area,min_present", "--out", str(rules))
    return [*found, Step("weights", fit, ensemble), Step("rules", tune, rules)]


def walk(out: Path) -> None:
    """Do the steps that are not done, and keep their times."""
    kept = out / "times.json"
    times = json.loads(kept.read_text()) if kept.is_file() else {}
    for step in steps(out):
        if step.result.exists():
            continue
        print(f"\n$ visionapps {' '.join(step.words)}", flush=True)
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "visionapps.cli.main", *step.words], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        times[step.name] = {"wall": time.perf_counter() - began, "cpu": cpu}
        out.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(times, indent=1) + "\n")


def judged(folder: Path, rules: Path | None = None) -> tuple[float, float]:
    """Dice per photo and class, and pooled, of the labels that a store gives, with rules or without."""
    store = OofStore.open(folder)
    process = read_rules(rules, store.labels) if rules else None
    tuning = Tuning(("threshold",), background=process.background if process else None)
    found = []
    for name in ("dice_per_image", "dice_global"):
        metric = build_metric({"name": name, "exclude": [UNCOUNTED]}, store.labels.names)
        found.append(metric.score(Tuner(store, metric, tuning).counts(process).sum(0)))
    return found[0], found[1]


def table(out: Path) -> str:
    """A line per step of the road that can be judged."""
    import yaml

    rows: list[tuple[object, ...]] = []
    for kind in CONFIGS:
        rows.append((kind, *judged(out / kind / "oof"), None, kind))
        rows.append((f"{kind}, D4", *judged(out / kind / "oof_d4"), None, f"{kind} d4"))
    fitted = yaml.safe_load((out / "ensemble.yaml").read_text())["fitted"]
    rows.append(("both, D4, equal weights", fitted["equal_weights"], None, None, ""))
    rows.append(("both, D4, fitted weights", *judged(out / "oof"), fitted["nested"], "weights"))
    tuned = yaml.safe_load((out / "rules.yaml").read_text())["scores"]["nested"]["score"]
    rows.append(("the same, tuned rules", *judged(out / "oof", out / "rules.yaml"), tuned, "rules"))
    times = json.loads((out / "times.json").read_text())
    full = [
        (*row[:-1], *(round(times[row[-1]][key]) if row[-1] in times else None for key in ("cpu", "wall")))
        for row in rows
    ]
    weights = ", ".join(f"{Path(name).parent.name} {value:.2f}" for name, value in fitted["stores"].items())
    titles = ("", "Dice per photo and class", "Dice, pooled", "nested", "CPU s", "wall s")
    return f"{render(titles, full)}\n\nweights: {weights} ({fitted['method']})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/road"), help="folder for everything (runs/road)")
    parser.add_argument("--table", action="store_true", help="only judge what is there")
    options = parser.parse_args(arguments)
    if not options.table:
        walk(options.out)
    print(f"\n{table(options.out)}")


if __name__ == "__main__":
    main()
