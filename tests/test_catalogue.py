"""The list of all architectures: every published count, look-alikes told apart, unknown names, and a new network."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from test_small_networks import COUNTS as COUNTED

from visionapps.backbones import pyramid
from visionapps.cli.main import main
from visionapps.errors import ConfigError
from visionapps.models import fcn8s, retinanet
from visionapps.models.measure import measure, parameters_of
from visionapps.networks import catalogue
from visionapps.networks.catalogue import OWN, Own, entries, facts, own_network, unknown
from visionapps.testing import check_backbone, check_detector, check_segmentor

ROOT = Path(__file__).parents[1]

# Side in pixels, parameters, and multiply-adds in units of 10^9 (four digits), counted on other implementations before
# any of this was written; a paper prints this number rounded, or none. LeNet-5 and MSDNet are counted by their own
# tests: connections in the one, exits in the other.
COUNTS = """
visionapps/lenet5 32 60000 -
visionapps/lenet5_plain 32 61706 0.0004165
visionapps/alexnet 227 60965224 0.7244
visionapps/alexnet_one_tower 227 62378344 1.135
torchvision/alexnet 224 61100840 0.7142
visionapps/zfnet 224 62357608 1.168
visionapps/overfeat_fast 231 145920872 2.801
visionapps/overfeat_accurate 221 144656488 5.355
visionapps/nin 224 7595176 1.1
visionapps/vgg_a 224 132863336 7.609
visionapps/vgg_a_lrn 224 132863336 7.609
visionapps/vgg_b 224 133047848 11.31
visionapps/vgg_c 224 133638952 11.77
visionapps/vgg_d 224 138357544 15.47
visionapps/vgg_e 224 143667240 19.63
torchvision/vgg11 224 132863336 7.609
torchvision/vgg13 224 133047848 11.31
torchvision/vgg16 224 138357544 15.47
torchvision/vgg19 224 143667240 19.63
vgg16 224 138357544 15.47
visionapps/googlenet 224 6998552 1.583
visionapps/googlenet_auxiliary 224 13378280 1.583
torchvision/googlenet 224 6624904 1.498
visionapps/bn_inception 224 11285224 2.033
torchvision/inception_v3 299 23834568 5.713
inception_v3 299 23834568 5.713
inception_v4 299 42679816 12.25
inception_resnet_v2 299 55843464 13.16
visionapps/inception_resnet_v2 299 33782664 8.51
visionapps/plain18 224 11515688 1.795
visionapps/plain34 224 21623848 3.644
torchvision/resnet18 224 11689512 1.814
torchvision/resnet34 224 21797672 3.664
torchvision/resnet50 224 25557032 4.089
torchvision/resnet101 224 44549160 7.801
torchvision/resnet152 224 60192808 11.51
visionapps/resnet50 224 25557032 3.86
visionapps/resnet101 224 44549160 7.57
visionapps/resnet152 224 60192808 11.28
resnet200 224 64673832 15.01
visionapps/resnet20 32 269722 0.04055
visionapps/resnet32 32 464154 0.06886
visionapps/resnet44 32 658586 0.09717
visionapps/resnet56 32 853018 0.1255
visionapps/resnet110 32 1727962 0.2529
visionapps/resnet1202 32 19421274 2.829
visionapps/plain20 32 269722 0.04055
visionapps/plain32 32 464154 0.06886
visionapps/plain44 32 658586 0.09717
visionapps/plain56 32 853018 0.1255
visionapps/plain110 32 1727962 0.2529
visionapps/resnet110_bn_after_add 32 1727962 0.2529
visionapps/resnet110_relu_before_add 32 1727962 0.2529
visionapps/resnet110_relu_preact 32 1727962 0.2529
visionapps/resnet110_full_preact 32 1727962 0.2529
visionapps/resnet164_original 32 1704154 0.2476
visionapps/resnet164_bn_after_add 32 1704154 0.2476
visionapps/resnet164_relu_before_add 32 1704154 0.2476
visionapps/resnet164_relu_preact 32 1704154 0.2476
visionapps/resnet164_full_preact 32 1703258 0.2476
visionapps/resnet1001 32 10327706 1.491
resnetv2_50 224 25549352 4.089
resnetv2_50x1_bit 224 25549352 4.089
resnetv2_101x3_bit 224 387934888 69.49
resnetv2_152x4_bit 224 936533224 182.8
torchvision/resnext50_32x4d 224 25028904 4.23
resnext101_32x4d 224 44177704 7.97
torchvision/resnext101_64x4d 224 83455272 15.46
visionapps/resnext101_2x64d 224 84198184 15.12
visionapps/resnet101_1x100d 224 85611336 15.27
torchvision/wide_resnet101_2 224 126886696 22.75
visionapps/wide_resnet28_10 32 36479194 5.243
torchvision/densenet121 224 7978856 2.834
torchvision/densenet169 224 14149480 3.36
torchvision/densenet201 224 20013928 4.291
torchvision/densenet161 224 28681000 7.728
visionapps/densenet264 224 33337704 5.752
visionapps/densenet40_k12 32 1019722 0.2648
visionapps/densenet100_k12 32 6979642 1.77
visionapps/densenet100_k24 32 27249082 6.889
visionapps/densenet_bc100_k12 32 769162 0.2879
visionapps/densenet_bc250_k24 32 15324406 5.419
visionapps/densenet_bc190_k40 32 25624430 9.302
visionapps/highway19 32 342970 0.06296
torchvision/efficientnet_b0 224 5288548 0.3858
torchvision/efficientnet_b1 240 7794184 0.6868
torchvision/efficientnet_b2 260 9109994 0.9936
torchvision/efficientnet_b3 300 12233232 1.827
torchvision/efficientnet_b4 380 19341616 4.394
torchvision/efficientnet_b5 456 30389784 10.27
torchvision/efficientnet_b6 528 43040704 19.07
torchvision/efficientnet_b7 600 66347960 37.75
efficientnet_b0 224 5288548 0.3858
efficientnet_b7 600 66347960 37.75
visionapps/mobilenet_v1 224 4231976 0.5687
mobilenetv1_100 224 4231976 0.5687
visionapps/conv_mobilenet 224 29294088 4.867
torchvision/mobilenet_v2 224 3504872 0.3008
mobilenetv2_100 224 3504872 0.3008
torchvision/vit_b_16 224 86567656 17.56
vit_base_patch16_224 224 86567656 17.56
torchvision/vit_l_16 224 304326632 61.55
torchvision/vit_h_14 224 632045800 167.3
visionapps/vit_p_1gf 224 4830376 1.079
visionapps/vit_c_1gf 224 4567936 1.076
visionapps/vit_p_4gf 224 18507112 3.902
visionapps/vit_c_4gf 224 17754136 3.959
visionapps/vit_p_18gf 224 86567656 17.56
visionapps/vit_c_18gf 224 81573160 17.71
visionapps/vit_p_36gf 224 178364392 35.97
visionapps/vit_c_36gf 224 167796008 35
torchvision/convnext_tiny 224 28589128 4.456
torchvision/convnext_small 224 50223688 8.684
torchvision/convnext_base 224 88591464 15.35
torchvision/convnext_large 224 197767336 34.36
convnext_xlarge 224 350196968 60.92
torchvision/swin_t 224 28288354 4.491
visionapps/msdnet 32 3966664 -
"""
ROWS = [line.split() for line in COUNTS.split("\n") if line]
# One of each provider and way of counting; all others are measured by tools/make_zoo.py --check.
MEASURED_HERE = (
    "visionapps/lenet5_plain",
    "visionapps/alexnet",
    "visionapps/googlenet",
    "visionapps/resnet20",
    "torchvision/resnet50",
    "mobilenetv2_100",
)


@pytest.mark.parametrize(("name", "side", "parameters", "billions"), ROWS, ids=[row[0] for row in ROWS])
def test_every_published_count_is_what_was_measured(name, side, parameters, billions):
    got = facts()[name]
    assert (got["native"], got["parameters"]) == (int(side), int(parameters))
    if billions != "-":
        assert got["multiply_adds"] / 1e9 == pytest.approx(float(billions), rel=1e-3)


@pytest.mark.parametrize("name", MEASURED_HERE)
def test_what_is_stored_is_what_is_measured(name):
    assert measure(entries()[name]) == facts()[name]


def test_parameters_of_every_network_written_here_are_those_that_are_stored():
    """Of libraries' networks too, `python tools/make_zoo.py --check` measures everything, in minutes."""
    for name, own in OWN.items():
        if name in COUNTED:  # built and counted there: deep ones take seconds
            count = COUNTED[name][0]
        else:
            with torch.device("meta"):
                count = parameters_of(own.build())
        assert count == facts()[f"visionapps/{name}"]["parameters"], name


