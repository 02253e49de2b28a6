"""Turn a training checkpoint into a bundle: a folder with the model as YAML, its weights and a card, without pickle."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from visionapps.cli.table import render
from visionapps.files import refuse_existing

if TYPE_CHECKING:
    from visionapps.inference.bundle import Bundle

_METRICS = ("mean_dice", "mean_iou", "accuracy", "ap", "ap50", "ap75", "top1", "top5", "mean_recall")


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
    rows = [("bundle", options.out), *_facts(bundle)]
    print(render(("", ""), [(name, f"{v:.3f}" if isinstance(v, float) else str(v)) for name, v in rows]))
    return 0


def _facts(bundle: "Bundle") -> list[tuple[str, object]]:
    """What the bundle holds, line by line."""
    recipe = bundle.model.recipe or {}
    metrics = bundle.card.get("metrics") or {}
    rows: list[tuple[str, object]] = [
        ("model", f"{recipe.get('model')} on {recipe.get('arguments', {}).get('backbone')}"),
        ("parameters", f"{sum(p.numel() for p in bundle.model.parameters()) / 1e6:.2f} M"),
        ("bands", f"{', '.join(bundle.spec.bands)} ({bundle.spec.scale:g} means 1.0)"),
        ("classes", f"{len(bundle.labels)}: {', '.join(bundle.labels.names)}"),
    ]
    if bundle.category_ids is not None:
        rows.append(("category ids", ", ".join(map(str, bundle.category_ids))))
    if bundle.rescale is not None:
        rows.append(("photos", f"shorter side {bundle.rescale.short} px, longer one at most {bundle.rescale.long} px"))
    else:
        rows.append(("tile", f"{bundle.tile} px"))
    limits = getattr(bundle.model, "limits", None)
    if limits is not None:
        most = "all" if limits.most is None else f"at most {limits.most} per image"
        rows.append(("detections", f"{most}, from score {limits.score:g}, suppressed over IoU {limits.nms:g}"))
    if bundle.gsd:
        rows.append(("ground", f"{bundle.gsd:g} m per pixel"))
    return rows + [(f"val {name}", metrics[name]) for name in _METRICS if metrics.get(name) is not None]
