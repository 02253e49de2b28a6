"""GoogLeNet as published: kernels of 5 x 5, response normalisation, no batch normalisation.

torchvision's ``googlenet`` is another network: it has kernels of 3 x 3 where the paper has 5 x 5, and batch
normalisation.

Source: Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke and Rabinovich, Going Deeper with Convolutions,
    CVPR 2015, table 1 and section 5.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from visionapps.errors import ConfigError
from visionapps.networks.base import Outputs, PooledHead
from visionapps.networks.chain import Chain
from visionapps.networks.initial import xavier
from visionapps.networks.layers import response_norm

# Table 1: outputs of 1x1; reduction and outputs of 3x3; reduction and outputs of 5x5; projection after the pooling.
_MODULES: Mapping[str, tuple[int, int, int, int, int, int]] = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
_TAPPED = ("inception4a", "inception4d")  # what the auxiliary classifiers look at
_AUXILIARY_WEIGHT = 0.3
_AUXILIARY_SIDE = 14  # of their maps, in an image of 224: the fully connected layer is made for it


class Inception(nn.Module):
    """Kernels of several sizes side by side, their results joined.

    Args:
        channels: of the map that enters.
        widths: a row of table 1 of the paper: outputs of 1x1; reduction and outputs of 3x3; reduction and outputs of
            5x5; projection after the pooling.
        naive: without reductions and projection (figure 2a): kernels see all channels, and so does the pooling's
            result leave with all of them.

    Attributes:
        channels: of the result.
    """

    def __init__(self, channels: int, widths: tuple[int, int, int, int, int, int], *, naive: bool = False) -> None:
        super().__init__()
        single, reduced3, triple, reduced5, quintuple, projected = widths
        self.branch1 = _conv(channels, single, 1)
        pool = nn.MaxPool2d(3, stride=1, padding=1)
        if naive:
            self.branch3 = _conv(channels, triple, 3)
            self.branch5 = _conv(channels, quintuple, 5)
            self.pool: nn.Module = pool
        else:
            self.branch3 = nn.Sequential(*_conv(channels, reduced3, 1), *_conv(reduced3, triple, 3))
            self.branch5 = nn.Sequential(*_conv(channels, reduced5, 1), *_conv(reduced5, quintuple, 5))
            self.pool = nn.Sequential(pool, *_conv(channels, projected, 1))
        self.channels = single + triple + quintuple + (channels if naive else projected)

    def forward(self, image: Tensor) -> Tensor:
        """(B, D, h, w) to (B, channels, h, w): first 1x1, then 3x3, 5x5 and the pooling."""
        return torch.cat([self.branch1(image), self.branch3(image), self.branch5(image), self.pool(image)], 1)


class AuxiliaryHead(nn.Module):
    """A classifier in the middle of the network, which brings gradient there and is not asked afterwards (section 5).

    Args:
        channels: D of the map, which is 14 x 14.
        num_classes: K.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.AvgPool2d(5, stride=3), *_conv(channels, 128, 1))
        hidden = 1024
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(128 * 4 * 4, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(0.7),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, image: Tensor) -> Tensor:
        """(B, D, 14, 14) to (B, K).

        Raises:
            ConfigError: the map has another size.
        """
        if image.shape[-2:] != (_AUXILIARY_SIDE, _AUXILIARY_SIDE):
            raise ConfigError(
                f"googlenet: its auxiliary classifiers are made for maps of {_AUXILIARY_SIDE}x{_AUXILIARY_SIDE}, got "
                f"{image.shape[-2]}x{image.shape[-1]}; train on crops of 224x224, or without them (googlenet)"
            )
        logits: Tensor = self.layers(self.reduce(image))
        return logits


class GoogLeNet(Chain):
    """The chain with two more classifiers for training.

    Attributes:
        auxiliaries: by the step that they look at.
    """

    def __init__(self, name: str, steps: Mapping[str, nn.Module], head: nn.Module, num_classes: int) -> None:
        super().__init__(name, steps, head, native=224, least=31)
        self.auxiliaries = nn.ModuleDict()
        for step in _TAPPED:
            module = self.features.get_submodule(step)
            assert isinstance(module, Inception)
            self.auxiliaries[step] = AuxiliaryHead(module.channels, num_classes)
        self.auxiliary = (_AUXILIARY_WEIGHT,) * len(_TAPPED)

    def outputs(self, image: Tensor) -> Outputs:
        """The answer, and those of the classifiers at 4a and 4d.

        Args:
            image: (B, C, H, W) normalised, sides of 223 to 238 pixels.

        Raises:
            ConfigError: the image has another size.
        """
        self.demand(image)
        further = []
        for name, step in self.features.named_children():
            image = step(image)
            if name in self.auxiliaries:
                further.append(self.auxiliaries[name](image))
        logits = self.head(image)
        return Outputs((logits, *further), logits.new_zeros(()))


def googlenet(num_classes: int = 1000, bands: int = 3) -> Chain:
    """GoogLeNet as it is used: 22 layers with weights, without the classifiers that training adds.

    Args:
        num_classes: K.
        bands: C of the image.
    """
    steps, channels = _steps(bands, naive=False)
    network = Chain("googlenet", steps, PooledHead(channels, num_classes, dropout=0.4), native=224, least=31)
    xavier(network)
    return network


def googlenet_auxiliary(num_classes: int = 1000, bands: int = 3) -> GoogLeNet:
    """GoogLeNet as it is trained from random weights: ``outputs`` gives two more answers, each with weight 0.3.

    Args:
        num_classes: K.
        bands: C of the image.
    """
    steps, channels = _steps(bands, naive=False)
    network = GoogLeNet("googlenet_auxiliary", steps, PooledHead(channels, num_classes, dropout=0.4), num_classes)
    xavier(network)
    return network


def googlenet_naive(num_classes: int = 1000, bands: int = 3) -> Chain:
    """GoogLeNet of naive modules (figure 2a): what the 1 x 1 reductions save. Nobody trained it.

    Args:
        num_classes: K.
        bands: C of the image.
    """
    steps, channels = _steps(bands, naive=True)
    network = Chain("googlenet_naive", steps, PooledHead(channels, num_classes, dropout=0.4), native=224, least=31)
    xavier(network)
    return network


def _steps(bands: int, *, naive: bool) -> tuple[dict[str, nn.Module], int]:
    """Everything before the head, and the channels that leave it. Poolings count a last incomplete window."""
    steps: dict[str, nn.Module] = {
        "conv1": _conv(bands, 64, 7, stride=2),
        "pool1": nn.MaxPool2d(3, stride=2, ceil_mode=True),
        "norm1": response_norm(),
        "conv2_reduce": _conv(64, 64, 1),
        "conv2": _conv(64, 192, 3),
        "norm2": response_norm(),
    }
    channels, block = 192, "2"
    for name, widths in _MODULES.items():
        if name[0] != block:
            steps[f"pool{block}"] = nn.MaxPool2d(3, stride=2, ceil_mode=True)
            block = name[0]
        module = Inception(channels, widths, naive=naive)
        steps[f"inception{name}"] = module
        channels = module.channels
    return steps, channels


def _conv(channels: int, outputs: int, kernel: int, *, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, outputs, kernel, stride=stride, padding=kernel // 2)
    return nn.Sequential(conv, nn.ReLU(inplace=True))
