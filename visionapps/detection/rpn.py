"""The region proposal network: where something is, whatever it is.

Shapes: B batch, L levels, A anchors per position, M anchors in all, h w one feature map, P proposals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.boxes import clip, suppress
from visionapps.detection.anchors import Anchors
from visionapps.detection.base import in_full
from visionapps.detection.coding import BoxCoding
from visionapps.detection.matching import NEITHER, Matcher, nearest
from visionapps.detection.sampling import BalancedSampler
from visionapps.detection.truth import Truth
from visionapps.errors import ConfigError
from visionapps.structures import Level

_BETA = 1 / 9  # where the box loss turns from square to linear: sigma 3 of Ren et al.'s code
_CODING = BoxCoding()


@dataclass(frozen=True)
class ProposalLimits:
    """Which anchors become proposals.

    Args:
        before: best anchors per level that are looked at, while training and in the field.
        after: proposals per image, likewise.
        nms: greatest IoU of two proposals of one level.
        least_side: pixels; smaller ones, also what clipping leaves of those beyond the image, are dropped.
        score: least objectness, in [0, 1).
    """

    before: tuple[int, int] = (2000, 1000)
    after: tuple[int, int] = (2000, 1000)
    nms: float = 0.7
    least_side: float = 1e-3
    score: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "before", tuple(self.before))  # YAML brings lists
        object.__setattr__(self, "after", tuple(self.after))
        counts = (*self.before, *self.after)
        if (
            len(counts) != 4
            or min(counts) < 1
            or not 0 < self.nms <= 1
            or self.least_side <= 0
            or not 0 <= self.score < 1
        ):
            raise ConfigError(
                f"proposals: before {self.before} and after {self.after} must be two counts each, nms {self.nms} in "
                f"(0, 1], least_side {self.least_side} positive and score {self.score} in [0, 1)"
            )


class RPNOutput(NamedTuple):
    """What the head says about every anchor, levels one after the other."""

    logits: Tensor  # (B, M) float32
    codes: Tensor  # (B, M, 4) float32
    anchors: Tensor  # (M, 4)
    per_level: tuple[int, ...]  # anchors of each level, sum M


class RPN(nn.Module):
    """A small network over every position of every level, shared by the levels.

    Args:
        levels: of the neck, all of equal width.
        anchors: with the strides of these levels.
        convs: 3 x 3 convolutions before the two outputs.
        hidden: their width; None: that of the levels (512 for VGG-16, as in the paper).
        matcher: which anchors are objects and background.
        sampler: which of them count in a step.
        limits: which anchors become proposals.
        border: while training, anchors that reach further beyond the image than this, in pixels, count neither way;
            None: all count. The paper takes 0, which leaves a small image without large anchors.

    Source: Ren et al., Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks, 2015.
    """

    def __init__(
        self,
        levels: tuple[Level, ...],
        anchors: Anchors,
        *,
        convs: int = 1,
        hidden: int | None = None,
        matcher: Matcher | None = None,
        sampler: BalancedSampler | None = None,
        limits: ProposalLimits | None = None,
        border: float | None = None,
    ) -> None:
        super().__init__()
        strides, widths = tuple(level.stride for level in levels), {level.channels for level in levels}
        if strides != anchors.strides or len(widths) != 1:
            raise ConfigError(
                f"rpn: anchors of strides {anchors.strides} on levels {levels}; both need the same strides, and the "
                "levels one width"
            )
        width = widths.pop()
        hidden = hidden or width
        self.anchors = anchors
        self.convs = nn.ModuleList(nn.Conv2d(hidden if i else width, hidden, 3, padding=1) for i in range(convs))
        deep = hidden if convs else width
        self.objectness = nn.Conv2d(deep, anchors.per_position, 1)
        self.deltas = nn.Conv2d(deep, 4 * anchors.per_position, 1)
        for layer in (*self.convs, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)  # as in the paper
            nn.init.zeros_(layer.bias)
        self.matcher = matcher or Matcher(0.7, (0.0, 0.3), keep_best=True)
        self.sampler = sampler or BalancedSampler(256, 0.5)
        self.limits = limits or ProposalLimits()
        self.border = border

    def forward(self, features: Sequence[Tensor]) -> RPNOutput:
        """What the head says about every anchor of the levels."""
        logits, codes = [], []
        for feature in features:
            for conv in self.convs:
                feature = F.relu(conv(feature))
            # Anchor by anchor, position by position: the order of Anchors.boxes.
            logits.append(self.objectness(feature).permute(0, 2, 3, 1).flatten(1).float())
            codes.append(self.deltas(feature).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)).float())
        anchors = self.anchors.boxes([(f.shape[-2], f.shape[-1]) for f in features], features[0].device)
        per_level = tuple(len(boxes) for boxes in anchors)
        return RPNOutput(torch.cat(logits, 1), torch.cat(codes, 1), torch.cat(anchors), per_level)

    @torch.no_grad()
    def propose(
        self, output: RPNOutput, sizes: Sequence[tuple[int, int]], *, training: bool, room: int = 0
    ) -> list[Tensor]:
        """The best boxes of each image, clipped to it, best first; no gradients flow through them.

        Args:
            output: of forward.
            sizes: (h, w) of each image.
            training: which of the two limits hold.
            room: as many proposals are possible in any case, for whoever wants as many detections.

        Returns:
            (P, 4) float32 of each image.
        """
        which = 0 if training else 1
        before, after = max(self.limits.before[which], room), max(self.limits.after[which], room)
        with in_full(output.logits):
            boxes, scores, level = self._candidates(output, before)
            boxes = torch.stack([clip(each, size) for each, size in zip(boxes, sizes, strict=True)])
            small = (boxes[..., 2:] - boxes[..., :2]).amin(-1) < self.limits.least_side
            small |= scores.sigmoid() < self.limits.score
            # Last in the order, they suppress only each other; nothing has to wait for their number.
            scores = scores.masked_fill(small, -torch.inf)
            images, per_image = scores.shape
            groups = torch.arange(images, device=level.device)[:, None] * len(output.per_level) + level
            kept = suppress(boxes.flatten(0, 1), scores.flatten(), groups.flatten(), self.limits.nms)
            return _by_image(boxes.flatten(0, 1), small.flatten(), kept, per_image, after)

    def losses(
        self,
        output: RPNOutput,
        truths: Sequence[Truth],
        sizes: Sequence[tuple[int, int]],
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """``rpn_objectness`` and ``rpn_box``: means over the anchors drawn in the whole batch (equation 1).

        Args:
            output: of forward.
            truths: of each image.
            sizes: (h, w) of each image.
            generator: of the draw; None: torch's global stream.
        """
        anchors = output.anchors
        with in_full(output.logits):
            states = torch.stack([self._states(anchors, t, size) for t, size in zip(truths, sizes, strict=True)])
            drawn = self.sampler.draw(states, generator)
            number = drawn.counts.sum().clamp(min=1)
            found = _first(drawn.objects, drawn.counts[:, 0])
            empty = _first(drawn.background, drawn.counts[:, 1])
            misses = F.softplus(-output.logits.gather(1, drawn.objects)).masked_fill(~found, 0).sum()
            alarms = F.softplus(output.logits.gather(1, drawn.background)).masked_fill(~empty, 0).sum()
            codes = output.codes.gather(1, drawn.objects[..., None].expand(-1, -1, 4))
            wanted = torch.stack(
                [_wanted(anchors[rows], truth) for rows, truth in zip(drawn.objects, truths, strict=True)]
            )
            error = F.smooth_l1_loss(codes, wanted, beta=_BETA, reduction="none").masked_fill(~found[..., None], 0)
            return {"rpn_objectness": (misses + alarms) / number, "rpn_box": error.sum() / number}

    def _states(self, anchors: Tensor, truth: Truth, size: tuple[int, int]) -> Tensor:
        states = self.matcher.states(anchors, truth.boxes, truth.ignored)
        if self.border is None:
            return states
        height, width = size
        low, high = anchors[:, :2].amin(1), torch.maximum(anchors[:, 2] - width, anchors[:, 3] - height)
        return states.masked_fill((low < -self.border) | (high > self.border), NEITHER)

    def _candidates(self, output: RPNOutput, most: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best of each level: boxes (B, T, 4), logits (B, T), and their level (T,)."""
        scores, rows, start = [], [], 0
        for logits in torch.split(output.logits.detach(), list(output.per_level), 1):
            best, index = logits.topk(min(most, logits.shape[1]), dim=1)
            scores.append(best)
            rows.append(index + start)
            start += logits.shape[1]
        taken = torch.cat(rows, 1)
        codes = output.codes.detach().gather(1, taken[..., None].expand(-1, -1, 4))
        level = torch.cat([torch.full((s.shape[1],), i, device=s.device) for i, s in enumerate(scores)])
        return _CODING.decode(codes, output.anchors[taken]), torch.cat(scores, 1), level


