"""SPPnet: spatial pyramid pooling of windows on fixed convolutional features.

Shapes: B batch, C channels, P proposals of one image, R of all images, N bins of all levels of a pyramid (50 for 1, 2,
3, 6), S scales.

Source: He et al., Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition, 2014.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.backbones.base import Backbone
from visionapps.detection.base import Limits, in_full
from visionapps.detection.fpn import Neck
from visionapps.detection.pooling import as_rois
from visionapps.detection.roi import RoIHeads
from visionapps.detection.two_stage import TwoStage
from visionapps.errors import ConfigError

BINS = (1, 2, 3, 6)  # along a side, of each level: 50 bins, as in section 4.1
SCALES = (480, 576, 688, 864, 1200)  # px of the shorter side, section 4.1
_LONGEST = 3000  # px to which the longer side is enlarged at most: 1200 on the shorter side of a 5 : 2 panorama
_USUAL_AREA = 224.0**2  # of a window at the scale that suits it: the image of a classifier


class SpatialPyramidPooling(nn.Module):
    """A map of any size to a vector of one length: the greatest value of every bin of every level.

    Bin i of n covers rows floor(i * H / n) to ceil((i + 1) * H / n), and columns likewise (section 3.2).

    Args:
        bins: along a side, of each level.
    """

    def __init__(self, bins: Sequence[int] = BINS) -> None:
        super().__init__()
        self.bins = _checked(bins)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) with H and W at least 1 to (B, C * N): level by level, and within one by channel and bin."""
        return torch.cat([F.adaptive_max_pool2d(features, n).flatten(1) for n in self.bins], 1)


