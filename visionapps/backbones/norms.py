"""Batch normalisation that no longer learns: for small batches and weights that were trained on large ones."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

Norms = Literal["frozen", "trained"]


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with fixed statistics, scale and shift; the same arithmetic as in evaluation mode.

    Its state has the names of the layer that it stands for, so weights of either load into the other. All of it are
    buffers: nothing here is counted as a parameter, decayed, or averaged over processes.

    Args:
        norm: the layer that it stands for; of timm's, which activate as well, the activation is kept.
        eps: added to the variance; None: the layer's own.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: _BatchNorm, eps: float | None = None) -> None:
        super().__init__()
        self.num_features = norm.num_features
        self.eps = norm.eps if eps is None else eps
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            value = getattr(norm, name)
            self.register_buffer(name, None if value is None else value.detach().clone())
        for name, child in norm.named_children():
            self.add_module(name, child)

    def forward(self, image: Tensor) -> Tensor:
        image = F.batch_norm(
            image, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )
        for child in self.children():
            image = child(image)
        return image

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps:g}"


def freeze_norms(network: nn.Module, eps: float | None = None) -> int:
    """Put a FrozenBatchNorm in the place of every batch normalisation of a network, in place.

    Args:
        network: whose layers keep running statistics; layers that do not are left alone.
        eps: added to the variances; None: each layer's own.

    Returns:
        How many were replaced.
    """
    count = 0
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and child.running_mean is not None:
                setattr(parent, name, FrozenBatchNorm(child, eps))
                count += 1
    return count
