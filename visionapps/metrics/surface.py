"""Measures of outlines: surface Dice at a tolerance, and boundary IoU.

Shapes: K classes, h x w pixels of the box around a class.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionapps.errors import ConfigError
from visionapps.metrics.measures import Mask, Parts, class_crops, share

# Length of the outline inside a square of four pixel centres, by its code (8, 4, 2, 1 for its pixels in reading order):
# between one pixel and three it cuts a corner, between pairs of neighbours it runs straight, between diagonal pairs it
# cuts two corners.
_CORNER = 2**-0.5
_LENGTHS = np.zeros(16)
_LENGTHS[[1, 2, 4, 8, 7, 11, 13, 14]] = _CORNER
_LENGTHS[[3, 5, 10, 12]] = 1.0
_LENGTHS[[6, 9]] = 2 * _CORNER
_LOOKS_PER_PIXEL = 20  # looking at single points beats a transform of the whole raster up to about here


@dataclass(frozen=True)
class SurfaceDice:
    """The share of both outlines that lies within a tolerance of the other one.

    Parts are (K, 2): length of outline that is near the other one, and all of it, both sides added; in pixels. Outlines
    run halfway between pixel centres inside and outside, and close along the border of the image. They are weighted by
    their length, which is exact along rows, columns and diagonals; counts of pixels would favour some directions.

    Attributes:
        tolerance_px: largest distance of an agreement, >= 0.

    Source: Nikolov et al. 2018, Deep learning to achieve clinically applicable segmentation of head and neck anatomy.
    """

    tolerance_px: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.tolerance_px, int | float) or not 0 <= self.tolerance_px < float("inf"):
            raise ConfigError(f"metric surface_dice: tolerance_px {self.tolerance_px!r} must be a number from 0 on")

    @property
    def name(self) -> str:
        """surface_dice."""
        return "surface_dice"

    def parts(self, prediction: NDArray[Any], truth: NDArray[Any], classes: int) -> Parts:
        """(K, 2) float64; see ``Measure``."""
        found = np.zeros((classes, 2))
        for k, predicted, true in class_crops(prediction, truth, classes):
            ours, ours_length = outline(predicted)
            theirs, theirs_length = outline(true)
            size = predicted.shape[0] + 1, predicted.shape[1] + 1
            near = ours_length[near_points(ours, theirs, size, self.tolerance_px)].sum()
            near += theirs_length[near_points(theirs, ours, size, self.tolerance_px)].sum()
            found[k] = near, ours_length.sum() + theirs_length.sum()
        return found

    def ratio(self, parts: Parts) -> NDArray[np.float64]:
        """Near length over all length."""
        return share(parts[..., 0], parts[..., 1])


def outline(mask: Mask) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Where the outline of a mask runs.

    Args:
        mask: (h, w).

    Returns:
        (N, 2) row and column of corners between four pixels that differ, the corner (0, 0) above and left of the first
        pixel; and (N,) the length of outline around each, in pixels.
    """
    code = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.uint8)
    ones = mask.view(np.uint8)
    code[:-1, :-1] = ones
    code[:-1, 1:] |= ones << 1
    code[1:, :-1] |= ones << 2
    code[1:, 1:] |= ones << 3
    # Shifted up by one, the codes 0 and 15 of the many squares that are all in or all out become 1 and 0.
    places = np.flatnonzero((code + np.uint8(1)) & np.uint8(14))
    return np.stack(np.divmod(places, code.shape[1]), axis=1), _LENGTHS[code.reshape(-1)[places]]


