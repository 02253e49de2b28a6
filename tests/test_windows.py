"""Windows against numpy slices and sets of pixels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionapps.errors import ConfigError
from visionapps.windows import Window, blocks, starts

windows = st.builds(Window, st.integers(-5, 8), st.integers(-5, 8), st.integers(0, 9), st.integers(0, 9))
inside = st.builds(Window, st.integers(0, 8), st.integers(0, 8), st.integers(0, 9), st.integers(0, 9))


def pixels(window: Window) -> set[tuple[int, int]]:
    return {(window.row + r, window.col + c) for r in range(window.height) for c in range(window.width)}


@given(inside)
def test_slices_cut_the_very_pixels_of_the_window(window):
    rows, cols = np.indices((20, 20))
    cut = {(int(r), int(c)) for r, c in zip(rows[window.slices].flat, cols[window.slices].flat, strict=True)}
    assert cut == pixels(window)
    assert (window.row_end, window.col_end) == (window.row + window.height, window.col + window.width)


@given(windows, windows)
def test_the_intersection_holds_the_pixels_of_both(a, b):
    assert pixels(a.intersect(b)) == pixels(a) & pixels(b)
    assert pixels(b.intersect(a)) == pixels(a.intersect(b))


@given(inside, inside)
def test_the_intersection_cuts_what_numpy_cuts(a, b):
    marks = np.zeros((20, 20), int)
    marks[a.slices] += 1
    marks[b.slices] += 1
    common = a.intersect(b)
    assert marks[common.slices].size == (marks == 2).sum()
    assert (marks[common.slices] == 2).all()


def test_windows_that_only_touch_have_nothing_in_common():
    common = Window(0, 0, 4, 4).intersect(Window(0, 4, 4, 4))
    assert (common.height, common.width) == (4, 0)
    assert Window(0, 0, 2, 2).intersect(Window(5, 7, 2, 2)).height == 0


@given(windows, st.integers(-4, 4), st.integers(-4, 4))
def test_shifting_moves_every_pixel(window, rows, cols):
    assert pixels(window.shift(rows, cols)) == {(r + rows, c + cols) for r, c in pixels(window)}


@pytest.mark.parametrize("size", [(-1, 3), (3, -1)])
def test_negative_sizes_are_refused(size):
    with pytest.raises(ConfigError, match=r"window: height -?\d and width -?\d must not be negative"):
        Window(0, 0, *size)


def test_windows_are_values():
    assert Window(1, 2, 3, 4) == Window(1, 2, 3, 4)
    assert len({Window(1, 2, 3, 4), Window(1, 2, 3, 4)}) == 1
    assert sorted([Window(1, 0, 1, 1), Window(0, 5, 1, 1)])[0].row == 0
    with pytest.raises(AttributeError):
        Window(1, 2, 3, 4).row = 5


@given(st.integers(1, 60), st.integers(1, 20), st.data())
def test_tiles_cover_everything_on_one_lattice_and_none_is_needless(length, tile, data):
    overlap = data.draw(st.integers(0, tile - 1))
    found = starts(length, tile, overlap)
    assert {i for first in found for i in range(first, first + tile)} >= set(range(length))
    assert found == [i * (tile - overlap) for i in range(len(found))]
    # Without the last tile, pixels would be missing.
    assert len(found) == 1 or found[-2] + tile < length


@pytest.mark.parametrize(
    ("length", "tile", "overlap", "expected"),
    [
        (10, 4, 0, [0, 4, 8]),
        (10, 4, 2, [0, 2, 4, 6]),
        (4, 4, 3, [0]),
        (3, 4, 0, [0]),
        (5, 4, 0, [0, 4]),
        (1, 1, 0, [0]),
    ],
)
def test_starts_of_small_cases(length, tile, overlap, expected):
    assert starts(length, tile, overlap) == expected


@pytest.mark.parametrize(("length", "tile", "overlap"), [(0, 4, 0), (4, 0, 0), (4, 4, 4), (4, 4, -1)])
def test_lattices_that_cannot_be_are_refused(length, tile, overlap):
    with pytest.raises(ConfigError, match=r"tiles: length \d and tile \d must be at least 1, overlap -?\d in \[0"):
        starts(length, tile, overlap)


@given(st.integers(1, 25), st.integers(1, 25), st.integers(1, 30))
def test_blocks_hold_every_pixel_exactly_once_row_by_row(height, width, size):
    times = np.zeros((height, width), int)
    found = list(blocks(height, width, size))
    for window in found:
        assert 1 <= window.height <= size
        assert 1 <= window.width <= size
        times[window.slices] += 1
    assert (times == 1).all()
    assert found == sorted(found)
    assert len(found) == -(-height // size) * -(-width // size)
