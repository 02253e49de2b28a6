"""Magnitude pruning: the smallest weights become zero, and stay so while the others are trained again.

Source: Han, Pool, Tran and Dally, Learning both Weights and Connections for Efficient Neural Networks, 2015.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from visionapps.compression.layers import impose, weight_layers
from visionapps.errors import ConfigError

Scope = Literal["global", "layer"]


@dataclass(frozen=True)
class Prune:
    """Zero a share of the weights.

    Args:
        sparsity: share of zeros, in (0, 1).
        scope: "global": the smallest weights of all layers; "layer": the same share in each of them.
        keep: patterns of names of layers to leave as they are.
    """

    sparsity: float
    scope: Scope = "global"
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_sparsity(self.sparsity)
        if self.scope not in ("global", "layer"):
            raise ConfigError(f"prune: scope {self.scope!r} is neither 'global' nor 'layer'")

    def install(self, model: nn.Module) -> None:
        """Hold the zeros from now on, whatever an optimizer does."""
        layers = weight_layers(model, keep=self.keep)
        for name, mask in magnitude_masks(model, self.sparsity, scope=self.scope, keep=self.keep).items():
            impose(layers[name], Masked(mask))

    def __str__(self) -> str:
        return f"pruned to {self.sparsity:.1%} zeros ({self.scope})"


class Masked(nn.Module):
    """Zeros where the mask has them. No gradient reaches what lies under them.

    Args:
        mask: bool, of the weight's shape; False: zero.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight.masked_fill(~self.mask, 0)  # not a product, which makes -0.0 of negative weights


def require_sparsity(sparsity: float) -> None:
    """Raise ConfigError unless it is a share that leaves weights."""
    if not 0 < sparsity < 1:
        raise ConfigError(f"prune: sparsity {sparsity:g} must lie between 0 and 1, the share of weights that become 0")


def magnitude_masks(
    model: nn.Module, sparsity: float, *, scope: Scope = "global", keep: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Which weights stay, by layer; as many are zero as the share says, to the last one.

    Args:
        model: whose weights are judged; it is not changed.
        sparsity: share of zeros, in (0, 1).
        scope: whether all layers compete, or each has its share.
        keep: patterns of names of layers that are not judged.
    """
    layers = weight_layers(model, keep=keep)
    weights = {name: module.weight.detach() for name, module in layers.items()}  # type: ignore[operator]
    masks: dict[str, Tensor]
    if scope == "layer":
        masks = {name: _mask(weight, round(sparsity * weight.numel())) for name, weight in weights.items()}
    else:
        together = torch.cat([weight.flatten() for weight in weights.values()])
        mask = _mask(together, round(sparsity * together.numel()))
        parts = torch.split(mask, [weight.numel() for weight in weights.values()])
        masks = {name: part.reshape(w.shape) for (name, w), part in zip(weights.items(), parts, strict=True)}
    if empty := [name for name, mask in masks.items() if not mask.any()]:
        raise ConfigError(
            f"prune: at {sparsity:.1%} zeros nothing is left of {', '.join(empty[:3])}; prune less, or per layer"
        )
    return masks


def _mask(weight: Tensor, zeros: int) -> Tensor:
    method = prune.L1Unstructured(amount=zeros)
    mask: Tensor = method.compute_mask(weight, torch.ones_like(weight))  # type: ignore[no-untyped-call]
    return mask.bool()
