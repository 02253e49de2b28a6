"""How parts become a detector: one short function per kind, with modern defaults. What the papers of their names did
stands in visionapps.models.papers."""

from collections.abc import Sequence

from visionapps.backbones import pyramid
from visionapps.backbones.base import Backbone
from visionapps.backbones.norms import Norms, freeze_norms
from visionapps.backbones.simple_pyramid import SimplePyramid
from visionapps.detection.anchors import Anchors
from visionapps.detection.base import Detector, Limits
from visionapps.detection.checkpoints import spec_of
from visionapps.detection.fpn import FPN, Extra, Neck, SingleLevel
from visionapps.detection.mask_head import MaskHead
from visionapps.detection.matching import Matcher
from visionapps.detection.pooling import RoIPooler
from visionapps.detection.retinanet import RetinaHead, RetinaNet, retina_anchors
from visionapps.detection.roi import BoxHead, ConvBoxHead, RoIHeads
from visionapps.detection.rpn import RPN
from visionapps.detection.sampling import BalancedSampler
from visionapps.detection.sppnet import PyramidHead, PyramidPooler, SPPNet
from visionapps.detection.two_stage import TwoStage
from visionapps.errors import ConfigError
from visionapps.models.options import Features, Proposing, Pyramids, Regions, RetinaOptions
from visionapps.models.recipes import remember
from visionapps.structures import InputSpec

FPN_STRIDES = (4, 8, 16, 32)  # maps of the backbone that a feature pyramid joins
RETINA_STRIDES = (8, 16, 32)
C4_STRIDE = 16  # of the one map of Ren et al. 2015
_PER_STRIDE = 8  # anchors of 32 to 512 px on strides 4 to 64, as in Lin et al. 2017, section 4.1
_SINGLE_SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)  # of one map: all sizes that a pyramid would have


@remember
def faster_rcnn(
    backbone: str,
    num_classes: int,
    *,
    weights: str | None = None,
    spec: InputSpec | None = None,
    checkpoint: str | None = None,
    features: Features = Features(),  # noqa: B008
    proposing: Proposing = Proposing(),  # noqa: B008
    regions: Regions = Regions(),  # noqa: B008
) -> Detector:
    """Faster R-CNN: a network proposes regions, a second stage classifies them (Ren et al., 2015; Lin et al., 2017).

    Args:
        backbone: of timm or "torchvision/..."; `visionapps models --backbones` lists them.
        num_classes: K, background not counted.
        weights: of the backbone: package, hub, a file, or random (None); loaded on request.
        spec: bands and normalisation of the input; None: those of the weights.
        checkpoint: a whole detector to begin from, in place of weights: a bundle of ours or a file of torchvision.
        features: from the backbone to the maps that heads see.
        proposing: anchors and the first stage.
        regions: the second stage.
    """
    body = body_of(backbone, weights, spec, checkpoint, features)
    model = faster_rcnn_on(body, num_classes, features=features, proposing=proposing, regions=regions)
    return begin_from(model, checkpoint, features.norms)


def faster_rcnn_on(
    body: Backbone, num_classes: int, *, features: Features, proposing: Proposing, regions: Regions
) -> TwoStage:
    """Faster R-CNN on a pyramid that stands already; arguments as in ``faster_rcnn``."""
    neck = _neck(body, features, "pool")
    heads = _roi_heads(body, neck, num_classes, regions, features)
    return TwoStage(body, neck, heads, rpn=_rpn(body, neck, proposing, features), limits=regions.limits)


@remember
def mask_rcnn(
    backbone: str,
    num_classes: int,
    *,
    weights: str | None = None,
    spec: InputSpec | None = None,
    checkpoint: str | None = None,
    features: Features = Features(),  # noqa: B008
    proposing: Proposing = Proposing(),  # noqa: B008
    regions: Regions = Regions(),  # noqa: B008
) -> Detector:
    """Mask R-CNN: Faster R-CNN that draws each object, too (He et al., 2017).

    Args:
        backbone: of timm or "torchvision/..."; `visionapps models --backbones` lists them.
        num_classes: K, background not counted.
        weights: of the backbone: package, hub, a file, or random (None); loaded on request.
        spec: bands and normalisation of the input; None: those of the weights.
        checkpoint: a whole detector to begin from, in place of weights: a bundle of ours or a file of torchvision.
        features: from the backbone to the maps that heads see.
        proposing: anchors and the first stage.
        regions: the second stage; masks have four times the side of its bins.
    """
    body = body_of(backbone, weights, spec, checkpoint, features)
    model = mask_rcnn_on(body, num_classes, features=features, proposing=proposing, regions=regions)
    return begin_from(model, checkpoint, features.norms)


