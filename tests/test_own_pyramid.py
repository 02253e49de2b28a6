"""Pyramids of networks that are written here: their own maps, true strides, padding only where it is needed."""

from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from visionapps.backbones import levels_of, list_pyramids, pyramid
from visionapps.backbones.own_pyramid import plan_own
from visionapps.errors import ConfigError, WeightsError
from visionapps.networks import catalogue
from visionapps.networks.base import Network, PooledHead
from visionapps.networks.catalogue import Own, own_network
from visionapps.structures import InputSpec
from visionapps.testing import check_backbone

# Strides and widths from the tables of the papers.
LEVELS = {
    "lenet5": [(2, 16), (4, 16)],
    "alexnet": [(4, 96), (8, 256), (16, 256), (32, 256)],
    "googlenet": [(2, 64), (4, 192), (8, 480), (16, 832), (32, 1024)],
    "bn_inception": [(2, 64), (4, 192), (8, 320), (16, 608), (32, 1024)],
    "vgg_a_lrn": [(2, 128), (4, 256), (8, 512), (16, 512), (32, 512)],
    "mobilenet_v1": [(2, 64), (4, 128), (8, 256), (16, 512), (32, 1024)],
    "plain18": [(2, 64), (4, 64), (8, 128), (16, 256), (32, 512)],
    "resnet20": [(2, 32), (4, 64)],
    "overfeat_accurate": [(2, 96), (6, 256), (12, 1024), (36, 1024)],
    "vit_c_1gf": [(4, 48), (8, 96), (16, 192), (32, 192)],
}


def bands(count: int) -> InputSpec:
    return InputSpec(bands=tuple(f"b{i}" for i in range(count)), mean=(0.5,) * count, std=(0.25,) * count)


@pytest.mark.parametrize("name", LEVELS)
def test_levels_are_the_strides_and_widths_of_the_papers(name):
    levels = levels_of(f"visionapps/{name}")
    assert [tuple(level) for level in levels] == LEVELS[name]
    with torch.device("meta"):
        assert pyramid(f"visionapps/{name}").levels == levels


@pytest.mark.parametrize(
    ("name", "count"), [("lenet5", 3), ("alexnet", 4), ("resnet20", 1), ("googlenet", 2), ("vit_c_1gf", 5)]
)
def test_every_kind_keeps_the_contract_for_any_number_of_bands(name, count):
    backbone = pyramid(f"visionapps/{name}", spec=bands(count))
    check_backbone(backbone)
    maps = backbone(torch.rand(2, count, 64, 96))
    torch.stack([each.square().mean() for each in maps]).sum().backward()
    assert [key for key, p in backbone.named_parameters() if p.grad is None] == []


