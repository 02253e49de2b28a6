"""Changes of frame of an example: boxes against the pixels that were drawn, masks against pycocotools."""

import numpy as np
import pytest
import torch
from drawn import MemoryPhoto, bounds, rectangles, whole
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from visionapps.data.examples import (
    Example,
    cropped,
    cut_boxes,
    decode_masks,
    mean_pixel,
    padded,
    read_example,
    resample,
    rescaled,
    to_batch,
    turned,
)
from visionapps.errors import DataError
from visionapps.objects import Objects
from visionapps.windows import Window

box_in = st.tuples(st.integers(0, 30), st.integers(0, 20), st.integers(1, 17), st.integers(1, 12)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@settings(max_examples=60, deadline=None)
@given(box_in, st.integers(0, 3), st.booleans())
def test_a_turned_box_is_the_box_of_the_turned_pixels(box, turn, mirror):
    photo = rectangles((32, 47), [box])
    photo = MemoryPhoto(photo.pixels, photo.objects, np.array([box], np.float32))
    result = turned(whole(photo), turn, mirror)
    expected = bounds(result.image[..., 0])
    assert result.boxes.tolist() == [expected]
    assert result.proposals.tolist() == [expected]
    assert bounds(result.masks[0]) == expected
    assert np.array_equal(result.image, np.rot90(photo.pixels[:, ::-1] if mirror else photo.pixels, turn))


@settings(max_examples=60, deadline=None)
@given(box_in, st.floats(0.55, 3.0))
def test_a_scaled_box_is_the_box_of_the_scaled_pixels_within_half_a_pixel(box, factor):
    photo = rectangles((32, 47), [box])
    result = rescaled(whole(photo), factor)
    assert result.size == (round(32 * factor), round(47 * factor))
    limit = [result.size[1], result.size[0]] * 2
    assert result.boxes[0] == pytest.approx(np.minimum(np.array(box) * factor, limit), abs=1e-9)
    if min(box[2] - box[0], box[3] - box[1]) * factor >= 3:
        # Linear sampling crosses half of the grey value where the edge is.
        assert bounds(result.image[..., 0] >= 25) == pytest.approx(result.boxes[0], abs=0.6)
        assert bounds(result.masks[0]) == pytest.approx(result.boxes[0], abs=0.51)


def test_scaling_is_by_exactly_the_factor_and_not_to_a_rounded_size():
    ramp = np.tile(np.arange(853, dtype=np.float32), (7, 1))[..., None]
    for factor in (0.7, 1.37, 600 / 853):
        result = resample(ramp, factor)[3, :, 0]
        expected = (np.arange(len(result)) + 0.5) / factor - 0.5  # the place in the ramp that pixel i shows
        assert result[2:-2] == pytest.approx(expected[2:-2], abs=1e-3)


@pytest.mark.parametrize(("shape", "factor", "expected"), [((1, 1), 0.3, (1, 1)), ((1, 90), 0.1, (1, 9))])
def test_scaling_never_leaves_nothing(shape, factor, expected):
    assert resample(np.full((*shape, 3), 7, np.uint8), factor).shape == (*expected, 3)
    assert (resample(np.full((*shape, 5), 7, np.uint16), factor) == 7).all()


@settings(max_examples=60, deadline=None)
@given(box_in, st.integers(0, 20), st.integers(0, 12), st.integers(5, 25), st.integers(5, 20))
def test_a_crop_cuts_boxes_and_remembers_what_is_left(box, col, row, width, height):
    photo = rectangles((32, 47), [box])
    result = cropped(whole(photo), Window(row, col, height, width))
    grey = result.image[..., 0]
    assert len(result.boxes) == int(grey.any())
    if grey.any():
        assert result.boxes.tolist() == [bounds(grey)]
        assert bounds(result.masks[0]) == bounds(grey)
        assert result.left[0] == pytest.approx((grey > 0).sum() / ((box[2] - box[0]) * (box[3] - box[1])))


def test_shares_of_two_cuts_multiply():
    photo = rectangles((20, 40), [(0, 0, 40, 20)])
    once = cropped(whole(photo), Window(0, 0, 20, 20))
    assert cropped(once, Window(0, 0, 10, 20)).left.tolist() == [0.25]


def test_slivers_are_dropped_but_small_whole_objects_stay():
    boxes = np.array([[9.7, 0, 30, 5], [9.4, 0, 30, 5], [5, 5, 5.2, 5.2], [12, 0, 14, 3]])
    cut = cut_boxes(boxes, (10, 10))
    assert cut.left == pytest.approx([0, 0.6 / 20.6, 1, 0])


def test_padding_moves_everything_and_fills_the_rest():
    photo = rectangles((10, 20), [(3, 2, 9, 8)])
    result = padded(whole(photo), (30, 25), (15, 4), np.array([1, 2, 3]))
    assert result.boxes.tolist() == [[7, 17, 13, 23]]
    assert bounds(result.masks[0]) == [7, 17, 13, 23]
    assert result.image[0, 0].tolist() == [1, 2, 3]
    assert np.array_equal(result.image[15:25, 4:24], photo.pixels)
    assert padded(result, (30, 25), (0, 0), np.zeros(3)) is result


def test_masks_of_a_window_equal_those_that_pycocotools_decodes():
    rng = np.random.default_rng(0)
    blobs = np.zeros((6, 60, 80), np.uint8)
    for blob in blobs:
        row, col = rng.integers(0, 40), rng.integers(0, 50)
        blob[row : row + 20, col : col + 30] = rng.random((20, 30)) < 0.6
    blobs[5] = 0
    rles = [coco.encode(np.asfortranarray(blob)) for blob in blobs]
    rles = [{"size": list(rle["size"]), "counts": rle["counts"].decode()} for rle in rles]
    boxes = np.array([bounds(blob) if blob.any() else [4, 4, 9, 9] for blob in blobs], float)
    for window in (Window(0, 0, 60, 80), Window(13, 21, 30, 40), Window(59, 79, 1, 1)):
        shown = decode_masks(rles, boxes, window)
        assert np.array_equal(shown, blobs[(slice(None), *window.slices)])


def test_a_window_of_a_photo_shows_its_objects_and_proposals_only():
    photo = rectangles((40, 60), [(0, 0, 10, 10), (25, 15, 35, 25), (50, 30, 60, 40)], crowd=[False, True, False])
    proposals = np.array([[0, 0, 20, 10], [22, 12, 50, 30], [20, 0, 30, 10.2]], np.float32)
    photo = MemoryPhoto(photo.pixels, photo.objects, proposals)
    result = read_example(photo, Window(10, 20, 20, 20), 2.0, masks=True)
    assert result.size == (40, 40)
    assert result.boxes.tolist() == [[10, 10, 30, 30]]
    assert result.labels.tolist() == [1]
    assert result.ignore.tolist() == [True]
    assert bounds(result.masks[0]) == [10, 10, 30, 30]
    # The first touches the window only from outside, of the third 0.2 px would be left.
    assert result.proposals.tolist() == [[4, 4, 40, 40]]


def test_photos_of_one_pixel_and_without_objects_work():
    photo = rectangles((1, 1), [])
    for masks in (False, True):
        batch = to_batch(whole(photo, masks), keep=0.8, key=0, origin=(0, 0), factor=1.0)
        assert batch.image.shape == (1, 3, 1, 1)
        assert batch.targets[0].boxes.shape == (0, 4)
        assert (batch.targets[0].masks is not None) == masks


def test_masks_that_are_wanted_but_not_there_are_named():
    photo = MemoryPhoto(np.zeros((5, 5, 3), np.uint8), Objects(np.array([[0, 0, 3, 3.0]]), [0]))
    with pytest.raises(DataError, match=r"photo\.png: masks are wanted, but its annotations are boxes only"):
        whole(photo)


def test_a_batch_ignores_what_was_cut_by_more_than_keep_allows():
    photo = rectangles((20, 100), [(0, 0, 10, 10), (12, 0, 22, 10), (24, 0, 34, 10)], difficult=[True, False, False])
    cut = cropped(whole(photo), Window(0, 0, 20, 32))  # the last keeps 8 of 10 columns
    for keep, ignored in ((0.8, [True, False, False]), (0.81, [True, False, True])):
        batch = to_batch(cut, keep=keep, key=3, origin=(5, 6), factor=1.0)
        assert batch.targets[0].ignore.tolist() == ignored
    assert batch.targets[0].boxes.dtype == torch.float32
    assert batch.targets[0].boxes[2].tolist() == [24, 0, 32, 10]
    assert (batch.keys, batch.origins, batch.sizes) == ((3,), ((5, 6),), ((20, 32),))
    assert torch.equal(batch.image[0, 1], torch.from_numpy(photo.pixels[:, :32, 1].copy()))


def test_the_mean_pixel_is_rounded_for_integers_only():
    image = np.zeros((16, 16, 2), np.uint8)
    image[:8, :, 1] = 201
    assert mean_pixel(image).tolist() == [0, 100]
    assert mean_pixel(image.astype(np.float32)).tolist() == [0, 100.5]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_any_dtype_and_number_of_bands_becomes_a_tensor_of_it(dtype):
    image = np.arange(4 * 5 * 7).reshape(4, 5, 7).astype(dtype)
    empty = np.zeros((0, 4))
    example = Example(image, empty, np.zeros(0, int), np.zeros(0, bool), np.zeros(0))
    batch = to_batch(rescaled(turned(example, 2, True), 2.0), keep=0.5, key=0, origin=(0, 0), factor=2.0)
    assert batch.image.shape == (1, 7, 8, 10)
    assert batch.image.numpy().dtype == dtype
