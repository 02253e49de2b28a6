"""Networks without padding become pyramids: exact sizes, the same weights, the same numbers away from the border."""

import importlib
from functools import partial

import timm
import torch
from torch import nn

from visionapps.backbones import pyramid
from visionapps.backbones.norms import FrozenBatchNorm, freeze_norms
from visionapps.backbones.same_padding import same_padding
from visionapps.testing import check_backbone


def test_layers_of_odd_kernels_are_padded_by_half_and_others_left_alone():
    layers = nn.Sequential(
        nn.Conv2d(1, 1, 7, stride=2),
        nn.Conv2d(1, 1, (1, 5), dilation=(1, 2)),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.AvgPool2d(3, 1),
        nn.Conv2d(1, 1, 3, padding=4),
        nn.MaxPool2d(2, 2),
        nn.Conv2d(1, 1, 3, padding="same"),
    )
    same_padding(layers)
    assert [layer.padding for layer in layers] == [(3, 3), (0, 4), (1, 1), (1, 1), (4, 4), (0, 0), "same"]
    assert layers[2].ceil_mode is False
    ones = layers[3](torch.ones(1, 1, 4, 4))
    assert torch.equal(ones, torch.ones(1, 1, 4, 4))  # the mean of ones is one at the border, too


def test_inceptions_keep_the_contract_and_their_weights_load(tmp_path):
    theirs = timm.create_model("inception_v3").eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = pyramid("inception_v3", weights=str(tmp_path / "weights.pth")).eval()
    ours.load_pretrained()
    check_backbone(ours)
    assert [tuple(level) for level in ours.levels] == [(2, 64), (4, 192), (8, 288), (16, 768), (32, 2048)]


def test_a_padded_block_of_inception_gives_the_same_numbers_inside():
    valid = partial(timm.layers.ConvNormAct, padding=0)  # as timm's Inception builds its blocks
    for name, options in (("timm.models.inception_v3", {"conv_block": valid}), ("torchvision.models.inception", {})):
        block = nn.Sequential(importlib.import_module(name).InceptionB(8, **options)).eval()
        image = torch.randn(1, 8, 16, 16)
        with torch.no_grad():
            plain = block(image)  # 7 x 7: output i looks at 2 i to 2 i + 2
            same_padding(block)
            padded = block(torch.nn.functional.pad(image, (1, 0, 1, 0)))  # pads once more: moved by one output
        assert padded.shape[-2:] == (9, 9)
        torch.testing.assert_close(padded[..., 2:7, 2:7], plain[..., 1:6, 1:6])


def test_other_networks_without_padding_keep_the_contract():
    for name in ("legacy_xception", "inception_v4", "torchvision/inception_v3", "torchvision/alexnet", "nasnetalarge"):
        with torch.device("meta"):
            strides = [level.stride for level in pyramid(name).levels]
        assert strides in ([2, 4, 8, 16, 32], [4, 8, 16, 32])


def test_frozen_norms_compute_as_in_evaluation_and_load_the_same_state():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), timm.layers.BatchNormAct2d(4), nn.BatchNorm2d(4))
    network[3].track_running_stats, network[3].running_mean, network[3].running_var = False, None, None
    for norm in network[1:3]:
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            tensor.uniform_(0.5, 2)
    state = {k: v.clone() for k, v in network.state_dict().items()}
    image = torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        expected = network.eval()[:3](image)
    assert freeze_norms(network) == 2  # the third has no statistics to keep
    network.train()
    assert network.state_dict().keys() == state.keys()
    network.load_state_dict(state)
    got = network[:3](image)
    assert torch.equal(got, expected)  # bit for bit, in training mode as well
    got.sum().backward()
    assert network[0].weight.grad is not None
    assert isinstance(network[1], FrozenBatchNorm)
    assert sum(p.numel() for p in network[:3].parameters()) == 3 * 4 + 4
    assert torch.equal(network[1].running_mean, state["1.running_mean"])


def test_frozen_norms_may_have_an_eps_of_their_own():
    network = nn.Sequential(nn.BatchNorm2d(2))
    network[0].running_var.fill_(4.0)
    freeze_norms(network, eps=0.0)
    torch.testing.assert_close(network(torch.full((1, 2, 1, 1), 6.0)), torch.full((1, 2, 1, 1), 3.0))
