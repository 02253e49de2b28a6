"""ENet: its table of maps, switches that are those of the encoder, and what the paper counts."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from visionapps.backbones import pyramid
from visionapps.errors import ConfigError
from visionapps.models import enet
from visionapps.networks import enet as encoder
from visionapps.segmentation.enet import ENetDecoder, Upsampling
from visionapps.structures import InputSpec, Level
from visionapps.testing import check_segmentor


def test_the_maps_of_the_encoder_have_the_sizes_of_the_table():
    with torch.device("meta"):
        network = encoder.enet().eval()
        image = torch.zeros(1, 3, 512, 512)
    found = {}
    for name, step in network.features.named_children():
        image = step(image)
        found[name] = tuple(image.shape[1:])
    assert found["initial"] == (16, 256, 256)
    assert {size for name, size in found.items() if name.startswith("bottleneck1")} == {(64, 128, 128)}
    assert {size for name, size in found.items() if name[:11] in ("bottleneck2", "bottleneck3")} == {(128, 64, 64)}
    assert sum(name.startswith("bottleneck") for name in found) == 5 + 9 + 8


def test_the_bottlenecks_of_a_stage_look_as_far_as_the_table_says():
    with torch.device("meta"):
        features = encoder.enet().features
    for stage, first in ((2, 1), (3, 0)):
        kernels = []
        for place in range(first, first + 8):
            convs = [
                layer
                for layer in features.get_submodule(f"bottleneck{stage}_{place}").modules()
                if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)
            ]
            kernels.append([(*conv.kernel_size, conv.dilation[0]) for conv in convs])
        thrice, twice = [(3, 3, 1)], [(5, 1, 1), (1, 5, 1)]
        expected = [thrice, [(3, 3, 2)], twice, [(3, 3, 4)], thrice, [(3, 3, 8)], twice, [(3, 3, 16)]]
        assert kernels == expected


def test_enet_is_as_small_as_its_paper_says():
    with torch.device("meta"):
        model = enet("visionapps/enet", 19)
    # "0.37 M" in table 4, where the authors' code has biases in some layers that have none here.
    assert sum(value.numel() for value in model.parameters()) == pytest.approx(0.37e6, rel=0.04)


def test_the_switches_are_the_places_from_which_the_encoder_pooled():
    torch.manual_seed(0)
    backbone = pyramid("visionapps/enet").eval()
    image = torch.randn(1, 3, 48, 64)
    pooled: dict[int, torch.Tensor] = {}

    def keep(module: nn.MaxPool2d, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        pooled[arguments[0].shape[1]] = output

    for module in backbone.modules():
        if isinstance(module, encoder.Downsampling):
            module.pool.register_forward_hook(keep)
    maps = backbone(image)
    assert [(level.stride, level.channels) for level in backbone.levels] == [(2, 16), (4, 64), (8, 128)]
    for fine in maps[:2]:
        maxima, switches = F.max_pool2d(fine, 2, return_indices=True)
        assert torch.equal(maxima, pooled[fine.shape[1]])
        back = fine.flatten(2).gather(2, switches.flatten(2)).view_as(maxima)
        assert torch.equal(back, maxima)


def test_upsampling_puts_the_projected_map_at_the_maxima_of_the_finer_one():
    layer = Upsampling(4, 2).eval()
    for parameter in layer.branch.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        layer.project[0].weight.copy_(torch.eye(4)[:2].view(2, 4, 1, 1))
    coarse = torch.tensor([5.0, 7, 1, 1]).view(1, 4, 1, 1)
    fine = torch.tensor([[[0.0, 3], [1, 2]], [[0, 1], [9, 2]]])[None]
    result = layer(coarse, fine) * (1 + layer.project[1].eps) ** 0.5
    torch.testing.assert_close(result, torch.tensor([[[[0.0, 5], [0, 0]], [[0, 0], [7, 0]]]]))


def test_enet_takes_other_bands_and_keeps_the_contract_of_a_model():
    spec = InputSpec(bands=("red", "green", "blue", "infrared"), mean=(0.1, 0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7, 0.8))
    model = enet("visionapps/enet", 3, spec=spec)
    assert model.levels[0] == Level(2, 17)
    check_segmentor(model, ((64, 64), (33, 50)))


@pytest.mark.parametrize("strides", [(2,), (1, 2, 4), (2, 8)])
def test_strides_that_do_not_double_are_refused(strides):
    levels = [Level(stride, 8) for stride in strides]
    with pytest.raises(ConfigError, match=re.escape(f"ENet: cannot unpool between strides {list(strides)}; choose")):
        ENetDecoder(levels, 3)
