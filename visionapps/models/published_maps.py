"""Segmentation models with the very layers of the papers that are named after them; compare papers.py for detectors.

They stand on no backbone but their own. Weights begin with random numbers: a checkpoint of another framework has other
names. Each number of the counts in docs/backbones.md is checked by tests/test_published_maps.py.
"""

from collections.abc import Sequence

from visionapps.errors import ConfigError
from visionapps.models.recipes import remember
from visionapps.segmentation.base import Segmentor
from visionapps.segmentation.published import (
    DeconvNetTrunk,
    FCNTrunk,
    Published,
    PublishedDeconvNet,
    PublishedDeconvNetSegmentor,
    PublishedFCN,
    PublishedUNet,
    PublishedUNetSegmentor,
    UNetTrunk,
    require_channels,
)
from visionapps.structures import MOST_CLASSES, InputSpec

_VGG = (64, 128, 256, 512, 512)
_HIDDEN = 4096
_UNET = (64, 128, 256, 512, 1024)


@remember
def fcn32s_2015(
    num_classes: int, *, spec: InputSpec | None = None, channels: Sequence[int] = _VGG, hidden: int = _HIDDEN
) -> Segmentor:
    """FCN-32s as published: VGG-16 with fc6 and fc7 as convolutions, pad 100, crop 19 (Long et al., 2015).

    Args:
        num_classes: K, 1 to 255.
        spec: bands and normalisation of the input; None: colours as ImageNet has them.
        channels: of the five blocks.
        hidden: width of fc6 and fc7.
    """
    return _fcn(32, num_classes, spec, channels, hidden)


@remember
def fcn16s_2015(
    num_classes: int, *, spec: InputSpec | None = None, channels: Sequence[int] = _VGG, hidden: int = _HIDDEN
) -> Segmentor:
    """FCN-16s as published: FCN-32s and scores of pool4, crop 27 (Long et al., 2015).

    Args:
        num_classes: K, 1 to 255.
        spec: bands and normalisation of the input; None: colours as ImageNet has them.
        channels: of the five blocks.
        hidden: width of fc6 and fc7.
    """
    return _fcn(16, num_classes, spec, channels, hidden)


@remember
def fcn8s_2015(
    num_classes: int, *, spec: InputSpec | None = None, channels: Sequence[int] = _VGG, hidden: int = _HIDDEN
) -> Segmentor:
    """FCN-8s as published: FCN-16s and scores of pool3, crop 31 (Long et al., 2015).

    Args:
        num_classes: K, 1 to 255.
        spec: bands and normalisation of the input; None: colours as ImageNet has them.
        channels: of the five blocks.
        hidden: width of fc6 and fc7.
    """
    return _fcn(8, num_classes, spec, channels, hidden)


@remember
def deconvnet_2015(
    num_classes: int, *, spec: InputSpec | None = None, channels: Sequence[int] = _VGG, hidden: int = _HIDDEN
) -> Segmentor:
    """DeconvNet as published: VGG-16 and its mirror, unpooling to the places of its own maxima (Noh et al., 2015).

    In training a batch of images up to 224 px needs two of them or more: batch normalisation sees 1 x 1 positions each.

    Args:
        num_classes: K, 1 to 255.
        spec: bands and normalisation of the input; None: colours as ImageNet has them.
        channels: of the five blocks.
        hidden: width of fc6 and fc7.
    """
    _require(num_classes, channels, hidden)
    trunk = DeconvNetTrunk(spec or InputSpec(), channels)
    return PublishedDeconvNetSegmentor(trunk, PublishedDeconvNet(channels, num_classes, hidden=hidden), num_classes)


@remember
def unet_2015(
    num_classes: int, *, spec: InputSpec | None = None, channels: Sequence[int] = _UNET, valid: bool = True
) -> Segmentor:
    """U-Net as published: convolutions without padding, 572 pixels to 388, mirrored borders (Ronneberger et al., 2015).

    Args:
        num_classes: K, 1 to 255.
        spec: bands and normalisation of the input; None: colours as ImageNet has them. The paper's has one band.
        channels: of the five strides, finest first.
        valid: False: convolutions pad and keep the size of their maps, as most have built it since.
    """
    _require(num_classes, channels, 1)
    trunk = UNetTrunk(spec or InputSpec(), channels, valid=valid)
    return PublishedUNetSegmentor(trunk, PublishedUNet(channels, num_classes, valid=valid), num_classes, valid=valid)


def _fcn(
    finest_stride: int, num_classes: int, spec: InputSpec | None, channels: Sequence[int], hidden: int
) -> Segmentor:
    _require(num_classes, channels, hidden)
    trunk = FCNTrunk(spec or InputSpec(), channels)
    decoder = PublishedFCN(trunk.levels, num_classes, finest_stride=finest_stride, hidden=hidden)
    return Published(trunk, decoder, num_classes)


def _require(num_classes: int, channels: Sequence[int], hidden: int) -> None:
    if not 1 <= num_classes <= MOST_CLASSES:
        raise ConfigError(f"num_classes is {num_classes}; choose 1 to {MOST_CLASSES}")
    require_channels(channels, hidden)
