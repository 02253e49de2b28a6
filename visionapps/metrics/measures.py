"""What is measured of one class in one image: parts that add up, and the ratio that they mean.

Shapes: K classes, H x W pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from visionapps.errors import DataError
from visionapps.structures import IGNORE

Parts = NDArray[Any]
Mask = NDArray[np.bool_]


class Measure(Protocol):
    """Parts of every class of an image, and what they mean.

    Parts may be added over images, or over classes, before the ratio is taken.
    """

    @property
    def name(self) -> str:
        """As a metric's name begins with."""
        ...

    def parts(self, prediction: NDArray[Any], truth: NDArray[Any], classes: int) -> Parts:
        """The parts of each class in one image.

        Args:
            prediction: (H, W) labels in [0, K), 255 for none, or (K, H, W) bool, where classes may overlap.
            truth: (H, W) labels in [0, K), 255 for pixels that count nowhere, or (K, H, W) bool.
            classes: K.

        Returns:
            (K, ...), all zero where neither the prediction nor the truth has a pixel.

        Raises:
            DataError: the two differ in size, or hold labels that are no classes.
        """
        ...

    def ratio(self, parts: Parts) -> NDArray[np.float64]:
        """The values in [0, 1] that parts (..., K, ...) mean, (..., K); NaN where the class occurs on neither side."""
        ...


class Areas(NamedTuple):
    """Pixels of each class in one image, or one number for each row of a submission."""

    both: NDArray[np.int64]  # (K,)
    predicted: NDArray[np.int64]
    true: NDArray[np.int64]

    def parts(self) -> NDArray[np.int64]:
        """(K, 3) as ``Overlap`` takes them."""
        return np.stack(self, axis=-1)


@dataclass(frozen=True)
class Overlap:
    """Pixels that agree, against all: Dice or IoU.

    Parts are (K, 3): pixels in both, in the prediction, in the truth.
    Source: Dice 1945; Jaccard 1912.
    """

    formula: Literal["dice", "iou"] = "dice"

    @property
    def name(self) -> str:
        """dice or iou."""
        return self.formula

    def parts(self, prediction: NDArray[Any], truth: NDArray[Any], classes: int) -> Parts:
        """(K, 3) int64; see ``Measure``."""
        return areas(prediction, truth, classes).parts()

    def ratio(self, parts: Parts) -> NDArray[np.float64]:
        """2 I / (P + T), or I / (P + T - I)."""
        both = np.asarray(parts[..., 0], np.float64)
        total = np.asarray(parts[..., 1] + parts[..., 2], np.float64)
        return share(2 * both, total) if self.formula == "dice" else share(both, total - both)


def share(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """``part / whole``; NaN where the whole is 0."""
    found: NDArray[np.float64] = np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)
    return found


def areas(prediction: NDArray[Any], truth: NDArray[Any], classes: int) -> Areas:
    """Pixels of each class in prediction, truth and both; see ``Measure.parts`` for the arguments."""
    check_pair(prediction, truth, classes)
    if prediction.ndim == truth.ndim == 2:
        # One pass over the pixels, however many classes there are.
        pairs = np.bincount((truth.astype(np.uint16) * 256 + prediction.astype(np.uint8)).reshape(-1), minlength=65536)
        table = pairs.reshape(256, 256)[:classes]  # void rows count nowhere
        inside = table[:, :classes]
        return Areas(np.diagonal(inside).copy(), inside.sum(0), table.sum(1))
    counts = np.zeros((classes, 3), np.int64)
    valid = truth != IGNORE if truth.ndim == 2 else None
    for k in range(classes):
        predicted = plane(prediction, k)
        true = plane(truth, k)
        if valid is not None:
            predicted = predicted & valid
        counts[k] = np.count_nonzero(predicted & true), np.count_nonzero(predicted), np.count_nonzero(true)
    return Areas(counts[:, 0], counts[:, 1], counts[:, 2])


def plane(masks: NDArray[Any], k: int) -> Mask:
    """(H, W) bool of one class, of labels or of masks."""
    found: Mask = masks == k if masks.ndim == 2 else masks[k]
    return found


def class_crops(prediction: NDArray[Any], truth: NDArray[Any], classes: int) -> Iterator[tuple[int, Mask, Mask]]:
    """The classes that occur on either side, each with both masks, cut to the box that holds both.

    Outside the box there is background only: distances and components are those of the whole image.
    Void pixels of the truth are in neither mask.
    """
    check_pair(prediction, truth, classes)
    boxes = [_boxes(prediction, classes), _boxes(truth, classes)]
    for k in range(classes):
        found = [own[k] for own in boxes if own[k] is not None]
        if not found:
            continue
        rows, cols = (
            slice(min(box[axis].start for box in found), max(box[axis].stop for box in found)) for axis in (0, 1)
        )
        predicted, true = plane(prediction[..., rows, cols], k), plane(truth[..., rows, cols], k)
        if truth.ndim == 2:
            predicted = predicted & (truth[rows, cols] != IGNORE)
        if predicted.any() or true.any():  # a prediction in void pixels alone is none
            yield k, predicted, true


def _boxes(masks: NDArray[Any], classes: int) -> list[Any]:
    """Of each class a pair of slices, or None where it does not occur."""
    if masks.ndim == 2:
        from scipy import ndimage

        found: list[Any] = ndimage.find_objects(masks.astype(np.int32) + 1, max_label=classes)
        return found
    boxes: list[Any] = []
    for mask in masks:
        rows = np.flatnonzero(mask.any(1))
        if not len(rows):
            boxes.append(None)
            continue
        cols = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(0))
        boxes.append((slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)))
    return boxes


def check_pair(prediction: NDArray[Any], truth: NDArray[Any], classes: int) -> None:
    """Raise DataError unless both sides are labels or masks of so many classes, of one size."""
    for side, masks in (("prediction", prediction), ("truth", truth)):
        if masks.ndim == 3 and masks.dtype == np.bool_:
            if len(masks) != classes:
                raise DataError(f"{side}: {len(masks)} masks, but there are {classes} classes; give one mask per class")
        elif masks.ndim != 2 or masks.dtype.kind not in "bui":
            raise DataError(
                f"{side}: shape {masks.shape} of {masks.dtype}; (H, W) integer labels or (K, H, W) bool are expected"
            )
    if prediction.shape[-2:] != truth.shape[-2:]:
        sizes = [" x ".join(map(str, masks.shape[-2:])) for masks in (prediction, truth)]
        raise DataError(
            f"prediction of {sizes[0]} pixels, truth of {sizes[1]}; bring the prediction to the truth's size"
        )
    for side, labels in (("prediction", prediction), ("truth", truth)):
        if labels.ndim == 2 and labels.size:
            _check_labels(side, labels, classes)


def _check_labels(side: str, labels: NDArray[Any], classes: int) -> None:
    # The common case needs no selection: all labels are classes.
    if labels.dtype.kind != "i" or int(labels.min()) >= 0:
        if int(labels.max()) < classes:
            return
        strange = labels[(labels >= classes) & (labels != IGNORE)]
    else:
        strange = labels[labels < 0]
    if strange.size:
        raise DataError(
            f"{side}: has label {int(strange.flat[0])}, but there are {classes} classes (and {IGNORE} for void); "
            f"map it in the dataset, or set it to {IGNORE}"
        )
