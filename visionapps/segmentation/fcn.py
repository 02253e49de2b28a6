"""Fully convolutional networks: FCN-32s, FCN-16s and FCN-8s on any pyramid.

Source: Long, Shelhamer and Darrell, Fully Convolutional Networks for Semantic Segmentation, CVPR 2015.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visionapps.errors import ConfigError
from visionapps.segmentation.base import Decoder
from visionapps.structures import Level

COARSEST = 32  # stride of the map that the paper scores first


class FCN(Decoder):
    """Class scores of the stride-32 map, upsampled by learned deconvolutions, joined by the scores of finer maps.

    Departures from the paper: the last deconvolution is learned like the others, where the paper freezes it; the
    three nets are trained each at once, not one from the other; padding is to a multiple of the stride, not by 100.

    Args:
        levels: the backbone's; must hold stride 32, for FCN-16s also 16, for FCN-8s also 8. Others are not used.
        num_classes: K.
        finest_stride: 32, 16 or 8: the finest map whose scores are added, and the net's name.
        head_channels: width of the paper's fc6 (7 x 7) and fc7 (1 x 1) before the score (4096 there, for VGG);
            None scores the coarsest map directly, as suits backbones deeper than VGG.
        dropout: share of activations dropped before the score, and after fc6, in [0, 1).

    Raises:
        ConfigError: the pyramid lacks a stride, or an argument is out of range.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        num_classes: int,
        *,
        finest_stride: int = 8,
        head_channels: int | None = None,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if finest_stride not in (32, 16, 8):
            raise ConfigError(f"FCN: finest_stride is {finest_stride}; choose 32, 16 or 8")
        if not 0 <= dropout < 1 or (head_channels is not None and head_channels < 1):
            raise ConfigError(f"FCN: dropout {dropout} must be in [0, 1) and head_channels {head_channels} at least 1")
        self.stride = 1
        strides = [s for s in (COARSEST, 16, 8) if s >= finest_stride]
        self.indices = [_index_of(levels, stride, finest_stride) for stride in strides]
        coarse, *finer = (levels[i].channels for i in self.indices)
        self.head = _head(coarse, head_channels, dropout)
        # The paper starts all scores at zero: nothing else learned faster or better.
        self.scores = nn.ModuleList(zero_score(c, num_classes) for c in (head_channels or coarse, *finer))
        factors = [2] * len(finer) + [finest_stride]
        self.upsamples = nn.ModuleList(bilinear_deconvolution(num_classes, factor) for factor in factors)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Maps of all levels, finest first, to (B, K, H, W) logits."""
        coarse, *finer = (features[i] for i in self.indices)
        logits: Tensor = self.scores[0](self.head(coarse))
        for feature, score, upsample in zip(finer, self.scores[1:], self.upsamples[:-1], strict=True):
            logits = upsample(logits) + score(feature)
        last: Tensor = self.upsamples[-1](logits)
        return last


def bilinear_deconvolution(channels: int, factor: int, *, padding: int | None = None) -> nn.ConvTranspose2d:
    """A learnable transposed convolution that starts as bilinear interpolation, each channel for itself.

    Away from the border it equals interpolation with align_corners=False; at the border zeros flow in.

    Args:
        channels: of input and output.
        factor: upsampling factor, >= 1; the kernel is 2 * factor wide (one less for odd factors).
        padding: output pixels cut from each side; None: so many that the output is factor times the input.
    """
    kernel = 2 * factor - factor % 2
    padding = (kernel - factor) // 2 if padding is None else padding
    layer = nn.ConvTranspose2d(channels, channels, kernel, stride=factor, padding=padding, bias=False)
    distance = (torch.arange(kernel) - (kernel - 1) / 2).abs() / factor
    tent = (1 - distance).clamp_min(0)
    with torch.no_grad():
        layer.weight.zero_()
        diagonal = torch.arange(channels)
        layer.weight[diagonal, diagonal] = tent[:, None] * tent[None, :]
    return layer


def _head(channels: int, width: int | None, dropout: float) -> nn.Module:
    return nn.Dropout(dropout) if width is None else connected_as_convolutions(channels, width, dropout, padding=3)


def connected_as_convolutions(channels: int, width: int, dropout: float, *, padding: int) -> nn.Sequential:
    """fc6 (7 x 7, padded by so many pixels) and fc7 (1 x 1) of VGG-16 as convolutions."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 7, padding=padding),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Conv2d(width, width, 1),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
    )


def zero_score(channels: int, num_classes: int) -> nn.Conv2d:
    """Scores of classes that begin at zero."""
    layer = nn.Conv2d(channels, num_classes, 1)
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _index_of(levels: Sequence[Level], stride: int, finest_stride: int) -> int:
    for index, level in enumerate(levels):
        if level.stride == stride:
            return index
    raise ConfigError(
        f"FCN-{finest_stride}s: needs a map of stride {stride}, but the backbone has strides "
        f"{', '.join(str(level.stride) for level in levels)}; choose another backbone or ask it for this stride"
    )
