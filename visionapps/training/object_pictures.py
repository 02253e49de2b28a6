"""Pictures about detections: photos with their boxes, precision-recall curves, confusion with the background."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from visionapps.metrics.curves import Curves
from visionapps.training.pictures import displayable, pyplot

RIGHT, WRONG, MISSED, IGNORED = (64, 220, 90), (255, 60, 50), (255, 200, 0), (150, 150, 150)
_SIDE = 1280  # longest side of a picture in pixels: boxes of 20 px in a 4,000 px photo are still seen
_CURVES = 10  # classes with a line of their own: as many colours as there are


class BoxLayer(NamedTuple):
    """Boxes that are drawn alike."""

    title: str  # in the legend
    color: tuple[int, int, int]
    boxes: np.ndarray  # (N, 4) in pixels of the photo
    texts: Sequence[str] = ()  # above each box; none: boxes only


def draw_boxes(image: np.ndarray, layers: Sequence[BoxLayer], picture: Path, title: str) -> None:
    """Draw boxes over a photo, with a legend; later layers lie above earlier ones.

    Args:
        image: (H, W, C) raw pixels; the first three bands are shown (one band: grey), stretched when not 8 bit.
        layers: boxes by colour.
        picture: JPEG or PNG to write.
        title: line above the photo.
    """
    photo = Image.fromarray(displayable(image))
    factor = _SIDE / max(photo.size)
    if factor < 1 or max(photo.size) < _SIDE // 2:
        factor = factor if factor < 1 else min(factor, 4.0)
        size = (max(1, round(photo.width * factor)), max(1, round(photo.height * factor)))
        photo = photo.resize(size, Image.Resampling.BILINEAR)
    else:
        factor = 1.0
    font, line = ImageFont.load_default(13), 20
    sheet = Image.new("RGB", (max(photo.width, 420), photo.height + 2 * line + 4), "white")
    sheet.paste(photo, (0, 2 * line))
    draw = ImageDraw.Draw(sheet)
    draw.text((4, 2), title, "black", font)
    x = 4
    for layer in layers:
        draw.rectangle((x, line + 3, x + 12, line + 15), layer.color, "black")
        text = f"{layer.title} ({len(layer.boxes)})"
        draw.text((x + 17, line + 1), text, "black", font)
        x += 17 + int(draw.textlength(text, font)) + 16
    for layer in layers:
        _draw_layer(draw, layer, factor, 2 * line)
    sheet.save(picture, quality=90)


def _draw_layer(draw: ImageDraw.ImageDraw, layer: BoxLayer, factor: float, down: int) -> None:
    font = ImageFont.load_default(11)
    for i, box in enumerate(layer.boxes):
        x0, y0, x1, y1 = (float(value) * factor for value in box)
        corners = (x0, y0 + down, max(x0, x1 - 1), max(y0, y1 - 1) + down)
        draw.rectangle((corners[0] - 1, corners[1] - 1, corners[2] + 1, corners[3] + 1), outline="black")
        draw.rectangle(corners, outline=layer.color, width=2)
        if layer.texts:
            place = (max(0.0, x0), max(float(down), y0 + down - 13))
            draw.rectangle(draw.textbbox(place, layer.texts[i], font), "black")
            draw.text(place, layer.texts[i], layer.color, font)


def draw_precision_recall(curves: Curves, names: Sequence[str], picture: Path) -> None:
    """Draw precision over recall, a line per class and a dot at its best F1; of many classes those with most objects.

    Args:
        curves: of all classes at one IoU.
        names: K class names.
        picture: PNG to write.
    """
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(8, 6.5), layout="constrained")
    shown = sorted(range(len(names)), key=lambda k: -curves.classes[k].positives)[:_CURVES]
    for k in shown:
        outcome = curves.classes[k]
        if not outcome.positives:
            continue
        best = outcome.best
        label = f"{names[k]}: AP {outcome.ap:.3f}, F1 {best.f1:.3f} from score {best.threshold:.2f}"
        (line,) = axis.plot([0.0, *outcome.recall], [1.0, *outcome.precision], label=label, drawstyle="steps-post")
        axis.plot(best.recall, best.precision, "o", color=line.get_color())
    left = sum(outcome.positives > 0 for outcome in curves.classes) - sum(
        curves.classes[k].positives > 0 for k in shown
    )
    title = f"IoU {curves.iou:g}" + (f"; {left} classes with fewer objects are not drawn" if left else "")
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02), title=title)
    axis.grid(alpha=0.3)
    if axis.lines:
        axis.legend(fontsize=8, loc="lower left")
    figure.savefig(picture, dpi=100)
    plt.close(figure)


def draw_object_confusion(matrix: np.ndarray, names: Sequence[str], picture: Path) -> None:
    """Draw counts of true against detected classes, coloured by their share of each row, of classes that occur.

    Args:
        matrix: (K + 1, K + 1) counts, truth by row, detection by column; the last of both is background.
        names: K class names.
        picture: PNG to write.
    """
    plt = pyplot()
    occurring = np.flatnonzero(matrix.any(0) | matrix.any(1) | (np.arange(len(matrix)) == len(names)))
    labels = [[*names, "background"][k] for k in occurring]
    matrix = matrix[np.ix_(occurring, occurring)]
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = min(3.5 + 0.5 * len(labels), 6 + 0.3 * len(labels))
    figure, axis = plt.subplots(figsize=(size + 1, size), layout="constrained")
    shown = axis.imshow(share, vmin=0, vmax=1, cmap="Blues")
    axis.set(xlabel="detected as (background: overlooked)", ylabel="true class (background: nothing is there)")
    axis.set(xticks=range(len(labels)), yticks=range(len(labels)))
    axis.set_xticklabels(labels, rotation=45, ha="right")
    axis.set_yticklabels(labels)
    for (row, col), count in np.ndenumerate(matrix):
        if count or row == col:
            color = "w" if share[row, col] > 0.5 else "k"
            axis.text(col, row, f"{count:,}", ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(shown, label="share of the row", shrink=min(1.0, 8 / size), fraction=0.05)
    figure.savefig(picture, dpi=100)
    plt.close(figure)
