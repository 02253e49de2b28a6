"""What settings for rare classes change: what training draws, and what a small network learns from it.

    python tools/bench_imbalance.py --draws
    python tools/bench_imbalance.py --epochs 12 --seeds 2 --json imbalance.json

The photos are made up: meadow and field everywhere, a lake in one photo of four and small ponds in the others, all of
one class, and a few trees of 7 to 11 px. "--draws" only counts crops, which takes seconds. Otherwise each setting
trains the same small U-Net, from scratch, for the same number of steps with `visionapps fit`, and is judged on whole
validation photos; mean over the seeds. CPU seconds are those of the process.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from PIL import Image

from visionapps.cli.main import main as visionapps
from visionapps.cli.table import render
from visionapps.data.balance import Balance, Sliding
from visionapps.data.crops import RandomCrops
from visionapps.data.drawn import Drawn, DrawnTable
from visionapps.training.run import build

NAMES = ("meadow", "field", "water", "tree")
COLORS = np.array([(110, 140, 70), (150, 130, 90), (80, 100, 110), (70, 100, 55)])
SIDE, CROP, BATCH = 256, 64, 8
NOISE = 22.0

# What differs from the first line: settings of the crops, then of the loss.
EVEN = {"balance": 0.0}
ENTROPY = {"class_path": "visionapps.losses.CrossEntropy"}
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "evenly drawn": (EVEN, ENTROPY),
    "balance 0.5": ({"balance": 0.5}, ENTROPY),
    "balance 0.5, 3 area bins": ({"balance": 0.5, "area_bins": 3}, ENTROPY),
    "balance 0.8 to 0.2": ({"balance": {"start": 0.8, "end": 0.2, "epochs": 10}}, ENTROPY),
    "class_weights inverse": (EVEN, ENTROPY | {"init_args": {"class_weights": "inverse"}}),
    "class_weights median_frequency": (EVEN, ENTROPY | {"init_args": {"class_weights": "median_frequency"}}),
    "class_weights effective": (EVEN, ENTROPY | {"init_args": {"class_weights": "effective"}}),
    "hardest quarter of pixels": (
        EVEN,
        {"class_path": "visionapps.losses.HardPixels", "init_args": {"share": 0.25, "at_least": 1000}},
    ),
    "cross-entropy + Lovasz": (
        EVEN,
        {
            "class_path": "visionapps.losses.WeightedSum",
            "init_args": {"losses": [ENTROPY, {"class_path": "visionapps.losses.Lovasz"}], "weights": [1.0, 1.0]},
        },
    ),
}


def write_photos(folder: Path, count: int, rng: np.random.Generator) -> None:
    """Photos site<k>_<n>.png with their masks, four per site."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        truth = np.zeros((SIDE, SIDE), np.uint8)
        for _ in range(3):
            corner = rng.integers(0, SIDE, 2)
            box = cv2.boxPoints((corner.astype(np.float32), rng.uniform(40, 110, 2), rng.uniform(0, 90)))
            cv2.fillPoly(truth, [box.astype(np.int32)], 1)
        if number % 4 == 0:
            cv2.ellipse(truth, rng.integers(80, 176, 2).tolist(), rng.integers(50, 80, 2).tolist(), 0, 0, 360, 2, -1)
        else:
            for _ in range(2):
                cv2.circle(truth, rng.integers(10, SIDE - 10, 2).tolist(), int(rng.integers(4, 8)), 2, -1)
        for _ in range(4):
            cv2.circle(truth, rng.integers(8, SIDE - 8, 2).tolist(), int(rng.integers(3, 6)), 3, -1)
        image = COLORS[truth] * rng.uniform(0.85, 1.15) + rng.normal(0, NOISE, (SIDE, SIDE, 3))
        stem = f"site{number // 4}_{number % 4}.png"
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / stem)
        Image.fromarray(truth).save(folder / "masks" / stem)


