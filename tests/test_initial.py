"""Random weights by the rule of each paper: their spread, and what the networks here begin with."""

import math

import pytest
import torch
from torch import nn

from visionapps.networks import alexnet, vgg
from visionapps.networks.initial import gaussian, he, lecun, xavier


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 64, 5, groups=4), nn.Linear(500, 90))


# (fan in, fan out) of the three layers with weights
FANS = ((32 * 9, 64 * 9), (16 * 25, 64 * 25), (500, 90))


@pytest.mark.parametrize(
    ("rule", "std"),
    [
        (he, lambda fan_in, _: math.sqrt(2 / fan_in)),
        # torch takes the fan out of a grouped convolution over all groups
        (xavier, lambda fan_in, fan_out: math.sqrt(2 / (fan_in + fan_out))),
        (gaussian, lambda *_: 0.01),
        (lecun, lambda fan_in, _: 2.4 / fan_in / math.sqrt(3)),
    ],
)
def test_weights_have_the_spread_of_their_rule(rule, std):
    network = layers()
    nn.init.normal_(network[1].weight)
    nn.init.normal_(network[1].bias)
    rule(network)
    weighted = [layer for layer in network if not isinstance(layer, nn.BatchNorm2d)]
    for layer, fans in zip(weighted, FANS, strict=True):
        assert float(layer.weight.std()) == pytest.approx(std(*fans), rel=0.03)
        assert abs(float(layer.weight.mean())) < 0.02 * std(*fans)
        assert not layer.bias.any()
    assert network[1].weight.eq(1).all()
    assert not network[1].bias.any()


def test_he_keeps_the_size_of_a_signal_through_twenty_layers_where_a_fixed_spread_loses_it():
    def through(rule) -> float:
        torch.manual_seed(3)
        network = nn.Sequential(*(each for _ in range(20) for each in (nn.Linear(256, 256), nn.ReLU())))
        rule(network)
        with torch.no_grad():
            return float(network(torch.randn(64, 256)).square().mean().sqrt())

    assert 0.2 < through(he) < 2
    assert through(xavier) < 0.01 * through(he)
    assert through(gaussian) < 1e-10


def test_papers_begin_with_what_they_say():
    conv = vgg.VGG("a", 2, 3, hidden=(4, 4)).features.conv3_2
    assert float(conv.weight.std()) == pytest.approx(math.sqrt(2 / (2 * 256 * 9)), rel=0.02)
    network = alexnet.alexnet(num_classes=2)
    ones = [name for name, value in network.named_parameters() if name.endswith("bias") and value.eq(1).all()]
    assert ones == [f"features.conv{i}.bias" for i in (2, 4, 5)] + ["head.layers.0.bias", "head.layers.3.bias"]
    assert float(network.features.conv3.weight.std()) == pytest.approx(0.01, rel=0.02)


def test_a_seed_gives_the_same_network_again():
    def drawn() -> torch.Tensor:
        torch.manual_seed(7)
        network = layers()
        he(network)
        return network[2].weight

    assert torch.equal(drawn(), drawn())


def test_nothing_is_allocated_on_the_meta_device():
    with torch.device("meta"):
        network = vgg.vgg_e()
    assert {value.device.type for value in (*network.parameters(), *network.buffers())} == {"meta"}
