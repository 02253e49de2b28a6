"""True against detected classes, with what is overlooked and what is invented."""

import numpy as np
import pytest
from test_coco import scene

from visionapps.inference.object_evaluation import evaluate_objects, rank_images
from visionapps.metrics.object_confusion import confuse
from visionapps.metrics.object_matching import overlaps
from visionapps.metrics.object_table import make_table
from visionapps.objects import Objects

CAR, BUS, BACKGROUND = 0, 1, 2


def count(truth, found, thresholds=(0.0, 0.0)):
    table = make_table([truth], [found], 2)
    return confuse(table, overlaps(table, least=0.1), np.array(thresholds))


def box(x):
    return [x, 0, x + 10, 10]


def test_right_wrong_missed_and_invented_stand_in_their_cells():
    truth = Objects([box(0), box(100), box(200), box(300)], [CAR, CAR, BUS, BUS])
    found = Objects([box(0), box(100), box(200), box(500)], [CAR, BUS, BUS, CAR], [0.9, 0.8, 0.7, 0.6])
    confusion = count(truth, found)
    assert confusion.matrix.tolist() == [[1, 1, 0], [0, 1, 1], [1, 0, 0]]
    assert confusion.right.tolist() == [True, False, True, False]
    assert confusion.wrong.tolist() == [False, True, False, True]
    assert confusion.missed.tolist() == [False, True, False, True]


def test_detections_below_the_threshold_of_their_class_are_not_there():
    truth = Objects([box(0), box(100)], [CAR, BUS])
    found = Objects([box(0), box(100)], [CAR, BUS], [0.5, 0.5])
    assert count(truth, found, (0.5, 0.51)).matrix.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert count(truth, found, (np.nan, 0.5)).matrix.tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_an_object_of_the_own_class_is_taken_before_a_nearer_one_of_another():
    truth = Objects([box(0), box(1)], [BUS, CAR])
    found = Objects([box(0), box(0)], [CAR, BUS], [0.9, 0.8])
    assert count(truth, found).matrix.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_what_need_not_be_found_excuses_its_own_class_only():
    truth = Objects([box(0), [100, 0, 200, 10]], [CAR, CAR], difficult=[True, False], crowd=[False, True])
    own = Objects([box(0), box(110), box(150)], [CAR] * 3, [0.9, 0.8, 0.7])
    assert count(truth, own).matrix.sum() == 0
    other = Objects([box(0), box(110)], [BUS] * 2, [0.9, 0.8])
    assert count(truth, other).matrix.tolist() == [[0, 0, 0], [0, 0, 0], [0, 2, 0]]


@pytest.mark.parametrize("seed", range(3))
def test_rows_add_up_to_the_objects_and_columns_to_the_detections(seed):
    truth, found = scene(seed, images=15)
    truth = [Objects(t.boxes, t.labels) for t in truth]
    table = make_table(truth, found, 4)
    matrix = confuse(table, overlaps(table, least=0.1), np.full(4, 0.3)).matrix
    assert matrix[:-1].sum(1).tolist() == table.true_counts.tolist()
    shown = table.found.labels[table.found.scores >= 0.3]
    assert matrix[:, :-1].sum(0).tolist() == np.bincount(shown, minlength=4).tolist()


def test_images_are_ranked_by_f1_and_then_by_the_number_of_errors():
    right = (Objects([box(0)], [CAR]), Objects([box(0)], [CAR], [0.9]))
    half = (Objects([box(0), box(50)], [CAR, CAR]), Objects([box(0), box(90)], [CAR, CAR], [0.9, 0.9]))
    bad = (Objects([box(0)], [CAR]), Objects.none(scored=True))
    worse = (Objects([box(0), box(50)], [CAR, CAR]), Objects.none(scored=True))
    empty = (Objects.none(), Objects.none(scored=True))
    truth, found = zip(empty, right, bad, half, worse, strict=True)
    judged = evaluate_objects(truth, found, ["car"], score=0.5)
    assert rank_images(judged) == [(4, 0.0, 2), (2, 0.0, 1), (3, 0.5, 2), (0, 1.0, 0), (1, 1.0, 0)]
