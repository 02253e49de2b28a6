"""A network whose image passes one step after the other, and refuses an image that the steps would use up."""

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

from visionapps.errors import ConfigError
from visionapps.networks.base import Network


class Chain(Network):
    """Named steps and a head, with a check of the image's size.

    Args:
        name: what messages call it.
        steps: in the order of computation.
        head: last map to logits.
        native: side in pixels of the square images that it was published for.
        least: side in pixels of the smallest image of which the steps leave a pixel.

    Attributes:
        name: as given.
        least: as given.
    """

    def __init__(self, name: str, steps: Mapping[str, nn.Module], head: nn.Module, *, native: int, least: int) -> None:
        super().__init__()
        self.name = name
        self.features = nn.Sequential(OrderedDict(steps))
        self.head = head
        self.native = native
        self.least = least

    def forward(self, image: Tensor) -> Tensor:
        """
        Args:
            image: (B, C, H, W) normalised, sides of at least ``least`` pixels; a head of fully connected layers wants
                sides that give its map.

        Returns:
            (B, K) logits.

        Raises:
            ConfigError: the image is too small, or has a size that the head does not take.
        """
        self.demand(image)
        return super().forward(image)

    def demand(self, image: Tensor) -> None:
        """
        Raises:
            ConfigError: the image is so small that a step would have nothing to look at.
        """
        height, width = image.shape[-2:]
        if min(height, width) < self.least:
            raise ConfigError(
                f"{self.name}: the image has {height}x{width} pixels (HxW), but the smallest legal size is "
                f"{self.least}x{self.least}; enlarge it, or choose a network with a smaller stride"
            )
