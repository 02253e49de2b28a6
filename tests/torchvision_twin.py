"""Small detectors of ours and torchvision's with the same weights, parts and settings: the independent reference."""

from collections import OrderedDict

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from visionapps.backbones.base import Backbone
from visionapps.boxes import Batch, Targets
from visionapps.detection.anchors import Anchors
from visionapps.detection.base import Limits
from visionapps.detection.fpn import FPN
from visionapps.detection.mask_head import MaskHead
from visionapps.detection.pooling import RoIPooler
from visionapps.detection.roi import BoxHead, RoIHeads
from visionapps.detection.rpn import RPN
from visionapps.detection.sampling import BalancedSampler
from visionapps.detection.two_stage import TwoStage
from visionapps.testing import TinyBackbone

SIZES = ((32,), (64,), (128,), (256,), (512,))
EVERYTHING = 10**6  # a sampler of this size takes all there is: nothing is left to chance
WIDTH, HIDDEN, CLASSES = 16, 32, 3


class FourLevels(Backbone):
    """Strides 4 to 32."""

    def __init__(self) -> None:
        super().__init__()
        self.body = TinyBackbone()
        self.spec, self.levels = self.body.spec, self.body.levels[1:]

    def forward(self, image):
        return self.body(image)[1:]


class _Features(nn.Module):
    """Backbone and neck of ours as torchvision wants them."""

    out_channels = WIDTH

    def __init__(self, backbone, neck) -> None:
        super().__init__()
        self.backbone, self.neck = backbone, neck

    def forward(self, image):
        return OrderedDict(zip(("0", "1", "2", "3", "pool"), self.neck(self.backbone(image)), strict=True))


def ours(*, masks=False, proposals=False, limits=None, everything=True, seed=0) -> TwoStage:
    """A tiny Faster R-CNN (Mask R-CNN with masks, Fast R-CNN with proposals) that finds something, if only noise."""
    torch.manual_seed(seed)
    backbone = FourLevels()
    neck = FPN(backbone.levels, WIDTH, "pool")
    strides = tuple(level.stride for level in neck.levels)
    rpn_sampler, roi_sampler = (BalancedSampler(EVERYTHING, f) for f in (0.5, 0.25)) if everything else (None, None)
    heads = RoIHeads(RoIPooler(strides[:4]), BoxHead(WIDTH, 7, HIDDEN), CLASSES, sampler=roi_sampler)
    model = TwoStage(
        backbone,
        neck,
        heads,
        rpn=None if proposals else RPN(neck.levels, Anchors(strides, SIZES), sampler=rpn_sampler),
        mask_head=MaskHead(RoIPooler(strides[:4], 14), WIDTH, CLASSES, hidden=8) if masks else None,
        limits=limits or Limits(0.3, 0.5, 100),
    )
    lively = [heads.classes, heads.deltas] + ([] if model.rpn is None else [model.rpn.objectness, model.rpn.deltas])
    for layer, scale in zip(lively, (1.0, 0.3, 1.0, 0.3), strict=False):
        nn.init.normal_(layer.weight, std=scale)
    return model.eval()


def torchvisions(model: TwoStage) -> FasterRCNN:
    """torchvision's detector with the very weights of ours: backbone and neck are shared, heads are copied."""
    roi = model.roi_heads
    settings = {
        "image_mean": model.spec.mean,
        "image_std": model.spec.std,
        "rpn_anchor_generator": AnchorGenerator(SIZES, ((0.5, 1.0, 2.0),) * 5),
        "box_roi_pool": MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
        "box_head": TwoMLPHead(WIDTH * 49, HIDDEN),
        "rpn_batch_size_per_image": model.rpn.sampler.size,
        "box_batch_size_per_image": roi.sampler.size,
        "box_score_thresh": model.limits.score,
        "box_nms_thresh": model.limits.nms,
        "box_detections_per_img": model.limits.most,
    }
    build = FasterRCNN
    if model.mask_head is not None:
        build = MaskRCNN
        settings["mask_head"] = MaskRCNNHeads(WIDTH, (8,) * 4, 1)
        settings["mask_predictor"] = MaskRCNNPredictor(8, 8, CLASSES + 1)
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

    settings["box_predictor"] = FastRCNNPredictor(HIDDEN, CLASSES + 1)
    twin = build(_Features(model.backbone, model.neck), **settings)
    twin.transform.resize = lambda image, target=None: (image, target)  # the hidden resize
    pairs = [
        (twin.rpn.head.conv[0][0], model.rpn.convs[0]),
        (twin.rpn.head.cls_logits, model.rpn.objectness),
        (twin.rpn.head.bbox_pred, model.rpn.deltas),
        (twin.roi_heads.box_head.fc6, roi.head.fc6),
        (twin.roi_heads.box_head.fc7, roi.head.fc7),
        (twin.roi_heads.box_predictor.cls_score, roi.classes),
    ]
    if model.mask_head is not None:
        pairs += [(twin.roi_heads.mask_head[i][0], conv) for i, conv in enumerate(model.mask_head.convs)]
        pairs.append((twin.roi_heads.mask_predictor.conv5_mask, model.mask_head.upsample))
        _behind_background(twin.roi_heads.mask_predictor.mask_fcn_logits, model.mask_head.masks, 1)
    for theirs, own in pairs:
        theirs.load_state_dict(own.state_dict())
    _behind_background(twin.roi_heads.box_predictor.bbox_pred, roi.deltas, 4)
    return twin.eval()


def _behind_background(theirs, own, rows) -> None:
    """torchvision keeps rows for background that nobody ever reads."""
    with torch.no_grad():
        theirs.weight[rows:], theirs.bias[rows:] = own.weight, own.bias


def batch(sizes=((128, 192), (96, 150)), *, masks=False, seed=1, objects=3) -> Batch:
    """Noise with boxes in it; the padded size is the greatest of sizes."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (max(size[i] for size in sizes) for i in (0, 1))
    image = torch.zeros(len(sizes), 3, height, width, dtype=torch.uint8)
    targets = []
    for i, (h, w) in enumerate(sizes):
        image[i, :, :h, :w] = torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8)
        corner = torch.rand(objects, 2, generator=generator) * torch.tensor([w * 0.5, h * 0.5])
        side = (0.1 + 0.4 * torch.rand(objects, 2, generator=generator)) * torch.tensor([w, h])
        boxes = torch.cat((corner, corner + side), 1)
        outlines = torch.zeros(objects, h, w, dtype=torch.uint8)
        for outline, (x0, y0, x1, y1) in zip(outlines, boxes.long().tolist(), strict=True):
            outline[y0:y1, x0 : x1 - (x1 - x0) // 3] = 1
        labels = torch.randint(0, CLASSES, (objects,), generator=generator)
        targets.append(Targets(boxes, labels, torch.zeros(objects, dtype=torch.bool), outlines if masks else None))
    count = len(sizes)
    return Batch(image, tuple(sizes), tuple(targets), None, tuple(range(count)), ((0, 0),) * count, (1.0,) * count)


def for_torchvision(given: Batch):
    """(images, targets) as torchvision takes them."""
    images = [image[:, :h, :w] / 255 for image, (h, w) in zip(given.image, given.sizes, strict=True)]
    targets = []
    for target in given.targets:
        known = {"boxes": target.boxes, "labels": target.labels + 1}
        targets.append(known if target.masks is None else known | {"masks": target.masks})
    return images, targets
