from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from visionapps.errors import ConfigError
from visionapps.networks.cifar_resnet import cifar_resnet
from visionapps.networks.residual import (
    Design,
    Ordering,
    Residual,
    Shortcut,
    Survival,
    ZeroPadded,
    expected_depth,
    linear_decay,
    residual_blocks,
)

ORDERINGS = get_args(Ordering)


def stir(module: nn.Module) -> nn.Module:
    """Statistics and scales of normalisations that a test would notice if they were left out."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return module


def sequence(module: nn.Module) -> str:
    """Layers as in figure 4: b n r for convolution (weight), normalisation and ReLU."""
    names = {nn.Conv2d: "w", nn.BatchNorm2d: "n", nn.ReLU: "r"}
    return "".join(names[type(layer)] for layer in module.modules() if type(layer) in names)


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_an_original_block_with_projection_is_torchvisions_with_its_weights(bottleneck, stride):
    torch.manual_seed(0)
    width, channels = 4, 6
    out = width * (4 if bottleneck else 1)
    projection = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
    reference = stir((Bottleneck if bottleneck else BasicBlock)(channels, width, stride, projection)).eval()
    block = Residual(channels, width, stride=stride, design=Design(shortcut="B", bottleneck=bottleneck)).eval()
    ours = [layer for layer in block.body if not isinstance(layer, nn.ReLU)] + list(block.shortcut)
    theirs = [layer for layer in reference.modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
    for mine, other in zip(ours, theirs, strict=True):
        mine.load_state_dict(other.state_dict())
    image = torch.randn(2, channels, 9, 7)
    torch.testing.assert_close(block(image), reference(image))


def test_the_five_orderings_stand_as_figure_4_draws_them():
    drawn = {
        "original": ("wnrwn", "r"),
        "bn_after_add": ("wnrw", "nr"),
        "relu_before_add": ("wnrwnr", ""),
        "relu_preact": ("rwnrwn", ""),
        "full_preact": ("nrwnrw", ""),
    }
    for ordering, (body, after) in drawn.items():
        block = Residual(4, 4, design=Design(ordering))
        assert (sequence(block.body), sequence(block.after)) == (body, after)
        assert isinstance(block.shortcut, nn.Identity)


def test_a_bottleneck_strides_in_its_3x3_or_in_its_first_1x1():
    strides = {
        kind: [layer.stride[0] for layer in block.body if isinstance(layer, nn.Conv2d)]
        for kind in ("3x3", "1x1")
        for block in [Residual(4, 4, stride=2, design=Design(shortcut="B", bottleneck=True, strided=kind))]
    }
    assert strides == {"3x3": [1, 2, 1], "1x1": [2, 1, 1]}


def test_with_relu_before_the_sum_no_value_ever_falls_along_the_identity():
    torch.manual_seed(0)
    image = torch.randn(2, 4, 5, 5)
    rises = {o: bool((stir(Residual(4, 4, design=Design(o))).eval()(image) >= image).all()) for o in ORDERINGS}
    assert rises["relu_before_add"]
    assert not rises["full_preact"]  # there the sum goes both ways


@pytest.mark.parametrize("ordering", ["full_preact", "relu_preact", "relu_before_add"])
def test_what_comes_in_passes_pre_activated_blocks_with_a_jacobian_of_identity_plus_body(ordering):
    torch.manual_seed(0)
    block = stir(Residual(2, 2, design=Design(ordering))).double().eval()
    image = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    flat = image.numel()
    whole = torch.autograd.functional.jacobian(block, image).reshape(flat, flat)
    body = torch.autograd.functional.jacobian(block.body, image).reshape(flat, flat)
    torch.testing.assert_close(whole, torch.eye(flat, dtype=torch.float64) + body)
    silent = torch.autograd.functional.jacobian(_muted(block), image).reshape(flat, flat)
    assert torch.equal(silent, torch.eye(flat, dtype=torch.float64))


def test_an_original_block_cuts_negative_values_even_when_its_body_says_nothing():
    block = _muted(Residual(2, 2).eval())
    image = torch.tensor([-1.0, 2.0]).reshape(1, 2, 1, 1)
    assert block(image).flatten().tolist() == [0, 2]


def _muted(block: Residual) -> Residual:
    for parameter in block.body.parameters():
        nn.init.zeros_(parameter)
    for layer in block.body:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.zeros_(layer.running_mean)
    return block


@pytest.mark.parametrize("ordering", ORDERINGS)
@pytest.mark.parametrize("shortcut", get_args(Shortcut))
def test_every_ordering_goes_with_every_shortcut_and_halves_odd_sizes_upwards(ordering, shortcut):
    block = Residual(4, 6, stride=2, design=Design(ordering, shortcut, bottleneck=True))
    assert block(torch.randn(2, 4, 7, 5)).shape == (2, 24, 4, 3)
    counted = sum(p.numel() for p in block.shortcut.parameters()) if block.shortcut else 0
    norm = 0 if ordering == "full_preact" else 2 * 24
    assert counted == {"A": 0, "none": 0, "B": 4 * 24 + norm, "C": 4 * 24 + norm}[shortcut]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3), st.sampled_from("ABC"), st.booleans())
@settings(max_examples=60, deadline=None)
def test_body_and_shortcut_agree_on_any_size(height, width, stride, shortcut, bottleneck):
    with torch.device("meta"):
        block = Residual(4, 4, stride=stride, design=Design(shortcut=shortcut, bottleneck=bottleneck)).eval()
        out = block(torch.zeros(1, 4, height, width))
    assert out.shape == (1, 16 if bottleneck else 4, -(-height // stride), -(-width // stride))


def test_shortcut_c_projects_where_b_keeps_the_identity():
    kinds = {s: type(Residual(4, 4, design=Design(shortcut=s)).shortcut) for s in ("A", "B", "C")}
    assert kinds == {"A": nn.Identity, "B": nn.Identity, "C": nn.Sequential}


def test_shortcut_a_takes_every_second_pixel_and_adds_channels_of_zeros():
    image = torch.arange(10.0).reshape(1, 1, 2, 5)
    padded = ZeroPadded(1, 3, 2)(image)
    assert padded.tolist() == [[[[0, 2, 4]], [[0, 0, 0]], [[0, 0, 0]]]]


def test_a_projecting_pre_activated_block_activates_once_for_both_ways_and_never_twice():
    block = Residual(4, 6, stride=2, design=Design("full_preact", "B"))
    assert (sequence(block.before), sequence(block.body), sequence(block.shortcut)) == ("nr", "wnrw", "w")
    first = Residual(4, 6, design=Design("full_preact", "B"), activated=True)
    assert (sequence(first.before), sequence(first.body)) == ("", "wnrw")
    raw = Residual(4, 6, stride=2, design=Design("full_preact", "A"))
    assert (sequence(raw.before), sequence(raw.body)) == ("", "nrwnrw")


def test_dropout_stands_between_the_activation_and_the_second_convolution():
    kinds = [type(layer).__name__ for layer in Residual(4, 4, design=Design("full_preact", dropout=0.3)).body]
    assert kinds == ["BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU", "Dropout", "Conv2d"]


class Counting(nn.Module):
    """A body that knows how often it was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, image):
        self.calls += 1
        return self.scale * image


