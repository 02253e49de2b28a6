"""Ways in which one architecture is varied without being written again: normalisation, random weights, dropout."""

from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import nn

from visionapps.errors import ConfigError
from visionapps.networks.base import Network
from visionapps.networks.convnet_aig import Gate
from visionapps.networks.highway import Highway
from visionapps.networks.initial import he, xavier

Norm = Literal["batch", "layer", "instance", "group"]
Init = Literal["paper", "he", "xavier"]
_GROUPS = 32  # Wu and He 2018; fewer where the channels do not divide


def replace_norms(network: nn.Module, kind: Norm) -> None:
    """Give a network another normalisation in the place of every batch normalisation, in place.

    Args:
        network: changed in place; "batch" leaves it alone.
        kind: over what means and variances of (B, D, h, w) are taken: "batch" B, h, w; "layer" D, h, w of an image;
            "instance" h, w of a channel; "group" h, w of 32 groups of channels.

    Raises:
        ConfigError: no such kind, or the network has no batch normalisation.

    Source: Ioffe and Szegedy 2015; Ba et al. 2016, as a group of all channels; Ulyanov et al. 2016; Wu and He 2018.
    """
    if kind not in get_args(Norm):
        raise ConfigError(f"norm {kind!r} is no choice; write one of {', '.join(get_args(Norm))}")
    if kind == "batch":
        return
    found = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.BatchNorm2d)
    ]
    if not found:
        raise ConfigError(f"norm {kind}: the network has no batch normalisation to be replaced; leave norm out")
    for parent, name, child in found:
        setattr(parent, name, _replaced(child, kind))


def _replaced(norm: nn.BatchNorm2d, kind: Norm) -> nn.Module:
    channels, eps = norm.num_features, norm.eps
    makers: dict[str, Callable[[], nn.Module]] = {
        "layer": lambda: nn.GroupNorm(1, channels, eps),
        "instance": lambda: nn.InstanceNorm2d(channels, eps, affine=True),
        "group": lambda: nn.GroupNorm(_divisor(channels, _GROUPS), channels, eps),
    }
    made = makers[kind]()
    # timm's norms carry what follows them.
    rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if isinstance(part, nn.Module)]
    return nn.Sequential(made, *rest) if rest else made


def _divisor(value: int, most: int) -> int:
    """The greatest divisor that is not above ``most``."""
    return max(d for d in range(1, most + 1) if value % d == 0)


def initialise(network: nn.Module, how: Init) -> None:
    """Draw the weights of a network again, in place; see visionapps.networks.initial.

    Args:
        network: changed in place.
        how: "paper": as it was built; "he"; "xavier". Gates keep the start that their paper gives them.
    """
    rules: dict[str, Callable[[nn.Module], Any]] = {"paper": lambda _: None, "he": he, "xavier": xavier}
    if how not in rules:
        raise ConfigError(f"init {how!r} is no choice; write one of {', '.join(rules)}")
    rules[how](network)
    if how == "paper":
        return
    for part in network.modules():  # gates begin as their papers say, whatever the rule: else nothing is learned
        if isinstance(part, Highway):
            part.close()
        elif isinstance(part, Gate):
            part.open()


def set_dropout(network: Network, probability: float, *, where: str) -> None:
    """Set the dropout of a network's head, in place.

    Args:
        network: changed in place; a head of one linear layer gets a dropout before it.
        probability: of dropping a feature, in [0, 1).
        where: names the network in messages.

    Raises:
        ConfigError: it is out of range, or the head has no place for it.
    """
    if not 0 <= probability < 1:
        raise ConfigError(f"dropout: {probability} must be in [0, 1)")
    found = [part for part in network.head.modules() if isinstance(part, nn.Dropout)]
    for part in found:
        part.p = probability
    if found or probability == 0:
        return
    linear = [part for part in network.head.modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise ConfigError(f"{where}: its head has no linear layer to drop features before; leave dropout out")
    linear[-1].register_forward_pre_hook(_Drop(probability))


class _Drop:
    """Drops what enters a layer: a hook leaves the names of weights alone. A class, because it must be copied."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (nn.functional.dropout(inputs[0], self.probability, layer.training), *inputs[1:])
