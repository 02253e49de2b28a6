"""Pooling of regions: torchvision's kernels at the scale that is true, whatever came before."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import MultiScaleRoIAlign, roi_align, roi_pool
from torchvision.ops.poolers import LevelMapper

from visionapps.detection.pooling import RoIPooler, align_by_rows, as_rois
from visionapps.errors import ConfigError

STRIDES = (4, 8, 16, 32)


def maps(height, width, strides=STRIDES, images=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, 3, -(-height // s), -(-width // s), generator=generator) for s in strides]


def some(count, height, width, seed=1):
    generator = torch.Generator().manual_seed(seed)
    corner, side = torch.rand(2, count, 2, generator=generator)
    extent = torch.tensor([width, height])
    return torch.cat((corner * extent * 0.5, (corner * 0.5 + 0.01 + side * 0.49) * extent), 1)


def test_blocks_are_torchvisions_where_it_knows_the_scale():
    features, boxes = maps(512, 512, images=2), [some(30, 512, 512), some(20, 512, 512, 2)]
    theirs = MultiScaleRoIAlign(list("0123"), 5, 2)
    expected = theirs({str(i): f for i, f in enumerate(features)}, boxes, [(512, 512)] * 2)
    assert torch.allclose(RoIPooler(STRIDES, 5)(features, boxes, [(512, 512)] * 2), expected, atol=1e-4)


def test_a_long_strip_as_first_image_poisons_torchvisions_scale_for_ever_and_not_ours():
    theirs, ours = MultiScaleRoIAlign(list("0123"), 7, 2), RoIPooler(STRIDES)

    def pool(pooler, features, boxes, size):
        named = features if pooler is ours else {str(i): f for i, f in enumerate(features)}
        return pooler(named, boxes, [size])

    for pooler in (theirs, ours):  # 40 x 1333, padded to 64 x 1344
        pool(pooler, maps(64, 1344), [some(5, 40, 1333)], (40, 1333))
    features, boxes = maps(512, 512), [torch.tensor([[20.0, 30, 80, 90]])]
    right = roi_align(features[0], as_rois(boxes), (7, 7), 1 / 4, 2)
    assert torch.allclose(pool(ours, features, boxes, (512, 512)), right, atol=1e-4)
    assert theirs.scales == [1 / 2, 1 / 4, 1 / 8, 1 / 16]  # the defect: twice the true scales
    wrong = roi_align(features[1], as_rois(boxes), (7, 7), 1 / 4, 2)  # and the map of stride 8 for a box of 60 px
    assert torch.equal(pool(theirs, features, boxes, (512, 512)), wrong)
    assert not torch.allclose(wrong, right)


@pytest.mark.parametrize("stride", [12, 14])
def test_strides_that_are_no_powers_of_two_are_pooled_as_they_are_and_torchvision_takes_16(stride):
    side = stride * 20
    (feature,) = maps(side, side, (stride,))
    boxes = [some(6, side, side)]
    right = roi_align(feature, as_rois(boxes), (7, 7), 1 / stride, 2)
    assert torch.allclose(RoIPooler((stride,))([feature], boxes, [(side, side)]), right, atol=1e-4)
    theirs = MultiScaleRoIAlign(["0"], 7, 2)
    wrong = theirs({"0": feature}, boxes, [(side, side)])
    assert theirs.scales == [1 / 16]
    assert not torch.allclose(wrong, right)


def test_the_map_of_a_box_is_equation_1_of_the_pyramid_paper():
    side = torch.cat((torch.rand(500, generator=torch.Generator().manual_seed(0)) * 900, 112.0 * torch.arange(1, 9)))
    boxes = torch.stack((torch.zeros_like(side), torch.zeros_like(side), side, side), 1)
    expected = LevelMapper(2, 5)([boxes])
    assert torch.equal(RoIPooler(STRIDES).level(boxes), expected)
    assert expected.unique().tolist() == [0, 1, 2, 3]


def test_the_map_of_a_box_for_any_strides_is_the_coarsest_that_gives_a_classifiers_image_14_positions():
    boxes = torch.tensor([[0.0, 0, s, s] for s in (10, 13 * 14 - 1, 13 * 14, 29 * 14 - 1, 29 * 14, 5000)])
    assert RoIPooler((5, 13, 29)).level(boxes).tolist() == [0, 0, 1, 1, 2, 2]


def test_max_pooling_is_torchvisions_and_takes_the_greatest_value():
    (feature,) = maps(160, 160, (16,))
    boxes = [some(8, 160, 160)]
    pooler = RoIPooler((16,), 6, "max")
    assert torch.equal(pooler([feature], boxes, [(160, 160)]), roi_pool(feature, as_rois(boxes), (6, 6), 1 / 16))
    by_hand = torch.zeros(1, 1, 4, 4)
    by_hand[0, 0, 1, 2], by_hand[0, 0, 3, 3] = 7.0, 9.0
    block = RoIPooler((10,), 2, "max")([by_hand], [torch.tensor([[0.0, 0, 29, 29]])], [(40, 40)])
    assert block[0, 0].tolist() == [[0.0, 7.0], [0.0, 9.0]]  # positions 0 to 3: both ends count


def test_half_a_position_is_shifted_where_it_is_asked_for():
    (feature,) = maps(160, 160, (16,))
    boxes = [some(8, 160, 160)]
    expected = roi_align(feature, as_rois(boxes), (7, 7), 1 / 16, -1, aligned=True)
    assert torch.equal(RoIPooler((16,), sampling=0, aligned=True)([feature], boxes, [(160, 160)]), expected)


def test_no_proposals_give_no_blocks_and_gradients_still_flow():
    features = [f.requires_grad_() for f in maps(64, 64, images=2)]
    none = RoIPooler(STRIDES)(features, [torch.zeros(0, 4)] * 2, [(64, 64)] * 2)
    assert none.shape == (0, 3, 7, 7)
    none.sum().backward()
    assert all(f.grad is not None and not f.grad.any() for f in features)
    some_blocks = RoIPooler(STRIDES)(features, [torch.zeros(0, 4), some(3, 64, 64)], [(64, 64)] * 2)
    assert some_blocks.shape == (3, 3, 7, 7)


def test_boxes_without_inside_are_pooled_as_one_position():
    blocks = RoIPooler(STRIDES)(maps(64, 64), [torch.tensor([[5.0, 5, 5, 5], [64, 64, 64, 64]])], [(64, 64)])
    assert torch.isfinite(blocks).all()


def test_blocks_are_float32_whatever_comes_in_and_under_an_autocast():
    features = [f.bfloat16() for f in maps(64, 64)]
    with torch.autocast("cpu", torch.bfloat16):
        blocks = RoIPooler(STRIDES)(features, [some(3, 64, 64)], [(64, 64)])
    assert blocks.dtype == torch.float32


def test_maps_beyond_the_poolers_own_are_left_alone():
    features, boxes = maps(128, 128, (*STRIDES, 64)), [some(9, 128, 128)]
    pooler = RoIPooler(STRIDES)
    assert torch.equal(pooler(features, boxes, [(128, 128)]), pooler(features[:4], boxes, [(128, 128)]))


@pytest.mark.parametrize("strides", [(), (8, 4), (4, 4), (0, 4)])
def test_strides_that_do_not_ascend_are_refused(strides):
    with pytest.raises(ConfigError, match="must be positive and ascend"):
        RoIPooler(strides)


@pytest.mark.parametrize("settings", [{"how": "mean"}, {"size": 0}, {"sampling": -1}])
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(ConfigError, match="must be align or max"):
        RoIPooler((4,), **settings)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 7),
    sampling=st.integers(1, 3),
    stride=st.sampled_from([1, 4, 12, 14]),
    aligned=st.booleans(),
)
def test_sums_of_rows_are_torchvisions_alignment_also_beyond_the_map_and_so_are_its_gradients(
    seed, size, sampling, stride, aligned
):
    generator = torch.Generator().manual_seed(seed)
    height, width, count = (int(torch.randint(1, 12, (), generator=generator)) for _ in range(3))
    feature = torch.randn(2, 3, height, width, generator=generator, dtype=torch.float32)
    low, side = torch.rand(2, count, 2, generator=generator)
    extent = torch.tensor([width, height]) * stride
    corner = (low * 1.6 - 0.3) * extent  # some begin and end beyond the map
    rois = torch.cat((torch.arange(count)[:, None] % 2, corner, corner + side * extent), 1)
    ours, theirs = feature.clone().requires_grad_(), feature.clone().requires_grad_()
    expected = roi_align(theirs, rois, (size, size), 1 / stride, sampling, aligned)
    got = align_by_rows(ours, rois, size, stride=stride, sampling=sampling, aligned=aligned)
    assert torch.allclose(got, expected, atol=1e-4)
    outer = torch.randn(expected.shape, generator=generator)
    (got * outer).sum().backward()
    (expected * outer).sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-3)
