"""The objects of one image: what is filled in, what is refused, and choosing, moving and joining them."""

import numpy as np
import pytest

from visionapps.errors import ConfigError, DataError
from visionapps.objects import Objects, joined
from visionapps.structures import Rescale

TWO = np.array([[0, 0, 4, 2], [1, 1, 2, 5]])


def test_what_is_left_out_holds_the_usual():
    objects = Objects(TWO, [0, 1])
    assert objects.boxes.dtype == np.float64
    assert objects.labels.dtype == np.int64
    assert objects.areas.tolist() == [8, 4]
    assert objects.ids.tolist() == [-1, -1]
    assert not objects.ignored.any()
    assert objects.scores is None


def test_an_inverted_box_has_no_area():
    assert Objects([[4, 0, 0, 2]], [0]).areas.tolist() == [0]


def test_crowds_and_difficult_ones_are_ignored():
    objects = Objects(TWO, [0, 1], crowd=[True, False], difficult=[False, True])
    assert objects.ignored.all()


def test_arrays_of_another_length_are_refused_with_the_lengths():
    with pytest.raises(DataError, match=r"2 boxes, but .*'scores': 1.*one entry per box"):
        Objects(TWO, [0, 1], scores=[0.5])


def test_taking_by_index_or_mask_keeps_every_part_aligned():
    masks = tuple({"size": [5, 5], "counts": str(i)} for i in range(2))
    objects = Objects(TWO, [0, 1], scores=[0.2, 0.9], areas=[3, 4], ids=[7, 8], masks=masks)
    best = objects.take(np.array([1, 0]))
    assert best.labels.tolist() == [1, 0]
    assert best.scores.tolist() == [0.9, 0.2]
    assert best.ids.tolist() == [8, 7]
    assert [m["counts"] for m in best.masks] == ["1", "0"]
    assert objects.take(np.array([False, True])).areas.tolist() == [4]
    assert len(objects.take(np.zeros(2, bool))) == 0


def test_shifting_moves_rows_along_y_and_columns_along_x():
    assert Objects(TWO, [0, 1]).shift(10, 100).boxes.tolist() == [[100, 10, 104, 12], [101, 11, 102, 15]]


def test_joining_keeps_order_and_gives_masks_only_if_all_have_them():
    mask = ({"size": [5, 5], "counts": "x"},)
    first, second = Objects(TWO[:1], [0], masks=mask), Objects(TWO[1:], [1], masks=mask)
    both = joined([first, second])
    assert both.labels.tolist() == [0, 1]
    assert len(both.masks) == 2
    assert joined([first, Objects(TWO[1:], [1])]).masks is None
    assert len(joined([])) == 0


def test_annotations_and_detections_cannot_be_joined():
    with pytest.raises(DataError, match="only detections have scores"):
        joined([Objects(TWO, [0, 1]), Objects.none(scored=True)])


@pytest.mark.parametrize(
    ("size", "scaled"), [((480, 640), (600, 800)), ((500, 1000), (500, 1000)), ((40, 30_000), (1, 1000))]
)
def test_photos_are_scaled_to_the_short_side_unless_the_long_one_forbids(size: tuple[int, int], scaled):
    assert Rescale(600, 1000).size(*size) == scaled


def test_a_rescale_with_a_longer_short_side_is_refused():
    with pytest.raises(ConfigError, match="short 800 must be at least 1 and at most long 600"):
        Rescale(800, 600)
