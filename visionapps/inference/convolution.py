"""One kernel for every convolution on the CPU, whatever the size of the batch and the number of threads."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_SMALL = 20480  # values of an input up to which torch passes oneDNN by if the batch is 1


class OneKernel(TorchFunctionMode):
    """While it is entered, fp32 convolutions on the CPU are always computed by oneDNN.

    torch itself chooses between oneDNN and a matrix product of its own, by whether there is more than one thread, by
    whether the batch is 1, below 16 or above, and by whether a map has more than 20480 values. Their sums differ in the
    last digits, so that labels would depend on all of these. oneDNN alone gives the same bits for all of them (seen for
    U-Nets on EfficientNet, MobileNet, ResNet and ConvNeXt, FCN and DeconvNet at 32 to 512 px, batches of 1, 3 and 4,
    one and two threads), and takes 5 to 15 % less time on one thread from tiles of 256 px on. In bf16 torch always
    takes it. Matrix products of transformers are left as they are.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.conv2d:
            return _conv2d(*args, **(kwargs or {}))
        if func is torch.conv_transpose2d:
            return _conv_transpose2d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def one_kernel(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """OneKernel where it has an effect, for inference in a precision on a device."""
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    applies = device.type == "cpu" and dtype == torch.float32 and has_onednn
    return OneKernel() if applies else nullcontext()


def _conv2d(
    input: Tensor,  # noqa: A002  (torch.conv2d calls it so)
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    known = input.ndim == 4 and input.dtype == weight.dtype == torch.float32 and input.numel() > 0
    if not known or isinstance(padding, str):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return torch.mkldnn_convolution(input, weight, bias, _pair(padding), _pair(stride), _pair(dilation), groups)


def _conv_transpose2d(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002
    # oneDNN's own function is not open to us: a second copy of a small map makes torch call it.
    if input.ndim == 4 and len(input) == 1 and input.numel() <= _SMALL:
        return torch.conv_transpose2d(input.expand(2, -1, -1, -1), *args, **kwargs)[:1]
    return torch.conv_transpose2d(input, *args, **kwargs)


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value) * (2 // len(value))
