"""Anchors that fit a dataset, and how well any anchors do: the part of its boxes that some anchor overlaps.

Shapes: N boxes, L levels, A anchors per position.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visionapps.detection.anchors import RATIOS, Anchors
from visionapps.errors import ConfigError, DataError

_LEVELS_OF_IOU = (0.5, 0.6, 0.7)  # 0.7 makes an anchor an object in Ren et al. 2015, 0.5 in Lin et al. 2017
_MOST = 5000  # boxes that a fit looks at; evenly taken of more
_STEPS = tuple(math.log(2) / n for n in (1, 2, 4, 8, 16))  # by which logarithms are tried larger and smaller
_PASSES = 4  # over all values with one step, while that helps


@dataclass(frozen=True)
class AnchorRecall:
    """How well anchors fit boxes.

    Attributes:
        count: boxes that were looked at.
        mean: over them, of the IoU with the best anchor.
        at: part of them whose best anchor reaches an IoU of 0.5, 0.6 and 0.7.
        by_size: mean for boxes below 16, 32, 64, 128 px (square root of the area), and the rest; None where none is.
    """

    count: int
    mean: float
    at: tuple[float, float, float]
    by_size: tuple[float | None, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        recall = {f"{iou:g}": value for iou, value in zip(_LEVELS_OF_IOU, self.at, strict=True)}
        sizes = dict(zip(("<16", "<32", "<64", "<128", ">=128"), self.by_size, strict=True))
        return {"boxes": self.count, "mean_iou": self.mean, "recall": recall, "mean_iou_by_size": sizes}

    def __str__(self) -> str:
        parts = [f"{value:.1%} at {iou:g}" for iou, value in zip(_LEVELS_OF_IOU, self.at, strict=True)]
        return f"mean IoU {self.mean:.3f} of {self.count} boxes; recall {', '.join(parts)}"


@dataclass(frozen=True)
class AnchorFit:
    """Anchors for a dataset, beside the usual ones.

    Attributes:
        anchors: the fitted; ``sizes`` and ``ratios`` go into the ``proposing`` of a model.
        fitted: how they do.
        usual: how 8 strides per level and ratios 1:2, 1:1 and 2:1 do.
    """

    anchors: Anchors
    fitted: AnchorRecall
    usual: AnchorRecall


def anchor_recall(boxes: np.ndarray, anchors: Anchors) -> AnchorRecall:
    """Judge anchors by the boxes of a dataset, where these really lie between the positions of the maps.

    Args:
        boxes: (N, 4) x0 y0 x1 y1, at the scale of the network's input; empty ones are left out.
        anchors: of all levels.

    Raises:
        DataError: no boxes, or numbers that are none.
    """
    boxes = _checked(boxes)
    best = _best_iou(boxes, anchors)
    side = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    group = np.searchsorted((16, 32, 64, 128), side, side="right")
    by_size = tuple(float(best[group == i].mean()) if (group == i).any() else None for i in range(5))
    at = tuple(float((best >= iou).mean()) for iou in _LEVELS_OF_IOU)
    return AnchorRecall(len(boxes), float(best.mean()), (at[0], at[1], at[2]), by_size)


def fitted_anchors(boxes: np.ndarray, strides: Sequence[int], *, per_level: int = 1, shapes: int = 3) -> AnchorFit:
    """Sizes and shapes of anchors under which the boxes of a dataset overlap their best anchor most.

    From quantiles of the boxes, and from the usual anchors, every size and ratio is tried larger and smaller as long as
    the mean IoU grows; the best of all is taken. Deterministic.

    Args:
        boxes: (N, 4) x0 y0 x1 y1, at the scale of the network's input; at most 5,000 of them, evenly taken, are used.
        strides: of the levels, finest first.
        per_level: sizes on each level.
        shapes: ratios, the same on all levels.

    Raises:
        DataError: no boxes, or numbers that are none.
        ConfigError: no sizes or shapes.
    """
    if per_level < 1 or shapes < 1 or not strides:
        raise ConfigError(f"anchors: {per_level} sizes per level, {shapes} shapes, strides {tuple(strides)}; give some")
    boxes = _checked(boxes)
    every = boxes[:: max(1, math.ceil(len(boxes) / _MOST))]
    width, height = every[:, 2] - every[:, 0], every[:, 3] - every[:, 1]
    count = len(strides) * per_level
    side = np.log(np.sqrt(width * height))
    sizes = np.quantile(side, (np.arange(count) + 0.5) / count)
    flat = np.quantile(np.log(height / width), (np.arange(shapes) + 0.5) / shapes)
    usual_shapes = np.linspace(-math.log(2), math.log(2), shapes) if shapes > 1 else np.zeros(1)
    spread = np.linspace(math.log(8 * strides[0]), math.log(8 * strides[-1]), count)
    starts = ((sizes, flat), (sizes, usual_shapes), (spread, usual_shapes))
    made = [_improved(every, np.concatenate(start), tuple(strides), shapes) for start in starts]
    usual = Anchors(tuple(strides), tuple((8.0 * stride,) for stride in strides), RATIOS)
    best = max((*made, usual), key=lambda anchors: anchor_recall(boxes, anchors).mean)
    return AnchorFit(best, anchor_recall(boxes, best), anchor_recall(boxes, usual))


def _improved(boxes: np.ndarray, values: np.ndarray, strides: tuple[int, ...], shapes: int) -> Anchors:
    """Try every size and ratio larger and smaller, in ever smaller steps, and keep what helps.

    Args:
        boxes: (N, 4).
        values: logarithms of the sizes of all levels, then of the ratios.
        strides: of the levels.
        shapes: how many of the values are ratios.
    """

    def anchors(logs: np.ndarray) -> Anchors:
        levels = np.sort(np.exp(logs[:-shapes])).reshape(len(strides), -1)
        ratios = sorted(float(round(r, 2)) or 0.01 for r in np.exp(logs[-shapes:]))
        return Anchors(strides, tuple(tuple(float(round(v, 1)) or 0.1 for v in each) for each in levels), tuple(ratios))

    best = float(_best_iou(boxes, anchors(values)).mean())
    for step in _STEPS:
        for _ in range(_PASSES):
            before = best
            for place in range(len(values)):
                for change in (step, -step):
                    tried = values.copy()
                    tried[place] += change
                    mean = float(_best_iou(boxes, anchors(tried)).mean())
                    if mean > best:
                        values, best = tried, mean
            if best == before:
                break
    return anchors(values)


def _best_iou(boxes: np.ndarray, anchors: Anchors) -> np.ndarray:
    """(N,) IoU of each box with the best anchor at the position nearest to its centre, of any level."""
    best = np.zeros(len(boxes))
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for stride, sizes in zip(anchors.strides, anchors.sizes, strict=True):
        # Anchors of one shape are moved copies of each other, so the nearest one overlaps most.
        nearest = (np.round(np.maximum(centre / stride - anchors.offset, 0)) + anchors.offset) * stride
        for ratio in anchors.ratios:
            for size in sizes:
                half = np.array([size / math.sqrt(ratio), size * math.sqrt(ratio)]) / 2
                half = np.round(half) if anchors.rounded else half
                low = np.maximum(boxes[:, :2], nearest - half)
                high = np.minimum(boxes[:, 2:], nearest + half)
                common = np.maximum(high - low, 0).prod(1)
                best = np.maximum(best, common / (area + 4 * half.prod() - common))
    return best


def _checked(boxes: np.ndarray) -> np.ndarray:
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    if not np.isfinite(boxes).all():
        raise DataError("anchors: some boxes are no numbers; `visionapps check` names them")
    boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
    if not len(boxes):
        raise DataError("anchors: there are no boxes to fit them to; give those of a dataset, at the network's scale")
    return boxes
