"""Anchors: torchvision's where torchvision knows the stride, and the right ones where it guesses."""

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from visionapps.detection.anchors import Anchors
from visionapps.errors import ConfigError

CPU = torch.device("cpu")
SIZES = ((32, 48), (64, 90), (128, 200))


def generated(sizes, ratios, image, maps):
    generator = AnchorGenerator(sizes, (ratios,) * len(sizes))
    height, width = image
    return generator(ImageList(torch.zeros(1, 3, height, width), [image]), [torch.zeros(1, 1, *m) for m in maps])[0]


def test_anchors_are_torchvisions_where_strides_divide_the_image():
    ratios = (0.5, 1.0, 1.7)
    maps = [(16, 24), (8, 12), (4, 6)]
    expected = generated(SIZES, ratios, (128, 192), maps)
    got = torch.cat(Anchors((8, 16, 32), SIZES, ratios).boxes(maps, CPU))
    assert torch.equal(got, expected)


def test_the_sixth_level_of_an_800_pixel_image_stands_at_multiples_of_64_and_torchvisions_at_61():
    sizes = ((32,), (64,), (128,), (256,), (512,))
    maps = [(200, 200), (100, 100), (50, 50), (25, 25), (13, 13)]  # the last one: every second pixel of the fourth
    theirs = generated(sizes, (1.0,), (800, 800), maps)[-13:]
    ours = Anchors((4, 8, 16, 32, 64), sizes, (1.0,)).boxes(maps, CPU)[-1][-13:]
    centres = [(boxes[:, 0] + boxes[:, 2]) / 2 for boxes in (theirs, ours)]
    assert centres[0].tolist() == [61 * i for i in range(13)]  # the defect: 36 px off in the last column
    assert centres[1].tolist() == [64 * i for i in range(13)]


@pytest.mark.parametrize("stride", [12, 14])
def test_strides_that_are_no_powers_of_two_are_kept(stride):
    boxes = Anchors((stride,), ((20,),), (1.0,)).boxes([(3, 4)], CPU)[0]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert centres.tolist() == [[stride * x, stride * y] for y in range(3) for x in range(4)]


def test_by_hand_one_position_has_anchors_by_ratio_then_by_size():
    (boxes,) = Anchors((10,), ((20, 40),), (0.25, 1.0), offset=0.5, rounded=False).boxes([(1, 2)], CPU)
    around = [(20, 5), (40, 10), (10, 10), (20, 20)]  # half width, half height: ratio 0.25 is wide
    expected = [[x - a, 5 - b, x + a, 5 + b] for x in (5, 15) for a, b in around]
    assert torch.allclose(boxes, torch.tensor(expected, dtype=torch.float32))


def test_areas_are_the_sizes_squared_and_ratios_height_by_width():
    (boxes,) = Anchors((16,), ((100, 30),), (0.5, 2.0), rounded=False).boxes([(2, 2)], CPU)
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    assert torch.allclose((width * height).sqrt(), torch.tensor([100.0, 30] * 8), rtol=1e-5)
    assert torch.allclose(height / width, torch.tensor([0.5, 0.5, 2, 2] * 4), rtol=1e-5)


def test_anchors_made_in_inference_mode_can_take_part_in_training_later():
    anchors = Anchors((7,), ((11,),))
    with torch.inference_mode():
        (first,) = anchors.boxes([(2, 3)], CPU)
    assert not first.is_inference()
    weight = torch.ones(4, requires_grad=True)
    (anchors.boxes([(2, 3)], CPU)[0] * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((4, 8), ((32,),)), r"2 levels \(strides \(4, 8\)\), but sizes for 1; give one list of sizes per level"),
        (((), ()), "0 levels"),
        (((4, 8), ((32,), (64, 90))), "every level needs equally many"),
        (((4,), ((),)), "at least one"),
        (((4,), ((32,),), ()), "at least one"),
        (((4,), ((-32,),)), "must all be positive"),
        (((4,), ((32,),), (float("nan"),)), "must all be positive"),
    ],
)
def test_numbers_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Anchors(*arguments)


def test_feature_maps_of_other_levels_are_refused():
    with pytest.raises(ConfigError, match="made for 1 levels, but there are 2 feature maps"):
        Anchors((4,), ((32,),)).boxes([(1, 1), (2, 2)], CPU)


def test_lists_from_yaml_are_as_good_as_tuples():
    assert Anchors([4, 8], [[32], [64]], [1]) == Anchors((4, 8), ((32,), (64,)), (1,))
