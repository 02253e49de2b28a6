"""U-Net on any pyramid: upsample, join the map of the same size, convolve twice, and so on to the finest stride.

Source: Ronneberger, Fischer and Brox, U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI 2015.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.errors import ConfigError
from visionapps.segmentation.base import Decoder
from visionapps.structures import Level

Upsample = Literal["bilinear", "deconv", "nearest"]


class UNet(Decoder):
    """The expanding path of U-Net.

    Departures from the paper: a classification backbone is the contracting path, convolutions pad and are followed by
    batch normalisation, and where the pyramid has no map of a size (stride 1 of most backbones, stride 2 of ConvNeXt)
    the step goes without a skip connection.

    Args:
        levels: the backbone's; the coarsest is where the path starts, finer ones are joined down to finest_stride.
        num_classes: K.
        channels: width of each step, coarsest first; one per halving of the stride. Those beyond finest_stride are
            not used, so one tuple serves every finest_stride.
        upsample: "bilinear" or "nearest" interpolation, or "deconv": the paper's learned 2 x 2 up-convolution.
        finest_stride: input pixels per logit pixel, 1, 2 or 4; Segmentor interpolates the rest. 1 is the classical
            net; 2 leaves out the most expensive step, whose map has no skip connection anyway.

    Raises:
        ConfigError: too few channels, a stride that halving does not reach, or an unknown upsample.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        num_classes: int,
        *,
        channels: Sequence[int] = (256, 128, 64, 32, 16),
        upsample: Upsample = "bilinear",
        finest_stride: int = 1,
    ) -> None:
        super().__init__()
        if upsample not in ("bilinear", "deconv", "nearest"):
            raise ConfigError(f"U-Net: upsample is {upsample!r}; choose 'bilinear', 'deconv' or 'nearest'")
        strides = _halvings(levels, finest_stride)
        if len(channels) < len(strides) or min(channels) < 1:
            raise ConfigError(
                f"U-Net: channels {list(channels)} for {len(strides)} steps, from stride {levels[-1].stride} to "
                f"{finest_stride}; give one positive number per step"
            )
        self.stride = finest_stride
        index_of = {level.stride: i for i, level in enumerate(levels)}
        self.skips = [index_of.get(stride) for stride in strides]
        width = levels[-1].channels
        steps: list[Step] = []
        for out, skip in zip(channels, self.skips, strict=False):
            steps.append(Step(width, 0 if skip is None else levels[skip].channels, out, upsample))
            width = out
        self.steps = nn.ModuleList(steps)
        self.score = nn.Conv2d(width, num_classes, 1)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Maps of all levels, finest first, to (B, K, H / stride, W / stride) logits."""
        x = features[-1]
        for step, skip in zip(self.steps, self.skips, strict=True):
            x = step(x, None if skip is None else features[skip])
        logits: Tensor = self.score(x)
        return logits


class Step(nn.Module):
    """Double the size, join the skip connection, convolve twice.

    Args:
        channels: of the coarse map.
        skip_channels: of the map to join; 0: none.
        out_channels: of the result.
        upsample: see UNet.
    """

    def __init__(self, channels: int, skip_channels: int, out_channels: int, upsample: Upsample) -> None:
        super().__init__()
        self.mode = upsample
        self.deconv = nn.ConvTranspose2d(channels, out_channels, 2, stride=2) if upsample == "deconv" else None
        joined = (out_channels if upsample == "deconv" else channels) + skip_channels
        self.convs = nn.Sequential(*_conv_bn_relu(joined, out_channels), *_conv_bn_relu(out_channels, out_channels))

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """(B, channels, h, w) and (B, skip_channels, 2h, 2w) to (B, out_channels, 2h, 2w)."""
        if self.deconv is not None:
            x = self.deconv(x)
        else:
            align_corners = False if self.mode == "bilinear" else None
            x = F.interpolate(x, scale_factor=2, mode=self.mode, align_corners=align_corners)
        if skip is not None:
            x = torch.cat((x, skip), dim=1)
        joined: Tensor = self.convs(x)
        return joined


def _conv_bn_relu(channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)  # the normalisation brings the bias
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # the paper's: standard deviation sqrt(2 / inputs)
    return conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)


def _halvings(levels: Sequence[Level], finest_stride: int) -> list[int]:
    """The strides of the steps: half the coarsest, a quarter of it, ... finest_stride."""
    strides = []
    stride = levels[-1].stride
    while stride > finest_stride and stride % 2 == 0:
        stride //= 2
        strides.append(stride)
    if not strides or strides[-1] != finest_stride or finest_stride not in (1, 2, 4):
        raise ConfigError(
            f"U-Net: finest_stride {finest_stride} cannot be reached by halving the backbone's coarsest stride "
            f"{levels[-1].stride}; choose 1, 2 or 4, below the coarsest stride"
        )
    return strides
