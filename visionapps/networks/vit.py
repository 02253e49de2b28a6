"""Vision transformers that see the image through patches (ViT_P) or through a few convolutions (ViT_C).

Shapes: B images, C bands, H x W pixels, D channels, h x w positions, K classes.

Source: Xiao, Singh, Mintun, Darrell, Dollar and Girshick, Early Convolutions Help Transformers See Better, NeurIPS
    2021, tables 1 and 2; Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.errors import ConfigError
from visionapps.networks.base import PooledHead
from visionapps.networks.chain import Chain
from visionapps.networks.initial import draw, he, xavier
from visionapps.networks.layers import normalised_conv

PATCH = 16  # pixels; the stride of every network here
_POSITION_STD = 0.02


@dataclass(frozen=True)
class Form:
    """One transformer.

    Args:
        channels: D.
        depth: blocks.
        heads: of the attention; they divide D.
        mlp_ratio: hidden channels of a block's perceptron per channel.
        stem: None: one convolution of 16 x 16 with stride 16. Else the outputs of 3 x 3 convolutions, before a 1 x 1
            to D.
        stem_strides: of these, their product being 16; empty: 2 for each.
    """

    channels: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    stem: tuple[int, ...] | None = None
    stem_strides: tuple[int, ...] = ()


# Tables 1 and 2 of Xiao et al. The convolutions of a ViT_C cost as much as the block that it has less.
_FORMS = {
    "vit_p_1gf": Form(192, 12, 3, 3.0),
    "vit_p_4gf": Form(384, 12, 6, 3.0),
    "vit_p_18gf": Form(768, 12, 12),
    "vit_p_36gf": Form(1024, 14, 16),
    "vit_c_1gf": Form(192, 11, 3, 3.0, (24, 48, 96, 192)),
    "vit_c_4gf": Form(384, 11, 6, 3.0, (48, 96, 192, 384)),
    "vit_c_18gf": Form(768, 11, 12, 4.0, (64, 128, 128, 256, 256, 512), (2, 2, 1, 2, 1, 2)),
    "vit_c_36gf": Form(1024, 13, 16, 4.0, (64, 128, 128, 256, 256, 512), (2, 2, 1, 2, 1, 2)),
}


class VisionTransformer(Chain):
    """A stem that makes tokens, blocks of attention, and a linear layer on the class token.

    ``features`` ends with the map of the patches' tokens, which is what dense heads use; the class token, which
    ``forward`` asks, is no part of a map. So ``head(features(image))`` is another answer than ``forward(image)``: that
    of the patches' mean.

    Images of any size: learned positions are resampled where h x w is not what they were made for.

    Args:
        name: what messages call it.
        form: depths and widths.
        num_classes: K.
        bands: C.
        native: side in pixels of the images that positions are made for, a multiple of 16.

    Raises:
        ConfigError: the form or the size is impossible.
    """

    def __init__(self, name: str, form: Form, num_classes: int, bands: int, *, native: int = 224) -> None:
        if native < PATCH or native % PATCH:
            raise ConfigError(f"{name}: native is {native}; choose a multiple of {PATCH} pixels")
        patches = form.stem is None
        stem = patch_stem(bands, form.channels) if patches else conv_stem(name, bands, form)
        steps = {"stem": stem, "encoder": Encoder(name, form, native // PATCH)}
        head = PooledHead(form.channels, num_classes)
        super().__init__(name, steps, head, native=native, least=PATCH if patches else 1)
        _initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) normalised to (B, K) logits.

        Raises:
            ConfigError: the image is smaller than a patch.
        """
        self.demand(image)
        encoder = self.features.get_submodule("encoder")
        assert isinstance(encoder, Encoder)
        token = encoder.tokens(self.features.get_submodule("stem")(image))[:, 0]
        logits: Tensor = self.head(token[..., None, None])
        return logits


class Encoder(nn.Module):
    """Tokens of a map, a class token before them, positions, and blocks of attention.

    Args:
        name: of the network, for messages.
        form: depths and widths.
        side: positions along each side of the map that they are made for.

    Raises:
        ConfigError: the heads do not divide the channels.
    """

    def __init__(self, name: str, form: Form, side: int) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        if form.channels % form.heads:
            raise ConfigError(f"{name}: {form.heads} heads do not divide {form.channels} channels")
        self.side = side
        self.class_token = nn.Parameter(torch.zeros(1, 1, form.channels))
        self.position = nn.Parameter(torch.zeros(1, 1 + side * side, form.channels))
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.Sequential(
            *(
                Block(form.channels, form.heads, mlp_ratio=form.mlp_ratio, qkv_bias=True, norm_layer=norm)
                for _ in range(form.depth)
            )
        )
        self.norm = norm(form.channels)

    def tokens(self, image: Tensor) -> Tensor:
        """(B, D, h, w) to (B, 1 + h w, D): the class token, then patches row by row, all normalised."""
        patches = image.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(image), -1, -1), patches], 1)
        tokens = tokens + self.positions(image.shape[-2], image.shape[-1])
        normalised: Tensor = self.norm(self.blocks(tokens))
        return normalised

    def positions(self, height: int, width: int) -> Tensor:
        """(1, 1 + h w, D), resampled where the map is not the one that they were made for."""
        if (height, width) == (self.side, self.side):
            return self.position
        grid = self.position[:, 1:].transpose(1, 2).reshape(1, -1, self.side, self.side).float()
        resampled = F.interpolate(grid, size=(height, width), mode="bicubic", antialias=True)
        patches = resampled.flatten(2).transpose(1, 2).to(self.position.dtype)
        return torch.cat([self.position[:, :1], patches], 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, D, h, w) to (B, D, h, w), the patches' tokens as a map."""
        return self.tokens(image)[:, 1:].transpose(1, 2).reshape_as(image)


