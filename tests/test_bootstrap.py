"""The interval of AP over images: a draw is COCO's AP of the images drawn, and the interval behaves as one."""

import math

import numpy as np
import pytest
from test_coco import scene

from visionapps.metrics.bootstrap import _ap, _classes, ap_interval
from visionapps.metrics.coco import coco_scores
from visionapps.metrics.object_matching import match_classes, overlaps
from visionapps.metrics.object_table import make_table
from visionapps.objects import Objects


def interval(truth, found, classes=4, seed=0):
    table = make_table(truth, found, classes)
    return ap_interval(table, overlaps(table, least=0.5), np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(3))
def test_an_image_drawn_twice_counts_as_two_images(seed):
    truth, found = scene(seed, images=10)
    # Scores that differ everywhere: the order of equal ones would depend on the order of the images.
    rng = np.random.default_rng(seed)
    found = [Objects(o.boxes, o.labels, rng.random(len(o))) for o in found]
    times = np.bincount(rng.integers(10, size=10), minlength=10)
    drawn = np.repeat(np.arange(10), times)
    table = make_table(truth, found, 4)
    classes = _classes(table, match_classes(table, overlaps(table, least=0.5), 0.5))
    mine = np.mean([_ap(c, times.astype(float)) for c in classes if times @ c.objects > 0])
    again = coco_scores([truth[i] for i in drawn], [found[i] for i in drawn], 4).ap50
    # Copies stand side by side, and the monotone curve hides what precision is between them: exactly equal.
    assert mine == pytest.approx(again, abs=1e-12)


def test_the_interval_holds_the_ap_and_narrows_with_more_images():
    few, many = scene(1, images=12), scene(1, images=150)
    low, high = interval(*few)
    assert low < coco_scores(*few, 4).ap50 < high
    narrow = interval(*many)
    assert narrow.low < coco_scores(*many, 4).ap50 < narrow.high
    assert narrow.high - narrow.low < 0.5 * (high - low)


def test_the_interval_lies_around_the_ap_although_sets_with_copies_have_a_higher_one():
    truth, found = scene(5, images=60, classes=30)  # many small classes: the bias of each stays, the noise does not
    table = make_table(truth, found, 30)
    classes = _classes(table, match_classes(table, overlaps(table, least=0.5), 0.5))
    rng, draws = np.random.default_rng(0), []
    for _ in range(50):
        times = np.bincount(rng.integers(60, size=60), minlength=60).astype(float)
        draws.append(np.mean([_ap(c, times) for c in classes if times @ c.objects > 0]))
    ap50 = coco_scores(truth, found, 30).ap50
    assert np.mean(draws) > ap50 + 0.005
    low, high = interval(truth, found, 30)
    assert low < ap50 < high
    assert (low + high) / 2 == pytest.approx(ap50, abs=0.2 * (high - low))


def test_the_same_seed_gives_the_same_interval_and_perfect_is_certain():
    truth, found = scene(2)
    assert interval(truth, found, seed=3) == interval(truth, found, seed=3)
    one = Objects([[0, 0, 9, 9]], [0])
    sure = interval([one] * 5, [Objects(one.boxes, one.labels, [0.5])] * 5, 1)
    assert sure == pytest.approx((1, 1))
    assert math.isnan(interval([Objects.none()], [Objects([[0, 0, 9, 9]], [0], [0.5])], 1).low)
