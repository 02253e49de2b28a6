"""The anatomy of networks against published counts, PyTorch's own counter, and gradients."""

import json

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from visionapps.cli.main import main
from visionapps.errors import ConfigError
from visionapps.networks.anatomy import anatomy
from visionapps.networks.catalogue import own_network
from visionapps.networks.grouping import grouped


def on_meta(build, *args, **kwargs):
    with torch.device("meta"):
        return build(*args, **kwargs)


def tv(name, **kwargs):
    return on_meta(torchvision.models.get_model, name, weights=None, **kwargs)


PORT = {"init_weights": False, "transform_input": False, "aux_logits": False}
# Depths as the papers count layers; fields: Araujo, Norris and Sim 2019, table 1. More networks: tools/claims/exact.py.
KNOWN = {
    "googlenet": (lambda: on_meta(own_network, "googlenet"), 224, 6_998_552, 1.583, 22, 715),
    "inception_v3": (lambda: tv("inception_v3", **PORT), 299, 23_834_568, 5.713, 48, 1311),
    "mobilenet_v1": (lambda: on_meta(own_network, "mobilenet_v1"), 224, 4_231_976, 0.5687, 28, 315),
    "vit_b_16": (lambda: tv("vit_b_16"), 224, 86_567_656, 17.56, 50, None),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_published_counts_come_out(name):
    build, side, parameters, giga, depth, field = KNOWN[name]
    network = build()
    found = anatomy(network, (3, side, side))
    assert found.parameters == sum(layer.parameters for layer in found.layers) == parameters
    assert found.unused == 0
    assert found.multiply_adds / 1e9 == pytest.approx(giga, rel=1e-3)
    assert found.depth == depth
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.empty(1, 3, side, side, device="meta"))
    assert 2 * found.multiply_adds == counter.get_total_flops()
    if field is not None:
        local = [layer.field for layer in found.layers if layer.trace and not layer.trace.whole]
        assert max(local) == (field, field)


def test_the_layers_of_vgg_are_the_decks_table():
    found = anatomy(on_meta(own_network, "vgg_d"), (3, 224, 224))
    heavy = [layer for layer in found.layers if layer.parameters]
    assert [layer.kind for layer in heavy] == ["conv 3x3"] * 13 + ["Linear"] * 3
    weights = (1728, 36864, 73728, 147456, 294912, 589824, 589824, 1179648, 2359296, 2359296, *[2359296] * 3)
    assert [w.parameters - w.output[0] for w in heavy] == [*weights, 102760448, 16777216, 4096000]
    assert heavy[0].output == (64, 224, 224)
    assert heavy[0].multiply_adds == 1728 * 224 * 224
    pooled = [layer for layer in found.layers if layer.kind == "max pool 2x2/2"]
    assert [layer.output for layer in pooled] == [
        (c, 224 >> i, 224 >> i) for i, c in enumerate((64, 128, 256, 512, 512), 1)
    ]
    assert [layer.stride for layer in pooled] == [2, 4, 8, 16, 32]
    assert pooled[-1].field == (212, 212)
    assert found.layers[-1].field == (404, 404)  # the fully connected layers, as FCN has them
    assert (found.depth, found.depth_with_pooling) == (16, 21)
    # The deck says 24M numbers and 93 MB; its own rows sum to this, with ReLU in place of its input.
    assert found.memory - sum(row.memory for row in found.layers if row.kind == "ReLU") == 15_237_608


def test_googlenet_has_27_layers_with_poolings_and_alexnet_sees_355_pixels():
    assert anatomy(on_meta(own_network, "googlenet"), (3, 224, 224)).depth_with_pooling == 27
    alexnet = anatomy(on_meta(own_network, "alexnet"), (3, 227, 227))
    assert (alexnet.parameters, alexnet.layers[-1].field) == (60_965_224, (355, 355))


def test_classifiers_of_training_are_parameters_that_are_not_used():
    found = anatomy(on_meta(own_network, "googlenet_auxiliary"), (3, 224, 224))
    assert (found.parameters, found.unused) == (13_378_280, 13_378_280 - 6_998_552)