def near_points(
    points: NDArray[np.int64], others: NDArray[np.int64], size: tuple[int, int], tolerance_px: float
) -> Mask:
    """(N,) whether some other point lies within a distance, ends included.

    Args:
        points: (N, 2) row and column.
        others: (M, 2).
        size: (h, w) of the raster that holds both.
        tolerance_px: >= 0.
    """
    if not len(points) or not len(others):
        return np.zeros(len(points), bool)
    # No point is further away than the raster is large. Squares of distances are whole: a hair more lets in no other.
    reach = int(min(tolerance_px, max(size)))
    limit = tolerance_px**2 + 1e-6
    raster = np.zeros((size[0] + 2 * reach, size[1] + 2 * reach), bool)
    raster[others[:, 0] + reach, others[:, 1] + reach] = True
    rows, cols = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    squares = rows**2 + cols**2
    inside = squares <= limit
    if int(inside.sum()) * len(points) > _LOOKS_PER_PIXEL * raster.size:
        from scipy import ndimage

        distances = ndimage.distance_transform_edt(~raster)[points[:, 0] + reach, points[:, 1] + reach]
        near: Mask = distances**2 <= limit
        return near
    offsets = (rows * raster.shape[1] + cols)[inside][np.argsort(squares[inside], kind="stable")]
    places = (points[:, 0] + reach) * raster.shape[1] + points[:, 1] + reach
    pixels, left = raster.reshape(-1), np.arange(len(points))
    for offset in offsets:  # the nearest first: most points need few looks
        left = left[~pixels[places[left] + offset]]
        if not len(left):
            break
    near = np.ones(len(points), bool)
    near[left] = False
    return near


@dataclass(frozen=True)
class BoundaryIoU:
    """IoU of the rims: of the pixels of each mask that lie near its own outline.

    Parts are (K, 3): pixels in both rims, in the predicted, in the true one. As in the authors' program, a pixel is
    near if a pixel outside the mask, or outside the image, lies within the distance in rows and in columns.

    Attributes:
        distance: width of the rim: from 1 on in pixels, below as a share of the image's diagonal.

    Source: Cheng et al. 2021, Boundary IoU: improving object-centric image segmentation evaluation.
    """

    distance: float = 0.02

    def __post_init__(self) -> None:
        if not isinstance(self.distance, int | float) or not 0 < self.distance < float("inf"):
            raise ConfigError(f"metric boundary_iou: distance {self.distance!r} must be a number above 0")

    @property
    def name(self) -> str:
        """boundary_iou."""
        return "boundary_iou"

    def width_px(self, height: int, width: int) -> int:
        """Pixels of the rim in an image of so many pixels; at least one."""
        return max(1, round(self.distance if self.distance >= 1 else self.distance * float(np.hypot(height, width))))

    def parts(self, prediction: NDArray[Any], truth: NDArray[Any], classes: int) -> Parts:
        """(K, 3) int64; see ``Measure``."""
        found = np.zeros((classes, 3), np.int64)
        width = self.width_px(truth.shape[-2], truth.shape[-1])
        for k, predicted, true in class_crops(prediction, truth, classes):
            ours, theirs = rim(predicted, width), rim(true, width)
            found[k] = np.count_nonzero(ours & theirs), np.count_nonzero(ours), np.count_nonzero(theirs)
        return found

    def ratio(self, parts: Parts) -> NDArray[np.float64]:
        """I / (P + T - I)."""
        both = np.asarray(parts[..., 0], np.float64)
        return share(both, parts[..., 1] + parts[..., 2] - both)


def rim(mask: Mask, width: int) -> Mask:
    """Pixels of a (h, w) mask with one outside it, or outside the array, at most ``width`` rows and columns away."""
    inner = mask
    for axis in (0, 1):
        inner = _all_along(inner, width, axis)
    rim: Mask = mask & ~inner
    return rim


def _all_along(mask: Mask, reach: int, axis: int) -> Mask:
    """Whether all pixels up to ``reach`` before and after along an axis are inside; those outside the array are not.

    Spans of twice the length are made of two that are known: twice as fast as a running minimum.
    """
    lines = np.pad(np.moveaxis(mask, axis, 0), ((reach, reach), (0, 0)))
    span, window = 1, 2 * reach + 1
    while span < window:
        step = min(span, window - span)
        lines = lines[: len(lines) - step] & lines[step:]
        span += step
    return np.moveaxis(lines, 0, axis)
