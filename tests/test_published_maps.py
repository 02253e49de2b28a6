"""Segmentation models as they were published: exact counts, the paper's sizes, and the contract of all others."""

from fractions import Fraction

import pytest
import torch
from torch import nn

from visionapps.arithmetic import Sliding, receptive_field
from visionapps.errors import ConfigError
from visionapps.models import build
from visionapps.models.published_maps import deconvnet_2015, fcn8s_2015, fcn16s_2015, fcn32s_2015, unet_2015
from visionapps.segmentation.published import FCNTrunk, PublishedFCN
from visionapps.structures import InputSpec
from visionapps.testing import check_segmentor

K = 3
NARROW = (2, 3, 4, 5, 6)
GREY = InputSpec(bands=("grey",), mean=(0.5,), std=(0.5,))
TINY = {
    "fcn32s_2015": lambda: fcn32s_2015(K, channels=NARROW, hidden=7),
    "fcn16s_2015": lambda: fcn16s_2015(K, channels=NARROW, hidden=7),
    "fcn8s_2015": lambda: fcn8s_2015(K, channels=NARROW, hidden=7),
    "deconvnet_2015": lambda: deconvnet_2015(K, channels=NARROW, hidden=7),
    "unet_2015": lambda: unet_2015(K, channels=NARROW),
    "unet_2015 padded": lambda: unet_2015(K, channels=NARROW, valid=False),
}


@pytest.mark.parametrize(
    ("wire", "parameters"),
    [
        (lambda: fcn32s_2015(21), 136_152_917),
        (lambda: fcn16s_2015(21), 134_815_994),
        (lambda: fcn8s_2015(21), 134_489_759),
        (lambda: deconvnet_2015(21), 251_805_653),
        (lambda: unet_2015(2, spec=GREY), 31_030_658),
        (lambda: unet_2015(25, valid=False), 31_033_305),
    ],
)
def test_a_published_model_has_exactly_the_parameters_of_the_authors_network(wire, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in wire().parameters()) == parameters


@pytest.mark.parametrize("name", TINY)
def test_a_published_model_keeps_the_contract_and_is_built_again_from_its_recipe(name):
    torch.manual_seed(0)
    model = TINY[name]()
    check_segmentor(model, ((33, 50), (1, 7)))
    again = build(model.recipe)
    shapes = [{key: tuple(value.shape) for key, value in each.state_dict().items()} for each in (model, again)]
    assert shapes[0] == shapes[1]
    assert again.recipe == model.recipe


@pytest.mark.parametrize("wire", [fcn32s_2015, fcn16s_2015, fcn8s_2015])
@pytest.mark.parametrize("side", [1, 31, 32, 33, 225, 500])
def test_the_crops_of_an_fcn_leave_at_least_the_image(wire, side):
    with torch.device("meta"):
        model = wire(K, channels=NARROW, hidden=7)
        assert model(torch.zeros(1, 3, side, side)).shape[2:] == (side, side)


def test_a_score_of_fcn32s_sees_404_pixels_at_stride_32():
    with torch.device("meta"):
        trunk = FCNTrunk(InputSpec(), NARROW)
        head = PublishedFCN(trunk.levels, K, finest_stride=32, hidden=7).head
    windows = []
    for block in trunk.blocks:
        windows += [Sliding(3) for each in block if isinstance(each, nn.Conv2d)] + [Sliding(2, 2)]
    windows += [Sliding(each.kernel_size[0]) for each in head if isinstance(each, nn.Conv2d)]
    field = receptive_field(windows)
    assert (field.size, field.jump) == (Fraction(404), Fraction(32))


def test_fcn_begins_as_bilinear_interpolation_that_is_fixed_at_the_end_only():
    model = TINY["fcn8s_2015"]()
    assert [layer.weight.requires_grad for layer in model.decoder.upsamples] == [True, True, False]
    assert all(layer.padding == (0, 0) for layer in model.decoder.upsamples)


def test_unet_makes_388_pixels_of_572_and_sees_the_image_mirrored_around_them():
    model = unet_2015(K, channels=NARROW).eval()
    with torch.device("meta"):
        assert unet_2015(K, channels=NARROW).to("meta").decoder(
            unet_2015(K, channels=NARROW).to("meta").backbone(torch.zeros(1, 3, 572, 572))
        ).shape == (1, K, 388, 388)
    row = torch.arange(5.0).expand(1, 3, 1, 5)
    seen = model.framed(row)
    assert seen.shape == (1, 3, 4 + 184, 20 + 184)
    assert seen[0, 0, 0, 92 - 6 : 92 + 9].tolist() == [2, 3, 4, 3, 2, 1, 0, 1, 2, 3, 4, 3, 2, 1, 0]


def test_a_middle_crop_gets_the_logits_of_the_whole_image_where_it_sees_the_same_pixels():
    torch.manual_seed(0)
    model = unet_2015(K, channels=NARROW).eval()
    image = torch.rand(1, 3, 228, 228) * 255
    with torch.no_grad():
        whole = model(image)
        direct = model.decoder(model.backbone(model.normalize(image[..., 4:208, 4:208])))
    torch.testing.assert_close(whole[..., 96:116, 96:116], direct, rtol=1e-3, atol=1e-4)


def test_deconvnet_unpools_to_the_places_that_its_own_pooling_recorded():
    model = TINY["deconvnet_2015"]().eval()
    with torch.no_grad():
        pooled, *switches = model.backbone(torch.randn(1, 3, 224, 224))
    assert pooled.shape == (1, 6, 7, 7)
    assert [tuple(each.shape) for each in switches] == [(1, n, 224 >> i, 224 >> i) for i, n in enumerate(NARROW, 1)]


@pytest.mark.parametrize("wire", [fcn8s_2015, deconvnet_2015, unet_2015])
def test_widths_and_classes_that_cannot_be_are_refused(wire):
    with pytest.raises(ConfigError, match="give five positive widths, and hidden >= 1"):
        wire(K, channels=(1, 2, 3))
    with pytest.raises(ConfigError, match="num_classes is 0; choose 1 to 255"):
        wire(0)
