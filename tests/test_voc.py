"""PASCAL VOC's average precision: by hand, and beside a loop written after the development kit."""

import math

import numpy as np
import pytest
from test_coco import scene

from visionapps.errors import ConfigError
from visionapps.metrics.voc import voc_scores
from visionapps.objects import Objects


def kit(truth, found, label, *, iou, eleven, inclusive):
    """VOCevaldet: every detection, best first, goes to the object of its class that it overlaps most."""
    extra = 1.0 if inclusive else 0.0
    columns = [zip(t.boxes, t.labels, t.ignored.tolist(), strict=True) for t in truth]
    objects = [[(box, ignored) for box, k, ignored in rows if k == label] for rows in columns]
    positives = sum(not ignored for image in objects for _, ignored in image)
    rows = [
        (-score, i, n, box)
        for i, o in enumerate(found)
        for n, (box, k, score) in enumerate(zip(o.boxes, o.labels, o.scores, strict=True))
        if k == label
    ]
    used, right, false = set(), [], []
    for _, i, _, box in sorted(rows, key=lambda row: row[:3]):
        best, at = 0.0, None
        for g, (other, _) in enumerate(objects[i]):
            w = min(box[2], other[2]) - max(box[0], other[0]) + extra
            h = min(box[3], other[3]) - max(box[1], other[1]) + extra
            if w <= 0 or h <= 0:
                continue
            areas = [(b[2] - b[0] + extra) * (b[3] - b[1] + extra) for b in (box, other)]
            value = w * h / (sum(areas) - w * h)
            if value > best:
                best, at = value, g
        if best >= iou and objects[i][at][1]:
            continue
        hit = best >= iou and (i, at) not in used
        used |= {(i, at)} if hit else set()
        right.append(hit)
        false.append(not hit)
    tp, fp = np.cumsum(right), np.cumsum(false)
    if not positives:
        return math.nan
    if not len(tp):
        return 0.0
    recall, precision = tp / positives, tp / (tp + fp)
    if eleven:
        levels = [max((p for p, t in zip(precision, tp, strict=True) if 10 * t >= r * positives), default=0.0)
                  for r in range(11)]  # fmt: skip
        return sum(levels) / 11
    recall, precision = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i + 1] - recall[i]) * precision[i + 1] for i in range(len(recall) - 1))


@pytest.mark.parametrize("points", ["area", "eleven"])
@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_ap_is_that_of_a_loop_after_the_development_kit(seed, points, inclusive):
    truth, found = scene(seed)
    rng = np.random.default_rng(seed)
    truth = [Objects(t.boxes, t.labels, difficult=rng.random(len(t)) < 0.3) for t in truth]  # VOC has no crowds
    scores = voc_scores(truth, found, 4, points=points, inclusive=inclusive)
    expected = [kit(truth, found, k, iou=0.5, eleven=points == "eleven", inclusive=inclusive) for k in range(4)]
    np.testing.assert_allclose(scores.per_class, expected, atol=1e-12)
    assert scores.mean == pytest.approx(np.nanmean(expected))


def test_two_right_and_one_false_give_the_areas_of_the_paper():
    truth = Objects([[0, 0, 10, 10], [20, 0, 30, 10]], [0, 0])
    found = Objects([[0, 0, 10, 10], [50, 50, 60, 60], [20, 0, 30, 10]], [0, 0, 0], [0.9, 0.8, 0.7])
    # Precision 1 up to recall .5, then 2/3: six of eleven points, five of eleven.
    assert voc_scores([truth], [found], 1).mean == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert voc_scores([truth], [found], 1, points="eleven").mean == pytest.approx((6 + 5 * 2 / 3) / 11)


def test_a_second_detection_of_an_object_is_false_even_if_another_object_is_free():
    # Both detections overlap the first object most; COCO would give the second one to the free object.
    truth = Objects([[0, 0, 10, 10], [0, 2, 10, 12]], [0, 0])
    found = Objects([[0, 0, 10, 10], [0, 0.5, 10, 10.5]], [0, 0], [0.9, 0.8])
    assert voc_scores([truth], [found], 1).mean == pytest.approx(0.5)


def test_difficult_objects_count_neither_way_however_often_they_are_found():
    truth = Objects([[0, 0, 10, 10], [20, 0, 30, 10]], [0, 0], difficult=np.array([False, True]))
    found = Objects([[20, 0, 30, 10], [20, 0, 30, 10], [0, 0, 10, 10]], [0, 0, 0], [0.9, 0.8, 0.7])
    assert voc_scores([truth], [found], 1).mean == pytest.approx(1)


def test_one_more_pixel_a_side_can_make_a_match():
    # 10 x 10 beside 10 x 5: IoU .5 half-open, 66/121 = .545 with the extra pixel; 4 rows: .4 and .4545.
    truth = Objects([[0, 0, 10, 10]], [0])
    found = Objects([[0, 0, 10, 5]], [0], [0.9])
    assert voc_scores([truth], [found], 1, iou=0.52).mean == 0
    assert voc_scores([truth], [found], 1, iou=0.52, inclusive=True).mean == pytest.approx(1)
    assert voc_scores([truth], [found], 1, iou=0.5).mean == pytest.approx(1)  # at the threshold: found


def test_classes_without_objects_are_left_out_of_the_mean():
    scores = voc_scores([Objects([[0, 0, 9, 9]], [0])], [Objects([[0, 0, 9, 9]], [1], [0.5])], 3)
    assert scores.mean == 0
    assert scores.to_dict(["a", "b", "c"])["classes"] == {"a": 0.0, "b": None, "c": None}
    assert math.isnan(voc_scores([], [], 2).mean)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="iou 0 must be in"):
        voc_scores([], [], 1, iou=0)
    with pytest.raises(ConfigError, match="points 'ten' one of area, eleven"):
        voc_scores([], [], 1, points="ten")
