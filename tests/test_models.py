"""The wiring functions: what they build, what they remember, and how YAML reaches them."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from safetensors.torch import load_file, save_file
from torch import nn

from visionapps.errors import ConfigError, WeightsError
from visionapps.models import SEGMENTORS, build, deconvnet, enet, fcn8s, fcn16s, fcn32s, smp, unet
from visionapps.segmentation.base import Segmentor
from visionapps.structures import InputSpec
from visionapps.testing import check_segmentor

# timm's own test networks: a real pyramid in 0.3 million parameters, from stride 2 and from stride 4
RESNET, CONVNEXT = "test_resnet.r160_in1k", "test_convnext.r160_in1k"
K = 3
NARROW = (16, 12, 10, 8, 6)
FOUR_BANDS = InputSpec(
    bands=("red", "green", "blue", "infrared"), scale=10000.0, mean=(0.1, 0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7, 0.8)
)

EXAMPLES = {
    "fcn32s": lambda backbone: fcn32s(backbone, K),
    "fcn16s": lambda backbone: fcn16s(backbone, K, head_channels=10, dropout=0.25),
    "fcn8s": lambda backbone: fcn8s(backbone, K),
    "unet": lambda backbone: unet(backbone, K, channels=NARROW, upsample="deconv", finest_stride=2),
    "deconvnet": lambda backbone: deconvnet(backbone, K, channels=NARROW),
    "enet": lambda backbone: enet(backbone, K),
    "smp": lambda backbone: smp("DeepLabV3Plus", backbone, K, options={"decoder_channels": 16}),
}


def test_an_example_of_every_segmentation_model_is_tested():
    published = {name for name in SEGMENTORS if name.endswith("_2015")}  # they have a module of tests of their own
    assert set(EXAMPLES) == set(SEGMENTORS) - published


@pytest.mark.parametrize("backbone", [RESNET, CONVNEXT])
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_model_keeps_the_contract_on_real_pyramids(name, backbone):
    check_segmentor(EXAMPLES[name](backbone))


@pytest.mark.parametrize(
    "decoder", ["UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3", "UPerNet", "Segformer"]
)
def test_every_decoder_of_smp_trains_all_parameters_of_a_real_backbone(decoder):
    check_segmentor(smp(decoder, RESNET, K), ((64, 64), (33, 50)))


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_recipe_is_plain_data_and_builds_the_same_model_again(name, tmp_path: Path):
    model = EXAMPLES[name](RESNET).eval()
    for module in model.modules():  # away from zero scores and unit statistics, so that logits tell models apart
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.1)
    through_yaml = yaml.safe_load(yaml.safe_dump(model.recipe))
    assert through_yaml == json.loads(json.dumps(model.recipe)) == model.recipe
    save_file(model.state_dict(), tmp_path / "weights.safetensors")

    again = build(through_yaml).eval()
    again.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert again.recipe == model.recipe
    image = torch.randint(0, 256, (1, 3, 40, 70), dtype=torch.uint8)
    with torch.no_grad():
        expected = model(image)
        assert expected.std() > 0
        torch.testing.assert_close(again(image), expected, rtol=0, atol=0)


def test_a_recipe_holds_all_arguments_the_resolved_spec_and_no_weights():
    recipe = unet(RESNET, num_classes=K, weights="hub").recipe
    assert recipe == {
        "model": "unet",
        "arguments": {
            "backbone": RESNET,
            "num_classes": K,
            "weights": None,
            "spec": unet(RESNET, K, weights="hub").spec.to_dict(),
            "channels": [256, 128, 64, 32, 16],
            "upsample": "bilinear",
            "finest_stride": 1,
        },
    }


def test_a_spec_of_four_bands_reaches_the_first_convolution_and_the_recipe():
    model = unet(RESNET, K, spec=FOUR_BANDS, channels=NARROW)
    assert model.spec == FOUR_BANDS
    check_segmentor(model)
    assert build(model.recipe).spec == FOUR_BANDS


def test_unet_can_be_asked_for_fewer_steps_and_the_backbone_for_fewer_maps():
    whole, coarse = unet(RESNET, K), unet(RESNET, K, finest_stride=4)
    assert [level.stride for level in whole.levels] == [2, 4, 8, 16, 32]
    assert [level.stride for level in coarse.levels] == [4, 8, 16, 32]
    assert coarse.decoder.stride == 4


@pytest.mark.parametrize(("wire", "strides"), [(fcn32s, [32]), (fcn16s, [16, 32]), (fcn8s, [8, 16, 32])])
def test_the_arguments_of_an_fcn_reach_its_head(wire, strides):
    model = wire(RESNET, K, head_channels=10, dropout=0.25)
    assert [level.stride for level in model.levels] == strides
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout) and m.p} == {0.25}
    assert model.decoder.scores[0].weight.shape == (K, 10, 1, 1)


def test_a_backbone_is_no_deeper_than_its_decoder_reads():
    model = smp("PSPNet", RESNET, K)
    assert [level.stride for level in model.levels] == [8]
    deeper = smp("PSPNet", RESNET, K, options={"encoder_depth": 5})
    count = [sum(p.numel() for p in m.backbone.parameters()) for m in (model, deeper)]
    assert count[0] < count[1] / 2


# ---- recipes from files of unknown origin


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        ({}, 'expected {"model": a name, "arguments": a mapping}'),
        ({"model": "unet", "arguments": [1]}, "expected"),
        ({"model": "build", "arguments": {}}, "unknown model 'build', this version of visionapps has fcn32s, "),
        ({"model": "os.system", "arguments": {"command": "true"}}, "unknown model 'os.system'"),
        ({"model": "unet", "arguments": {"backbone": RESNET}}, "unet cannot be built: .*num_classes"),
        ({"model": "unet", "arguments": {"backbone": RESNET, "num_classes": 2, "depth": 3}}, "depth"),
        ({"model": "unet", "arguments": {"backbone": RESNET, "num_classes": 2, "spec": {"band": 1}}}, "band"),
        ({"model": "unet", "arguments": {"backbone": RESNET, "num_classes": "two"}}, "unet cannot be built"),
    ],
)
def test_a_recipe_that_cannot_be_built_is_refused(recipe, text):
    with pytest.raises(WeightsError, match=text):
        build(recipe)


@pytest.mark.parametrize("classes", [0, -1, 256])
def test_a_number_of_classes_that_labels_cannot_hold_is_refused(classes):
    with pytest.raises(ConfigError, match=f"num_classes is {classes}; choose 1 to 255"):
        unet(RESNET, classes)


def test_an_option_that_cannot_be_kept_in_a_bundle_is_refused():
    with pytest.raises(ConfigError, match=r"argument options.decoder_channels: Tensor cannot be kept in a bundle"):
        smp("DeepLabV3Plus", RESNET, K, options={"decoder_channels": torch.tensor(16)})


# ---- as a run's YAML names them


def from_yaml(text: str) -> Segmentor:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=Segmentor)
    return parser.instantiate_classes(parser.parse_string(text)).model


def test_yaml_names_a_wiring_function_with_a_nested_spec():
    model = from_yaml(
        f"""
        model:
          class_path: visionapps.models.unet
          init_args:
            backbone: {RESNET}
            num_classes: 4
            upsample: nearest
            channels: [16, 12, 10, 8, 6]
            spec: {{bands: [red, green], scale: 1.0, mean: [0.5, 0.4], std: [0.2, 0.1]}}
        """
    )
    assert isinstance(model, Segmentor)
    assert model.spec == InputSpec(bands=("red", "green"), scale=1.0, mean=(0.5, 0.4), std=(0.2, 0.1))
    assert model.recipe["arguments"]["channels"] == [16, 12, 10, 8, 6]
    assert model.eval()(torch.zeros(1, 2, 32, 32)).shape == (1, 4, 32, 32)


def test_yaml_passes_the_options_of_a_decoder_of_smp():
    model = from_yaml(
        f"""
        model:
          class_path: visionapps.models.smp
          init_args:
            decoder: FPN
            backbone: {RESNET}
            num_classes: 2
            options: {{decoder_segmentation_channels: 32, decoder_dropout: 0.5}}
        """
    )
    assert model.recipe["arguments"]["options"] == {"decoder_segmentation_channels": 32, "decoder_dropout": 0.5}
    assert build(model.recipe).decoder.decoder.dropout.p == 0.5


@pytest.mark.parametrize("wrong", ["upsample: cubic", "classes: 3", "finest_stride: one"])
def test_yaml_with_a_wrong_key_or_value_is_refused_before_anything_is_built(wrong):
    text = f"{{class_path: visionapps.models.unet, init_args: {{backbone: {RESNET}, num_classes: 2, {wrong}}}}}"
    with pytest.raises(Exception, match=wrong.split(":")[0]):
        from_yaml(f"model: {text}")
