"""What the operations of PyTorch's core are called in a table of layers."""

from collections.abc import Sequence
from typing import Any

# Operations that are no layers: other views of the same numbers, activations and arithmetic within a block. Their
# parameters and their receptive fields count all the same.
MINOR = frozenset(
    """
    view _unsafe_view reshape _reshape_alias squeeze unsqueeze permute transpose t expand select unbind slice split
    split_with_sizes chunk alias detach clone contiguous copy_ _to_copy lift_fresh relu relu_ gelu silu silu_ sigmoid
    hardswish hardswish_ hardsigmoid hardtanh hardtanh_ tanh leaky_relu elu softplus clamp clamp_min clamp_ mul_ mul
    div div_ sub rsub neg exp pow rsqrt sqrt log abs maximum minimum where fill_ zeros_like ones_like sym_size
    new_zeros new_ones empty_like zero_ constant_pad_nd roll native_dropout masked_fill _softmax _safe_softmax
    """.split()  # noqa: SIM905
)
_WORDS = {
    **dict.fromkeys(("mm", "addmm"), "linear"),
    **dict.fromkeys(("bmm", "baddbmm"), "matrix product"),
    **dict.fromkeys(("add", "add_"), "add"),
    **dict.fromkeys(("cat", "stack"), "concatenate"),
    "mean": "mean",
    "native_batch_norm": "batch norm",
    "_native_batch_norm_legit_no_training": "batch norm",
    "native_layer_norm": "layer norm",
    "native_group_norm": "group norm",
    "upsample_nearest2d": "upsample nearest",
    "upsample_bilinear2d": "upsample bilinear",
}


def name_of(func: Any) -> str:
    """Name of an operation without its namespace and overload."""
    return str(func._overloadpacket.__name__)


def kind_of(name: str, args: Sequence[Any]) -> str:
    """Words for one operation: "conv 3x3/2 groups 32"."""
    if name == "convolution":
        return _convolution(args)
    if name in ("max_pool2d_with_indices", "avg_pool2d"):
        kernel = args[1]
        stride = args[2] if len(args) > 2 and args[2] else kernel
        return f"{'max' if name.startswith('max') else 'average'} pool {_times(kernel)}{_over(stride)}"
    if name in ("_adaptive_avg_pool2d", "adaptive_max_pool2d"):
        return f"{'average' if 'avg' in name else 'max'} pool to {_times(args[1])}"
    if name.startswith("_scaled_dot_product"):
        return "attention"
    return _WORDS.get(name, name.strip("_").replace("_", " "))


def _convolution(args: Sequence[Any]) -> str:
    image, weight, _, stride, _, dilation, transposed, _, groups = args[:9]
    kind = f"{'deconv' if transposed else 'conv'} {_times(weight.shape[2:])}{_over(stride)}"
    if any(d != 1 for d in dilation):
        kind += f" dilated {_times(dilation, 'x')}"
    if groups > 1:
        kind += " depthwise" if groups == image.shape[1] else f" groups {groups}"
    return kind


def _over(stride: Any) -> str:
    values = {int(s) for s in (stride if isinstance(stride, list | tuple) else [stride])}
    if values == {1}:
        return ""
    return f"/{values.pop()}" if len(values) == 1 else f"/{_times(stride)}"


def _times(sides: Any, sign: str = "x") -> str:
    sides = [int(s) for s in sides] if not isinstance(sides, int) else [sides]
    return sign.join(map(str, sides if len(sides) > 1 else sides * 2))
