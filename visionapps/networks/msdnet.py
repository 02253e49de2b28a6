"""MSDNet: maps of several scales side by side through the whole depth, so that every exit reads a coarse one.

A layer adds a few channels to every scale, from that scale and the next finer one; dense connections carry all earlier
channels along. As no exit reads fine maps, the finest scale is dropped after each third (or quarter) of the layers.

Source: Huang, Chen, Li, Wu, van der Maaten and Weinberger, Multi-Scale Dense Networks for Resource Efficient Image
    Classification, ICLR 2018; growth per scale, bottlenecks and dropping of scales: its appendix A.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visionapps.errors import ConfigError
from visionapps.networks.exits import ExitNetwork

Maps = tuple[Tensor, ...]


@dataclass(frozen=True)
class Growth:
    """How wide the scales are.

    Args:
        channels: of the finest scale after the first layer.
        rate: channels that a layer adds to the finest scale.
        factors: how many times as wide each scale is as the finest, finest first: one per scale.
        reduction: share of channels that is kept where a scale is dropped, in (0, 1].
    """

    channels: int = 16
    rate: int = 6
    factors: tuple[int, ...] = (1, 2, 4)
    reduction: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(self.factors))  # YAML brings lists
        if min(self.channels, self.rate, *self.factors) < 1 or not 0 < self.reduction <= 1 or self.rate % 2:
            raise ConfigError(
                f"msdnet: {self}: widths must be positive, the rate even (half of it comes from the finer scale), and "
                "the reduction in (0, 1]"
            )


def msdnet(num_classes: int = 100, bands: int = 3, *, exits: int = 7, growth: Growth | None = None) -> ExitNetwork:
    """The network for small images of 32 px: three scales; the k-th exit follows k layers after the one before.

    Args:
        num_classes: K.
        bands: C.
        exits: E, after 1, 3, 6, 10, 15, 21, 28 ... layers.
        growth: widths; None: those of the paper for CIFAR.
    """
    _require_exits(exits)
    return _assemble(_Plan(tuple(range(1, exits + 1)), growth or Growth(), large=False), num_classes, bands, native=32)


def msdnet_imagenet(num_classes: int = 1000, bands: int = 3, *, exits: int = 5, layers: int = 4) -> ExitNetwork:
    """The network for 224 px: four scales; every exit follows the same number of layers after the one before.

    Args:
        num_classes: K.
        bands: C.
        exits: E.
        layers: between exits; the paper has networks with 4, 6 and 7.
    """
    _require_exits(exits)
    if layers < 1:
        raise ConfigError(f"msdnet: {layers} layers between exits; give at least 1")
    growth = Growth(channels=32, rate=16, factors=(1, 2, 4, 4))
    return _assemble(_Plan((layers,) * exits, growth, large=True), num_classes, bands, native=224)


@dataclass(frozen=True)
class _Plan:
    steps: tuple[int, ...]  # layers before each exit, since the one before
    growth: Growth
    large: bool  # images of 224 px rather than 32

    def finest(self, layer: int) -> int:
        """The finest scale that a layer (from 1 on; 0: the first maps) gives."""
        scales = len(self.growth.factors)
        interval = math.ceil(sum(self.steps) / scales)
        return max(0, layer - 1) // interval


def _require_exits(exits: int) -> None:
    if exits < 1:
        raise ConfigError(f"msdnet: {exits} exits; give at least 1")


def _assemble(plan: _Plan, num_classes: int, bands: int, *, native: int) -> ExitNetwork:
    growth = plan.growth
    width, layer = growth.channels, 0
    steps, heads = nn.Sequential(), list[nn.Module]()
    for exit_, count in enumerate(plan.steps):
        step = nn.Sequential()
        if exit_ == 0:
            step.append(_Scales(bands, growth, large=plan.large))
        for _ in range(count):
            layer += 1
            before, after = plan.finest(layer - 1), plan.finest(layer)
            step.append(_Layer(width, growth, before, after))
            width += growth.rate
            if after > before and growth.reduction < 1:
                kept = math.floor(growth.reduction * width)
                step.append(_Narrow([(f * width, f * kept) for f in growth.factors[after:]]))
                width = kept
        steps.add_module(f"exit{exit_ + 1}", step)
        heads.append(_exit(width * growth.factors[-1], num_classes, hidden=None if plan.large else 128))
    coarsest = 2 ** (len(growth.factors) - 1 + 2 * plan.large)  # stride of the maps that exits read
    network = ExitNetwork(steps, heads, native=native, smallest=coarsest)
    _initialise(network)
    return network


def _initialise(network: nn.Module) -> None:
    """Normal with the variance of He et al. 2015 over outputs, as the authors' networks begin."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


