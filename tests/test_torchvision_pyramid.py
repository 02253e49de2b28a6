"""Pyramids of torchvision's networks: maps of the network itself, true strides, weights under its own names."""

import pytest
import torch
import torchvision

from visionapps.backbones import PACKAGES, default_spec, pyramid
from visionapps.backbones.hub import published_tags
from visionapps.backbones.torchvision_pyramid import TorchvisionPyramid, list_torchvision, plan_torchvision
from visionapps.errors import ConfigError, WeightsError
from visionapps.structures import InputSpec
from visionapps.testing import check_backbone

# Where torchvision's own detectors and feature extraction take these maps from.
NODES = {
    "resnet18": {"relu": 2, "layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32},
    "mobilenet_v3_small": {"features.0": 2, "features.1": 4, "features.3": 8, "features.8": 16, "features.12": 32},
    "vgg11": {
        "features.1": 1,
        "features.4": 2,
        "features.9": 4,
        "features.14": 8,
        "features.19": 16,
        "features.20": 32,
    },
    "googlenet": {"conv1": 2, "conv3": 4, "inception3b": 8, "inception4e": 16, "inception5b": 32},
    "densenet121": {"features.relu0": 2, "features.denseblock1": 4, "features.denseblock2": 8, "features.norm5": 32},
}


@pytest.mark.parametrize("name", NODES)
def test_maps_are_what_the_network_computes_there(name, tmp_path, monkeypatch):
    options = {"googlenet": {"aux_logits": False, "init_weights": False}, "vgg11": {"init_weights": False}}
    if name == "vgg11":  # has 120 million weights behind the maps, which cost seconds
        monkeypatch.setattr(torch.nn.Linear, "reset_parameters", lambda layer: None)
    theirs = torchvision.models.get_model(name, **options.get(name, {})).eval()
    if name == "vgg11":
        theirs.classifier = torch.nn.Identity()
    expected = {}
    for node, stride in NODES[name].items():
        # A copy at once: the next layer may compute in place.
        hook = lambda module, inputs, output, stride=stride: expected.__setitem__(stride, output.clone())  # noqa: E731
        theirs.get_submodule(node).register_forward_hook(hook)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = pyramid(f"torchvision/{name}", weights=str(tmp_path / "weights.pth"), strides=(1, 2, 4, 8, 16, 32)).eval()
    ours.load_pretrained()
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        theirs(image)
        got = dict(zip((level.stride for level in ours.levels), ours(image), strict=True))
    for stride, value in expected.items():
        torch.testing.assert_close(got[stride], value)


@pytest.mark.parametrize(
    ("name", "count"),
    [("alexnet", 4), ("squeezenet1_1", 2), ("shufflenet_v2_x0_5", 1), ("swin_t", 5), ("mnasnet0_5", 3)],
)
def test_every_family_keeps_the_contract_for_any_number_of_bands(name, count):
    spec = InputSpec(bands=tuple(f"b{i}" for i in range(count)), mean=(0.5,) * count, std=(0.25,) * count)
    backbone = pyramid(f"torchvision/{name}", spec=spec)
    check_backbone(backbone)
    backbone(torch.rand(2, count, 64, 64))[-1].square().mean().backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_weights_of_three_bands_are_repeated_over_more(tmp_path):
    theirs = torchvision.models.mobilenet_v3_small()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    spec = InputSpec(bands=("r", "g", "b", "n"), mean=(0.5,) * 4, std=(0.5,) * 4)
    ours = pyramid("torchvision/mobilenet_v3_small", weights=str(tmp_path / "weights.pth"), spec=spec)
    ours.load_pretrained()
    first = theirs.features[0][0].weight
    torch.testing.assert_close(ours.body["features_0"][0].weight, first[:, [0, 1, 2, 0]] * 3 / 4)


@pytest.mark.skipif(PACKAGES["torchvision/mobilenet_v2"].locate() is None, reason="the package is not installed")
def test_the_packaged_mobilenet_is_torchvisions_own():
    ours = pyramid("torchvision/mobilenet_v2", weights="package")
    ours.load_pretrained()
    file = torch.load(PACKAGES["torchvision/mobilenet_v2"].locate(), weights_only=True)
    assert torch.equal(ours.body["features_0"][0].weight, file["features.0.0.weight"])


def test_stages_past_the_last_level_are_gone_and_taps_may_share_a_stride():
    shallow = pyramid("torchvision/resnet18", strides=(4, 8))
    assert [tuple(level) for level in shallow.levels] == [(4, 64), (8, 128)]
    assert list(shallow.body) == ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2"]
    plan = plan_torchvision("torchvision/mobilenet_v3_large", taps=("features.13", "features.16"))
    assert [tuple(level) for level in plan.levels] == [(32, 160), (32, 960)]
    first, second = TorchvisionPyramid(plan, spec=InputSpec(), weights=None)(torch.rand(1, 3, 64, 64))
    assert (first.shape[1:], second.shape[1:]) == ((160, 2, 2), (960, 2, 2))


def test_a_dilated_resnet_keeps_its_stride():
    backbone = pyramid("torchvision/resnet50", output_stride=16, strides=(4, 8, 16))
    assert [tuple(level) for level in backbone.levels] == [(4, 256), (8, 512), (16, 2048)]
    check_backbone(backbone)


def test_published_weights_bring_their_own_normalisation():
    assert published_tags("torchvision/resnet50") == ["IMAGENET1K_V2", "IMAGENET1K_V1"]
    assert default_spec("torchvision/resnet50", "hub:IMAGENET1K_V1") == InputSpec()
    assert default_spec("torchvision/efficientnet_v2_l", "hub").mean == (0.5, 0.5, 0.5)
    with pytest.raises(ConfigError, match="no weights with the tag 'V9'; known tags: IMAGENET1K_V2, IMAGENET1K_V1"):
        default_spec("torchvision/resnet50", "hub:V9")


def test_what_torchvision_cannot_give_is_refused(tmp_path):
    for name, arguments, message in (
        ("resnet81", {}, "there is no such network; did you mean torchvision/resnet18"),
        ("vit_b_16", {}, "is made for images of one size, .*for instance vit_base_patch16_224"),
        ("vgg16", {"output_stride": 8}, "cannot be dilated to output_stride 8; leave that at 32"),
        ("convnext_tiny", {"strides": (2,)}, "has maps of the strides 4, 8, 16, 32, but none of the wanted 2"),
    ):
        with pytest.raises(ConfigError, match=message), torch.device("meta"):
            pyramid(f"torchvision/{name}", **arguments)
    with pytest.raises(ConfigError, match=r"has no step features.99; it computes features.0, features.1"):
        plan_torchvision("torchvision/mobilenet_v3_small", taps=("features.99",))
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "weights.pth")
    wrong = pyramid("torchvision/mobilenet_v3_small", weights=str(tmp_path / "weights.pth"))
    with pytest.raises(WeightsError, match=r"tensors fit torchvision/mobilenet_v3_small with 3 bands; not matched:"):
        wrong.load_pretrained()


def test_the_list_holds_every_family_and_each_first_name_can_be_built():
    names = list_torchvision()
    assert len(names) > 70
    assert "torchvision/vit_b_16" not in names
    for name in ("regnet_x_400mf", "inception_v3", "efficientnet_b0", "convnext_tiny"):
        assert f"torchvision/{name}" in names
        with torch.device("meta"):
            assert pyramid(f"torchvision/{name}").levels[-1].stride == 32
