"""The region proposal network, beside torchvision's on the same outputs of the head."""

import pytest
import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from visionapps.boxes import iou
from visionapps.detection.anchors import Anchors
from visionapps.detection.matching import Matcher
from visionapps.detection.rpn import RPN, ProposalLimits
from visionapps.detection.sampling import BalancedSampler
from visionapps.detection.truth import Truth
from visionapps.errors import ConfigError
from visionapps.structures import Level

SIZES = ((16, 24), (40, 60))
LEVELS = (Level(8, 5), Level(16, 5))
MAPS = ((16, 24), (8, 12))  # of images of 128 x 192


def network(**settings):
    torch.manual_seed(0)
    rpn = RPN(LEVELS, Anchors((8, 16), SIZES), **settings)
    for layer in (rpn.objectness, rpn.deltas):
        nn.init.normal_(layer.weight, std=0.5)
    return rpn


def theirs(rpn, before=(2000, 1000), after=(2000, 1000)):
    head = RPNHead(5, rpn.anchors.per_position)
    for one, other in (
        (head.conv[0][0], rpn.convs[0]),
        (head.cls_logits, rpn.objectness),
        (head.bbox_pred, rpn.deltas),
    ):
        one.load_state_dict(other.state_dict())
    names = ("training", "testing")
    return RegionProposalNetwork(
        AnchorGenerator(SIZES, ((0.5, 1.0, 2.0),) * 2),
        head,
        0.7,
        0.3,
        10**6,
        0.5,
        dict(zip(names, before, strict=True)),
        dict(zip(names, after, strict=True)),
        0.7,
    )


def features(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 5, *size, generator=generator) for size in MAPS]


def no_truth():
    return Truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))


@pytest.mark.parametrize("training", [True, False])
def test_proposals_are_torchvisions_while_training_and_in_the_field(training):
    before, after = (150, 90), (120, 40)
    rpn = network(limits=ProposalLimits(before, after))
    sizes, maps = [(128, 192), (100, 150)], features()
    twin = theirs(rpn, before, after).train(training)
    targets = [{"boxes": torch.tensor([[5.0, 5, 50, 50]])}] * 2
    expected, _ = twin(ImageList(torch.zeros(2, 3, 128, 192), sizes), {str(i): m for i, m in enumerate(maps)}, targets)
    got = rpn.propose(rpn(maps), sizes, training=training)
    assert [len(each) for each in got] == [len(each) for each in expected]
    assert max(len(each) for each in got) == (after[0] if training else after[1])
    for one, other in zip(got, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-3)
        assert not one.requires_grad


def test_proposals_lie_in_their_image_and_none_is_smaller_than_asked():
    rpn, sizes = network(limits=ProposalLimits(least_side=16)), [(128, 192), (40, 61)]
    for boxes, (h, w) in zip(rpn.propose(rpn(features()), sizes, training=False), sizes, strict=True):
        assert len(boxes) > 0
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([w, h, w, h])).all()
        assert (boxes[:, 2:] - boxes[:, :2]).min() >= 16


def test_no_two_proposals_of_one_level_overlap_more_than_allowed():
    torch.manual_seed(0)
    rpn = RPN((Level(8, 5),), Anchors((8,), ((16, 24),)), limits=ProposalLimits(nms=0.4))
    (boxes, _) = rpn.propose(rpn(features()[:1]), [(128, 192)] * 2, training=False)
    overlap = iou(boxes, boxes).fill_diagonal_(0)
    assert len(boxes) > 50
    assert overlap.max() <= 0.4 + 1e-6


def test_an_image_may_be_too_small_for_any_proposal():
    rpn = network(limits=ProposalLimits(least_side=16))
    found = rpn.propose(rpn(features()), [(128, 192), (8, 8)], training=False)
    assert len(found[0]) > 0
    assert found[1].shape == (0, 4)


