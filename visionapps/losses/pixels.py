"""What losses have in common: which pixels count, and how much each of them.

Shapes: B batch, K classes, H W pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visionapps.class_weights import ClassCounts, ClassWeights, Rule
from visionapps.errors import ConfigError

SMALLEST_SUM = 1e-8  # stands in for the sum of pixel weights where there is none; its numerator is 0 there

GivenWeights = Sequence[float] | Rule | ClassWeights | None


class Weighted(nn.Module):
    """A loss that weighs classes: by numbers that are given, or by a rule once the data is known.

    Args:
        class_weights: one factor >= 0 per class; or a rule that makes them of the training photos, by its name
            ("inverse", "median_frequency", "effective") or with its settings; None: all 1.

    Attributes:
        class_weights: (K,) factors; None: all 1, or not known yet.

    Raises:
        ConfigError: a weight is negative, or there is no such rule.
    """

    class_weights: Tensor | None

    def __init__(self, class_weights: GivenWeights = None) -> None:
        super().__init__()
        self.rule = ClassWeights(class_weights) if isinstance(class_weights, str) else None
        if isinstance(class_weights, ClassWeights):
            self.rule = class_weights
        given = None if self.rule is not None else class_weights
        self.register_buffer("class_weights", _weights(given), persistent=False)  # type: ignore[arg-type]

    def meet(self, counts: ClassCounts) -> None:
        """Make the weights of a rule; numbers that were given are only checked.

        Raises:
            ConfigError: another number of weights than of classes, or nothing to make them of.
        """
        if self.rule is not None:
            self.class_weights = torch.tensor(self.rule.of(counts))
        elif self.class_weights is not None and len(self.class_weights) != len(counts.names):
            raise ConfigError(
                f"class weights: {len(self.class_weights)} weights for {len(counts.names)} classes "
                f"({', '.join(counts.names)}); give one per class, in this order"
            )

    def pixel_weights(self, targets: Tensor, num_classes: int, ignore: int) -> Tensor:
        """(B, H, W) float: the weight of each pixel's class, 0 where ignored."""
        valid = targets != ignore
        weights = self.weights_for(num_classes)
        return valid.float() if weights is None else weights[torch.where(valid, targets, 0)] * valid

    def weights_for(self, num_classes: int) -> Tensor | None:
        """The weights, after a check that there are as many as classes."""
        if self.class_weights is None:
            if self.rule is not None:
                raise ConfigError(
                    f"class weights: the rule {self.rule.rule} needs counts of the training photos; call "
                    "visionapps.losses.meet(loss, counts) first, as training does"
                )
            return None
        if len(self.class_weights) != num_classes:
            raise ConfigError(
                f"class weights: {len(self.class_weights)} weights for a model of {num_classes} classes; give one per "
                "class"
            )
        return self.class_weights


def meet(loss: nn.Module, counts: ClassCounts) -> None:
    """Tell a loss, and all that it is composed of, how often the classes occur.

    Raises:
        ConfigError: its class weights do not fit the classes.
    """
    for part in loss.modules():
        if isinstance(part, Weighted):
            part.meet(counts)


def weights_in(loss: nn.Module) -> dict[str, tuple[float, ...]]:
    """The class weights of a loss and its parts, by the name of the part; of those that have any."""
    return {
        name: tuple(part.class_weights.tolist())
        for name, part in loss.named_modules()
        if isinstance(part, Weighted) and part.class_weights is not None
    }


def check_shapes(logits: Tensor, labels: Tensor) -> None:
    """Raise ConfigError for labels that do not belong to the logits."""
    if logits.dim() != 4 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise ConfigError(
            f"loss: logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not fit; "
            "expected (B, K, H, W) and (B, H, W)"
        )


def targets_of(logits: Tensor, labels: Tensor) -> Tensor:
    """The labels as int64, the only integer type that torch's losses and gather take."""
    check_shapes(logits, labels)
    return labels.long()


def _weights(values: Sequence[float] | None) -> Tensor | None:
    if values is None:
        return None
    weights = torch.tensor([float(v) for v in values])
    if weights.numel() == 0 or not torch.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ConfigError(f"class weights {list(values)}: give one finite number >= 0 per class, not all 0")
    return weights
