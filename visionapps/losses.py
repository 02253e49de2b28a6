"""Losses of segmentation: (B, K, H, W) logits and (B, H, W) labels to a scalar; ignored pixels count nowhere.

Labels arrive as the data layer stores them (uint8) or as int64, on the logits' device. Every label is in [0, K) or is
the ignore label: the data layer guarantees it, because looking at each step would make the GPU wait for the CPU.
A batch in which every pixel is ignored gives 0, with zero gradients, and never NaN.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.errors import ConfigError

_SMALLEST_SUM = 1e-8  # stands in for the sum of pixel weights where there is none; its numerator is 0 there


class CrossEntropy(nn.Module):
    """Mean negative log probability of the true class: sum of w[y] * nll over pixels, divided by the sum of w[y].

    Args:
        class_weights: one factor >= 0 per class for imbalanced data; None: all 1.
        label_smoothing: share of the target in [0, 1) that is spread evenly over all classes.
        ignore: label of pixels that do not count.

    Raises:
        ConfigError: a weight is negative, or the smoothing is out of range.
    """

    class_weights: Tensor | None

    def __init__(
        self, class_weights: Sequence[float] | None = None, *, label_smoothing: float = 0.0, ignore: int = 255
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"cross-entropy: label_smoothing is {label_smoothing}; choose a value in [0, 1)")
        self.register_buffer("class_weights", _weights(class_weights), persistent=False)
        self.label_smoothing = label_smoothing
        self.ignore = ignore

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K, H, W) logits and (B, H, W) labels to a scalar."""
        targets = _targets(logits, labels)
        counted = _pixel_weights(targets, logits.shape[1], self.class_weights, self.ignore).sum()
        # torch's own mean is 0 / 0 = NaN when every pixel is ignored.
        total = F.cross_entropy(
            logits.float(),
            targets,
            weight=self.class_weights,
            ignore_index=self.ignore,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        return total / counted.clamp_min(_SMALLEST_SUM)


class Focal(nn.Module):
    """Cross-entropy in which easy pixels count less: w[y] * (1 - p[y]) ** gamma * nll, divided by the sum of w[y].

    segmentation_models_pytorch's multiclass focal loss takes one sigmoid per class and is not cross-entropy at gamma 0;
    models here are trained and read through a softmax, and so is this loss.

    Args:
        gamma: >= 0; 0 is cross-entropy, 2 the paper's choice.
        class_weights: one factor >= 0 per class (alpha in the paper); None: all 1.
        ignore: label of pixels that do not count.

    Raises:
        ConfigError: gamma or a weight is negative.

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equation 5. The paper divides by the number of
    objects, which segmentation does not have.
    """

    class_weights: Tensor | None

    def __init__(self, gamma: float = 2.0, *, class_weights: Sequence[float] | None = None, ignore: int = 255) -> None:
        super().__init__()
        if gamma < 0:
            raise ConfigError(f"focal loss: gamma is {gamma}; choose 0 or more (2 is usual)")
        self.register_buffer("class_weights", _weights(class_weights), persistent=False)
        self.gamma = gamma
        self.ignore = ignore

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K, H, W) logits and (B, H, W) labels to a scalar."""
        targets = _targets(logits, labels)
        weights = _pixel_weights(targets, logits.shape[1], self.class_weights, self.ignore)
        nll = F.cross_entropy(logits.float(), targets, ignore_index=self.ignore, reduction="none")
        # 1 - p of a certain pixel is 0, where a power below 1 has an infinite slope: keep away from it.
        hardness = (-torch.expm1(-nll)).clamp_min(1e-12) ** self.gamma
        return (weights * hardness * nll).sum() / weights.sum().clamp_min(_SMALLEST_SUM)


class Dice(nn.Module):
    """1 - mean over classes of the soft Dice (2 TP + smooth) / (predicted + labelled + smooth), over the whole batch.

    TP, predicted and labelled are sums of softmax probabilities over all counted pixels of the batch, so this is the
    differentiable form of the Dice that validation reports. segmentation_models_pytorch's DiceLoss averages over all
    classes but gives absent ones a loss of 0, so that its value changes with the number of classes in the batch, and it
    builds an int64 one-hot of (B, H, W, K): eight bytes per logit.

    Args:
        average: "present": over the classes that the batch's labels contain; "all": over all K, where an absent class
            pulls its predictions to zero.
        smooth: > 0, in pixels; keeps the Dice of a class with neither labels nor predictions at 1.
        ignore: label of pixels that do not count.

    Raises:
        ConfigError: smooth is not positive, or average is unknown.

    Source: Milletari et al., V-Net, 3DV 2016, without the squares in the denominator.
    """

    def __init__(
        self, average: Literal["present", "all"] = "present", *, smooth: float = 1.0, ignore: int = 255
    ) -> None:
        super().__init__()
        if average not in ("present", "all"):
            raise ConfigError(f"Dice loss: average is {average!r}; choose 'present' or 'all'")
        if smooth <= 0:
            raise ConfigError(f"Dice loss: smooth is {smooth}; choose a positive number of pixels, such as 1")
        self.average = average
        self.smooth = smooth
        self.ignore = ignore

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K, H, W) logits and (B, H, W) labels to a scalar in [0, 1]."""
        _check_shapes(logits, labels)
        # Autocast would hand the sums over millions of pixels to 16-bit matrix products.
        with torch.autocast(logits.device.type, enabled=False):
            true_positive, predicted, labelled = self._sums(logits, labels)
        loss = 1 - (2 * true_positive + self.smooth) / (predicted + labelled + self.smooth)
        if self.average == "all":
            return loss.mean()
        present = labelled > 0
        return (loss * present).sum() / present.sum().clamp_min(1)

    def _sums(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """True positive, predicted and labelled pixels per class, three tensors of (K,)."""
        probabilities = logits.float().softmax(dim=1)
        valid = labels != self.ignore
        classes = torch.arange(logits.shape[1], device=labels.device, dtype=labels.dtype).view(1, -1, 1, 1)
        # The labels stay uint8 for the comparison. Scattering with index_add is a quarter faster on a CPU, but on a GPU
        # its result depends on the order of threads.
        truth = ((labels.unsqueeze(1) == classes) & valid.unsqueeze(1)).to(probabilities.dtype)
        true_positive = torch.einsum("bkhw,bkhw->k", probabilities, truth)
        predicted = torch.einsum("bkhw,bhw->k", probabilities, valid.to(probabilities.dtype))
        return true_positive, predicted, truth.sum(dim=(0, 2, 3))


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
        targets = _targets(logits, labels)
        valid = targets != self.ignore
        probabilities = logits.float().softmax(dim=1)
        true = probabilities.gather(1, torch.where(valid, targets, 0).unsqueeze(1)).squeeze(1)
        # The square of a difference to a one-hot vector, without the vector: |p|^2 - 2 p[y] + 1.
        squared = probabilities.square().sum(dim=1) - 2 * true + 1
        return (squared * valid).sum() / (valid.sum().clamp_min(1) * logits.shape[1])


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
        class_weights: of the cross-entropy, one factor >= 0 per class; None: all 1.
        label_smoothing: of the cross-entropy, in [0, 1).
        ignore: label of pixels that do not count.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        dice_weight: float = 0.5,
        *,
        class_weights: Sequence[float] | None = None,
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


def _weights(values: Sequence[float] | None) -> Tensor | None:
    if values is None:
        return None
    weights = torch.tensor([float(v) for v in values])
    if weights.numel() == 0 or not torch.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ConfigError(f"class weights {list(values)}: give one finite number >= 0 per class, not all 0")
    return weights


def _check_shapes(logits: Tensor, labels: Tensor) -> None:
    if logits.dim() != 4 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise ConfigError(
            f"loss: logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not fit; "
            "expected (B, K, H, W) and (B, H, W)"
        )


def _targets(logits: Tensor, labels: Tensor) -> Tensor:
    """The labels as int64, the only integer type that torch's losses and gather take."""
    _check_shapes(logits, labels)
    return labels.long()


def _pixel_weights(targets: Tensor, num_classes: int, class_weights: Tensor | None, ignore: int) -> Tensor:
    """(B, H, W) float: the weight of each pixel's class, 0 where ignored."""
    valid = targets != ignore
    if class_weights is None:
        return valid.float()
    if len(class_weights) != num_classes:
        raise ConfigError(
            f"class weights: {len(class_weights)} weights for a model of {num_classes} classes; give one per class"
        )
    return class_weights[torch.where(valid, targets, 0)] * valid
