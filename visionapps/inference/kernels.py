"""Compiled loops over scores on the CPU, each of which goes through memory once.

Shapes: S score planes, K classes, h w tile, o overlap, W' width of all tiles, W raster width.

A tile of 25 classes and 512 x 512 pixels is 26 MB of scores: every pass over it costs a millisecond or more. So a few
rows of a few planes are blended, compared and kept while they are in the cache. There is no fast mathematics: results
are those of the same operations in torch, bit by bit.
"""

from typing import Any, NamedTuple

import numpy as np

from visionapps.compiled import compiled

_ROWS = 16  # rows at a time: with four planes of 512 columns they are 128 KB
_PLANES = 4  # planes at a time: the best class so far stays in registers meanwhile
_PIXELS = 32  # pixels at a time when channels become planes: 25 channels of them are 3 KB
_ONE = np.float32(1)


class Strips(NamedTuple):
    """What neighbouring tiles leave each other; a strip that does not matter has o = 0. All float32."""

    left: np.ndarray  # (S, h, o) of the tile to the left
    right: np.ndarray  # (S, h, o) to be filled for the tile to the right
    below: np.ndarray  # (S, o, W') of the row above; to be filled for the row below


class Place(NamedTuple):
    """Where a tile stands. Rows and columns are those of the tile unless said otherwise."""

    begin: int  # the column of the strips below where the tile's own columns begin
    above: bool  # whether to blend with the row above
    keep: bool  # whether to keep rows for the one below
    top: int  # finished rows: [top, bottom)
    bottom: int
    left: int  # finished columns: [left, right), none of them in the right strip
    right: int
    column: int  # the column of the labels where the finished ones go


# Columns with an offset are counted without sign: a signed sum might be negative, which Python counts from the end, and
# the test for that keeps a loop from being vectorised.


@compiled
def _blend_row(scores: Any, k: Any, y: Any, strips: Any, across: Any, down: Any, place: Any) -> None:
    """Blend one row of one plane with the strips to its left and above."""
    left, below = strips.left, strips.below
    inner, begin = scores.shape[2] - strips.right.shape[2], np.uint64(place.begin)
    for x in range(left.shape[2]):
        scores[k, y, x] = scores[k, y, x] * across[x] + left[k, y, x] * (_ONE - across[x])
    if place.above and y < below.shape[1]:
        rise, fall = down[y], _ONE - down[y]
        for x in range(inner):
            scores[k, y, x] = scores[k, y, x] * rise + below[k, y, np.uint64(x) + begin] * fall


@compiled
def _keep_row(scores: Any, k: Any, y: Any, strips: Any, place: Any) -> None:
    """Copy what the tile to the right and the row below need of one row of one plane."""
    right, below = strips.right, strips.below
    inner, begin = np.uint64(scores.shape[2] - right.shape[2]), np.uint64(place.begin)
    for x in range(right.shape[2]):
        right[k, y, x] = scores[k, y, np.uint64(x) + inner]
    row = y - scores.shape[1] + below.shape[1]
    if place.keep and row >= 0:
        for x in range(inner):
            below[k, row, np.uint64(x) + begin] = scores[k, y, x]


@compiled
def _compare_four(scores: Any, k: Any, y: Any, width: Any, best: Any, label: Any, row: Any) -> None:
    """Take planes k to k + 3 of a row into the running maximum."""
    a, b, c, d = np.int32(k), np.int32(k + 1), np.int32(k + 2), np.int32(k + 3)
    for x in range(width):
        most, at = best[row, x], label[row, x]
        p, q, r, s = scores[k, y, x], scores[k + 1, y, x], scores[k + 2, y, x], scores[k + 3, y, x]
        at, most = a if p > most else at, p if p > most else most
        at, most = b if q > most else at, q if q > most else most
        at, most = c if r > most else at, r if r > most else most
        at, most = d if s > most else at, s if s > most else most
        best[row, x], label[row, x] = most, at


@compiled
def _compare_one(scores: Any, k: Any, y: Any, width: Any, best: Any, label: Any, row: Any) -> None:
    """Take plane k of a row into the running maximum."""
    a = np.int32(k)
    for x in range(width):
        most, at, p = best[row, x], label[row, x], scores[k, y, x]
        best[row, x], label[row, x] = p if p > most else most, a if p > most else at


@compiled
def blend_tile(scores: Any, strips: Any, across: Any, down: Any, place: Any, num_classes: Any, labels: Any) -> None:
    """Blend a tile in place with its neighbours, keep what the next ones need, and label what is finished.

    All arrays are contiguous. Within a row the order is: blend, compare, keep; so that the pass is led by the
    comparison, which reads memory in its order, and the short strips find it in the cache.

    Args:
        scores: (S, h, w) float32, changed where it is blended.
        strips: of the neighbours.
        across: (o,) float32, weights of this tile over the left strip.
        down: (o,) float32, weights of this tile over the upper strip.
        place: where the tile stands.
        num_classes: K; planes beyond are blended, but are no candidates for a label.
        labels: (h', W) uint8 rows of the raster that are finished with this row of tiles. The label of a pixel is the
            first of its largest scores; NaN is never the largest.
    """
    planes, height, width = scores.shape
    inner = width - strips.right.shape[2]
    best, label = np.empty((_ROWS, width), np.float32), np.empty((_ROWS, width), np.int32)
    for start in range(0, height, _ROWS):
        stop = min(start + _ROWS, height)
        best[:], label[:] = -np.inf, 0
        for k in range(0, planes, _PLANES):
            last = min(k + _PLANES, planes)
            for y in range(start, stop):
                for j in range(k, last):
                    _blend_row(scores, j, y, strips, across, down, place)
                if place.top <= y < place.bottom:
                    if k + _PLANES <= num_classes:
                        _compare_four(scores, k, y, inner, best, label, y - start)
                    else:
                        for j in range(k, min(last, num_classes)):
                            _compare_one(scores, j, y, inner, best, label, y - start)
                for j in range(k, last):
                    _keep_row(scores, j, y, strips, place)
        for y in range(max(start, place.top), min(stop, place.bottom)):
            for x in range(place.left, place.right):
                labels[y - place.top, x - place.left + place.column] = label[y - start, x]


@compiled
def separate_planes(pixels: Any, shift: Any, planes: Any) -> None:
    """Turn interleaved channels into planes, a block of pixels after the other.

    torch takes five times as long for 25 channels, because it walks through the planes pixel by pixel.

    Args:
        pixels: (n, S) uint32, the bits of float32; or uint16, those of bfloat16.
        shift: bits to move them left: 0, or 16 for bfloat16, which is the upper half of a float32.
        planes: (S, n) uint32, to be filled with the bits of float32.
    """
    count, channels = pixels.shape
    for start in range(0, count, _PIXELS):
        stop = min(start + _PIXELS, count)
        k = 0
        while k + 4 <= channels:
            for p in range(start, stop):
                planes[k, p] = np.uint32(pixels[p, k]) << shift
                planes[k + 1, p] = np.uint32(pixels[p, k + 1]) << shift
                planes[k + 2, p] = np.uint32(pixels[p, k + 2]) << shift
                planes[k + 3, p] = np.uint32(pixels[p, k + 3]) << shift
            k += 4
        for j in range(k, channels):
            for p in range(start, stop):
                planes[j, p] = np.uint32(pixels[p, j]) << shift
