"""Weights of three and of two values, which are learnt through by straight-through gradients.

Sources: Zhu, Han, Mao and Dally, Trained Ternary Quantization, ICLR 2017; Rastegari, Ordonez, Redmon and Farhadi,
    XNOR-Net, ECCV 2016: its binary weights, not its binary activations.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from visionapps.compression.layers import impose, inner_layers
from visionapps.errors import ConfigError


@dataclass(frozen=True)
class TernaryWeights:
    """Weights of -wn, 0 and +wp, both scales of each layer learnt; the first and the last layer stay exact.

    Args:
        threshold: weights up to this share of a layer's largest one are 0, in [0, 1); 0.05 is the paper's.
        keep: patterns of names of further layers to leave as they are.
    """

    threshold: float = 0.05
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise ConfigError(f"ternary: threshold {self.threshold:g} must be a share of the largest weight, in [0, 1)")

    def install(self, model: nn.Module) -> None:
        for module in inner_layers(model, keep=self.keep).values():
            weight: Tensor = module.weight  # type: ignore[assignment]
            impose(module, Ternary(weight.detach(), self.threshold))

    def __str__(self) -> str:
        return "three values per layer"


@dataclass(frozen=True)
class BinaryWeights:
    """Weights of -a and +a, with a the mean size of a filter's weights; the first and the last layer stay exact.

    Args:
        keep: patterns of names of further layers to leave as they are.
    """

    keep: tuple[str, ...] = ()

    def install(self, model: nn.Module) -> None:
        for module in inner_layers(model, keep=self.keep).values():
            impose(module, Binary(filters=1 if isinstance(module, nn.ConvTranspose2d) else 0))

    def __str__(self) -> str:
        return "two values per filter"


class Ternary(nn.Module):
    """Trained ternary quantisation of one weight.

    Args:
        weight: where the scales begin: the mean size of what becomes +wp and -wn.
        threshold: share of the largest weight up to which weights are 0.
    """

    def __init__(self, weight: Tensor, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        limit = threshold * weight.abs().amax()
        self.positive = nn.Parameter(_mean_over(weight, weight > limit))
        self.negative = nn.Parameter(_mean_over(-weight, weight < -limit))

    def forward(self, weight: Tensor) -> Tensor:
        made: Tensor = _Ternarise.apply(weight, self.positive, self.negative, self.threshold)
        return made


class Binary(nn.Module):
    """Sign times the mean size of each filter.

    Args:
        filters: the dimension that counts filters.
    """

    def __init__(self, filters: int = 0) -> None:
        super().__init__()
        self.filters = filters

    def forward(self, weight: Tensor) -> Tensor:
        made: Tensor = _Binarise.apply(weight, self.filters)
        return made


def _mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


class _Ternarise(torch.autograd.Function):
    """Equations 6 to 9 of the paper. Departure: the gradient of wn has the sign that the chain rule gives it, as the
    weights are -wn; the paper prints the sum without it."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, positive: Tensor, negative: Tensor, threshold: float) -> Tensor:
        limit = threshold * weight.abs().amax()
        above, below = weight > limit, weight < -limit
        ctx.save_for_backward(above, below, positive, negative)
        return above * positive - below * negative

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        above, below, positive, negative = ctx.saved_tensors
        scale = above * positive + below * negative + ~(above | below)
        return gradient * scale, (gradient * above).sum(), -(gradient * below).sum(), None


class _Binarise(torch.autograd.Function):
    """Section 3.1 of the paper; its gradient: 1/n through the mean, and the mean where the sign is not saturated."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, filters: int) -> Tensor:
        others = [dim for dim in range(weight.ndim) if dim != filters]
        scale = weight.abs().mean(others, keepdim=True)
        ctx.save_for_backward(weight, scale)
        ctx.number = weight.numel() // weight.shape[filters]
        return torch.where(weight >= 0, scale, -scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale = ctx.saved_tensors
        return gradient * (1 / ctx.number + scale * (weight.abs() <= 1)), None
