"""Overlaps of many images as one list, and matching in rounds: the same as loops over detections."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_coco import scene

from visionapps.metrics import object_matching
from visionapps.metrics.object_matching import Pairs, match, match_classes, nearest, overlaps
from visionapps.metrics.object_table import make_table
from visionapps.objects import Objects


def iou_of(a, b, crowd):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    own = (a[2] - a[0]) * (a[3] - a[1])
    union = own if crowd else own + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


def loop_overlaps(table, least):
    found = {}
    for d in range(len(table.found)):
        for g in range(len(table.truth)):
            if table.found.image[d] == table.truth.image[g]:
                iou = iou_of(table.found.boxes[d], table.truth.boxes[g], table.truth.crowd[g])
                if iou >= least:
                    found[d, g] = iou
    return found


@pytest.mark.parametrize("dense", [1, 40, 1 << 22])
def test_overlaps_are_those_of_a_loop_over_all_pairs_however_they_are_cut_into_stripes(monkeypatch, dense):
    monkeypatch.setattr(object_matching, "_DENSE", dense)
    table = make_table(*scene(3), 4)
    pairs = overlaps(table, least=0.1)
    expected = loop_overlaps(table, 0.1)
    assert list(zip(pairs.found.tolist(), pairs.truth.tolist(), strict=True)) == sorted(expected)
    np.testing.assert_allclose(pairs.iou, [expected[key] for key in sorted(expected)], atol=1e-12)


def test_a_scene_with_many_objects_costs_what_its_pairs_cost():
    # 20,000 objects and as many detections: the whole matrix would take 3.2 GB.
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 20_000, (20_000, 2))
    boxes = np.concatenate([corner, corner + 20], 1)
    found = Objects(boxes + rng.normal(0, 1, boxes.shape), np.zeros(len(boxes), int), rng.random(len(boxes)))
    table = make_table([Objects(boxes, np.zeros(len(boxes), int))], [found], 1)
    pairs = overlaps(table, least=0.1)
    assert len(pairs.found) < 30_000
    assert (match_classes(table, pairs, 0.5) >= 0).mean() > 0.97


def loop_match(pairs, wanted, crowd, found):
    """One detection after the other; of equally wanted objects the later one, as pycocotools."""
    taken, used = np.full(found, -1), set()
    for d in range(found):
        best = None
        for p in np.flatnonzero(pairs.found == d):
            g = int(pairs.truth[p])
            key = (*wanted[p], g)
            if (g not in used or crowd[g]) and (best is None or key > best[0]):
                best = (key, g)
        if best:
            taken[d] = best[1]
            used.add(best[1])
    return taken


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_matching_in_rounds_gives_what_a_loop_over_the_detections_gives(data):
    found, truth = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 8))
    all_pairs = [(d, g) for d in range(found) for g in range(truth)]
    chosen = sorted(data.draw(st.sets(st.sampled_from(all_pairs), max_size=40)))
    ious = data.draw(st.lists(st.sampled_from([0.5, 0.6, 0.75, 1.0]), min_size=len(chosen), max_size=len(chosen)))
    first = data.draw(st.lists(st.booleans(), min_size=len(chosen), max_size=len(chosen)))
    crowd = np.array(data.draw(st.lists(st.booleans(), min_size=truth, max_size=truth)))
    columns = np.array(chosen, np.int64).reshape(-1, 2).T
    pairs = Pairs(columns[0], columns[1], np.array(ious, float))
    wanted = np.column_stack([np.array(first, float), pairs.iou])
    np.testing.assert_array_equal(match(pairs, wanted, crowd, found), loop_match(pairs, wanted, crowd, found))


def test_a_detection_takes_an_object_that_counts_before_a_nearer_one_that_does_not():
    truth = Objects([[0, 0, 10, 10], [0, 0, 10, 8]], [0, 0], difficult=np.array([True, False]))
    found = Objects([[0, 0, 10, 10], [0, 0, 10, 10]], [0, 0], [0.9, 0.8])
    table = make_table([truth], [found], 1)
    assert match_classes(table, overlaps(table, least=0.5), 0.5).tolist() == [1, 0]


def test_the_nearest_object_is_the_first_of_equals():
    pairs = Pairs(np.array([0, 0, 0, 2]), np.array([3, 4, 5, 1]), np.array([0.2, 0.6, 0.6, 0.1]))
    iou, at = nearest(pairs, 3)
    assert iou.tolist() == [0.6, 0, 0.1]
    assert at.tolist() == [4, -1, 1]
