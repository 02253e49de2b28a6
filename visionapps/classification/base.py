"""A classifier: raw pixels in, class logits out."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from visionapps.backbones.base import Normalize
from visionapps.backbones.classifiers import Pretrained, load_weights
from visionapps.networks.base import Network, Outputs
from visionapps.structures import InputSpec


class Classifier(nn.Module):
    """A network behind one door that takes raw pixels.

    Args:
        network: normalised pixels to logits.
        spec: what the model eats.
        num_classes: K.
        pretrained: weights for ``load_pretrained``; None: the network keeps those that it has.

    Attributes:
        recipe: how to build the same model again, as plain data; set by the functions in visionapps.models.
    """

    def __init__(
        self, network: Network, spec: InputSpec, num_classes: int, pretrained: Pretrained | None = None
    ) -> None:
        super().__init__()
        self.normalize = Normalize(spec)
        self.network = network
        self.spec = spec
        self.num_classes = num_classes
        self.pretrained = pretrained
        self.recipe: dict[str, Any] | None = None

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) raw values of any dtype to (B, K) float logits."""
        logits: Tensor = self.network(self.normalize(image))
        return logits

    def outputs(self, image: Tensor) -> Outputs:
        """The same with everything that is trained: auxiliary logits and penalties."""
        return self.network.outputs(self.normalize(image))

    def load_pretrained(self, names: Sequence[str] | None = None) -> None:
        """Load the weights that were named at construction; nothing to do when none were.

        Args:
            names: of the K classes: rows of classes that the weights know are kept.

        Raises:
            WeightsError: the weights cannot be found, or do not fit.
        """
        if self.pretrained is not None:
            load_weights(self.network, self.pretrained, names, bands=len(self.spec.bands))
