"""Causes of errors and what they cost: one of each kind by hand, and the order in which causes are tried."""

import math

import numpy as np
import pytest
from test_coco import scene

from visionapps.metrics.coco import coco_scores
from visionapps.metrics.object_errors import CAUSES, FAR, explain_errors
from visionapps.metrics.object_matching import overlaps
from visionapps.metrics.object_table import make_table
from visionapps.objects import Objects

CAR, BUS = 0, 1


def explain(truth, found, classes=2):
    table = make_table([truth], [found], classes)
    return explain_errors(table, overlaps(table, least=FAR))


def box(x, width=10.0):
    return [x, 0, x + width, 10]


TRUTH = Objects([box(0), box(100)], [CAR, CAR])
RIGHT = (box(0), CAR)


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        ((box(100), BUS), "classification"),
        ((box(106), CAR), "localisation"),  # IoU 4 / 16
        ((box(106), BUS), "both"),
        ((box(0), CAR), "duplicate"),
        ((box(500), CAR), "background"),
        ((box(109.5), CAR), "background"),  # IoU .026
    ],
)
def test_each_false_detection_has_the_cause_that_the_paper_names(wrong, cause):
    boxes, labels = zip(RIGHT, wrong, strict=True)
    errors = explain(TRUTH, Objects(boxes, labels, [0.9, 0.8]))
    assert [CAUSES[i] if i >= 0 else "" for i in errors.causes] == ["", cause]
    # The second object is missed unless an error explains it.
    explained = cause in ("classification", "localisation")
    assert errors.counts == {name: int(name == cause or (name == "missed" and not explained)) for name in CAUSES}
    assert errors.missed.tolist() == [False, not explained]


def test_mending_one_cause_gains_what_is_computed_by_hand():
    # A false detection ahead of the right one, and an object that nobody saw: precision 1/2 up to recall 1/2.
    found = Objects([box(500), box(0)], [CAR, CAR], [0.9, 0.8])
    errors = explain(TRUTH, found)
    half = 51 / 101  # recalls 0, 0.01, ..., 0.5
    assert errors.ap == pytest.approx(half / 2)
    assert errors.costs["background"] == pytest.approx(half / 2)  # precision 1
    assert errors.costs["missed"] == pytest.approx(0.5 - half / 2)  # one object: precision 1/2 at all recalls
    assert errors.false_positive_cost == pytest.approx(half / 2)
    assert errors.false_negative_cost == pytest.approx(0.5 - half / 2)
    assert {
        name: errors.costs[name] for name in ("classification", "localisation", "both", "duplicate")
    } == dict.fromkeys(("classification", "localisation", "both", "duplicate"), 0.0)


def test_a_mended_class_or_place_finds_the_object_once():
    # Two detections of the second object with the wrong class: the better one becomes right, the other is left out.
    found = Objects([box(0), box(100), box(100)], [CAR, BUS, BUS], [0.9, 0.8, 0.7])
    errors = explain(Objects([box(0), box(100), box(200)], [CAR, CAR, BUS]), found)
    # Before: car 51/101, bus 0. After: car 1; bus has no detection left.
    assert errors.ap == pytest.approx(51 / 101 / 2)
    assert errors.ap + errors.costs["classification"] == pytest.approx(0.5)
    # Where the object has been found already, the mended detection would be a duplicate.
    found = Objects([box(0), box(0)], [CAR, BUS], [0.9, 0.8])
    errors = explain(Objects([box(0)], [CAR]), found, classes=2)
    assert errors.counts["classification"] == 1
    assert errors.ap == pytest.approx(1)
    assert errors.costs["classification"] == pytest.approx(0)


def test_a_class_of_which_nothing_is_found_costs_all_of_its_ap():
    errors = explain(Objects([box(0), box(100)], [CAR, BUS]), Objects([box(0)], [CAR], [0.9]))
    assert errors.ap == pytest.approx(0.5)
    assert errors.costs["missed"] == pytest.approx(0.5)


def test_crowds_and_difficult_objects_cause_nothing():
    truth = Objects(
        [box(0), box(100), box(200, 50)], [CAR] * 3, difficult=[False, True, False], crowd=[False, False, True]
    )
    found = Objects([box(0), box(100), box(210), box(220)], [CAR] * 4, [0.6, 0.9, 0.8, 0.7])
    errors = explain(truth, found)
    assert errors.ap == pytest.approx(1)
    assert set(errors.counts.values()) == {0}
    assert errors.causes.tolist() == [-1] * 4


def test_every_false_detection_has_a_cause_and_the_base_is_cocos_ap50():
    truth, found = scene(6, images=20)
    table = make_table(truth, found, 4)
    errors = explain_errors(table, overlaps(table, least=FAR))
    assert errors.ap == pytest.approx(coco_scores(truth, found, 4).ap50, abs=1e-12)
    assert sum(errors.counts.values()) == (errors.causes >= 0).sum() + errors.missed.sum()
    assert all(errors.counts[name] > 0 for name in CAUSES)
    assert errors.false_positive_cost >= max(errors.costs[name] for name in ("both", "duplicate", "background"))


def test_without_truth_costs_are_undefined_and_all_detections_are_background():
    errors = explain(Objects.none(), Objects([box(0)], [CAR], [0.5]))
    assert errors.counts["background"] == 1
    assert math.isnan(errors.ap)
    assert errors.to_dict()["costs_in_ap"]["background"] is None
    nothing = explain(Objects.none(), Objects.none(scored=True))
    assert not np.any(list(nothing.counts.values()))
