"""A highway network of 19 layers: gates decide what passes a layer unchanged.

Source: Srivastava, Greff and Schmidhuber, Training Very Deep Networks, 2015.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from visionapps.errors import ConfigError
from visionapps.networks.base import Network, PooledHead
from visionapps.networks.chain import Chain
from visionapps.networks.initial import he

_WIDTHS = (16, 32, 48)
_GATE_BIAS = -2.0


class Highway(nn.Module):
    """H(x) T(x) + x (1 - T(x)) of two 3 x 3 convolutions: H with ReLU, and the gate T in (0, 1).

    Args:
        channels: in and out.
        gate_bias: of the gate at the start of training. Negative, so that a deep network begins by passing things on.

    Source: Srivastava et al. 2015, equation 3; the bias: section 2.2.
    """

    def __init__(self, channels: int, *, gate_bias: float = _GATE_BIAS) -> None:
        super().__init__()
        self.gate_bias = gate_bias
        self.transform = nn.Conv2d(channels, channels, 3, padding=1)
        self.gate = nn.Conv2d(channels, channels, 3, padding=1)
        self.close()

    def close(self) -> None:
        """Give the gate its bias; whatever draws all weights anew takes it away."""
        assert self.gate.bias is not None
        nn.init.constant_(self.gate.bias, self.gate_bias)

    def forward(self, image: Tensor) -> Tensor:
        """(B, D, h, w) to the same shape."""
        gate = self.gate(image).sigmoid()
        return torch.lerp(image, self.transform(image).relu(), gate)


def highway(num_classes: int = 10, bands: int = 3, *, layers: int = 5, gate_bias: float = _GATE_BIAS) -> Network:
    """Three stages, 16, 32 and 48 wide, of highway layers, with an ordinary convolution before each.

    The paper does not print the table of its convolutional networks: it replaces the layers of FitNets by highway
    layers. This one has the depth of its second (19 layers with weights for five per stage) and three stages of small
    widths; the count of parameters, 342,970, is therefore not the paper's. Ordinary convolutions of stride 2 change
    the width, as a highway layer cannot.

    Args:
        num_classes: K.
        bands: C.
        layers: highway layers per stage; the network has 3 * layers + 4 layers with weights.
        gate_bias: see ``Highway``.

    Raises:
        ConfigError: no layers.
    """
    if layers < 1:
        raise ConfigError(f"highway network: {layers} layers per stage; give at least 1")
    steps: OrderedDict[str, nn.Module] = OrderedDict()
    channels = bands
    for i, width in enumerate(_WIDTHS):
        first = nn.Conv2d(channels, width, 3, stride=2 if i else 1, padding=1)
        gated = [Highway(width, gate_bias=gate_bias) for _ in range(layers)]
        steps[f"stage{i + 1}"] = nn.Sequential(first, nn.ReLU(), *gated)
        channels = width
    name = f"Highway-{3 * layers + 4}"
    network = Chain(name, steps, PooledHead(channels, num_classes), native=32, least=4)
    he(network)
    for layer in network.modules():
        if isinstance(layer, Highway):
            layer.close()
    return network
