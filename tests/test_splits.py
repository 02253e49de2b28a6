"""Groups and their division, on numbers small enough to check by eye."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from visionapps.data.dataset import CELL, Split
from visionapps.data.splits import Weight, cut_blocks, divide, group_name
from visionapps.errors import DataError
from visionapps.structures import GeoRef


def utm(x: float, y: float, resolution: float = 1.0, code: int = 32633) -> GeoRef:
    return GeoRef(CRS.from_epsg(code).to_wkt(), (resolution, 0, x, 0, -resolution, y))


def test_groups_come_from_the_first_bracket_or_the_whole_match():
    assert group_name(Split(group=r"tile\d+"), "tile12_part3", (1, 1)) == "tile12"
    assert group_name(Split(group=r"^(\d+)_"), "07_133", (1, 1)) == "07"
    assert group_name(Split(), "07_133", (1, 1)) == "07_133"


def test_an_expression_that_fits_nothing_or_is_broken_is_named():
    with pytest.raises(DataError, match=r"split\.group: 'x\+' is not found in the name 'abc'"):
        group_name(Split(group="x+"), "abc", (1, 1))
    with pytest.raises(DataError, match=r"split\.group: '\(' is no regular expression"):
        group_name(Split(group="("), "abc", (1, 1))


def test_map_blocks_follow_the_centre_in_metres():
    split = Split(block_m=1000)
    # 100 px of 1 m: centres at x + 50, y - 50
    assert group_name(split, "a", (100, 100), utm(500_940, 4_000_060)) == "32633:500,4000"
    assert group_name(split, "a", (100, 100), utm(500_960, 4_000_040)) == "32633:501,3999"
    # the same place in feet has the same block: 1 US survey foot = 1200 / 3937 m
    foot = 1200 / 3937
    feet = utm(500_940 / foot, 4_000_060 / foot, 1 / foot, code=2263)
    assert group_name(split, "a", (100, 100), feet) == "2263:500,4000"


def test_degrees_become_metres_at_their_latitude():
    # 0.009 degrees are 1 km of latitude everywhere, but 0.5 km of longitude at 60 degrees north
    split = Split(block_m=1000)
    blocks = {group_name(split, "a", (0, 0), utm(10 + i * 0.009, 60.0, 1e-5, code=4326)) for i in range(20)}
    assert len(blocks) in (10, 11)


def test_map_blocks_need_a_georeference():
    with pytest.raises(DataError, match=r"a: split\.block_m needs a georeferenced image"):
        group_name(Split(block_m=10), "a", (1, 1))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([64, 128, 256]))
def test_blocks_cover_every_pixel_once_and_none_is_a_sliver(height, width, block):
    covered = np.zeros((height, width), int)
    for window in cut_blocks(height, width, block):
        covered[window.slices] += 1
        assert window.row % CELL == window.col % CELL == 0
        assert min(window.height, height) >= min(height, block / 2)
        assert window.width < 1.5 * block + 1
    assert (covered == 1).all()


def weights(pixels, classes=None):
    return {f"g{i}": Weight(p, tuple((classes or {}).get(i, (1,)))) for i, p in enumerate(pixels)}


@pytest.mark.parametrize("seed", range(5))
def test_the_share_of_pixels_is_met_as_well_as_whole_groups_allow(seed):
    groups = weights([10] * 20)
    chosen = divide(Split(val_fraction=0.2, seed=seed), groups)
    assert len(chosen) == 4
    assert chosen == divide(Split(val_fraction=0.2, seed=seed), dict(reversed(groups.items())))


def test_seeds_draw_different_groups():
    assert len({divide(Split(seed=s), weights([10] * 20)) for s in range(10)}) > 5


def test_both_sides_keep_a_group_even_if_one_is_huge():
    for seed, fraction in itertools.product(range(5), (0.01, 0.5, 0.99)):
        assert len(divide(Split(val_fraction=fraction, seed=seed), weights([1, 1000]))) == 1


@pytest.mark.parametrize("seed", range(20))
def test_every_class_stands_on_both_sides_if_any_draw_can_do_it(seed):
    rare = {0: (1, 1), 1: (1, 1)}  # class 1 occurs in two of ten groups: one must validate, one must train
    chosen = divide(Split(seed=seed), weights([10] * 10, {i: rare.get(i, (1, 0)) for i in range(10)}))
    assert len(chosen & {"g0", "g1"}) == 1
    assert 1 <= len(chosen) <= 3


def test_the_extremes_and_named_groups_are_taken_at_their_word():
    groups = weights([1, 2, 3])
    assert divide(Split(val_fraction=0), groups) == frozenset()
    assert divide(Split(val_fraction=1), groups) == frozenset(groups)
    assert divide(Split(val_groups=("g2", "g0")), groups) == frozenset({"g0", "g2"})


def test_splits_that_cannot_be_are_refused():
    with pytest.raises(DataError, match=r"all usable photos are one group \(g0\)"):
        divide(Split(), weights([5]))
    with pytest.raises(DataError, match="no group is called 'g9'; there are g0, g1"):
        divide(Split(val_groups=("g9",)), weights([5, 5]))
    with pytest.raises(DataError, match="names all 2 groups"):
        divide(Split(val_groups=("g0", "g1")), weights([5, 5]))
