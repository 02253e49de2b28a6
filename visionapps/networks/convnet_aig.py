"""ConvNet-AIG: every residual block has a gate that looks at its input and lets the image pass, or not.

Source: Veit and Belongie, Convolutional Networks with Adaptive Inference Graphs, ECCV 2018.
"""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.errors import ConfigError
from visionapps.networks.base import Network, Outputs
from visionapps.networks.cifar_resnet import cifar_resnet
from visionapps.networks.residual import residual_blocks
from visionapps.networks.skipping import SkippingNetwork, Walk

_HIDDEN = 16  # features of a gate, as in the paper
_OPEN = 0.85  # share of images that a new gate lets pass, as in the paper


def convnet_aig(num_classes: int = 10, bands: int = 3, *, depth: int = 110, target: float = 0.7) -> "GatedNetwork":
    """A gated residual network for images of 32 px.

    Args:
        num_classes: K.
        bands: C.
        depth: 6 n + 2.
        target: share of the images that each block is to be computed for, in (0, 1].

    Raises:
        ConfigError: no network has this depth, or the target is no share.
    """
    return GatedNetwork(cifar_resnet(depth, num_classes, bands), target=target)


class GatedNetwork(SkippingNetwork):
    """A residual network with a gate before each block.

    In training all blocks are computed, and what a gate draws, 0 or 1, multiplies their bodies; gradients reach the
    gate as if it had been soft. In evaluation a block is computed for the images that its gate lets pass.

    Args:
        network: a residual network, fresh or trained.
        target: t, share of the images that each block is to be computed for.
        pressure: what the sum of (rate - t)^2 over the blocks is multiplied by in the loss.
    """

    def __init__(self, network: Network, *, target: float = 0.7, pressure: float = 1.0) -> None:
        super().__init__(network)
        self.set_target(target, pressure)
        self.gates = nn.ModuleList(Gate(channels) for channels in _inputs(network))

    def set_target(self, target: float, pressure: float = 1.0) -> None:
        """What the gates are to be trained to from now on; see the class.

        Raises:
            ConfigError: the target is no share.
        """
        if not 0 < target <= 1 or pressure < 0:
            raise ConfigError(f"gates: target {target:g} must be a share in (0, 1], and pressure {pressure:g} >= 0")
        self.target = target
        self.pressure = pressure

    def pass_through(self, image: Tensor) -> Walk:
        return self.walk(image, lambda i, x: self.gates[i](x), dense=self.training)

    def outputs(self, image: Tensor) -> Outputs:
        """The logits, and as penalty how far the rates of the blocks are from the target (the paper's L_target)."""
        logits, kept = self.pass_through(image)
        return Outputs((logits,), self.pressure * (kept.mean(0) - self.target).square().sum())


class Gate(nn.Module):
    """How relevant a block is to an image: two layers on its averaged map.

    Args:
        channels: D of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = nn.Sequential(
            nn.Linear(channels, _HIDDEN, bias=False), nn.BatchNorm1d(_HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 2)
        )
        self.open()

    def open(self) -> None:
        """Let most images pass at first; whatever draws all weights anew takes that away."""
        last = self.score[-1]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=0.001)  # so that the bias decides at first
        nn.init.constant_(last.bias[:1], 0.0)
        nn.init.constant_(last.bias[1:], math.log(_OPEN / (1 - _OPEN)))

    def forward(self, image: Tensor) -> Tensor:
        """(B, D, h, w) to (B,): 1 to pass. In training drawn with Gumbel noise from torch's global stream; else argmax.

        Source: Jang, Gu and Poole, Categorical Reparameterization with Gumbel-Softmax, 2017 (straight-through).
        """
        logits = self.score(image.mean((2, 3)))
        if not self.training:
            best: Tensor = logits.argmax(1).to(image.dtype)
            return best
        drawn: Tensor = F.gumbel_softmax(logits, tau=1.0, hard=True)[:, 1]
        return drawn


def _inputs(network: Network) -> list[int]:
    """Channels that come into each residual block."""
    widths = []
    for block in residual_blocks(network.features):
        conv = next(module for module in block.body.modules() if isinstance(module, nn.Conv2d))
        widths.append(conv.in_channels)
    return widths