def patch_stem(bands: int, channels: int) -> nn.Sequential:
    """The image cut into patches, each mapped by one linear layer: (B, C, H, W) to (B, D, H // 16, W // 16)."""
    return nn.Sequential(nn.Conv2d(bands, channels, PATCH, stride=PATCH))


def conv_stem(name: str, bands: int, form: Form) -> nn.Sequential:
    """Convolutions of 3 x 3 and a last one of 1 x 1: (B, C, H, W) to (B, D, H / 16, W / 16), rounded up.

    Raises:
        ConfigError: the strides do not come to 16.
    """
    widths = form.stem or ()
    strides: Sequence[int] = form.stem_strides or (2,) * len(widths)
    reduction = 1
    for stride in strides:
        reduction *= stride
    if len(strides) != len(widths) or reduction != PATCH:
        raise ConfigError(
            f"{name}: stem of {len(widths)} convolutions with strides {list(strides)}; give one stride for each, with "
            f"{PATCH} as their product"
        )
    layers: list[nn.Module] = []
    channels = bands
    for width, stride in zip(widths, strides, strict=True):
        layers += normalised_conv(channels, width, 3, stride=stride, padding=1)
        channels = width
    return nn.Sequential(*layers, nn.Conv2d(channels, form.channels, 1))


def _initialise(network: VisionTransformer) -> None:
    """Glorot's rule where no ReLU follows directly, as in Dosovitskiy et al.'s code; He's in convolutions with ReLU."""
    xavier(network)
    encoder, stem = network.features.get_submodule("encoder"), network.features.get_submodule("stem")
    nn.init.normal_(encoder.get_parameter("position"), std=_POSITION_STD)
    if network.least == 1:
        he(stem)
    else:
        draw(stem, lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="linear"))


def vit_p_1gf(num_classes: int = 1000, bands: int = 3) -> VisionTransformer:
    """ViT_P-1GF. Args: see ``vit_p_18gf``."""
    return _vit("vit_p_1gf", num_classes, bands)


def vit_p_4gf(num_classes: int = 1000, bands: int = 3) -> VisionTransformer:
    """ViT_P-4GF. Args: see ``vit_p_18gf``."""
    return _vit("vit_p_4gf", num_classes, bands)


def vit_p_18gf(num_classes: int = 1000, bands: int = 3) -> VisionTransformer:
    """ViT_P-18GF, which is ViT-B/16.

    Args:
        num_classes: K.
        bands: C of the image.
    """
    return _vit("vit_p_18gf", num_classes, bands)


def vit_p_36gf(num_classes: int = 1000, bands: int = 3) -> VisionTransformer:
    """ViT_P-36GF. Args: see ``vit_p_18gf``."""
    return _vit("vit_p_36gf", num_classes, bands)


def vit_c_1gf(num_classes: int = 1000, bands: int = 3) -> VisionTransformer:
    """ViT_C-1GF. Args: see ``vit_p_18gf``."""
    return _vit("vit_c_1gf", num_classes, bands)


def vit_c_4gf(num_classes: int = 1000, bands: int = 3) -> VisionTransformer:
    """ViT_C-4GF. Args: see ``vit_p_18gf``."""
    return _vit("vit_c_4gf", num_classes, bands)


def vit_c_18gf(num_classes: int = 1000, bands: int = 3) -> VisionTransformer:
    """ViT_C-18GF. Args: see ``vit_p_18gf``."""
    return _vit("vit_c_18gf", num_classes, bands)


def vit_c_36gf(num_classes: int = 1000, bands: int = 3) -> VisionTransformer:
    """ViT_C-36GF. Args: see ``vit_p_18gf``."""
    return _vit("vit_c_36gf", num_classes, bands)


def _vit(name: str, num_classes: int, bands: int) -> VisionTransformer:
    return VisionTransformer(name, _FORMS[name], num_classes, bands)
