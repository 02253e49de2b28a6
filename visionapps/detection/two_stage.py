"""Detectors in two stages, as one class with different parts: Faster, Fast and Mask R-CNN, and SPPnet.

Shapes: B batch, C bands, H W padded batch, P proposals.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from visionapps.backbones.base import Backbone
from visionapps.boxes import Batch, Detections, clip
from visionapps.detection.base import Detector, Limits
from visionapps.detection.fpn import Neck
from visionapps.detection.mask_head import MaskHead
from visionapps.detection.roi import RoIHeads
from visionapps.detection.rpn import RPN
from visionapps.detection.truth import Truth, truths
from visionapps.errors import ConfigError, DataError


class TwoStage(Detector):
    """Proposals first, then what stands in them.

    With an rpn it makes its proposals itself (Faster R-CNN); without, they come with the batch (Fast R-CNN, SPPnet).
    With a mask head detections have masks (Mask R-CNN). Parts arrive built; they must agree on strides.

    Args:
        backbone: the feature pyramid.
        neck: from the backbone's maps to those that rpn, pooler and mask head see.
        roi_heads: the second stage.
        rpn: the first one; None: proposals are an input.
        mask_head: None: boxes only.
        limits: which candidates become detections.

    Raises:
        ConfigError: parts that do not fit each other.

    Source: Ren et al., Faster R-CNN, 2015; Girshick, Fast R-CNN, 2015; He et al., Mask R-CNN, 2017.
    """

    def __init__(
        self,
        backbone: Backbone,
        neck: Neck,
        roi_heads: RoIHeads,
        *,
        rpn: RPN | None = None,
        mask_head: MaskHead | None = None,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(backbone, roi_heads.num_classes, limits)
        self.neck = neck
        self.rpn = rpn
        self.roi_heads = roi_heads
        self.mask_head = mask_head
        self.needs_proposals = rpn is None
        self.gives_masks = mask_head is not None
        strides = tuple(level.stride for level in neck.levels)
        pooled = {"roi pooler": roi_heads.pooler} | ({"mask pooler": mask_head.pooler} if mask_head else {})
        wanted = {name: getattr(pooler, "strides", strides[:1]) for name, pooler in pooled.items()}
        wrong = [f"{name} of strides {own}" for name, own in wanted.items() if strides[: len(own)] != tuple(own)]
        if rpn and rpn.anchors.strides != strides:
            wrong.append(f"rpn of strides {rpn.anchors.strides}")
        if wrong:
            raise ConfigError(
                f"detector: the neck has strides {strides}, but there is a {' and a '.join(wrong)}; the rpn needs all "
                "of them, poolers the first ones"
            )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        known = self._truths(batch)
        features = self._features(batch.image, batch.sizes)
        terms, proposals = self._first_stage(features, batch, known)
        return terms | self._second_stage(features, proposals, batch, known)

    def detect(
        self, image: Tensor, sizes: tuple[tuple[int, int], ...], proposals: tuple[Tensor, ...] | None = None
    ) -> list[Detections]:
        given = self._given(proposals, sizes, image.device) if self.rpn is None else []
        with self.computing(image.device):
            features = self._features(image, sizes)
            if self.rpn is not None:
                given = self.rpn.propose(self.rpn(features), sizes, training=False, room=self.limits.most or 0)
            return self._detections(features, given, sizes)

    def judge(self, batch: Batch) -> tuple[dict[str, Tensor], list[Detections]]:
        known = self._truths(batch)
        # The same draw in every epoch, so that losses can be compared; the stream of the training stays as it is.
        generator = torch.Generator(batch.image.device).manual_seed(0)
        with self.computing(batch.image.device):
            features = self._features(batch.image, batch.sizes)
            terms, proposals = self._first_stage(features, batch, known, generator, training=False)
            terms |= self._second_stage(features, proposals, batch, known, generator)
            return terms, self._detections(features, proposals, batch.sizes)

    def _features(self, image: Tensor, sizes: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
        maps: tuple[Tensor, ...] = self.neck(self.backbone(self.network_input(image, sizes)))
        return maps

    def _truths(self, batch: Batch) -> list[Truth]:
        return truths(batch.targets, self.num_classes, batch.image.device, masks=self.gives_masks)

    def _given(
        self, proposals: tuple[Tensor, ...] | None, sizes: Sequence[tuple[int, int]], device: torch.device
    ) -> list[Tensor]:
        """Proposals from outside, clipped to their images."""
        if proposals is None or len(proposals) != len(sizes):
            given = "none" if proposals is None else f"those of {len(proposals)}"
            raise DataError(
                f"proposals: this model needs them for each of the {len(sizes)} images of the batch, but was given "
                f"{given}; name a proposals file in the dataset (`visionapps proposals` makes one)"
            )
        moved = [each.to(device).float().reshape(-1, 4) for each in proposals]
        finite = torch.stack([torch.isfinite(each).all() for each in moved]).tolist()
        if not all(finite):
            raise DataError(f"proposals: not all numbers are finite in image {finite.index(False)} of the batch")
        return [clip(each, size) for each, size in zip(moved, sizes, strict=True)]

    def _first_stage(
        self,
        features: tuple[Tensor, ...],
        batch: Batch,
        known: Sequence[Truth],
        generator: torch.Generator | None = None,
        *,
        training: bool = True,
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        if self.rpn is None:
            return {}, self._given(batch.proposals, batch.sizes, batch.image.device)
        output = self.rpn(features)
        room = 0 if training else self.limits.most or 0
        proposals = self.rpn.propose(output, batch.sizes, training=training, room=room)
        return self.rpn.losses(output, known, batch.sizes, generator), proposals

    def _second_stage(
        self,
        features: tuple[Tensor, ...],
        proposals: Sequence[Tensor],
        batch: Batch,
        known: Sequence[Truth],
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        samples = self.roi_heads.sample(proposals, known, generator)
        output = self.roi_heads(features, [sample.boxes for sample in samples], batch.sizes)
        terms = self.roi_heads.losses(output, samples, known)
        if self.mask_head is not None:
            terms |= self.mask_head.losses(features, samples, known, batch.sizes)
        return terms

    def _detections(
        self, features: tuple[Tensor, ...], proposals: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        found = [self.at_most(each) for each in self.roi_heads.detect(features, proposals, sizes, self.limits)]
        return found if self.mask_head is None else self.mask_head.detect(features, found, sizes)
