"""What every classification network of the zoo is: named steps that end in a map, and a head that turns it into logits.

Shapes: B images, C bands, H x W pixels, D channels and h x w pixels of the last map, K classes.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from visionapps.errors import ConfigError


class Outputs(NamedTuple):
    """Everything that training needs from one forward."""

    logits: tuple[Tensor, ...]  # (B, K) each: the answer first, then those of auxiliary classifiers or earlier exits
    penalty: Tensor  # () what the network itself adds to the loss; 0 for most


class Network(nn.Module):
    """An image classifier. A pyramid is made of ``features``: the last step of each stride is a level.

    Attributes:
        features: named steps in order, (B, C, H, W) normalised to (B, D, h, w).
        head: (B, D, h, w) to (B, K).
        native: side in pixels of the square images that it was published for.
        auxiliary: weights in the loss of the further logits that ``outputs`` gives.
        trained_apart: what trains it where a loss of its logits alone does not; empty: that does.
    """

    features: nn.Sequential
    head: nn.Module
    native: int
    auxiliary: tuple[float, ...] = ()
    trained_apart: str = ""

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) normalised to (B, K) logits."""
        logits: Tensor = self.head(self.features(image))
        return logits

    def outputs(self, image: Tensor) -> Outputs:
        """The same with whatever else is trained."""
        logits = self(image)
        return Outputs((logits,), logits.new_zeros(()))


class PooledHead(nn.Module):
    """Global average pooling and one linear layer; any size of map.

    Args:
        channels: D.
        num_classes: K.
        dropout: probability of dropping a pooled feature, in [0, 1).
    """

    def __init__(self, channels: int, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.dropout(image.mean((2, 3))))
        return logits

    def dense(self) -> nn.Module:
        """The head at every position: (B, D, h, w) to (B, K, h, w), sharing weights."""
        return _DenseLinear(self.linear)


class ConnectedHead(nn.Module):
    """Fully connected layers over the whole last map, which has one size only.

    Args:
        shape: (D, h, w) of the map.
        widths: outputs of the hidden layers.
        num_classes: K.
        dropout: of the outputs of each hidden layer, in [0, 1).
        activation: after each hidden layer.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        widths: Sequence[int],
        num_classes: int,
        *,
        dropout: float = 0.0,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.shape = shape
        sizes = [shape[0] * shape[1] * shape[2], *widths]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), activation(), *[nn.Dropout(dropout)] * (dropout > 0)]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))

    def forward(self, image: Tensor) -> Tensor:
        """
        Raises:
            ConfigError: the map has another size.
        """
        if image.shape[1:] != self.shape:
            raise ConfigError(
                f"fully connected layers: made for maps of {'x'.join(map(str, self.shape))} (DxHxW), got "
                f"{'x'.join(map(str, image.shape[1:]))}; give images of the network's native size, or evaluate densely"
            )
        logits: Tensor = self.layers(image.flatten(1))
        return logits

    def dense(self) -> nn.Module:
        """The head at every position where it fits: (B, D, h, w) to (B, K, h - own h + 1, w - own w + 1).

        Source: Simonyan and Zisserman 2015, section 3.2: the first layer is a convolution with a kernel of the whole
            map, the others are 1 x 1.
        """
        dense: list[nn.Module] = []
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                first = not any(isinstance(each, _DenseLinear) for each in dense)
                layer = _DenseLinear(layer, self.shape[1:] if first else (1, 1))
            dense.append(layer)
        return nn.Sequential(*dense)


class _DenseLinear(nn.Module):
    """A linear layer as a convolution, with the same parameters."""

    def __init__(self, linear: nn.Linear, kernel: tuple[int, ...] = (1, 1)) -> None:
        super().__init__()
        self.linear = linear
        self.kernel = kernel

    def forward(self, image: Tensor) -> Tensor:
        weight = self.linear.weight.reshape(self.linear.out_features, -1, *self.kernel)
        return torch.nn.functional.conv2d(image, weight, self.linear.bias)
