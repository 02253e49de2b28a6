"""RetinaNet: one stage, every anchor of every level judged at once, with a loss that easy background cannot drown.

Shapes: B batch, L levels, A anchors per position, M anchors in all, K classes, N objects.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.backbones.base import Backbone
from visionapps.boxes import Batch, Detections, clip, suppress
from visionapps.detection.anchors import Anchors
from visionapps.detection.base import Detector, Limits, in_full
from visionapps.detection.coding import BoxCoding
from visionapps.detection.fpn import Neck
from visionapps.detection.matching import NEITHER, OBJECT, Matcher, nearest
from visionapps.detection.truth import Truth, truths
from visionapps.errors import ConfigError

BoxLoss = Literal["l1", "giou"]

_CODING = BoxCoding()
_PRIOR = 0.01  # what every anchor's score is at the start: else the background of the first steps is all that counts
_ALPHA, _GAMMA = 0.25, 2.0  # the paper's choice, table 1
_GROUPS = 32  # of group normalisation, as in Li et al. 2021
_LEAST_SIDE = 1e-2  # pixels; what clipping leaves of boxes beyond the image is no detection


def retina_anchors(strides: Sequence[int], *, per_stride: float = 4.0) -> Anchors:
    """Three sizes per octave in three shapes, on every level (Lin et al. 2017, section 4).

    Args:
        strides: of the neck's levels.
        per_stride: the smallest size of a level, in its strides: 4 gives 32 to 813 pixels on strides 8 to 128.
    """
    # Cut to whole pixels, as those that published weights belong to.
    sizes = tuple(tuple(float(int(s * per_stride * 2 ** (i / 3))) for i in range(3)) for s in strides)
    return Anchors(tuple(strides), sizes)


class RetinaOutput(NamedTuple):
    """What the head says about every anchor, levels one after the other."""

    logits: Tensor  # (B, M, K) float32
    codes: Tensor  # (B, M, 4) float32
    anchors: Tensor  # (M, 4)
    per_level: tuple[int, ...]  # anchors of each level, sum M


class RetinaHead(nn.Module):
    """Two towers of 3 x 3 convolutions that all levels share: one for classes, one for boxes.

    Args:
        width: channels of every level.
        anchors: at every position.
        num_classes: K.
        convs: convolutions in each tower.
        group_norm: normalise after each of them (Li et al. 2021, arXiv 2111.11429); the paper does not.
    """

    def __init__(
        self, width: int, anchors: Anchors, num_classes: int, *, convs: int = 4, group_norm: bool = False
    ) -> None:
        super().__init__()
        if group_norm and width % _GROUPS:
            raise ConfigError(f"retina head: group_norm needs channels in multiples of {_GROUPS}, not {width}")
        self.anchors = anchors
        self.num_classes = num_classes
        self.class_tower = _tower(width, convs, group_norm)
        self.box_tower = _tower(width, convs, group_norm)
        self.classes = nn.Conv2d(width, anchors.per_position * num_classes, 3, padding=1)
        self.deltas = nn.Conv2d(width, anchors.per_position * 4, 3, padding=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.constant_(self.classes.bias, -math.log((1 - _PRIOR) / _PRIOR))  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> RetinaOutput:
        """What the head says about every anchor of the levels."""
        logits, codes = [], []
        for feature in features:
            # Anchor by anchor, position by position: the order of Anchors.boxes.
            logits.append(_by_anchor(self.classes(self.class_tower(feature)), self.num_classes))
            codes.append(_by_anchor(self.deltas(self.box_tower(feature)), 4))
        anchors = self.anchors.boxes([(f.shape[-2], f.shape[-1]) for f in features], features[0].device)
        per_level = tuple(len(boxes) for boxes in anchors)
        return RetinaOutput(torch.cat(logits, 1), torch.cat(codes, 1), torch.cat(anchors), per_level)


class RetinaNet(Detector):
    """A pyramid and a head. Parts arrive built; they must agree on strides and width.

    Ignored boxes count neither way: background of which half or more lies inside one is left out of the loss.

    Args:
        backbone: the feature pyramid.
        neck: from the backbone's maps to those that the head sees, all of one width; FPN(extra="convs_of_input").
        head: with anchors of the neck's strides.
        limits: which candidates become detections.
        matcher: which anchors are objects and background.
        box_loss: "l1" of the codes, or "giou" of the boxes (Rezatofighi et al. 2019).
        candidates: the best so many of each level and image are looked at, and more where limits.most asks for more.

    Raises:
        ConfigError: parts that do not fit each other.

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017. The box loss is L1 where the paper has a smoothed
        one: later code, whose published weights score higher, does so.
    """

    def __init__(
        self,
        backbone: Backbone,
        neck: Neck,
        head: RetinaHead,
        *,
        limits: Limits | None = None,
        matcher: Matcher | None = None,
        box_loss: BoxLoss = "l1",
        candidates: int = 2000,
    ) -> None:
        super().__init__(backbone, head.num_classes, limits)
        strides, widths = tuple(level.stride for level in neck.levels), {level.channels for level in neck.levels}
        if strides != head.anchors.strides or widths != {head.classes.in_channels}:
            raise ConfigError(
                f"retinanet: a head of strides {head.anchors.strides} and {head.classes.in_channels} channels on "
                f"levels {neck.levels}; both must agree"
            )
        if box_loss not in get_args(BoxLoss) or candidates < 1:
            raise ConfigError(
                f"retinanet: box_loss {box_loss!r} must be {' or '.join(get_args(BoxLoss))}, and candidates "
                f"{candidates} at least 1"
            )
        self.neck = neck
        self.head = head
        self.matcher = matcher or Matcher(0.5, (0.0, 0.4), keep_best=True)
        self.box_loss = box_loss
        self.candidates = candidates

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        known = self._truths(batch)
        return self._losses(self._output(batch.image, batch.sizes), known)

    def detect(
        self, image: Tensor, sizes: tuple[tuple[int, int], ...], proposals: tuple[Tensor, ...] | None = None
    ) -> list[Detections]:
        with self.computing(image.device):
            output = self._output(image, sizes)
        return self._detections(output, sizes)

    def judge(self, batch: Batch) -> tuple[dict[str, Tensor], list[Detections]]:
        known = self._truths(batch)
        with self.computing(batch.image.device):
            output = self._output(batch.image, batch.sizes)
        return self._losses(output, known), self._detections(output, batch.sizes)

    def _output(self, image: Tensor, sizes: Sequence[tuple[int, int]]) -> RetinaOutput:
        output: RetinaOutput = self.head(self.neck(self.backbone(self.network_input(image, sizes))))
        return output

    def _truths(self, batch: Batch) -> list[Truth]:
        return truths(batch.targets, self.num_classes, batch.image.device)

    def _losses(self, output: RetinaOutput, known: Sequence[Truth]) -> dict[str, Tensor]:
        """``focal`` and ``box``: sums over the anchors of an image by the number of its objects' anchors; means over
        the images."""
        from torchvision.ops import sigmoid_focal_loss  # its import takes seconds

        with in_full(output.logits):
            states = torch.stack([self.matcher.states(output.anchors, t.boxes, t.ignored) for t in known])
            focal, box = [], []
            for logits, codes, state, truth in zip(output.logits, output.codes, states, known, strict=True):
                rows = (state == OBJECT).nonzero()[:, 0]
                matched = nearest(output.anchors[rows], truth.boxes) if len(rows) else rows
                wanted = torch.zeros_like(logits)
                wanted[rows, truth.labels[matched]] = 1.0
                counts = (state != NEITHER)[:, None]
                error = sigmoid_focal_loss(logits, wanted, _ALPHA, _GAMMA)
                number = max(1, len(rows))
                focal.append(error.masked_fill(~counts, 0).sum() / number)
                box.append(self._box_error(codes[rows], truth.boxes[matched], output.anchors[rows]) / number)
            return {"focal": torch.stack(focal).mean(), "box": torch.stack(box).mean()}

    def _box_error(self, codes: Tensor, objects: Tensor, anchors: Tensor) -> Tensor:
        if self.box_loss == "l1":
            return F.l1_loss(codes, _CODING.encode(objects, anchors), reduction="sum")
        from torchvision.ops import generalized_box_iou_loss

        error: Tensor = generalized_box_iou_loss(_CODING.decode(codes, anchors), objects, reduction="sum", eps=1e-7)
        return error

    @torch.no_grad()
    def _detections(self, output: RetinaOutput, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        # Image by image: the last bit of a sigmoid depends on the place of a number in the processor's vectors, so that
        # a score would depend on how many candidates the image before has.
        with in_full(output.logits):
            parts = zip(output.logits, output.codes, sizes, strict=True)
            return [self.at_most(self._found(output, *part)) for part in parts]

    def _found(self, output: RetinaOutput, logits: Tensor, codes: Tensor, size: tuple[int, int]) -> Detections:
        """All detections of one image, best first, from its (M, K) logits and (M, 4) codes."""
        threshold = math.log(self.limits.score / (1 - self.limits.score)) if self.limits.score else -math.inf
        anchor, label = (logits > threshold).nonzero(as_tuple=True)
        score = logits[anchor, label].sigmoid()
        best = self._best(output.per_level, anchor, score)
        anchor, label, score = anchor[best], label[best], score[best]
        boxes = clip(_CODING.decode(codes[anchor], output.anchors[anchor]), size)
        wide = (boxes[:, 2:] - boxes[:, :2]).amin(1) >= _LEAST_SIDE
        boxes, label, score = boxes[wide], label[wide], score[wide]
        kept = suppress(boxes, score, label, self.limits.nms)
        return Detections(boxes[kept], label[kept], score[kept])

    def _best(self, per_level: tuple[int, ...], anchor: Tensor, score: Tensor) -> Tensor:
        """Indices of the best candidates of every level, level by level."""
        most = max(self.candidates, self.limits.most or 0)
        if len(score) <= most:
            return torch.arange(len(score), device=score.device)
        # Candidates come in the order of anchors, so levels are apart already.
        ends = torch.tensor(per_level, device=anchor.device).cumsum(0)
        counts = torch.bincount(torch.bucketize(anchor, ends, right=True), minlength=len(per_level)).tolist()
        rows = torch.split(torch.arange(len(score), device=score.device), counts)
        return torch.cat([row[score[row].argsort(descending=True, stable=True)[:most]] for row in rows])


def _by_anchor(maps: Tensor, values: int) -> Tensor:
    """(B, A * values, h, w) to (B, h * w * A, values) float32."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, values).float()


def _tower(width: int, convs: int, group_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(convs):
        layers.append(nn.Conv2d(width, width, 3, padding=1, bias=not group_norm))
        layers += [nn.GroupNorm(_GROUPS, width)] if group_norm else []
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)
