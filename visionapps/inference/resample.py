"""A source read at another resolution, on the fly, so that no seam shows where windows meet.

Shapes: C bands, h w window of the result, n pixels of it along one axis, T taps.

Every pixel is computed from its place in the whole raster and from the same pixels in the same order, whatever the
window: by the share of each source pixel that it covers where the raster shrinks, between the two nearest centres where
it grows. That is how photos are resized for training, too. Pixels that are not valid take no part.
"""

from typing import Any, NamedTuple

import numpy as np

from visionapps.compiled import compiled
from visionapps.inference.sources import Pixels, Source
from visionapps.structures import GeoRef
from visionapps.windows import Window

_MOST = 2**22  # source pixels that are read at a time
_HALF = 0.4999  # of a pixel has to be valid, but for rounding
_DEEP = 4  # bytes per value from which on float32 sums would lose digits


class Taps(NamedTuple):
    """What each of n pixels along an axis is made of."""

    first: np.ndarray  # (n,) int64, the first source pixel
    weights: np.ndarray  # (n, T) float32, rows sum to 1; taps that reach past the end weigh nothing


class ResampledSource:
    """Another source with pixels ``step`` times as large; it closes the one it reads from."""

    control = None

    def __init__(self, source: Source, step: tuple[float, float]) -> None:
        """
        Args:
            source: what to read.
            step: (down, right) source pixels per pixel of the result, > 0; brought to a whole number of pixels that
                cover exactly the same ground.
        """
        self._source = source
        self.name, self.bands, self.dtype = source.name, source.bands, source.dtype
        self.shape = (_count(source.shape[0], step[0]), _count(source.shape[1], step[1]))
        self._step = (source.shape[0] / self.shape[0], source.shape[1] / self.shape[1])
        self._rows = taps(source.shape[0], self.shape[0])
        self._cols = taps(source.shape[1], self.shape[1])
        self.block = (_count(source.block[0], self._step[0]), _count(source.block[1], self._step[1]))
        self.georef = _enlarged(source.georef, self._step) if source.georef else None

    def read(self, window: Window) -> Pixels:
        values = np.empty((len(self.bands), window.height, window.width), self.dtype)
        valid = np.empty((window.height, window.width), bool)
        wide = window.width * self._step[1]
        rows = max(1, int(_MOST / (wide * self._step[0])))
        result = Pixels(values, valid)
        for top in range(0, window.height, rows):
            self._resample(window, range(top, min(top + rows, window.height)), result)
        return result

    def close(self) -> None:
        self._source.close()

    def _resample(self, window: Window, part: range, result: Pixels) -> None:
        """Fill some rows of the pixels of a window."""
        begin, end = window.row + part.start, window.row + part.stop
        rows, top, height = _within(self._rows, begin, end, self._source.shape[0])
        cols, left, width = _within(self._cols, window.col, window.col_end, self._source.shape[1])
        source = Pixels(*map(np.ascontiguousarray, self._source.read(Window(top, left, height, width))))
        room = np.empty((len(self.bands) + 1, width), np.float64 if self.dtype.itemsize >= _DEEP else np.float32)
        _weigh(source, rows, cols, result, part.start, room, self.dtype.kind != "f")


def taps(source: int, result: int) -> Taps:
    """What the ``result`` pixels are made of that cover the same length as ``source`` pixels, each at least 1."""
    step = source / result
    if step >= 1:
        edges = np.arange(result + 1) * source / result  # one division: exact where the edge is a whole pixel
        begin, end = edges[:-1, None], edges[1:, None]
        first = np.floor(begin).astype(np.int64)
        pixels = first + np.arange(int(np.ceil(step)) + 1)
        weights = np.clip(np.minimum(pixels + 1, end) - np.maximum(pixels, begin), 0, None)
        return Taps(first[:, 0], (weights / weights.sum(1, keepdims=True)).astype(np.float32))
    centre = np.clip((np.arange(result) + 0.5) * step - 0.5, 0, source - 1)
    first = np.floor(centre).astype(np.int64)
    share = (centre - first).astype(np.float32)
    return Taps(first, np.stack([1 - share, share], axis=1))


def _count(pixels: int, step: float) -> int:
    return max(1, round(pixels / step))


def _enlarged(georef: GeoRef, step: tuple[float, float]) -> GeoRef:
    a, b, c, d, e, f = georef.transform
    down, right = step
    return GeoRef(georef.crs, (a * right, b * down, c, d * right, e * down, f))


def _within(axis: Taps, begin: int, end: int, length: int) -> tuple[Taps, int, int]:
    """The taps of pixels [begin, end), counted from the first source pixel needed, that one, and how many are."""
    first, weights = axis.first[begin:end], axis.weights[begin:end]
    start = int(first[0])
    return Taps(first - start, weights), start, min(length, int(first[-1]) + weights.shape[1]) - start


@compiled
def _weigh(source: Any, rows: Any, cols: Any, result: Any, top: Any, room: Any, rounded: Any) -> None:
    """Weighted means of the valid pixels; a pixel of the result is valid where they make up at least half of it.

    Args:
        source: Pixels, (C, H, W) and (H, W).
        rows: Taps of n rows.
        cols: Taps of the w columns.
        result: Pixels, (C, h, w) and (h, w), of which the rows from ``top`` on are filled.
        top: first of the n rows.
        room: (C + 1, W) float, for a row of sums and of the weights of valid pixels.
        rounded: whether the result is of whole numbers.
    """
    values, valid = source
    bands, height, width = values.shape
    for y in range(len(rows.first)):
        room[:] = 0
        for t in range(rows.weights.shape[1]):
            weight, row = rows.weights[y, t], rows.first[y] + t
            if weight == 0 or row >= height:
                continue
            for x in range(width):
                if valid[row, x]:
                    room[bands, x] += weight
            for c in range(bands):
                for x in range(width):
                    if valid[row, x]:
                        room[c, x] += weight * values[c, row, x]
        for x in range(len(cols.first)):
            total = room[0, 0] * 0
            for t in range(cols.weights.shape[1]):
                weight, col = cols.weights[x, t], cols.first[x] + t
                if weight != 0 and col < width:
                    total += weight * room[bands, col]
            result.valid[top + y, x] = total >= _HALF
            for c in range(bands):
                mean = room[0, 0] * 0
                for t in range(cols.weights.shape[1]):
                    weight, col = cols.weights[x, t], cols.first[x] + t
                    if weight != 0 and col < width:
                        mean += weight * room[c, col]
                if total > 0:
                    mean /= total
                result.values[c, top + y, x] = np.floor(mean + 0.5) if rounded else mean
