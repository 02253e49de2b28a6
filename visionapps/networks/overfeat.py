"""OverFeat, fast and accurate: no normalisation, poolings that do not overlap.

Source: Sermanet, Eigen, Zhang, Mathieu, Fergus and LeCun, OverFeat: Integrated Recognition, Localization and Detection
    using Convolutional Networks, ICLR 2014, tables 1 and 3.
"""

from torch import nn

from visionapps.networks.base import ConnectedHead
from visionapps.networks.chain import Chain
from visionapps.networks.initial import gaussian


def overfeat_fast(num_classes: int = 1000, bands: int = 3) -> Chain:
    """Table 1, for images of 231 x 231.

    Args:
        num_classes: K.
        bands: C of the image.
    """
    steps: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(bands, 96, 11, stride=4),
        "relu1": nn.ReLU(inplace=True),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(96, 256, 5),
        "relu2": nn.ReLU(inplace=True),
        "pool2": nn.MaxPool2d(2),
        "conv3": nn.Conv2d(256, 512, 3, padding=1),
        "relu3": nn.ReLU(inplace=True),
        "conv4": nn.Conv2d(512, 1024, 3, padding=1),
        "relu4": nn.ReLU(inplace=True),
        "conv5": nn.Conv2d(1024, 1024, 3, padding=1),
        "relu5": nn.ReLU(inplace=True),
        "pool5": nn.MaxPool2d(2),
    }
    head = ConnectedHead((1024, 6, 6), (3072, 4096), num_classes, dropout=0.5)
    network = Chain("overfeat_fast", steps, head, native=231, least=71)
    gaussian(network)
    return network


def overfeat_accurate(num_classes: int = 1000, bands: int = 3) -> Chain:
    """Table 3, for images of 221 x 221.

    Args:
        num_classes: K.
        bands: C of the image.
    """
    steps: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(bands, 96, 7, stride=2),
        "relu1": nn.ReLU(inplace=True),
        "pool1": nn.MaxPool2d(3),
        "conv2": nn.Conv2d(96, 256, 7),
        "relu2": nn.ReLU(inplace=True),
        "pool2": nn.MaxPool2d(2),
        "conv3": nn.Conv2d(256, 512, 3, padding=1),
        "relu3": nn.ReLU(inplace=True),
        "conv4": nn.Conv2d(512, 512, 3, padding=1),
        "relu4": nn.ReLU(inplace=True),
        "conv5": nn.Conv2d(512, 1024, 3, padding=1),
        "relu5": nn.ReLU(inplace=True),
        "conv6": nn.Conv2d(1024, 1024, 3, padding=1),
        "relu6": nn.ReLU(inplace=True),
        "pool6": nn.MaxPool2d(3),
    }
    head = ConnectedHead((1024, 5, 5), (4096, 4096), num_classes, dropout=0.5)
    network = Chain("overfeat_accurate", steps, head, native=221, least=77)
    gaussian(network)
    return network
