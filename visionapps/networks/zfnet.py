"""ZFNet: AlexNet with a finer look at the image.

Source: Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014, figure 3.
"""

from torch import nn

from visionapps.networks.base import ConnectedHead
from visionapps.networks.chain import Chain
from visionapps.networks.initial import gaussian
from visionapps.networks.layers import response_norm


def zfnet(num_classes: int = 1000, bands: int = 3) -> Chain:
    """First kernels of 7 pixels and stride 2, where AlexNet has 11 and 4.

    Poolings count a last incomplete window, without which the sizes of figure 3 (110, 55, 26, 13, 6) do not come out.
    The paper says "contrast normalised across feature maps" without a formula: taken here for AlexNet's.

    Args:
        num_classes: K.
        bands: C of the image.
    """
    steps: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(bands, 96, 7, stride=2, padding=1),
        "relu1": nn.ReLU(inplace=True),
        "pool1": nn.MaxPool2d(3, stride=2, ceil_mode=True),
        "norm1": response_norm(),
        "conv2": nn.Conv2d(96, 256, 5, stride=2),
        "relu2": nn.ReLU(inplace=True),
        "pool2": nn.MaxPool2d(3, stride=2, ceil_mode=True),
        "norm2": response_norm(),
        "conv3": nn.Conv2d(256, 384, 3, padding=1),
        "relu3": nn.ReLU(inplace=True),
        "conv4": nn.Conv2d(384, 384, 3, padding=1),
        "relu4": nn.ReLU(inplace=True),
        "conv5": nn.Conv2d(384, 256, 3, padding=1),
        "relu5": nn.ReLU(inplace=True),
        "pool5": nn.MaxPool2d(3, stride=2),
    }
    head = ConnectedHead((256, 6, 6), (4096, 4096), num_classes, dropout=0.5)
    network = Chain("zfnet", steps, head, native=224, least=63)
    gaussian(network)
    return network
