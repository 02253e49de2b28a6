"""Turn a training checkpoint into a bundle: a folder with the model as YAML, its weights and a card, without pickle."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from visionapps.cli.table import render
from visionapps.errors import ConfigError
from visionapps.files import refuse_existing

if TYPE_CHECKING:
    from visionapps.inference.bundle import Bundle

_NAMED = 60  # classes listed
_METRICS = ("mean_dice", "mean_iou", "accuracy", "ap", "ap50", "ap75", "top1", "top5", "mean_recall")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("checkpoint", type=Path, nargs="?", help="a .ckpt file of `visionapps fit`")
    parser.add_argument(
        "--network",
        metavar="NAME",
        help="instead: a published classifier of ImageNet's classes, of timm or torchvision",
    )
    parser.add_argument("--weights", metavar="W", help="of NAME: package (default), hub, hub:TAG or a file")
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
    if (options.checkpoint is None) == (options.network is None):
        raise ConfigError("export: give either a checkpoint or --network NAME; see --help")
    if options.weights is not None and options.network is None:
        raise ConfigError("--weights: goes with --network; a checkpoint brings its own")
    bundle = _bundle(options)
    if options.gsd is not None:
        bundle = replace(bundle, gsd=options.gsd)
    bundle.save(options.out, options.overwrite)
    rows = [("bundle", options.out), *_facts(bundle)]
    print(render(("", ""), [(name, f"{v:.3f}" if isinstance(v, float) else str(v)) for name, v in rows]))
    return 0


def _bundle(options: argparse.Namespace) -> "Bundle":
    if options.network is not None:
        from visionapps.inference.classifying import pretrained_bundle

        return pretrained_bundle(options.network, options.weights or "package")
    from visionapps.inference.bundle import from_checkpoint

    return from_checkpoint(options.checkpoint)


def _facts(bundle: "Bundle") -> list[tuple[str, object]]:
    """What the bundle holds, line by line."""
    recipe = bundle.model.recipe or {}
    metrics = bundle.card.get("metrics") or {}
    arguments, names = recipe.get("arguments", {}), bundle.labels.names
    rows: list[tuple[str, object]] = [
        ("model", f"{recipe.get('model')} on {arguments.get('backbone') or arguments.get('network')}"),
        ("parameters", f"{sum(p.numel() for p in bundle.model.parameters()) / 1e6:.2f} M"),
        ("bands", f"{', '.join(bundle.spec.bands)} ({bundle.spec.scale:g} means 1.0)"),
        ("classes", f"{len(names)}: {', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}"),
    ]
    if bundle.category_ids is not None:
        rows.append(("category ids", ", ".join(map(str, bundle.category_ids))))
    if bundle.frame is not None:
        rows.append(("photos", f"the middle {bundle.frame.side} px, {bundle.frame.share:.1%} of the shorter side"))
    elif bundle.rescale is not None:
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
