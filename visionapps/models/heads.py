"""Every dense head on any network of the zoo: which go together, and why the others do not.

A head is built from the strides and channels of a pyramid and from nothing else, so that the two numbers decide.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from visionapps.backbones import levels_of, pyramid
from visionapps.backbones.base import Backbone
from visionapps.detection.base import Detector, Limits
from visionapps.errors import ConfigError
from visionapps.models.detection import (
    C4_STRIDE,
    FPN_STRIDES,
    RETINA_STRIDES,
    fast_rcnn_on,
    faster_rcnn_on,
    mask_rcnn_on,
    retinanet_on,
    sppnet_on,
)
from visionapps.models.options import Features, Proposing, Pyramids, Regions, RetinaOptions
from visionapps.models.segmentation import STRIDES
from visionapps.segmentation.base import Decoder, Segmentor
from visionapps.segmentation.deconvnet import DeconvNet
from visionapps.segmentation.fcn import FCN
from visionapps.segmentation.smp import DECODERS, SmpDecoder, demand
from visionapps.segmentation.unet import UNet
from visionapps.structures import InputSpec, Level

_OCTAVES = (1, 2, 4, 8, 16, 32)  # every stride that a network could have and a head could want


@dataclass(frozen=True)
class Head:
    """What a wiring function puts on a backbone, with its usual arguments.

    Attributes:
        title: as tables call it.
        task: "segmentation" or "detection".
        strides: of the maps that it asks for.
        output_stride: 8 or 16: it asks for a dilated backbone.
        put: (backbone with the levels it asked for, K, width of its own layers or None) to the model.
    """

    title: str
    task: str
    strides: tuple[int, ...]
    output_stride: int
    put: Callable[[Backbone, int, int | None], Segmentor | Detector]


class Replay(Backbone):
    """A backbone that stands for another whose maps are known: heads are judged on it without computing the network.

    Args:
        levels: of the maps.
        spec: of the other.
        maps: what forward gives, whatever image it is given; None: it cannot be called.
        simple: the other's, where its maps are made from one.
        raw: as of the other.
    """

    def __init__(
        self,
        levels: tuple[Level, ...],
        spec: InputSpec,
        *,
        maps: tuple[Tensor, ...] | None = None,
        simple: torch.nn.Module | None = None,
        raw: bool = False,
    ) -> None:
        super().__init__()
        self.levels = levels
        self.spec = spec
        self.maps = maps
        self.raw = raw
        self.__dict__["simple"] = simple  # not a child: its parameters belong to the other

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        assert self.maps is not None
        return self.maps


def levels_for(head: Head, name: str) -> tuple[Level, ...]:
    """The levels of a network that a head gets.

    Args:
        head: of HEADS.
        name: of the network, as in ``pyramid``.

    Raises:
        ConfigError: there are none, and why.
    """
    if head.output_stride == 32:
        own = levels_of(name, strides=_OCTAVES)
        kept = tuple(level for level in own if level.stride in head.strides)
        if kept and all(level.stride in _OCTAVES for level in own):
            return kept  # the same as below without probing the network once more
    return levels_of(name, strides=head.strides, output_stride=head.output_stride)


def refusal(head: Head, name: str) -> str | None:
    """Why a head cannot stand on a network, as a user would be told; None: it can. Nothing is allocated.

    Args:
        head: of HEADS.
        name: of the network, as in ``pyramid``.
    """
    try:
        levels = levels_for(head, name)
    except ConfigError as error:
        return str(error)
    return complaint(head, levels)


@lru_cache(maxsize=4096)
def complaint(head: Head, levels: tuple[Level, ...]) -> str | None:
    """What a head says of a pyramid that it cannot stand on."""
    try:
        with torch.device("meta"):
            head.put(Replay(levels, InputSpec()), 2, None)
    except ConfigError as error:
        return str(error)
    return None


def built(head: Head, name: str, num_classes: int, *, width: int | None = None) -> Segmentor | Detector:
    """The model: what the wiring function of the head gives with its usual arguments.

    Args:
        head: of HEADS.
        name: of the network, as in ``pyramid``.
        num_classes: K.
        width: of the head's own layers; None: the usual.
    """
    body = pyramid(name, strides=head.strides, output_stride=head.output_stride)
    return head.put(body, num_classes, width)


def _segmentor(
    make: Callable[[tuple[Level, ...], int, int | None], Decoder], body: Backbone, num_classes: int, width: int | None
) -> Segmentor:
    return Segmentor(body, make(body.levels, num_classes, width), num_classes)


def _fcn(finest_stride: int, levels: tuple[Level, ...], num_classes: int, width: int | None) -> Decoder:
    return FCN(levels, num_classes, finest_stride=finest_stride, head_channels=width)


def _unet(levels: tuple[Level, ...], num_classes: int, width: int | None) -> Decoder:
    return UNet(levels, num_classes, channels=_falling(width))


def _deconvnet(levels: tuple[Level, ...], num_classes: int, width: int | None) -> Decoder:
    return DeconvNet(levels, num_classes, channels=_falling(width))


def _smp(decoder: str, levels: tuple[Level, ...], num_classes: int, width: int | None) -> Decoder:
    narrow = _SMP_WIDTHS[decoder](width) if width is not None and decoder in _SMP_WIDTHS else {}
    return SmpDecoder(levels, num_classes, name=decoder, options=narrow)


# The options that say how wide a decoder is; the others are narrow enough.
_SMP_WIDTHS: dict[str, Callable[[int], dict[str, Any]]] = {
    **dict.fromkeys(("Unet", "UnetPlusPlus", "MAnet"), lambda width: {"decoder_channels": [width] * 5}),
    **dict.fromkeys(("UPerNet", "DeepLabV3", "DeepLabV3Plus"), lambda width: {"decoder_channels": width}),
}


def _falling(width: int | None) -> tuple[int, ...]:
    return tuple((width or 256) // 2**i for i in range(5))


def _features(width: int | None, layout: str = "fpn") -> Features:
    return Features("single" if layout == "single" else "fpn", channels=width or 256)


def _regions(width: int | None) -> Regions:
    return Regions() if width is None else Regions(hidden=width, sampled=width)


def _faster_rcnn(layout: str, body: Backbone, num_classes: int, width: int | None) -> Detector:
    features = _features(width, layout)
    return faster_rcnn_on(body, num_classes, features=features, proposing=Proposing(), regions=_regions(width))


def _mask_rcnn(body: Backbone, num_classes: int, width: int | None) -> Detector:
    return mask_rcnn_on(body, num_classes, features=_features(width), proposing=Proposing(), regions=_regions(width))


def _fast_rcnn(body: Backbone, num_classes: int, width: int | None) -> Detector:
    return fast_rcnn_on(body, num_classes, features=_features(width), regions=_regions(width))


def _sppnet(body: Backbone, num_classes: int, width: int | None) -> Detector:
    return sppnet_on(body, num_classes, pyramids=Pyramids(hidden=width or 1024), regions=Regions())


def _retinanet(body: Backbone, num_classes: int, width: int | None) -> Detector:
    return retinanet_on(body, num_classes, features=_features(width), head=RetinaOptions(), limits=Limits())


def _heads() -> dict[str, Head]:
    def segmentation(
        title: str, strides: tuple[int, ...], make: Callable[..., Decoder], output_stride: int = 32
    ) -> Head:
        return Head(title, "segmentation", strides, output_stride, partial(_segmentor, make))

    def detection(title: str, strides: tuple[int, ...], put: Callable[..., Detector]) -> Head:
        return Head(title, "detection", strides, 32, put)

    fcn = {
        f"fcn{finest}s": segmentation(f"FCN-{finest}s", tuple(s for s in STRIDES if s >= finest), partial(_fcn, finest))
        for finest in (32, 16, 8)
    }
    decoders = {
        f"smp {name}": segmentation(
            f"smp {name}", demand(name).strides, partial(_smp, name), demand(name).output_stride
        )
        for name in DECODERS
    }
    return {
        **fcn,
        "unet": segmentation("U-Net", STRIDES, _unet),
        "deconvnet": segmentation("DeconvNet", STRIDES, _deconvnet),
        **decoders,
        "sppnet": detection("SPPnet", (C4_STRIDE,), _sppnet),
        "fast_rcnn": detection("Fast R-CNN", FPN_STRIDES, _fast_rcnn),
        "faster_rcnn c4": detection("Faster R-CNN, C4", (C4_STRIDE,), partial(_faster_rcnn, "single")),
        "faster_rcnn": detection("Faster R-CNN, FPN", FPN_STRIDES, partial(_faster_rcnn, "fpn")),
        "retinanet": detection("RetinaNet", RETINA_STRIDES, _retinanet),
        "mask_rcnn": detection("Mask R-CNN", FPN_STRIDES, _mask_rcnn),
    }


HEADS: Mapping[str, Head] = _heads()
