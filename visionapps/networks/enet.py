"""ENet's encoder: a network for street scenes on small machines, of 29 thin bottlenecks.

Shapes: B images, D channels, h x w pixels of a map.

Source: Paszke, Chaurasia, Kim and Culurciello, ENet: A Deep Neural Network Architecture for Real-Time Semantic
    Segmentation, 2016, section 3 and table 1.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.networks.base import PooledHead
from visionapps.networks.chain import Chain
from visionapps.networks.initial import he

# The dilation of each bottleneck of stages 2 and 3, and whether it is asymmetric (table 1).
_CONTEXT = ((1, False), (2, False), (1, True), (4, False), (1, False), (8, False), (1, True), (16, False))
_REDUCTION = 4  # channels of a map per channel inside its bottlenecks


class InitialBlock(nn.Module):
    """13 convolved maps and the bands themselves, pooled (figure 2a).

    Args:
        bands: C of the image.
    """

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(bands, 13, 3, stride=2, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)  # as many pixels as the convolution gives, for odd sides too
        self.act = nn.Sequential(nn.BatchNorm2d(13 + bands), nn.PReLU(13 + bands))
        self.channels = 13 + bands

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 13 + C, H / 2, W / 2), rounded up."""
        mixed: Tensor = self.act(torch.cat([self.conv(image), self.pool(image)], 1))
        return mixed


class Bottleneck(nn.Module):
    """Fewer channels, a convolution, the channels again; added to what entered (figure 2b).

    Args:
        channels: of the map that enters, and of the result.
        dropout: probability that a whole map of the branch is dropped, in [0, 1).
        dilation: of the 3 x 3 convolution.
        asymmetric: 5 x 1 and then 1 x 5 in place of the 3 x 3.
        activation: nn.PReLU, with a slope per map, or nn.ReLU, which is usual behind the encoder.
    """

    def __init__(
        self,
        channels: int,
        *,
        dropout: float,
        dilation: int = 1,
        asymmetric: bool = False,
        activation: type[nn.Module] = nn.PReLU,
    ) -> None:
        super().__init__()
        inner = max(1, channels // _REDUCTION)
        middle: tuple[nn.Module, ...]
        if asymmetric:
            middle = (
                nn.Conv2d(inner, inner, (5, 1), padding=(2, 0), bias=False),
                nn.Conv2d(inner, inner, (1, 5), padding=(0, 2), bias=False),
            )
        else:
            middle = (nn.Conv2d(inner, inner, 3, padding=dilation, dilation=dilation, bias=False),)
        self.branch = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            *activate(inner, activation),
            *middle,
            *activate(inner, activation),
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.Dropout2d(dropout),
        )
        self.act = slope(channels, activation)

    def forward(self, image: Tensor) -> Tensor:
        """(B, D, h, w) to the same."""
        result: Tensor = self.act(image + self.branch(image))
        return result


class Downsampling(nn.Module):
    """A bottleneck of stride 2: beside the branch, the map is pooled and gets maps of zeros.

    Args:
        channels: of the map that enters.
        outputs: more than that.
        dropout: as in ``Bottleneck``.
    """

    def __init__(self, channels: int, outputs: int, *, dropout: float) -> None:
        super().__init__()
        inner = max(1, channels // _REDUCTION)
        self.pool = nn.MaxPool2d(2)
        self.zeros = outputs - channels
        self.branch = nn.Sequential(
            nn.Conv2d(channels, inner, 2, stride=2, bias=False),
            *activate(inner, nn.PReLU),
            nn.Conv2d(inner, inner, 3, padding=1, bias=False),
            *activate(inner, nn.PReLU),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.Dropout2d(dropout),
        )
        self.act = nn.PReLU(outputs)

    def forward(self, image: Tensor) -> Tensor:
        """(B, D, h, w) to (B, outputs, h // 2, w // 2)."""
        pooled = F.pad(self.pool(image), (0, 0, 0, 0, 0, self.zeros))
        result: Tensor = self.act(pooled + self.branch(image))
        return result


def activate(channels: int, activation: type[nn.Module]) -> tuple[nn.Module, nn.Module]:
    """Batch normalisation and an activation of a map."""
    return nn.BatchNorm2d(channels), slope(channels, activation)


def slope(channels: int, activation: type[nn.Module]) -> nn.Module:
    """The activation alone; a PReLU has a slope per map."""
    return nn.PReLU(channels) if activation is nn.PReLU else activation()


def enet(num_classes: int = 1000, bands: int = 3) -> Chain:
    """The encoder with a classifier on it. The segmentation model is ``visionapps.models.enet``.

    Args:
        num_classes: K.
        bands: C of the image.
    """
    initial = InitialBlock(bands)
    steps: dict[str, nn.Module] = {"initial": initial}
    steps["bottleneck1_0"] = Downsampling(initial.channels, 64, dropout=0.01)
    for place in range(1, 5):
        steps[f"bottleneck1_{place}"] = Bottleneck(64, dropout=0.01)
    steps["bottleneck2_0"] = Downsampling(64, 128, dropout=0.1)
    for stage, first in ((2, 1), (3, 0)):  # the third stage is the second without its downsampling
        for place, (dilation, asymmetric) in enumerate(_CONTEXT, start=first):
            steps[f"bottleneck{stage}_{place}"] = Bottleneck(128, dropout=0.1, dilation=dilation, asymmetric=asymmetric)
    network = Chain("enet", steps, PooledHead(128, num_classes), native=512, least=7)
    he(network)
    return network
