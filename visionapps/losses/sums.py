"""Losses that are sums of others. Shapes: B batch, K classes, H W pixels."""

import torch
from torch import Tensor, nn

from visionapps.errors import ConfigError
from visionapps.losses.entropy import CrossEntropy
from visionapps.losses.overlap import Dice
from visionapps.losses.pixels import GivenWeights


class WeightedSum(nn.Module):
    """Sum of losses, each times its weight.

    Args:
        losses: at least one loss of (logits, labels).
        weights: one factor per loss.

    Raises:
        ConfigError: the lists are empty or differ in length.
    """

    def __init__(self, losses: list[nn.Module], weights: list[float]) -> None:
        super().__init__()
        if not losses or len(losses) != len(weights):
            raise ConfigError(
                f"weighted sum: {len(losses)} losses and {len(weights)} weights; give one weight per loss, at least one"
            )
        self.losses = nn.ModuleList(losses)
        self.weights = tuple(float(w) for w in weights)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K, H, W) logits and (B, H, W) labels to a scalar."""
        terms = [w * loss(logits, labels) for w, loss in zip(self.weights, self.losses, strict=True)]
        return torch.stack(terms).sum()


class DiceCrossEntropy(nn.Module):
    """(1 - dice_weight) * cross-entropy + dice_weight * Dice: smooth gradients and the metric in one loss.

    Args:
        dice_weight: in [0, 1].
        class_weights: of the cross-entropy, see Weighted: one factor >= 0 per class, or a rule; None: all 1.
        label_smoothing: of the cross-entropy, in [0, 1).
        ignore: label of pixels that do not count.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        dice_weight: float = 0.5,
        *,
        class_weights: GivenWeights = None,
        label_smoothing: float = 0.0,
        ignore: int = 255,
    ) -> None:
        super().__init__()
        if not 0 <= dice_weight <= 1:
            raise ConfigError(f"Dice and cross-entropy: dice_weight is {dice_weight}; choose a value in [0, 1]")
        self.dice_weight = dice_weight
        self.cross_entropy = CrossEntropy(class_weights, label_smoothing=label_smoothing, ignore=ignore)
        self.dice = Dice(ignore=ignore)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K, H, W) logits and (B, H, W) labels to a scalar."""
        cross_entropy: Tensor = self.cross_entropy(logits, labels)
        dice: Tensor = self.dice(logits, labels)
        return (1 - self.dice_weight) * cross_entropy + self.dice_weight * dice