def test_every_line_has_facts_and_every_fact_a_line():
    assert set(facts()) == set(entries())
    for name, entry in entries().items():
        assert 1989 <= entry.year <= 2026, name
        assert entry.source, name


def test_look_alikes_name_the_right_network_which_is_another():
    wrong = {name: entry for name, entry in entries().items() if entry.instead}
    assert {"torchvision/alexnet", "torchvision/googlenet", "inception_resnet_v2", "densenet264d"} <= set(wrong)
    for name, entry in wrong.items():
        assert entry.note, name
        one, other = facts()[name], facts()[entry.instead]
        kept = ("parameters", "multiply_adds")
        assert [one[key] for key in kept] != [other[key] for key in kept], name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Clarifai", "Clarifai .* has no public definition"),
        ("torchvision/fcn_resnet50", "without skips, not the FCN of Long et al. 2015; build visionapps.models.fcn8s"),
        ("SIFT+FV", "no convolutional network and is not built here; the baseline here is a linear probe"),
        ("mkl", "no convolutional network and is not built here; the baseline here is a linear probe"),
        ("bof", "no convolutional network and is not built here; the baseline here is a linear probe"),
        ("vgg_F", "there is no such network; did you mean visionapps/vgg_"),
        ("visionapps/alexnett", "did you mean visionapps/alexnet"),
        ("torchvision/resnet_50", "did you mean torchvision/resnet50"),
        ("resnet_20", "did you mean visionapps/resnet20"),
        ("qqqqqqqqq", r"'qqqqqqqqq': there is no such network; `visionapps models` lists them"),
    ],
)
def test_an_unknown_name_is_answered_over_all_providers(name, text):
    assert re.search(text, str(unknown(name, ("resnet50", "torchvision/resnet50"))))


