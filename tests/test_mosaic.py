"""Mosaics: four pictures in one, checked pixel by pixel."""

from dataclasses import replace

import numpy as np
import pytest
from drawn import MemoryPhoto, bounds, rectangles, whole
from hypothesis import given, settings
from hypothesis import strategies as st

from visionapps.data.mosaic import mosaic, quarters
from visionapps.windows import Window


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 90), st.integers(2, 90), st.integers(0, 1000))
def test_quarters_cover_the_picture_once_and_none_is_empty(height, width, seed):
    count = np.zeros((height, width), int)
    for place in quarters((height, width), np.random.default_rng(seed)):
        assert min(place.height, place.width) >= 1
        count[place.slices] += 1
    assert (count == 1).all()


def test_each_part_shows_its_own_objects_where_its_pixels_are():
    places = (Window(0, 0, 30, 20), Window(0, 20, 30, 44), Window(30, 0, 34, 20), Window(30, 20, 34, 44))
    parts = []
    for number in range(4):
        photo = rectangles((40, 50), [(5, 4, 15, 14), (16, 20, 44, 38)], labels=[number, number])
        proposals = photo.objects.boxes.astype(np.float32)
        pixels = photo.pixels + np.where(photo.pixels > 0, 10 * number, 0).astype(np.uint8)
        parts.append(whole(MemoryPhoto(pixels, photo.objects, proposals)))
    parts[1] = replace(parts[1], ignore=np.array([True, False]))
    result = mosaic((64, 64), places, parts)
    assert result.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert result.ignore.tolist() == [False, False, True] + 5 * [False]
    for k, (box, label) in enumerate(zip(result.boxes, result.labels, strict=True)):
        place = places[label]
        inside = np.zeros((64, 64), bool)
        inside[place.slices] = result.image[place.slices][..., 0] == 50 + k % 2 + 10 * label
        assert bounds(inside) == box.tolist()
        assert bounds(result.masks[k]) == box.tolist()
    assert np.array_equal(result.boxes, result.proposals)
    # Of the second object of the first part 4 of 28 columns and 10 of 18 rows are in its place.
    assert result.left[1] == pytest.approx(4 / 28 * 10 / 18)
    assert result.left[0] == 1


def test_a_part_smaller_than_its_place_lies_where_all_four_meet():
    places = (Window(0, 0, 30, 30), Window(0, 30, 30, 30), Window(30, 0, 30, 30), Window(30, 30, 30, 30))
    parts = [whole(rectangles((10, 12), [(0, 0, 12, 10)])) for _ in range(4)]
    result = mosaic((60, 60), places, parts)
    assert result.boxes.tolist() == [[18, 20, 30, 30], [30, 20, 42, 30], [18, 30, 30, 40], [30, 30, 42, 40]]
    assert (result.image[20:40, 18:42] == 50).all()
    assert (result.left == 1).all()
