"""Turn a training checkpoint into a bundle: a folder with the model as YAML, its weights and a card, without pickle."""

import argparse
from dataclasses import replace
from pathlib import Path

from visionapps.cli.table import render
from visionapps.files import refuse_existing


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("checkpoint", type=Path, help="a .ckpt file of `visionapps fit`")
    parser.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    parser.add_argument(
        "--gsd",
        type=float,
        metavar="METRES",
        help="ground size of a pixel in the training images: rasters with other pixels are resampled to it",
    )


def run(options: argparse.Namespace) -> int:
    """Export, and print what the bundle holds."""
    refuse_existing(options.out, options.overwrite)
    from visionapps.inference.bundle import from_checkpoint

    bundle = from_checkpoint(options.checkpoint)
    if options.gsd is not None:
        bundle = replace(bundle, gsd=options.gsd)
    bundle.save(options.out, options.overwrite)
    recipe = bundle.model.recipe or {}
    metrics = bundle.card.get("metrics") or {}
    rows = [
        ("bundle", options.out),
        ("model", f"{recipe.get('model')} on {recipe.get('arguments', {}).get('backbone')}"),
        ("parameters", f"{sum(p.numel() for p in bundle.model.parameters()) / 1e6:.2f} M"),
        ("bands", f"{', '.join(bundle.spec.bands)} ({bundle.spec.scale:g} means 1.0)"),
        ("classes", f"{len(bundle.labels)}: {', '.join(bundle.labels.names)}"),
        ("tile", f"{bundle.tile} px"),
        *((("ground", f"{bundle.gsd:g} m per pixel"),) if bundle.gsd else ()),
        *((f"val {name}", metrics[name]) for name in ("mean_dice", "mean_iou", "accuracy") if name in metrics),
    ]
    print(render(("", ""), [(name, f"{v:.3f}" if isinstance(v, float) else str(v)) for name, v in rows]))
    return 0