class Branches(nn.Module):
    """What makes receptive fields hard: branches of other reach, crops, dilation, deconvolution, views."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3, stride=2, padding=1)
        self.wide = nn.Conv2d(2, 2, (5, 3), padding=(2, 1))
        self.dilated = nn.Conv2d(2, 2, 3, padding=3, dilation=3)
        self.pool = nn.AvgPool2d(3, 2, 1, ceil_mode=True)
        self.up = nn.ConvTranspose2d(4, 2, 4, 2, 1)
        self.mix = nn.Linear(2, 2)

    def forward(self, image):
        stem = self.stem(image)
        deep = self.pool(torch.cat([self.wide(stem), self.dilated(stem)], 1))
        up = self.up(deep)[:, :, 1:-1, 2:] + stem
        return self.mix(up.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_a_field_through_branches_is_what_a_gradient_reaches():
    network = Branches().double()
    for parameter in network.parameters():
        nn.init.uniform_(parameter, 0.5, 1.0)  # nothing cancels
    found = anatomy(network, (1, 64, 64))
    trace = found.layers[-1].trace
    image = torch.ones(1, 1, 64, 64, dtype=torch.float64, requires_grad=True)
    output = network(image)
    assert output.shape == (1, 2, 32, 32)
    assert trace.size == (32, 32)
    reached = [set(), set()]
    for index in (12, 13, 14, 15):  # the phases of the deconvolution
        (gradient,) = torch.autograd.grad(output[0, 0, index, index], image, retain_graph=True)
        rows, cols = gradient[0, 0].nonzero().T
        for axis, touched in enumerate((rows, cols)):
            begin, end = trace.fields[axis].span(index)
            assert begin <= int(touched.min())
            assert int(touched.max()) + 1 <= end
            reached[axis].add(int(touched.max()) + 1 - int(touched.min()))
    # Bounds that hold for all phases are at most one pixel of the map, two of the image, wider than the widest.
    assert [
        max(each) <= field <= max(each) + 4 for each, field in zip(reached, found.layers[-1].field, strict=True)
    ] == [
        True,
        True,
    ]


def test_what_sees_the_whole_image_is_said():
    transformer = anatomy(tv("vit_b_16"), (3, 224, 224))
    first, later = (next(row for row in transformer.layers if f"layer_{i}.ln_1" in row.name) for i in (0, 1))
    assert (first.trace.whole, first.field, first.stride) == (False, (16, 16), 16)
    assert later.trace.whole
    windows = anatomy(tv("swin_t"), (3, 224, 224))
    norms = [layer for layer in windows.layers if layer.name.endswith("norm1")]
    assert (norms[0].field, norms[0].trace.whole) == ((4, 4), False)
    assert (norms[1].field, norms[1].trace.whole) == (None, False)  # windows: more than 4, but who knows how much


def test_channels_last_networks_keep_their_fields():
    found = anatomy(tv("convnext_tiny"), (3, 224, 224))
    # 4 of the stem; 3, 3, 9 and 3 kernels of 7 at strides 4 to 32, and three of 2 that halve.
    field = 4 + 6 * (3 * 4 + 3 * 8 + 9 * 16 + 3 * 32) + 4 + 8 + 16
    last = max((row for row in found.layers if row.trace and not row.trace.whole), key=lambda row: row.field)
    assert (last.field, last.stride) == ((field, field), 32)


def test_functional_layers_and_shared_ones_are_counted():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.scale = nn.Parameter(torch.ones(4, 1, 1))

        def forward(self, image):
            twice = self.conv(self.conv(image)) * self.scale
            return nn.functional.max_pool2d(twice + image, 2)

    found = anatomy(Shared(), (4, 8, 8))
    assert [(row.name, row.kind, row.parameters, row.multiply_adds) for row in found.layers] == [
        ("conv", "conv 3x3", 144, 144 * 64),
        ("conv", "conv 3x3", 0, 144 * 64),
        ("", "add", 4, 0),
        ("", "max pool 2x2/2", 0, 0),
    ]
    assert found.layers[-1].field == (6, 6)
    assert found.depth == 2


def test_a_network_stays_as_it_is_and_need_not_be_on_the_meta_device():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = anatomy(network, (3, 5, 6))
    assert [layer.kind for layer in found.layers] == ["conv 3x3", "BatchNorm2d"]
    assert found.layers[0].output == (4, 3, 4)
    assert all(part.training for part in network.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert network(torch.zeros(2, 3, 5, 6)).shape == (2, 4, 3, 4)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(
        ConfigError, match=r"Sequential: cannot be run on an image of 3x2x9 \(CxHxW\): .*; give the size"
    ):
        anatomy(nn.Sequential(nn.Conv2d(3, 4, 3)), (3, 2, 9))
    with pytest.raises(ConfigError, match=r"image: 3x0x9 \(CxHxW\) is empty"):
        anatomy(nn.Conv2d(3, 4, 3), (3, 0, 9))


def test_lines_are_grouped_by_part_and_lose_nothing():
    found = anatomy(tv("resnet50"), (3, 224, 224))
    few = grouped(found.layers, 25)
    assert len(few) <= 25
    assert sum(layer.parameters for layer in few) == found.parameters
    assert sum(layer.multiply_adds for layer in few) == found.multiply_adds
    assert (few[5].name, few[5].output) == ("layer1.1", (256, 56, 56))
    assert grouped(found.layers, 1000) == found.layers


def test_the_verb_shows_layers_totals_and_json(capsys):
    assert main(["models", "visionapps/lenet5_plain"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["parameters", "61,706"] in lines
    assert ["multiply-adds", "416,520"] in lines
    assert ["depth", "5", "weight", "layers", "on", "the", "longest", "path", "(7", "with", "pools)"] in lines
    assert main(["models", "visionapps/googlenet", "--json", "--size", "256", "--bands", "4"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["image"] == [4, 256, 256]
    assert facts["parameters"] == 6_998_552 + 64 * 49
    assert sum(layer["multiply_adds"] for layer in facts["layers"]) == facts["multiply_adds"]
    assert main(["models", "visionapps/vgg_d", "--size", "0"]) == 1
    assert "--size 0: must be at least 1" in capsys.readouterr().err
    assert main(["models", "clarifai"]) == 1
    said = capsys.readouterr().err
    assert "no public definition" in said
    assert "or the model" not in said
    assert main(["models", "visionapps/vgg_c", "--size", "256"]) == 1
    assert "visionapps/vgg_c, --size 256: " in (said := capsys.readouterr().err)
    assert said.endswith("; its native size is 224\n")
    assert main(["models", "unet", "--size", "64"]) == 1
    assert "models --size: unet is a model, not a network; leave that out" in capsys.readouterr().err
    assert main(["models", "unett"]) == 1
    assert "or the model unet?" in capsys.readouterr().err
    assert main(["models", "visionapps/vggd"]) == 1
    assert "did you mean visionapps/vgg_d" in capsys.readouterr().err