def mask_rcnn_on(
    body: Backbone, num_classes: int, *, features: Features, proposing: Proposing, regions: Regions
) -> TwoStage:
    """Mask R-CNN on a pyramid that stands already; arguments as in ``mask_rcnn``."""
    neck = _neck(body, features, "pool")
    heads = _roi_heads(body, neck, num_classes, regions, features)
    masks = MaskHead(_pooler(body, regions, 2 * regions.size, features), neck.levels[0].channels, num_classes)
    rpn = _rpn(body, neck, proposing, features)
    return TwoStage(body, neck, heads, rpn=rpn, mask_head=masks, limits=regions.limits)


@remember
def fast_rcnn(
    backbone: str,
    num_classes: int,
    *,
    weights: str | None = None,
    spec: InputSpec | None = None,
    checkpoint: str | None = None,
    features: Features = Features(),  # noqa: B008
    regions: Regions = Regions(),  # noqa: B008
) -> Detector:
    """Fast R-CNN: classifies regions that come with the images, from a file of proposals (Girshick, 2015).

    Args:
        backbone: of timm or "torchvision/..."; `visionapps models --backbones` lists them.
        num_classes: K, background not counted.
        weights: of the backbone: package, hub, a file, or random (None); loaded on request.
        spec: bands and normalisation of the input; None: those of the weights.
        checkpoint: a whole detector to begin from, in place of weights: a bundle of ours or a file of torchvision.
        features: from the backbone to the maps that the head sees.
        regions: what happens to a proposal.
    """
    body = body_of(backbone, weights, spec, checkpoint, features)
    model = fast_rcnn_on(body, num_classes, features=features, regions=regions)
    return begin_from(model, checkpoint, features.norms)


def fast_rcnn_on(body: Backbone, num_classes: int, *, features: Features, regions: Regions) -> TwoStage:
    """Fast R-CNN on a pyramid that stands already; arguments as in ``fast_rcnn``."""
    neck = _neck(body, features, "none")
    return TwoStage(body, neck, _roi_heads(body, neck, num_classes, regions, features), limits=regions.limits)


@remember
def sppnet(
    backbone: str,
    num_classes: int,
    *,
    weights: str | None = None,
    spec: InputSpec | None = None,
    checkpoint: str | None = None,
    stride: int = C4_STRIDE,
    pyramids: Pyramids = Pyramids(),  # noqa: B008
    regions: Regions = Regions(),  # noqa: B008
) -> Detector:
    """SPPnet: spatial pyramid pooling of regions on features that never learn, from a file of proposals (He, 2014).

    Args:
        backbone: of timm or "torchvision/..."; `visionapps models --backbones` lists them.
        num_classes: K, background not counted.
        weights: of the backbone: package, hub, a file, or random (None); loaded on request.
        spec: bands and normalisation of the input; None: those of the weights.
        checkpoint: a whole detector to begin from, in place of weights: a bundle of ours.
        stride: of the map that is pooled from.
        pyramids: pooling and the layers after it.
        regions: of these, which proposals count and which become detections; the rest is not used.
    """
    features = Features(layout="single", strides=(stride,))
    body = body_of(backbone, weights, spec, checkpoint, features)
    return begin_from(sppnet_on(body, num_classes, pyramids=pyramids, regions=regions), checkpoint, features.norms)


def sppnet_on(body: Backbone, num_classes: int, *, pyramids: Pyramids, regions: Regions) -> SPPNet:
    """SPPnet on the last map of a pyramid that stands already; arguments as in ``sppnet``."""
    neck = SingleLevel(body.levels, body.levels[-1].stride)
    (level,) = neck.levels
    pooler = PyramidPooler(level.stride, level.channels, pyramids.bins, scales=pyramids.scales)
    head = PyramidHead(pooler.width, pyramids.hidden, dropout=pyramids.dropout)
    heads = RoIHeads(pooler, head, num_classes, matcher=_matcher(regions), sampler=_sampler(regions))
    return SPPNet(body, neck, heads, limits=regions.limits)


@remember
def retinanet(
    backbone: str,
    num_classes: int,
    *,
    weights: str | None = None,
    spec: InputSpec | None = None,
    checkpoint: str | None = None,
    features: Features = Features(),  # noqa: B008
    head: RetinaOptions = RetinaOptions(),  # noqa: B008
    limits: Limits = Limits(),  # noqa: B008
) -> Detector:
    """RetinaNet: one stage, every anchor of every map judged at once, with focal loss (Lin et al., 2017).

    Args:
        backbone: of timm or "torchvision/..."; `visionapps models --backbones` lists them.
        num_classes: K.
        weights: of the backbone: package, hub, a file, or random (None); loaded on request.
        spec: bands and normalisation of the input; None: those of the weights.
        checkpoint: a whole detector to begin from, in place of weights: a bundle of ours or a file of torchvision.
        features: from the backbone to the maps that the head sees; strides 4, 8, 16, 32 for objects below 20 px.
        head: what judges the anchors.
        limits: which anchors become detections.
    """
    body = body_of(backbone, weights, spec, checkpoint, features, usual=RETINA_STRIDES)
    model = retinanet_on(body, num_classes, features=features, head=head, limits=limits)
    return begin_from(model, checkpoint, features.norms)


