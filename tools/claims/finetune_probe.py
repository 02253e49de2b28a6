"""Fine-tuning against a linear probe, with pretrained and with random weights, on one and the same division of photos.

    python tools/claims/finetune_probe.py --seeds 0 1

uses configs/classification/landcover_tiles_finetune.yaml, whose header says where its photos come from; any other
classification config with packaged weights will do. Every line is the same network:

    probe      features fixed, logistic regression on them, its penalty chosen on a fifth of the training photos
    fine-tune  the config's own training, all layers
    scratch    the same training from random weights, with one rate for all layers

Deck 004 has, for a network trained on ImageNet, probe and fine-tuning in percent: Caltech 101 87.7 and 88.4, VOC 79.7
and 82.4, CUB birds 61.0 and 70.4, aircraft 45.0 and 74.1, cars 36.5 and 79.8: fine-tuning wins by little where photos
look like ImageNet's, and by much where they do not.
"""

import argparse
import logging
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from visionapps.cli.table import render
from visionapps.inference.features import FeatureStore
from visionapps.training.class_data import ClassificationData
from visionapps.training.classification import ClassificationTask
from visionapps.training.probing import probe_photos
from visionapps.training.run import build, fit

_CONFIG = Path("configs/classification/landcover_tiles_finetune.yaml")
_MODEL = "--model.init_args.model.init_args"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=_CONFIG, help="classification run with pretrained weights")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="of drawing and training (0)")
    parser.add_argument("--side", type=int, metavar="PX", help="of the squares (the config's)")
    parser.add_argument("--epochs", type=int, default=4, metavar="N", help="of both trainings (4)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read photos (0)")
    options = parser.parse_args()
    logging.getLogger("lightning").setLevel(logging.ERROR)
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    common = [
        *(f"--data.init_args.workers={options.workers}", f"--trainer.max_epochs={options.epochs}"),
        "--trainer.enable_progress_bar=false",
        *([f"--data.init_args.view.side={options.side}"] if options.side else []),
    ]
    random = [f"{_MODEL}.weights=random", "--model.init_args.layer_rates.backbone=1.0"]
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            settings = [*common, f"--seed_everything={seed}", f"--data.init_args.seed={seed}"]
            out = Path(folder) / str(seed)
            for title, more in (("pretrained", []), ("random", random)):
                found[f"probe, {title}"].append(_probe(options.config, out / f"probe {title}", [*settings, *more]))
                name = "fine-tune" if title == "pretrained" else "scratch"
                found[name].append(_train(options.config, out / name, [*settings, *more]))
                print(f"seed {seed}, {title}: done", flush=True)
    rows = []
    for name, results in found.items():
        top1, seconds = np.array(results).T
        spread = float(top1.std(ddof=1)) if len(top1) > 1 else None
        rows.append((name, float(top1.mean()), spread, f"{seconds.mean():.0f}"))
    print(render(("what", "top-1", "deviation of seeds", "CPU s"), rows))


def _probe(config: Path, out: Path, settings: list[str]) -> tuple[float, float]:
    """Top-1 on the validation photos, and CPU seconds."""
    start = time.process_time()
    _, task, data, _ = build(config, out, [*settings, "--trainer.logger=false"])
    assert isinstance(task, ClassificationTask), "a run of a classifier"
    assert isinstance(data, ClassificationData), "a run of a classifier"
    data.setup("fit")
    task.model.load_pretrained(data.labels.names)
    probed = probe_photos(
        task.model,
        data.labels,
        data.view.frame,
        train=data.train_photos,
        val=data.val_photos,
        store=FeatureStore(out, workers=data.workers),
        seed=data.seed,
    )
    assert probed.scores is not None, "the config has validation photos"
    return probed.scores.top1, time.process_time() - start


def _train(config: Path, out: Path, settings: list[str]) -> tuple[float, float]:
    """The same of the last epoch of a training: the best one would have been chosen on these photos."""
    start = time.process_time()
    finished = fit(config, out, settings)
    assert isinstance(finished.task, ClassificationTask)
    assert finished.task.scores is not None
    return finished.task.scores.top1, time.process_time() - start


if __name__ == "__main__":
    main()
