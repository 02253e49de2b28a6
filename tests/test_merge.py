"""Strips against accumulators of the raster's size, in double precision."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from visionapps.inference.kernels import separate_planes
from visionapps.inference.merge import StripMerger
from visionapps.inference.plan import Axis, Plan, exact_plan, fitted, plan, shifted
from visionapps.inference.products import Form, Products

EVERYTHING = Products(("confidence", "entropy", "disagreement", "overlap", "probabilities"))
PLAIN = plan((150, 170), tile=64, overlap=24, multiple=8)
EXACT = exact_plan((150, 170), tile=64, halo=12, multiple=4)
LAYOUTS = {
    "plain": PLAIN,
    "apart": plan((150, 170), tile=64, overlap=0, multiple=8),
    "half": plan((70, 90), tile=32, overlap=16, multiple=8),
    "one tile": plan((30, 20), tile=64, overlap=24, multiple=8),
    "one column": plan((150, 20), tile=64, overlap=24, multiple=8),
    "fitted": fitted((151, 170), tile=64, overlap=16, multiple=8),
    "shifted": shifted(PLAIN, multiple=8),
    "exact": EXACT,
    "exact and shifted": shifted(EXACT, multiple=4),
}
Tiles = dict[tuple[int, int], Tensor]


def extents(axis: Axis) -> list[tuple[int, int]]:
    return [axis.extent(i) for i in range(len(axis.starts))]


def scores_of(layout: Plan, planes: int, seed: int = 1) -> Tiles:
    """Random scores of every tile, by the indices of its row and column."""
    generator = torch.Generator().manual_seed(seed)
    return {
        (i, j): torch.randn(planes, bottom - top, right - left, generator=generator) * 3
        for i, (top, bottom) in enumerate(extents(layout.rows))
        for j, (left, right) in enumerate(extents(layout.cols))
    }


def weights_of(axis: Axis, index: int) -> np.ndarray:
    begin, end = axis.extent(index)
    weights, rise = np.ones(end - begin), axis.ramp().astype(np.float64)
    if axis.overlap and index > 0:
        weights[: axis.overlap] *= rise
    if axis.overlap and index < len(axis.starts) - 1:
        weights[end - begin - axis.overlap :] *= 1 - rise
    return weights


def accumulated(layout: Plan, tiles: Tiles) -> np.ndarray:
    """(S, H, W) weighted sum over the whole raster with an outer product of ramps."""
    rows, cols = layout.rows, layout.cols
    planes = next(iter(tiles.values())).shape[0]
    total = np.zeros((planes, rows.padded - rows.origin, cols.padded - cols.origin))
    for (i, j), scores in tiles.items():
        (top, bottom), (left, right) = rows.extent(i), cols.extent(j)
        inside = (slice(top - rows.origin, bottom - rows.origin), slice(left - cols.origin, right - cols.origin))
        total[:, *inside] += scores.numpy() * np.outer(weights_of(rows, i), weights_of(cols, j))
    return total[:, -rows.origin :, -cols.origin :][:, : rows.length, : cols.length]


def merged(
    layout: Plan, tiles: dict[tuple[int, int], Any], classes: int, *, compiled: bool = True, **options: Any
) -> np.ndarray:
    """(N, H, W) planes of all rows from ``first`` on."""
    merger = StripMerger(layout, classes, **options)
    merger._compiled = compiled
    bands = []
    for i in range(options.get("first", 0), len(layout.rows.starts)):
        for j in range(len(layout.cols.starts)):
            merger.add(None if tiles[i, j] is None else tiles[i, j].clone())
        bands.append(merger.finished_rows().numpy())
        window = layout.band(i)
        assert bands[-1].shape[1:] == (window.height, window.width)
    return np.concatenate(bands, axis=1)


def softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits - logits.max(0))
    return np.asarray(exp / exp.sum(0))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("classes", [1, 3, 9])
def test_labels_are_those_of_an_accumulator_of_the_raster(name: str, classes: int, compiled: bool) -> None:
    layout = LAYOUTS[name]
    tiles = scores_of(layout, classes)
    labels = merged(layout, tiles, classes, compiled=compiled)
    assert labels.shape == (1, layout.rows.length, layout.cols.length)
    assert np.array_equal(labels[0], accumulated(layout, tiles).argmax(0))


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 70), width=st.integers(1, 70), half=st.integers(0, 8), origin=st.booleans(), data=st.data()
)
def test_any_lattice_gives_the_labels_of_an_accumulator(
    height: int, width: int, half: int, origin: bool, data: Any
) -> None:
    layout = plan((height, width), tile=16, overlap=half, multiple=4)
    layout = shifted(layout, multiple=4) if origin else layout
    tiles = scores_of(layout, 5, seed=data.draw(st.integers(0, 99)))
    assert np.array_equal(merged(layout, tiles, 5)[0], accumulated(layout, tiles).argmax(0))


def test_the_compiled_pass_equals_the_same_operations_in_torch_bit_by_bit() -> None:
    for layout in LAYOUTS.values():
        tiles = scores_of(layout, 6)
        one, other = (merged(layout, tiles, 5, compiled=c, products=EVERYTHING) for c in (True, False))
        assert np.array_equal(one, other)


@pytest.mark.parametrize("form", ["logits", "probabilities"])
@pytest.mark.parametrize("name", ["plain", "exact", "shifted"])
def test_extras_are_those_of_an_accumulator(name: str, form: Form) -> None:
    layout, classes = LAYOUTS[name], 5
    tiles = scores_of(layout, classes + 1)
    for tile in tiles.values():
        tile[classes].sigmoid_()
        if form == "probabilities":
            tile[:classes] = tile[:classes].softmax(0)
    total = accumulated(layout, tiles)
    p = softmax(total[:classes]) if form == "logits" else total[:classes]
    entropy = -(p * np.log(p)).sum(0) / math.log(classes)
    expected = np.concatenate([p.max(0)[None], entropy[None], total[classes:], p])
    planes = merged(layout, tiles, classes, products=EVERYTHING, form=form)
    assert np.array_equal(planes[0], total[:classes].argmax(0))
    got = np.delete(planes, [0, 4], axis=0)  # overlap has a test of its own
    assert np.abs(got - 254 * expected).max() <= 0.501


@pytest.mark.parametrize("extras", [(), ("confidence",), ("overlap",), EVERYTHING.extras])
def test_labels_do_not_depend_on_the_extras(extras: Any) -> None:
    products = Products(extras)
    tiles = scores_of(PLAIN, 6)
    few = {place: tile[: products.score_planes(5)] for place, tile in tiles.items()}
    labels = merged(PLAIN, few, 5, products=products)[0]
    assert np.array_equal(labels, accumulated(PLAIN, tiles)[:5].argmax(0))


def test_overlap_is_how_far_apart_two_tiles_are_where_both_see_a_pixel() -> None:
    layout = plan((40, 104), tile=64, overlap=24, multiple=8)  # two tiles side by side
    tiles = scores_of(layout, 4)
    planes = merged(layout, tiles, 4, products=Products(("overlap",)))
    a, b = (softmax(tiles[0, j].numpy().astype(np.float64))[:, :40] for j in (0, 1))
    expected = np.zeros((40, 104))
    expected[:, 40:64] = np.abs(a[:, :, 40:] - b[:, :, :24]).sum(0) / 2
    assert np.abs(planes[1] - 254 * expected).max() <= 0.501
    upright = plan((104, 40), tile=64, overlap=24, multiple=8)
    turned = {(j, 0): tile.transpose(1, 2).contiguous() for (_, j), tile in tiles.items()}
    again = merged(upright, turned, 4, products=Products(("overlap",)))
    assert np.array_equal(again.transpose(0, 2, 1), planes)


def test_where_four_tiles_meet_overlap_is_the_largest_distance_between_neighbours() -> None:
    """Tiles of constant scores, so that every distance can be told from the probabilities by hand."""
    layout = plan((104, 104), tile=64, overlap=24, multiple=8)
    sure = {  # probability of the first of two classes
        (0, 0): 0.9, (0, 1): 0.8,
        (1, 0): 0.1, (1, 1): 0.8,
    }  # fmt: skip
    tiles = {k: torch.tensor([p, 1 - p])[:, None, None].repeat(1, 64, 64) for k, p in sure.items()}
    planes = merged(layout, tiles, 2, products=Products(("overlap",)), form="probabilities")
    overlap = planes[1] / 254
    assert overlap[10, 50] == pytest.approx(0.1, abs=0.002), "upper two"
    assert overlap[90, 50] == pytest.approx(0.7, abs=0.002), "lower two"
    assert overlap[50, 10] == pytest.approx(0.8, abs=0.002), "left two"
    assert overlap[50, 90] == 0, "right two"
    assert overlap[40:64, 40:64] == pytest.approx(0.7, abs=0.002), "the lower two are the farthest apart"
    assert not overlap[:40, :40].any()


@pytest.mark.parametrize("name", ["plain", "half", "fitted", "shifted", "exact", "exact and shifted"])
def test_a_run_that_begins_one_row_earlier_finishes_the_same_rows(name: str) -> None:
    layout = LAYOUTS[name]
    tiles = scores_of(layout, 6)
    whole = merged(layout, tiles, 5, products=EVERYTHING)
    for k in range(1, len(layout.rows.starts)):
        part = merged(layout, tiles, 5, products=EVERYTHING, first=k - 1)
        warm = layout.band(k - 1).height
        assert np.array_equal(part[:, warm:], whole[:, layout.band(k).row :])


@pytest.mark.parametrize("compiled", [True, False])
def test_a_skipped_tile_is_255_where_only_it_looks_and_leaves_its_neighbours_alone(compiled: bool) -> None:
    tiles: dict[tuple[int, int], Any] = dict(scores_of(PLAIN, 6))
    options: dict[str, Any] = {"products": EVERYTHING, "compiled": compiled}
    full = merged(PLAIN, tiles, 5, **options)
    hole = merged(PLAIN, {**tiles, (1, 2): None}, 5, **options)
    rows, cols = PLAIN.rows.extent(1), PLAIN.cols.extent(2)
    assert (hole[:, rows[0] : PLAIN.rows.extent(2)[0], cols[0] : PLAIN.cols.extent(3)[0]] == 255).all()
    outside = np.ones(full.shape[1:], bool)
    outside[rows[0] : rows[1], cols[0] : cols[1]] = False
    assert np.array_equal(hole[:, outside], full[:, outside])


def test_the_first_of_equal_scores_wins_and_nan_never_does() -> None:
    layout, classes = plan((8, 16), tile=16, overlap=0, multiple=8), 10
    scores = torch.zeros(classes, 8, 16)
    pairs = [(0, 4), (1, 5), (2, 4), (3, 9), (4, 8), (6, 7), (5, 9), (8, 9)]
    for x, pair in enumerate(pairs):
        scores[list(pair), 0, x] = 1
    scores[0, 1] = torch.nan
    scores[:, 2] = torch.nan
    scores[:, 3] = -torch.inf
    scores[5, 4] = torch.inf
    labels = merged(layout, {(0, 0): scores}, classes)[0]
    assert labels[0].tolist() == [first for first, _ in pairs] + [0] * 8
    assert (labels[1] == 1).all()
    assert (labels[2:4] == 0).all()
    assert (labels[4] == 5).all()


@settings(max_examples=30, deadline=None)
@given(pixels=st.integers(1, 100), channels=st.integers(1, 11), half=st.booleans(), seed=st.integers(0, 99))
def test_interleaved_channels_become_planes(pixels: int, channels: int, half: bool, seed: int) -> None:
    values = torch.randn(pixels, channels, generator=torch.Generator().manual_seed(seed))
    bits = values.bfloat16().view(torch.uint16).numpy() if half else values.numpy().view(np.uint32)
    planes = np.empty((channels, pixels), np.float32)
    separate_planes(bits, np.uint32(16 if half else 0), planes.view(np.uint32))
    expected = values.bfloat16().float() if half else values
    assert np.array_equal(planes, expected.T.numpy())
