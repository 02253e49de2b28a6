"""FCN, DeconvNet and U-Net layer for layer as they were published, each made of one network and with its own frame.

Shapes: B images, C bands, H x W pixels, K classes. The maps of these trunks cover what the frame adds around the image
(or lack what convolutions without padding use up), so they are no pyramids for other decoders.

Departures: weights begin with random numbers (He's rule, as U-Net has it), where FCN and DeconvNet take those of
VGG-16.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.backbones.base import Backbone, pad_to_multiple
from visionapps.errors import ConfigError
from visionapps.networks.initial import he
from visionapps.segmentation.base import Decoder, Segmentor
from visionapps.segmentation.fcn import bilinear_deconvolution, connected_as_convolutions, zero_score
from visionapps.structures import InputSpec, Level

_CONVOLUTIONS = (2, 2, 3, 3, 3)  # per block of VGG-16: Simonyan and Zisserman 2015, table 1, D
_FIRST_PADDING = 100  # of FCN's first convolution: Long et al. 2015, the authors' networks
_CROPS = {32: (19,), 16: (5, 27), 8: (5, 9, 31)}  # offsets that the authors' networks crop with, coarse to fine
_DECONVNET_SIDE = 224  # px: Noh et al. 2015, section 3.1; its fc6 takes no map smaller than 7 x 7
_UNET_STRIDE = 16
_UNET_BORDER = 92  # px that U-Net's convolutions use up on each side: (572 - 388) / 2


class Published(Segmentor):
    """A segmentation model whose frame around the image is the paper's.

    Args:
        trunk: up to the coarsest map.
        decoder: from there; its logits begin at the image's first pixel and reach at least to its last one.
        num_classes: K.
    """

    def framed(self, image: Tensor) -> Tensor:
        """(B, C, H, W) normalised to what the trunk takes."""
        return image

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) raw, any H and W >= 1, to (B, K, H, W) logits."""
        logits: Tensor = self.decoder(self.backbone(self.framed(self.normalize(image))))
        return logits[..., : image.shape[-2], : image.shape[-1]]


class FCNTrunk(Backbone):
    """VGG-16 up to pool5: the first convolution pads by 100, and pooling keeps the last row of odd maps (ceil mode).

    Args:
        spec: of the input.
        channels: of the five blocks.
    """

    def __init__(self, spec: InputSpec, channels: Sequence[int]) -> None:
        super().__init__()
        self.spec = spec
        self.levels = (Level(8, channels[2]), Level(16, channels[3]), Level(32, channels[4]))
        self.blocks = _blocks(len(spec.bands), channels, norm=False)
        first = next(each for each in self.modules() if isinstance(each, nn.Conv2d))
        first.padding = (_FIRST_PADDING, _FIRST_PADDING)
        he(self)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Maps after pool3, pool4 and pool5."""
        maps = []
        for block in self.blocks:
            image = F.max_pool2d(block(image), 2, ceil_mode=True)
            maps.append(image)
        return tuple(maps[2:])


class PublishedFCN(Decoder):
    """fc6 and fc7 as convolutions, scores, and deconvolutions whose results are cropped to fit.

    The last deconvolution stays bilinear interpolation, the others are learned (section 4.1 and figure 3 of the paper).

    Source: Long, Shelhamer and Darrell, CVPR 2015, and the authors' networks voc-fcn32s, voc-fcn16s and voc-fcn8s.

    Args:
        levels: of the trunk.
        num_classes: K.
        finest_stride: 32, 16 or 8: the net's name.
        hidden: width of fc6 and fc7.
    """

    stride = 1

    def __init__(self, levels: Sequence[Level], num_classes: int, *, finest_stride: int, hidden: int) -> None:
        super().__init__()
        self.crops = _CROPS[finest_stride]
        finer = [level.channels for level in reversed(levels[:-1])][: len(self.crops) - 1]
        self.head = connected_as_convolutions(levels[-1].channels, hidden, 0.5, padding=0)
        he(self)
        self.scores = nn.ModuleList(zero_score(width, num_classes) for width in (hidden, *finer))
        factors = [2] * len(finer) + [finest_stride]
        self.upsamples = nn.ModuleList(bilinear_deconvolution(num_classes, factor, padding=0) for factor in factors)
        self.upsamples[-1].requires_grad_(False)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Maps of the trunk to logits from the image's first pixel on, at least as large as the image."""
        logits: Tensor = self.scores[0](self.head(features[-1]))
        finer = zip(reversed(features[:-1]), self.scores[1:], self.upsamples[:-1], self.crops[:-1], strict=False)
        for feature, score, upsample, crop in finer:
            logits = upsample(logits)
            height, width = logits.shape[-2:]
            logits = logits + score(feature)[..., crop : crop + height, crop : crop + width]
        last: Tensor = self.upsamples[-1](logits)
        return last[..., self.crops[-1] :, self.crops[-1] :]


