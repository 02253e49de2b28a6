"""A pyramid for networks that have one map only, such as plain vision transformers."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.structures import Level


def simple_levels(single: Level, strides: Sequence[int]) -> tuple[Level, ...]:
    """Which levels a simple pyramid gives: of a quarter to four times the stride of its only map, in octaves.

    A stride is a whole number of pixels, so a network of patches of 14 begins at 7. A wanted stride that it does not
    have stands for the one within half an octave: of 4, 8, 16, 32 and 64 it gives 7, 14, 28 and 56.

    Args:
        single: the only map of the network.
        strides: which ones are wanted.

    Returns:
        Levels, finest first; none where no stride is near.
    """
    patch = single.stride
    possible = [patch // 4] * (patch % 4 == 0) + [patch // 2] * (patch % 2 == 0) + [patch, patch * 2, patch * 4]
    kept = {s for s in possible if any(abs(math.log2(s / wanted)) < 0.5 for wanted in strides)}
    return tuple(Level(s, max(1, single.channels * min(s, patch) // patch)) for s in sorted(kept))


class SimplePyramid(nn.Module):
    """Maps of several strides from one: finer ones by deconvolution, coarser ones by pooling.

    Its layers begin with random numbers, whatever weights the network has.

    Args:
        single: the map that comes in.
        levels: the maps that go out, see ``simple_levels``.

    Source: Li et al. 2022, Exploring Plain Vision Transformer Backbones for Object Detection, section 3. Here the map
        is normalised first, since transformers without their last normalisation give any scale, and what brings all
        maps to one width is left to the neck behind it.
    """

    def __init__(self, single: Level, levels: Sequence[Level]) -> None:
        super().__init__()
        self.norm = LayerNorm2d(single.channels)
        self.scales = nn.ModuleList(_scale(single, level.stride) for level in levels)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) to one (B, channels, H * stride / own, W * stride / own) map per level."""
        normal = self.norm(image)
        return tuple(scale(normal) for scale in self.scales)


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation of the channels of each pixel of (B, C, H, W)."""

    def forward(self, image: Tensor) -> Tensor:
        last = F.layer_norm(image.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return last.permute(0, 3, 1, 2).contiguous(memory_format=_format(image))


def _format(image: Tensor) -> torch.memory_format:
    channels_last = image.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def _scale(single: Level, stride: int) -> nn.Module:
    if stride >= single.stride:
        octaves = (stride // single.stride).bit_length() - 1
        return nn.Sequential(*(nn.MaxPool2d(2) for _ in range(octaves)))
    layers: list[nn.Module] = []
    octaves = (single.stride // stride).bit_length() - 1
    for octave in range(octaves):
        wide = single.channels // 2**octave
        layers.append(nn.ConvTranspose2d(wide, wide // 2, 2, stride=2))
        if octave < octaves - 1:
            layers += [LayerNorm2d(wide // 2), nn.GELU()]
    return nn.Sequential(*layers)
