"""Pictures of a run: learning curves, the confusion matrix, photos with their truth and prediction."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from visionapps.structures import LabelSpace

# The score that tells what kind of run it was, the title of its panel per class, and what is shown of a validation.
_KINDS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("val/dice", "Dice per class", ("dice", "iou", "accuracy")),
    ("val/ap", "AP per class", ("ap", "ap50", "ap75", "mask_ap")),
    ("val/top1", "top-1 per class", ("top1", "top5", "mean_recall")),
)


def draw_curves(logs: Sequence[Path], picture: Path) -> None:
    """Draw loss, validation scores and learning rate over the steps.

    Args:
        logs: metrics.csv files of Lightning's CSVLogger, one for each time that the run was resumed.
        picture: PNG to write.
    """
    plt = pyplot()
    series = _read_series(logs)
    score, per_class, shown = next((kind for kind in _KINDS if kind[0] in series), _KINDS[0])
    terms = sorted(n for n in series if n.startswith("train/loss/"))
    panels: tuple[tuple[str, list[str]], ...] = (
        ("loss", [n for n in ("train/loss", "val/loss", *terms) if n in series]),
        ("validation", [f"val/{n}" for n in shown if f"val/{n}" in series]),
        (per_class, sorted(n for n in series if n.startswith(f"{score}/"))),
        ("learning rate", sorted(n for n in series if n.startswith("lr-"))),
    )
    figure, axes = plt.subplots(2, 2, figsize=(12, 7), layout="constrained")
    for axis, (title, names) in zip(axes.flat, panels, strict=True):
        for name in names:
            steps, values = zip(*sorted(series[name].items()), strict=True)
            axis.plot(steps, values, marker=".", label=name.removeprefix(f"{score}/"))
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if 1 <= len(names) <= 12:
            axis.legend(fontsize=8)
    figure.savefig(picture, dpi=100)
    plt.close(figure)


def draw_confusion(matrix: np.ndarray, names: tuple[str, ...], picture: Path, *, what: str = "pixels") -> None:
    """Draw a confusion matrix, rows normalised to all that truly belongs to each class.

    Args:
        matrix: (K, K) counts, truth by row, prediction by column.
        names: K class names.
        picture: PNG to write.
        what: was counted.
    """
    plt = pyplot()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = 3.5 + 0.55 * len(names)
    figure, axis = plt.subplots(figsize=(size + 1, size), layout="constrained")
    shown = axis.imshow(share, vmin=0, vmax=1, cmap="Blues")
    axis.set(xlabel="predicted", ylabel="true", xticks=range(len(names)), yticks=range(len(names)))
    axis.set_xticklabels(names, rotation=45, ha="right")
    axis.set_yticklabels(names)
    for (row, col), value in np.ndenumerate(share):
        if value >= 0.005 or row == col:
            axis.text(col, row, f"{value:.2f}", ha="center", va="center", color="w" if value > 0.5 else "k", fontsize=8)
    figure.colorbar(shown, label=f"share of the true {what}")
    figure.savefig(picture, dpi=100)
    plt.close(figure)


def draw_panel(image: np.ndarray, maps: dict[str, np.ndarray], labels: LabelSpace, picture: Path, title: str) -> None:
    """Draw a photo and label maps side by side, with a legend of the classes that occur.

    Args:
        image: (H, W, C) raw pixels; the first three bands are shown (one band: grey), stretched when not 8 bit.
        maps: title to (H, W) uint8 labels; ignored pixels stay dark.
        labels: gives the colours.
        picture: JPEG or PNG to write.
        title: line above the panel.
    """
    step = max(1, -(-max(image.shape[:2]) // 640))  # about 640 px a side is enough to judge by eye
    photo = displayable(image[::step, ::step])
    tiles = [Image.fromarray(photo)] + [Image.fromarray(colorize(m[::step, ::step], labels)) for m in maps.values()]
    present = np.unique(np.stack([m[::step, ::step] for m in maps.values()]))
    present = present[present < len(labels)]
    height, width = photo.shape[:2]
    font, line, gap = ImageFont.load_default(14), 20, 6
    per_row = max(1, (len(tiles) * (width + gap)) // 160)
    rows = -(-len(present) // per_row)
    sheet = Image.new("RGB", (len(tiles) * (width + gap), height + 2 * line + rows * line + gap), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((4, 2), title, "black", font)
    for i, (name, tile) in enumerate(zip(("photo", *maps), tiles, strict=True)):
        draw.text((i * (width + gap) + 4, line), name, "black", font)
        sheet.paste(tile, (i * (width + gap), 2 * line))
    for i, label in enumerate(present):
        x, y = (i % per_row) * 160 + 4, height + 2 * line + (i // per_row) * line + gap
        draw.rectangle((x, y, x + 14, y + 14), labels.colors[label], "black")
        draw.text((x + 20, y - 1), labels.names[label][:18], "black", font)
    sheet.save(picture, quality=90)


def colorize(labels_map: np.ndarray, labels: LabelSpace) -> np.ndarray:
    """(H, W) labels to (H, W, 3) uint8 class colours; labels outside the classes become black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(labels)] = labels.colors
    return np.asarray(table[labels_map])


def displayable(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 to look at: the first three bands, or grey, stretched when not 8 bit."""
    bands = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    if bands.dtype == np.uint8:
        return np.ascontiguousarray(bands)
    low, high = np.nanpercentile(bands, (2, 98))
    stretched = np.clip((bands.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1)
    return np.asarray(np.nan_to_num(stretched * 255).astype(np.uint8))


def _read_series(logs: Sequence[Path]) -> dict[str, dict[int, float]]:
    """Metric to step to value; of a step that was repeated after resuming, the later value."""
    series: dict[str, dict[int, float]] = defaultdict(dict)
    for log in logs:
        with log.open(newline="") as file:
            for row in csv.DictReader(file):
                step = int(row.pop("step"))
                row.pop("epoch", None)
                for name, value in row.items():
                    if value and value != "nan":
                        series[name][step] = float(value)
    return series


def pyplot() -> Any:
    """matplotlib's pyplot, drawing to files."""
    import matplotlib as mpl

    mpl.use("Agg")  # no display is needed
    from matplotlib import pyplot as plt

    return plt
