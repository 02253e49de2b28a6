"""Soft labels: probabilities of all classes of a pixel instead of one label.

Losses, augmentations and batches know labels of 8 bits. So each crop draws its labels: a pixel with probabilities q
gets class k with probability q_k, anew in every crop. Cross-entropy is linear in the target, so its expectation over
the draws is sum_k q_k (-log p_k), the cross-entropy of the soft target, and so is that of its gradient; class weights
w_k keep that: sum_k q_k w_k (-log p_k). Losses that are not linear in the target (Dice, Lovasz) see labels as likely as
the teacher thinks, not their mean. Shapes: K classes, H W photo, h w window.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from visionapps.data.images import resize_image
from visionapps.errors import DataError
from visionapps.structures import IGNORE


def draw_labels(planes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A label for each pixel, as probable as its plane says.

    Args:
        planes: (K, h, w) uint8, shares of their sum; all 0: void.
        rng: one number is drawn per pixel.

    Returns:
        (h, w) uint8, IGNORE where void.
    """
    total = planes.sum(0, dtype=np.uint16)  # at most 255 * 255
    target = (rng.random(total.shape, np.float32) * total).astype(np.uint16)  # 0 .. total - 1, all alike
    reached, labels = np.zeros_like(total), np.zeros(total.shape, np.uint8)
    for plane in planes[:-1]:
        reached += plane
        labels += target >= reached
    labels[total == 0] = IGNORE
    return labels


def largest(planes: np.ndarray) -> np.ndarray:
    """(H, W) uint8 the most probable class of (K, H, W) uint8, the first of equal ones; IGNORE where all are 0."""
    best, labels = planes[0].copy(), np.zeros(planes.shape[1:], np.uint8)
    for k, plane in enumerate(planes[1:], 1):
        labels[plane > best] = k
        np.maximum(best, plane, out=best)
    labels[best == 0] = IGNORE
    return labels


def read_soft(path: Path, order: Sequence[int]) -> np.ndarray:
    """The planes of a file of soft labels.

    Args:
        path: a raster of 8 bits with a plane per class.
        order: the plane of each of the K classes.

    Returns:
        (K, H, W) uint8.

    Raises:
        DataError: it cannot be read, or has other planes.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # labels of photos lie nowhere
    try:
        with rasterio.open(path) as raster:
            if raster.count != len(order) or set(raster.dtypes) != {"uint8"}:
                raise DataError(
                    f"{path}: {raster.count} planes of {raster.dtypes[0]}, but soft labels have one of uint8 per "
                    f"class, {len(order)}; write them anew with `visionapps pseudo --soft`"
                )
            planes: np.ndarray = raster.read([plane + 1 for plane in order])
    except (RasterioError, OSError) as error:
        cause = error.__cause__ or error  # GDAL's own words
        reason = " ".join(str(cause).split())
        raise DataError(f"{path}: cannot be decoded, truncated or corrupt ({reason}); write it anew") from error
    return planes


def resize_soft(planes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(K, H, W) uint8 to (K, h, w): area average where it shrinks, bilinear where it grows."""
    if planes.shape[1:] == size:
        return planes
    return np.stack([resize_image(plane[..., None], size)[..., 0] for plane in planes])
