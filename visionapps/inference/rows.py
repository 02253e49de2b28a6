"""Read a source once, from top to bottom, as rows of tiles padded by reflection.

Shapes: C bands, h tile rows, W raster width, W' padded width.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from visionapps.inference.plan import Plan
from visionapps.inference.sources import Source
from visionapps.windows import Window


class TileRow(NamedTuple):
    """Everything that one row of tiles sees. The arrays are reused for the next row."""

    values: np.ndarray  # (C, h, W') raw
    valid: np.ndarray  # (h, W') bool; padding repeats the flags of what it mirrors


def tile_rows(source: Source, plan: Plan, *, fill: np.ndarray) -> Iterator[TileRow]:
    """Give one TileRow per tile row of the plan. Every pixel of the source is read once: the overlap is kept.

    Args:
        source: what to read, of the plan's size.
        plan: the lattice.
        fill: (C,) raw values put where a pixel is not valid, so that neither NaN nor a nodata value reaches the model.
    """
    rows, cols = plan.rows, plan.cols
    bands, width = len(source.bands), cols.length
    values = np.empty((bands, rows.tile, cols.padded), source.dtype)
    valid = np.empty((rows.tile, cols.padded), bool)
    right = mirrored(cols.padded, width)
    have = 0  # rows of the buffer that the tile row above left
    for start in rows.starts:
        if have:
            values[:, :have] = values[:, rows.tile - have :].copy()
            valid[:have] = valid[rows.tile - have :].copy()
        end = min(rows.tile, rows.length - start)
        window = Window(start + have, 0, end - have, width)
        fresh, fresh_valid = source.read(window)
        if not fresh_valid.all():
            fresh = np.where(fresh_valid, fresh, fill[:, None, None].astype(source.dtype))
        values[:, have:end, :width] = fresh
        valid[have:end, :width] = fresh_valid
        values[:, have:end, width:] = values[:, have:end, right]
        valid[have:end, width:] = valid[have:end, right]
        below = mirrored(rows.tile, end)
        values[:, end:] = values[:, below]
        valid[end:] = valid[below]
        yield TileRow(values, valid)
        have = rows.overlap


def mirrored(length: int, known: int) -> np.ndarray:
    """Indices in [0, known) for the positions [known, length): reflection about the last known one, repeated."""
    period = max(1, 2 * (known - 1))
    position = np.arange(known, length) % period
    return np.asarray(np.minimum(position, period - position) if known > 1 else position * 0)
