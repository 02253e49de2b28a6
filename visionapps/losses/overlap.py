"""Losses that judge how the pixels of a class overlap with the truth. Shapes: B batch, K classes, N or H W pixels."""

from typing import Literal

import torch
from torch import Tensor, nn

from visionapps.errors import ConfigError
from visionapps.losses.pixels import check_shapes


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
        _require_average("Dice", average)
        if smooth <= 0:
            raise ConfigError(f"Dice loss: smooth is {smooth}; choose a positive number of pixels, such as 1")
        self.average = average
        self.smooth = smooth
        self.ignore = ignore

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K, H, W) logits and (B, H, W) labels to a scalar in [0, 1]."""
        check_shapes(logits, labels)
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


class Lovasz(nn.Module):
    """The Lovasz-softmax loss: the Jaccard loss 1 - IoU, averaged over classes, made continuous in the probabilities.

    Of certain predictions it is exactly 1 - IoU. The errors of a class are sorted, so a step costs K sorts of all
    pixels. segmentation_models_pytorch's LovaszLoss gives the same values, but no scalar for a batch that is wholly
    ignored, and takes the weight of a pixel as the difference of two running IoUs, which agree in most of their digits
    where there are millions of pixels; here the difference is written out.

    Args:
        average: "present": over the classes that the labels contain; "all": over all K, where an absent class costs its
            largest probability.
        per_image: judge each image of a batch by itself and average; otherwise the batch is judged like one image.
        ignore: label of pixels that do not count.

    Raises:
        ConfigError: average is unknown.

    Source: Berman, Rannen Triki and Blaschko, The Lovasz-Softmax Loss, CVPR 2018, equations 8 to 11 and algorithm 1.
    """

    def __init__(
        self, average: Literal["present", "all"] = "present", *, per_image: bool = False, ignore: int = 255
    ) -> None:
        super().__init__()
        _require_average("Lovasz", average)
        self.average = average
        self.per_image = per_image
        self.ignore = ignore

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K, H, W) logits and (B, H, W) labels to a scalar in [0, 1]."""
        check_shapes(logits, labels)
        with torch.autocast(logits.device.type, enabled=False):
            probabilities = logits.float().softmax(dim=1).flatten(2)
            truth = labels.flatten(1)
            if not self.per_image:
                probabilities, truth = probabilities.transpose(0, 1).flatten(1)[None], truth.flatten()[None]
            values = [self._of_image(p, t) for p, t in zip(probabilities, truth, strict=True)]
            counted = (truth != self.ignore).any(dim=1)
            return (torch.stack(values) * counted).sum() / counted.sum().clamp_min(1)

    def _of_image(self, probabilities: Tensor, truth: Tensor) -> Tensor:
        """(K, N) probabilities and (N,) labels to a scalar."""
        valid = truth != self.ignore
        losses, present = [], []
        for k, probability in enumerate(probabilities):
            own = (truth == k) & valid
            # The error is 1 - p of the class's own pixels and p of all others: linear in p, with these slopes.
            weight = _jaccard_steps((own.float() - probability.detach()).abs() * valid, own) * valid
            losses.append((weight * own).sum() + (torch.where(own, -weight, weight) * probability).sum())
            present.append(own.any())
        chosen = torch.stack(present) if self.average == "present" else valid.any().expand(len(losses))
        return (torch.stack(losses) * chosen).sum() / chosen.sum().clamp_min(1)


def _jaccard_steps(errors: Tensor, own: Tensor) -> Tensor:
    """(N,) by how much the Jaccard loss grows with each pixel, if pixels become wrong in the order of their errors.

    Pixels without error come last and are multiplied by it, so those that do not count may be among them.
    """
    order = errors.argsort(descending=True)
    ours = own[order]
    missed = ours.cumsum(0)
    size = own.sum()
    left = size - missed  # of the class, still right
    union = size + torch.arange(1, len(own) + 1, device=own.device) - missed
    # A pixel of the class leaves the intersection; another joins the union, which costs I / (U - 1) - I / U.
    joins = left / ((union - 1) * union.float()).clamp_min(1)
    steps = torch.where(ours, 1 / union.float(), joins)
    steps[0] = torch.where(size == 0, 1.0, steps[0])  # any error in a class without pixels costs all of it
    return torch.empty_like(errors).scatter_(0, order, steps)


def _require_average(kind: str, average: str) -> None:
    if average not in ("present", "all"):
        raise ConfigError(f"{kind} loss: average is {average!r}; choose 'present' or 'all'")
