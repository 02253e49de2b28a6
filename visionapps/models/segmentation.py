"""How parts become a segmentation model: one short function per kind."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from visionapps.backbones import levels_of, pyramid
from visionapps.errors import ConfigError
from visionapps.models.recipes import remember
from visionapps.segmentation.base import Decoder, Segmentor
from visionapps.segmentation.deconvnet import DeconvNet
from visionapps.segmentation.enet import ENetDecoder
from visionapps.segmentation.fcn import FCN
from visionapps.segmentation.smp import SmpDecoder, demand
from visionapps.segmentation.unet import UNet, Upsample
from visionapps.structures import MOST_CLASSES, InputSpec, Level

STRIDES = (2, 4, 8, 16, 32)


@remember
def fcn32s(
    backbone: str,
    num_classes: int,
    *,
    weights: str | None = None,
    spec: InputSpec | None = None,
    head_channels: int | None = None,
    dropout: float = 0.5,
) -> Segmentor:
    """FCN-32s: scores of the stride-32 map, upsampled by one learned deconvolution (Long et al., 2015).

    Args:
        backbone: a timm model; `visionapps models --backbones` lists them.
        num_classes: K, 1 to 255.
        weights: of the backbone: package, hub, a file, or random (None); loaded on request.
        spec: bands and normalisation of the input; None: those of the weights.
        head_channels: width of the paper's two head convolutions (4096 for VGG); None: no head.
        dropout: before the score, in [0, 1).
    """
    return _fcn(32, backbone, num_classes, weights=weights, spec=spec, head_channels=head_channels, dropout=dropout)


@remember
def fcn16s(
    backbone: str,
    num_classes: int,
    *,
    weights: str | None = None,
    spec: InputSpec | None = None,
    head_channels: int | None = None,
    dropout: float = 0.5,
) -> Segmentor:
    """FCN-16s: FCN-32s joined by scores of the stride-16 map (Long et al., 2015).

    Args:
        backbone: a timm model; `visionapps models --backbones` lists them.
        num_classes: K, 1 to 255.
        weights: of the backbone: package, hub, a file, or random (None); loaded on request.
        spec: bands and normalisation of the input; None: those of the weights.
        head_channels: width of the paper's two head convolutions (4096 for VGG); None: no head.
        dropout: before the score, in [0, 1).
    """
    return _fcn(16, backbone, num_classes, weights=weights, spec=spec, head_channels=head_channels, dropout=dropout)


@remember
def fcn8s(
    backbone: str,
    num_classes: int,
    *,
    weights: str | None = None,
    spec: InputSpec | None = None,
    head_channels: int | None = None,
    dropout: float = 0.5,
) -> Segmentor:
    """FCN-8s: FCN-16s joined by scores of the stride-8 map (Long et al., 2015).

    Args:
        backbone: a timm model; `visionapps models --backbones` lists them.
        num_classes: K, 1 to 255.
        weights: of the backbone: package, hub, a file, or random (None); loaded on request.
        spec: bands and normalisation of the input; None: those of the weights.
        head_channels: width of the paper's two head convolutions (4096 for VGG); None: no head.
        dropout: before the score, in [0, 1).
    """
    return _fcn(8, backbone, num_classes, weights=weights, spec=spec, head_channels=head_channels, dropout=dropout)


@remember
def unet(
    backbone: str,
    num_classes: int,
    *,
    weights: str | None = None,
    spec: InputSpec | None = None,
    channels: Sequence[int] = (256, 128, 64, 32, 16),
    upsample: Upsample = "bilinear",
    finest_stride: int = 1,
) -> Segmentor:
    """U-Net on a backbone: skip connections at every stride (Ronneberger et al., 2015).

    Args:
        backbone: a timm model; `visionapps models --backbones` lists them.
        num_classes: K, 1 to 255.
        weights: of the backbone: package, hub, a file, or random (None); loaded on request.
        spec: bands and normalisation of the input; None: those of the weights.
        channels: width of each step, coarsest first.
        upsample: bilinear, nearest, or deconv (the paper's learned 2 x 2 up-convolution).
        finest_stride: input pixels per logit pixel before the last interpolation: 1, 2 or 4; greater is faster.
    """
    strides = tuple(stride for stride in STRIDES if stride >= finest_stride)

    def head(levels: Sequence[Level]) -> Decoder:
        return UNet(levels, num_classes, channels=channels, upsample=upsample, finest_stride=finest_stride)

    return _wired(backbone, num_classes, head, weights=weights, spec=spec, strides=strides)


@remember
def deconvnet(
    backbone: str,
    num_classes: int,
    *,
    weights: str | None = None,
    spec: InputSpec | None = None,
    channels: Sequence[int] = (256, 128, 64, 32, 16),
) -> Segmentor:
    """DeconvNet on a backbone: unpooling to the places of maxima, then deconvolution (Noh et al., 2015).

    Args:
        backbone: a timm model; `visionapps models --backbones` lists them.
        num_classes: K, 1 to 255.
        weights: of the backbone: package, hub, a file, or random (None); loaded on request.
        spec: bands and normalisation of the input; None: those of the weights.
        channels: width of each map, coarsest first.
    """

    def head(levels: Sequence[Level]) -> Decoder:
        return DeconvNet(levels, num_classes, channels=channels)

    return _wired(backbone, num_classes, head, weights=weights, spec=spec, strides=STRIDES)


@remember
def enet(
    backbone: str,
    num_classes: int,
    *,
    weights: str | None = None,
    spec: InputSpec | None = None,
) -> Segmentor:
    """ENet: thin bottlenecks, unpooling to the places of the encoder's maxima (Paszke et al., 2016).

    Args:
        backbone: visionapps/enet for the network of the paper, or any whose strides begin at 2 or 4 and double.
        num_classes: K, 1 to 255.
        weights: of the backbone: package, hub, a file, or random (None); loaded on request.
        spec: bands and normalisation of the input; None: those of the weights.
    """

    def head(levels: Sequence[Level]) -> Decoder:
        return ENetDecoder(levels, num_classes)

    return _wired(backbone, num_classes, head, weights=weights, spec=spec, strides=STRIDES)


@remember
def smp(
    decoder: str,
    backbone: str,
    num_classes: int,
    *,
    weights: str | None = None,
    spec: InputSpec | None = None,
    options: dict[str, Any] | None = None,
) -> Segmentor:
    """A decoder of segmentation_models_pytorch on a backbone.

    Args:
        decoder: Unet, UnetPlusPlus, MAnet, Linknet, FPN, PSPNet, PAN, DeepLabV3, DeepLabV3Plus, UPerNet or Segformer.
        backbone: a timm model; `visionapps models --backbones` lists them.
        num_classes: K, 1 to 255.
        weights: of the backbone: package, hub, a file, or random (None); loaded on request.
        spec: bands and normalisation of the input; None: those of the weights.
        options: the decoder's own, named as there: decoder_channels, encoder_depth, encoder_output_stride, ...
    """
    wanted = demand(decoder, options)

    def head(levels: Sequence[Level]) -> Decoder:
        return SmpDecoder(levels, num_classes, name=decoder, options=options)

    return _wired(
        backbone,
        num_classes,
        head,
        weights=weights,
        spec=spec,
        strides=wanted.strides,
        output_stride=wanted.output_stride,
    )


def _fcn(
    finest_stride: int,
    backbone: str,
    num_classes: int,
    *,
    weights: str | None,
    spec: InputSpec | None,
    head_channels: int | None,
    dropout: float,
) -> Segmentor:
    strides = tuple(stride for stride in STRIDES if stride >= finest_stride)

    def head(levels: Sequence[Level]) -> Decoder:
        return FCN(levels, num_classes, finest_stride=finest_stride, head_channels=head_channels, dropout=dropout)

    return _wired(backbone, num_classes, head, weights=weights, spec=spec, strides=strides)


def _wired(
    name: str,
    num_classes: int,
    head: Callable[[Sequence[Level]], Decoder],
    *,
    weights: str | None,
    spec: InputSpec | None,
    strides: Sequence[int],
    output_stride: int = 32,
) -> Segmentor:
    if not 1 <= num_classes <= MOST_CLASSES:
        raise ConfigError(f"num_classes is {num_classes}; choose 1 to {MOST_CLASSES}")
    with torch.device("meta"):  # so that a head says what it cannot take before anything is built
        head(levels_of(name, spec=spec, strides=strides, output_stride=output_stride))
    body = pyramid(name, spec=spec, weights=weights, strides=strides, output_stride=output_stride)
    return Segmentor(body, head(body.levels), num_classes)
