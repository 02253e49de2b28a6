"""The six networks of VGG, all read off one table.

Source: Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from visionapps.errors import ConfigError
from visionapps.networks.base import ConnectedHead
from visionapps.networks.chain import Chain
from visionapps.networks.initial import xavier
from visionapps.networks.layers import response_norm

# Table 1 of the paper: per block, the kernels of its convolutions; "N" is response normalisation after the one before.
_WIDTHS = (64, 128, 256, 512, 512)
_TABLE: Mapping[str, tuple[str, str, str, str, str]] = {
    "a": ("3", "3", "33", "33", "33"),
    "a_lrn": ("3N", "3", "33", "33", "33"),
    "b": ("33", "33", "33", "33", "33"),
    "c": ("33", "33", "331", "331", "331"),
    "d": ("33", "33", "333", "333", "333"),
    "e": ("33", "33", "3333", "3333", "3333"),
}
# "The first four convolutional layers" of net A, which are in every other net under the same names.
_FIRST = ("conv1_1", "conv2_1", "conv3_1", "conv3_2")


class VGG(Chain):
    """Convolutions of 3 x 3 in five blocks, each halved by max pooling, and three fully connected layers.

    Weights begin as Glorot and Bengio have it: the paper drew them from N(0, 0.01) and had to train the deep nets from
    a shallow one (``initialise_from``), and adds that with Glorot's rule it found that unnecessary (section 3.1).

    Args:
        column: of table 1 of the paper: a, a_lrn, b, c, d or e.
        num_classes: K.
        bands: C of the image.
        hidden: widths of the hidden fully connected layers; the paper's hold most of the weights.
    """

    def __init__(self, column: str, num_classes: int, bands: int, *, hidden: Sequence[int] = (4096, 4096)) -> None:
        head = ConnectedHead((_WIDTHS[-1], 7, 7), hidden, num_classes, dropout=0.5)
        super().__init__(f"vgg_{column}", _steps(column, bands), head, native=224, least=32)
        xavier(self)

    def initialise_from(self, shallow: "VGG") -> None:
        """Begin with the weights of a trained shallower net: first four convolutions and fully connected layers.

        Args:
            shallow: net A of the paper, or any other of the table, with the same bands and classes.

        Raises:
            ConfigError: it has other bands, classes or hidden layers.

        Source: section 3.1 of the paper.
        """
        pairs = [(name, self.features.get_submodule(name), shallow.features.get_submodule(name)) for name in _FIRST]
        own_layers, other_layers = _linears(self), _linears(shallow)
        if len(own_layers) != len(other_layers):
            raise ConfigError(
                f"{self.name}: has {len(own_layers)} fully connected layers, {shallow.name} {len(other_layers)}; build "
                "both with as many hidden layers"
            )
        layers = zip(own_layers, other_layers, strict=True)
        pairs += [(f"fully connected layer {i}", own, other) for i, (own, other) in enumerate(layers, start=1)]
        for name, own, other in pairs:
            shapes = [tuple(layer.get_parameter("weight").shape) for layer in (own, other)]
            if shapes[0] != shapes[1]:
                raise ConfigError(
                    f"{self.name}: {name} has weights of shape {shapes[0]}, that of {shallow.name} {shapes[1]}; build "
                    "both with the same bands, classes and hidden layers"
                )
        with torch.no_grad():
            for _, own, other in pairs:
                own.load_state_dict(other.state_dict())


def _linears(network: VGG) -> list[nn.Module]:
    return [layer for layer in network.head.modules() if isinstance(layer, nn.Linear)]


def _steps(column: str, bands: int) -> dict[str, nn.Module]:
    steps: dict[str, nn.Module] = {}
    channels = bands
    for block, (kinds, width) in enumerate(zip(_TABLE[column], _WIDTHS, strict=True), start=1):
        for place, kind in enumerate(kinds, start=1):
            if kind == "N":
                steps[f"norm{block}"] = response_norm()
                continue
            kernel = int(kind)
            steps[f"conv{block}_{place}"] = nn.Conv2d(channels, width, kernel, padding=kernel // 2)
            steps[f"relu{block}_{place}"] = nn.ReLU(inplace=True)
            channels = width
        steps[f"pool{block}"] = nn.MaxPool2d(2)
    return steps


def vgg_a(num_classes: int = 1000, bands: int = 3) -> VGG:
    """Net A: 11 layers with weights. Args: see ``vgg_d``."""
    return VGG("a", num_classes, bands)


def vgg_a_lrn(num_classes: int = 1000, bands: int = 3) -> VGG:
    """Net A-LRN: net A with response normalisation after its first layer, which did not help (table 3 of the paper).

    Args: see ``vgg_d``.
    """
    return VGG("a_lrn", num_classes, bands)


def vgg_b(num_classes: int = 1000, bands: int = 3) -> VGG:
    """Net B: 13 layers with weights. Args: see ``vgg_d``."""
    return VGG("b", num_classes, bands)


def vgg_c(num_classes: int = 1000, bands: int = 3) -> VGG:
    """Net C: 16 layers with weights, the last of blocks 3 to 5 being 1 x 1. Args: see ``vgg_d``."""
    return VGG("c", num_classes, bands)


def vgg_d(num_classes: int = 1000, bands: int = 3) -> VGG:
    """Net D, called VGG-16: 16 layers with weights.

    Args:
        num_classes: K.
        bands: C of the image.
    """
    return VGG("d", num_classes, bands)


def vgg_e(num_classes: int = 1000, bands: int = 3) -> VGG:
    """Net E, called VGG-19: 19 layers with weights. Args: see ``vgg_d``."""
    return VGG("e", num_classes, bands)
