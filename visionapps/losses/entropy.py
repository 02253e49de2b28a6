"""Losses that judge each pixel by the probability of its class. Shapes: B batch, K classes, H W pixels."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.errors import ConfigError
from visionapps.losses.pixels import SMALLEST_SUM, GivenWeights, Weighted, targets_of


class CrossEntropy(Weighted):
    """Mean negative log probability of the true class: sum of w[y] * nll over pixels, divided by the sum of w[y].

    Args:
        class_weights: for imbalanced data, see Weighted: one factor >= 0 per class, or a rule; None: all 1.
        label_smoothing: share of the target in [0, 1) that is spread evenly over all classes.
        ignore: label of pixels that do not count.

    Raises:
        ConfigError: a weight is negative, or the smoothing is out of range.
    """

    def __init__(self, class_weights: GivenWeights = None, *, label_smoothing: float = 0.0, ignore: int = 255) -> None:
        super().__init__(class_weights)
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"cross-entropy: label_smoothing is {label_smoothing}; choose a value in [0, 1)")
        self.label_smoothing = label_smoothing
        self.ignore = ignore

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K, H, W) logits and (B, H, W) labels to a scalar."""
        targets = targets_of(logits, labels)
        counted = self.pixel_weights(targets, logits.shape[1], self.ignore).sum()
        # torch's own mean is 0 / 0 = NaN when every pixel is ignored.
        total = F.cross_entropy(
            logits.float(),
            targets,
            weight=self.class_weights,
            ignore_index=self.ignore,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        return total / counted.clamp_min(SMALLEST_SUM)


class Focal(Weighted):
    """Cross-entropy in which easy pixels count less: w[y] * (1 - p[y]) ** gamma * nll, divided by the sum of w[y].

    segmentation_models_pytorch's multiclass focal loss takes one sigmoid per class and is not cross-entropy at gamma 0;
    models here are trained and read through a softmax, and so is this loss.

    Args:
        gamma: >= 0; 0 is cross-entropy, 2 the paper's choice.
        class_weights: alpha in the paper; see Weighted: one factor >= 0 per class, or a rule; None: all 1.
        ignore: label of pixels that do not count.

    Raises:
        ConfigError: gamma or a weight is negative.

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equation 5. The paper divides by the number of
    objects, which segmentation does not have.
    """

    def __init__(self, gamma: float = 2.0, *, class_weights: GivenWeights = None, ignore: int = 255) -> None:
        super().__init__(class_weights)
        if gamma < 0:
            raise ConfigError(f"focal loss: gamma is {gamma}; choose 0 or more (2 is usual)")
        self.gamma = gamma
        self.ignore = ignore

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K, H, W) logits and (B, H, W) labels to a scalar."""
        targets = targets_of(logits, labels)
        weights = self.pixel_weights(targets, logits.shape[1], self.ignore)
        nll = F.cross_entropy(logits.float(), targets, ignore_index=self.ignore, reduction="none")
        # 1 - p of a certain pixel is 0, where a power below 1 has an infinite slope: keep away from it.
        hardness = (-torch.expm1(-nll)).clamp_min(1e-12) ** self.gamma
        return (weights * hardness * nll).sum() / weights.sum().clamp_min(SMALLEST_SUM)


class HardPixels(Weighted):
    """Cross-entropy of the hardest pixels only, those with the least probability of their class.

    What the network has learnt long ago, most of a large field, no longer pulls at its weights. Pixels are chosen among
    all of a batch by their unweighted loss; those as hard as the easiest one that is kept are kept as well. The loss is
    the mean over those that are kept, with class weights as in CrossEntropy. WeightedSum adds it to other losses.

    Args:
        share: keep this share of the counted pixels of a batch, in (0, 1].
        threshold: or keep the pixels whose true class has a probability below this one, in (0, 1].
        at_least: pixels that are kept of a batch in any case, if it has as many.
        class_weights: see Weighted: one factor >= 0 per class, or a rule; None: all 1.
        ignore: label of pixels that do not count.

    Raises:
        ConfigError: neither share nor threshold is given, or both, or one is out of range.

    Source: Shrivastava, Gupta and Girshick, CVPR 2016 (online hard examples); Wu, Shen and van den Hengel,
    Bridging Category-level and Instance-level Semantic Image Segmentation, 2016 (of pixels, by a threshold).
    """

    def __init__(
        self,
        share: float | None = None,
        *,
        threshold: float | None = None,
        at_least: int = 10_000,
        class_weights: GivenWeights = None,
        ignore: int = 255,
    ) -> None:
        super().__init__(class_weights)
        if (share is None) == (threshold is None):
            raise ConfigError("hard pixels: give either share, such as 0.25, or threshold, such as 0.7")
        for name, value in (("share", share), ("threshold", threshold)):
            if value is not None and not 0 < value <= 1:
                raise ConfigError(f"hard pixels: {name} is {value}; choose a value in (0, 1]")
        if at_least < 1:
            raise ConfigError(f"hard pixels: at_least is {at_least}; choose a number of pixels from 1 on")
        self.share = share
        self.threshold = threshold
        self.at_least = at_least
        self.ignore = ignore

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K, H, W) logits and (B, H, W) labels to a scalar."""
        targets = targets_of(logits, labels)
        weights = self.pixel_weights(targets, logits.shape[1], self.ignore)
        nll = F.cross_entropy(logits.float(), targets, ignore_index=self.ignore, reduction="none")
        weights = weights * self._kept(nll.detach(), targets != self.ignore)
        return (weights * nll).sum() / weights.sum().clamp_min(SMALLEST_SUM)

    def _kept(self, nll: Tensor, valid: Tensor) -> Tensor:
        """(B, H, W) bool: which pixels are hard enough. How many they are stays on the device."""
        ordered = torch.where(valid, nll, -1.0).flatten().sort(descending=True).values
        count = valid.sum()
        wanted = torch.full_like(count, self.at_least)
        if self.share is not None:
            wanted = torch.maximum((count * self.share).round().long(), wanted)
        last = torch.minimum(wanted, count).sub(1).clamp_min(0)
        kept = nll >= ordered.gather(0, last.view(1))
        if self.threshold is not None:
            kept |= nll > -math.log(self.threshold)
        return kept & valid


class MeanSquaredError(nn.Module):
    """Mean over pixels and classes of (softmax - one-hot) squared, the Brier score of classification over K.

    Args:
        ignore: label of pixels that do not count.
    """

    def __init__(self, *, ignore: int = 255) -> None:
        super().__init__()
        self.ignore = ignore

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K, H, W) logits and (B, H, W) labels to a scalar."""
        targets = targets_of(logits, labels)
        valid = targets != self.ignore
        probabilities = logits.float().softmax(dim=1)
        true = probabilities.gather(1, torch.where(valid, targets, 0).unsqueeze(1)).squeeze(1)
        # The square of a difference to a one-hot vector, without the vector: |p|^2 - 2 p[y] + 1.
        squared = probabilities.square().sum(dim=1) - 2 * true + 1
        return (squared * valid).sum() / (valid.sum().clamp_min(1) * logits.shape[1])
