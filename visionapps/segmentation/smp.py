"""Every decoder of segmentation_models_pytorch on our backbones.

A decoder class of that library is built from the channels of a list of maps (image, stride 2, 4, 8, ...). Here the list
is made from our pyramid, so any backbone fits, any image size comes back exactly, and the library's own encoders and
their downloads are never touched. Option names and defaults are the library's (Unet(decoder_channels=...) and so on).
"""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import Tensor
from torch.nn import functional as F

from visionapps.errors import ConfigError
from visionapps.segmentation import smp_decoders
from visionapps.segmentation.base import Decoder
from visionapps.segmentation.smp_decoders import Parts
from visionapps.structures import Level


@dataclass(frozen=True)
class Plan:
    """What one decoder asks of the pyramid, and how it is built.

    Attributes:
        build: from channels and strides to Parts; its other parameters are the user's options.
        finest: the finest stride that it reads.
        reads: "all" maps from the finest on, both "ends", or only the "last".
        depths: encoder_depth, the number of halvings, that it can take; the first is the default.
        output_strides: encoder_output_stride that it can take; the first is the default. 32: not dilated.
        global_norm: normalises a map of 1 x 1 over the batch, which one image cannot train.
        least_cells: height and width that its coarsest map must have.
    """

    build: Callable[..., Parts]
    finest: int = 2
    reads: Literal["all", "ends", "last"] = "all"
    depths: tuple[int, ...] = (5, 4, 3)
    output_strides: tuple[int, ...] = (32,)
    global_norm: bool = False
    least_cells: int = 1


# Names are the library's classes. Segformer there also reads stride 2 where a backbone has it; the paper's decoder, and
# ours, begins at 4: the map of stride 2 would be widened to 256 channels only to be shrunk again.
# PAN with a dilated backbone there reads two maps of stride 16; a pyramid here has one map per stride, the deepest.
_PLANS = {
    "Unet": Plan(smp_decoders.unet),
    "UnetPlusPlus": Plan(smp_decoders.unet_plus_plus),
    "MAnet": Plan(smp_decoders.manet),
    "Linknet": Plan(smp_decoders.linknet),
    "FPN": Plan(smp_decoders.fpn, finest=4, depths=(5,)),
    "PSPNet": Plan(smp_decoders.pspnet, reads="last", depths=(3, 4, 5)),
    "PAN": Plan(smp_decoders.pan, finest=4, depths=(5,), output_strides=(32, 16), global_norm=True, least_cells=8),
    "DeepLabV3": Plan(smp_decoders.deeplabv3, reads="last", depths=(5,), output_strides=(8, 16), global_norm=True),
    "DeepLabV3Plus": Plan(
        smp_decoders.deeplabv3plus, finest=4, depths=(5,), reads="ends", output_strides=(16, 8), global_norm=True
    ),
    "UPerNet": Plan(smp_decoders.upernet, finest=4, global_norm=True),
    "Segformer": Plan(smp_decoders.segformer, finest=4),
}

DECODERS = tuple(_PLANS)


@dataclass(frozen=True)
class Demand:
    """The pyramid that a decoder needs: arguments of visionapps.backbones.pyramid."""

    strides: tuple[int, ...]
    output_stride: int


def demand(name: str, options: Mapping[str, Any] | None = None) -> Demand:
    """The pyramid to build for a decoder, so that no stage runs whose map it would not read.

    Args:
        name: the decoder's class name in segmentation_models_pytorch, such as "UnetPlusPlus".
        options: see SmpDecoder.

    Raises:
        ConfigError: an unknown decoder or option, or a value that it cannot take.
    """
    plan = _plan(name)
    _check_options(name, plan, options or {})
    depth = _choice(name, "encoder_depth", plan.depths, options)
    output_stride = _choice(name, "encoder_output_stride", plan.output_strides, options)
    coarsest = min(2**depth, output_stride)
    strides = [2**i for i in range(1, depth + 1) if plan.finest <= 2**i <= coarsest]
    read = {"all": strides, "ends": [strides[0], strides[-1]], "last": strides[-1:]}[plan.reads]
    return Demand(tuple(read), output_stride)


