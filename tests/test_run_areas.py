"""Areas of run lengths against the pixels that they stand for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from visionapps.masks import decode, encode
from visionapps.metrics.object_precision import object_pairs
from visionapps.metrics.run_areas import RunTable, object_run_pairs, run_areas, union
from visionapps.metrics.run_kernels import shared_pixels

SHAPE = (6, 7)


def random_masks(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Masks of every density; empty and full ones too."""
    return [rng.random(SHAPE) < rng.choice([0, 0.1, 0.5, 0.9, 1]) for _ in range(count)]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), base=st.sampled_from([0, 1]), order=st.sampled_from(["row", "column"]))
def test_areas_of_all_rows_at_once_are_those_of_their_pixels(seed, base, order):
    rng = np.random.default_rng(seed)
    ours, theirs = random_masks(rng, 5), random_masks(rng, 5)
    tables = [RunTable.of([encode(m, order=order, base=base) for m in side], base=base) for side in (ours, theirs)]
    found = run_areas(*tables)
    assert found.both.tolist() == [int((a & b).sum()) for a, b in zip(ours, theirs, strict=True)]
    assert found.predicted.tolist() == [int(a.sum()) for a in ours]
    assert found.true.tolist() == [int(b.sum()) for b in theirs]
    assert tables[0].malformed(42) is None


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_walk_along_both_tables_finds_what_their_pixels_share(seed):
    rng = np.random.default_rng(seed)
    ours, theirs = random_masks(rng, 5), random_masks(rng, 5)
    tables = [RunTable.of([encode(m, order="row") for m in side], base=1) for side in (ours, theirs)]
    shared = shared_pixels(*tables[0], *tables[1])
    assert shared.tolist() == [int((a & b).sum()) for a, b in zip(ours, theirs, strict=True)]


def test_tables_without_runs_have_no_area():
    nothing = RunTable.of([np.zeros((0, 2), np.int64)] * 3, base=1)
    something = RunTable.of([np.array([[1, 5]])] * 3, base=1)
    assert [column.tolist() for column in run_areas(nothing, something)] == [[0] * 3, [0] * 3, [5] * 3]
    assert [column.tolist() for column in run_areas(something, nothing)] == [[0] * 3, [5] * 3, [0] * 3]
    assert [column.tolist() for column in run_areas(RunTable.of([], base=1), RunTable.of([], base=1))] == [[]] * 3


@pytest.mark.parametrize(
    "runs", [[[5, 2], [3, 1]], [[3, 3], [5, 1]], [[0, 1]], [[3, 0]], [[9, 3]], [[2**62, 1]], [[3, -2]]]
)
def test_a_malformed_row_is_found_among_good_ones(runs):
    good = np.array([[1, 2], [4, 2]])
    rows = [good, np.zeros((0, 2), np.int64), np.array(runs), good]
    assert RunTable.of(rows, base=1).malformed(10) == 2
    assert RunTable.of([good, np.array([[2**62, 1]])], base=1).malformed() == 1  # no image is that large
    # A row may begin before the one above it ends.
    assert RunTable.of([good, good, np.zeros((0, 2), np.int64), good], base=1).malformed(10) is None


def test_rows_of_one_image_that_share_a_pixel_are_found():
    rows = [np.array([[1, 4]]), np.array([[5, 2]]), np.array([[3, 1]]), np.array([[3, 2]])]
    table = RunTable.of(rows, base=1)
    assert table.overlapping(np.array([0, 0, 1, 2])) is None
    assert table.overlapping(np.array([0, 1, 1, 0])) == 0
    assert table.overlapping(np.array([7, 0, 1, 1])) == 1


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 4))
def test_the_union_of_rows_is_the_union_of_their_pixels(seed, count):
    masks = random_masks(np.random.default_rng(seed), count)
    runs = union([encode(mask, order="row") for mask in masks])
    expected = np.any(masks, axis=0) if masks else np.zeros(SHAPE, bool)
    assert np.array_equal(decode(runs, SHAPE, order="row"), expected)
    assert np.array_equal(runs, encode(expected, order="row"))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_objects_by_runs_meet_as_objects_by_pixels_do(seed):
    rng = np.random.default_rng(seed)
    ours, theirs = random_masks(rng, 2)
    rows = []
    for mask in (ours, theirs):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        rows.append([encode(labels == i, order="row") for i in range(1, count + 1)])
    for by_runs, by_pixels in zip(object_run_pairs(*rows), object_pairs(ours, theirs), strict=True):
        assert np.array_equal(by_runs, by_pixels)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_objects_that_overlap_on_both_sides_share_what_their_pixels_share(seed):
    rng = np.random.default_rng(seed)
    ours, theirs = random_masks(rng, 3), random_masks(rng, 3)
    pairs = object_run_pairs([encode(m, order="row") for m in ours], [encode(m, order="row") for m in theirs])
    table = np.zeros((3, 3), int)
    table[pairs.predicted, pairs.true] = pairs.both_px
    assert np.array_equal(table, [[int((a & b).sum()) for b in theirs] for a in ours])
    assert (pairs.both_px > 0).all()
