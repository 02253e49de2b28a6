"""The one streaming confusion matrix, the scores that follow from it, and the one argmax.

Shapes: B batch, K classes, H x W pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from visionapps.errors import ConfigError, DataError

_STRIP_ROWS = 64  # rows at a time in argmax_labels: a strip of 512 px, 25 classes fits the second-level cache


@dataclass(frozen=True)
class Scores:
    """What a confusion matrix says. All values in [0, 1]; NaN where a value is not defined.

    A class that occurs neither in the truth nor in the prediction has no Dice and no IoU (NaN) and is left out of
    the means; a class that is only predicted has both 0. Dice is averaged over classes: summed over all classes
    and pixels it would merely be the accuracy.
    """

    dice: tuple[float, ...]  # 2 TP / ((TP + FP) + (TP + FN))
    iou: tuple[float, ...]  # TP / (TP + FP + FN)
    precision: tuple[float, ...]  # TP / (TP + FP); NaN where the class is never predicted
    recall: tuple[float, ...]  # TP / (TP + FN); NaN where the class never occurs
    mean_dice: float
    mean_iou: float
    accuracy: float  # labelled pixels that are right
    matrix: tuple[tuple[int, ...], ...]  # matrix[truth][prediction] in pixels
    unpredicted: tuple[int, ...]  # labelled pixels of each class that have no prediction: they count as missed

    @property
    def support(self) -> tuple[int, ...]:
        """Labelled pixels of each class in the truth."""
        return tuple(sum(row) + missed for row, missed in zip(self.matrix, self.unpredicted, strict=True))

    @classmethod
    def from_matrix(cls, matrix: np.ndarray, unpredicted: np.ndarray | None = None) -> "Scores":
        """Scores of a (K, K) matrix of pixel counts, truth by prediction; ``unpredicted`` (K,) counts abstentions."""
        missed = np.zeros(len(matrix), np.int64) if unpredicted is None else unpredicted
        hits = np.diagonal(matrix).astype(np.float64)
        truth, predicted = matrix.sum(1) + missed, matrix.sum(0)
        dice = _ratio(2 * hits, truth + predicted)
        iou = _ratio(hits, truth + predicted - hits)
        return cls(
            dice=_floats(dice),
            iou=_floats(iou),
            precision=_floats(_ratio(hits, predicted)),
            recall=_floats(_ratio(hits, truth)),
            mean_dice=_mean(dice),
            mean_iou=_mean(iou),
            accuracy=float(_ratio(hits.sum(), truth.sum())),
            matrix=tuple(tuple(int(n) for n in row) for row in matrix),
            unpredicted=tuple(int(n) for n in missed),
        )

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain data for JSON, undefined values as None; one entry per class under ``classes``."""
        support, pixels = self.support, sum(self.support)
        classes = [
            {
                "name": name,
                "dice": _defined(self.dice[k]),
                "iou": _defined(self.iou[k]),
                "precision": _defined(self.precision[k]),
                "recall": _defined(self.recall[k]),
                "pixels": support[k],
            }
            for k, name in enumerate(names)
        ]
        return {
            "mean_dice": _defined(self.mean_dice),
            "mean_iou": _defined(self.mean_iou),
            "accuracy": _defined(self.accuracy),
            "pixels": pixels,
            "classes": classes,
            "matrix": [list(row) for row in self.matrix],
            "unpredicted": list(self.unpredicted),
        }


