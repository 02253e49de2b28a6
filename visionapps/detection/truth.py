"""The annotations of a batch, judged once before any kernel sees them: objects and what is to be ignored, apart."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from visionapps.boxes import Targets
from visionapps.errors import DataError


class Truth(NamedTuple):
    """What is known about one image."""

    boxes: Tensor  # (N, 4) float32, of objects
    labels: Tensor  # (N,) int64 in [0, K)
    ignored: Tensor  # (I, 4) float32: neither object nor background
    masks: Tensor | None = None  # (N, h, w) uint8


def truths(targets: Sequence[Targets], num_classes: int, device: torch.device, *, masks: bool = False) -> list[Truth]:
    """Check the targets of a batch, and take apart objects and ignored ones; waits for the device once.

    Args:
        targets: of each image.
        num_classes: K.
        device: where the model is.
        masks: whether objects need masks.

    Raises:
        DataError: a box or a label that cannot be, with its place in the batch; or masks are wanted and missing.
    """
    moved = [_to(target, device) for target in targets]
    for place, target in enumerate(moved):
        _check_shapes(place, target, masks)
    bad = [_impossible(target, num_classes) for target in moved]
    counts = torch.stack([torch.stack((b.sum(), t.ignore.sum())) for b, t in zip(bad, moved, strict=True)]).tolist()
    for place, (wrong, _) in enumerate(counts):
        if wrong:
            raise DataError(_describe(place, moved[place], int(bad[place].nonzero()[0]), num_classes))
    return [_apart(target, bool(ignored)) for target, (_, ignored) in zip(moved, counts, strict=True)]


def _to(target: Targets, device: torch.device) -> Targets:
    boxes, labels, ignore, masks = target
    return Targets(boxes.to(device), labels.to(device), ignore.to(device), None if masks is None else masks.to(device))


def _check_shapes(place: int, target: Targets, masks: bool) -> None:
    count = len(target.boxes)
    if target.boxes.shape != (count, 4) or target.labels.shape != (count,) or target.ignore.shape != (count,):
        raise DataError(
            f"image {place} of the batch: boxes {tuple(target.boxes.shape)}, labels {tuple(target.labels.shape)} and "
            f"ignore {tuple(target.ignore.shape)}; expected (N, 4), (N,) and (N,), also where N is 0"
        )
    if masks and (target.masks is None or len(target.masks) != count):
        given = "none" if target.masks is None else str(len(target.masks))
        raise DataError(
            f"image {place} of the batch: {count} boxes, but {given} masks; this model learns masks: annotate them, or "
            "take a model without a mask head"
        )


def _impossible(target: Targets, num_classes: int) -> Tensor:
    """(N,) bool. What is ignored may have any label and no area, but its corners must be numbers."""
    x0, y0, x1, y1 = target.boxes.float().unbind(1)
    finite = torch.isfinite(target.boxes).all(1)
    possible = (x1 > x0) & (y1 > y0) & (target.labels >= 0) & (target.labels < num_classes)
    return ~finite | (~possible & ~target.ignore)


def _describe(place: int, target: Targets, index: int, num_classes: int) -> str:
    box, label = target.boxes[index].tolist(), int(target.labels[index])
    where = f"image {place} of the batch, object {index}"
    if not (0 <= label < num_classes or bool(target.ignore[index])):
        return (
            f"{where}: label {label}, but the model has {num_classes} classes, 0 to {num_classes - 1}; background "
            "has no label"
        )
    return f"{where}: box {box}; expected finite x0 < x1 and y0 < y1 in pixels: drop it, or repair the annotation"


def _apart(target: Targets, some_ignored: bool) -> Truth:
    boxes, labels, masks = target.boxes.float(), target.labels.long(), target.masks
    if not some_ignored:  # the usual case, without waiting for the device
        return Truth(boxes, labels, boxes[:0], masks)
    kept = ~target.ignore
    return Truth(boxes[kept], labels[kept], boxes[target.ignore], None if masks is None else masks[kept])
