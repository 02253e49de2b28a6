"""Network in network: after each convolution two of 1 x 1, and no fully connected layer at all.

Source: Lin, Chen and Yan, Network In Network, ICLR 2014; widths of the authors' network for ImageNet.
"""

from torch import Tensor, nn

from visionapps.networks.chain import Chain
from visionapps.networks.initial import he


class ScoreMapHead(nn.Module):
    """A map of scores per class, averaged over all positions.

    Args:
        channels: D.
        num_classes: K.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.scores = nn.Sequential(nn.Conv2d(channels, num_classes, 1), nn.ReLU(inplace=True))

    def forward(self, image: Tensor) -> Tensor:
        """(B, D, h, w), any h and w, to (B, K)."""
        logits: Tensor = self.scores(image).mean((2, 3))
        return logits

    def dense(self) -> nn.Module:
        """The head at every position: (B, D, h, w) to (B, K, h, w), sharing weights."""
        return self.scores


def nin(num_classes: int = 1000, bands: int = 3) -> Chain:
    """Network in network for ImageNet.

    Weights begin as He et al. have it: the authors set theirs by hand, and give no rule.

    Args:
        num_classes: K.
        bands: C of the image.
    """
    steps: dict[str, nn.Module] = {
        **_perceptron(1, nn.Conv2d(bands, 96, 11, stride=4)),
        "pool1": nn.MaxPool2d(3, stride=2, ceil_mode=True),
        **_perceptron(2, nn.Conv2d(96, 256, 5, padding=2)),
        "pool2": nn.MaxPool2d(3, stride=2, ceil_mode=True),
        **_perceptron(3, nn.Conv2d(256, 384, 3, padding=1)),
        "pool3": nn.MaxPool2d(3, stride=2, ceil_mode=True),
        "dropout": nn.Dropout(0.5),
        "conv4": nn.Conv2d(384, 1024, 3, padding=1),
        "relu4": nn.ReLU(inplace=True),
        "mix4_1": nn.Conv2d(1024, 1024, 1),
        "mix4_1_relu": nn.ReLU(inplace=True),
    }
    network = Chain("nin", steps, ScoreMapHead(1024, num_classes), native=224, least=39)
    he(network)
    return network


def _perceptron(block: int, conv: nn.Conv2d) -> dict[str, nn.Module]:
    """A convolution followed by two of 1 x 1: a small perceptron that slides over the map."""
    width = conv.out_channels
    steps: dict[str, nn.Module] = {f"conv{block}": conv, f"relu{block}": nn.ReLU(inplace=True)}
    for place in (1, 2):
        steps[f"mix{block}_{place}"] = nn.Conv2d(width, width, 1)
        steps[f"mix{block}_{place}_relu"] = nn.ReLU(inplace=True)
    return steps
