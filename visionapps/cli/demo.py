"""The whole road on generated data: check, fit, export, predict, evaluate, submit, each as you would type it."""

import argparse
import shutil
import time
from importlib import resources
from pathlib import Path

from visionapps.errors import VisionAppsError
from visionapps.files import refuse_existing


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder for everything (default: demo_out)")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder of an earlier demo")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of training; more is better and slower (8)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another landscape")


def run(options: argparse.Namespace) -> int:
    out: Path = options.out
    refuse_existing(out, options.overwrite)
    if out.exists() and any(out.iterdir()) and not (out / "run.yaml").exists():
        raise VisionAppsError(f"{out}: holds other things than an earlier demo; choose another folder with --out")

    from visionapps.runtime import keep_freed_memory

    keep_freed_memory()  # before the first tensor
    from visionapps.data.fake import write_demo

    began = time.perf_counter()
    shutil.rmtree(out, ignore_errors=True)
    print(
        f"Everything goes to {out}. Generating a landscape: photos with masks, an orthophoto, a sample submission ..."
    )
    write_demo(out / "data", seed=options.seed)
    template = resources.files("visionapps.cli").joinpath("demo.yaml").read_text()
    config, scores = out / "run.yaml", out / "map_scores.json"
    config.write_text(template.replace("DATA", (out / "data").as_posix()))
    data, bundle, maps = out / "data", out / "bundle", out / "maps"
    sample = data / "sample_submission.csv"
    steps = (
        ("Is anything wrong with the data?", ["check", "--config", config]),
        (
            "Train a U-Net on a pretrained backbone.",
            ["fit", "--config", config, "--out", out / "run", "--trainer.max_epochs", options.epochs],
        ),
        ("Make a bundle of the best checkpoint.", ["export", out / "run/checkpoints/best.ckpt", "--out", bundle]),
        ("Draw the orthophoto as a georeferenced map.", ["predict", bundle, data / "orthophoto.tif", "--out", maps]),
        (
            "How good is the map?",
            ["evaluate", "--pred", maps, "--masks", data / "truth", "--config", config, "--json", scores],
        ),
        (
            "Draw the test photos, as masks and as overlays.",
            ["predict", bundle, data / "test_images", "--out", out / "test_masks", "--kind", "both"],
        ),
        (
            "Write a submission and prove it valid.",
            ["submit", out / "test_masks", "--dialect", "hrud", "--out", out / "submission.csv", "--sample", sample],
        ),
    )
    for number, (title, words) in enumerate(steps, 1):
        _step(f"{number}/{len(steps)} {title}", [str(word) for word in words])
    print(_closing(out, time.perf_counter() - began))
    return 0


def _step(title: str, words: list[str]) -> None:
    """Run one verb in this process, showing the command as a person would type it."""
    from visionapps.cli.main import main

    print(f"\n== {title}\n$ visionapps {' '.join(words)}", flush=True)
    if code := main(words):
        raise VisionAppsError(f"demo: `visionapps {words[0]}` ended with exit code {code}; its message stands above")


def _closing(out: Path, seconds: float) -> str:
    lines = (
        ("the map, for QGIS", "maps/orthophoto.tif"),
        ("how good the map is, per class", "map_scores.json"),
        ("overlays of test photos", "test_masks/"),
        ("scores, curves, worst and best", "run/report/"),
        ("the submission", "submission.csv"),
        ("the trained model", "bundle/"),
        ("the run's settings: start your own from it", "run.yaml"),
    )
    width = max(len(str(out / place)) for _, place in lines)
    listed = "\n".join(f"  {out / place!s:<{width}}  {text}" for text, place in lines)
    return f"\nDone in {seconds / 60:.1f} minutes. Look at:\n{listed}"
