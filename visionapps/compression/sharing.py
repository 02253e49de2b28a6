"""Weight sharing: each layer has a codebook of a few values, and its weights are numbers in it.

Source: Han, Mao and Dally, Deep Compression, ICLR 2016, section 3.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from visionapps.compression.layers import impose, weight_layers
from visionapps.errors import ConfigError

_ROUNDS = 300  # of Lloyd's algorithm; it settles in a few dozen


@dataclass(frozen=True)
class Share:
    """Let the weights of a layer share at most 2^bits values; zeros stay zero and need none of them.

    Args:
        bits: of a number in the codebook, 1 to 8. The paper takes 8 for convolutions and 5 for linear layers.
        linear_bits: of linear layers; None: the same.
        keep: patterns of names of layers to leave as they are.
    """

    bits: int
    linear_bits: int | None = None
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for bits in (self.bits, self.linear_bits):
            if bits is not None and not 1 <= bits <= 8:
                raise ConfigError(f"share: {bits} bits per weight; give 1 to 8")

    def install(self, model: nn.Module) -> None:
        """From now on the codebooks are what is trained, each value with the gradients of all its weights."""
        for module in weight_layers(model, keep=self.keep).values():
            linear = isinstance(module, nn.Linear) and self.linear_bits is not None
            bits = self.linear_bits if linear and self.linear_bits is not None else self.bits
            weight: Tensor = module.weight  # type: ignore[assignment]
            impose(module, Shared(weight.detach(), bits))
            module.parametrizations.weight.original.requires_grad_(False)  # type: ignore[union-attr]

    def __str__(self) -> str:
        linear = f", {self.linear_bits} for linear layers" if self.linear_bits is not None else ""
        return f"at most 2^{self.bits} values per layer{linear}"


class Shared(nn.Module):
    """A weight that is made of a codebook.

    Args:
        weight: to be approximated.
        bits: its codebook has at most 2^bits values, and zero if the weight has zeros.
    """

    codes: Tensor

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        flat = weight.float().cpu().numpy().ravel()
        kept = flat != 0
        values, codes = cluster(flat[kept], 2**bits)
        numbers = np.zeros(flat.shape, np.int32)
        numbers[kept] = codes + 1  # 0 is zero
        self.codebook = nn.Parameter(torch.from_numpy(values).to(weight))
        self.register_buffer("codes", torch.from_numpy(numbers).to(weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        values = torch.cat([self.codebook.new_zeros(1), self.codebook])
        return values.index_select(0, self.codes).reshape(weight.shape)


def cluster(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """k-means of numbers: the codebook, and which of its values each number takes.

    It starts from values at equal distances, which the paper found best: large weights are few and matter. Sorted, a
    cluster is a run of numbers, so that a round costs a few searches.

    Args:
        values: (N,) finite numbers.
        count: most values of the codebook, >= 1.

    Returns:
        (k,) float32 ascending, k <= count, each of them used, and (N,) int32.

    Raises:
        ConfigError: a value is not finite.
    """
    if not np.isfinite(values).all():
        raise ConfigError("share: a weight is NaN or infinite; the model was not trained to its end")
    ordered = np.sort(values.astype(np.float64))
    distinct = np.unique(ordered)
    if len(distinct) <= count:
        return distinct.astype(np.float32), np.searchsorted(distinct, values).astype(np.int32)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centres = np.linspace(ordered[0], ordered[-1], count)
    edges = np.zeros(0, np.int64)
    for _ in range(_ROUNDS):
        found = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        if np.array_equal(found, edges):
            break
        edges = found
        ends = np.concatenate([[0], edges, [len(ordered)]])
        sizes = np.diff(ends)
        means = np.diff(sums[ends]) / np.maximum(sizes, 1)
        centres = np.where(sizes > 0, means, centres)
    codes = np.searchsorted((centres[1:] + centres[:-1]) / 2, values.astype(np.float64), side="left")
    used, codes = np.unique(codes, return_inverse=True)
    return centres[used].astype(np.float32), codes.astype(np.int32)
