"""DeconvNet on any pyramid: unpooling to the places of the maxima, made dense by deconvolution.

Source: Noh, Hong and Han, Learning Deconvolution Network for Semantic Segmentation, ICCV 2015.
"""

import itertools
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.errors import ConfigError
from visionapps.segmentation.base import Decoder
from visionapps.structures import Level


class DeconvNet(Decoder):
    """A mirror of the pyramid: each step unpools the coarse map into the finer one and deconvolves it.

    Departures from the paper: there the switches (where each maximum was) come from VGG's own max pooling, whose places
    most backbones do not have (they stride instead). Here the finer map of the pyramid is projected to the coarse
    map's channels and max-pooled; its places are the switches, and its maxima are added to the coarse map, which is
    what teaches the projection where to point. There is no fully connected bottleneck, and the net ends at the
    pyramid's finest stride (Segmentor interpolates the rest), since nothing finer could place anything.

    Args:
        levels: the backbone's, at least two, each stride a multiple of the one before.
        num_classes: K.
        channels: width of each map from the coarsest on, one per level; further ones are not used.

    Raises:
        ConfigError: too few levels or channels, or strides that do not divide each other.
    """

    def __init__(
        self, levels: Sequence[Level], num_classes: int, *, channels: Sequence[int] = (256, 128, 64, 32, 16)
    ) -> None:
        super().__init__()
        strides = [level.stride for level in levels]
        if len(levels) < 2 or any(b % a for a, b in itertools.pairwise(strides)):
            raise ConfigError(
                f"DeconvNet: cannot unpool between strides {strides}; choose a backbone with two or more levels whose "
                "strides divide each other"
            )
        if len(channels) < len(levels) or min(channels) < 1:
            raise ConfigError(
                f"DeconvNet: channels {list(channels)} for {len(levels)} levels; give one positive number per level"
            )
        self.stride = strides[0]
        coarse_to_fine = list(reversed(levels))
        self.entry = nn.Sequential(
            nn.Conv2d(coarse_to_fine[0].channels, channels[0], 1, bias=False),
            nn.BatchNorm2d(channels[0]),
            nn.ReLU(inplace=True),
        )
        self.steps = nn.ModuleList(
            Unpooling(channels[i], fine.channels, channels[i + 1], coarse.stride // fine.stride)
            for i, (coarse, fine) in enumerate(itertools.pairwise(coarse_to_fine))
        )
        self.score = nn.Conv2d(channels[len(levels) - 1], num_classes, 1)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Maps of all levels, finest first, to (B, K, H / stride, W / stride) logits."""
        x = self.entry(features[-1])
        for step, feature in zip(self.steps, reversed(features[:-1]), strict=True):
            x = step(x, feature)
        logits: Tensor = self.score(x)
        return logits


class Unpooling(nn.Module):
    """One step: the coarse map goes to the places where the finer one is greatest, then two deconvolutions fill up.

    Args:
        channels: of the coarse map.
        fine_channels: of the finer map that gives the switches.
        out_channels: of the result.
        factor: how many fine pixels per coarse pixel, >= 2.
    """

    def __init__(self, channels: int, fine_channels: int, out_channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.project = nn.Conv2d(fine_channels, channels, 1)
        reach = max(1, factor - 1)  # from any place in a cell to any other: 3 x 3, as in the paper, for factor 2
        self.fill = nn.Sequential(
            *_deconv_bn_relu(channels, out_channels, reach), *_deconv_bn_relu(out_channels, out_channels, 1)
        )

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """(B, channels, h, w) and (B, fine_channels, factor * h, factor * w) to (B, out_channels, factor * h, ...)."""
        cell = (self.factor, self.factor)
        maxima, switches = F.max_pool2d(self.project(fine), cell, return_indices=True)
        sparse = F.max_unpool2d(coarse + maxima, switches, cell)
        dense: Tensor = self.fill(sparse)
        return dense


def _deconv_bn_relu(channels: int, out_channels: int, reach: int) -> tuple[nn.Module, ...]:
    deconv = nn.ConvTranspose2d(channels, out_channels, 2 * reach + 1, padding=reach, bias=False)
    return deconv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
