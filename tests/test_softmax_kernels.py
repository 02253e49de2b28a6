"""Probabilities added in one pass, against torch's softmax in double precision."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visionapps.inference.softmax_kernels import add_softmax


def added(logits, share=1.0, start=0.0):
    pixels, classes = logits.shape
    sums = np.full(pixels * classes, start, np.float32)
    add_softmax(logits.reshape(-1), np.uint64(classes), np.float32(share), sums)
    return sums.reshape(pixels, classes)


def expected(logits, share=1.0, start=0.0):
    return (torch.from_numpy(logits).double().softmax(1) * share + start).numpy()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 27), st.sampled_from([0.1, 3.0, 40.0]), st.integers(0, 2**32 - 1))
def test_probabilities_are_those_of_torch_whatever_the_number_of_pixels_and_classes(pixels, classes, spread, seed):
    logits = (spread * np.random.default_rng(seed).standard_normal((pixels, classes))).astype(np.float32)
    assert added(logits, 0.3, 0.2) == pytest.approx(expected(logits, 0.3, 0.2), rel=3e-7)
    p = expected(logits)
    seen = p > 1e-30  # what is less falls out of the range of single precision
    single = torch.from_numpy(logits).softmax(1).numpy()
    own, torchs = (np.abs(found[seen] / p[seen] - 1).max() for found in (added(logits), single))
    assert own <= max(2 * torchs, 5e-7)


def test_logits_far_apart_give_zero_and_one_and_what_is_no_number_stays_so():
    logits = np.array([[0, -1e4, -np.inf], [3e38, 3e38, -3e38], [np.nan, 1, 2], [np.inf, 1, 2]], np.float32)
    found = added(logits)
    assert found[:2] == pytest.approx(np.array([[1, 0, 0], [0.5, 0.5, 0]]), abs=1e-37)
    assert np.isnan(found[2:]).all()
    assert np.isnan(torch.from_numpy(logits).softmax(1).numpy()[2:]).all()
