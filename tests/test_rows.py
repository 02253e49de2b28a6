"""Rows of tiles: the pixels of numpy's reflection, every block of the file decoded once, buffers used again."""

import threading
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visionapps.errors import DataError
from visionapps.inference.plan import Axis, Plan, plan
from visionapps.inference.rows import pieces, tile_rows
from visionapps.inference.sources import ArraySource, Pixels
from visionapps.windows import Window

FILL = np.array([7, 8])


class BlockedSource(ArraySource):
    """An array that pretends to be stored in blocks, counts how often each is decoded, and may break at a row."""

    def __init__(self, image: np.ndarray, block: tuple[int, int], *, breaks_at: int | None = None, **options: Any):
        super().__init__(image, **options)
        self.block, self._breaks_at = block, breaks_at
        self.windows: list[Window] = []
        self.threads: set[str] = set()

    def read(self, window: Window) -> Pixels:
        self.windows.append(window)
        self.threads.add(threading.current_thread().name)
        if self._breaks_at is not None and window.row_end > self._breaks_at:
            raise DataError(f"broken.tif: cannot be decoded in rows {window.row} to {window.row_end}")
        return super().read(window)

    @property
    def decoded(self) -> Counter[tuple[int, int]]:
        """How often each block was touched."""
        (height, width), count = self.block, Counter[tuple[int, int]]()
        for w in self.windows:
            rows = range(w.row // height, (w.row_end - 1) // height + 1)
            columns = range(w.col // width, (w.col_end - 1) // width + 1)
            count.update((row, column) for row in rows for column in columns)
        return count


def image_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 250, (2, height, width), dtype=np.uint8)


def padded(array: np.ndarray, layout: Plan) -> np.ndarray:
    """numpy's own reflection of the last two axes, to all that the tiles see."""
    sides = [(-axis.origin, max(0, axis.padded - axis.length)) for axis in (layout.rows, layout.cols)]
    ahead = [(0, 0)] * (array.ndim - 2)
    return np.pad(array, [*ahead, *sides], mode="reflect")


@st.composite
def layouts(draw: st.DrawFn) -> Plan:
    def axis() -> Axis:
        length = draw(st.integers(1, 60))
        tile = draw(st.integers(1, 24))
        overlap = draw(st.integers(0, tile // 2))
        origin = -draw(st.integers(0, tile - overlap - 1))
        return Axis(length, tile, overlap, origin)

    return Plan(axis(), axis())


@settings(max_examples=150, deadline=None)
@given(
    layout=layouts(),
    block=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    threads=st.sampled_from([1, 3]),
    held=st.integers(0, 2),
    data=st.data(),
)
def test_rows_are_numpys_reflection_of_the_filled_raster(
    layout: Plan, block: tuple[int, int], threads: int, held: int, data: st.DataObject
) -> None:
    image = image_of(layout.rows.length, layout.cols.length)
    valid = np.random.default_rng(1).random(image.shape[1:]) < data.draw(st.sampled_from([0.3, 1.0, 2.0]))
    count = len(layout.rows.starts)
    first = data.draw(st.integers(0, count - 1))
    wanted = data.draw(st.sampled_from([None, range(first, count), range(first, first + 1)]))
    expected = padded(np.where(valid, image, FILL.astype(np.uint8)[:, None, None]), layout)
    flags = padded(valid, layout)
    source = BlockedSource(image, block, valid=valid)
    waiting = []
    seen = []
    for row in tile_rows(source, layout, fill=FILL, rows=wanted, threads=threads):
        seen.append(row.index)
        waiting.append(row)
        for kept in waiting:  # rows that were not released keep their pixels while others are made
            begin, end = (edge - layout.rows.origin for edge in layout.rows.extent(kept.index))
            assert np.array_equal(kept.values, expected[:, begin:end])
            assert np.array_equal(kept.valid, flags[begin:end])
        if len(waiting) > held:
            waiting.pop(0).release()
    assert seen == list(wanted or range(count))
    rows = Counter(row for w in source.windows for row in range(w.row, w.row_end) if w.col == 0)
    assert max(rows.values()) == 1
    assert max(source.decoded.values()) == 1


def test_an_exact_plan_reflects_nothing_and_ends_with_the_raster() -> None:
    layout = Plan(Axis(50, 24, 8, exact=True), Axis(37, 16, 4, exact=True))
    image = image_of(50, 37)
    expected = [(0, 24), (16, 40), (32, 50)]
    for row, (begin, end) in zip(tile_rows(ArraySource(image), layout, fill=FILL), expected, strict=True):
        assert np.array_equal(row.values, image[:, begin:end])
        assert row.valid.shape == (end - begin, 37)
        row.release()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("block", [(64, 64), (16, 400), (1, 400), (128, 100), (37, 41)])
@pytest.mark.parametrize(("tile", "overlap"), [(64, 0), (64, 16), (96, 48)])
def test_every_block_is_decoded_once(block: tuple[int, int], tile: int, overlap: int, threads: int) -> None:
    source = BlockedSource(image_of(500, 400), block)
    layout = plan(source.shape, tile=tile, overlap=overlap)
    for row in tile_rows(source, layout, fill=FILL, threads=threads):
        row.release()
    blocks = -(-500 // block[0]) * -(-400 // block[1])
    assert source.decoded == Counter(dict.fromkeys(source.decoded, 1))
    assert len(source.decoded) == blocks
    assert all(name.startswith("visionapps read") for name in source.threads) == (threads == 3)


def test_a_later_range_reads_nothing_above_its_first_row() -> None:
    source = BlockedSource(image_of(500, 400), (64, 64))
    layout = plan(source.shape, tile=64, overlap=16)
    rows = [row.values.copy() for row in tile_rows(source, layout, fill=FILL, rows=range(4, 6))]
    assert min(w.row for w in source.windows) == layout.rows.extent(4)[0] == 192
    assert max(w.row_end for w in source.windows) == 320  # rows to 304 are wanted, and blocks end at 320
    assert np.array_equal(rows[1][:, :, :400], image_of(500, 400)[:, 240:304])


def test_blocks_as_tall_as_the_raster_are_not_read_whole() -> None:
    source = BlockedSource(np.zeros((2, 5000, 40), np.uint8), (5000, 40))
    layout = plan(source.shape, tile=64, overlap=16)
    for row in tile_rows(source, layout, fill=FILL, threads=3):
        row.release()
    assert max(w.height for w in source.windows) == 64
    assert sum(w.height for w in source.windows) == 5000
    assert len(source.threads) == 1


def test_released_buffers_are_used_again_and_held_ones_never() -> None:
    source = ArraySource(image_of(600, 50))
    layout = plan(source.shape, tile=32, overlap=0)
    held = []
    addresses = []
    for row in tile_rows(source, layout, fill=FILL):
        addresses.append(row.values.ctypes.data)
        held.append(row)
        if len(held) == 3:
            oldest = held.pop(0)
            oldest.release()
            oldest.release()  # twice is once
    assert len(set(addresses)) == 3
    assert all(before != after for before, after in pairwise(addresses))


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_while_reading_comes_out_after_the_rows_before_it_and_threads_end(threads: int) -> None:
    before = set(threading.enumerate())
    source = BlockedSource(image_of(500, 400), (64, 64), breaks_at=200)
    rows = tile_rows(source, plan(source.shape, tile=64, overlap=16), fill=FILL, threads=threads)
    assert [next(rows).index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match=r"broken\.tif: cannot be decoded in rows 192 to 256"):
        next(rows)
    assert set(threading.enumerate()) == before


def test_threads_end_when_the_consumer_leaves() -> None:
    before = set(threading.enumerate())
    source = BlockedSource(image_of(500, 400), (64, 64))
    rows = tile_rows(source, plan(source.shape, tile=64, overlap=16), fill=FILL, threads=2)
    next(rows)
    assert set(threading.enumerate()) > before
    rows.close()
    assert set(threading.enumerate()) == before


@given(
    row=st.integers(0, 100),
    size=st.tuples(st.integers(1, 100), st.integers(1, 300)),
    block=st.tuples(st.integers(1, 64), st.integers(1, 400)),
    most=st.integers(1, 5000),
)
def test_pieces_cover_a_window_once_and_cut_no_block(
    row: int, size: tuple[int, int], block: tuple[int, int], most: int
) -> None:
    whole = Window(row, 0, *size)
    seen = np.zeros((row + size[0], size[1]), int)
    for piece in pieces(whole, block, most=most):
        seen[piece.slices] += 1
        assert piece.row == row or piece.row % block[0] == 0
        assert piece.col % block[1] == 0
    assert (seen[row:] == 1).all()
    assert not seen[:row].any()


def test_wide_rows_are_read_in_pieces_of_bounded_size() -> None:
    parts = pieces(Window(0, 0, 512, 100_000), (512, 512), most=2**22)
    assert max(p.width for p in parts) * 512 <= 1.2 * 2**22
    strips = pieces(Window(0, 0, 512, 100_000), (8, 100_000), most=2**22)
    assert {p.width for p in strips} == {100_000}
    assert max(p.height for p in strips) * 100_000 <= 1.2 * 2**22