class DeconvNetTrunk(Backbone):
    """VGG-16 with batch normalisation, whose pooling tells where each maximum was.

    Args:
        spec: of the input.
        channels: of the five blocks.
    """

    def __init__(self, spec: InputSpec, channels: Sequence[int]) -> None:
        super().__init__()
        self.spec = spec
        self.levels = (Level(32, channels[4]),)
        self.blocks = _blocks(len(spec.bands), channels, norm=True)
        he(self)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The map after pool5, then the switches of pool1 to pool5, int64."""
        switches = []
        for block in self.blocks:
            image, places = F.max_pool2d(block(image), 2, return_indices=True)
            switches.append(places)
        return (image, *switches)


class PublishedDeconvNet(Decoder):
    """fc6 and fc7, and the trunk's mirror: unpooling to the recorded places, deconvolutions of 3 x 3.

    Source: Noh, Hong and Han, ICCV 2015, section 3 and the table of its supplement.

    Args:
        channels: of the trunk's five blocks.
        num_classes: K.
        hidden: width of fc6 and fc7.
    """

    stride = 1

    def __init__(self, channels: Sequence[int], num_classes: int, *, hidden: int) -> None:
        super().__init__()
        self.bottleneck = nn.Sequential(
            *_layer(nn.Conv2d(channels[4], hidden, 7)),
            *_layer(nn.Conv2d(hidden, hidden, 1)),
            *_layer(nn.ConvTranspose2d(hidden, channels[4], 7)),
        )
        self.blocks = nn.ModuleList()
        for place in reversed(range(5)):
            widths = [channels[place]] * _CONVOLUTIONS[place] + [channels[max(place - 1, 0)]]
            deconvolutions = (nn.ConvTranspose2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths))
            self.blocks.append(nn.Sequential(*(part for each in deconvolutions for part in _layer(each))))
        self.score = nn.Conv2d(channels[0], num_classes, 1)
        he(self)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """The trunk's map and switches to (B, K, H, W) logits."""
        x: Tensor = self.bottleneck(features[0])
        for block, switches in zip(self.blocks, reversed(features[1:]), strict=True):
            x = block(F.max_unpool2d(x, switches, (2, 2)))
        logits: Tensor = self.score(x)
        return logits


class PublishedDeconvNetSegmentor(Published):
    """DeconvNet on images of any size: the last row and column are repeated to a multiple of 32, at least 224."""

    def framed(self, image: Tensor) -> Tensor:
        padded = pad_to_multiple(image, 32)
        bottom, right = (max(0, _DECONVNET_SIDE - side) for side in padded.shape[-2:])
        return F.pad(padded, (0, right, 0, bottom), mode="replicate") if bottom or right else padded


