"""MobileNet v1, and the network of full convolutions that it was compared with.

Source: Howard, Zhu, Chen, Kalenichenko, Wang, Weyand, Andreetto and Adam, MobileNets: Efficient Convolutional Neural
    Networks for Mobile Vision Applications, 2017, tables 1 and 4.
"""

from torch import nn

from visionapps.networks.base import PooledHead
from visionapps.networks.chain import Chain
from visionapps.networks.initial import he
from visionapps.networks.layers import normalised_conv

# Outputs and stride of the 13 units. Table 1 gives the last a stride of 2 too, but its sizes (7 x 7 before and after)
# leave 1 only.
_UNITS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1)),
)


def mobilenet_v1(num_classes: int = 1000, bands: int = 3) -> Chain:
    """MobileNet: each 3 x 3 looks at one channel, and a 1 x 1 mixes them: 9 c + c^2 weights in place of 9 c^2.

    Args:
        num_classes: K.
        bands: C of the image.
    """
    return _mobilenet("mobilenet_v1", num_classes, bands, separable=True)


def conv_mobilenet(num_classes: int = 1000, bands: int = 3) -> Chain:
    """Conv MobileNet: the same with full convolutions; seven times the parameters for 1.1 points of top-1 (table 4).

    Args:
        num_classes: K.
        bands: C of the image.
    """
    return _mobilenet("conv_mobilenet", num_classes, bands, separable=False)


def _mobilenet(name: str, num_classes: int, bands: int, *, separable: bool) -> Chain:
    steps: dict[str, nn.Module] = {"conv1": nn.Sequential(*normalised_conv(bands, 32, 3, stride=2, padding=1))}
    channels = 32
    for place, (width, stride) in enumerate(_UNITS, start=1):
        if separable:
            depthwise = normalised_conv(channels, channels, 3, stride=stride, padding=1, groups=channels)
            unit: tuple[nn.Module, ...] = (*depthwise, *normalised_conv(channels, width, 1))
        else:
            unit = normalised_conv(channels, width, 3, stride=stride, padding=1)
        steps[f"unit{place}"] = nn.Sequential(*unit)
        channels = width
    network = Chain(name, steps, PooledHead(channels, num_classes), native=224, least=1)
    he(network)
    return network
