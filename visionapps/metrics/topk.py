"""How often a classifier is right, at once and among its first five: streaming counts, and what follows from them.

Shapes: B batch, K classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

FIRST = 5  # of the answers that count for top-5
MOST = 1024  # classes up to which the confusion matrix is kept: 8 MB


@dataclass(frozen=True)
class ClassScores:
    """What is known about the answers of a classifier; NaN where a value is not defined.

    Attributes:
        top1: share of the images whose class is the first answer.
        top5: whose class is among the first five; 1 where there are no more than five classes.
        recall: (K,) top1 of the images of each class.
        precision: (K,) share of the images with this first answer that are of the class.
        mean_recall: mean over the classes that occur: every class counts alike.
        support: (K,) images of each class.
        matrix: (K, K) images, truth by row and first answer by column; None with more than 1024 classes.
    """

    top1: float
    top5: float
    recall: tuple[float, ...]
    precision: tuple[float, ...]
    mean_recall: float
    support: tuple[int, ...]
    matrix: tuple[tuple[int, ...], ...] | None

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain data for JSON, undefined values as None."""
        classes = [
            {"name": name, "recall": _known(r), "precision": _known(p), "images": n}
            for name, r, p, n in zip(names, self.recall, self.precision, self.support, strict=True)
        ]
        return {
            "top1": _known(self.top1),
            "top5": _known(self.top5),
            "mean_recall": _known(self.mean_recall),
            "images": sum(self.support),
            "classes": classes,
            "matrix": None if self.matrix is None else [list(row) for row in self.matrix],
        }


class TopK:
    """Counts that add up batch by batch on the device, without waiting for it.

    Not a Module on purpose: as buffers the counts would be averaged by weight averaging.

    Args:
        num_classes: K.
        device: of the counts; they follow the first batch.
    """

    def __init__(self, num_classes: int, *, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        # Per class: images, first answers that are right, answers among the first five, first answers.
        self._counts = torch.zeros(4, num_classes, dtype=torch.int64, device=device)
        pairs = num_classes**2 if num_classes <= MOST else 0
        self._matrix = torch.zeros(pairs, dtype=torch.int64, device=device)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count one batch.

        Args:
            logits: (B, K), or probabilities. Of equal ones the lower class comes first, as argmax has it.
            labels: (B,) in [0, K).
        """
        labels = labels.long()
        self._counts, self._matrix = self._counts.to(logits.device), self._matrix.to(logits.device)
        answer = logits.argmax(1)
        place = ranks(logits, labels)
        rows = (torch.ones_like(labels), place < 1, place < FIRST)
        for row, hits in enumerate(rows):
            self._counts[row].scatter_add_(0, labels, hits.long())
        self._counts[3].scatter_add_(0, answer, torch.ones_like(answer))
        if len(self._matrix):
            pairs = labels * self.num_classes + answer
            self._matrix.scatter_add_(0, pairs, torch.ones_like(pairs))

    def compute(self) -> ClassScores:
        """The scores so far, over all processes."""
        counts, matrix = self._counts.clone(), self._matrix.clone()
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(counts)
            distributed.all_reduce(matrix)
        return scores_of(counts.cpu().numpy(), matrix.cpu().numpy() if len(matrix) else None)


def ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) how many classes come before the true one; more than any place where its score is no number."""
    own = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    before = (logits > own) | (logits == own) & earlier
    return torch.where(own[:, 0].isfinite(), before.sum(1), logits.shape[1] + FIRST)


def scores_of(counts: np.ndarray, matrix: np.ndarray | None) -> ClassScores:
    """Scores of (4, K) counts and the (K * K,) pairs; see TopK."""
    images, first, five, answers = counts.astype(np.float64)
    total = images.sum()
    recall = _ratio(first, images)
    seen = recall[images > 0]
    square = None if matrix is None else matrix.reshape(len(images), -1)
    return ClassScores(
        top1=float(first.sum() / total) if total else math.nan,
        top5=float(five.sum() / total) if total else math.nan,
        recall=tuple(map(float, recall)),
        precision=tuple(map(float, _ratio(first, answers))),
        mean_recall=float(seen.mean()) if len(seen) else math.nan,
        support=tuple(int(n) for n in counts[0]),
        matrix=None if square is None else tuple(tuple(int(n) for n in row) for row in square),
    )


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    ratio: np.ndarray = np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
    return ratio


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
