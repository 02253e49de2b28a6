"""Read a source once, from top to bottom, as rows of tiles padded by reflection.

Shapes: C bands, h w window, H W raster, W' padded width.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from visionapps.inference.plan import Plan
from visionapps.inference.sources import Pixels, Source
from visionapps.windows import Window

_TALLEST_BLOCK = 2048  # rows; blocks above are not read whole: with the carry they would cost memory of the raster
_PIECE = 2**22  # pixels of one read: few enough to hold beside the row, many enough that calls cost nothing


class TileRow:
    """Everything that one row of tiles sees. Its arrays are used for a later row once it is released.

    Attributes:
        index: which tile row of the plan.
        values: (C, h, W') raw; column x of the raster stands at x - plan.cols.origin, row y at y - extent(index)[0].
        valid: (h, W') bool; what is reflected has the flags of what it mirrors.
    """

    def __init__(self, index: int, values: np.ndarray, valid: np.ndarray, *, free: "deque[Pixels]") -> None:
        self.index, self._whole, self._free = index, Pixels(values, valid), free
        self.values, self.valid = values, valid
        self._released = False

    def release(self) -> None:
        """Give the arrays back; neither they nor views of them may be looked at any more."""
        if not self._released:
            self._released = True
            self._free.append(self._whole)


class _Piece(NamedTuple):
    """Part of the source, invalid pixels filled."""

    window: Window
    pixels: Pixels
    held: int  # rows that the arrays occupy memory for, those cut off included


def tile_rows(
    source: Source, plan: Plan, *, fill: np.ndarray, rows: range | None = None, threads: int = 1
) -> Iterator[TileRow]:
    """Give one TileRow per tile row. Every block of the source is decoded once; what the next row needs is kept.

    Args:
        source: what to read, of the plan's size.
        plan: the lattice.
        fill: (C,) raw values put where a pixel is not valid, so that neither NaN nor a nodata value reaches the model.
        rows: the contiguous tile rows wanted; None: all.
        threads: that decode at once, >= 1; they end with the iterator.

    Raises:
        DataError: the source cannot be read; from whichever thread found out.
    """
    wanted = range(len(plan.rows.starts)) if rows is None else rows
    needs = [_reflected(np.arange(*plan.rows.extent(index)), plan.rows.length) for index in wanted]
    lowest = [*(int(need.min()) for need in needs), plan.rows.length]  # rises: what is above is needed no more
    free: deque[Pixels] = deque()
    with ExitStack() as stack:
        reader = _Reader(source, lowest[0], threads=threads, fill=fill, stack=stack)
        kept: list[_Piece] = []
        for position, (index, need) in enumerate(zip(wanted, needs, strict=True)):
            row = _take(free, source, plan, index)
            for piece in kept:
                _put(piece, row, need, left=-plan.cols.origin)
            kept = [tail for piece in kept if (tail := _tail(piece, lowest[position + 1]))]
            for piece in reader.upto(int(need.max()) + 1):
                _put(piece, row, need, left=-plan.cols.origin)
                if tail := _tail(piece, lowest[position + 1]):
                    kept.append(tail)
            _reflect_columns(row, plan)
            yield row


class _Reader:
    """Reads full-width rows from top to bottom in pieces that are whole blocks."""

    def __init__(self, source: Source, first: int, *, threads: int, fill: np.ndarray, stack: ExitStack) -> None:
        self._source, self._at, self._fill = source, first, fill.astype(source.dtype)[:, None, None]
        height, width = source.block
        tall = height > _TALLEST_BLOCK
        # The decoder has to keep a tall block, and a second thread would decode it again.
        self._threads = 1 if tall else threads
        self._block = (1 if tall else height, width)
        self._pool = None
        if self._threads > 1:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="visionapps read")
            stack.callback(self._pool.shutdown, cancel_futures=True)

    def upto(self, end: int) -> Iterator[_Piece]:
        """The rows below those read so far, at least to ``end``."""
        if end <= self._at:
            return
        height, width = self._source.shape
        last = min(height, -(-end // self._block[0]) * self._block[0])
        band = Window(self._at, 0, last - self._at, width)
        self._at = last
        windows = pieces(band, self._block, most=min(_PIECE, -(-band.height * width // self._threads)))
        read = self._pool.map(self._source.read, windows) if self._pool else map(self._source.read, windows)
        for window, pixels in zip(windows, read, strict=True):
            yield _Piece(window, self._filled(pixels), window.height)

    def _filled(self, pixels: Pixels) -> Pixels:
        if pixels.valid.all():
            return pixels
        return Pixels(np.where(pixels.valid, pixels.values, self._fill), pixels.valid)


def pieces(window: Window, block: tuple[int, int], *, most: int) -> list[Window]:
    """Cut a window along the edges of blocks into parts of at most ``most`` pixels, or as near to that as blocks allow.

    Columns are cut first: the parts of one row of blocks are then read one beside the other.
    """
    parts = -(-window.height * window.width // most)
    columns = _cuts(window.col, window.col_end, block[1], parts)
    rows = _cuts(window.row, window.row_end, block[0], -(-parts // (len(columns) - 1)))
    return [
        Window(top, left, bottom - top, right - left)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]


def _cuts(begin: int, end: int, block: int, parts: int) -> list[int]:
    """Edges of about so many equal parts of [begin, end), the inner ones on multiples of the block."""
    inner = {round((begin + (end - begin) * i / parts) / block) * block for i in range(1, parts)}
    return [begin, *sorted(edge for edge in inner if begin < edge < end), end]


def _take(free: "deque[Pixels]", source: Source, plan: Plan, index: int) -> TileRow:
    """A row with a released buffer, or with a new one; those of an exact plan differ in height."""
    begin, end = plan.rows.extent(index)
    shape = (end - begin, plan.cols.padded - plan.cols.origin)
    while free:
        values, valid = free.popleft()
        if valid.shape == shape:
            return TileRow(index, values, valid, free=free)
    values, valid = np.empty((len(source.bands), *shape), source.dtype), np.empty(shape, bool)
    return TileRow(index, values, valid, free=free)


def _put(piece: _Piece, row: TileRow, need: np.ndarray, *, left: int) -> None:
    """Copy what a row needs of a piece, reflected rows included.

    Args:
        need: (h,) the raster row that stands at each row of the buffer: rising, with falling runs where it reflects.
        left: columns before the raster's first.
    """
    window, (values, valid), _ = piece
    columns = slice(left + window.col, left + window.col_end)
    at = np.flatnonzero((need >= window.row) & (need < window.row_end))
    if not len(at):
        return
    # Runs of neighbouring rows are copied as slices.
    for run in np.split(at, np.flatnonzero((np.diff(at) != 1) | (np.diff(need[at]) != 1)) + 1):
        first = int(need[run[0]]) - window.row
        to, of = slice(int(run[0]), int(run[-1]) + 1), slice(first, first + len(run))
        row.values[:, to, columns] = values[:, of]
        row.valid[to, columns] = valid[of]


def _tail(piece: _Piece, first: int) -> _Piece | None:
    """What is left of a piece from a row on: a view, or a copy once more than half of the memory is of no use."""
    window, (values, valid), held = piece
    skip = first - window.row
    if skip <= 0:
        return piece
    if skip >= window.height:
        return None
    rest = Window(window.row + skip, window.col, window.height - skip, window.width)
    if 2 * rest.height > held:
        return _Piece(rest, Pixels(values[:, skip:], valid[skip:]), held)
    return _Piece(rest, Pixels(values[:, skip:].copy(), valid[skip:].copy()), rest.height)


def _reflect_columns(row: TileRow, plan: Plan) -> None:
    begin, length, end = plan.cols.origin, plan.cols.length, plan.cols.padded
    for outside in (np.arange(begin, 0), np.arange(length, end)):
        if len(outside):
            to = slice(int(outside[0]) - begin, int(outside[-1]) + 1 - begin)
            of = _reflected(outside, length) - begin
            row.values[..., to] = row.values[..., of]
            row.valid[:, to] = row.valid[:, of]


def _reflected(positions: np.ndarray, length: int) -> np.ndarray:
    """The positions in [0, length) that stand for any others: reflection about the first and the last, repeated."""
    if length == 1:
        return np.zeros_like(positions)
    around = positions % (2 * (length - 1))
    return np.asarray(np.minimum(around, 2 * (length - 1) - around))
