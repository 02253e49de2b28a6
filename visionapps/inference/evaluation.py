"""How good a model is on photos with masks, and how well predicted masks agree with true ones."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from visionapps.data.images import read_mask
from visionapps.data.labels import MaskCoding, Unknown
from visionapps.data.store import Photo
from visionapps.errors import DataError, WeightsError
from visionapps.files import list_files
from visionapps.inference.predictor import Predictor
from visionapps.inference.sources import INVALID, ArraySource, Source
from visionapps.metrics.confusion import Confusion, Scores
from visionapps.structures import LabelSpace
from visionapps.windows import Window

_MASKS = (".png", ".tif", ".tiff", ".bmp")
Open = Callable[[Path], Source]


def evaluate_files(
    predictor: Predictor, pairs: Iterable[tuple[Path, Path]], coding: MaskCoding, *, open_image: Open, unknown: Unknown
) -> Scores:
    """Scores over images and masks on disk, each as large as it is.

    Args:
        predictor: whose labels are those of the coding.
        pairs: image and mask.
        coding: how mask values stand for labels.
        open_image: opens an image as the model wants it.
        unknown: what to do with mask values that mean nothing.

    Raises:
        DataError: an image or a mask cannot be read, or they differ in size.
    """
    confusion = Confusion(len(coding.labels), ignore=coding.labels.ignore)
    for image, mask in pairs:
        truth = coding.encode(read_mask(mask), unknown)
        source = open_image(image)
        try:
            _same_size(image, source.shape, mask, truth.shape)
            _count(predictor, source, truth, confusion)
        finally:
            source.close()
    return confusion.compute()


def evaluate_photos(predictor: Predictor, photos: Iterable[Photo], labels: LabelSpace) -> Scores:
    """Scores over items of a dataset, as training saw them (resized, cut into blocks)."""
    confusion = Confusion(len(labels), ignore=labels.ignore)
    for photo in photos:
        count_photo(label_photo(predictor, photo), photo, confusion)
    return confusion.compute()


def label_photo(predictor: Predictor, photo: Photo) -> np.ndarray:
    """(H, W) uint8 labels of an item of a dataset, drawn tile by tile as a map would be."""
    image = np.moveaxis(photo.image(Window(0, 0, *photo.size)), -1, 0)
    return np.concatenate([rows for _, rows in predictor.segment(ArraySource(image, name=photo.name))])


def count_photo(prediction: np.ndarray, photo: Photo, confusion: Confusion) -> None:
    """Count the predicted labels (H, W) of an item against its true ones."""
    confusion.update(_batch(prediction), _batch(photo.labels(Window(0, 0, *photo.size))))


def compare_masks(pairs: Iterable[tuple[Path, Path]], coding: MaskCoding, *, unknown: Unknown) -> Scores:
    """Scores of predicted index masks (value = label, 255 = no prediction) against true masks.

    Args:
        pairs: predicted and true mask.
        coding: how values of the true masks stand for labels.
        unknown: what to do with values of the true masks that mean nothing.

    Raises:
        DataError: a mask cannot be read, a pair differs in size, or a prediction has labels that are no class.
    """
    confusion = Confusion(len(coding.labels), ignore=coding.labels.ignore)
    for predicted, true in pairs:
        prediction, truth = read_mask(predicted).values, coding.encode(read_mask(true), unknown)
        if prediction.ndim != 2:
            raise DataError(f"{predicted}: holds colours, but an index mask (value = label) is expected")
        _same_size(predicted, prediction.shape, true, truth.shape)
        strange = np.unique(prediction[(prediction >= len(coding.labels)) & (prediction != INVALID)])
        if len(strange) or prediction.dtype.kind not in "bui":
            listed = ", ".join(map(str, strange[:5])) or f"{prediction.dtype} values"
            raise DataError(
                f"{predicted}: has {listed}, but there are {len(coding.labels)} classes; expected labels from 0 to "
                f"{len(coding.labels) - 1}, or {INVALID} for no prediction"
            )
        confusion.update(_batch(prediction.astype(np.int32)), _batch(truth))
    return confusion.compute()


def pair_masks(predicted: Path, true: Path) -> list[tuple[Path, Path]]:
    """Match predicted and true masks by name (suffixes may differ): for every true mask there must be a prediction.

    Raises:
        DataError: a folder is missing or empty, or a true mask has no prediction.
    """
    found = {path.stem: path for path in list_files(predicted, _MASKS)}
    wanted = list_files(true, _MASKS)
    missing = [path.stem for path in wanted if path.stem not in found]
    if missing:
        raise DataError(
            f"{predicted}: {len(missing)} of {len(wanted)} masks in {true} have no prediction of the same name here, "
            f"such as {', '.join(missing[:3])}; predict these images, too, or evaluate against fewer masks"
        )
    return [(found[path.stem], path) for path in wanted]


def require_same_classes(bundle: LabelSpace, data: LabelSpace, where: str) -> None:
    """Raise WeightsError unless a bundle and a dataset mean the same by every label."""
    if bundle.names != data.names:
        raise WeightsError(
            f"{where}: the model was trained on the classes {', '.join(bundle.names)}, but the data has "
            f"{', '.join(data.names)}; use the class table that it was trained with"
        )


def _count(predictor: Predictor, source: Source, truth: np.ndarray, confusion: Confusion) -> None:
    for window, labels in predictor.segment(source):
        confusion.update(_batch(labels), _batch(truth[window.slices]))


def _batch(labels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(labels))[None]


def _same_size(first: Path, size: Sequence[int], second: Path, other: Sequence[int]) -> None:
    if tuple(size) != tuple(other):
        raise DataError(
            f"{second}: {other[0]} x {other[1]} px (H x W), but {first} has {size[0]} x {size[1]}; both must be equal"
        )
