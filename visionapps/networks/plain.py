"""Networks of 18 and 34 layers without shortcuts: what residual networks are measured against.

Source: He, Zhang, Ren and Sun, Deep Residual Learning for Image Recognition, CVPR 2016, table 1 and figure 3 (middle).
"""

from collections.abc import Sequence

from torch import nn

from visionapps.networks.base import PooledHead
from visionapps.networks.chain import Chain
from visionapps.networks.initial import he
from visionapps.networks.layers import normalised_conv


def plain18(num_classes: int = 1000, bands: int = 3) -> Chain:
    """18 layers with weights.

    Args:
        num_classes: K.
        bands: C of the image.
    """
    return _plain("plain18", num_classes, bands, units=(2, 2, 2, 2))


def plain34(num_classes: int = 1000, bands: int = 3) -> Chain:
    """34 layers with weights: as many parameters as ResNet-34 with shortcuts that need none.

    Args:
        num_classes: K.
        bands: C of the image.
    """
    return _plain("plain34", num_classes, bands, units=(3, 4, 6, 3))


def _plain(name: str, num_classes: int, bands: int, *, units: Sequence[int]) -> Chain:
    steps: dict[str, nn.Module] = {
        "conv1": nn.Sequential(*normalised_conv(bands, 64, 7, stride=2, padding=3)),
        "pool1": nn.MaxPool2d(3, stride=2, padding=1),
    }
    channels = 64
    for stage, count in enumerate(units, start=2):  # conv2_x to conv5_x of the paper
        width = 64 * 2 ** (stage - 2)
        for unit in range(1, count + 1):
            stride = 2 if stage > 2 and unit == 1 else 1
            steps[f"conv{stage}_{unit}"] = nn.Sequential(
                *normalised_conv(channels, width, 3, stride=stride, padding=1),
                *normalised_conv(width, width, 3, padding=1),
            )
            channels = width
    network = Chain(name, steps, PooledHead(channels, num_classes), native=224, least=1)
    he(network)
    return network
