"""torchvision's detectors, part for part: with their published weights they find what they find there."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from visionapps.backbones import default_spec
from visionapps.backbones.norms import freeze_norms
from visionapps.backbones.torchvision_pyramid import TorchvisionPyramid, plan_torchvision
from visionapps.detection.anchors import Anchors
from visionapps.detection.base import Detector, Limits
from visionapps.detection.checkpoints import PUBLISHED, spec_of
from visionapps.detection.fpn import FPN, Extra
from visionapps.detection.mask_head import MaskHead
from visionapps.detection.pooling import RoIPooler
from visionapps.detection.retinanet import RetinaHead, RetinaNet, retina_anchors
from visionapps.detection.roi import BoxHead, ConvBoxHead, RoIHeads
from visionapps.detection.rpn import RPN, ProposalLimits
from visionapps.detection.two_stage import TwoStage
from visionapps.errors import ConfigError
from visionapps.models.recipes import remember
from visionapps.structures import InputSpec

_COCO = "coco"


@dataclass(frozen=True)
class _Kind:
    """What is different between them."""

    backbone: str = "torchvision/resnet50"
    taps: tuple[str, ...] = ("layer1", "layer2", "layer3", "layer4")
    eps: float = 1e-5  # of the backbone's batch norms; 0 where the weights were trained with none
    second: bool = False  # the second version of Li et al. 2021, arXiv 2111.11429: norms and convolutions in the heads
    masks: bool = False
    extra: Extra = "pool"
    sizes: tuple[float, ...] | None = None  # of the anchors, on every map; None: 32 to 512, one per map
    pooled: int = 4  # from how many maps
    limits: ProposalLimits = field(default_factory=ProposalLimits)
    retina: bool = False


# The two maps of its pyramid have one stride: the first and the last block of the last stage.
_MOBILE = {
    "backbone": "torchvision/mobilenet_v3_large",
    "taps": ("features.13", "features.16"),
    "sizes": (32.0, 64.0, 128.0, 256.0, 512.0),
    "pooled": 1,
}
_DEEP = ("layer2", "layer3", "layer4")

KINDS: Mapping[str, _Kind] = {
    "fasterrcnn_resnet50_fpn": _Kind(eps=0.0),
    "fasterrcnn_resnet50_fpn_v2": _Kind(second=True),
    "fasterrcnn_mobilenet_v3_large_fpn": _Kind(**_MOBILE, limits=ProposalLimits(score=0.05)),  # type: ignore[arg-type]
    "fasterrcnn_mobilenet_v3_large_320_fpn": _Kind(
        **_MOBILE,  # type: ignore[arg-type]
        limits=ProposalLimits(before=(2000, 150), after=(2000, 150), score=0.05),
    ),
    "maskrcnn_resnet50_fpn": _Kind(eps=0.0, masks=True),
    "maskrcnn_resnet50_fpn_v2": _Kind(second=True, masks=True),
    "retinanet_resnet50_fpn": _Kind(eps=0.0, taps=_DEEP, extra="convs", retina=True),
    "retinanet_resnet50_fpn_v2": _Kind(second=True, taps=_DEEP, extra="convs_of_input", retina=True),
}


@remember
def torchvision_detector(
    model: str,
    num_classes: int,
    *,
    weights: str | None = None,
    spec: InputSpec | None = None,
    checkpoint: str | None = None,
    limits: Limits = Limits(),  # noqa: B008
) -> Detector:
    """A detector of torchvision, part for part, for weights that were trained there on COCO.

    Args:
        model: fasterrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2, fasterrcnn_mobilenet_v3_large_fpn,
            fasterrcnn_mobilenet_v3_large_320_fpn, maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2,
            retinanet_resnet50_fpn or retinanet_resnet50_fpn_v2.
        num_classes: K, background not counted.
        weights: of the backbone: package, hub, a file, or random (None); loaded on request.
        spec: bands and normalisation of the input; None: those of the weights.
        checkpoint: the whole detector: its file, a bundle of ours, or coco for the published one; the rows of classes
            with the same names are kept. Its photos were scaled to 800 pixels, and 1333 at the most.
        limits: which candidates become detections.
    """
    if model not in KINDS:
        raise ConfigError(f"torchvision_detector: {model!r} is none of {', '.join(KINDS)}")
    kind = KINDS[model]
    weights = None if weights == "random" else weights
    if checkpoint is not None and weights is not None:
        raise ConfigError(f"weights {weights!r} and checkpoint {checkpoint!r}: give one of them")
    spec = spec or (spec_of(checkpoint) if checkpoint else None) or default_spec(kind.backbone, weights)
    plan = plan_torchvision(kind.backbone, bands=len(spec.bands), taps=kind.taps)
    body = TorchvisionPyramid(plan, spec=spec, weights=weights)
    neck = FPN(body.levels, 256, kind.extra, batch_norm=kind.second and not kind.retina)
    detector = _retina(body, neck, num_classes, kind) if kind.retina else _two_stage(body, neck, num_classes, kind)
    detector.limits = limits
    detector.checkpoint = PUBLISHED + model if checkpoint == _COCO else checkpoint
    _set_eps(body, kind.eps)
    if weights is not None or checkpoint is not None:
        freeze_norms(body if checkpoint is None else detector)
    return detector


def _two_stage(body: TorchvisionPyramid, neck: FPN, num_classes: int, kind: _Kind) -> Detector:
    strides = tuple(level.stride for level in neck.levels)
    sizes = tuple(kind.sizes or (8.0 * stride,) for stride in strides)
    rpn = RPN(neck.levels, Anchors(strides, sizes), convs=1 + kind.second, limits=kind.limits)
    head = ConvBoxHead(256) if kind.second else BoxHead(256)
    heads = RoIHeads(RoIPooler(strides[: kind.pooled]), head, num_classes)
    masks = MaskHead(RoIPooler(strides[: kind.pooled], 14), 256, num_classes) if kind.masks else None
    return TwoStage(body, neck, heads, rpn=rpn, mask_head=masks)


def _retina(body: TorchvisionPyramid, neck: FPN, num_classes: int, kind: _Kind) -> Detector:
    anchors = retina_anchors([level.stride for level in neck.levels])
    head = RetinaHead(256, anchors, num_classes, group_norm=kind.second)
    return RetinaNet(body, neck, head, box_loss="giou" if kind.second else "l1", candidates=1000)


def _set_eps(body: nn.Module, eps: float) -> None:
    for layer in body.modules():
        if isinstance(layer, _BatchNorm):
            layer.eps = eps