def _first(rows: Tensor, counts: Tensor) -> Tensor:
    """(B, P) bool: which entries of each row are among its first counts."""
    return torch.arange(rows.shape[1], device=rows.device) < counts[:, None]


def _wanted(anchors: Tensor, truth: Truth) -> Tensor:
    """(P, 4) codes of the object that each anchor overlaps most; 0 where there are none."""
    if not len(truth.boxes):
        return torch.zeros_like(anchors)
    return _CODING.encode(truth.boxes[nearest(anchors, truth.boxes)], anchors)


def _by_image(boxes: Tensor, small: Tensor, kept: Tensor, per_image: int, most: int) -> list[Tensor]:
    """Boxes that were kept, apart by image, best first; waits for the device once.

    Args:
        boxes: (B * T, 4) of all images.
        small: (B * T,) bool: not wanted, and last in the order of their image.
        kept: indices of boxes, best first.
        per_image: T.
        most: boxes per image.
    """
    images = len(boxes) // per_image
    image = kept // per_image
    order = image.argsort(stable=True)
    here = image == torch.arange(images, device=image.device)[:, None]
    counts, dropped = torch.stack((here.sum(1), (here & small[kept]).sum(1))).tolist()
    parts = torch.split(boxes[kept[order]], counts)
    return [part[: min(len(part) - drop, most)] for part, drop in zip(parts, dropped, strict=True)]
