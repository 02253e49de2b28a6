"""The contract between a classification network and every dense head: a pyramid with known strides and channels."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.structures import InputSpec, Level


class Backbone(nn.Module):
    """A feature pyramid. Shapes: B batch, C bands, H x W pixels, both multiples of the coarsest stride.

    Attributes:
        levels: one Level per feature map, finest first, strides ascending and true: map l is exactly
            H / stride by W / stride, found by probing and never inferred from a batch.
        spec: the input that the weights belong to; heads normalise with it before calling forward.
        fresh: modules that begin with random numbers whatever weights are loaded, and have to learn.
        raw: its maps are sums of residual branches that no layer has normalised yet (ConvNeXt, Swin, ResNets with
            activations first), of any scale: a neck without normalisation of its own should begin with one.
    """

    levels: tuple[Level, ...]
    spec: InputSpec
    fresh: tuple[nn.Module, ...] = ()
    raw: bool = False

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Features of a normalised image.

        Args:
            image: (B, C, H, W) float, already normalised with ``spec``; H and W multiples of ``levels[-1].stride``.

        Returns:
            One (B, channels, H / stride, W / stride) map per level, finest first.
        """
        raise NotImplementedError

    def load_pretrained(self) -> None:
        """Load the weights that were named at construction; nothing to do when none were.

        Raises:
            WeightsError: the weights cannot be found, or do not fit.
        """


class Normalize(nn.Module):
    """Raw pixel values of any dtype to what the network expects: (v / scale - mean) / std, per band."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        # In raw units, so that one subtraction and one multiplication remain per pixel.
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1) * spec.scale, persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1) * spec.scale, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) raw, any dtype, to (B, C, H, W) float normalised."""
        return (image.to(self.mean.dtype) - self.mean) / self.std


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column until H and W are multiples: (B, C, H, W) to (B, C, H', W')."""
    height, width = image.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if not bottom and not right:
        return image
    return F.pad(image, (0, right, 0, bottom), mode="replicate")
