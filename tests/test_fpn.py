"""Necks beside torchvision's, at strides that torchvision does not know, and what they refuse."""

from collections import OrderedDict

import pytest
import torch
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from visionapps.detection.fpn import FPN, SingleLevel
from visionapps.errors import ConfigError
from visionapps.structures import Level

LEVELS = (Level(4, 6), Level(8, 10), Level(16, 12))


def maps(sizes, batch=2):
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(batch, level.channels, *size, generator=generator)
        for level, size in zip(LEVELS, sizes, strict=True)
    )


def copied(theirs, ours):
    """Their weights in our places; every weight of both is used."""
    state = {}
    names = {"inner_blocks": "lateral", "layer_blocks": "output"}
    for key, value in theirs.state_dict().items():
        for old, new in names.items():
            key = key.replace(old, new)
        state[key.replace("extra_blocks.p6", "sixth").replace("extra_blocks.p7", "seventh")] = (
            value.uniform_(0.1, 1) if value.is_floating_point() else value
        )
    ours.load_state_dict(state)


@pytest.mark.parametrize(
    ("extra", "block"),
    [
        ("none", None),
        ("pool", LastLevelMaxPool()),
        ("convs", LastLevelP6P7(8, 8)),
        ("convs_of_input", LastLevelP6P7(12, 8)),
    ],
)
@pytest.mark.parametrize("norm", [False, True])
def test_maps_are_those_of_torchvision_with_the_same_weights(extra, block, norm):
    theirs = FeaturePyramidNetwork([6, 10, 12], 8, block, torch.nn.BatchNorm2d if norm else None)
    ours = FPN(LEVELS, 8, extra, batch_norm=norm)
    copied(theirs, ours)
    features = maps([(20, 28), (10, 14), (5, 7)])
    expected = list(theirs(OrderedDict(enumerate(features))).values())
    got = ours(features)
    assert len(got) == len(expected) == len(ours.levels)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("extra", "strides"), [("none", [4, 8, 16]), ("pool", [4, 8, 16, 32]), ("convs", [4, 8, 16, 32, 64])]
)
def test_strides_of_added_maps_are_doubled_whatever_their_size(extra, strides):
    neck = FPN(LEVELS, 8, extra)
    assert [tuple(level) for level in neck.levels] == [(s, 8) for s in strides]
    sizes = [tuple(m.shape[-2:]) for m in neck(maps([(20, 28), (10, 14), (5, 7)]))]
    for coarse, fine in zip(sizes[3:], sizes[2:], strict=False):
        assert coarse == ((fine[0] + 1) // 2, (fine[1] + 1) // 2)


def test_the_pooled_map_holds_every_second_pixel_from_the_first_on():
    neck = FPN(LEVELS, 8, "pool")
    *_, last, pooled = neck(maps([(20, 28), (10, 14), (5, 7)]))
    assert torch.equal(pooled, last[:, :, ::2, ::2])


def test_strides_need_not_be_powers_of_two():
    levels = (Level(7, 6), Level(14, 10), Level(42, 12))
    neck = FPN(levels, 8, "pool")
    assert [level.stride for level in neck.levels] == [7, 14, 42, 84]
    got = neck(maps([(12, 18), (6, 9), (2, 3)]))
    assert [tuple(m.shape[-2:]) for m in got] == [(12, 18), (6, 9), (2, 3), (1, 2)]
    # The middle map without its own side is the coarse one, each pixel three times in both directions.
    for lateral in neck.lateral[:2]:
        torch.nn.init.zeros_(lateral[0].weight)
    neck.output[1] = torch.nn.Identity()
    features = maps([(12, 18), (6, 9), (2, 3)])
    top = neck.lateral[2](features[2])
    torch.testing.assert_close(neck(features)[1], top.repeat_interleave(3, 2).repeat_interleave(3, 3))


def test_a_single_level_is_the_map_itself():
    neck = SingleLevel(LEVELS, 8)
    assert neck.levels == (Level(8, 10),)
    features = maps([(4, 4), (2, 2), (1, 1)])
    assert neck(features)[0] is features[1]
    assert list(neck.parameters()) == []


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SingleLevel(LEVELS, 32), "no map of stride 32; the backbone has 4, 8, 16: choose one of them"),
        (lambda: FPN(LEVELS, 8, "p6"), "extra 'p6' is not possible; choose none, pool, convs, convs_of_input"),
        (lambda: FPN(LEVELS, 0), "0 channels of 3 levels; give at least one of each"),
        (lambda: FPN((), 8), "8 channels of 0 levels"),
    ],
)
def test_what_cannot_be_built_is_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
