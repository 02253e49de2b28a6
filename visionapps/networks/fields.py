"""What each value inside a network depends on: receptive field and number of layers, carried from tensor to tensor.

A tensor is followed by its axes: which of them hold rows of the image and which columns. So it does not matter whether
pixels stand in (B, C, H, W), (B, H, W, C) or as tokens, and branches, additions and concatenations come out right.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from torch import Tensor

from visionapps.arithmetic import ReceptiveField, Sliding

Axes = tuple[frozenset[int], ...]  # of each axis of a tensor, which it holds: 0 rows, 1 columns
_NONE: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Trace:
    """What is known about a tensor that depends on the image.

    Attributes:
        fields: receptive fields of rows and columns.
        size: (h, w) of the map that it holds.
        axes: where they stand.
        whole: it also depends on the whole image, whatever its size: behind global pooling, attention, or a linear
            layer over the map. ``fields`` is then what is seen without that.
        windows: attention within windows, or another mixing of pixels of unknown reach, has widened the fields.
        layers: weight layers (convolutions and linear ones) on the longest path from the image.
        steps: the same with poolings counted.
    """

    fields: tuple[ReceptiveField, ReceptiveField]
    size: tuple[int, int]
    axes: Axes
    whole: bool = False
    windows: bool = False
    layers: int = 0
    steps: int = 0


def of_image(height: int, width: int) -> Trace:
    """The trace of a (B, C, H, W) image."""
    one = ReceptiveField()
    return Trace((one, one), (height, width), (_NONE, _NONE, frozenset((0,)), frozenset((1,))))


def propagate(name: str, args: Sequence[Any], output: Tensor, traces: Sequence[Trace | None]) -> Trace:
    """The trace of the result of one operation of PyTorch's core.

    Args:
        name: of the operation without overload: "convolution".
        args: its positional arguments.
        output: its first result.
        traces: of the tensors among args, in order, those in lists too; None where one does not depend on the image.
            At least one does.
    """
    merged = _merge([t for t in traces if t is not None], output)
    rule = _RULES.get(name)
    return rule(merged, args, output, traces) if rule else _elementwise(merged, output)


def _merge(known: list[Trace], output: Tensor) -> Trace:
    """The trace of a result that depends on all of these in the same place."""
    largest = max(math.prod(t.size) for t in known)
    maps = [t for t in known if math.prod(t.size) == largest]
    # What is broadcast over the map (a gate from global pooling) has lost its place: it brings its own "whole" along.
    first = next((t for t in maps if len(t.axes) == output.ndim), maps[0])
    windows = any(t.windows for t in known) or any(
        a.jump != b.jump for t in maps for a, b in zip(t.fields, first.fields, strict=True)
    )
    fields = first.fields
    for other in maps:
        fields = (_union(fields[0], other.fields[0]), _union(fields[1], other.fields[1]))
    return replace(
        first,
        fields=fields,
        axes=tuple(frozenset().union(*column) for column in zip(*_aligned(maps, len(first.axes)), strict=True)),
        whole=any(t.whole for t in known) or len(maps) < len(known),
        windows=windows,
        layers=max(t.layers for t in known),
        steps=max(t.steps for t in known),
    )


def _aligned(maps: list[Trace], axes: int) -> list[Axes]:
    """The axes of each, counted from the last as broadcasting does."""
    return [((_NONE,) * axes + t.axes)[-axes:] if axes else () for t in maps]


def _union(one: ReceptiveField, other: ReceptiveField) -> ReceptiveField:
    return one.union(other) if one.jump == other.jump else one


def _elementwise(trace: Trace, output: Tensor) -> Trace:
    axes = ((_NONE,) * output.ndim + trace.axes)[len(trace.axes) :] if output.ndim else ()
    return replace(trace, axes=axes)


Rule = Callable[[Trace, Sequence[Any], Tensor, Sequence[Trace | None]], Trace]


def _slide(trace: Trace, output: Tensor, windows: Sequence[Sliding]) -> Trace:
    """Windows over the last two axes, as convolutions and poolings have them."""
    axes = list(trace.axes)
    fields, size = list(trace.fields), list(trace.size)
    for place, window in zip((-2, -1), windows, strict=True):
        for axis in axes[place]:
            fields[axis] = fields[axis].after(window)
            size[axis] = output.shape[place]
    return replace(trace, fields=(fields[0], fields[1]), size=(size[0], size[1]))


def _convolution(trace: Trace, args: Sequence[Any], output: Tensor, traces: Sequence[Trace | None]) -> Trace:
    weight, stride, padding, dilation, transposed = args[1], args[3], args[4], args[5], args[6]
    trace = _weighted(trace, traces)
    if weight.ndim != 4 or output.ndim != 4:
        return _elementwise(trace, output)
    kernel = weight.shape[2:]
    return _slide(
        trace,
        output,
        [
            Sliding(int(k), int(s), int(p), int(d), bool(transposed))
            for k, s, p, d in zip(kernel, _two(stride), _two(padding), _two(dilation), strict=True)
        ],
    )


def _weighted(trace: Trace, traces: Sequence[Trace | None]) -> Trace:
    """One layer more, if one of the factors is a weight."""
    if None not in traces:
        return trace
    return replace(trace, layers=trace.layers + 1, steps=trace.steps + 1)


def _pool(trace: Trace, args: Sequence[Any], output: Tensor, traces: Sequence[Trace | None]) -> Trace:
    kernel = _two(args[1])
    stride = _two(args[2]) if len(args) > 2 and args[2] else kernel
    padding = _two(args[3]) if len(args) > 3 else (0, 0)
    dilation = _two(args[4]) if len(args) > 4 and not isinstance(args[4], bool) else (1, 1)
    windows = [Sliding(*numbers) for numbers in zip(kernel, stride, padding, dilation, strict=True)]
    return replace(_slide(trace, output, windows), steps=trace.steps + 1)


def _adaptive(trace: Trace, args: Sequence[Any], output: Tensor, traces: Sequence[Trace | None]) -> Trace:
    """Pooling to a fixed size: bins of one size where that divides the map, else the field that holds for all."""
    fields, size, whole = list(trace.fields), list(trace.size), trace.whole
    for place in (-2, -1):
        for axis in trace.axes[place]:
            before, after = size[axis], int(output.shape[place])
            ratio = Fraction(before, after)
            wide = before // after if before % after == 0 else -(-before // after) + 1
            one = fields[axis]
            slack = 0 if before % after == 0 else one.jump
            fields[axis] = ReceptiveField(one.size + (wide - 1) * one.jump, one.jump * ratio, one.start - slack)
            size[axis] = after
            whole = whole or after < before
    steps = trace.steps + (tuple(size) != trace.size)  # to the size that it has already is no pooling
    return replace(trace, fields=(fields[0], fields[1]), size=(size[0], size[1]), whole=whole, steps=steps)


def _resize(trace: Trace, args: Sequence[Any], output: Tensor, traces: Sequence[Trace | None]) -> Trace:
    """Interpolation and unpooling: the field of the neighbours that are drawn on."""
    fields, size = list(trace.fields), list(trace.size)
    for place in (-2, -1):
        for axis in trace.axes[place]:
            one, after = fields[axis], int(output.shape[place])
            fields[axis] = ReceptiveField(
                one.size + 2 * one.jump, one.jump * Fraction(size[axis], after), one.start - one.jump
            )
            size[axis] = after
    return replace(trace, fields=(fields[0], fields[1]), size=(size[0], size[1]))


def _shuffle(trace: Trace, args: Sequence[Any], output: Tensor, traces: Sequence[Trace | None]) -> Trace:
    factor = int(args[1])
    rows, cols = (replace(one, jump=one.jump / factor) for one in trace.fields)
    return replace(trace, fields=(rows, cols), size=(trace.size[0] * factor, trace.size[1] * factor))


def _reduce(trace: Trace, args: Sequence[Any], output: Tensor, traces: Sequence[Trace | None]) -> Trace:
    """A sum, mean or maximum over axes; over pixels it is a global pooling."""
    given = args[1] if len(args) > 1 and not isinstance(args[1], bool) else None
    axes = trace.axes
    dims = range(len(axes)) if given is None or given == [] else [given] if isinstance(given, int) else given
    gone = {int(d) % len(axes) for d in dims}
    lost = _NONE.union(*(axes[d] for d in gone))
    kept = [_NONE if d in gone else axes[d] for d in range(len(axes))]
    if output.ndim < len(axes):
        kept = [axes[d] for d in range(len(axes)) if d not in gone]
    pooled = replace(trace, axes=tuple(kept))
    return replace(_gather(pooled, lost, 0), steps=trace.steps + bool(lost))


def _softmax(trace: Trace, args: Sequence[Any], output: Tensor, traces: Sequence[Trace | None]) -> Trace:
    """Attention weighs pixels against each other along the axis."""
    dim = int(args[1]) % len(trace.axes)
    return _attend(_elementwise(trace, output), trace.axes[dim], output.shape[dim])


def _gather(trace: Trace, lost: frozenset[int], length: int) -> Trace:
    """All pixels of some image axes become one; of ``length`` of them if not 0."""
    if not lost:
        return trace
    fields, size = list(trace.fields), list(trace.size)
    for axis in lost:
        one = fields[axis]
        fields[axis] = ReceptiveField(one.size + (size[axis] - 1) * one.jump, one.jump, one.start)
        size[axis] = 1
    everything = length == 0 or length >= math.prod(trace.size[a] for a in lost)
    return replace(
        trace,
        fields=(fields[0], fields[1]),
        size=(size[0], size[1]),
        whole=trace.whole or everything,
        windows=trace.windows or not everything,
    )


def _attend(trace: Trace, over: frozenset[int], length: int) -> Trace:
    """Every pixel keeps its place and sees ``length`` others along some image axes."""
    if not over or length == 1:
        return trace
    everything = length >= math.prod(trace.size[a] for a in over)
    return replace(trace, whole=trace.whole or everything, windows=trace.windows or not everything)


def _product(trace: Trace, args: Sequence[Any], output: Tensor, traces: Sequence[Trace | None]) -> Trace:
    """Products of matrices: the last axis of the first factor meets the last but one of the second."""
    left, right = traces[-2:]  # before them may stand what is added
    if left is not None and right is not None:
        inner = left.axes[-1] | right.axes[-2]
        axes = (*((a | b for a, b in zip(left.axes[:-2], right.axes[:-2], strict=True))), left.axes[-2], right.axes[-1])
        return _attend(replace(trace, axes=axes), inner, args[-1].shape[-2])
    trace = _weighted(trace, traces)
    if left is not None:
        # With as many rows as pixels none of them can have been summed over, whatever views came before.
        kept = math.prod(output.shape[:-1]) >= math.prod(trace.size)
        return _gather(replace(trace, axes=(*left.axes[:-1], _NONE)), _NONE if kept else left.axes[-1], 0)
    assert right is not None
    return _gather(replace(trace, axes=(*right.axes[:-2], _NONE, right.axes[-1])), right.axes[-2], 0)


def _fused_attention(trace: Trace, args: Sequence[Any], output: Tensor, traces: Sequence[Trace | None]) -> Trace:
    query, key = traces[0], traces[1]
    axes = (query or trace).axes
    over = key.axes[-2] if key else _NONE
    return _attend(replace(trace, axes=axes), over, args[1].shape[-2])


def _view(trace: Trace, args: Sequence[Any], output: Tensor, traces: Sequence[Trace | None]) -> Trace:
    """Axes are split and joined: each new one holds what those held whose numbers it takes."""
    after = [int(n) for n in output.shape]
    axes: list[frozenset[int]] = []
    for old, new in _groups([int(n) for n in args[0].shape], after):
        held = _NONE.union(*trace.axes[old])
        sides = [n for n in after[new] if n > 1]
        apart = iter((frozenset((0,)), frozenset((1,)))) if len(held) == 2 and sides == list(trace.size) else None
        axes += [_NONE if n == 1 else next(apart) if apart else held for n in after[new]]
    return replace(trace, axes=tuple(axes))


def _groups(before: list[int], after: list[int]) -> list[tuple[slice, slice]]:
    """Runs of old and new axes, as short as possible, that hold the same numbers."""
    groups = []
    i = j = 0
    while i < len(before) or j < len(after):
        first, start = i, j
        held = made = 1
        while True:
            if held <= made and i < len(before):
                held, i = held * before[i], i + 1
            elif j < len(after):
                made, j = made * after[j], j + 1
            else:
                i, held = len(before), made
            if held == made and (i > first or j > start) and (held > 1 or (i == len(before) and j == len(after))):
                break
            if i == len(before) and j == len(after):
                break
        groups.append((slice(first, i), slice(start, j)))
    return groups


def _permute(trace: Trace, args: Sequence[Any], output: Tensor, traces: Sequence[Trace | None]) -> Trace:
    return replace(trace, axes=tuple(trace.axes[d] for d in args[1]))


def _transpose(trace: Trace, args: Sequence[Any], output: Tensor, traces: Sequence[Trace | None]) -> Trace:
    axes = list(trace.axes)
    one, other = (int(args[1]), int(args[2])) if len(args) > 2 else (0, len(axes) - 1)
    axes[one], axes[other] = axes[other], axes[one]
    return replace(trace, axes=tuple(axes))


def _unsqueeze(trace: Trace, args: Sequence[Any], output: Tensor, traces: Sequence[Trace | None]) -> Trace:
    axes, place = list(trace.axes), int(args[1]) % output.ndim
    return replace(trace, axes=(*axes[:place], _NONE, *axes[place:]))


def _select(trace: Trace, args: Sequence[Any], output: Tensor, traces: Sequence[Trace | None]) -> Trace:
    """One index of an axis: a token of a class, or one of query, key and value."""
    dim = int(args[1] if len(args) > 1 else 0) % len(trace.axes)
    return replace(trace, axes=tuple(a for i, a in enumerate(trace.axes) if i != dim))


def _slice(trace: Trace, args: Sequence[Any], output: Tensor, traces: Sequence[Trace | None]) -> Trace:
    """Cutting off rows or columns moves the origin; thinning them out makes the stride larger."""
    dim = int(args[1] if len(args) > 1 else 0) % len(trace.axes)
    (begin, step) = (int(args[2] or 0) if len(args) > 2 else 0, int(args[4]) if len(args) > 4 else 1)
    if len(trace.axes[dim]) != 1:
        return trace
    (axis,) = trace.axes[dim]
    length = args[0].shape[dim]
    begin = begin + length if begin < 0 else min(begin, length)
    one = trace.fields[axis]
    return _replaced(
        trace, axis, ReceptiveField(one.size, one.jump * step, one.start + begin * one.jump), output.shape[dim]
    )


def _pad(trace: Trace, args: Sequence[Any], output: Tensor, traces: Sequence[Trace | None]) -> Trace:
    for pair in range(len(args[1]) // 2):
        dim, before = -1 - pair, int(args[1][2 * pair])
        if len(trace.axes[dim]) == 1 and trace.size[next(iter(trace.axes[dim]))] == args[0].shape[dim]:
            (axis,) = trace.axes[dim]
            one = trace.fields[axis]
            moved = ReceptiveField(one.size, one.jump, one.start - before * one.jump)
            trace = _replaced(trace, axis, moved, output.shape[dim])
    return trace


def _replaced(trace: Trace, axis: int, field: ReceptiveField, size: int) -> Trace:
    fields, sizes = list(trace.fields), list(trace.size)
    fields[axis], sizes[axis] = field, int(size)
    return replace(trace, fields=(fields[0], fields[1]), size=(sizes[0], sizes[1]))


def _two(value: Any) -> tuple[int, int]:
    numbers = [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
    return numbers[0], numbers[-1]


_RULES: dict[str, Rule] = {
    "convolution": _convolution,
    **dict.fromkeys(("max_pool2d_with_indices", "avg_pool2d"), _pool),
    **dict.fromkeys(("_adaptive_avg_pool2d", "adaptive_max_pool2d"), _adaptive),
    **dict.fromkeys(
        (
            "upsample_nearest2d",
            "_upsample_nearest_exact2d",
            "upsample_bilinear2d",
            "_upsample_bilinear2d_aa",
            "upsample_bicubic2d",
            "_upsample_bicubic2d_aa",
            "max_unpool2d",
        ),
        _resize,
    ),
    "pixel_shuffle": _shuffle,
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "var", "var_mean", "std", "linalg_vector_norm"), _reduce),
    **dict.fromkeys(("_softmax", "_safe_softmax"), _softmax),
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), _product),
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_fused_attention_overrideable",
        ),
        _fused_attention,
    ),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze"), _view),
    "permute": _permute,
    **dict.fromkeys(("transpose", "t"), _transpose),
    "unsqueeze": _unsqueeze,
    **dict.fromkeys(("select", "unbind"), _select),
    "slice": _slice,
    "constant_pad_nd": _pad,
}