def counting(survival: Survival) -> Residual:
    block = Residual(2, 2, design=Design("full_preact"), survival=survival)
    block.body = Counting()
    return block


def test_a_skipped_body_is_not_computed_and_gets_no_gradient():
    torch.manual_seed(0)
    block = counting(Survival(0.5))
    image = torch.ones(4, 2, 3, 3, requires_grad=True)
    for _ in range(400):
        before = block.body.calls
        block.body.scale.grad = None
        out = block(image)
        computed = block.body.calls - before
        assert out.unique().tolist() == [4.0 if computed else 1.0]  # one draw for the whole batch
        out.sum().backward()
        assert (block.body.scale.grad is not None) == bool(computed)
    assert 160 <= block.body.calls <= 240  # 200 +- 4 standard deviations


def test_the_expectation_is_restored_in_evaluation_as_the_paper_does_or_in_training():
    image = torch.ones(1, 2, 1, 1)
    paper, modern = counting(Survival(0.25)), counting(Survival(0.25, "training"))
    assert paper.eval()(image).unique().tolist() == [1 + 0.25 * 3]
    assert modern.eval()(image).unique().tolist() == [1 + 3]
    torch.manual_seed(0)
    for block, mean in ((paper, 1 + 0.25 * 3), (modern, 1 + 3)):
        block.train()
        drawn = torch.stack([block(image).mean() for _ in range(1000)]).detach()
        assert abs(float(drawn.mean()) - mean) < 4 * float(drawn.std()) / 1000**0.5
    values = {round(float(modern(image).mean().detach()), 4) for _ in range(40)}
    assert values == {1.0, 1 + 3 / 0.25}


def test_half_of_the_deepest_block_leaves_40_and_a_quarter_of_54_blocks():
    with torch.device("meta"):
        network = cifar_resnet(110, survival=0.5)
    chances = [block.survival.probability for block in residual_blocks(network)]
    assert len(chances) == 54
    assert chances[0] == pytest.approx(1 - 0.5 / 54)
    assert chances[-1] == 0.5
    assert expected_depth(network) == pytest.approx(40.25, abs=1e-9)
    assert sum(linear_decay(9, 0.5)) == pytest.approx((3 * 9 - 1) / 4)
    assert linear_decay(3, 1.0) == [1, 1, 1]


def test_a_network_of_random_depth_predicts_without_drawing_and_trains_with_it():
    torch.manual_seed(0)
    network = cifar_resnet(20, survival=0.2).eval()
    image = torch.randn(2, 3, 8, 8)
    state = torch.random.get_rng_state()
    assert torch.equal(network(image), network(image))
    assert torch.equal(torch.random.get_rng_state(), state)
    network.train()
    F.cross_entropy(network(image), torch.tensor([0, 1])).backward()
    missing = [block for block in residual_blocks(network) if block.body[0].weight.grad is None]
    assert 0 < len(missing) < 9


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Design("pre"), "ordering 'pre' is unknown; choose one of original, bn_after_add, relu_before_add"),
        (lambda: Design(shortcut="D"), "shortcut 'D' is unknown; choose one of A, B, C, none"),
        (lambda: Design(strided="5x5"), "strided '5x5' is unknown; choose one of 3x3, 1x1"),
        (lambda: Design(dropout=1.0), "dropout 1.0 is no probability in [0, 1)"),
        (lambda: Survival(0.0), "survival 0.0 is no probability in (0, 1]"),
        (lambda: Survival(0.5, "never"), "rescale 'never' is unknown; choose evaluation or training"),
        (lambda: Residual(8, 4), "shortcut A cannot lead 8 channels into 4; choose shortcut B"),
        (
            lambda: Residual(4, 4, design=Design(shortcut="none"), survival=Survival(0.5)),
            "a plain network has no shortcut to go on by when a block is skipped; choose shortcut A, B or C, or",
        ),
    ],
)
def test_an_impossible_block_is_refused_with_the_reason(make, text):
    with pytest.raises(ConfigError) as caught:
        make()
    assert text in str(caught.value)
