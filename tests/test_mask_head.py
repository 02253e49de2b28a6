"""Masks: cropped for training and pasted into images as torchvision does, and by hand."""

import pytest
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

from visionapps.boxes import Detections, clip
from visionapps.detection.mask_head import MaskHead, crop_masks, paste_masks
from visionapps.detection.pooling import RoIPooler
from visionapps.detection.roi import RoISample
from visionapps.detection.truth import Truth

NONE = torch.zeros(0, 4)


def some(count, seed=0, low=-10.0, high=70.0):
    generator = torch.Generator().manual_seed(seed)
    corner, side = torch.rand(2, count, 2, generator=generator)
    return torch.cat((low + corner * (high - low), low + corner * (high - low) + side * 40), 1)


def test_pasted_masks_are_torchvisions_also_where_boxes_leave_the_image():
    edges = torch.tensor([[0.0, 0, 60, 50], [59, 49, 60, 50], [3, 3, 3, 3], [0, 40, 60, 50]])
    boxes = torch.cat((clip(some(40, low=0.0, high=45), (50, 60)), edges))  # a border of one small pixel reaches beyond
    masks = torch.rand(len(boxes), 28, 28, generator=torch.Generator().manual_seed(1))
    theirs = paste_masks_in_image(masks[:, None], boxes, (50, 60))[:, 0] >= 0.5
    ours = paste_masks(masks, boxes, (50, 60))
    assert torch.equal(ours, theirs)
    assert ours.any()


def test_a_mask_wholly_outside_is_pasted_nowhere():
    for box in ([-30.0, -30, -10, -10], [100.0, 0, 120, 20]):
        assert not paste_masks(torch.ones(1, 28, 28), torch.tensor([box]), (50, 60)).any()


def test_a_full_mask_fills_its_box_and_nothing_else():
    (pasted,) = paste_masks(torch.ones(1, 28, 28), torch.tensor([[10.0, 5, 38, 33]]), (50, 60))
    rows, cols = pasted.nonzero().aminmax(dim=0)[0].tolist(), pasted.nonzero().aminmax(dim=0)[1].tolist()
    assert abs(rows[0] - 5) <= 1
    assert abs(rows[1] - 10) <= 1
    assert abs(cols[0] - 32) <= 1
    assert abs(cols[1] - 37) <= 1
    assert pasted[6:32, 11:37].all()


def test_no_masks_are_pasted_into_no_planes():
    assert paste_masks(torch.zeros(0, 28, 28), NONE, (5, 6)).shape == (0, 5, 6)


def test_cropped_masks_are_torchvisions():
    masks = (torch.rand(4, 50, 60, generator=torch.Generator().manual_seed(0)) > 0.5).to(torch.uint8)
    boxes, matched = some(9, 3, 0, 30), torch.tensor([3, 3, 0, 1, 0, 3, 3, 1, 0])  # object 2 is never asked for
    truth = Truth(NONE, torch.zeros(0, dtype=torch.int64), NONE, masks)
    expected = project_masks_on_boxes(masks, boxes, matched, 28)
    assert torch.allclose(crop_masks(truth, matched, boxes, 28), expected, atol=1e-6)


def test_the_loss_looks_at_the_mask_of_the_objects_own_class_alone():
    head = MaskHead(RoIPooler((4,), 14), 3, 2, convs=1, hidden=4)
    features = [torch.randn(1, 3, 10, 10)]
    masks = torch.ones(1, 40, 40, dtype=torch.uint8)
    box = torch.tensor([[5.0, 5, 25, 25]])
    truth = Truth(box, torch.tensor([1]), NONE, masks)
    sample = RoISample(torch.cat((box, box + 3)), 1, torch.tensor([0]))
    with torch.no_grad():
        head.masks.weight.zero_()
        head.masks.bias.copy_(torch.tensor([-50.0, 50.0]))  # class 0: nothing; class 1: everything
    assert float(head.losses(features, [sample], [truth], [(40, 40)])["mask"].detach()) == pytest.approx(0, abs=1e-6)
    other = truth._replace(labels=torch.tensor([0]))
    assert float(head.losses(features, [sample], [other], [(40, 40)])["mask"].detach()) == pytest.approx(50)


def test_without_objects_the_loss_is_nothing_and_has_gradients():
    head = MaskHead(RoIPooler((4,), 14), 3, 2, hidden=4)
    truth = Truth(NONE, torch.zeros(0, dtype=torch.int64), NONE, torch.zeros(0, 40, 40, dtype=torch.uint8))
    sample = RoISample(torch.tensor([[5.0, 5, 25, 25]]), 0, torch.zeros(0, dtype=torch.int64))
    loss = head.losses([torch.randn(1, 3, 10, 10)], [sample], [truth], [(40, 40)])["mask"]
    assert float(loss.detach()) == 0
    loss.backward()
    assert all(p.grad is not None for p in head.parameters())


def test_masks_are_those_of_the_class_that_was_found():
    head = MaskHead(RoIPooler((4,), 14), 3, 2, hidden=4)
    with torch.no_grad():
        head.masks.weight.zero_()
        head.masks.bias.copy_(torch.tensor([-50.0, 50.0]))
        boxes = torch.tensor([[5.0, 5, 25, 25]] * 2)
        found = Detections(boxes, torch.tensor([1, 0]), torch.tensor([0.9, 0.8]))
        (complete,) = head.detect([torch.randn(1, 3, 10, 10)], [found], [(37, 39)])
    assert complete.masks.shape == (2, 37, 39)
    assert complete.masks[0].any()
    assert not complete.masks[1].any()
    assert torch.equal(complete.scores, found.scores)