def test_an_unknown_own_network_is_refused_where_it_is_built():
    with pytest.raises(ConfigError, match="network 'vgg_q': there is no such network; did you mean visionapps/vgg_"):
        own_network("vgg_q")


# ---- the verb


def shown(capsys, *words: str) -> str:
    assert main(["models", *words]) == 0
    return capsys.readouterr().out


def test_the_list_shows_what_was_measured_and_marks_look_alikes(capsys):
    lines = [line.split() for line in shown(capsys, "*googlenet").splitlines()]
    own = next(line for line in lines if line[:1] == ["visionapps/googlenet"])
    assert {"2015", "224", "7.00", "1.58", "32"} <= set(own)
    theirs = next(line for line in lines if line[:1] == ["torchvision/googlenet*"])
    assert {"6.62", "1.50"} <= set(theirs)
    assert any("3x3 where the paper has 5x5" in " ".join(line) for line in lines)
    assert any(" ".join(line).endswith("the right one is visionapps/googlenet") for line in lines)


def test_the_list_goes_by_pattern_and_task(capsys):
    everything = shown(capsys)
    assert all(f"\n{name}" in everything for name in entries())
    detectors = shown(capsys, "--task", "detection")
    assert "\nretinanet " in detectors
    assert "\nunet " not in detectors
    assert "visionapps/vgg_a" not in detectors
    networks = json.loads(shown(capsys, "visionapps/vgg_?", "--json"))
    assert networks["models"] == []
    assert [each["name"] for each in networks["networks"]] == [f"visionapps/vgg_{letter}" for letter in "abcde"]
    assert {each["provider"] for each in networks["networks"]} == {"visionapps"}
    assert main(["models", "no-such-*"]) == 1
    assert "nothing is called like that" in capsys.readouterr().err
    for words, text in (
        (["visionapps/vgg*", "--task", "detection"], "nothing for detection is called like that; leave out --task"),
        (["--size", "64"], "models --size: a list has none of one network's details; leave that out"),
        (["--backbones", "resnet*", "--json"], "models --json: --backbones lists names; leave that out"),
        (["visionapps/vgg_a", "--task", "detection"], "models --task: visionapps/vgg_a is one name; leave that out"),
    ):
        assert main(["models", *words]) == 1
        assert text in capsys.readouterr().err


# ---- one file and one line


def test_a_network_of_one_file_and_one_line_works_everywhere(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n# visionapps/networks/pebble.py\n(.*?)```", page, re.DOTALL)
    assert found
    (tmp_path / "pebble.py").write_text(found[1])
    pebble = loaded(tmp_path / "pebble.py")
    monkeypatch.setitem(catalogue.OWN, "pebble", Own(pebble.pebble, 2026, "this page"))
    row = next(line for line in shown(capsys, "visionapps/*bble").splitlines() if line.startswith("visionapps/pebble"))
    weights = sum(3**2 * a * b + 3 * b for a, b in ((3, 8), (8, 16), (16, 24), (24, 32), (32, 40))) + 410
    assert f" {weights / 1e6:.2f} M " in row
    assert "2 4 8 16 32" in row
    body = pyramid("visionapps/pebble")
    assert [tuple(level) for level in body.levels] == [(2, 8), (4, 16), (8, 24), (16, 32), (32, 40)]
    check_backbone(body, (2, 3))
    check_segmentor(fcn8s("visionapps/pebble", 3))
    check_detector(retinanet("visionapps/pebble", 2))
    with torch.no_grad():
        assert own_network("pebble", num_classes=7, bands=4).eval()(torch.rand(2, 4, 64, 64)).shape == (2, 7)


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_the_page_is_the_one_that_the_tool_writes():
    tool = loaded(ROOT / "tools" / "make_zoo.py")
    page = (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")
    assert tool.architectures(entries(), facts()) in page
