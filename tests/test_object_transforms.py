"""Augmentation of pictures with boxes: boxes against the pixels that were drawn, whatever is done to them."""

from dataclasses import replace

import albumentations
import numpy as np
import pytest
from drawn import MemoryPhoto, bounds, rectangles, whole
from hypothesis import example, given, settings
from hypothesis import strategies as st

from visionapps.data.object_transforms import (
    InOrder,
    ObjectPipeline,
    Symmetry,
    Zoom,
    object_aerial,
    object_flips,
)
from visionapps.errors import ConfigError

seeds = st.integers(0, 2**32 - 1)
BOXES = [(0, 0, 20, 14), (30, 5, 50, 40), (60, 20, 75, 64), (80, 50, 96, 64), (2, 40, 24, 60)]


def scene(size=(64, 96), boxes=BOXES):
    """Five rectangles, of which three touch the edge; proposals are the same boxes."""
    photo = rectangles(size, boxes)
    return whole(MemoryPhoto(photo.pixels, photo.objects, np.array(boxes, np.float32)))


def agree(result, tolerance):
    """Every object lies where its grey value and its mask are, and nothing else is to be seen."""
    shown = np.zeros(result.size, bool)
    for box, label, mask in zip(result.boxes, result.labels, result.masks, strict=True):
        # Grey 50 + label; where two meet or end, linear sampling mixes them, at most 3 pixels deep at these factors.
        own = np.abs(result.image[..., 0].astype(int) - 50 - int(label)) == 0
        x0, y0, x1, y1 = np.rint(box).astype(int)
        assert own[y0 + 3 : max(y1 - 3, 0), x0 + 3 : max(x1 - 3, 0)].all()
        assert bounds(mask) == pytest.approx(box, abs=tolerance)
        shown |= mask.astype(bool)
    return shown


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_symmetries_keep_every_box_exact(seed):
    example = scene()
    result = Symmetry()(example, np.random.default_rng(seed))
    assert result.size == example.size
    for box, label in zip(result.boxes, result.labels, strict=True):
        assert bounds(result.image[..., 0] == 50 + label) == box.tolist()
    assert np.array_equal(result.boxes, result.proposals)
    assert (result.left == 1).all()


def test_square_pictures_get_all_eight_symmetries_and_flips_only_two():
    square = scene((64, 64), BOXES[:2])
    rng = np.random.default_rng(0)
    assert len({Symmetry()(square, rng).image.tobytes() for _ in range(200)}) == 8
    assert len({object_flips()(square, rng).image.tobytes() for _ in range(50)}) == 2


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from([(1.0, 1.0), (0.5, 0.9), (1.1, 2.5), (0.4, 3.0)]))
@example(371, (1.1, 2.5))  # of a box two pixels wide mixed pixels are the larger part
def test_zoom_keeps_boxes_masks_and_proposals_together(seed, scale):
    example = scene()
    result = Zoom(1.0, scale)(example, np.random.default_rng(seed))
    assert result.size == example.size
    agree(result, 0.51)
    assert (result.boxes >= 0).all()
    assert (result.boxes <= [96, 64, 96, 64]).all()
    # A proposal that equals an object before equals it afterwards, and each object keeps its own label and share.
    assert np.allclose(result.boxes, result.proposals)
    for box, label, left in zip(result.boxes, result.labels, result.left, strict=True):
        if left == 1:  # both sides grew alike, but for half a pixel at the rim of a size of whole pixels
            own, sides = np.subtract(BOXES[label][2:], BOXES[label][:2]), box[2:] - box[:2]
            assert ((sides - 0.01) / own).max() <= ((sides + 0.51) / own).min()