def test_the_loss_by_hand_counts_what_was_drawn_in_the_whole_batch():
    rpn = RPN((Level(16, 5),), Anchors((16,), ((32,),), (1.0,)), sampler=BalancedSampler(4, 0.5))
    for layer in (rpn.objectness, rpn.deltas):
        nn.init.zeros_(layer.weight)
    output = rpn([torch.zeros(2, 5, 4, 4)])
    box = torch.tensor([[0.0, 0, 32, 32]])  # the very anchor of row 1, column 1
    truth = Truth(box, torch.tensor([0]), box[:0])
    terms = rpn.losses(output, [truth, no_truth()], [(64, 64)] * 2)
    # One object and three of background, then four of background: all with logit 0.
    assert float(terms["rpn_objectness"].detach()) == pytest.approx(0.693147, abs=1e-5)
    assert float(terms["rpn_box"].detach()) == 0  # nothing to correct
    moved = Truth(box + torch.tensor([4.0, 0, 4, 0]), torch.tensor([0]), box[:0])
    terms = rpn.losses(output, [moved, no_truth()], [(64, 64)] * 2)
    shift = 4 / 32  # in widths; beyond beta = 1/9, so linear
    assert float(terms["rpn_box"].detach()) == pytest.approx((shift - 0.5 / 9) / 8, abs=1e-6)


def test_what_lies_in_ignored_regions_is_no_background():
    rpn = RPN((Level(16, 5),), Anchors((16,), ((16,),), (1.0,)))
    output = rpn([torch.randn(1, 5, 4, 4)])
    whole = torch.tensor([[-100.0, -100, 200, 200]])
    ignored = rpn.losses(output, [no_truth()._replace(ignored=whole)], [(64, 64)])
    assert [float(value.detach()) for value in ignored.values()] == [0, 0]
    assert float(rpn.losses(output, [no_truth()], [(64, 64)])["rpn_objectness"].detach()) > 0


def test_anchors_beyond_the_border_count_only_where_the_paper_is_not_followed():
    counts = []
    for border in (None, 0.0, 8.0):
        rpn = RPN((Level(16, 5),), Anchors((16,), ((16,),), (1.0,)), border=border, sampler=BalancedSampler(99, 0.5))
        anchors = rpn.anchors.boxes([(4, 4)], torch.device("cpu"))[0]
        counts.append(int((rpn._states(anchors, no_truth(), (64, 64)) == 0).sum()))
    assert counts == [16, 9, 16]  # row 0 and column 0 reach 8 px beyond


def test_gradients_reach_the_head_and_not_through_the_proposals():
    rpn, maps = network(), [m.requires_grad_() for m in features()]
    output = rpn(maps)
    truth = Truth(torch.tensor([[10.0, 10, 50, 40]]), torch.tensor([1]), torch.zeros(0, 4))
    sum(rpn.losses(output, [truth, no_truth()], [(128, 192)] * 2).values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in rpn.parameters())


def test_more_convolutions_and_another_width_make_a_deeper_head():
    rpn = RPN(LEVELS, Anchors((8, 16), SIZES), convs=2, hidden=7)
    assert [tuple(conv.weight.shape) for conv in rpn.convs] == [(7, 5, 3, 3), (7, 7, 3, 3)]
    assert rpn(features()).logits.shape == (2, (16 * 24 + 8 * 12) * 6)
    bare = RPN(LEVELS, Anchors((8, 16), SIZES), convs=0)
    assert bare.objectness.weight.shape == (6, 5, 1, 1)


def test_levels_and_anchors_that_disagree_are_refused():
    with pytest.raises(ConfigError, match=r"anchors of strides \(8, 16\) on levels .* both need the same strides"):
        RPN((Level(8, 5), Level(12, 5)), Anchors((8, 16), SIZES))
    with pytest.raises(ConfigError, match="the levels one width"):
        RPN((Level(8, 5), Level(16, 6)), Anchors((8, 16), SIZES))


@pytest.mark.parametrize("settings", [{"before": (0, 5)}, {"after": (5,)}, {"nms": 0.0}, {"least_side": 0}])
def test_limits_that_cannot_be_are_refused(settings):
    with pytest.raises(ConfigError, match="must be two counts each"):
        ProposalLimits(**settings)


def test_the_matcher_can_be_the_callers():
    rpn = network(matcher=Matcher(0.5, (0.1, 0.4)))
    assert rpn.matcher.positive == 0.5


def test_there_is_room_for_as_many_proposals_as_detections_are_wanted():
    rpn = network(limits=ProposalLimits(before=(3, 3), after=(4, 4), nms=1.0))
    sizes = [(128, 192)] * 2
    assert [len(p) for p in rpn.propose(rpn(features()), sizes, training=False)] == [4, 4]
    assert [len(p) for p in rpn.propose(rpn(features()), sizes, training=False, room=50)] == [50, 50]
