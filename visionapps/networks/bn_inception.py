"""BN-Inception: GoogLeNet with batch normalisation and two 3 x 3 in place of each 5 x 5 (also called Inception v2).

Source: Ioffe and Szegedy, Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift,
    ICML 2015, appendix and figure 5.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from visionapps.networks.base import PooledHead
from visionapps.networks.chain import Chain
from visionapps.networks.initial import he
from visionapps.networks.layers import normalised_conv


class Widths(NamedTuple):
    """A row of figure 5."""

    single: int  # outputs of 1x1; 0: that branch is absent
    triple: tuple[int, int]  # reduction, outputs of 3x3
    double: tuple[int, int]  # reduction, outputs of each of the two 3x3
    pool: str  # "mean" or "max"
    projected: int  # outputs of the 1x1 after the pooling; 0: absent
    stride: int = 1


# Figure 5 says 576 channels for 4c and 4d, but the branches that it lists sum to 608, and 1056 for 4e.
_MODULES: Mapping[str, Widths] = {
    "3a": Widths(64, (64, 64), (64, 96), "mean", 32),
    "3b": Widths(64, (64, 96), (64, 96), "mean", 64),
    "3c": Widths(0, (128, 160), (64, 96), "max", 0, stride=2),
    "4a": Widths(224, (64, 96), (96, 128), "mean", 128),
    "4b": Widths(192, (96, 128), (96, 128), "mean", 128),
    "4c": Widths(160, (128, 160), (128, 160), "mean", 128),
    "4d": Widths(96, (128, 192), (160, 192), "mean", 128),
    "4e": Widths(0, (128, 192), (192, 256), "max", 0, stride=2),
    "5a": Widths(352, (192, 320), (160, 224), "mean", 128),
    "5b": Widths(352, (192, 320), (192, 224), "max", 128),
}


class BatchInception(nn.Module):
    """One module: branches side by side, joined.

    Args:
        channels: of the map that enters.
        widths: of the branches.

    Attributes:
        channels: of the result.
    """

    def __init__(self, channels: int, widths: Widths) -> None:
        super().__init__()
        branches: dict[str, nn.Module] = {}
        if widths.single:
            branches["one"] = nn.Sequential(*normalised_conv(channels, widths.single, 1))
        reduced, outputs = widths.triple
        branches["three"] = nn.Sequential(
            *normalised_conv(channels, reduced, 1),
            *normalised_conv(reduced, outputs, 3, stride=widths.stride, padding=1),
        )
        reduced, outputs = widths.double
        branches["twice_three"] = nn.Sequential(
            *normalised_conv(channels, reduced, 1),
            *normalised_conv(reduced, outputs, 3, padding=1),
            *normalised_conv(outputs, outputs, 3, stride=widths.stride, padding=1),
        )
        branches["pool"] = _pooling(channels, widths)
        self.branches = nn.ModuleDict(branches)
        self.channels = widths.single + widths.triple[1] + widths.double[1] + (widths.projected or channels)

    def forward(self, image: Tensor) -> Tensor:
        """(B, D, h, w) to (B, channels, h / stride, w / stride), rounded up."""
        return torch.cat([branch(image) for branch in self.branches.values()], 1)


def _pooling(channels: int, widths: Widths) -> nn.Module:
    pool: nn.Module
    if widths.pool == "mean":
        pool = nn.AvgPool2d(3, stride=1, padding=1)
    else:
        pool = nn.MaxPool2d(3, stride=widths.stride, padding=1)
    return nn.Sequential(pool, *normalised_conv(channels, widths.projected, 1)) if widths.projected else pool


def bn_inception(num_classes: int = 1000, bands: int = 3) -> Chain:
    """BN-Inception.

    Two departures from the paper, both as in the networks that others published under this name: its first convolution
    is no separable one, and convolutions have no bias, which batch normalisation would take away.

    Args:
        num_classes: K.
        bands: C of the image.
    """
    steps: dict[str, nn.Module] = {
        "conv1": nn.Sequential(*normalised_conv(bands, 64, 7, stride=2, padding=3)),
        "pool1": nn.MaxPool2d(3, stride=2, ceil_mode=True),
        "conv2_reduce": nn.Sequential(*normalised_conv(64, 64, 1)),
        "conv2": nn.Sequential(*normalised_conv(64, 192, 3, padding=1)),
        "pool2": nn.MaxPool2d(3, stride=2, ceil_mode=True),
    }
    channels = 192
    for name, widths in _MODULES.items():
        module = BatchInception(channels, widths)
        steps[f"inception{name}"] = module
        channels = module.channels
    network = Chain("bn_inception", steps, PooledHead(channels, num_classes), native=224, least=7)
    he(network)
    return network
