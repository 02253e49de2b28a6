"""What is measured of each architecture of the catalogue: nothing of it is typed by hand."""

import inspect
from collections.abc import Mapping
from typing import Any, TypedDict

import torch
from torch.utils.flop_counter import FlopCounterMode

from visionapps.backbones import levels_of
from visionapps.backbones.classifiers import network
from visionapps.backbones.own_pyramid import none_wanted
from visionapps.errors import ConfigError
from visionapps.models.heads import HEADS, Head, complaint, refusal
from visionapps.networks.base import Network
from visionapps.networks.catalogue import OWN, PREFIX
from visionapps.networks.others import Entry
from visionapps.structures import Level

_STRIDES = (1, 2, 4, 8, 16, 32)
_CLASSES = 1000  # of a network of a library; those written here have the classes of their paper


class Facts(TypedDict):
    """What was measured of one network.

    Attributes:
        native: side of the image in pixels.
        parameters: trained numbers of the whole classifier.
        multiply_adds: of one image of that side, convolutions and products of matrices.
        levels: stride and channels of each map of its pyramid; none: it is none.
        why: in that case, the reason.
        heads: keys of HEADS that stand on it.
    """

    native: int
    parameters: int
    multiply_adds: int
    levels: list[list[int]]
    why: str
    heads: list[str]


def measure(entry: Entry, *, counts: bool = True) -> Facts:
    """Measure an architecture without allocating its weights.

    Args:
        entry: of the catalogue.
        counts: multiply-adds too; False leaves them 0 and saves most of the time.
    """
    with torch.device("meta"):
        built, bands = _classifier(entry.name)
        built.eval()
        side = entry.native or built.native
        levels, why = _levels(entry.name)
        return Facts(
            native=side,
            parameters=parameters_of(built),
            multiply_adds=multiply_adds(built, bands, side) if counts else 0,
            levels=[list(level) for level in levels],
            why=why,
            heads=[key for key, head in HEADS.items() if refusal(head, entry.name) is None] if levels else [],
        )


def measure_missing(listed: Mapping[str, Entry], known: Mapping[str, Any]) -> dict[str, Facts]:
    """Facts of every line, those that were never measured included: a network that was just written.

    Args:
        listed: lines of the catalogue by name.
        known: what was measured before, by name.
    """
    return {name: known[name] if name in known else measure(entry) for name, entry in listed.items()}


def parameters_of(built: torch.nn.Module) -> int:
    """Trained numbers, each counted once."""
    return sum(parameter.numel() for parameter in built.parameters())


def multiply_adds(built: torch.nn.Module, bands: int, side: int) -> int:
    """Multiply-adds of one square image: convolutions and products of matrices.

    Args:
        built: on the meta device.
        bands: of the image.
        side: in pixels.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        built(torch.zeros(1, bands, side, side, device="meta"))
    return int(counter.get_total_flops()) // 2


def reasons(measured: Mapping[str, Facts]) -> dict[tuple[str, str], str]:
    """Why a head does not stand on a network, as a user would be told, for every pair that does not fit.

    Args:
        measured: facts by name, of networks that have levels.
    """
    return {
        (name, key): _reason(name, value, head)
        for name, value in measured.items()
        for key, head in HEADS.items()
        if key not in value["heads"]
    }


def _reason(name: str, value: Facts, head: Head) -> str:
    """``refusal`` from what was measured, without probing the network again where that says it all."""
    levels = tuple(Level(stride, channels) for stride, channels in value["levels"])
    if head.output_stride == 32 and all(level.stride in _STRIDES for level in levels):
        kept = tuple(level for level in levels if level.stride in head.strides)
        if kept:
            return str(complaint(head, kept))
        if name.startswith(PREFIX):
            return str(none_wanted(name, [level.stride for level in levels], head.strides))
    return str(refusal(head, name))


def _classifier(name: str) -> tuple[Network, int]:
    if not name.startswith(PREFIX):
        return network(name, num_classes=_CLASSES), 3
    build = OWN[name.removeprefix(PREFIX)].build
    return build(), int(inspect.signature(build).parameters["bands"].default)


def _levels(name: str) -> tuple[tuple[tuple[int, int], ...], str]:
    try:
        return levels_of(name, strides=_STRIDES), ""
    except ConfigError as error:
        return (), str(error)
