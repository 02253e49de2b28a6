"""Residual and plain networks for images of 32 px, of any depth from one block.

Source: He et al., Deep Residual Learning for Image Recognition, 2016, section 4.2; He et al., Identity Mappings in Deep
    Residual Networks, 2016; Huang et al., Deep Networks with Stochastic Depth, 2016; Zagoruyko and Komodakis, Wide
    Residual Networks, 2016.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import nn

from visionapps.errors import ConfigError
from visionapps.networks.base import Network, PooledHead
from visionapps.networks.chain import Chain
from visionapps.networks.initial import he
from visionapps.networks.residual import Design, Ordering, Residual, Shortcut, Survival, linear_decay

_WIDTHS = (16, 32, 64)


def cifar_resnet(
    depth: int,
    num_classes: int = 10,
    bands: int = 3,
    *,
    ordering: Ordering = "original",
    shortcut: Shortcut = "A",
    bottleneck: bool = False,
    survival: float = 1.0,
    rescale: Literal["evaluation", "training"] = "evaluation",
) -> Network:
    """A residual network of three stages, 16, 32 and 64 wide (times 4 with bottlenecks), at strides 1, 2 and 4.

    Args:
        depth: layers with weights, 6 n + 2, or 9 n + 2 with bottlenecks: 20, 32, 44, 56, 110, 1202; 164, 1001 (which
            is 9 * 111 + 2).
        num_classes: K.
        bands: C.
        ordering: of the layers of a block, see ``Design``.
        shortcut: see ``Design``; "none" makes the plain network.
        bottleneck: see ``Design``.
        survival: probability that the last block is computed in a training step; those before it are likelier, in
            equal steps. 1 makes the network of constant depth.
        rescale: see ``Survival``.

    Raises:
        ConfigError: no network has this depth; or an argument is unknown or cannot go with another.
    """
    per_block = 9 if bottleneck else 6
    blocks = (depth - 2) // per_block
    if depth != per_block * blocks + 2 or blocks < 1:
        kind = "bottlenecks" if bottleneck else "basic blocks"
        near = [per_block * max(1, n) + 2 for n in (blocks, blocks + 1)]
        raise ConfigError(
            f"residual network of depth {depth}: with {kind} there are depths {per_block} n + 2 only; the nearest are "
            f"{' and '.join(map(str, dict.fromkeys(near)))}"
        )
    Survival(survival, rescale)
    design = Design(ordering, shortcut, bottleneck)
    chances = [Survival(p, rescale) for p in linear_decay(3 * blocks, survival)]
    name = f"{'plain' if shortcut == 'none' else 'ResNet'}-{depth}"
    return residual_network(name, num_classes, bands, widths=_WIDTHS, blocks=blocks, design=design, survival=chances)


def bottleneck_resnet(
    depth: int, num_classes: int = 10, bands: int = 3, *, ordering: Ordering = "original", shortcut: Shortcut = "B"
) -> Network:
    """The same with bottlenecks and, as in He et al. 2016b, projections where the shape changes: 164 or 1001 layers.

    Args:
        depth: 9 n + 2.
        num_classes: K.
        bands: C.
        ordering: of the layers of a block, see ``Design``.
        shortcut: see ``Design``.

    Raises:
        ConfigError: no network has this depth, or an argument is unknown.
    """
    return cifar_resnet(depth, num_classes, bands, ordering=ordering, shortcut=shortcut, bottleneck=True)


def wide_resnet(depth: int, width: int, num_classes: int = 10, bands: int = 3, *, dropout: float = 0.0) -> Network:
    """A pre-activated residual network that is wide instead of deep.

    Args:
        depth: 6 n + 4 layers, counting the projections of the three stages as one.
        width: k, how many times as wide as 16, 32 and 64 channels.
        num_classes: K.
        bands: C.
        dropout: inside the blocks, in [0, 1); the paper takes 0.3 for CIFAR.

    Raises:
        ConfigError: no network has this depth or width.
    """
    blocks = (depth - 4) // 6
    if depth != 6 * blocks + 4 or blocks < 1 or width < 1:
        raise ConfigError(
            f"wide residual network {depth}-{width}: depths are 6 n + 4 (16, 22, 28, 40) and the width is at least 1"
        )
    design = Design("full_preact", "B", dropout=dropout)
    widths = [w * width for w in _WIDTHS]
    return residual_network(f"WRN-{depth}-{width}", num_classes, bands, widths=widths, blocks=blocks, design=design)


def residual_network(
    name: str,
    num_classes: int,
    bands: int,
    *,
    widths: Sequence[int],
    blocks: int,
    design: Design,
    survival: Sequence[Survival] = (),
) -> Network:
    """A stem of one 3 x 3 convolution, 16 wide, and stages of blocks, each but the first at half the resolution.

    With pre-activated blocks, the first activation follows the stem and is left out of the first block, and a last one
    follows the last sum (He et al. 2016b, appendix).

    Args:
        name: for errors.
        num_classes: K.
        bands: C.
        widths: of the bodies of each stage.
        blocks: per stage.
        design: of the blocks.
        survival: of each block; empty: all are always computed.
    """
    chances = iter(survival or [Survival()] * (blocks * len(widths)))
    channels = 16
    steps: OrderedDict[str, nn.Module] = OrderedDict(
        stem=nn.Sequential(nn.Conv2d(bands, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
    )
    for i, width in enumerate(widths):
        stage = nn.Sequential()
        for j in range(blocks):
            stride, activated = 2 if i and not j else 1, not i and not j
            stage.append(
                Residual(channels, width, stride=stride, design=design, activated=activated, survival=next(chances))
            )
            channels = width * design.expansion
        steps[f"stage{i + 1}"] = stage
    if design.preactivated:
        norm = [nn.BatchNorm2d(channels)] if design.ordering == "full_preact" else []
        steps["activation"] = nn.Sequential(*norm, nn.ReLU())
    least = 2 ** (len(widths) - 1)
    network = Chain(name, steps, PooledHead(channels, num_classes), native=32, least=least)
    he(network)
    return network
