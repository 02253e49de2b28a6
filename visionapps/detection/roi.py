"""What stands in a proposal, and where exactly: the second stage.

Shapes: B batch, K classes, P proposals of one image, R of all images, S samples of one image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.boxes import Detections, clip, suppress
from visionapps.detection.base import Limits, in_full
from visionapps.detection.coding import BoxCoding
from visionapps.detection.matching import Matcher, nearest
from visionapps.detection.sampling import BalancedSampler
from visionapps.detection.truth import Truth
from visionapps.errors import ConfigError

_LEAST_SIDE = 1e-2  # pixels; what clipping leaves of boxes beyond the image is no detection
_AT_ONCE = 4096  # regions that go through the head together: 200 MB of pooled features of 256 channels


class BoxHead(nn.Module):
    """Two wide linear layers on a pooled block (Lin et al., 2017, section 4.2).

    Attributes:
        width: of the vector per region.
    """

    def __init__(self, channels: int, size: int = 7, hidden: int = 1024) -> None:
        super().__init__()
        self.width = hidden
        self.fc6 = nn.Linear(channels * size**2, hidden)
        self.fc7 = nn.Linear(hidden, hidden)

    def forward(self, blocks: Tensor) -> Tensor:
        """(R, C, S, S) to (R, width)."""
        return F.relu(self.fc7(F.relu(self.fc6(blocks.flatten(1)))))


class ConvBoxHead(nn.Module):
    """Four normalised 3 x 3 convolutions and one linear layer (Wu and He, Group Normalization, 2018, section 5.2).

    Attributes:
        width: of the vector per region.
    """

    def __init__(
        self, channels: int, size: int = 7, *, convs: int = 4, conv_width: int = 256, hidden: int = 1024
    ) -> None:
        super().__init__()
        self.width = hidden
        self.convs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(conv_width if i else channels, conv_width, 3, padding=1, bias=False),
                nn.BatchNorm2d(conv_width),
                nn.ReLU(inplace=True),
            )
            for i in range(convs)
        )
        self.fc = nn.Linear((conv_width if convs else channels) * size**2, hidden)
        for layer in self.convs.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, blocks: Tensor) -> Tensor:
        """(R, C, S, S) to (R, width)."""
        for conv in self.convs:
            blocks = conv(blocks)
        return F.relu(self.fc(blocks.flatten(1)))


class RoIOutput(NamedTuple):
    """What the head says about every region."""

    logits: Tensor  # (R, K + 1) float32, background first
    codes: Tensor  # (R, K, 4) float32, one box per class


class RoISample(NamedTuple):
    """The regions of one image that count in a step, objects first."""

    boxes: Tensor  # (S, 4)
    found: int  # how many of them are objects
    matched: Tensor  # (found,) which object of the image each of these is


class RoIHeads(nn.Module):
    """Classifies regions and corrects their boxes, one correction per class.

    Args:
        pooler: any module with the interface that visionapps.detection.pooling describes.
        head: any module that turns its blocks into (R, width) and has that ``width`` as an attribute.
        num_classes: K.
        matcher: which proposals are objects and background; the annotated boxes are among the proposals, so that there
            is something to learn from the first step on.
        sampler: which of them count in a step.
        coding: how corrections are written.
        beta: where the loss of the codes turns from square to linear.

    Source: Girshick, Fast R-CNN, 2015.
    """

    def __init__(
        self,
        pooler: nn.Module,
        head: nn.Module,
        num_classes: int,
        *,
        matcher: Matcher | None = None,
        sampler: BalancedSampler | None = None,
        coding: BoxCoding | None = None,
        beta: float = 1 / 9,
    ) -> None:
        super().__init__()
        width = getattr(head, "width", None)
        if not isinstance(width, int) or num_classes < 1 or beta <= 0:
            raise ConfigError(
                f"roi heads: the head ({type(head).__name__}) has width {width}, there are {num_classes} classes and "
                f"beta is {beta}; expected an attribute width, at least one class, and beta > 0"
            )
        self.pooler = pooler
        self.head = head
        self.num_classes = num_classes
        self.classes = nn.Linear(width, num_classes + 1)  # row 0 is background
        self.deltas = nn.Linear(width, 4 * num_classes)
        for layer, deviation in ((self.classes, 0.01), (self.deltas, 0.001)):  # as in the paper
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)
        self.matcher = matcher or Matcher(0.5, (0.0, 0.5))
        self.sampler = sampler or BalancedSampler(512, 0.25)
        self.coding = coding or BoxCoding((10.0, 10.0, 5.0, 5.0))
        self.beta = beta

    def forward(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> RoIOutput:
        """What the head says about every proposal, image after image."""
        vectors = self.head(self.pooler(features, proposals, sizes))
        codes = self.deltas(vectors).unflatten(1, (self.num_classes, 4))
        return RoIOutput(self.classes(vectors).float(), codes.float())

    @torch.no_grad()
    def sample(
        self, proposals: Sequence[Tensor], truths: Sequence[Truth], generator: torch.Generator | None = None
    ) -> list[RoISample]:
        """Proposals and annotated boxes that count in a step; waits for the device once.

        Args:
            proposals: (P, 4) of each image.
            truths: of each image.
            generator: of the draw; None: torch's global stream.
        """
        drawn, boxes = [], []
        for proposed, truth in zip(proposals, truths, strict=True):
            candidates = torch.cat((proposed, truth.boxes))
            states = self.matcher.states(candidates, truth.boxes, truth.ignored)
            boxes.append(candidates)
            drawn.append(self.sampler.draw(states, generator))
        counts = torch.stack([draw.counts for draw in drawn]).tolist()
        samples = []
        for candidates, draw, truth, (found, empty) in zip(boxes, drawn, truths, counts, strict=True):
            objects = candidates[draw.objects[:found]]
            matched = nearest(objects, truth.boxes) if found else draw.objects[:0]
            samples.append(RoISample(torch.cat((objects, candidates[draw.background[:empty]])), found, matched))
        return samples

    def losses(self, output: RoIOutput, samples: Sequence[RoISample], truths: Sequence[Truth]) -> dict[str, Tensor]:
        """``roi_class`` and ``roi_box``: means over all samples of the batch.

        Args:
            output: of forward, for the boxes of samples.
            samples: of each image.
            truths: of each image.
        """
        with in_full(output.logits):
            number = max(1, len(output.logits))
            device = output.logits.device
            labels = torch.cat([t.labels[s.matched] for s, t in zip(samples, truths, strict=True)])
            rows, start = [], 0
            for sample in samples:
                rows.append(torch.arange(start, start + sample.found, device=device))
                start += len(sample.boxes)
            row = torch.cat(rows)
            classes = torch.zeros(len(output.logits), dtype=torch.int64, device=device)
            classes[row] = labels + 1
            objects = torch.cat([t.boxes[s.matched] for s, t in zip(samples, truths, strict=True)])
            regions = torch.cat([s.boxes[: s.found] for s in samples])
            wanted = self.coding.encode(objects, regions)
            error = F.smooth_l1_loss(output.codes[row, labels], wanted, beta=self.beta, reduction="sum")
            surprise = F.cross_entropy(output.logits, classes, reduction="sum")
            return {"roi_class": surprise / number, "roi_box": error / number}

    @torch.no_grad()
    def detect(
        self,
        features: Sequence[Tensor],
        proposals: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        limits: Limits,
    ) -> list[Detections]:
        """Objects of each image, best first, and all of them: limits.most is the detector's to apply.

        Args:
            features: all maps of the neck.
            proposals: (P, 4) of each image.
            sizes: (h, w) of each image.
            limits: which candidates become detections.
        """
        output = self._in_portions(features, proposals, sizes)
        with in_full(output.logits):
            scores = output.logits.softmax(1)[:, 1:]
            region, label = (scores > limits.score).nonzero(as_tuple=True)
            score = scores[region, label]
            counts = [len(each) for each in proposals]
            image = torch.cat([label.new_full((n,), i) for i, n in enumerate(counts)])[region]
            boxes = self.coding.decode(output.codes[region, label], torch.cat(list(proposals))[region])
            parts = torch.split(boxes, torch.bincount(image, minlength=len(counts)).tolist())
            boxes = torch.cat([clip(part, size) for part, size in zip(parts, sizes, strict=True)])
            wide = ((boxes[:, 2:] - boxes[:, :2]).amin(1) >= _LEAST_SIDE).nonzero()[:, 0]
            boxes, score, label, image = boxes[wide], score[wide], label[wide], image[wide]
            kept = suppress(boxes, score, image * self.num_classes + label, limits.nms)
            kept = kept[image[kept].argsort(stable=True)]
            apart = torch.bincount(image[kept], minlength=len(counts)).tolist()
            return [Detections(boxes[i], label[i], score[i]) for i in torch.split(kept, apart)]

    def _in_portions(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> RoIOutput:
        """forward, on the CPU image by image: kernels of linear layers are chosen by the number of rows, and a
        detection must not depend on its neighbours in the batch; everywhere in portions, for the memory."""
        together = features[0].device.type != "cpu" and sum(map(len, proposals)) <= _AT_ONCE
        if together:
            return self.forward(features, proposals, sizes)
        parts = []
        for i, (boxes, size) in enumerate(zip(proposals, sizes, strict=True)):
            own = [feature[i : i + 1] for feature in features]
            parts += [self.forward(own, [portion], [size]) for portion in torch.split(boxes, _AT_ONCE)]
        return RoIOutput(*(torch.cat(part) for part in zip(*parts, strict=True)))