def test_a_zoomed_out_picture_lies_on_its_mean_colour_without_mirrored_objects():
    example = scene()
    result = Zoom(1.0, (0.5, 0.5))(example, np.random.default_rng(3))
    shown = agree(result, 0.51)
    assert len(result.boxes) == len(BOXES)
    mean = round(float(example.image[::8, ::8, 0].mean()))
    rows, cols = result.image[..., 0].shape
    assert (result.image[..., 0] == mean).sum() >= rows * cols * 3 // 4
    assert ((result.image[..., 0] >= 50) & ~shown).sum() == 0


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_the_aerial_preset_keeps_boxes_on_their_objects(seed):
    example = scene()
    example = replace(example, image=3 * example.image)
    result = object_aerial(1.0)(example, np.random.default_rng(seed))
    assert result.image.dtype == np.uint8
    for box, mask in zip(result.boxes, result.masks, strict=True):
        if min(box[2] - box[0], box[3] - box[1]) >= 4:
            assert bounds(mask) == pytest.approx(box, abs=0.51)
            # Objects are bright on black, under any light of the preset.
            assert result.image[mask > 0].mean() > 15


def test_strength_0_rearranges_pixels_only_and_out_of_range_is_refused():
    example = scene()
    result = object_aerial(0)(example, np.random.default_rng(0))
    assert np.array_equal(np.sort(result.image, axis=None), np.sort(example.image, axis=None))
    with pytest.raises(ConfigError, match=r"strength 3 must be in \[0, 2\]"):
        object_aerial(3)
    with pytest.raises(ConfigError, match=r"zoom: probability 1.5 must be in \[0, 1\]"):
        Zoom(1.5)


@pytest.mark.parametrize(("bands", "dtype"), [(1, np.uint8), (4, np.uint16), (8, np.float32), (6, np.int16)])
def test_the_preset_takes_every_dtype_and_number_of_bands(bands, dtype):
    example = scene()
    image = np.repeat(example.image[..., :1], bands, axis=2).astype(dtype)
    for seed in range(6):
        result = object_aerial(1.0)(
            type(example)(image, example.boxes, example.labels, example.ignore, example.left),
            np.random.default_rng(seed),
        )
        assert result.image.dtype == dtype
        assert result.image.shape[2] == bands


