"""Zero padding for networks that were made without: so that a map of stride s has exactly 1 / s of the image's sides.

Inception, Xception and NASNet lose border pixels in some layers; their maps are shifted against the image, by an
amount that depends on its size. Weights do not change: only pixels near the border see zeros where they saw less.
"""

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from torch import Tensor, nn
from torch.nn import functional as F

# Blocks of Inception-v3 that pool in their forward, where no layer can be given padding; timm and torchvision alike.
_POOLING_BLOCKS = ("timm.models.inception_v3", "torchvision.models.inception")
_SELF_PADDING = (Conv2dSame, MaxPool2dSame, AvgPool2dSame)


def same_padding(network: nn.Module) -> None:
    """Pad every convolution and pooling of odd kernel by half of it, in place; names of weights stay.

    With it, a layer of stride s gives ceil(size / s) pixels, and pixel i of its map stands at i * s. Layers that pad
    that much or more, or by a rule of their own, are left alone.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__module__ in _POOLING_BLOCKS and type(child).__name__ in ("InceptionB", "InceptionD"):
                setattr(parent, name, _Reduction(child))
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) and not isinstance(layer, _SELF_PADDING):
            _pad(layer)


def _pad(layer: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) -> None:
    if isinstance(layer.padding, str):
        return
    kernel, padding = _pair(layer.kernel_size), _pair(layer.padding)
    dilation = (1, 1) if isinstance(layer, nn.AvgPool2d) else _pair(layer.dilation)
    half = tuple(d * (k - 1) // 2 if k % 2 else p for k, d, p in zip(kernel, dilation, padding, strict=True))
    layer.padding = (max(half[0], padding[0]), max(half[1], padding[1]))
    if not isinstance(layer, nn.Conv2d):
        layer.ceil_mode = False
    if isinstance(layer, nn.AvgPool2d):
        layer.count_include_pad = False  # else the mean at the border would be drawn towards zero


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


class _Reduction(nn.Module):
    """InceptionB or InceptionD of Inception-v3 with padding in its pooling branch; the children keep their names."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        children = dict(block.named_children())
        # Branches in the order of their outputs; each is a chain of layers that are called name, or name_1, name_2...
        names = ("branch3x3", "branch3x3dbl") if "branch3x3dbl_1" in children else ("branch3x3", "branch7x7x3")
        self.chains = tuple(tuple(n for n in children if n.rsplit("_", 1)[0] == name or n == name) for name in names)
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, image: Tensor) -> Tensor:
        outputs = []
        for chain in self.chains:
            branch = image
            for name in chain:
                branch = self.get_submodule(name)(branch)
            outputs.append(branch)
        outputs.append(F.max_pool2d(image, kernel_size=3, stride=2, padding=1))
        return torch.cat(outputs, 1)
