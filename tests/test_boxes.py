"""Arithmetic of boxes, against loops that anyone can follow and against torchvision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms, box_iou

from visionapps.boxes import _joined, _kept, area, clip, iof, iou, suppress

CORNER = st.integers(-20, 60)


@st.composite
def boxes(draw, most=8):
    rows = draw(st.lists(st.tuples(CORNER, CORNER, st.integers(1, 40), st.integers(1, 40)), max_size=most))
    return torch.tensor([(x, y, x + w, y + h) for x, y, w, h in rows], dtype=torch.float32).reshape(-1, 4)


def pixels(box):
    """The whole pixels of a box, as a set."""
    x0, y0, x1, y1 = (int(v) for v in box)
    return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}


@settings(max_examples=40, deadline=None)
@given(boxes(4), boxes(4))
def test_overlaps_are_those_of_sets_of_pixels(a, b):
    both, inside = iou(a, b), iof(a, b)
    assert both.shape == inside.shape == (len(a), len(b))
    for i, one in enumerate(a):
        for j, other in enumerate(b):
            p, q = pixels(one), pixels(other)
            assert float(both[i, j]) == pytest.approx(len(p & q) / len(p | q), abs=1e-6)
            assert float(inside[i, j]) == pytest.approx(len(p & q) / len(p), abs=1e-6)


def test_iou_is_torchvisions_for_real_numbers():
    generator = torch.Generator().manual_seed(0)
    corner, side = torch.rand(2, 300, 2, generator=generator) * 500
    a = torch.cat((corner, corner + side + 0.01), 1)
    assert torch.allclose(iou(a, a.flip(0)), box_iou(a, a.flip(0)), atol=1e-6)


def test_boxes_without_an_area_overlap_nothing_instead_of_being_undefined():
    empty, full = torch.tensor([[5.0, 5, 5, 9], [9, 9, 2, 2]]), torch.tensor([[0.0, 0, 10, 10]])
    for each in (iou(empty, empty), iof(empty, empty), iou(empty, full), iof(empty, full), area(empty)):
        assert not each.any()
    assert box_iou(empty[:1], empty[:1]).isnan().all()  # torchvision's


def test_areas_and_overlaps_are_float32_whatever_comes_in_and_under_an_autocast():
    half = torch.tensor([[0.0, 0, 300, 300], [100, 100, 400, 400]], dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert iou(half, half).dtype == iof(half, half).dtype == area(half).dtype == torch.float32
        assert float(iou(half, half)[0, 1]) == pytest.approx(40_000 / 140_000, abs=1e-6)


def test_clipping_keeps_what_lies_inside():
    given = torch.tensor([[[-5.0, -5, 3, 4], [2, 3, 30, 40]], [[50, 50, 60, 60], [0, 0, 20, 10]]])
    expected = [[[0, 0, 3, 4], [2, 3, 20, 10]], [[20, 10, 20, 10], [0, 0, 20, 10]]]
    assert clip(given, (10, 20)).tolist() == expected


def plainly(boxes, scores, labels, most):
    """Suppression as the words say it."""
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: (-float(scores[i]), i)):
        if all(labels[i] != labels[j] or float(iou(boxes[i : i + 1], boxes[j : j + 1])) <= most for j in kept):
            kept.append(i)
    return kept


@settings(max_examples=60, deadline=None)
@given(boxes(12), st.data())
def test_suppression_is_what_the_words_say(given_boxes, data):
    count = len(given_boxes)
    scores = torch.tensor(data.draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))) / 5
    labels = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)), dtype=torch.int64)
    most = data.draw(st.sampled_from([0.1, 0.3, 0.5, 0.7]))
    expected = plainly(given_boxes, scores, labels, most)
    assert suppress(given_boxes, scores, labels, most).tolist() == expected
    for together in (0, 3, 100) if count else ():  # the ways of CPUs and GPUs
        assert sorted(_kept(given_boxes, scores, labels, most, together).tolist()) == sorted(expected)


def test_suppression_of_many_boxes_and_classes_is_torchvisions():
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(3000, 2, generator=generator) * 1000
    many = torch.cat((corner, corner + 20 + 100 * torch.rand(3000, 2, generator=generator)), 1)
    scores = torch.rand(3000, generator=generator)
    labels = torch.randint(0, 80, (3000,), generator=generator)
    expected = batched_nms(many, scores, labels, 0.5)
    assert torch.equal(suppress(many, scores, labels, 0.5), expected)
    for together in (0, 200, 10_000):
        assert torch.equal(_kept(many, scores, labels, 0.5, together).sort().values, expected.sort().values)


def test_moving_classes_apart_loses_no_pixel_where_float32_would():
    # Two classes of boxes far out: at 80 * 30,000 px a float32 has a quarter of a pixel left.
    pair = torch.tensor([[29_990.0, 0, 29_990.3, 10], [29_990.2, 0, 29_990.5, 10], [0, 0, 30_000, 30_000]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([79, 79, 0])
    assert iou(pair[:1], pair[1:2]) < 0.3
    for together in (0, 10):
        assert sorted(_kept(pair, scores, labels, 0.3, together).tolist()) == [0, 1, 2]


def test_labels_are_put_together_up_to_a_number_of_boxes():
    assert _joined([3, 4, 5, 20, 1, 1], 9) == [7, 5, 20, 2]
    assert _joined([3, 4, 5], 0) == [3, 4, 5]


def test_nothing_to_suppress_is_nothing():
    none = suppress(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5)
    assert none.shape == (0,)
    assert none.dtype == torch.int64
