"""Regions of interest, pooled out of feature maps whose strides are known.

A pooler is any module with ``forward(features, proposals, sizes)``: features are all maps of the neck, finest first,
float32; proposals (P, 4) of each image, in its pixels; sizes (h, w) of each image. It gives one (C, S, S) or one (F,)
block per proposal, image after image: (sum P, C, S, S) or (sum P, F), also where sum P is 0. One with an attribute
``strides`` is checked against the neck when the detector is built: it uses the neck's first maps, and they must have
these strides.

Shapes: B batch, C channels, P proposals of one image, R of all images, S bins along a side.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from visionapps.boxes import area
from visionapps.detection.base import in_full
from visionapps.errors import ConfigError

# A region of 224 x 224 pixels, the image of a classifier, is pooled where the stride is 16 (Lin et al., 2017).
_USUAL_SIDE, _USUAL_STRIDE = 224, 16
_SLACK = 1 - 1e-6  # a side that is a level's limit but for rounding reaches that level


def as_rois(boxes: Sequence[Tensor]) -> Tensor:
    """(P, 4) of each image to (R, 5), the first column the place of the image in the batch."""
    return torch.cat([nn.functional.pad(each.float(), (1, 0), value=float(i)) for i, each in enumerate(boxes)])


class RoIPooler(nn.Module):
    """Fixed-size blocks of the map whose stride suits the size of each region.

    Attributes:
        strides: of the neck's first maps, from which it pools.
        size: S.

    Args:
        strides: finest first, any whole numbers; nothing is ever inferred from sizes of images or maps.
        size: bins along each side of a block.
        how: "align" samples bilinearly (He et al., 2017), "max" takes the greatest value of each bin on a grid rounded
            to whole positions (Girshick, 2015).
        sampling: points per bin and axis of "align"; 0: as many as the bin has positions.
        aligned: whether "align" shifts by half a position, which makes sense together with anchors of offset 0.5;
            published weights of torchvision were trained without.

    Raises:
        ConfigError: strides that do not ascend, or numbers that cannot be.

    Source: Lin et al., Feature Pyramid Networks, 2017, equation 1, for the choice of the map.
    """

    def __init__(
        self,
        strides: tuple[int, ...],
        size: int = 7,
        how: Literal["align", "max"] = "align",
        *,
        sampling: int = 2,
        aligned: bool = False,
    ) -> None:
        super().__init__()
        strides = tuple(strides)
        if not strides or list(strides) != sorted(set(strides)) or strides[0] < 1:
            raise ConfigError(f"pooler: strides {strides} must be positive and ascend")
        if how not in ("align", "max") or size < 1 or sampling < 0:
            raise ConfigError(
                f"pooler: how {how!r} must be align or max, size {size} at least 1 and sampling {sampling} at least 0"
            )
        self.strides = strides
        self.size = size
        self.how = how
        self.sampling = sampling
        self.aligned = aligned
        limits = [stride * _USUAL_SIDE / _USUAL_STRIDE * _SLACK for stride in strides[1:]]
        self.register_buffer("limits", torch.tensor(limits, dtype=torch.float32), persistent=False)
        self.limits: Tensor

    def forward(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """(R, C, S, S) float32; see the page's head."""
        maps = [feature.float() for feature in features[: len(self.strides)]]
        with in_full(maps[0]):
            rois = as_rois(proposals)
            if len(maps) == 1:
                return self._pool(maps[0], rois, self.strides[0])
            level = self.level(rois[:, 1:])
            # One wait for the device, instead of one per map.
            counts = torch.bincount(level, minlength=len(maps)).tolist()
            order = level.argsort(stable=True)
            parts = torch.split(rois[order], counts)
            # Maps without a region take part, too: every parameter has a gradient, which training on several GPUs asks.
            blocks = [self._pool(*each) for each in zip(maps, parts, self.strides, strict=True)]
            return torch.cat(blocks)[order.argsort()]

    def level(self, boxes: Tensor) -> Tensor:
        """(R,) index of the map for each box: the coarsest whose stride is at most 16 * side / 224.

        For strides that are powers of two this is equation 1 of Lin et al. with k0 = 4; it holds for any others, too.
        """
        return torch.bucketize(area(boxes).sqrt(), self.limits, right=True)

    def _pool(self, feature: Tensor, rois: Tensor, stride: int) -> Tensor:
        from torchvision.ops import roi_align, roi_pool  # their import takes seconds

        bins = (self.size, self.size)
        if self.how == "max":
            pooled: Tensor = roi_pool(feature, rois, bins, 1 / stride)
        elif feature.device.type == "cpu" and self.sampling and len(rois):
            pooled = align_by_rows(
                feature, rois, self.size, stride=stride, sampling=self.sampling, aligned=self.aligned
            )
        else:
            pooled = roi_align(feature, rois, bins, 1 / stride, self.sampling or -1, self.aligned)
        return pooled


