"""First answers and first five: counts by hand, ties, and what is undefined."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visionapps.metrics.topk import MOST, TopK, ranks


def test_scores_of_six_images_by_hand():
    counts = TopK(7)
    logits = torch.zeros(6, 7)
    order = [[0, 1, 2, 3, 4, 5, 6]] * 3 + [[1, 0, 2, 3, 4, 5, 6]] * 3
    for row, best in zip(logits, order, strict=True):
        row[best] = torch.arange(7.0, 0.0, -1)
    labels = torch.tensor([0, 0, 1, 1, 4, 5])
    counts.update(logits[:4], labels[:4])
    counts.update(logits[4:], labels[4:])
    scores = counts.compute()
    assert scores.top1 == 3 / 6  # images 0, 1 and 3
    assert scores.top5 == 5 / 6  # all but the last, whose class is sixth
    assert scores.support == (2, 2, 0, 0, 1, 1, 0)
    assert scores.recall[:2] == (1.0, 0.5)
    assert math.isnan(scores.recall[2])
    assert scores.precision[:2] == (2 / 3, 1 / 3)
    assert scores.mean_recall == (1 + 0.5 + 0 + 0) / 4
    assert np.array(scores.matrix)[:2, :2].tolist() == [[2, 0], [1, 1]]
    plain = scores.to_dict([f"c{k}" for k in range(7)])
    assert plain["classes"][2] == {"name": "c2", "recall": None, "precision": None, "images": 0}
    assert plain["images"] == 6


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 10_000))
def test_ranks_are_places_in_a_stable_sort(count, classes, seed):
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, 4, (count, classes)).astype(np.float32)  # with many ties
    labels = rng.integers(0, classes, count)
    expected = [
        sorted(range(classes), key=lambda k, row=row: -row[k]).index(label)
        for row, label in zip(logits, labels, strict=True)
    ]
    assert ranks(torch.from_numpy(logits), torch.from_numpy(labels)).tolist() == expected


def test_a_score_that_is_no_number_is_never_right():
    counts = TopK(3)
    counts.update(torch.full((2, 3), math.nan), torch.tensor([0, 2]))
    scores = counts.compute()
    assert (scores.top1, scores.top5) == (0.0, 0.0)


def test_nothing_counted_is_undefined_and_very_many_classes_have_no_matrix():
    assert math.isnan(TopK(3).compute().top1)
    counts = TopK(MOST + 1)
    counts.update(torch.eye(MOST + 1)[:2], torch.tensor([0, 5]))
    scores = counts.compute()
    assert scores.top1 == pytest.approx(0.5)
    assert scores.matrix is None