class SmpDecoder(Decoder):
    """A decoder and segmentation head of segmentation_models_pytorch, initialised as there.

    Args:
        levels: of the pyramid that demand() asks for; where a backbone has no stride 2, the decoder gets an empty map
            for it, as the library itself does for transformers.
        num_classes: K.
        name: the decoder's class name there: Unet, UnetPlusPlus, MAnet, Linknet, FPN, PSPNet, PAN, DeepLabV3,
            DeepLabV3Plus, UPerNet or Segformer.
        options: the library's options for this decoder, such as decoder_channels, decoder_dropout; encoder_depth and
            encoder_output_stride choose the pyramid.

    Raises:
        ConfigError: an unknown decoder or option, a value it cannot take, or a pyramid without a map it needs.
    """

    def __init__(
        self, levels: Sequence[Level], num_classes: int, *, name: str, options: Mapping[str, Any] | None = None
    ) -> None:
        from segmentation_models_pytorch.base import SegmentationHead  # seconds to import: only when it is used
        from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head

        super().__init__()
        plan = _plan(name)
        _check_options(name, plan, options or {})
        wanted = demand(name, options).strides
        self.stride = 1  # the head upsamples as in the library, so that its trained weights mean the same here
        self.name = name
        self.least_cells = plan.least_cells
        self.needs_pairs = plan.global_norm and (options or {}).get("decoder_use_norm", True) in (True, "batchnorm")
        self.slots = _slots(name, levels, wanted)
        channels = [1 if stride == 1 else (0 if i is None else levels[i].channels) for stride, i in self.slots]
        chosen = {k: v for k, v in (options or {}).items() if k not in ("encoder_depth", "encoder_output_stride")}
        try:
            parts = plan.build(channels, wanted, **chosen)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"smp decoder {name}: {error}; correct its options {dict(options or {})}") from error
        self.decoder = parts.decoder
        self.head = SegmentationHead(parts.out_channels, num_classes, kernel_size=parts.kernel, upsampling=parts.stride)
        initialize_decoder(self.decoder)
        initialize_head(self.head)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Maps of all levels, finest first, to (B, K, H, W) logits."""
        coarsest_stride, coarsest = self.slots[-1][0], features[cast(int, self.slots[-1][1])]
        batch, _, rows, columns = coarsest.shape
        if self.training and batch == 1 and self.needs_pairs:
            raise ConfigError(
                f"smp decoder {self.name}: one image per batch cannot be normalised after global pooling in training; "
                "choose a batch size of at least 2, and drop the last batch when it is smaller"
            )
        # The map may be smaller than what the decoder pools: its last rows and columns are repeated, then cut off.
        padded = [max(0, self.least_cells - cells) for cells in (rows, columns)]
        maps = []
        for stride, index in self.slots:
            if index is None:  # the image itself, of which only the size is read, or the missing stride 2
                size = [(n + p) * coarsest_stride // stride for n, p in zip((rows, columns), padded, strict=True)]
                maps.append(coarsest.new_empty((batch, 0, *size)))
                continue
            feature = features[index]
            bottom, right = (p * coarsest_stride // stride for p in padded)
            maps.append(F.pad(feature, (0, right, 0, bottom), mode="replicate") if bottom or right else feature)
        logits: Tensor = self.head(self.decoder(maps))
        return logits[..., : rows * coarsest_stride, : columns * coarsest_stride]


def _plan(name: str) -> Plan:
    if name == "DPT":
        raise ConfigError(
            "smp decoder DPT: reads the tokens of a vision transformer, which a pyramid does not have; "
            "choose UPerNet or Segformer"
        )
    if name not in _PLANS:
        close = difflib.get_close_matches(name.lower(), [n.lower() for n in _PLANS], n=1, cutoff=0.5)
        hint = next((f"; did you mean {n}?" for n in _PLANS if close == [n.lower()]), "")
        raise ConfigError(f"smp decoder {name!r} is unknown{hint}; choose one of {', '.join(_PLANS)}")
    return _PLANS[name]


def _check_options(name: str, plan: Plan, options: Mapping[str, Any]) -> None:
    allowed = [p for p in inspect.signature(plan.build).parameters if p not in ("channels", "strides")]
    allowed += ["encoder_depth", "encoder_output_stride"]
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ConfigError(f"smp decoder {name} has no option {', '.join(unknown)}; it has {', '.join(allowed)}")


def _choice(name: str, option: str, choices: tuple[int, ...], options: Mapping[str, Any] | None) -> int:
    value = (options or {}).get(option, choices[0])
    if value not in choices:
        raise ConfigError(
            f"smp decoder {name}: {option} is {value!r}; it can take {' or '.join(str(c) for c in choices)}"
        )
    return int(value)


def _slots(name: str, levels: Sequence[Level], wanted: Sequence[int]) -> list[tuple[int, int | None]]:
    """Stride and index into the pyramid of each map in the library's order; None: an empty map stands there."""
    index_of = {level.stride: i for i, level in enumerate(levels)}
    missing = [stride for stride in wanted if stride > 2 and stride not in index_of]
    if missing:
        raise ConfigError(
            f"smp decoder {name}: needs maps of stride {', '.join(map(str, wanted))}, but the backbone has "
            f"{', '.join(str(level.stride) for level in levels)}; choose another backbone, or another "
            "encoder_depth or encoder_output_stride in its options"
        )
    used = {stride: index_of.get(stride) for stride in wanted}
    return [(1, None), (2, used.get(2)), *((stride, i) for stride, i in used.items() if stride > 2)]