class _Scales(nn.Module):
    """The first maps, each coarser one from the finer one."""

    def __init__(self, bands: int, growth: Growth, *, large: bool) -> None:
        super().__init__()
        widths = [growth.channels * factor for factor in growth.factors]
        first = _unit(bands, widths[0], kernel=7 if large else 3, stride=2 if large else 1)
        if large:
            first.append(nn.MaxPool2d(3, stride=2, padding=1))
        self.scales = nn.ModuleList([first, *(_unit(a, b, stride=2) for a, b in itertools.pairwise(widths))])

    def forward(self, image: Tensor) -> Maps:
        maps = []
        for scale in self.scales:
            image = scale(image)
            maps.append(image)
        return tuple(maps)


class _Layer(nn.Module):
    """Adds channels to every scale that is left, half from itself and half from the next finer one.

    Args:
        width: channels of the maps, in units of each scale's factor.
        growth: widths of the scales.
        before: finest scale among the maps that come.
        after: finest one among those that go.
    """

    def __init__(self, width: int, growth: Growth, before: int, after: int) -> None:
        super().__init__()
        factors, rate = growth.factors, growth.rate
        self.dropped = after - before
        self.own, self.finer = nn.ModuleList(), nn.ModuleList()
        for scale in range(after, len(factors)):
            alone = scale == 0 or (scale == after and not self.dropped)
            added = rate * factors[scale] // (1 if alone else 2)
            self.own.append(_bottleneck(width * factors[scale], added, factors[scale], stride=1))
            if not alone:
                self.finer.append(_bottleneck(width * factors[scale - 1], added, factors[scale - 1], stride=2))

    def forward(self, maps: Maps) -> Maps:
        kept = maps[self.dropped :]
        finer = maps[len(maps) - len(self.finer) - 1 :]  # of the first scale that has a finer one
        without = len(kept) - len(self.finer)
        grown = []
        for i, (own, map_) in enumerate(zip(self.own, kept, strict=True)):
            from_finer = [self.finer[i - without](finer[i - without])] if i >= without else []
            grown.append(torch.cat([map_, *from_finer, own(map_)], 1))
        return tuple(grown)


class _Narrow(nn.Module):
    """Fewer channels at every scale."""

    def __init__(self, widths: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.scales = nn.ModuleList(_unit(before, after, kernel=1) for before, after in widths)

    def forward(self, maps: Maps) -> Maps:
        return tuple(scale(map_) for scale, map_ in zip(self.scales, maps, strict=True))


def _exit(channels: int, num_classes: int, *, hidden: int | None) -> nn.Sequential:
    """Two halvings, pooling over what is left, one linear layer."""
    hidden = hidden or channels
    return nn.Sequential(
        _unit(channels, hidden, stride=2),
        _unit(hidden, hidden, stride=2),
        # The paper pools 2 x 2, which is the whole map at its size; any larger image is pooled as a whole, too.
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(hidden, num_classes),
    )


def _bottleneck(width: int, added: int, factor: int, *, stride: int) -> nn.Sequential:
    """1 x 1 to at most ``factor`` times the channels that are added, then 3 x 3."""
    inner = min(width, factor * added)
    return nn.Sequential(_unit(width, inner, kernel=1), _unit(inner, added, stride=stride))


def _unit(width: int, out: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, out, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(inplace=True),
    )
