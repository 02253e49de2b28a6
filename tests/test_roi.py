"""The second stage, beside torchvision's functions and numbers by hand."""

import pytest
import torch
from torch import nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.models.detection.roi_heads import fastrcnn_loss

from visionapps.detection import roi
from visionapps.detection.base import Limits
from visionapps.detection.coding import BoxCoding
from visionapps.detection.matching import Matcher
from visionapps.detection.roi import BoxHead, ConvBoxHead, RoIHeads, RoIOutput, RoISample
from visionapps.detection.sampling import BalancedSampler
from visionapps.detection.truth import Truth
from visionapps.errors import ConfigError

NONE = torch.zeros(0, 4)


class Told(nn.Module):
    """A pooler that gives what it was told, one row per proposal: heads can be tested without a network."""

    def forward(self, features, proposals, sizes):
        return torch.cat([feature[: len(boxes)] for feature, boxes in zip(features[0], proposals, strict=True)])


class Through(nn.Module):
    """A head that changes nothing."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, blocks):
        return blocks


def heads(classes=2, **settings):
    """Logits and codes are the entries of the blocks."""
    width = classes + 1 + 4 * classes
    made = RoIHeads(Told(), Through(width), classes, **settings)
    for layer, start in ((made.classes, 0), (made.deltas, classes + 1)):
        nn.init.zeros_(layer.weight)
        rows = len(layer.weight)
        with torch.no_grad():
            layer.weight[:, start : start + rows] = torch.eye(rows)
    return made


def blocks(rows):
    """(1, P, width) from [(probabilities of background and each class), (codes)]."""
    return torch.stack([torch.cat((torch.tensor(p).log(), torch.tensor(c, dtype=torch.float32))) for p, c in rows])[
        None
    ]


def test_detections_by_hand_have_a_box_per_class_a_threshold_and_no_duplicates():
    made, still = heads(), [0.0] * 8
    proposals = torch.tensor([[0.0, 0, 20, 20], [1, 0, 21, 20], [50, 50, 70, 70], [60, 10, 80, 30]])
    right = [0.0] * 4 + [10.0, 0, 0, 0]  # class 1 one width to the right
    rows = [([0.1, 0.8, 0.1], still), ([0.3, 0.7, 1e-6], still), ([0.5, 0.1, 0.4], right), ([0.9, 0.06, 0.04], still)]
    (found,) = made.detect([blocks(rows)], [proposals], [(100, 75)], Limits(0.05, 0.5))
    assert found.labels.tolist() == [0, 1, 1, 0, 0]
    assert found.scores.tolist() == pytest.approx([0.8, 0.4, 0.1, 0.1, 0.06])
    assert found.boxes.tolist() == [
        [0, 0, 20, 20],  # the second proposal is the same object
        [70, 50, 75, 70],  # moved and cut off at the edge
        [0, 0, 20, 20],
        [50, 50, 70, 70],
        [60, 10, 75, 30],
    ]


def test_a_score_equal_to_the_limit_is_no_detection_and_neither_is_a_box_beyond_the_image():
    made = heads()
    far = [0.0] * 4 + [100.0, 0, 0, 0]
    rows = [([0.5, 0.5, 1e-9], [0.0] * 8), ([0.1, 1e-9, 0.9], far)]
    (found,) = made.detect([blocks(rows)], [torch.tensor([[0.0, 0, 9, 9]] * 2)], [(50, 50)], Limits(0.5, 0.5))
    assert len(found.scores) == 0


def test_regions_in_portions_give_the_same_detections(monkeypatch):
    made, generator = heads(), torch.Generator().manual_seed(0)
    proposals = torch.rand(50, 4, generator=generator) * 20
    proposals[:, 2:] += proposals[:, :2] + 1
    told = torch.randn(1, 50, 11, generator=generator)

    class Slices(nn.Module):
        """Which proposals these are is known by their first number."""

        def forward(self, features, wanted, sizes):
            place = [int((proposals[:, 0] == box[0]).nonzero()[0]) for box in wanted[0]]
            return features[0][0][place]

    made.pooler = Slices()
    (whole,) = made.detect([told], [proposals], [(60, 60)], Limits(0.1, 0.5))
    monkeypatch.setattr(roi, "_AT_ONCE", 7)
    (parts,) = made.detect([told], [proposals], [(60, 60)], Limits(0.1, 0.5))
    assert len(whole.scores) > 10
    assert all(torch.allclose(a, b) for a, b in zip(whole[:3], parts[:3], strict=True))


def test_losses_are_torchvisions():
    generator = torch.Generator().manual_seed(0)
    logits, codes = torch.randn(12, 4, generator=generator), torch.randn(12, 3, 4, generator=generator)
    boxes = torch.rand(12, 4, generator=generator) * 50
    boxes[:, 2:] += boxes[:, :2] + 5
    truths = [
        Truth(torch.tensor([[0.0, 0, 30, 40], [5, 5, 20, 60]]), torch.tensor([2, 0]), NONE),
        Truth(torch.tensor([[9.0, 9, 30, 40]]), torch.tensor([1]), NONE),
    ]
    samples = [RoISample(boxes[:7], 3, torch.tensor([1, 0, 0])), RoISample(boxes[7:], 2, torch.tensor([0, 0]))]
    made = RoIHeads(Told(), Through(8), 3)
    got = made.losses(RoIOutput(logits, codes), samples, truths)
    labels = [torch.tensor([1, 3, 3, 0, 0, 0, 0]), torch.tensor([2, 2, 0, 0, 0])]
    targets = []
    for sample, truth in zip(samples, truths, strict=True):
        matched = torch.cat((sample.matched, sample.matched.new_zeros(len(sample.boxes) - sample.found)))
        targets.append(BoxCoding((10.0, 10.0, 5.0, 5.0)).encode(truth.boxes[matched], sample.boxes))
    theirs = fastrcnn_loss(logits, torch.cat((torch.zeros(12, 1, 4), codes), 1).flatten(1), labels, targets)
    assert float(got["roi_class"]) == pytest.approx(float(theirs[0]), rel=1e-5)
    assert float(got["roi_box"]) == pytest.approx(float(theirs[1]), rel=1e-5)


def test_samples_hold_annotated_boxes_objects_first_and_what_each_of_them_matches():
    made = heads(sampler=BalancedSampler(8, 0.5), matcher=Matcher(0.5, (0.1, 0.5)))
    truth = Truth(torch.tensor([[0.0, 0, 10, 10], [50, 50, 90, 90]]), torch.tensor([1, 0]), NONE)
    proposals = torch.tensor([[0.0, 0, 10, 8], [50, 50, 70, 90], [0, 0, 10, 4], [200, 200, 210, 210]])
    (sample,) = made.sample([proposals], [truth])
    assert sample.found == 4  # two proposals (0.8 and 0.5) and the two annotated boxes
    pairs = {(tuple(box), int(m)) for box, m in zip(sample.boxes[:4].tolist(), sample.matched, strict=True)}
    assert pairs == {((0, 0, 10, 8), 0), ((50, 50, 70, 90), 1), ((0, 0, 10, 10), 0), ((50, 50, 90, 90), 1)}
    assert sample.boxes[4:].tolist() == [[0, 0, 10, 4]]  # 0.4; what overlaps nothing is no background in the paper


def test_proposals_inside_ignored_regions_are_not_taught_to_be_background():
    made = heads(sampler=BalancedSampler(8, 0.5))
    truth = Truth(NONE, torch.zeros(0, dtype=torch.int64), torch.tensor([[0.0, 0, 50, 50]]))
    (sample,) = made.sample([torch.tensor([[0.0, 0, 10, 10], [100, 100, 110, 110]])], [truth])
    assert sample.boxes.tolist() == [[100, 100, 110, 110]]
    assert sample.found == 0


def test_the_box_head_is_torchvisions():
    ours, theirs = BoxHead(5, 3, 8), TwoMLPHead(5 * 9, 8)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 5, 3, 3)
    assert torch.equal(ours(x), theirs(x))
    assert ours.width == 8


def test_the_convolutional_box_head_is_torchvisions():
    ours = ConvBoxHead(5, 3, convs=2, conv_width=6, hidden=8).eval()
    theirs = FastRCNNConvFCHead((5, 3, 3), [6, 6], [8], nn.BatchNorm2d).eval()
    state = dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True))
    theirs.load_state_dict(state)
    x = torch.randn(4, 5, 3, 3)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)


def test_heads_that_do_not_say_their_width_are_refused():
    with pytest.raises(ConfigError, match=r"the head \(Identity\) has width None, there are 2 classes"):
        RoIHeads(Told(), nn.Identity(), 2)
    with pytest.raises(ConfigError, match="there are 0 classes"):
        RoIHeads(Told(), Through(3), 0)
