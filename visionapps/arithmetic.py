"""The arithmetic of convolution and pooling: sizes, receptive fields, costs, and both as products with a matrix.

Nothing here computes fast; it says exactly what comes out, and why. Pixel i of an axis covers [i, i + 1), so its centre
is at i + 1/2. Shapes: C channels, O outputs, H x W pixels, h x w pixels of the result, kh x kw of the kernel.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionapps.errors import ConfigError

Pair = int | tuple[int, int]  # rows and columns; one number stands for both
Array = NDArray[Any]


@dataclass(frozen=True)
class Sliding:
    """A window that slides along one axis: of a convolution, a pooling, or a transposed convolution.

    Attributes:
        kernel: taps, >= 1.
        stride: pixels from window to window, >= 1; of a transposed convolution the factor of enlargement.
        padding: zeros before and after, >= 0; of a transposed convolution what is cut off there.
        dilation: pixels from tap to tap, >= 1.
        transposed: it spreads every input over a window of the output.
    """

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    transposed: bool = False

    def __post_init__(self) -> None:
        if min(self.kernel, self.stride, self.dilation) < 1 or self.padding < 0:
            raise ConfigError(
                f"window: kernel {self.kernel}, stride {self.stride} and dilation {self.dilation} must be at least 1, "
                f"padding {self.padding} at least 0"
            )

    @property
    def extent(self) -> int:
        """Pixels from the first tap to the last, both included."""
        return self.dilation * (self.kernel - 1) + 1


def output_size(size: int, window: Sliding, *, ceil: bool = False, output_padding: int = 0) -> int:
    """How many pixels a window gives along an axis: (size - kernel + 2 padding) / stride + 1, rounded down.

    Args:
        size: pixels that come in, >= 1.
        window: what slides.
        ceil: round up: a last window may hang over the end, as long as it begins within the input or the padding
            before it (PyTorch's and Caffe's rule).
        output_padding: pixels that a transposed convolution adds at its end.

    Raises:
        ConfigError: the window does not fit once, or nothing is left of a transposed one.

    Source: Dumoulin and Visin 2016, A guide to convolution arithmetic for deep learning, relationships 6, 14 and 15.
    """
    if window.transposed:
        given = (size - 1) * window.stride - 2 * window.padding + window.extent + output_padding
        if given < 1:
            raise ConfigError(f"transposed window: padding {window.padding} cuts off all of {size} pixels; lower it")
        return given
    room = size + 2 * window.padding - window.extent
    given = (-(-room // window.stride) if ceil else room // window.stride) + 1
    if ceil and (given - 1) * window.stride >= size + window.padding:
        given -= 1
    if given < 1 or size < 1:
        raise ConfigError(
            f"window: {window.extent} pixels long, but the input has {size} and padding {window.padding} on each side; "
            f"give at least {max(1, window.extent - 2 * window.padding)} pixels, or pad more"
        )
    return given


def unseen(size: int, window: Sliding) -> int:
    """Pixels at the end, padding included, that no window covers because the stride does not fit; 0 where it fits."""
    return (size + 2 * window.padding - window.extent) % window.stride if output_size(size, window) else 0


@dataclass(frozen=True)
class ReceptiveField:
    """What a pixel of a feature map sees along one axis, in pixels of the image.

    Pixel i sees [start + i * jump, start + i * jump + size), zeros of the padding included.

    Attributes:
        size: how far, > 0.
        jump: from one pixel's field to the next one's: the stride of the map.
        start: where the field of pixel 0 begins; negative within padding.
    """

    size: Fraction = Fraction(1)
    jump: Fraction = Fraction(1)
    start: Fraction = Fraction(0)

    @property
    def centre(self) -> Fraction:
        """The middle of the field of pixel 0; i * jump further for pixel i."""
        return self.start + self.size / 2

    def span(self, index: int = 0) -> tuple[Fraction, Fraction]:
        """Half-open interval of the image that one pixel sees."""
        begin = self.start + index * self.jump
        return begin, begin + self.size

    def after(self, window: Sliding) -> "ReceptiveField":
        """The field of the map that a window makes of this one.

        Pixels of a transposed convolution differ by their phase; this is the least field that holds for all of them.

        Source: Araujo, Norris and Sim 2019, Computing Receptive Fields of Convolutional Neural Networks, equations 2
            to 4.
        """
        if window.transposed:
            reach = Fraction(window.extent - 1, window.stride) * self.jump
            shift = Fraction(window.padding, window.stride) * self.jump
            return ReceptiveField(self.size + reach, self.jump / window.stride, self.start + shift - reach)
        return ReceptiveField(
            self.size + (window.extent - 1) * self.jump,
            self.jump * window.stride,
            self.start - window.padding * self.jump,
        )

    def union(self, other: "ReceptiveField") -> "ReceptiveField":
        """The least field that holds both, of two maps of one stride.

        Raises:
            ConfigError: the strides differ.
        """
        if self.jump != other.jump:
            raise ConfigError(f"receptive fields: strides {self.jump} and {other.jump} differ; resample one map first")
        start = min(self.start, other.start)
        return ReceptiveField(max(self.start + self.size, other.start + other.size) - start, self.jump, start)


def receptive_field(windows: Iterable[Sliding]) -> ReceptiveField:
    """The receptive field after a chain of windows, the first layer first."""
    field = ReceptiveField()
    for window in windows:
        field = field.after(window)
    return field


def convolution_parameters(inputs: int, outputs: int, kernel: Pair, *, groups: int = 1, bias: bool = True) -> int:
    """Weights and biases of a convolution: kh * kw * C / groups * O + O.

    Raises:
        ConfigError: the groups do not divide the channels.
    """
    if groups < 1 or inputs % groups or outputs % groups:
        raise ConfigError(f"convolution: {groups} groups do not divide {inputs} inputs and {outputs} outputs")
    rows, cols = _pair(kernel)
    return rows * cols * inputs // groups * outputs + outputs * bias


def convolution_multiply_adds(inputs: int, outputs: int, kernel: Pair, size: Pair, *, groups: int = 1) -> int:
    """Multiply-adds of a convolution whose result has ``size`` pixels; adding a bias is not counted."""
    height, width = _pair(size)
    return convolution_parameters(inputs, outputs, kernel, groups=groups, bias=False) * height * width


def im2col(image: Array, kernel: Pair, *, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1) -> Array:
    """Every patch under a sliding kernel as a column.

    Args:
        image: (C, H, W).
        kernel: (kh, kw).

    Returns:
        (C * kh * kw, h * w): rows channel by channel and each row by row, columns row by row of the result.

    Raises:
        ConfigError: the kernel does not fit, or image has not three axes.
    """
    channels, height, width = _three(image)
    taps, (rows, cols) = _taps((channels, height, width), kernel, stride=stride, padding=padding, dilation=dilation)
    padded = np.pad(image, [(0, 0), *((p, p) for p in _pair(padding))])
    columns: Array = padded.reshape(-1)[taps]
    return columns.reshape(-1, rows * cols)


def col2im(
    columns: Array,
    shape: tuple[int, int, int],
    kernel: Pair,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
) -> Array:
    """Columns added back to where ``im2col`` took them from: its transpose, not its inverse, where patches overlap.

    Args:
        columns: (C * kh * kw, h * w).
        shape: (C, H, W) of the image.

    Returns:
        (C, H, W).

    Raises:
        ConfigError: the columns are not those of such an image.
    """
    taps, _ = _taps(shape, kernel, stride=stride, padding=padding, dilation=dilation)
    if columns.shape != taps.shape:
        raise ConfigError(
            f"columns: {'x'.join(map(str, columns.shape))} given, but an image of {'x'.join(map(str, shape))} has "
            f"{'x'.join(map(str, taps.shape))}; give what im2col gave, with the same kernel, stride and padding"
        )
    (top, left), (channels, height, width) = _pair(padding), shape
    padded = np.zeros((channels, height + 2 * top, width + 2 * left), columns.dtype)
    np.add.at(padded.reshape(-1), taps, columns)
    return padded[:, top : top + height, left : left + width]


def convolve(image: Array, weight: Array, *, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1) -> Array:
    """A convolution layer as one product of matrices: kernels in rows times patches in columns.

    As everywhere in deep learning the kernel is not turned around, so this is a cross-correlation.

    Args:
        image: (C, H, W).
        weight: (O, C, kh, kw).

    Returns:
        (O, h, w).
    """
    outputs, kernel = len(weight), (int(weight.shape[2]), int(weight.shape[3]))
    columns = im2col(image, kernel, stride=stride, padding=padding, dilation=dilation)
    _, size = _taps(_three(image), kernel, stride=stride, padding=padding, dilation=dilation)
    product: Array = weight.reshape(outputs, -1) @ columns
    return product.reshape(outputs, *size)


def convolution_matrix(
    weight: Array, size: tuple[int, int], *, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1
) -> Array:
    """The matrix that a convolution multiplies a flattened image with: mostly zeros, every weight in it many times.

    It shows that a convolution is a fully connected layer with shared weights; its transpose is the transposed
    convolution, and the gradient.

    Args:
        weight: (O, C, kh, kw).
        size: (H, W) of the image.

    Returns:
        (O * h * w, C * H * W).
    """
    outputs, channels, kh, kw = weight.shape
    (top, left), (height, width) = _pair(padding), size
    taps, (rows, cols) = _taps((channels, height, width), (kh, kw), stride=stride, padding=padding, dilation=dilation)
    wide = np.zeros((outputs, rows * cols, channels * (height + 2 * top) * (width + 2 * left)), weight.dtype)
    place = np.arange(rows * cols)
    for output in range(outputs):
        wide[output, place[None], taps] = weight[output].reshape(-1, 1)
    grid = wide.reshape(-1, channels, height + 2 * top, width + 2 * left)
    return grid[:, :, top : top + height, left : left + width].reshape(outputs * rows * cols, -1)


def max_pool_matrix(image: Array, kernel: Pair, *, stride: Pair | None = None) -> Array:
    """The matrix by which max pooling multiplies this one flattened map: a 1 where each maximum stands.

    It is the Jacobian too, since maxima stay where they are under small changes. The first of equal maxima counts.

    Args:
        image: (H, W).
        kernel: (kh, kw); stride: None for the kernel's.

    Returns:
        (h * w, H * W).
    """
    taps, _ = _taps((1, *_two(image)), kernel, stride=kernel if stride is None else stride)
    winners = taps[image.reshape(-1)[taps].argmax(0), np.arange(taps.shape[1])]
    matrix = np.zeros((taps.shape[1], image.size))
    matrix[np.arange(len(winners)), winners] = 1
    return matrix


def average_pool_matrix(size: tuple[int, int], kernel: Pair, *, stride: Pair | None = None) -> Array:
    """The matrix by which average pooling multiplies a flattened map: 1 / (kh * kw) under each window.

    Args:
        size: (H, W) of the map; of maxima the matrix depends on the map, of means on its size only.

    Returns:
        (h * w, H * W).
    """
    taps, _ = _taps((1, *size), kernel, stride=kernel if stride is None else stride)
    matrix = np.zeros((taps.shape[1], math.prod(size)))
    matrix[np.arange(taps.shape[1])[None], taps] = 1 / len(taps)
    return matrix


def _taps(
    shape: tuple[int, int, int], kernel: Pair, *, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1
) -> tuple[NDArray[np.int64], tuple[int, int]]:
    """Flat places in the padded image that each window reads, (C * kh * kw, h * w); and (h, w)."""
    channels, *sides = shape
    begins, offsets, padded = [], [], []
    for side, *numbers in zip(sides, *map(_pair, (kernel, stride, padding, dilation)), strict=True):
        window = Sliding(*numbers)
        begins.append(np.arange(output_size(side, window)) * window.stride)
        offsets.append(np.arange(window.kernel) * window.dilation)
        padded.append(side + 2 * window.padding)
    rows = offsets[0][:, None, None, None] + begins[0][None, None, :, None]
    cols = offsets[1][None, :, None, None] + begins[1][None, None, None, :]
    plane = (rows * padded[1] + cols).reshape(1, -1, len(begins[0]) * len(begins[1]))
    taps = np.arange(channels)[:, None, None] * padded[0] * padded[1] + plane
    return taps.reshape(-1, plane.shape[-1]), (len(begins[0]), len(begins[1]))


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _three(image: Array) -> tuple[int, int, int]:
    if image.ndim != 3:
        raise ConfigError(f"image: expected (C, H, W), got {image.ndim} axes; add the axis of channels")
    return int(image.shape[0]), int(image.shape[1]), int(image.shape[2])


def _two(image: Array) -> tuple[int, int]:
    if image.ndim != 2:
        raise ConfigError(f"map: expected (H, W), got {image.ndim} axes; pool one channel at a time")
    return int(image.shape[0]), int(image.shape[1])
