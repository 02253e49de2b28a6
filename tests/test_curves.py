"""Precision-recall curves: hand-computed, COCO's AP at the same IoU, thresholds that keep what they promise."""

import math

import numpy as np
import pytest
from test_coco import scene

from visionapps.metrics.coco import coco_scores
from visionapps.metrics.curves import Outcome, draw_up
from visionapps.metrics.object_matching import overlaps
from visionapps.metrics.object_table import make_table
from visionapps.objects import Objects


def outcome(scores, hits, positives):
    return Outcome(np.array(scores, float), np.array(hits, bool), positives)


def test_precision_and_recall_after_each_detection_are_those_counted_by_hand():
    one = outcome([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 1], 4)
    assert one.precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3, 3 / 4])
    assert one.recall.tolist() == [0.25, 0.25, 0.5, 0.75]
    # Monotone precision 1, .75, .75, .75: 26 recalls up to .25, 50 up to .75, 25 beyond.
    assert one.ap == pytest.approx((26 * 1 + 50 * 0.75) / 101)


@pytest.mark.parametrize("seed", range(3))
def test_the_area_under_each_curve_is_cocos_ap_of_the_class(seed):
    truth, found = scene(seed, images=20)
    table = make_table(truth, found, 4)
    curves = draw_up(table, overlaps(table, least=0.1))
    np.testing.assert_allclose([c.ap for c in curves.classes], coco_scores(truth, found, 4).per_class_50, atol=1e-12)


def loop_f1(truth, found, label, threshold):
    """F1 of a class with the detections of at least a score, pycocotools' matching at IoU 0.5 left to coco_scores."""
    kept = [o.take((o.scores >= threshold) & (o.labels == label)) for o in found]
    table = make_table(truth, kept, 4)
    one = draw_up(table, overlaps(table, least=0.5)).classes[label]
    hits = int(one.hits.sum())
    return 2 * hits / (len(one.hits) + one.positives)


def test_the_best_threshold_gives_the_best_f1_of_all_thresholds_when_it_is_applied():
    truth, found = scene(4, images=15)
    table = make_table(truth, found, 4)
    curves = draw_up(table, overlaps(table, least=0.5))
    for label, one in enumerate(curves.classes):
        tried = {t: loop_f1(truth, found, label, t) for t in np.unique(one.scores)}
        assert one.best.f1 == pytest.approx(max(tried.values()))
        assert tried[one.best.threshold] == pytest.approx(one.best.f1)
        assert one.best.f1 == pytest.approx(2 / (1 / one.best.precision + 1 / one.best.recall))
        assert one.best.threshold == min(t for t, f1 in tried.items() if f1 == pytest.approx(one.best.f1))


def test_a_threshold_takes_all_detections_of_one_score_or_none():
    best = outcome([0.9, 0.5, 0.5, 0.5, 0.5], [1, 1, 0, 0, 0], 2).best
    assert (best.threshold, best.f1) == (0.9, pytest.approx(2 / 3))  # 0.5 would bring three false ones: 4 / 7
    assert outcome([0.9, 0.5, 0.5], [1, 1, 0], 2).best.threshold == 0.5


def test_what_is_not_defined_is_nan_and_none_in_json():
    nothing = outcome([0.9], [0], 0)
    assert math.isnan(nothing.ap)
    assert math.isnan(nothing.best.threshold)
    assert nothing.sampled() == []
    missed = outcome([], [], 3)
    assert missed.ap == 0
    assert math.isnan(missed.best.threshold)
    assert math.isnan(missed.calibration_error)
    wrong = outcome([0.9, 0.3], [0, 0], 3).best
    assert wrong.to_dict() == {"threshold": None, "precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_the_calibration_error_is_the_gap_between_scores_and_precision():
    sure = outcome([1.0] * 10, [1] * 5 + [0] * 5, 10)  # says 1, is right half the time
    assert sure.calibration_error == pytest.approx(0.5)
    fair = outcome([0.75] * 4, [1, 1, 1, 0], 4)
    assert fair.calibration_error == pytest.approx(0)
    two = outcome([0.95, 0.95, 0.15, 0.15], [1, 1, 0, 0], 4)  # bins count by their detections
    assert two.calibration_error == pytest.approx((2 * 0.05 + 2 * 0.15) / 4)


def test_thresholds_are_told_by_name_where_there_are_some():
    truth = Objects([[0, 0, 10, 10]], [0])
    found = Objects([[0, 0, 10, 10], [50, 50, 60, 60]], [0, 1], [0.7, 0.9])
    table = make_table([truth], [found], 2)
    told = draw_up(table, overlaps(table, least=0.5)).to_dict(["car", "bus"])
    assert told["thresholds"] == {"car": 0.7}
    assert told["best_f1"]["bus"] == {"threshold": None, "precision": None, "recall": None, "f1": None}
    assert told["points"]["car"] == [(1.0, 1.0, 0.7)]


@pytest.mark.parametrize("scores", [[3.5, -2.0], [97.0, 12.0]])
def test_scores_that_are_no_shares_have_no_calibration(scores):
    assert math.isnan(outcome(scores, [1, 0], 1).calibration_error)
    assert outcome(scores, [1, 0], 1).best.f1 == 1