class UNetTrunk(Backbone):
    """The contracting path: two convolutions per stride, dropout at its end.

    Args:
        spec: of the input.
        channels: of the five strides, finest first.
        valid: convolutions without padding, as published; False: each keeps the size of its map.
    """

    def __init__(self, spec: InputSpec, channels: Sequence[int], *, valid: bool) -> None:
        super().__init__()
        self.spec = spec
        self.levels = tuple(Level(2**i, width) for i, width in enumerate(channels))
        widths = (len(spec.bands), *channels)
        self.blocks = nn.ModuleList(_twice(a, b, valid) for a, b in zip(widths, channels, strict=False))
        self.dropout = nn.Dropout(0.5)  # of the last two, as in the authors' network
        he(self)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Maps of the strides 1, 2, 4, 8 and 16."""
        maps: list[Tensor] = []
        for place, block in enumerate(self.blocks):
            image = block(F.max_pool2d(image, 2) if place else image)
            image = self.dropout(image) if place >= len(self.blocks) - 2 else image
            maps.append(image)
        return tuple(maps)


class PublishedUNet(Decoder):
    """The expanding path: up-convolution of 2 x 2, the middle of the finer map beside it, two convolutions.

    Source: Ronneberger, Fischer and Brox, MICCAI 2015, figure 1.

    Args:
        channels: of the trunk.
        num_classes: K.
        valid: see UNetTrunk.
    """

    stride = 1

    def __init__(self, channels: Sequence[int], num_classes: int, *, valid: bool) -> None:
        super().__init__()
        steps = list(zip(channels[::-1], channels[-2::-1], strict=False))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in steps)
        self.blocks = nn.ModuleList(_twice(2 * b, b, valid) for _, b in steps)
        self.score = nn.Conv2d(channels[0], num_classes, 1)
        he(self)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Maps of the trunk to logits: of 572 pixels the middle 388, or of all where convolutions pad."""
        x = features[-1]
        for up, block, fine in zip(self.ups, self.blocks, reversed(features[:-1]), strict=True):
            x = up(x)
            top, left = ((a - b) // 2 for a, b in zip(fine.shape[-2:], x.shape[-2:], strict=True))
            middle = fine[..., top : top + x.shape[-2], left : left + x.shape[-1]]
            x = block(torch.cat((middle, x), 1))
        logits: Tensor = self.score(x)
        return logits


class PublishedUNetSegmentor(Published):
    """U-Net on images of any size: reflected around so that the logits cover the image (the overlap-tile strategy,
    figure 2 of the paper), or, where convolutions pad, with the last row and column repeated to a multiple of 16."""

    def __init__(self, trunk: UNetTrunk, decoder: PublishedUNet, num_classes: int, *, valid: bool) -> None:
        super().__init__(trunk, decoder, num_classes)
        self.valid = valid

    def framed(self, image: Tensor) -> Tensor:
        if not self.valid:
            return pad_to_multiple(image, _UNET_STRIDE)
        for dim in (-2, -1):
            side = image.shape[dim]
            drawn = side + (4 - side) % _UNET_STRIDE  # the sizes of its logits are 4, 20, ... 388
            image = image.index_select(dim, _reflected(side, drawn, image.device))
        return image


def require_channels(channels: Sequence[int], hidden: int = 1) -> None:
    """
    Raises:
        ConfigError: there is not one positive width for each of the five blocks.
    """
    if len(channels) != 5 or min(*channels, hidden) < 1:
        raise ConfigError(f"channels {list(channels)}, hidden {hidden}: give five positive widths, and hidden >= 1")


def _reflected(side: int, drawn: int, device: torch.device) -> Tensor:
    """Places to read so that ``drawn`` pixels have a border of what the image shows in its mirrors; any side >= 1."""
    period = max(1, 2 * (side - 1))
    places = torch.arange(-_UNET_BORDER, drawn + _UNET_BORDER, device=device) % period
    return torch.minimum(places, period - places) if side > 1 else torch.zeros_like(places)


def _blocks(bands: int, channels: Sequence[int], *, norm: bool) -> nn.ModuleList:
    blocks = nn.ModuleList()
    before = bands
    for count, width in zip(_CONVOLUTIONS, channels, strict=True):
        parts: list[nn.Module] = []
        for _ in range(count):
            convolution = nn.Conv2d(before, width, 3, padding=1)
            parts += _layer(convolution) if norm else (convolution, nn.ReLU(inplace=True))
            before = width
        blocks.append(nn.Sequential(*parts))
    return blocks


def _layer(layer: nn.Conv2d | nn.ConvTranspose2d) -> tuple[nn.Module, ...]:
    return layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU(inplace=True)


def _twice(channels: int, out_channels: int, valid: bool) -> nn.Sequential:
    padding = 0 if valid else 1
    return nn.Sequential(
        nn.Conv2d(channels, out_channels, 3, padding=padding),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=padding),
        nn.ReLU(inplace=True),
    )
