"""How each decoder of segmentation_models_pytorch is built, under that library's option names and defaults.

One function per decoder, all alike: the channels of the maps it gets (image, stride 2, then the pyramid's; 0: empty
map), the pyramid's strides, and the user's options. The library takes seconds to import, so each imports its own part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Parts:
    """What a builder makes: the library's decoder, and the numbers of the head that the library puts behind it."""

    decoder: nn.Module
    out_channels: int
    kernel: int
    stride: int  # input pixels per pixel of the decoder's map


def unet(
    channels: Sequence[int],
    strides: Sequence[int],
    decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
    decoder_use_norm: bool | str | dict[str, Any] = "batchnorm",
    decoder_attention_type: str | None = None,
    decoder_interpolation: str = "nearest",
) -> Parts:
    from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

    decoder = UnetDecoder(
        encoder_channels=channels,
        decoder_channels=decoder_channels,
        n_blocks=len(channels) - 1,
        use_norm=decoder_use_norm,
        attention_type=decoder_attention_type,
        interpolation_mode=decoder_interpolation,
    )
    return Parts(decoder, decoder_channels[-1], 3, 1)


def unet_plus_plus(
    channels: Sequence[int],
    strides: Sequence[int],
    decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
    decoder_use_norm: bool | str | dict[str, Any] = "batchnorm",
    decoder_attention_type: str | None = None,
    decoder_interpolation: str = "nearest",
) -> Parts:
    from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder

    decoder = UnetPlusPlusDecoder(
        encoder_channels=channels,
        decoder_channels=decoder_channels,
        n_blocks=len(channels) - 1,
        use_norm=decoder_use_norm,
        attention_type=decoder_attention_type,
        interpolation_mode=decoder_interpolation,
    )
    return Parts(decoder, decoder_channels[-1], 3, 1)


def manet(
    channels: Sequence[int],
    strides: Sequence[int],
    decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
    decoder_use_norm: bool | str | dict[str, Any] = "batchnorm",
    decoder_pab_channels: int = 64,
    decoder_interpolation: str = "nearest",
) -> Parts:
    from segmentation_models_pytorch.decoders.manet.decoder import MAnetDecoder

    decoder = MAnetDecoder(
        encoder_channels=channels,
        decoder_channels=decoder_channels,
        n_blocks=len(channels) - 1,
        use_norm=decoder_use_norm,
        pab_channels=decoder_pab_channels,
        interpolation_mode=decoder_interpolation,
    )
    return Parts(decoder, decoder_channels[-1], 3, 1)


def linknet(
    channels: Sequence[int], strides: Sequence[int], decoder_use_norm: bool | str | dict[str, Any] = "batchnorm"
) -> Parts:
    from segmentation_models_pytorch.decoders.linknet.decoder import LinknetDecoder

    decoder = LinknetDecoder(
        encoder_channels=channels, prefinal_channels=32, n_blocks=len(channels) - 1, use_norm=decoder_use_norm
    )
    return Parts(decoder, 32, 1, 1)


def fpn(
    channels: Sequence[int],
    strides: Sequence[int],
    decoder_pyramid_channels: int = 256,
    decoder_segmentation_channels: int = 128,
    decoder_merge_policy: str = "add",
    decoder_dropout: float = 0.2,
    decoder_interpolation: str = "nearest",
) -> Parts:
    from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder

    decoder = FPNDecoder(
        encoder_channels=channels,
        encoder_depth=len(channels) - 1,
        pyramid_channels=decoder_pyramid_channels,
        segmentation_channels=decoder_segmentation_channels,
        dropout=decoder_dropout,
        merge_policy=decoder_merge_policy,
        interpolation_mode=decoder_interpolation,
    )
    return Parts(decoder, decoder.out_channels, 1, strides[0])


def pspnet(
    channels: Sequence[int],
    strides: Sequence[int],
    psp_out_channels: int = 512,
    decoder_use_norm: bool | str | dict[str, Any] = "batchnorm",
    psp_dropout: float = 0.2,
) -> Parts:
    from segmentation_models_pytorch.decoders.pspnet.decoder import PSPDecoder

    decoder = PSPDecoder(
        encoder_channels=channels, use_norm=decoder_use_norm, out_channels=psp_out_channels, dropout=psp_dropout
    )
    return Parts(decoder, psp_out_channels, 3, strides[-1])


def pan(
    channels: Sequence[int],
    strides: Sequence[int],
    decoder_channels: int = 32,
    decoder_interpolation: str = "bilinear",
) -> Parts:
    from segmentation_models_pytorch.decoders.pan.decoder import PANDecoder

    decoder = PANDecoder(
        encoder_channels=channels,
        encoder_depth=len(channels) - 1,
        decoder_channels=decoder_channels,
        interpolation_mode=decoder_interpolation,
    )
    return Parts(decoder, decoder_channels, 3, strides[0])


def deeplabv3(
    channels: Sequence[int],
    strides: Sequence[int],
    decoder_channels: int = 256,
    decoder_atrous_rates: Sequence[int] = (12, 24, 36),
    decoder_aspp_separable: bool = False,
    decoder_aspp_dropout: float = 0.5,
) -> Parts:
    from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3Decoder

    decoder = DeepLabV3Decoder(
        in_channels=channels[-1],
        out_channels=decoder_channels,
        atrous_rates=decoder_atrous_rates,
        aspp_separable=decoder_aspp_separable,
        aspp_dropout=decoder_aspp_dropout,
    )
    return Parts(decoder, decoder_channels, 1, strides[-1])


def deeplabv3plus(
    channels: Sequence[int],
    strides: Sequence[int],
    decoder_channels: int = 256,
    decoder_atrous_rates: Sequence[int] = (12, 24, 36),
    decoder_aspp_separable: bool = True,
    decoder_aspp_dropout: float = 0.5,
) -> Parts:
    from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder

    decoder = DeepLabV3PlusDecoder(
        encoder_channels=channels,
        encoder_depth=5,
        out_channels=decoder_channels,
        atrous_rates=decoder_atrous_rates,
        output_stride=strides[-1],
        aspp_separable=decoder_aspp_separable,
        aspp_dropout=decoder_aspp_dropout,
    )
    return Parts(decoder, decoder_channels, 1, strides[0])


def upernet(
    channels: Sequence[int],
    strides: Sequence[int],
    decoder_channels: int = 256,
    decoder_use_norm: bool | str | dict[str, Any] = "batchnorm",
) -> Parts:
    from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

    decoder = UPerNetDecoder(
        encoder_channels=channels,
        encoder_depth=len(channels) - 1,
        decoder_channels=decoder_channels,
        use_norm=decoder_use_norm,
    )
    return Parts(decoder, decoder_channels, 1, strides[0])


def segformer(channels: Sequence[int], strides: Sequence[int], decoder_segmentation_channels: int = 256) -> Parts:
    from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder

    decoder = SegformerDecoder(
        encoder_channels=channels,
        encoder_depth=len(channels) - 1,
        segmentation_channels=decoder_segmentation_channels,
    )
    return Parts(decoder, decoder_segmentation_channels, 1, strides[0])
