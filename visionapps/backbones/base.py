"""The contract between a classification network and every dense head: a pyramid with known strides and channels."""

from torch import Tensor, nn

from visionapps.structures import InputSpec, Level


class Backbone(nn.Module):
    """A feature pyramid. Shapes: B batch, C bands, H x W pixels, both multiples of the coarsest stride.

    Attributes:
        levels: one Level per feature map, finest first, strides ascending and true: map l is exactly
            H / stride by W / stride, found by probing and never inferred from a batch.
        spec: the input that the weights belong to; heads normalise with it before calling forward.
    """

    levels: tuple[Level, ...]
    spec: InputSpec

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
