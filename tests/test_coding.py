"""Box coding, against torchvision's and against itself backwards."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder

from visionapps.detection.coding import BoxCoding
from visionapps.errors import ConfigError

WEIGHTS = (10.0, 9.0, 5.0, 4.0)


def some(count, seed):
    generator = torch.Generator().manual_seed(seed)
    corner, side = torch.rand(2, count, 2, generator=generator) * 100
    return torch.cat((corner, corner + side + 1), 1)


def test_codes_are_torchvisions_both_ways():
    ours, theirs = BoxCoding(WEIGHTS), BoxCoder(WEIGHTS)
    boxes, references = some(50, 0), some(50, 1)
    codes = ours.encode(boxes, references)
    assert torch.allclose(codes, theirs.encode_single(boxes, references), atol=1e-5)
    wild = torch.randn(50, 3, 4, generator=torch.Generator().manual_seed(2)) * 30  # some beyond the clamp
    expected = theirs.decode_single(wild.flatten(1), references).unflatten(1, (3, 4))
    assert torch.allclose(ours.decode(wild, references[:, None]), expected, rtol=1e-5, atol=1e-3)


def test_by_hand_a_box_twice_as_wide_and_one_width_to_the_right():
    codes = BoxCoding((1, 1, 1, 1)).encode(torch.tensor([[5.0, 0, 25, 10]]), torch.tensor([[0.0, 0, 10, 10]]))
    assert codes.tolist() == [[1.0, 0.0, pytest.approx(math.log(2)), 0.0]]


@settings(max_examples=50, deadline=None)
@given(*[st.tuples(st.floats(0, 500), st.floats(0, 500), st.floats(1, 300), st.floats(6, 300))] * 2)
def test_decoding_undoes_encoding(one, other):
    a, b = (torch.tensor([[x, y, x + w, y + h]]) for x, y, w, h in (one, other))
    ratio = (a[:, 2:] - a[:, :2]) / (b[:, 2:] - b[:, :2])
    coding = BoxCoding(WEIGHTS)
    if float(ratio.max()) < 62:
        assert torch.allclose(coding.decode(coding.encode(a, b), b), a, atol=1e-2)


def test_codes_that_would_run_away_are_held():
    box = BoxCoding().decode(torch.tensor([[0.0, 0, 1000, 1000]]), torch.tensor([[0.0, 0, 16, 16]]))
    assert torch.allclose(box[:, 2:] - box[:, :2], torch.tensor([1000.0, 1000]))


def test_coding_is_float32_whatever_comes_in():
    half = some(3, 0).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert BoxCoding().encode(half, half).dtype == BoxCoding().decode(half, half).dtype == torch.float32


def test_weights_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="must be four positive numbers"):
        BoxCoding((1, 1, 0, 1))
    with pytest.raises(ConfigError, match="must be four positive numbers"):
        BoxCoding((1, 1, 1))