class PyramidPooler(nn.Module):
    """Spatial pyramid pooling of windows, a pooler for RoIHeads: see visionapps.detection.pooling.

    Bins are those of RoI max pooling, whose windows are rounded to whole positions; the paper shrinks a window by up to
    one position instead (appendix), which leaves nothing of small ones.

    Attributes:
        strides: of the one map that is pooled from.
        width: C * N, of the vector per window.

    Args:
        stride: of the map, in pixels.
        channels: C.
        bins: along a side, of each level of the pyramid.
        scales: shorter sides, in pixels, that SPPNet computes its features at; a window is pooled at that scale where
            its area is nearest to 224 x 224. None: the image as it is.
    """

    def __init__(
        self, stride: int, channels: int, bins: Sequence[int] = BINS, *, scales: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if stride < 1 or channels < 1 or (scales is not None and (not scales or min(scales) < 1)):
            raise ConfigError(
                f"pyramid pooler: stride {stride} and channels {channels} must be at least 1, and scales {scales} "
                "none at all or pixels of the shorter side"
            )
        self.strides = (stride,)
        self.bins = _checked(bins)
        self.width = channels * sum(n * n for n in self.bins)
        self.scales = None if scales is None else tuple(scales)

    def forward(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """(R, C * N) float32: level by level, and within one by channel and bin.

        Args:
            features: the map, or one per scale.
            proposals: (P, 4) of each image.
            sizes: (h, w) of each image.
        """
        with in_full(features[0]):
            rois = as_rois(proposals)
            if self.scales is None:
                return self._pool(features[0].float(), rois)
            factors = _factors(sizes, self.scales, rois.device)[:, rois[:, 0].long()]  # (S, R, 2) of x and y
            boxes = rois[:, 1:] * factors.repeat(1, 1, 2)
            area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
            scale = (area - _USUAL_AREA).abs().argmin(0)  # (R,)
            pooled = rois.new_empty(len(rois), self.width)
            for place, feature in enumerate(features):
                rows = (scale == place).nonzero()[:, 0]
                if len(rows):
                    pooled[rows] = self._pool(feature.float(), torch.cat((rois[rows, :1], boxes[place, rows]), 1))
            return pooled

    def _pool(self, feature: Tensor, rois: Tensor) -> Tensor:
        from torchvision.ops import roi_pool  # its import takes seconds

        return torch.cat([roi_pool(feature, rois, (n, n), 1 / self.strides[0]).flatten(1) for n in self.bins], 1)


class PyramidHead(nn.Module):
    """Two fully-connected layers with dropout on a pooled pyramid: fc6 and fc7 of the paper.

    Attributes:
        width: of the vector per window.

    Args:
        pooled: C * N, ``width`` of the pooler.
        hidden: 4096 in the paper.
        dropout: share of the activations that a step of training goes without.
    """

    def __init__(self, pooled: int, hidden: int = 4096, *, dropout: float = 0.5) -> None:
        super().__init__()
        if pooled < 1 or hidden < 1 or not 0 <= dropout < 1:
            raise ConfigError(
                f"pyramid head: pooled {pooled} and hidden {hidden} must be at least 1, dropout {dropout} in [0, 1)"
            )
        self.width = hidden
        self.fc6 = nn.Linear(pooled, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, blocks: Tensor) -> Tensor:
        """(R, pooled) to (R, width)."""
        hidden = self.dropout(F.relu(self.fc6(blocks.flatten(1))))
        vectors: Tensor = self.dropout(F.relu(self.fc7(hidden)))
        return vectors


class SPPNet(TwoStage):
    """Windows from outside, pooled from convolutional features that never change; only the layers after that learn.

    Departures from the paper: one step of training in place of three. The classifier is a softmax over classes and
    background and not one SVM per class, and it learns together with the boxes: Girshick (Fast R-CNN, 2015, section
    5.4) measured that an SVM stage gains nothing once the layers are fine-tuned.

    Args:
        backbone: frozen here: its parameters get no gradients, its batch norms stay as they are, in training too.
        neck: without parameters: SingleLevel.
        roi_heads: with a PyramidPooler.
        limits: which candidates become detections.

    Raises:
        ConfigError: a neck that would have to learn, a pooler of another kind, or parts that do not fit each other.
    """

    def __init__(self, backbone: Backbone, neck: Neck, roi_heads: RoIHeads, *, limits: Limits | None = None) -> None:
        super().__init__(backbone, neck, roi_heads, limits=limits)
        if any(True for _ in neck.parameters()) or not isinstance(roi_heads.pooler, PyramidPooler):
            raise ConfigError(
                f"sppnet: features are fixed and pooled in pyramids, but the neck is a {type(neck).__name__} and the "
                f"pooler a {type(roi_heads.pooler).__name__}; take SingleLevel and PyramidPooler, or Fast R-CNN"
            )
        if any(True for module in backbone.fresh for _ in module.parameters()):
            raise ConfigError(
                "sppnet: features are fixed, but the finer maps of this backbone are made by layers that begin with "
                "random numbers and would never learn; take a stride that the network itself has, or Fast R-CNN"
            )
        self.scales = roi_heads.pooler.scales
        self.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.backbone.eval()
        return self

    @torch.no_grad()
    def _features(self, image: Tensor, sizes: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
        """The map, or one per scale. At several scales images are computed one by one: then what an image gives does
        not depend on the sizes of its neighbours in the batch."""
        if self.scales is None:
            return super()._features(image, sizes)
        values = self.network_input(image, sizes)
        maps = []
        for scale in self.scales:
            alone = [self._at_scale(v[None, :, :h, :w], scale) for v, (h, w) in zip(values, sizes, strict=True)]
            height, width = (max(each.shape[side] for each in alone) for side in (2, 3))
            maps.append(torch.cat([F.pad(m, (0, width - m.shape[3], 0, height - m.shape[2])) for m in alone]))
        return tuple(maps)

    def _at_scale(self, values: Tensor, scale: int) -> Tensor:
        """(1, C, h, w) normalised pixels to the features of their image at a scale."""
        height, width = _scaled((values.shape[2], values.shape[3]), scale)
        scaled = F.interpolate(values, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
        multiple = self.levels[-1].stride
        feature: Tensor = self.neck(self.backbone(F.pad(scaled, (0, -width % multiple, 0, -height % multiple))))[0]
        return feature


def _checked(bins: Sequence[int]) -> tuple[int, ...]:
    if not bins or min(bins) < 1:
        raise ConfigError(f"spatial pyramid: bins {tuple(bins)} must be whole numbers from 1 on, such as {BINS}")
    return tuple(bins)


def _scaled(size: tuple[int, int], scale: int) -> tuple[int, int]:
    """(h, w) whose shorter side is scale pixels; of a strip fewer, as memory follows the longer one."""
    factor = min(scale / min(size), max(_LONGEST, *size) / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _factors(sizes: Sequence[tuple[int, int]], scales: Sequence[int], device: torch.device) -> Tensor:
    """(S, B, 2) float32: pixels of the scaled image per pixel, in x and y."""
    factors = []
    for scale in scales:
        scaled = [_scaled(size, scale) for size in sizes]
        factors.append([(w / size[1], h / size[0]) for size, (h, w) in zip(sizes, scaled, strict=True)])
    return torch.tensor(factors, dtype=torch.float32, device=device)
