"""Boxes on the device: what a detector learns from and what it gives, and the arithmetic of rectangles.

Boxes are x0 y0 x1 y1 in pixels, half-open. Shapes: B batch, C bands, H W padded batch, h w one image, N objects.
"""

from typing import NamedTuple

from torch import Tensor


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
