"""The outline of what was found: a small mask per region, and its way into the image.

Shapes: K classes, R regions, S samples of one image, m side of a small mask, h w one image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.boxes import Detections
from visionapps.detection.base import in_full
from visionapps.detection.roi import RoISample
from visionapps.detection.truth import Truth

_INSIDE = 0.5  # probability from which a pixel belongs to the object


class MaskHead(nn.Module):
    """A small fully convolutional network on each region, with one mask per class.

    Args:
        pooler: of the interface that visionapps.detection.pooling describes, giving (R, C, S, S); masks have side 2 S.
        channels: C.
        num_classes: K.
        convs: 3 x 3 convolutions before the deconvolution.
        hidden: their width.

    Source: He et al., Mask R-CNN, 2017, figure 4, right.
    """

    def __init__(
        self, pooler: nn.Module, channels: int, num_classes: int, *, convs: int = 4, hidden: int = 256
    ) -> None:
        super().__init__()
        self.pooler = pooler
        self.convs = nn.ModuleList(nn.Conv2d(hidden if i else channels, hidden, 3, padding=1) for i in range(convs))
        self.upsample = nn.ConvTranspose2d(hidden if convs else channels, hidden, 2, stride=2)
        self.masks = nn.Conv2d(hidden, num_classes, 1)
        for layer in (*self.convs, self.upsample, self.masks):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[Tensor], boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Logits (R, K, m, m) float32 of each class in each box."""
        blocks = self.pooler(features, boxes, sizes)
        for conv in self.convs:
            blocks = F.relu(conv(blocks))
        logits: Tensor = self.masks(F.relu(self.upsample(blocks)))
        return logits.float()

    def losses(
        self,
        features: Sequence[Tensor],
        samples: Sequence[RoISample],
        truths: Sequence[Truth],
        sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """``mask``: mean binary cross-entropy over the pixels of the small masks of the objects drawn, each of its own
        class alone (section 3)."""
        boxes = [sample.boxes[: sample.found] for sample in samples]
        logits = self(features, boxes, sizes)
        with in_full(logits):
            if not len(logits):
                return {"mask": logits.sum()}  # 0, with gradients
            labels = torch.cat([t.labels[s.matched] for s, t in zip(samples, truths, strict=True)])
            own = logits[torch.arange(len(labels), device=labels.device), labels]
            wanted = torch.cat(
                [crop_masks(t, s.matched, b, own.shape[-1]) for t, s, b in zip(truths, samples, boxes, strict=True)]
            )
            return {"mask": F.binary_cross_entropy_with_logits(own, wanted)}

    @torch.no_grad()
    def detect(
        self, features: Sequence[Tensor], found: Sequence[Detections], sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """The same detections with masks of the whole image; on the CPU image by image, as boxes are."""
        complete = []
        for i, (each, size) in enumerate(zip(found, sizes, strict=True)):
            logits = self([feature[i : i + 1] for feature in features], [each.boxes], [size])
            with in_full(logits):
                own = logits[torch.arange(len(each.labels), device=logits.device), each.labels].sigmoid()
                complete.append(each._replace(masks=paste_masks(own, each.boxes, size)))
        return complete


def crop_masks(truth: Truth, matched: Tensor, boxes: Tensor, side: int) -> Tensor:
    """What of the mask of the matched object each box sees: (S, side, side) in [0, 1].

    Args:
        truth: with masks (N, h, w).
        matched: (S,) which of its objects belongs to each box.
        boxes: (S, 4).
        side: of the small masks.
    """
    from torchvision.ops import roi_align

    if not len(boxes) or truth.masks is None:
        return boxes.new_zeros((0, side, side))
    # Only masks that are needed become float: 128 at the most, of perhaps thousands.
    used, place = torch.unique(matched, return_inverse=True)
    rois = torch.cat((place[:, None].float(), boxes), 1)
    small: Tensor = roi_align(truth.masks[used][:, None].float(), rois, (side, side))
    return small[:, 0]


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Small masks, scaled bilinearly to their boxes, as masks of the whole image.

    Args:
        masks: (N, m, m) probabilities.
        boxes: (N, 4) in pixels of the image.
        size: (h, w) of the image.

    Returns:
        (N, h, w) bool.
    """
    height, width = size
    pasted = torch.zeros((len(masks), height, width), dtype=torch.bool, device=masks.device)
    # A border of nothing lets a mask end inside its box; the box grows with it. Whole pixels, both ends included.
    rim = F.pad(masks, (1, 1, 1, 1))
    growth = rim.shape[-1] / masks.shape[-1]
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * growth
    corners = torch.cat((centre - half, centre + half), 1).long().tolist()
    for whole, small, (x0, y0, x1, y1) in zip(pasted, rim, corners, strict=True):
        shape = (max(1, y1 - y0 + 1), max(1, x1 - x0 + 1))
        large = F.interpolate(small[None, None], shape, mode="bilinear", align_corners=False)[0, 0] >= _INSIDE
        top, left = max(y0, 0), max(x0, 0)
        bottom, right = min(y0 + shape[0], height), min(x0 + shape[1], width)
        if top < bottom and left < right:
            whole[top:bottom, left:right] = large[top - y0 : bottom - y0, left - x0 : right - x0]
    return pasted
