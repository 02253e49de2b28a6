"""Whole masks through a table at once: ids and colours to labels, and a census of what no class claims."""

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from visionapps.structures import Color

# Ids that a class may claim: all of int16 and uint16, so that one table serves every integer mask.
LOWEST_ID, HIGHEST_ID = -32768, 65535


def code(color: Sequence[int]) -> int:
    """An RGB colour as one number."""
    return int(color[0]) << 16 | int(color[1]) << 8 | int(color[2])


def pack(colors: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 to (H, W) int32 codes; through bytes, half the time of shifts."""
    height, width = colors.shape[:2]
    four = np.zeros((height, width, 4), np.uint8)
    four[..., 0], four[..., 1], four[..., 2] = colors[..., 2], colors[..., 1], colors[..., 0]
    packed: np.ndarray = four.view("<i4")[..., 0]
    return packed


def look_up(values: np.ndarray, table: np.ndarray, ignore: int) -> np.ndarray:
    """Labels by a table that begins at LOWEST_ID; ignore for what lies outside it."""
    labels: np.ndarray
    if values.dtype.kind in "bu" and values.dtype.itemsize <= 2:
        labels = table[-LOWEST_ID:][values.astype(np.uint8) if values.dtype == np.bool_ else values]
    elif values.dtype == np.int16:
        labels = np.roll(table[: 1 << 16], LOWEST_ID)[values.view(np.uint16)]  # a negative id is a high uint16
    else:
        whole = (values >= LOWEST_ID) & (values <= HIGHEST_ID)
        if values.dtype.kind == "f":
            whole &= values == np.floor(values)
        labels = table[np.where(whole, values, 0).astype(np.int32) - LOWEST_ID]
        labels[~whole] = ignore
    return labels


@lru_cache(maxsize=8)
def id_table(ids: tuple[tuple[int, ...], ...], ignore: int) -> np.ndarray:
    """(98304,) uint8: label of id i at i - LOWEST_ID."""
    table = np.full(HIGHEST_ID - LOWEST_ID + 1, ignore, np.uint8)
    for label, values in enumerate(ids):
        table[np.array(values) - LOWEST_ID] = label
    return table


@lru_cache(maxsize=2)
def color_table(colors: tuple[Color | None, ...], ignore: int) -> np.ndarray:
    """(2**24,) uint8: label of every colour. 16 MB, of which a mask touches a few cache lines."""
    table = np.full(1 << 24, ignore, np.uint8)
    for label, color in enumerate(colors):
        if color is not None:
            table[code(color)] = label
    return table


class Strangers(NamedTuple):
    """The values of a mask that mean nothing: (H, W) where, and per distinct value its pixels and their places."""

    where: np.ndarray
    values: np.ndarray
    inverse: np.ndarray
    counts: np.ndarray

    @classmethod
    def find(cls, values: np.ndarray, unclaimed: np.ndarray, void: Collection[int]) -> "Strangers | None":
        for value in void:
            unclaimed &= values != value
        if not unclaimed.any():
            return None
        return cls(unclaimed, *np.unique(values[unclaimed], return_inverse=True, return_counts=True))

    def settle(self, labels: np.ndarray, owners: np.ndarray) -> np.ndarray:
        """Give each strange value its label: owners (N,), one per value."""
        labels[self.where] = owners.astype(np.uint8)[self.inverse]
        return labels
