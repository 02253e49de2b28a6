"""Objects set into other pictures: nothing is covered, boxes are where the pixels are."""

import numpy as np
import pytest
from drawn import MemoryPhoto, bounds, rectangles, whole
from hypothesis import given, settings
from hypothesis import strategies as st

from visionapps.data.copy_paste import cut_patch, paste
from visionapps.objects import Objects


def ground(boxes=((0, 0, 30, 30),)):
    return whole(rectangles((100, 120), list(boxes)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([0.7, 1.0, 1.6]))
def test_pasted_objects_lie_in_their_boxes_and_touch_no_other(seed, masks, factor):
    donor = rectangles((80, 80), [(10, 10, 30, 24), (50, 40, 64, 70)], labels=[4, 5])
    donor = MemoryPhoto(np.where(donor.pixels > 0, donor.pixels + 100, 0).astype(np.uint8), donor.objects)
    example = ground()
    before = example.image.copy()
    patches = [cut_patch(donor, k, factor, masks=masks) for k in (0, 1)]
    if not masks:
        example = type(example)(example.image, example.boxes, example.labels, example.ignore, example.left)
    result = paste(example, patches, np.random.default_rng(seed))
    assert np.array_equal(example.image, before)
    assert np.array_equal(result.image[:30, :30], before[:30, :30])
    assert len(result.boxes) == len(result.labels) == len(result.ignore) == len(result.left)
    for k, (box, label) in enumerate(zip(result.boxes[1:], result.labels[1:], strict=True)):
        pasted = np.zeros(result.size, bool)
        low, high = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
        pasted[low[1] : high[1], low[0] : high[0]] = True
        bright = (result.image[..., 0] > 75) & pasted
        assert bounds(bright) == pytest.approx(box, abs=1.01)
        sides = {4: (20, 14), 5: (14, 30)}[label]
        assert box[2:] - box[:2] == pytest.approx(np.array(sides) * factor, abs=1e-9)
        if masks:
            assert bounds(result.masks[k + 1]) == pytest.approx(box, abs=0.51)
    cover = np.zeros(result.size, int)
    for x0, y0, x1, y1 in np.rint(result.boxes).astype(int):
        cover[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] += 1
    assert cover.max() == 1


def test_without_masks_the_rim_fades_into_the_ground():
    donor = MemoryPhoto(np.full((60, 60, 3), 200, np.uint8), Objects(np.array([[20, 20, 40, 40.0]]), [0]))
    patch = cut_patch(donor, 0, 1.0, masks=False)
    weight = patch.weight[len(patch.weight) // 2]
    assert (weight[3:-3] == 1).all()
    assert (np.diff(weight[:4]) > 0).all()
    assert weight[0] < 0.25


def test_an_object_whose_rim_shows_another_is_not_taken_without_masks():
    near = rectangles((60, 60), [(10, 10, 30, 30), (31, 10, 50, 30)])
    assert cut_patch(near, 0, 1.0, masks=False) is None
    assert cut_patch(near, 0, 1.0, masks=True) is not None


def test_where_there_is_no_room_nothing_is_pasted():
    donor = rectangles((200, 200), [(10, 10, 30, 30), (50, 50, 150, 120)])
    rng = np.random.default_rng(0)
    full = ground([(0, 0, 120, 100)])
    assert paste(full, [cut_patch(donor, 0, 1.0, masks=True)], rng) is full
    large = ground()
    assert paste(large, [cut_patch(donor, 1, 1.0, masks=True)], rng) is large
    assert paste(large, [], rng) is large


def test_ignored_regions_are_never_covered():
    crowd = rectangles((100, 100), [(0, 0, 100, 90)], crowd=[True])
    donor = rectangles((60, 60), [(10, 10, 20, 18)])
    example = whole(crowd)
    for seed in range(20):
        result = paste(example, [cut_patch(donor, 0, 1.0, masks=True)], np.random.default_rng(seed))
        assert np.array_equal(result.image[:90], example.image[:90])
