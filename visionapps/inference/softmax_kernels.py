"""Probabilities of interleaved logits, added to a sum while they are in the cache: what an ensemble does most.

torch's softmax goes through 25 numbers of a pixel at a time, writes them to memory, and reads them again to be added.
Here a block of pixels is taken at once, as one row of numbers: exponentials and products are those of the whole row,
and only the largest and the sum of each pixel are sought pixel by pixel, four at a time, since each waits for itself.

Shapes: n pixels, K classes; a block is a row of (pixels x K) numbers.
"""

from typing import Any

import numpy as np

from visionapps.compiled import compiled

_BLOCK = 32  # pixels: 25 classes of them are 3 KB
_LEAST = np.float32(-87)  # exp of less is no normal float32
_LOG2_E = np.float32(np.log2(np.e))
# ln 2 in two parts, of which the first has so few digits that its products with whole numbers are exact.
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(np.log(2) - 0.693359375)
_ROUND = np.float32(1.5 * 2**23)  # added and taken away, it leaves a whole number
_BIAS, _DIGITS = np.int32(127), np.int32(23)  # of float32
# exp(z) = 1 + z + z^2 (1/2! + z/3! + ... + z^5/7!): for |z| <= ln(2) / 2 the rest is below 1e-8.
_OVER_2, _OVER_6, _OVER_24 = np.float32(1 / 2), np.float32(1 / 6), np.float32(1 / 24)
_OVER_120, _OVER_720, _OVER_5040 = np.float32(1 / 120), np.float32(1 / 720), np.float32(1 / 5040)
_ZERO, _ONE = np.float32(0), np.float32(1)

# Places are counted without sign: a signed sum might be negative, which Python counts from the end, and the test for
# that keeps a loop from being vectorised.


@compiled
def add_softmax(logits: Any, classes: Any, share: Any, sums: Any) -> None:
    """Add share times the softmax of every pixel, as accurate as float32 allows; what is no number stays so.

    Args:
        logits: (n x K,) float32, the classes of a pixel side by side.
        classes: K, np.uint64.
        share: np.float32.
        sums: (n x K,) float32, added to.
    """
    block, most, factors = (
        np.empty(_BLOCK * classes, np.float32),
        np.empty(_BLOCK, np.float32),
        np.empty(_BLOCK, np.float32),
    )
    powers = np.empty(_BLOCK * classes, np.int32)
    for begin in range(np.uint64(0), np.uint64(len(logits)), np.uint64(_BLOCK) * classes):
        row = logits[begin : begin + np.uint64(_BLOCK) * classes]
        out = sums[begin : begin + np.uint64(_BLOCK) * classes]
        pixels = np.uint64(len(row)) // classes
        _find_largest(row, classes, pixels, most)
        for pixel in range(pixels):
            at, top = pixel * classes, most[pixel]
            for k in range(classes):
                block[at + k] = row[at + k] - top
        _exponentiate(block, np.uint64(len(row)), powers)
        _find_factors(block, classes, pixels, share, factors)
        for pixel in range(pixels):
            at, factor = pixel * classes, factors[pixel]
            for k in range(classes):
                out[at + k] += block[at + k] * factor


@compiled
def _find_largest(row: Any, classes: Any, pixels: Any, most: Any) -> None:
    """The largest number of each pixel of a row."""
    together = pixels - pixels % np.uint64(4)
    for pixel in range(np.uint64(0), together, np.uint64(4)):
        a = pixel * classes
        b, c, d = a + classes, a + np.uint64(2) * classes, a + np.uint64(3) * classes
        p, q, r, s = row[a], row[b], row[c], row[d]
        for k in range(classes):
            p = row[a + k] if row[a + k] > p else p
            q = row[b + k] if row[b + k] > q else q
            r = row[c + k] if row[c + k] > r else r
            s = row[d + k] if row[d + k] > s else s
        most[pixel], most[pixel + np.uint64(1)] = p, q
        most[pixel + np.uint64(2)], most[pixel + np.uint64(3)] = r, s
    for pixel in range(together, pixels):
        p = row[pixel * classes]
        for k in range(classes):
            p = row[pixel * classes + k] if row[pixel * classes + k] > p else p
        most[pixel] = p


@compiled
def _exponentiate(values: Any, count: Any, powers: Any) -> None:
    """exp of the first values, none of which is above 0, in place: 2^whole exp(rest), |rest| <= ln(2) / 2.

    Args:
        values: float32.
        count: how many, np.uint64.
        powers: int32, as many: the bits of 2^whole.
    """
    for i in range(count):
        z = values[i]
        z = _LEAST if z < _LEAST else z
        whole = (z * _LOG2_E + _ROUND) - _ROUND
        powers[i] = (np.int32(whole) + _BIAS) << _DIGITS
        z = z - whole * _LN2_HIGH - whole * _LN2_LOW
        series = ((((_OVER_5040 * z + _OVER_720) * z + _OVER_120) * z + _OVER_24) * z + _OVER_6) * z + _OVER_2
        values[i] = series * z * z + z + _ONE
    scales = powers.view(np.float32)
    for i in range(count):
        values[i] = values[i] * scales[i]


@compiled
def _find_factors(row: Any, classes: Any, pixels: Any, share: Any, factors: Any) -> None:
    """share over the sum of each pixel of a row."""
    together = pixels - pixels % np.uint64(4)
    for pixel in range(np.uint64(0), together, np.uint64(4)):
        a = pixel * classes
        b, c, d = a + classes, a + np.uint64(2) * classes, a + np.uint64(3) * classes
        p = q = r = s = _ZERO
        for k in range(classes):
            p, q, r, s = p + row[a + k], q + row[b + k], r + row[c + k], s + row[d + k]
        factors[pixel], factors[pixel + np.uint64(1)] = share / p, share / q
        factors[pixel + np.uint64(2)], factors[pixel + np.uint64(3)] = share / r, share / s
    for pixel in range(together, pixels):
        p = _ZERO
        for k in range(classes):
            p = p + row[pixel * classes + k]
        factors[pixel] = share / p
