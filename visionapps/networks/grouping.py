"""Tables of layers that a person can take in: consecutive layers of one part of a network in one line."""

import itertools
from collections.abc import Sequence
from functools import partial

from visionapps.networks.anatomy import Layer

MOST = 40  # lines that still fit a screen


def grouped(layers: Sequence[Layer], most: int = MOST) -> tuple[Layer, ...]:
    """Layers by the finest parts of the network that give few enough lines.

    A line of several layers has the name of their part, the sums of their costs, and the output of the last.

    Args:
        layers: in the order in which they run.
        most: lines; only a network whose outermost parts alternate more often than that gets more.
    """
    if len(layers) <= most:
        return tuple(layers)
    shown: list[list[Layer]] = []
    for depth in range(max(layer.name.count(".") for layer in layers) + 1, 0, -1):
        runs = itertools.groupby(layers, partial(_outer, depth))
        shown = [list(run) for _, run in runs]
        if len(shown) <= most:
            break
    return tuple(map(_merged, shown))


def _outer(depth: int, layer: Layer) -> list[str]:
    return layer.name.split(".")[:depth]


def _merged(run: Sequence[Layer]) -> Layer:
    if len(run) == 1:
        return run[0]
    last = run[-1]
    common = [
        part for part, *others in zip(*(each.name.split(".") for each in run), strict=False) if {part} >= {*others}
    ]
    return Layer(
        ".".join(common),
        f"{len(run)} layers",
        last.output,
        sum(each.memory for each in run),
        sum(each.parameters for each in run),
        sum(each.multiply_adds for each in run),
        last.trace,
    )