def align_by_rows(
    feature: Tensor, rois: Tensor, size: int, *, stride: int, sampling: int, aligned: bool = False
) -> Tensor:
    """What torchvision's roi_align gives, in a fraction of its time on a processor, gradients included.

    `tools/bench_detector_step.py` shows what that makes of a whole detector.

    A bin is a weighted sum of the vectors of a few positions. Where the channels of a position lie side by side, that
    is what ``embedding_bag`` does at the speed of memory; roi_align goes through the map once per channel.

    Args:
        feature: (B, C, H, W) float32; channels_last costs no copy.
        rois: (R, 5), image and box in pixels, R at least 1.
        size: S.
        stride: of the map.
        sampling: points per bin and axis, at least 1.
        aligned: shift by half a position, and let boxes be smaller than one.

    Returns:
        (R, C, S, S).

    Source: He et al., Mask R-CNN, 2017; at borders as torchvision.
    """
    channels, height, width = feature.shape[1:]
    boxes = rois[:, 1:] / stride - (0.5 if aligned else 0.0)
    least = 0.0 if aligned else 1.0
    rows, down = _samples(boxes[:, 1], boxes[:, 3], height, size=size, sampling=sampling, least=least)
    cols, right = _samples(boxes[:, 0], boxes[:, 2], width, size=size, sampling=sampling, least=least)
    rows = rows + rois[:, 0].int()[:, None, None] * height
    place = rows[:, :, None, :, None] * width + cols[:, None, :, None, :]  # (R, S, S, 2 * sampling, 2 * sampling)
    weight = down[:, :, None, :, None] * right[:, None, :, None, :] / sampling**2
    count = 4 * sampling**2
    table = feature.permute(0, 2, 3, 1).reshape(-1, channels).contiguous()
    sums = nn.functional.embedding_bag(
        place.reshape(-1, count), table, per_sample_weights=weight.reshape(-1, count), mode="sum"
    )
    return sums.view(len(rois), size, size, channels).permute(0, 3, 1, 2)


def _samples(
    low: Tensor, high: Tensor, length: int, *, size: int, sampling: int, least: float
) -> tuple[Tensor, Tensor]:
    """Positions along an axis that the points of each bin lie between, and their weights: (R, S, 2 * sampling) each."""
    step = (high - low).clamp(min=least) / size
    points = (torch.arange(size * sampling, dtype=low.dtype, device=low.device) + 0.5) / sampling
    at = low[:, None] + step[:, None] * points
    inside = (at >= -1) & (at <= length)
    at = at.clamp(min=0, max=length - 1)
    first = at.floor()
    share = at - first
    near = torch.stack((first, (first + 1).clamp(max=length - 1)), -1).int()
    weight = torch.stack((1 - share, share), -1) * inside[..., None]
    return near.view(len(low), size, -1), weight.view(len(low), size, -1)
