"""The CIFAR family: published counts, shapes, gates and dense connections."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from visionapps.errors import ConfigError
from visionapps.networks.catalogue import OWN
from visionapps.networks.cifar_densenet import DenseLayer, cifar_densenet
from visionapps.networks.cifar_resnet import bottleneck_resnet, cifar_resnet, residual_network, wide_resnet
from visionapps.networks.highway import Highway, highway
from visionapps.networks.residual import Design

# Parameters with the count of each paper rounded, and billions of multiply-adds for one image of 32 px.
COUNTS = {
    "plain20": (269_722, 0.04055),
    "plain32": (464_154, None),
    "plain44": (658_586, None),
    "plain56": (853_018, None),
    "plain110": (1_727_962, None),
    "resnet20": (269_722, 0.04055),  # 0.27M
    "resnet32": (464_154, None),  # 0.46M
    "resnet44": (658_586, None),  # 0.66M
    "resnet56": (853_018, 0.1255),  # 0.85M
    "resnet110": (1_727_962, 0.2529),  # 1.7M
    "resnet1202": (19_421_274, None),  # 19.4M
    "resnet110_bn_after_add": (1_727_962, None),
    "resnet110_relu_before_add": (1_727_962, None),
    "resnet110_relu_preact": (1_727_962, None),
    "resnet110_full_preact": (1_727_962, None),
    "resnet164_original": (1_704_154, 0.2476),  # 1.7M
    "resnet164_bn_after_add": (1_704_154, None),
    "resnet164_relu_before_add": (1_704_154, None),
    "resnet164_relu_preact": (1_704_154, None),
    "resnet164_full_preact": (1_703_258, None),
    "resnet1001": (10_327_706, None),  # 10.2M
    "resnet110_stochastic": (1_727_962, None),
    "wide_resnet28_10": (36_479_194, 5.243),  # 36.5M
    "highway19": (342_970, 0.06296),
    "densenet40_k12": (1_019_722, 0.2648),  # 1.0M
    "densenet100_k12": (6_979_642, None),  # 7.0M
    "densenet100_k24": (27_249_082, None),  # 27.2M
    "densenet_bc100_k12": (769_162, 0.2879),  # 0.8M
    "densenet_bc250_k24": (15_324_406, None),  # 15.3M
    "densenet_bc190_k40": (25_624_430, None),  # 25.6M
}
SMALL = {
    "ResNet-8": lambda **k: cifar_resnet(8, **k),
    "plain-8": lambda **k: cifar_resnet(8, shortcut="none", **k),
    "ResNet-11": lambda **k: bottleneck_resnet(11, ordering="full_preact", **k),
    "WRN-10-2": lambda **k: wide_resnet(10, 2, dropout=0.3, **k),
    "Highway-7": lambda **k: highway(layers=1, **k),
    "DenseNet-7 (k=4)": lambda **k: cifar_densenet(7, 4, dropout=0.2, **k),
    "DenseNet-BC-16 (k=4)": lambda **k: cifar_densenet(16, 4, bottleneck=True, **k),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_the_published_ones(name):
    parameters, billions = COUNTS[name]
    with torch.device("meta"):
        network = OWN[name].build().eval()
        image = torch.zeros(1, 3, 32, 32)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network.native == 32
    if billions is not None:
        with FlopCounterMode(display=False) as counter:
            network(image)
        assert counter.get_total_flops() / 2e9 == pytest.approx(billions, rel=1e-3)


def test_a_shortcut_of_zeros_costs_nothing_and_projections_cost_what_they_hold():
    with torch.device("meta"):
        counts = {s: sum(p.numel() for p in cifar_resnet(20, shortcut=s).parameters()) for s in ("none", "A", "B", "C")}
    projections = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    everywhere = 3 * (16 * 16 + 2 * 16) + 2 * (32 * 32 + 2 * 32) + 2 * (64 * 64 + 2 * 64)
    assert counts["none"] == counts["A"] == counts["B"] - projections
    assert counts["C"] == counts["B"] + everywhere


def test_strides_in_the_first_1x1_save_what_that_layer_skips():
    def billions(strided):
        with torch.device("meta"):
            design = Design("full_preact", "B", bottleneck=True, strided=strided)
            network = residual_network("x", 10, 3, widths=(16, 32, 64), blocks=1, design=design).eval()
            image = torch.zeros(1, 3, 32, 32)
        with FlopCounterMode(display=False) as counter:
            network(image)
        return counter.get_total_flops() / 2

    saved = 64 * 32 * (32 * 32 - 16 * 16) + 128 * 64 * (16 * 16 - 8 * 8)
    assert billions("3x3") - billions("1x1") == saved


@pytest.mark.parametrize("name", SMALL)
def test_any_bands_classes_and_sizes_train_and_every_parameter_learns(name):
    torch.manual_seed(0)
    network = SMALL[name](num_classes=7, bands=5)
    logits = network(torch.randn(2, 5, 21, 18))
    assert logits.shape == (2, 7)
    network.outputs(torch.randn(2, 5, 16, 16)).logits[0].logsumexp(1).sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("name", SMALL)
def test_maps_have_strides_one_two_and_four(name):
    with torch.device("meta"):
        network = SMALL[name]().eval()
        image, sides = torch.zeros(1, 3, 32, 64), []
        for step in network.features:
            image = step(image)
            sides.append(tuple(image.shape[2:]))
    assert list(dict.fromkeys(sides)) == [(32, 64), (16, 32), (8, 16)]


@pytest.mark.parametrize("name", SMALL)
def test_an_image_smaller_than_the_stride_is_refused_with_the_smallest_size(name):
    network = SMALL[name]().eval()
    assert network(torch.zeros(1, 3, 4, 4)).shape == (1, 10)
    with pytest.raises(ConfigError) as caught:
        network(torch.zeros(1, 3, 3, 9))
    assert str(caught.value).startswith(f"{name}: the image has 3x9 pixels (HxW), but the smallest legal size is 4x4")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: cifar_resnet(21), "depths 6 n + 2 only; the nearest are 20 and 26"),
        (lambda: cifar_resnet(2), "the nearest are 8"),
        (lambda: bottleneck_resnet(165), "with bottlenecks there are depths 9 n + 2 only; the nearest are 164 and 173"),
        (lambda: cifar_resnet(20, survival=1.5), "survival 1.5 is no probability in (0, 1]"),
        (lambda: wide_resnet(29, 10), "wide residual network 29-10: depths are 6 n + 4"),
        (lambda: wide_resnet(28, 0), "the width is at least 1"),
        (lambda: highway(layers=0), "0 layers per stage; give at least 1"),
        (lambda: cifar_densenet(41, 12), "DenseNet of depth 41 and growth 12: depths are 3 n + 4 (40, 43, ...)"),
        (lambda: cifar_densenet(40, 12, bottleneck=True, dropout=-1), "dropout -1 is no probability in [0, 1)"),
        (
            lambda: cifar_densenet(101, 12, bottleneck=True),
            "DenseNet-BC of depth 101 and growth 12: depths are 6 n + 4",
        ),
    ],
)
def test_an_impossible_network_is_refused_with_the_nearest_that_exist(make, text):
    with pytest.raises(ConfigError) as caught:
        make()
    assert text in str(caught.value)


def test_a_highway_layer_carries_nearly_everything_at_first():
    torch.manual_seed(0)
    network = highway()
    gates = [layer for layer in network.modules() if isinstance(layer, Highway)]
    assert len(gates) == 15
    assert {float(v) for layer in gates for v in layer.gate.bias.detach().unique()} == {-2.0}
    image = torch.rand(4, 16, 8, 8)
    opened = gates[0].gate(0 * image).sigmoid()
    torch.testing.assert_close(opened, torch.full_like(opened, 0.119203))  # 1 / (1 + e^2)
    shut = highway(gate_bias=-30.0)
    first = next(layer for layer in shut.modules() if isinstance(layer, Highway))
    torch.testing.assert_close(first(image), image)


def test_an_open_highway_layer_is_a_plain_one_and_a_half_open_one_lies_between():
    torch.manual_seed(0)
    layer, image = Highway(3), torch.randn(2, 3, 5, 5)
    plain = layer.transform(image).relu()
    nn.init.zeros_(layer.gate.weight)
    nn.init.constant_(layer.gate.bias, 40.0)
    torch.testing.assert_close(layer(image), plain)
    nn.init.zeros_(layer.gate.bias)
    torch.testing.assert_close(layer(image), (plain + image) / 2)
    nn.init.normal_(layer.gate.weight)
    out = layer(image)
    assert bool((out >= torch.minimum(plain, image) - 1e-6).all())
    assert bool((out <= torch.maximum(plain, image) + 1e-6).all())


def test_a_dense_layer_keeps_what_came_in_and_five_of_growth_4_add_20_channels():
    torch.manual_seed(0)
    block = nn.Sequential(*(DenseLayer(6 + 4 * i, 4, bottleneck=False) for i in range(5)))
    image = torch.randn(1, 6, 4, 4)
    out = block(image)
    assert out.shape == (1, 26, 4, 4)
    assert torch.equal(out[:, :6], image)
    # L (L + 1) / 2 connections: layer i reads the block's input and i earlier outputs.
    readers = [layer.layers[2].in_channels for layer in block]
    assert sum((channels - 6) // 4 + 1 for channels in readers) == 5 * 6 // 2
    gradient = torch.autograd.grad(block[4].layers(block[:4](image)).sum(), block[0].layers[2].weight)[0]
    assert float(gradient.abs().sum()) > 0


def test_bottlenecks_halve_channels_between_blocks_and_plain_dense_blocks_do_not():
    with torch.device("meta"):
        thin, wide = cifar_densenet(100, 12, bottleneck=True), cifar_densenet(40, 12)
    assert [thin.features.transition1[2].in_channels, thin.features.transition1[2].out_channels] == [216, 108]
    assert [wide.features.transition1[2].in_channels, wide.features.transition1[2].out_channels] == [160, 160]
    assert thin.head.linear.in_features == 342
    assert wide.head.linear.in_features == 448


def test_weights_are_drawn_with_the_variance_of_he():
    torch.manual_seed(0)
    network = cifar_resnet(20, shortcut="B")
    layer = network.features.stage3[1].body[0]
    assert float(layer.weight.detach().var()) == pytest.approx(2 / (9 * 64), rel=0.05)