class Confusion:
    """Counts of (truth, prediction) pairs, added up batch by batch on the device, without waiting for it.

    Not a Module on purpose: as a buffer the counts would be broadcast by data-parallel training and averaged
    by weight averaging.
    """

    def __init__(self, num_classes: int, *, ignore: int = 255, device: torch.device | str = "cpu") -> None:
        if not 1 <= num_classes <= ignore:
            raise ConfigError(f"confusion: {num_classes} classes with ignore label {ignore}; expected 1 to {ignore}")
        self.num_classes = num_classes
        self.ignore = ignore
        # One more row for labels outside the label space (reported by compute), one more column for pixels without a
        # prediction, and a last cell for ignored pixels: so no update ever has to select or to look.
        self._counts = torch.zeros((num_classes + 1) ** 2 + 1, dtype=torch.int64, device=device)

    def reset(self) -> None:
        """Forget everything."""
        self._counts.zero_()

    def update(self, prediction: Tensor, labels: Tensor) -> None:
        """Count one batch.

        Args:
            prediction: (B, K, H, W) logits, or (B, H, W) integer labels, where values outside [0, K) mean
                "no prediction" and count as missed.
            labels: (B, H, W) integer truth in [0, K), or ``ignore``.
        """
        if prediction.ndim == labels.ndim + 1:
            if prediction.shape[1] != self.num_classes:
                raise ConfigError(f"confusion: logits of {prediction.shape[1]} classes, expected {self.num_classes}")
            prediction = argmax_labels(prediction)
        if prediction.shape != labels.shape:
            raise ConfigError(
                f"confusion: prediction {tuple(prediction.shape)} and labels {tuple(labels.shape)} must agree in size"
            )
        if self._counts.device != labels.device:
            self._counts = self._counts.to(labels.device)
        index = self._cells(prediction.to(labels.device), labels).flatten()
        if index.device.type == "cpu":
            self._counts += torch.bincount(index, minlength=len(self._counts))
        else:  # bincount would wait for the device to learn its own length
            index = index.to(torch.int64)
            self._counts.scatter_add_(0, index, torch.ones_like(index))

    def compute(self) -> Scores:
        """Scores of everything counted so far, in all processes when torch.distributed is initialised.

        Every process must call it then; each gets the same scores, and its own counts stay as they are.

        Raises:
            DataError: some truth label was neither a class nor the ignore label.
        """
        size = self.num_classes + 1
        table = self._reduced()[:-1].cpu().numpy().reshape(size, size)
        if wrong := int(table[-1].sum()):
            raise DataError(
                f"confusion: {wrong} pixels have labels that are neither one of the {self.num_classes} classes nor "
                f"the ignore label {self.ignore}; map them in the dataset, or set them to {self.ignore}"
            )
        return Scores.from_matrix(table[:-1, :-1], table[:-1, -1])

    def _cells(self, prediction: Tensor, labels: Tensor) -> Tensor:
        size = self.num_classes + 1
        # The narrowest integer that holds every cell: this pass is bound by memory.
        dtype = torch.int16 if size * size < 2**15 else torch.int32
        index = _class_or_last(labels, self.num_classes, dtype).mul_(size)
        index += _class_or_last(prediction, self.num_classes, dtype)
        return index.masked_fill_(labels == self.ignore, size * size)

    def _reduced(self) -> Tensor:
        counts = self._counts.clone()
        if distributed.is_available() and distributed.is_initialized():
            if distributed.get_backend() == "nccl":  # a process without a batch still has its counts on the CPU
                counts = counts.to(torch.device("cuda", torch.cuda.current_device()))
            distributed.all_reduce(counts)
        return counts


def argmax_labels(logits: Tensor) -> Tensor:
    """The label of the largest logit; the lowest label wins a tie.

    On the CPU torch's argmax over a middle dimension takes 50 ms for 25 x 512 x 512; a running maximum over class
    planes, strip by strip so that it stays in the cache, takes 2.2.

    Args:
        logits: (B, K, H, W), finite, K <= 256.

    Returns:
        (B, H, W) uint8 on the same device.
    """
    if logits.device.type != "cpu":
        return logits.argmax(1).to(torch.uint8)
    planes = logits.detach()
    if planes.dtype not in (torch.float32, torch.float64):  # numpy knows no bfloat16
        planes = planes.float()
    values = planes.contiguous().numpy()
    batch, _, height, width = values.shape
    labels = np.zeros((batch, height, width), np.uint8)
    for item in range(batch):
        for row in range(0, height, _STRIP_ROWS):
            _running_argmax(values[item, :, row : row + _STRIP_ROWS], labels[item, row : row + _STRIP_ROWS])
    return torch.from_numpy(labels)


def _running_argmax(planes: np.ndarray, labels: np.ndarray) -> None:
    # Labels rise with k, so "label where better" is a maximum with k * better: branch-free and vectorised,
    # seven times as fast as a masked copy.
    best = planes[0].copy()
    better = np.empty(best.shape, bool)
    candidate = np.empty(best.shape, np.uint8)
    for k in range(1, len(planes)):
        np.greater(planes[k], best, out=better)
        np.multiply(better.view(np.uint8), np.uint8(k), out=candidate)
        np.maximum(labels, candidate, out=labels)
        np.maximum(best, planes[k], out=best)


def _class_or_last(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Labels in [0, K) as they are, every other value as K."""
    if labels.dtype == torch.uint8:
        return labels.clamp(max=num_classes).to(dtype)
    return torch.where((labels < 0) | (labels > num_classes), num_classes, labels).to(dtype)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        ratio: np.ndarray = np.divide(part, whole)
    return ratio


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else math.nan


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