def test_the_same_chance_gives_the_same_picture_and_nothing_is_changed_in_place():
    example = scene()
    kept = example.image.copy(), example.boxes.copy(), example.masks.copy()
    for array in (example.image, example.boxes, example.masks, example.labels):
        array.setflags(write=False)
    a = albumentations
    pipeline = ObjectPipeline([a.RandomBrightnessContrast(p=0.5), a.Affine(scale=(0.7, 1.3), p=0.7)])
    augment = InOrder([object_aerial(2.0), pipeline])
    for seed in range(5):
        first, again = (augment(example, np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(first.image, again.image)
        assert np.array_equal(first.boxes, again.boxes)
    assert np.array_equal(example.image, kept[0])
    assert np.array_equal(example.boxes, kept[1])
    assert np.array_equal(example.masks, kept[2])


@settings(max_examples=30, deadline=None)
@given(seeds, st.booleans())
def test_any_pipeline_keeps_boxes_labels_flags_and_masks_together(seed, with_masks):
    a = albumentations
    pipeline = ObjectPipeline(
        [
            a.OneOf([a.HorizontalFlip(p=1.0), a.VerticalFlip(p=1.0), a.RandomRotate90(p=1.0)], p=0.8),
            a.Affine(translate_percent=(-0.4, 0.4), interpolation=0, p=0.5),
            a.RandomCrop(40, 40, p=0.5),
        ]
    )
    example = scene()
    flags = np.arange(len(BOXES)) % 2 == 0
    example = type(example)(
        example.image,
        example.boxes,
        example.labels,
        flags,
        example.left,
        example.masks if with_masks else None,
        example.proposals,
    )
    result = pipeline(example, np.random.default_rng(seed))
    assert len(result.boxes) == len(result.labels) == len(result.ignore) == len(result.left)
    assert np.array_equal(result.ignore, flags[result.labels])
    visible = {k for k in range(len(BOXES)) if (result.image[..., 0] == 50 + k).any()}
    assert set(result.labels.tolist()) == visible
    for box, label in zip(result.boxes, result.labels, strict=True):
        # Translations may end between pixels: nearest sampling then moves an edge by half of one.
        assert bounds(result.image[..., 0] == 50 + label) == pytest.approx(box, abs=1.01)
    assert np.allclose(result.boxes, result.proposals, atol=1.01)


def test_a_crop_by_a_pipeline_tells_what_is_left_of_each_object():
    example = scene((64, 96), [(0, 0, 20, 10), (30, 0, 50, 10)])
    pipeline = ObjectPipeline([albumentations.Crop(x_min=15, y_min=0, x_max=45, y_max=30, p=1.0)])
    result = pipeline(example, np.random.default_rng(0))
    assert result.size == (30, 30)
    assert result.boxes.tolist() == [[0, 0, 5, 10], [15, 0, 30, 10]]
    assert result.left == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize("side", [3, 7, 41, 97, 641])
def test_boxes_that_touch_the_edge_never_fail_whatever_rounding_makes_of_them(side):
    # Divided by the size and multiplied again, such a box ends at 1.0000000000000002: albumentations itself refuses.
    a = albumentations
    photo = rectangles((side, side), [(0, 0, side, side)])
    pipeline = ObjectPipeline([a.HorizontalFlip(p=0.5), a.RandomScale((0.3, 0.7), p=0.5), a.Transpose(p=0.5)])
    example = whole(photo)
    example = type(example)(
        example.image, example.boxes * (1 + 2**-52), example.labels, example.ignore, example.left, None, example.boxes
    )
    for seed in range(8):
        result = pipeline(example, np.random.default_rng(seed))
        height, width = result.size
        assert result.boxes[0] == pytest.approx([0, 0, width, height])
        assert result.left[0] == pytest.approx(1)


def test_a_turned_object_with_a_mask_gets_the_box_around_its_mask():
    photo = rectangles((80, 80), [(30, 30, 50, 50)])
    disc = (np.mgrid[:80, :80] - 39.5) ** 2
    example = whole(photo)
    example.masks[0] = disc.sum(0) <= 100
    turn = ObjectPipeline([albumentations.Affine(rotate=(45, 45), p=1.0)])
    result = turn(example, np.random.default_rng(0))
    assert result.boxes[0] == pytest.approx([30, 30, 50, 50], abs=1.01)  # a turned disc is the same disc
    assert result.boxes[0] == pytest.approx(bounds(result.masks[0]), abs=1.01)


def test_pictures_without_objects_pass_through_every_augmentation():
    empty = whole(rectangles((30, 40), []))
    pipeline = ObjectPipeline([albumentations.HorizontalFlip(p=1.0), albumentations.RandomCrop(20, 20, p=1.0)])
    for augment in (object_aerial(1.0), pipeline):
        result = augment(empty, np.random.default_rng(1))
        assert result.boxes.shape == (0, 4)
        assert result.masks.shape == (0, *result.size)


@pytest.mark.parametrize(
    ("transforms", "text"),
    [
        (lambda a: [a.Normalize()], "leave out normalising"),
        (
            lambda a: [a.Compose([a.HorizontalFlip()], bbox_params=a.BboxParams("pascal_voc"))],
            "Compose has bbox_params; leave them out",
        ),
        (lambda a: [a.Affine(mask_interpolation=1)], "Affine interpolates masks"),
        (lambda a: [a.Sequential([a.Affine(mask_interpolation=2)])], "Affine interpolates masks"),
    ],
)
def test_pipelines_that_cannot_work_are_refused_by_name(transforms, text):
    with pytest.raises(ConfigError, match=text):
        ObjectPipeline(transforms(albumentations))(scene(), np.random.default_rng(0))


def test_a_misspelt_argument_of_a_transform_is_an_error():
    with pytest.warns(UserWarning, match="not valid"):
        transform = albumentations.HorizontalFlip(probability=0.5)
    with pytest.raises(ValueError, match="probability"):
        ObjectPipeline([transform])
