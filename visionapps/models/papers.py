"""Detectors with the settings of the papers that are named after them: each number once, with its source.

Scaling is the dataset's part: 600 pixels on the shorter side and at most 1000 on the longer one (view.rescale), at five
scales for SPPnet. Departures, here as everywhere: any backbone; fc6 and fc7 begin with random numbers, where the papers
take those of VGG-16; nothing is frozen by the paper's layer names (FreezeBackbone does that).
"""

from visionapps.backbones.base import Backbone
from visionapps.detection.anchors import Anchors
from visionapps.detection.base import Detector, Limits
from visionapps.detection.fpn import Neck, SingleLevel
from visionapps.detection.matching import Matcher
from visionapps.detection.pooling import RoIPooler
from visionapps.detection.roi import RoIHeads
from visionapps.detection.rpn import RPN, ProposalLimits
from visionapps.detection.sampling import BalancedSampler
from visionapps.detection.sppnet import BINS, SCALES, PyramidHead, PyramidPooler, SPPNet
from visionapps.detection.two_stage import TwoStage
from visionapps.models.detection import begin_from, body_of
from visionapps.models.options import Features
from visionapps.models.recipes import remember
from visionapps.structures import InputSpec

STRIDE = 16  # of the last convolutional map, conv5_3 of VGG-16: Ren et al. 2015, section 3.3
BINS_OF_ROI = 7  # Girshick 2015, section 2.1, for VGG-16
HIDDEN, DROPOUT = 4096, 0.5  # fc6 and fc7 of VGG-16, as it was trained: Simonyan and Zisserman 2015, section 3.1
OBJECT, BACKGROUND = 0.5, (0.1, 0.5)  # Girshick 2015, section 2.3
OBJECTS = 0.25  # part of the sample that are objects; the same section
REGIONS = 64  # 128 regions from 2 images; the same section
REGIONS_OF_RPN = 128  # of one image: config.py of the authors' code, as Ren et al. trained
NMS = 0.3  # of detections: He et al. 2014, section 4.1, and the code of the two others
SCORE = 0.05  # below it nothing is kept: config.py of the authors' code
RPN_HIDDEN = 512  # for VGG-16: Ren et al. 2015, section 3.1
ANCHOR_SIZES, ANCHOR_RATIOS = (128.0, 256.0, 512.0), (0.5, 1.0, 2.0)  # section 3.1.1
RPN_OBJECT, RPN_BACKGROUND = 0.7, (0.0, 0.3)  # section 3.1.2
RPN_SAMPLE, RPN_OBJECTS = 256, 0.5  # section 3.1.3
BORDER = 0.0  # anchors that cross the border are left out of training; section 3.3
PROPOSALS = ProposalLimits(
    before=(12000, 6000),  # config.py of the authors' code
    after=(2000, 300),  # section 3.3
    nms=0.7,  # section 3.3
    least_side=16.0,  # config.py: at the scale of the network's input
)


@remember
def faster_rcnn_2015(
    backbone: str,
    num_classes: int,
    *,
    weights: str | None = None,
    spec: InputSpec | None = None,
    checkpoint: str | None = None,
) -> Detector:
    """Faster R-CNN as published: one map, nine anchors per position, RoI max pooling, fc6 and fc7 (Ren et al., 2015).

    Args:
        backbone: vgg16 in the paper; any that has a map of stride 16.
        num_classes: K, background not counted.
        weights: of the backbone: package, hub, a file, or random (None); loaded on request.
        spec: bands and normalisation of the input; None: those of the weights.
        checkpoint: a bundle to begin from, in place of weights.
    """
    body, neck = _single(backbone, weights, spec, checkpoint)
    rpn = RPN(
        neck.levels,
        Anchors((neck.levels[0].stride,), (ANCHOR_SIZES,), ANCHOR_RATIOS),
        hidden=RPN_HIDDEN,
        matcher=Matcher(RPN_OBJECT, RPN_BACKGROUND, keep_best=True),
        sampler=BalancedSampler(RPN_SAMPLE, RPN_OBJECTS),
        limits=PROPOSALS,
        border=BORDER,
    )
    heads = _fast_heads(neck, num_classes, REGIONS_OF_RPN)
    model = TwoStage(body, neck, heads, rpn=rpn, limits=Limits(SCORE, NMS))
    return begin_from(model, checkpoint)


@remember
def fast_rcnn_2015(
    backbone: str,
    num_classes: int,
    *,
    weights: str | None = None,
    spec: InputSpec | None = None,
    checkpoint: str | None = None,
) -> Detector:
    """Fast R-CNN as published: one map, proposals from outside, RoI max pooling, fc6 and fc7 (Girshick, 2015).

    Args:
        backbone: vgg16 in the paper; any that has a map of stride 16.
        num_classes: K, background not counted.
        weights: of the backbone: package, hub, a file, or random (None); loaded on request.
        spec: bands and normalisation of the input; None: those of the weights.
        checkpoint: a bundle to begin from, in place of weights.
    """
    body, neck = _single(backbone, weights, spec, checkpoint)
    model = TwoStage(body, neck, _fast_heads(neck, num_classes, REGIONS), limits=Limits(SCORE, NMS))
    return begin_from(model, checkpoint)


@remember
def sppnet_2014(
    backbone: str,
    num_classes: int,
    *,
    weights: str | None = None,
    spec: InputSpec | None = None,
    checkpoint: str | None = None,
) -> Detector:
    """SPPnet as published: fixed features at five scales, pyramids of 50 bins, fc6 and fc7 (He et al., 2014).

    Args:
        backbone: any that has a map of stride 16.
        num_classes: K, background not counted.
        weights: of the backbone: package, hub, a file, or random (None); loaded on request.
        spec: bands and normalisation of the input; None: those of the weights.
        checkpoint: a bundle to begin from, in place of weights.
    """
    body, neck = _single(backbone, weights, spec, checkpoint)
    (level,) = neck.levels
    pooler = PyramidPooler(level.stride, level.channels, BINS, scales=SCALES)
    head = PyramidHead(pooler.width, HIDDEN, dropout=DROPOUT)
    model = SPPNet(body, neck, _heads(pooler, head, num_classes, REGIONS), limits=Limits(SCORE, NMS))
    return begin_from(model, checkpoint)


def _single(
    backbone: str, weights: str | None, spec: InputSpec | None, checkpoint: str | None
) -> tuple[Backbone, Neck]:
    body = body_of(backbone, weights, spec, checkpoint, Features(layout="single", strides=(STRIDE,)))
    return body, SingleLevel(body.levels, body.levels[-1].stride)


def _fast_heads(neck: Neck, num_classes: int, regions: int) -> RoIHeads:
    (level,) = neck.levels
    pooler = RoIPooler((level.stride,), BINS_OF_ROI, "max")
    head = PyramidHead(level.channels * BINS_OF_ROI**2, HIDDEN, dropout=DROPOUT)
    return _heads(pooler, head, num_classes, regions)


def _heads(pooler: RoIPooler | PyramidPooler, head: PyramidHead, num_classes: int, regions: int) -> RoIHeads:
    # Codes in units of 0.1 and 0.2, the coding's own, are the normalised targets of section 2.3, where the loss turns
    # from square to linear at 1.
    return RoIHeads(
        pooler,
        head,
        num_classes,
        matcher=Matcher(OBJECT, BACKGROUND),
        sampler=BalancedSampler(regions, OBJECTS),
        beta=1.0,
    )
