"""DenseNet and DenseNet-BC for images of 32 px: every layer sees the maps of all layers before it in its block.

Source: Huang, Liu, van der Maaten and Weinberger, Densely Connected Convolutional Networks, 2017.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from visionapps.errors import ConfigError
from visionapps.networks.base import Network, PooledHead
from visionapps.networks.chain import Chain
from visionapps.networks.initial import he

_BLOCKS = 3


class DenseLayer(nn.Module):
    """Adds ``growth`` channels to what comes in: BN-ReLU-3x3, with bottleneck BN-ReLU-1x1 (4 growth) before it.

    Args:
        channels: D.
        growth: k, channels that the layer adds.
        bottleneck: whether a 1 x 1 convolution first.
        dropout: of the new channels, in [0, 1).
    """

    def __init__(self, channels: int, growth: int, *, bottleneck: bool, dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if bottleneck:
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 4 * growth, 1, bias=False)]
            channels = 4 * growth
        layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, growth, 3, padding=1, bias=False)]
        self.layers = nn.Sequential(*layers, *([nn.Dropout(dropout)] if dropout else []))

    def forward(self, image: Tensor) -> Tensor:
        """(B, D, h, w) to (B, D + growth, h, w): what came in, and then the new channels."""
        return torch.cat((image, self.layers(image)), 1)


def cifar_densenet(
    depth: int,
    growth: int,
    num_classes: int = 10,
    bands: int = 3,
    *,
    bottleneck: bool = False,
    dropout: float = 0.0,
) -> Network:
    """Three dense blocks at strides 1, 2 and 4.

    With bottlenecks it is the paper's DenseNet-BC: 1 x 1 convolutions in the layers, transitions that halve the
    channels, and a stem of twice the growth instead of 16 channels.

    Args:
        depth: layers with weights: 3 n + 4, or 6 n + 4 with bottlenecks.
        growth: k, channels that each layer adds.
        num_classes: K.
        bands: C.
        bottleneck: whether it is a DenseNet-BC.
        dropout: after each convolution but the stem's; the paper takes 0.2 where no images are augmented.

    Raises:
        ConfigError: no network has this depth, growth or dropout.
    """
    per_layer = 6 if bottleneck else 3
    layers = (depth - 4) // per_layer
    if depth != per_layer * layers + 4 or layers < 1 or growth < 1:
        kind = "DenseNet-BC" if bottleneck else "DenseNet"
        raise ConfigError(
            f"{kind} of depth {depth} and growth {growth}: depths are {per_layer} n + 4 "
            f"({per_layer * max(layers, 1) + 4}, {per_layer * (max(layers, 1) + 1) + 4}, ...), and the growth is at "
            "least 1"
        )
    if not 0 <= dropout < 1:
        raise ConfigError(f"DenseNet: dropout {dropout} is no probability in [0, 1)")
    channels = 2 * growth if bottleneck else 16
    steps: OrderedDict[str, nn.Module] = OrderedDict(stem=nn.Conv2d(bands, channels, 3, padding=1, bias=False))
    for i in range(1, _BLOCKS + 1):
        block = nn.Sequential()
        for _ in range(layers):
            block.append(DenseLayer(channels, growth, bottleneck=bottleneck, dropout=dropout))
            channels += growth
        steps[f"block{i}"] = block
        if i < _BLOCKS:
            fewer = channels // 2 if bottleneck else channels
            steps[f"transition{i}"] = _transition(channels, fewer, dropout)
            channels = fewer
    steps["activation"] = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
    name = f"DenseNet{'-BC' if bottleneck else ''}-{depth} (k={growth})"
    network = Chain(name, steps, PooledHead(channels, num_classes), native=32, least=4)
    he(network)
    return network


def _transition(channels: int, out_channels: int, dropout: float) -> nn.Sequential:
    """BN-ReLU-1x1 and the mean of each 2 x 2 pixels."""
    return nn.Sequential(
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, out_channels, 1, bias=False),
        *([nn.Dropout(dropout)] if dropout else []),
        nn.AvgPool2d(2),
    )
