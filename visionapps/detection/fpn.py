"""Necks: what stands between a backbone and the heads of a detector, and brings all maps to one width.

Shapes: B batch; map l has C_l channels and H_l x W_l pixels, each of levels[l].stride pixels of the image.
"""

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.backbones.simple_pyramid import LayerNorm2d
from visionapps.errors import ConfigError
from visionapps.structures import Level

Extra = Literal["none", "pool", "convs", "convs_of_input"]


class Neck(nn.Module):
    """Maps of a backbone to maps for heads.

    Attributes:
        levels: of the maps that come out, finest first; strides are true, also of maps that the neck adds: pixel i of
            a map stands at i * stride. A map that was added is half the one before it, rounded up.
    """

    levels: tuple[Level, ...]

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """
        Args:
            features: one (B, C_l, H_l, W_l) map per level of the backbone, finest first.

        Returns:
            One (B, channels, H_l, W_l) map per entry of ``levels``.
        """
        raise NotImplementedError


class FPN(Neck):
    """Feature pyramid network: every map is joined by what the coarser ones know. Any strides.

    Args:
        levels: of the backbone, finest first.
        channels: width of all maps that come out.
        extra: coarser maps to add, each of twice the stride of the one before: "pool", one by taking every second
            pixel of the last; "convs", two by convolutions on the last map (torchvision's RetinaNet);
            "convs_of_input", two by convolutions, the first on the backbone's last map (the paper's RetinaNet).
        batch_norm: normalise after each convolution, which then has no bias (Li et al. 2021, arXiv 2111.11429).
        level_norms: normalise the channels of every map of the backbone first, see Backbone.raw.

    Source: Lin et al. 2017, Feature Pyramid Networks for Object Detection; extra convolutions: Lin et al. 2017, Focal
        Loss for Dense Object Detection.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        channels: int = 256,
        extra: Extra = "none",
        *,
        batch_norm: bool = False,
        level_norms: bool = False,
    ) -> None:
        super().__init__()
        if extra not in get_args(Extra):
            raise ConfigError(f"FPN: extra {extra!r} is not possible; choose {', '.join(get_args(Extra))}")
        if channels < 1 or not levels:
            raise ConfigError(f"FPN: {channels} channels of {len(levels)} levels; give at least one of each")
        self.extra = extra
        self.norms = nn.ModuleList(LayerNorm2d(level.channels) for level in levels if level_norms)
        self.lateral = nn.ModuleList(_convolution(level.channels, channels, 1, batch_norm) for level in levels)
        self.output = nn.ModuleList(_convolution(channels, channels, 3, batch_norm) for _ in levels)
        strides = [level.stride for level in levels]
        if extra == "pool":
            strides.append(strides[-1] * 2)
        elif extra != "none":
            below = channels if extra == "convs" else levels[-1].channels
            self.sixth = _strided(below, channels)
            self.seventh = _strided(channels, channels)
            strides += [strides[-1] * 2, strides[-1] * 4]
        self.levels = tuple(Level(stride, channels) for stride in strides)

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.norms:
            features = tuple(norm(each) for norm, each in zip(self.norms, features, strict=True))
        top = self.lateral[-1](features[-1])
        maps = [self.output[-1](top)]
        for index in range(len(features) - 2, -1, -1):
            side = self.lateral[index](features[index])
            # To the size of the finer map and not by a factor: strides need not be powers of two.
            top = side + F.interpolate(top, size=side.shape[-2:], mode="nearest")
            maps.insert(0, self.output[index](top))
        if self.extra == "pool":
            maps.append(F.max_pool2d(maps[-1], kernel_size=1, stride=2))
        elif self.extra != "none":
            maps.append(self.sixth(maps[-1] if self.extra == "convs" else features[-1]))
            maps.append(self.seventh(F.relu(maps[-1])))
        return tuple(maps)


class SingleLevel(Neck):
    """One map of the backbone, alone: the C4 layout of Faster R-CNN.

    Args:
        levels: of the backbone, finest first.
        stride: which of them, 16 in Ren et al. 2015.
        level_norms: normalise its channels first, see Backbone.raw.
    """

    def __init__(self, levels: Sequence[Level], stride: int = 16, *, level_norms: bool = False) -> None:
        super().__init__()
        strides = [level.stride for level in levels]
        if stride not in strides:
            raise ConfigError(
                f"single level: no map of stride {stride}; the backbone has {', '.join(map(str, strides))}: choose "
                "one of them"
            )
        self.index = strides.index(stride)
        self.levels = (levels[self.index],)
        self.norm = LayerNorm2d(levels[self.index].channels) if level_norms else None

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        single = features[self.index]
        return (single if self.norm is None else self.norm(single),)


def _convolution(wide: int, channels: int, kernel: int, batch_norm: bool) -> nn.Sequential:
    conv = nn.Conv2d(wide, channels, kernel, padding=kernel // 2, bias=not batch_norm)
    _fill(conv)
    return nn.Sequential(conv, nn.BatchNorm2d(channels)) if batch_norm else nn.Sequential(conv)


def _strided(wide: int, channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(wide, channels, 3, stride=2, padding=1)
    _fill(conv)
    return conv


def _fill(conv: nn.Conv2d) -> None:
    # Glorot's uniform distribution for maps of one width, as in the paper's own code: a = 1 makes it so.
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
