"""AlexNet with its two towers, and the single tower that lectures draw.

Source: Krizhevsky, Sutskever and Hinton, ImageNet Classification with Deep Convolutional Neural Networks, NIPS 2012.
"""

from torch import nn

from visionapps.networks.base import ConnectedHead
from visionapps.networks.chain import Chain
from visionapps.networks.initial import gaussian
from visionapps.networks.layers import response_norm


def alexnet(num_classes: int = 1000, bands: int = 3) -> Chain:
    """AlexNet as published: two graphics cards with half of the maps each, which meet in the third convolution only.

    Args:
        num_classes: K.
        bands: C of the image.

    Returns:
        A network for images of 227 x 227: the paper says 224, with which its sizes do not come out (55 = (227 - 11) /
        4 + 1).
    """
    return _alexnet("alexnet", num_classes, bands, towers=2)


def alexnet_one_tower(num_classes: int = 1000, bands: int = 3) -> Chain:
    """The same on one card: every convolution sees all maps.

    Tables of this form often show the normalisation after the pooling; here it stands before, as in the paper.
    torchvision's ``alexnet`` is neither of the two: it has other widths, and no normalisation (Krizhevsky, One Weird
    Trick for Parallelizing Convolutional Neural Networks, 2014).

    Args:
        num_classes: K.
        bands: C of the image.
    """
    return _alexnet("alexnet_one_tower", num_classes, bands, towers=1)


def _alexnet(name: str, num_classes: int, bands: int, *, towers: int) -> Chain:
    steps: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(bands, 96, 11, stride=4),
        "relu1": nn.ReLU(inplace=True),
        "norm1": response_norm(),
        "pool1": nn.MaxPool2d(3, stride=2),  # overlapping: section 3.4
        "conv2": nn.Conv2d(96, 256, 5, padding=2, groups=towers),
        "relu2": nn.ReLU(inplace=True),
        "norm2": response_norm(),
        "pool2": nn.MaxPool2d(3, stride=2),
        "conv3": nn.Conv2d(256, 384, 3, padding=1),
        "relu3": nn.ReLU(inplace=True),
        "conv4": nn.Conv2d(384, 384, 3, padding=1, groups=towers),
        "relu4": nn.ReLU(inplace=True),
        "conv5": nn.Conv2d(384, 256, 3, padding=1, groups=towers),
        "relu5": nn.ReLU(inplace=True),
        "pool5": nn.MaxPool2d(3, stride=2),
    }
    head = ConnectedHead((256, 6, 6), (4096, 4096), num_classes, dropout=0.5)
    network = Chain(name, steps, head, native=227, least=67)
    gaussian(network)  # section 5, as are the ones: they give ReLU something positive to begin with
    hidden = [layer for layer in head.modules() if isinstance(layer, nn.Linear)][:-1]
    for layer in (*(network.features.get_submodule(f"conv{i}") for i in (2, 4, 5)), *hidden):
        nn.init.ones_(layer.get_parameter("bias"))
    return network
