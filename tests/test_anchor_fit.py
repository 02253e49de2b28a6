"""Anchors fitted to the boxes of a dataset, and what part of them anchors reach."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from visionapps.detection.anchor_fit import anchor_recall, fitted_anchors
from visionapps.detection.anchors import Anchors
from visionapps.errors import ConfigError, DataError

USUAL = Anchors((8, 16), ((64.0,), (128.0,)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.5]))
def test_the_best_overlap_is_that_of_all_anchors_of_an_image(seed, offset):
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 150, (6, 2)), rng.uniform(5, 100, (6, 2))
    boxes = np.concatenate((corner, corner + size), 1)
    anchors = Anchors((8, 16), ((24.0,), (64.0,)), (0.5, 1.0), offset)
    every = torch.cat(anchors.boxes([(40, 40), (20, 20)], torch.device("cpu"))).double()
    best = box_iou(torch.from_numpy(boxes), every).amax(1)
    assert anchor_recall(boxes, anchors).mean == pytest.approx(float(best.mean()), abs=1e-6)


def test_numbers_that_can_be_counted_by_hand():
    # An anchor of 64 x 64 stands around (64, 64); a box of half its area inside it has an IoU of 0.5.
    boxes = np.array([[32.0, 32, 96, 96], [32, 32, 96, 64 + 0.0], [400, 400, 400, 500]])
    recall = anchor_recall(boxes, Anchors((32,), ((64.0,),), (1.0,)))
    assert recall.count == 2  # the third has no width
    assert recall.mean == pytest.approx((1 + 64 * 32 / (64 * 64 + 64 * 32 - 64 * 32)) / 2)
    assert recall.at == (1.0, 0.5, 0.5)
    assert recall.by_size == (None, None, pytest.approx(0.5), pytest.approx(1.0), None)
    assert str(recall) == "mean IoU 0.750 of 2 boxes; recall 100.0% at 0.5, 50.0% at 0.6, 50.0% at 0.7"
    assert recall.to_dict()["recall"]["0.7"] == 0.5


def test_fitted_anchors_reach_small_flat_objects_that_the_usual_ones_miss():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 500, (400, 2))
    boxes = np.concatenate((corner, corner + rng.uniform((20, 8), (30, 12), (400, 2))), 1)
    fit = fitted_anchors(boxes, (4, 8, 16))
    assert fit.usual.at[0] < 0.9
    assert fit.fitted.at[1] > 0.95
    assert fit.fitted == anchor_recall(boxes, fit.anchors)
    assert all(0.25 < ratio < 0.6 for ratio in fit.anchors.ratios)
    assert fitted_anchors(boxes, (4, 8, 16)) == fit
    assert fit.anchors.per_position == 3


def test_fitted_anchors_of_real_cars_are_better_than_the_usual(shared_data):
    import json

    table = json.loads((shared_data / "vehicles" / "annotations_coco.json").read_text())
    xywh = np.array([annotation["bbox"] for annotation in table["annotations"]], float)
    boxes = np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), 1) / 2  # at 320 px
    fit = fitted_anchors(boxes, (8, 16, 32))
    assert fit.fitted.mean > fit.usual.mean + 0.05
    assert fit.fitted.at[0] > 0.9


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(DataError, match="no boxes to fit them to"):
        fitted_anchors(np.zeros((0, 4)), (8,))
    with pytest.raises(DataError, match="some boxes are no numbers; `visionapps check` names them"):
        anchor_recall(np.array([[0, 0, np.nan, 1]]), USUAL)
    with pytest.raises(ConfigError, match="0 sizes per level"):
        fitted_anchors(np.ones((1, 4)), (8,), per_level=0)