def test_maps_are_those_that_the_network_computes(tmp_path):
    network = own_network("bn_inception").eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    backbone = pyramid("visionapps/bn_inception", weights=str(tmp_path / "weights.pth")).eval()
    backbone.load_pretrained()
    image = torch.rand(1, 3, 64, 96)
    expected = {}
    value = image
    with torch.no_grad():
        for step in network.features:
            value = step(value)
            expected[64 // value.shape[2]] = value.clone()
        for level, got in zip(backbone.levels, backbone(image), strict=True):
            torch.testing.assert_close(got, expected[level.stride])


def test_layers_are_padded_only_where_a_map_would_be_no_whole_part_of_the_image():
    assert not plan_own("visionapps/vgg_a").padded
    assert not plan_own("visionapps/bn_inception").padded
    assert plan_own("visionapps/alexnet").padded
    alexnet = pyramid("visionapps/alexnet", strides=(4,))
    first = next(layer for layer in alexnet.modules() if isinstance(layer, nn.Conv2d))
    assert first.padding == (5, 5)  # half of 11: position i looks at pixel 4 i


def test_weights_of_another_number_of_bands_are_adapted_and_wrong_ones_refused(tmp_path):
    network = own_network("resnet20")
    torch.save({"module." + key: value for key, value in network.state_dict().items()}, tmp_path / "weights.pth")
    four = pyramid("visionapps/resnet20", weights=str(tmp_path / "weights.pth"), spec=bands(4))
    four.load_pretrained()
    first = next(iter(network.parameters()))
    torch.testing.assert_close(next(four.parameters()), first[:, [0, 1, 2, 0]] * 3 / 4)
    torch.save(own_network("lenet5", bands=3).state_dict(), tmp_path / "other.pth")
    wrong = pyramid("visionapps/resnet20", weights=str(tmp_path / "other.pth"))
    with pytest.raises(WeightsError, match=r"tensors fit visionapps/resnet20 with 3 bands; not matched: features"):
        wrong.load_pretrained()


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("vgg_z", {}, "backbone 'visionapps/vgg_z': there is no such network; did you mean visionapps/vgg_"),
        ("vgg_c", {"output_stride": 8}, "visionapps/vgg_c: it cannot be dilated to output_stride 8; leave that at 32"),
        ("resnet20", {"strides": (8, 16)}, "has maps of the strides 1, 2, 4, but none of the wanted 8, 16; ask for"),
        ("vgg_c", {"weights": "hub"}, "weights 'hub' are not published for it; give a file, or random"),
        ("msdnet", {}, "its step .* gives no single map, so it is no pyramid"),
    ],
)
def test_what_a_network_cannot_give_is_refused_with_the_reason(name, arguments, text):
    with pytest.raises(ConfigError, match=text):
        pyramid(f"visionapps/{name}", **arguments)


def test_stages_past_the_last_level_are_gone():
    shallow = pyramid("visionapps/googlenet", strides=(4, 8))
    whole = pyramid("visionapps/googlenet")
    counts = [sum(p.numel() for p in each.parameters()) for each in (shallow, whole)]
    assert counts[0] < counts[1] / 4
    check_backbone(shallow)


def test_own_pyramids_are_listed_and_networks_without_maps_are_not():
    names = list_pyramids("visionapps/*")
    assert {"visionapps/vgg_c", "visionapps/resnet20", "visionapps/googlenet"} <= set(names)
    assert "visionapps/msdnet" not in names


class Strided(Network):
    """Convolutions of given kernels and strides, without any padding."""

    native = 64

    def __init__(self, layers: list[tuple[int, int]], num_classes: int = 2, bands: int = 3) -> None:
        super().__init__()
        convs = [
            nn.Conv2d(bands if i == 0 else 2, 2, kernel, stride=stride) for i, (kernel, stride) in enumerate(layers)
        ]
        self.features = nn.Sequential(OrderedDict((f"conv{i}", conv) for i, conv in enumerate(convs)))
        self.head = PooledHead(2, num_classes)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from((1, 3, 5, 7)), st.sampled_from((1, 2))), min_size=1, max_size=6))
def test_any_chain_of_odd_kernels_gives_levels_at_its_true_strides(layers):
    expected, stride = set(), 1
    for _, step in layers:
        stride *= step
        expected.add(stride)
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setitem(catalogue.OWN, "strided", Own(lambda **options: Strided(layers, **options), 2026, "this test"))
        if stride == 1:
            assert [level.stride for level in levels_of("visionapps/strided", strides=(1,))] == [1]
            return
        backbone = pyramid("visionapps/strided", strides=(1, 2, 4, 8, 16, 32, 64))
    got = {level.stride for level in backbone.levels}
    assert expected <= got if len(expected) == 1 else got == expected
    check_backbone(backbone, (3, 5))


def test_a_step_that_spoils_the_level_before_it_is_found(monkeypatch):
    def build(num_classes: int = 2, bands: int = 3) -> Network:
        network = Strided([(3, 2)], num_classes, bands)
        network.features.add_module("down", nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(2)))
        return network

    monkeypatch.setitem(catalogue.OWN, "spoiling", Own(build, 2026, "this test"))
    with pytest.raises(AssertionError, match=r"steps after \['conv0'\] compute in place of its map"):
        levels_of("visionapps/spoiling")