def retinanet_on(
    body: Backbone, num_classes: int, *, features: Features, head: RetinaOptions, limits: Limits
) -> RetinaNet:
    """RetinaNet on a pyramid that stands already; arguments as in ``retinanet``."""
    neck = _neck(body, features, head.extra)
    anchors = retina_anchors([level.stride for level in neck.levels], per_stride=head.per_stride)
    width = neck.levels[0].channels
    towers = RetinaHead(width, anchors, num_classes, convs=head.convs, group_norm=head.group_norm)
    return RetinaNet(body, neck, towers, limits=limits, box_loss=head.box_loss)


def body_of(
    name: str,
    weights: str | None,
    spec: InputSpec | None,
    checkpoint: str | None,
    features: Features,
    *,
    usual: Sequence[int] = FPN_STRIDES,
) -> Backbone:
    """The backbone of a detector, with norms that do not learn where they come with weights.

    Args:
        name: of the backbone.
        weights: of the backbone, or None.
        spec: None: that of the weights or of the checkpoint.
        checkpoint: of a whole detector, or None.
        features: which maps, and what becomes of norms.
        usual: strides of a pyramid where features names none.
    """
    weights = None if weights == "random" else weights
    if checkpoint is not None and weights is not None:
        raise ConfigError(
            f"weights {weights!r} and checkpoint {checkpoint!r}: a checkpoint brings the weights of the backbone, too; "
            "give one of them"
        )
    if checkpoint is not None and spec is None:
        spec = spec_of(checkpoint)
    strides = features.strides or (usual if features.layout == "fpn" else (C4_STRIDE,))
    body = pyramid(name, spec=spec, weights=weights, strides=strides)
    if features.norms == "frozen" and (weights is not None or checkpoint is not None):
        freeze_norms(body)
    return body


def _neck(body: Backbone, features: Features, extra: Extra) -> Neck:
    if features.layout == "single":
        return SingleLevel(body.levels, body.levels[-1].stride, level_norms=body.raw)
    return FPN(body.levels, features.channels, extra, batch_norm=features.batch_norm, level_norms=body.raw)


def _in_patches(body: Backbone) -> bool:
    """Whether position 0 of a map looks at the middle of its cell, and not at pixel 0."""
    return isinstance(getattr(body, "simple", None), SimplePyramid)


def _rpn(body: Backbone, neck: Neck, proposing: Proposing, features: Features) -> RPN:
    strides = tuple(level.stride for level in neck.levels)
    sizes = proposing.sizes
    if sizes is None:
        single = features.layout == "single"
        sizes = (_SINGLE_SIZES,) if single else tuple((float(_PER_STRIDE * stride),) for stride in strides)
    offset = proposing.offset if proposing.offset is not None else 0.5 * _in_patches(body)
    return RPN(
        neck.levels,
        Anchors(strides, sizes, proposing.ratios, offset),
        convs=proposing.convs,
        hidden=proposing.hidden,
        sampler=BalancedSampler(proposing.sampled, 0.5),
        limits=proposing.limits,
    )


def _pooler(body: Backbone, regions: Regions, size: int, features: Features) -> RoIPooler:
    # Not from maps that a neck adds: the region of a coarse one would be as large as the image.
    levels = body.levels[-1:] if features.layout == "single" else body.levels
    return RoIPooler(tuple(level.stride for level in levels), size, regions.pool, aligned=_in_patches(body))


def _roi_heads(body: Backbone, neck: Neck, num_classes: int, regions: Regions, features: Features) -> RoIHeads:
    channels = neck.levels[0].channels
    kind = BoxHead if regions.head == "linear" else ConvBoxHead
    return RoIHeads(
        _pooler(body, regions, regions.size, features),
        kind(channels, regions.size, hidden=regions.hidden),
        num_classes,
        matcher=_matcher(regions),
        sampler=_sampler(regions),
    )


def _matcher(regions: Regions) -> Matcher:
    return Matcher(regions.background[1], regions.background)


def _sampler(regions: Regions) -> BalancedSampler:
    return BalancedSampler(regions.sampled, regions.objects)


def begin_from(model: Detector, checkpoint: str | None, norms: Norms = "frozen") -> Detector:
    """The model, which will load the checkpoint when it is asked to; its norms are then kept, as those of weights."""
    model.checkpoint = checkpoint
    if checkpoint is not None and norms == "frozen":
        freeze_norms(model)
    return model
