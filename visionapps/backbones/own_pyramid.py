"""Classification networks written here as pyramids: the last step of each stride of ``Network.features`` is a level."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from visionapps.backbones.base import Backbone
from visionapps.backbones.same_padding import same_padding
from visionapps.backbones.simple_pyramid import SimplePyramid, simple_levels
from visionapps.backbones.weights import default_spec, fit_state, read_state, weights_file
from visionapps.errors import ConfigError
from visionapps.networks.catalogue import OWN, PREFIX, Own, facts, unknown
from visionapps.structures import InputSpec, Level

_UNIT = 2**5 * 3**2  # px: sides of the first probe are multiples of it: of 32, and of the 36 of OverFeat
_FIRST = (2, 4)
_PROBE = (3, 7)  # size of the second, in multiples of the coarsest stride: odd ones, where the first was even
_OCTAVES = tuple(2**i for i in range(8))


def own_pyramid(
    name: str, *, spec: InputSpec | None, weights: str | None, strides: Sequence[int], output_stride: int
) -> Backbone:
    """A network of visionapps.networks as a feature pyramid; see ``visionapps.backbones.pyramid``."""
    if weights is not None and weights_file(weights) is None:
        raise ConfigError(f"{name}: weights {weights!r} are not published for it; give a file, or random")
    plan = plan_own(name, bands=len(spec.bands) if spec else 3, strides=strides, output_stride=output_stride)
    return OwnPyramid(plan, spec=spec or default_spec(name, weights), weights=weights)


class Plan(NamedTuple):
    """A network, and which of its steps end a level."""

    name: str
    own: Own
    taps: tuple[str, ...]
    levels: tuple[Level, ...]
    padded: bool  # whether its layers must be given padding
    single: Level | None  # the only map of a network without a pyramid, from which a simple one is made

    def steps(self, bands: int) -> nn.Sequential:
        """The steps up to the last level, with random weights."""
        features = self.own.build(bands=bands).features
        if self.padded:
            same_padding(features)
        last = [name for name, _ in features.named_children()].index(self.taps[-1])
        return features[: last + 1]


def plan_own(name: str, *, bands: int = 3, strides: Sequence[int] = (2, 4, 8, 16, 32), output_stride: int = 32) -> Plan:
    """Plan a pyramid of a network that is written here, without allocating any weights.

    Args:
        name: with "visionapps/" before it.
        bands: of the image.
        strides: which levels to give, out of those that the network has; steps past the last one are removed. One that
            it does not have stands for the one within half an octave, such as OverFeat's 36 for 32.
        output_stride: 32; none of them can be dilated.

    Raises:
        ConfigError: there is no such network, or it has no such map, or no maps of one place per cell at all.
    """
    key = name.removeprefix(PREFIX)
    if key not in OWN:
        raise unknown(name, (), "backbone", "`visionapps models --backbones visionapps/` lists those written here")
    if output_stride != 32:
        raise ConfigError(f"{name}: it cannot be dilated to output_stride {output_stride}; leave that at 32")
    own = OWN[key]
    steps, padded = _steps(name, own, bands)
    last = {level.stride: (step, level) for step, level in steps}
    if len(last) == 1 and steps[-1][1].stride > 1:  # a stem and blocks of attention
        return _single(name, own, steps[-1], strides, padded)
    chosen = [last[stride] for stride in sorted(last) if any(_stands_for(stride, each) for each in strides)]
    if not chosen:
        raise none_wanted(name, last, strides)
    return Plan(name, own, tuple(s for s, _ in chosen), tuple(level for _, level in chosen), padded, None)


class OwnPyramid(Backbone):
    """See ``own_pyramid``, which builds it. Its weights have the names of the classification network.

    Attributes:
        name: with "visionapps/" before it.
        weights: the setting that ``load_pretrained`` follows.
        features: the steps.
        simple: makes the pyramid where the network has one map only; else None.
    """

    def __init__(self, plan: Plan, *, spec: InputSpec, weights: str | None) -> None:
        super().__init__()
        self.name = plan.name
        self.levels = plan.levels
        self.spec = spec
        self.weights = weights
        self.taps = plan.taps
        self.features = plan.steps(len(spec.bands))
        self.simple = SimplePyramid(plan.single, plan.levels) if plan.single else None
        self.fresh = (self.simple.scales,) if self.simple is not None else ()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for step, module in self.features.named_children():
            image = module(image)
            if step in self.taps:
                maps.append(image)
        if self.simple is not None:
            single: tuple[Tensor, ...] = self.simple(maps[-1])
            return single
        return tuple(maps)

    def load_pretrained(self) -> None:
        if self.weights is None:
            return
        wanted = {f"features.{key}": value for key, value in self.features.state_dict().items()}
        state = read_state(self.name, self.weights)
        bands = len(self.spec.bands)
        fitted = fit_state(state, wanted, name=self.name, source=str(weights_file(self.weights)), bands=bands)
        self.features.load_state_dict({key.removeprefix("features."): value for key, value in fitted.items()})


def list_own() -> list[str]:
    """Names of the networks written here that can serve as a pyramid, with "visionapps/" before each."""
    return [PREFIX + key for key in OWN if _is_pyramid(PREFIX + key)]


def _is_pyramid(name: str) -> bool:
    measured = facts().get(name)
    if measured is not None:  # probing the deepest takes seconds
        return bool(measured["levels"])
    try:
        plan_own(name, strides=_OCTAVES)
    except ConfigError:
        return False
    return True


def _stands_for(stride: int, wanted: int) -> bool:
    return abs(math.log2(stride / wanted)) < 0.5


def _single(name: str, own: Own, last: tuple[str, Level], strides: Sequence[int], padded: bool) -> Plan:
    step, level = last
    levels = simple_levels(level, strides)
    if not levels:
        raise none_wanted(name, [each.stride for each in simple_levels(level, _OCTAVES)], strides)
    return Plan(name, own, (step,), levels, padded, level)


def none_wanted(name: str, offered: Sequence[int] | dict[int, tuple[str, Level]], wanted: Sequence[int]) -> ConfigError:
    return ConfigError(
        f"{name}: has maps of the strides {', '.join(map(str, offered))}, but none of the wanted "
        f"{', '.join(map(str, wanted))}; ask for one of its own, or choose another backbone"
    )


@lru_cache(maxsize=256)
def _steps(name: str, own: Own, bands: int) -> tuple[tuple[tuple[str, Level], ...], bool]:
    """Every step with its true stride and channels, and whether layers were given padding for that."""
    with torch.device("meta"):
        features = own.build(bands=bands).features.eval()
        try:
            return _probe(name, features, bands), False
        except ConfigError:
            same_padding(features)  # layers without padding, and pooling that leaves a border out
            return _probe(name, features, bands), True


def _probe(name: str, features: nn.Sequential, bands: int) -> tuple[tuple[str, Level], ...]:
    found = _sizes(name, features, bands, tuple(_UNIT * m for m in _FIRST))
    coarsest = max(level.stride for level in found.values())
    height, width = (coarsest * m for m in _PROBE)
    if _sizes(name, features, bands, (height, width)) != found:
        raise _no_part(name, "of another stride", (height, width))
    return tuple(found.items())


def _sizes(name: str, features: nn.Sequential, bands: int, size: tuple[int, ...]) -> dict[str, Level]:
    """The level of every step, for an image of one size."""
    height, width = size
    image = torch.zeros(1, bands, height, width, device="meta")
    found: dict[str, Level] = {}
    last: dict[int, tuple[str, Tensor, int]] = {}  # of each stride: its last map, and how often that was written
    for step, module in features.named_children():
        image = _map_of(name, step, module, image)
        channels, rows, cols = image.shape[1:]
        level = Level(max(1, height // max(1, rows)), channels)
        if (rows * level.stride, cols * level.stride) != (height, width):
            raise _no_part(name, f"{step} of {rows}x{cols}", (height, width))
        found[step] = level
        last[level.stride] = (step, image, image._version)
    spoilt = [step for step, values, version in last.values() if values._version != version]
    assert not spoilt, f"{name}: steps after {spoilt} compute in place of its map, which is a level"
    return found


def _no_part(name: str, what: str, size: tuple[int, int]) -> ConfigError:
    return ConfigError(
        f"{name}: it has a map {what} for an image of {size[0]}x{size[1]}, which is no whole part of it, so it is no "
        "pyramid; choose another backbone"
    )


def _map_of(name: str, step: str, module: nn.Module, image: Tensor) -> Tensor:
    try:
        values = module(image)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError, ConfigError) as error:
        raise ConfigError(
            f"{name}: takes images of its own size only, so it is no pyramid ({step}: {error})"
        ) from error
    if not isinstance(values, Tensor) or values.ndim != 4:
        raise ConfigError(f"{name}: its step {step} gives no single map, so it is no pyramid; choose another backbone")
    return values
