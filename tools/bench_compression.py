"""The table of docs/compression.md: train a small classifier on generated pictures, compress it in several ways.

python tools/bench_compression.py --out bench_compression [--network msdnet] [--epochs 6]
"""

import argparse
from pathlib import Path

import numpy as np

from visionapps.cli.main import main as visionapps
from visionapps.data.fake_classes import write_classes

CONFIG = """
seed_everything: 0
trainer: {max_epochs: EPOCHS, enable_model_summary: false, accelerator: cpu}
model:
  class_path: visionapps.training.classification.ClassificationTask
  init_args:
    model: {class_path: visionapps.models.classifier, init_args: {network: visionapps/NETWORK, num_classes: 10}}
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1, momentum: 0.9, weight_decay: 1.0e-4}}
    curve: {class_path: visionapps.training.optim.Cosine, init_args: {warmup: 0.1}}
data:
  class_path: visionapps.training.class_data.ClassificationData
  init_args:
    dataset: {train: HERE/train, val: HERE/val, cache: HERE/cache}
    view: {side: 32, pad: 4}
    batch_size: 50
    workers: 0
"""
WAYS = {
    "resnet20": (
        "--prune 0.5 --share 5",
        "--prune 0.8",
        "--prune 0.8 --share 5",
        "--prune 0.8 --share 5 --retrain-epochs 1",
        "--ternary --retrain-epochs 2 --retrain-rate 0.5",
        "--xnor --retrain-epochs 2 --retrain-rate 0.5",
        "--gates 0.6 --retrain-epochs 2 --retrain-rate 0.5",
    ),
    "msdnet": ("--exit-budget 0.5", "--exit-budget 0.25"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="new folder for everything")
    parser.add_argument("--network", choices=tuple(WAYS), default="resnet20")
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    here: Path = options.out.resolve()
    rng = np.random.default_rng(0)
    for name, count in (("train", 150), ("val", 60)):
        write_classes(here / name, count, classes=10, rng=rng, mean=False)
    config, bundle = here / "run.yaml", here / "bundle"
    text = CONFIG.replace("EPOCHS", str(options.epochs)).replace("NETWORK", options.network)
    config.write_text(text.replace("HERE", here.as_posix()))
    commands = [
        ["fit", "--config", str(config), "--out", str(here / "run"), "--no-report"],
        ["export", str(here / "run/checkpoints/best.ckpt"), "--out", str(bundle)],
    ]
    for number, way in enumerate(WAYS[options.network]):
        small = here / f"small_{number}"
        commands.append(["compress", str(bundle), "--out", str(small), "--config", str(config), *way.split()])
    for words in commands:
        print(f"\n$ visionapps {' '.join(words)}", flush=True)
        if code := visionapps(words):
            return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
