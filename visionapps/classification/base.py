"""A classifier: raw pixels in, class logits out."""

from typing import Any

from torch import Tensor, nn

from visionapps.backbones.base import Normalize
from visionapps.networks.base import Network, Outputs
from visionapps.structures import InputSpec


class Classifier(nn.Module):
    """A network behind one door that takes raw pixels.

    Attributes:
        spec: what the model eats.
        network: normalised pixels to logits.
        num_classes: K.
        recipe: how to build the same model again, as plain data; set by the functions in visionapps.models.
    """

    def __init__(self, network: Network, spec: InputSpec, num_classes: int) -> None:
        super().__init__()
        self.normalize = Normalize(spec)
        self.network = network
        self.spec = spec
        self.num_classes = num_classes
        self.recipe: dict[str, Any] | None = None

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) raw values of any dtype to (B, K) float logits."""
        logits: Tensor = self.network(self.normalize(image))
        return logits

    def outputs(self, image: Tensor) -> Outputs:
        """The same with everything that is trained: auxiliary logits and penalties."""
        return self.network.outputs(self.normalize(image))
