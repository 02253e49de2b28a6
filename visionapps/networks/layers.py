"""What several networks are made of: normalised convolutions, and the response normalisation of 2012."""

from torch import nn


def normalised_conv(
    channels: int,
    outputs: int,
    kernel: int | tuple[int, int],
    *,
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
    groups: int = 1,
) -> tuple[nn.Conv2d, nn.BatchNorm2d, nn.ReLU]:
    """A convolution without bias, which the batch normalisation after it would take away again, and ReLU.

    Args:
        channels: of the map that enters.
        outputs: channels of the result.
        kernel: side, or (height, width), in pixels.
        stride: of the convolution.
        padding: zeros at each side, or (above and below, left and right).
        groups: of channels that see only each other.
    """
    conv = nn.Conv2d(channels, outputs, kernel, stride=stride, padding=padding, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


def response_norm() -> nn.LocalResponseNorm:
    """a / (2 + 1e-4 * sum of a^2 over five neighbouring channels) ^ 0.75.

    torch takes the mean over the neighbours where the paper takes the sum: its alpha is five times the paper's.

    Source: Krizhevsky, Sutskever and Hinton, ImageNet Classification with Deep Convolutional Neural Networks, NIPS
        2012, section 3.3.
    """
    neighbours = 5
    return nn.LocalResponseNorm(neighbours, alpha=neighbours * 1e-4, beta=0.75, k=2.0)