def settings(folder: Path, crops: dict[str, Any], loss: dict[str, Any], epochs: int, seed: int) -> dict[str, Any]:
    """A run as a person would write it."""
    model = {"backbone": "test_efficientnet", "num_classes": len(NAMES), "channels": [32, 32, 16, 16, 16]}
    dataset = {
        "images": str(folder / "images"),
        "masks": str(folder / "masks"),
        "classes": [{"name": name} for name in NAMES],
        "split": {"group": "site\\d+", "val_fraction": 0.3},
        "policies": {"near_duplicate": "warn"},
        "cache": str(folder / "cache"),
    }
    return {
        "seed_everything": seed,
        "trainer": {
            "max_epochs": epochs,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "check_val_every_n_epoch": epochs,
        },
        "model": {
            "class_path": "visionapps.training.segmentation.SegmentationTask",
            "init_args": {
                "model": {"class_path": "visionapps.models.unet", "init_args": model},
                "loss": loss,
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}},
                "curve": {"class_path": "visionapps.training.optim.Cosine", "init_args": {"warmup": 0.1}},
            },
        },
        "data": {
            "class_path": "visionapps.training.data.SegmentationData",
            "init_args": {
                "dataset": dataset,
                "crops": {"size": CROP, "per_epoch": 10 * BATCH, **crops},
                "batch_size": BATCH,
                "augment": {"class_path": "visionapps.data.transforms.geometric"},
                "val_tile": SIDE,
                "workers": 0,
                "seed": seed,
            },
        },
    }


def drawn(folder: Path, count: int) -> list[dict[str, Any]]:
    """What each setting of the crops draws, beside the photos."""
    config = folder / "draws.yaml"
    config.write_text(yaml.safe_dump(settings(folder, EVEN, ENTROPY, 1, 0)))
    *_, data, _ = build(config, folder / "draws", ["--trainer.logger", "false"])
    data.setup("fit")
    found = [{"setting": "photos", "drawn": data.photo_counts()}]
    for name, (crops, loss) in SETTINGS.items():
        rate = crops["balance"]
        if loss is not ENTROPY:
            continue
        balance = Balance(Sliding(**rate) if isinstance(rate, dict) else rate, area_bins=crops.get("area_bins"))
        items = RandomCrops(data.examination.train, size=CROP, length=count // 10, balance=balance)
        labels = np.stack([items[i].labels.numpy() for i in range(count)])
        found.append({"setting": name, "drawn": Drawn.of(labels, len(NAMES))})
    return found


def trained(folder: Path, name: str, epochs: int, seeds: int) -> dict[str, Any]:
    """Scores of a setting on whole validation photos, mean over the seeds."""
    scores, table, began = [], None, time.process_time()
    for seed in range(seeds):
        out = folder / f"{name.replace(' ', '_')}_{seed}"
        config = folder / "run.yaml"
        config.write_text(yaml.safe_dump(settings(folder, *SETTINGS[name], epochs, seed)))
        with contextlib.redirect_stdout(io.StringIO()):
            if visionapps(["fit", "--config", str(config), "--out", str(out)]):
                raise SystemExit(f"{name}: the run failed")
        classes = json.loads((out / "report/scores.json").read_text())["classes"]
        scores.append([row["dice"] for row in classes])
        table = DrawnTable.read(out / "drawn.csv")
    assert table is not None
    return {
        "setting": name,
        "dice": np.mean(scores, axis=0).tolist(),
        "spread": np.ptp(np.mean(scores, axis=1)),
        "drawn": table.total,
        "cpu_s": (time.process_time() - began) / seeds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", action="store_true", help="only count what is drawn")
    parser.add_argument("--crops", type=int, default=4000, help="crops to count (4000)")
    parser.add_argument("--photos", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=12, help="of 10 steps of 8 crops (12)")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_photos(folder, options.photos, np.random.default_rng(0))
        if options.draws:
            rows = drawn(folder, options.crops)
            shares = [(r["setting"], *(f"{s:7.2%}" for s in r["drawn"].share_of_pixels)) for r in rows]
            print(render(("share of pixels", *NAMES), shares))
            held = [(r["setting"], *(f"{s:7.2%}" for s in r["drawn"].share_of_crops)) for r in rows]
            print("\n" + render(("photos or crops with it", *NAMES), held))
        else:
            rows = [trained(folder, name, options.epochs, options.seeds) for name in SETTINGS]
            shown = [
                (r["setting"], *r["dice"], float(np.mean(r["dice"])), float(r["spread"]), r["cpu_s"]) for r in rows
            ]
            print(render(("setting", *(f"Dice {n}" for n in NAMES), "mean", "range of seeds", "CPU s"), shown))
    if options.json:
        plain = [{k: v.to_row() if isinstance(v, Drawn) else v for k, v in row.items()} for row in rows]
        options.json.write_text(json.dumps(plain, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
