"""Soft labels: what is drawn from them is as probable as they say, and teaches what they would teach."""

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from visionapps.data.soft import draw_labels, largest, read_soft, resize_soft
from visionapps.errors import DataError


def planes_of(*shares: int, size: tuple[int, int] = (200, 300)) -> np.ndarray:
    return np.broadcast_to(np.array(shares, np.uint8)[:, None, None], (len(shares), *size))


def test_classes_are_drawn_as_often_as_their_shares_say():
    counts = np.bincount(draw_labels(planes_of(10, 0, 200, 44), np.random.default_rng(0)).ravel(), minlength=4)
    shares, pixels = np.array([10, 0, 200, 44]) / 254, 60_000
    assert counts[1] == 0
    deviation = np.sqrt(shares * (1 - shares) * pixels)
    assert (np.abs(counts - shares * pixels) <= 4 * deviation).all()


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=6), st.integers(0, 99))
def test_only_classes_with_a_share_are_drawn_and_none_where_all_are_zero(shares, seed):
    drawn = set(draw_labels(planes_of(*shares, size=(9, 7)), np.random.default_rng(seed)).ravel().tolist())
    allowed = {k for k, share in enumerate(shares) if share} or {255}
    assert drawn <= allowed
    if len(allowed) == 1:
        assert drawn == allowed


def test_255_classes_of_full_planes_do_not_overflow():
    labels = draw_labels(planes_of(*[255] * 255, size=(64, 64)), np.random.default_rng(1))
    assert labels.max() == 254 or labels.max() > 240
    assert abs(labels.mean() - 127) < 5


def test_each_crop_draws_anew_and_the_same_seed_draws_the_same():
    planes = planes_of(100, 154, size=(20, 20))
    first, again, other = (draw_labels(planes, np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 2.0, 1.0])])
def test_the_expected_cross_entropy_and_gradient_are_those_of_the_soft_targets_as_torch_computes_them(weight):
    """Cross-entropy summed over pixels, 3,000 draws; the mean lies within 4 standard errors of the soft value."""
    rng = np.random.default_rng(5)
    planes = rng.integers(0, 120, (3, 6, 5)).astype(np.uint8)
    planes[:, 2, 2] = 0  # void
    logits = torch.tensor(rng.normal(0, 2, (1, 3, 6, 5)), dtype=torch.float64, requires_grad=True)
    soft = torch.tensor(planes / np.maximum(planes.sum(0), 1), dtype=torch.float64)[None]
    weight = None if weight is None else weight.double()
    expected = functional.cross_entropy(logits, soft, weight=weight, reduction="sum")
    (gradient,) = torch.autograd.grad(expected, logits)
    draws = 3000
    generator = np.random.default_rng(6)
    labels = torch.tensor(np.stack([draw_labels(planes, generator) for _ in range(draws)])).long()
    many = logits.expand(draws, -1, -1, -1)
    values = functional.cross_entropy(many, labels, weight=weight, reduction="none", ignore_index=255).sum((1, 2))
    error = float(values.detach().std() / draws**0.5)
    assert abs(float((values.mean() - expected).detach())) < 4 * error
    assert error < 0.02 * float(expected.detach())
    (drawn,) = torch.autograd.grad(values.mean(), logits)
    # A gradient's entry is weight * (p - onehot): its standard error is at most weight * 0.5 / sqrt(draws).
    assert (drawn - gradient).abs().max() < 4 * (1 if weight is None else 2) * 0.5 / draws**0.5
    assert drawn[0, :, 2, 2].abs().max() == 0


def test_the_largest_class_is_the_first_of_equal_ones_and_void_where_all_are_zero():
    planes = np.array([[[5, 9, 0, 0]], [[5, 8, 0, 3]], [[4, 9, 0, 0]]], np.uint8)
    np.testing.assert_array_equal(largest(planes), [[0, 0, 255, 1]])


def test_planes_are_read_in_the_order_of_the_classes_and_resized_by_area(tmp_path):
    planes = np.random.default_rng(0).integers(0, 255, (3, 8, 6), dtype=np.uint8)
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", height=8, width=6, count=3, dtype="uint8") as raster:
        raster.write(planes)
    read = read_soft(tmp_path / "a.tif", (2, 0, 1))
    np.testing.assert_array_equal(read, planes[[2, 0, 1]])
    small = resize_soft(read, (4, 3))
    means = read.reshape(3, 4, 2, 3, 2).mean((2, 4))
    assert np.abs(small - means).max() <= 0.5
    assert resize_soft(read, (8, 6)) is read


def test_files_with_other_planes_or_without_end_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    with rasterio.open(path, "w", driver="GTiff", height=8, width=6, count=2, dtype="uint16") as raster:
        raster.write(np.ones((2, 8, 6), np.uint16))
    for order, text in (((0, 1), "2 planes of uint16"), ((0, 1, 2), "one of uint8 per class, 3;")):
        with pytest.raises(DataError, match=text):
            read_soft(path, order)
    path.write_bytes(b"II")
    with pytest.raises(DataError, match=r"a\.tif: cannot be decoded, truncated or corrupt"):
        read_soft(path, (0,))
