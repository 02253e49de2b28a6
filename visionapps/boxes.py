"""Boxes on the device: what a detector learns from and what it gives, and the arithmetic of rectangles.

Boxes are x0 y0 x1 y1 in pixels, half-open; their arithmetic is float32 under any autocast, and has no gradients of
its own to offer. Shapes: B batch, C bands, H W padded batch, h w one image, N M objects.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_TINY = 1e-12  # square pixels: boxes without an area overlap nothing, instead of 0 / 0
_AT_ONCE = 20_000  # boxes whose pairs a GPU compares in one call: its bit matrix has 50 MB then


class Targets(NamedTuple):
    """What a detector shall find in one image."""

    boxes: Tensor  # (N, 4) float32
    labels: Tensor  # (N,) int64 in [0, K)
    ignore: Tensor  # (N,) bool: neither an object nor background (crowd, difficult, cut by a tile's edge)
    masks: Tensor | None = None  # (N, h, w) uint8 0 or 1


class Detections(NamedTuple):
    """What a detector has found in one image, best first."""

    boxes: Tensor  # (N, 4) float32
    labels: Tensor  # (N,) int64 in [0, K)
    scores: Tensor  # (N,) float32 in [0, 1]
    masks: Tensor | None = None  # (N, h, w) bool, of the whole image


class Batch(NamedTuple):
    """Images and their objects. Lightning moves it to a device."""

    image: Tensor  # (B, C, H, W) raw values of any dtype; image b fills [0, h) x [0, w), the rest is 0
    sizes: tuple[tuple[int, int], ...]  # (h, w) of each image
    targets: tuple[Targets, ...]
    proposals: tuple[Tensor, ...] | None  # (P, 4) float32 of each image; for detectors that do not make their own
    keys: tuple[int, ...]  # which photo each image is of, or is cut from
    origins: tuple[tuple[int, int], ...]  # (row, col) of the image in that photo, in its pixels
    factors: tuple[float, ...]  # pixels of the image per pixel of that photo


def area(boxes: Tensor) -> Tensor:
    """Square pixels of (..., 4) boxes: (...), 0 for those without inside."""
    boxes = boxes.float()
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every pair: (N, 4) and (M, 4) to (N, M); 0 where neither has an area."""
    common = _intersection(a, b)
    union = (area(a)[:, None] + area(b)).sub_(common).clamp_(min=_TINY)
    return common.div_(union)


def iof(a: Tensor, b: Tensor) -> Tensor:
    """How much of each box of a lies inside each of b: (N, 4) and (M, 4) to (N, M) in [0, 1]; 0 without an area."""
    return _intersection(a, b).div_(area(a).clamp_(min=_TINY)[:, None])


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """What of (..., 4) boxes lies inside an image of size (h, w); those beyond it keep no area."""
    height, width = size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack((x, y), -1).flatten(-2)


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Non-maximum suppression within each label: a box goes when a better one of its label overlaps it more than iou.

    Labels never touch each other: they are gone through one by one on the CPU, and moved apart in float64, which
    holds the moved coordinates exactly, on a GPU.

    Args:
        boxes: (N, 4) finite.
        scores: (N,).
        labels: (N,) int64.
        iou: greatest overlap that two boxes of one label may have.

    Returns:
        (M,) indices of those kept, best first; of equal ones the earlier first.
    """
    if not len(boxes):
        return labels.new_zeros(0)
    together = _AT_ONCE if boxes.device.type == "cuda" else 0
    kept = _kept(boxes.detach().float(), scores.detach().float(), labels, iou, together).sort().values
    return kept[scores[kept].argsort(descending=True, stable=True)]


def _kept(boxes: Tensor, scores: Tensor, labels: Tensor, most: float, together: int) -> Tensor:
    """Indices of boxes that suppression leaves, in no order.

    Args:
        boxes: (N, 4) float32.
        scores: (N,) float32.
        labels: (N,) int64.
        most: greatest IoU.
        together: labels are put together up to so many boxes, and moved apart; 0: each by itself.
    """
    from torchvision.ops import nms  # its import takes three seconds

    if len(boxes) <= together:
        return _moved_apart(boxes, scores, labels, most)
    order = labels.argsort(stable=True)
    _, counts = torch.unique_consecutive(labels[order], return_counts=True)
    kept = []
    for group in torch.split(order, _joined(counts.tolist(), together)):
        own, values = boxes[group], scores[group]
        left = _moved_apart(own, values, labels[group], most) if together else nms(own, values, most)
        kept.append(group[left])
    return torch.cat(kept)


def _moved_apart(boxes: Tensor, scores: Tensor, labels: Tensor, most: float) -> Tensor:
    """Suppression of all labels in one call, each at a place of its own."""
    from torchvision.ops import nms

    wide = boxes.double()
    low, high = wide.aminmax()
    places = (labels * (high - low + 1))[:, None]
    kept: Tensor = nms(wide + places, scores.double(), most)
    return kept


def _joined(counts: list[int], most: int) -> list[int]:
    """Neighbouring counts added up as long as the sum is at most ``most``."""
    sums = counts[:1]
    for count in counts[1:]:
        if sums[-1] + count <= most:
            sums[-1] += count
        else:
            sums.append(count)
    return sums


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    """Square pixels that every pair has in common, (N, M), with few passes over the matrix and no third axis."""
    a, b = a.detach().float(), b.detach().float()
    width = torch.minimum(a[:, None, 2], b[:, 2]).sub_(torch.maximum(a[:, None, 0], b[:, 0])).clamp_(min=0)
    height = torch.minimum(a[:, None, 3], b[:, 3]).sub_(torch.maximum(a[:, None, 1], b[:, 1])).clamp_(min=0)
    return width.mul_(height)
