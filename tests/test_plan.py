"""Lattices of tiles: every pixel finished once, weights that sum to one, little computed twice."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visionapps.errors import ConfigError
from visionapps.inference.plan import (
    Axis,
    Footprint,
    Plan,
    choose,
    default_overlap,
    exact_plan,
    fitted,
    memory,
    plan,
    shifted,
)
from visionapps.windows import Window


@st.composite
def blended_axes(draw: st.DrawFn) -> tuple[Axis, int]:
    """An axis of any of the blended plans, moved or not, and its multiple."""
    multiple = draw(st.sampled_from([1, 8, 32]))
    tile = multiple * draw(st.integers(1, 16))
    overlap = min(tile // 2, multiple * draw(st.integers(0, 8)))
    shape = draw(st.integers(1, 2000)), draw(st.integers(1, 2000))
    layout = draw(st.sampled_from([plan, fitted]))(shape, tile=tile, overlap=overlap, multiple=multiple)
    if draw(st.booleans()):
        layout = shifted(layout, multiple=multiple)
    return draw(st.sampled_from([layout.rows, layout.cols])), multiple


@st.composite
def exact_axes(draw: st.DrawFn) -> tuple[Axis, int]:
    multiple = draw(st.sampled_from([1, 8, 32]))
    halo = draw(st.integers(0, 40))
    fewest = 4 * -(-halo // multiple)
    tile = multiple * draw(st.integers(max(1, fewest), fewest + 12))
    shape = draw(st.integers(1, 2000)), draw(st.integers(1, 2000))
    layout = exact_plan(shape, tile=tile, halo=halo, multiple=multiple)
    if draw(st.booleans()):
        layout = shifted(layout, multiple=multiple)
    return draw(st.sampled_from([layout.rows, layout.cols])), multiple


def check_cover(axis: Axis, multiple: int) -> None:
    """What holds for every lattice, counted pixel by pixel."""
    extents = [axis.extent(i) for i in range(len(axis.starts))]
    tiles = np.zeros(axis.padded - axis.origin, int)
    weights = np.zeros(axis.padded - axis.origin)
    rise = axis.ramp()
    assert rise.shape == (axis.overlap,)
    assert rise.dtype == np.float32
    for index, (begin, end) in enumerate(extents):
        weight = np.ones(end - begin)
        if index > 0:
            weight[: axis.overlap] *= rise
        if index < len(extents) - 1:
            weight[len(weight) - axis.overlap :] *= 1 - rise
        tiles[begin - axis.origin : end - axis.origin] += 1
        weights[begin - axis.origin : end - axis.origin] += weight
    inside = slice(-axis.origin, axis.length - axis.origin)
    np.testing.assert_allclose(weights[inside], 1, atol=1e-6)
    assert tiles[inside].min() == 1 or axis.overlap == 0
    assert tiles.max() <= 2, "at most two tiles share a pixel"
    assert all((start - axis.origin) % multiple == 0 for start in axis.starts) or axis.overlap % multiple
    assert axis.computed == tiles.sum()
    finished = [axis.finished(i) for i in range(len(axis.starts))]
    assert finished[0][0] == 0
    assert finished[-1][1] == axis.length
    assert all(a < b for a, b in finished), "every tile finishes something"
    assert all(a[1] == b[0] for a, b in itertools.pairwise(finished))
    assert all(begin <= a and b <= end for (a, b), (begin, end) in zip(finished, extents, strict=True))
    assert all(b[0] + axis.overlap == a[1] for a, b in itertools.pairwise(extents)), "neighbours share the overlap"


@settings(max_examples=300, deadline=None)
@given(blended_axes())
def test_blended_tiles_cover_an_axis_with_weights_that_sum_to_one(drawn: tuple[Axis, int]) -> None:
    axis, multiple = drawn
    check_cover(axis, multiple)
    assert (axis.ramp() > 0).all()
    assert (axis.ramp() < 1).all()
    assert all((end - begin) % multiple == 0 for begin, end in map(axis.extent, range(len(axis.starts))))


@settings(max_examples=300, deadline=None)
@given(exact_axes())
def test_exact_tiles_begin_on_the_multiple_end_with_the_raster_and_never_leave_it(drawn: tuple[Axis, int]) -> None:
    axis, multiple = drawn
    check_cover(axis, multiple)
    extents = [axis.extent(i) for i in range(len(axis.starts))]
    assert extents[0][0] == 0
    assert extents[-1][1] == axis.length == axis.padded
    assert all(begin % multiple == 0 for begin, _ in extents)
    assert all(end % multiple == 0 for _, end in extents[:-1])
    assert set(axis.ramp()) <= {0.0, 1.0}


@settings(max_examples=200, deadline=None)
@given(length=st.integers(1, 3000), halo=st.integers(0, 90), extra=st.integers(0, 3))
def test_an_exact_plan_takes_no_pixel_from_nearer_than_the_halo_to_an_inner_tile_edge(
    length: int, halo: int, extra: int
) -> None:
    tile = 4 * -(-max(1, halo) // 32) * 32 + 32 * extra
    axis = exact_plan((length, 1), tile=tile, halo=halo, multiple=32).rows
    owner = np.full(length, -1)
    for index in range(len(axis.starts)):
        begin, end = axis.extent(index)
        takes = np.ones(end - begin, bool)
        if index > 0:
            takes[: axis.overlap] = axis.ramp() > 0
        owner[begin:end][takes] = index
    for index in range(len(axis.starts)):
        begin, end = axis.extent(index)
        (own,) = np.nonzero(owner == index)
        assert begin == 0 or own.min() - begin >= halo
        assert end == length or end - 1 - own.max() >= halo


def test_a_small_plan_is_what_a_hand_computes() -> None:
    axis = plan((100, 40), tile=48, overlap=16, multiple=16).rows
    assert axis.starts == [0, 32, 64]
    assert [axis.extent(i) for i in range(3)] == [(0, 48), (32, 80), (64, 112)]
    assert [axis.finished(i) for i in range(3)] == [(0, 32), (32, 64), (64, 100)]
    assert axis.padded == 112
    np.testing.assert_allclose(axis.ramp()[[0, 1, 15]], [1 / 32, 3 / 32, 31 / 32])
    layout = plan((100, 40), tile=48, overlap=16, multiple=16)
    assert layout.cols == Axis(40, 48, 0)
    assert layout.tiles == 3
    assert layout.repeated == 3 * 48 * 48 / (100 * 40)
    assert layout.band(1) == Window(32, 0, 32, 40)

    moved = shifted(layout, multiple=16)
    assert moved.cols == layout.cols, "one tile has no seam to move"
    assert moved.rows.starts == [-16, 16, 48, 80]
    assert [moved.rows.finished(i) for i in range(4)] == [(0, 16), (16, 48), (48, 80), (80, 100)]

    exact = exact_plan((100, 40), tile=64, halo=11, multiple=16).rows
    assert [exact.extent(i) for i in range(3)] == [(0, 64), (32, 96), (64, 100)]
    assert exact.ramp().tolist() == [0.0] * 16 + [1.0] * 16


@pytest.mark.parametrize(("tile", "overlap"), [(1024, 64), (512, 32)])
def test_a_fitted_plan_of_a_large_scene_computes_at_most_fifteen_percent_twice(tile: int, overlap: int) -> None:
    rng = np.random.default_rng(0)
    sides = [*range(6000, 8000, 13), *rng.integers(6000, 120_000, 150).tolist()]
    for height, width in zip(sides, reversed(sides), strict=True):
        for shape in ((height, width), (height, height)):
            layout = fitted(shape, tile=tile, overlap=overlap)
            assert layout.repeated <= 1.15, shape
            for axis in (layout.rows, layout.cols):
                assert 0.75 * tile <= axis.tile <= tile
                assert axis.overlap == overlap


def test_small_scenes_are_cut_into_equal_parts_not_into_one_large_tile_and_a_rest() -> None:
    assert fitted((1100, 300), tile=1024, overlap=64) == Plan(Axis(1100, 608, 64, trim=32), Axis(300, 320, 0))
    assert fitted((1, 1), tile=1024, overlap=64).repeated == 1024
    for side in range(1025, 6000, 97):
        assert fitted((side, side), tile=1024, overlap=64).repeated < 1.25


def test_the_default_overlap_is_a_sixteenth_on_the_multiple() -> None:
    assert [default_overlap(t) for t in (64, 256, 512, 1024, 1056, 2048)] == [32, 32, 32, 64, 96, 128]
    assert default_overlap(32) == 16


def test_memory_counts_what_the_pipeline_holds() -> None:
    layout = plan((4000, 1000), tile=512, overlap=128)
    assert layout.cols.padded == 1280
    estimate = memory(layout, Footprint(bands=3, itemsize=2, scores=25, products=2, activations=100, batch=4))
    assert estimate.pixels == 3 * 512 * 1280 * (3 * 2 + 1)
    assert estimate.strips == 25 * 4 * (128 * 1280 + 128 * 512)
    assert estimate.bands == 3 * 2 * 384 * 1000
    assert estimate.batch == 4 * 512 * 512 * (3 * 2 + 3 * 4 + 2 * 25 * 4)
    assert estimate.network == 4 * 512 * 512 * 100
    assert estimate.beside == estimate.pixels + estimate.strips + estimate.bands + estimate.batch
    assert estimate.total == estimate.beside + estimate.network
    taller = plan((400_000, 1000), tile=512, overlap=128)
    assert memory(taller, Footprint(3, 2, 25, 2, 100, 4)) == estimate, "the height costs nothing"


def test_the_default_tile_shrinks_until_a_wide_raster_fits_the_budget() -> None:
    footprint = Footprint(bands=3, itemsize=1, scores=25)
    sides = []
    for width in (2000, 12_000, 48_000, 100_000):
        layout = choose((6000, width), footprint)
        assert memory(layout, footprint).beside <= 600_000_000 or layout.cols.tile <= 256
        sides.append(layout.cols.tile)
    assert sides == [448, 512, 512, 256]  # 2000 px wide takes five of 448
    assert choose((1000, 700), footprint).tiles == 1, "a scene that one tile may cover is computed once"
    assert choose((6000, 6000), footprint, tile=256, overlap=64).rows.overlap == 64
    assert choose((6000, 6000), footprint, tile=2048, budget=0).rows.tile > 1024, "a size asked for stays"
    exact = choose((6000, 6000), footprint, halo=100, budget=10**10)
    assert (exact.rows.exact, exact.rows.tile, exact.rows.overlap) == (True, 1024, 256)
    assert choose((6000, 6000), footprint, halo=100, budget=0).rows.tile == 512
    assert choose((9000, 9000), footprint, halo=539, budget=10**11).rows.tile == 8 * 544
    assert choose((9000, 9000), footprint, halo=539, budget=0).rows.tile == 4 * 544


def test_settings_that_cannot_work_are_named() -> None:
    with pytest.raises(ConfigError, match="tile 500 px: must be a multiple of the model's stride 32, such as 480"):
        fitted((900, 900), tile=500, overlap=0)
    with pytest.raises(ConfigError, match=r"overlap 300 px: must be in \[0, 256\]"):
        fitted((900, 900), tile=512, overlap=300)
    with pytest.raises(ConfigError, match=r"looks 70 px around a pixel, so tiles must have at least 384 px .*768"):
        exact_plan((900, 900), tile=352, halo=70)
    assert exact_plan((300, 352), tile=352, halo=70).tiles == 1, "one tile needs no halo"
    for bad in (
        {"overlap": 33},
        {"origin": 1},
        {"origin": -48},
        {"trim": 48},
        {"exact": True, "overlap": 15},
        {"trim": 13},
        {"length": 0},
    ):
        with pytest.raises(ConfigError, match="last tile must reach the end"):
            Axis(**{"length": 100, "tile": 64, "overlap": 16, **bad})
