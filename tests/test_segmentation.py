"""Segmentation heads: against hand-computed numbers, plain loops, torch and segmentation_models_pytorch itself."""

import itertools

import numpy as np
import pytest
import segmentation_models_pytorch as library
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.backbones.base import Backbone
from visionapps.errors import ConfigError
from visionapps.segmentation.base import Segmentor
from visionapps.segmentation.deconvnet import DeconvNet, Unpooling
from visionapps.segmentation.fcn import FCN, bilinear_deconvolution
from visionapps.segmentation.smp import SmpDecoder, demand
from visionapps.segmentation.unet import UNet
from visionapps.structures import InputSpec, Level
from visionapps.testing import TinyBackbone, check_segmentor

K = 3
SMP = {  # small options, so that the tests are quick
    "Unet": {"decoder_channels": [16, 12, 8, 6, 4]},
    "UnetPlusPlus": {"decoder_channels": [16, 12, 8, 6, 4]},
    "MAnet": {"decoder_channels": [16, 12, 8, 6, 4], "decoder_pab_channels": 8},
    "Linknet": {},
    "FPN": {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32},
    "PSPNet": {"psp_out_channels": 16},
    "PAN": {"decoder_channels": 8},
    "DeepLabV3": {"decoder_channels": 16},
    "DeepLabV3Plus": {"decoder_channels": 16},
    "UPerNet": {"decoder_channels": 16},
    "Segformer": {"decoder_segmentation_channels": 16},
}
RAW = InputSpec(scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Strided(Backbone):
    """A chain of poolings and 1 x 1 convolutions to any pyramid, also one that is dilated or begins at stride 4."""

    def __init__(self, levels: dict[int, int]) -> None:
        super().__init__()
        self.spec = InputSpec()
        self.levels = tuple(Level(stride, channels) for stride, channels in levels.items())
        self.factors = [b // a for a, b in itertools.pairwise((1, *levels))]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in itertools.pairwise((3, *levels.values())))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = [image]
        for factor, conv in zip(self.factors, self.convs, strict=True):
            maps.append(conv(F.avg_pool2d(maps[-1], factor)).relu())
        return tuple(maps[1:])


class FromLibrary(Backbone):
    """An encoder of the library as our backbone: the maps of the demanded strides, the deepest of each."""

    def __init__(self, encoder: nn.Module, strides: tuple[int, ...], sizes: list[int]) -> None:
        super().__init__()
        self.spec, self.encoder = RAW, encoder
        last = {stride: i for i, stride in enumerate(sizes)}
        self.kept = [last[s] for s in strides if s in last and encoder.out_channels[last[s]] > 0]
        self.levels = tuple(Level(sizes[i], encoder.out_channels[i]) for i in self.kept)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self.encoder(image)
        return tuple(maps[i] for i in self.kept)


# ---- FCN


@pytest.mark.parametrize("factor", [2, 8, 32])
def test_a_new_deconvolution_interpolates_bilinearly_away_from_the_border(factor):
    image = torch.randn(1, 2, 6, 5, generator=torch.Generator().manual_seed(0))
    ours = bilinear_deconvolution(2, factor)(image)
    expected = F.interpolate(image, scale_factor=factor, mode="bilinear", align_corners=False)
    assert ours.shape == expected.shape
    inner = slice(factor // 2, -(factor // 2))
    torch.testing.assert_close(ours[..., inner, inner], expected[..., inner, inner])
    assert (ours - expected)[..., 0, :].abs().max() > 0.01  # zeros flow in at the border


def test_the_kernel_for_factor_two_is_the_product_of_two_tents():
    tent = torch.tensor([0.25, 0.75, 0.75, 0.25])
    weight = bilinear_deconvolution(2, 2).weight
    torch.testing.assert_close(weight[0, 0], torch.outer(tent, tent))
    assert weight[0, 1].eq(0).all()


def test_an_odd_factor_keeps_the_size_exact():
    row = torch.tensor([[[[3.0, 6.0]]]])
    # thirds between the centres at pixels 1 and 4
    expected = torch.tensor([2.0, 3, 4, 5, 6, 4])
    torch.testing.assert_close(bilinear_deconvolution(1, 3)(row)[0, 0, 1], expected)


def test_fcn8s_adds_the_scores_of_three_strides_in_the_order_of_the_paper():
    levels = [Level(8, 1), Level(16, 1), Level(32, 1)]
    net = FCN(levels, 1, finest_stride=8, dropout=0.0)
    for score, weight in zip(net.scores, (1.0, 10.0, 100.0), strict=True):  # strides 32, 16, 8
        nn.init.constant_(score.weight, weight)
    maps = torch.full((1, 1, 32, 32), 3.0), torch.full((1, 1, 16, 16), 2.0), torch.full((1, 1, 8, 8), 1.0)
    logits = net(maps)
    assert logits.shape == (1, 1, 256, 256)
    assert logits[0, 0, 100:150, 100:150].sub(1 * 1 + 10 * 2 + 100 * 3).abs().max() < 1e-3


@pytest.mark.parametrize(("stride", "touched"), [(32, {32}), (16, {16, 32}), (8, {8, 16, 32})])
def test_each_fcn_reads_exactly_the_strides_of_its_name(stride, touched):
    net = FCN(TinyBackbone().levels, K, finest_stride=stride)
    for score in net.scores:
        nn.init.ones_(score.weight)
    maps = [torch.ones(1, c, 64 // s, 64 // s, requires_grad=True) for s, c in TinyBackbone().levels]
    net(tuple(maps)).sum().backward()
    got = {64 // m.shape[-1] for m in maps if m.grad is not None and m.grad.abs().sum() > 0}
    assert got == touched


def test_a_new_fcn_starts_with_zero_logits_as_in_the_paper():
    model = Segmentor(backbone := TinyBackbone(), FCN(backbone.levels, K, head_channels=7), K)
    assert model(torch.rand(2, 3, 40, 40)).eq(0).all()


def test_the_head_of_the_paper_is_a_seven_and_a_one_pixel_convolution():
    net = FCN(TinyBackbone().levels, K, head_channels=20)
    shapes = [tuple(m.weight.shape) for m in net.head.modules() if isinstance(m, nn.Conv2d)]
    assert shapes == [(20, 12, 7, 7), (20, 20, 1, 1)]


# ---- U-Net


@pytest.mark.parametrize("upsample", ["bilinear", "nearest", "deconv"])
@pytest.mark.parametrize("finest_stride", [1, 2, 4])
def test_unet_logits_have_the_finest_stride_asked_for(upsample, finest_stride):
    backbone = TinyBackbone()
    net = UNet(backbone.levels, K, upsample=upsample, finest_stride=finest_stride)
    assert net.stride == finest_stride
    logits = net(backbone(torch.rand(1, 3, 64, 96)))
    assert logits.shape == (1, K, 64 // finest_stride, 96 // finest_stride)


def test_unet_joins_each_map_at_its_own_stride():
    levels = (Level(2, 1), Level(4, 1))
    net = UNet(levels, 1, channels=[1, 1], upsample="nearest").eval()
    for step, (coarse, skip) in zip(net.steps, [(10.0, 1.0), (1.0, 0.0)], strict=True):
        for conv in (step.convs[0], step.convs[3]):
            nn.init.zeros_(conv.weight)
            conv.weight.data[0, 0, 1, 1] = 1.0
        step.convs[0].weight.data[0, 0, 1, 1] = coarse
        if skip:
            step.convs[0].weight.data[0, 1, 1, 1] = skip
    nn.init.ones_(net.score.weight)
    nn.init.zeros_(net.score.bias)
    fine, coarse = torch.arange(4.0).view(1, 1, 2, 2), torch.full((1, 1, 1, 1), 2.0)
    expected = (20 + torch.arange(4.0)).view(2, 2).repeat_interleave(2, 0).repeat_interleave(2, 1)
    torch.testing.assert_close(net((fine, coarse))[0, 0], expected, rtol=1e-4, atol=0)  # eps of the batch norms


def test_the_deconvolution_of_unet_is_two_by_two_and_narrows_before_the_join():
    net = UNet([Level(2, 5), Level(4, 9)], K, channels=[7, 6], upsample="deconv")
    assert net.steps[0].deconv.weight.shape == (9, 7, 2, 2)
    assert net.steps[0].convs[0].weight.shape == (7, 7 + 5, 3, 3)


# ---- DeconvNet


def test_unpooling_puts_values_where_the_maxima_were():
    """The switches are the places of the maxima of the finer map; a loop over cells places the same numbers."""
    step = Unpooling(1, 1, 1, 2)
    nn.init.ones_(step.project.weight)
    nn.init.zeros_(step.project.bias)
    step.fill = nn.Sequential()
    fine = torch.randn(1, 1, 6, 4, generator=torch.Generator().manual_seed(0))
    coarse = torch.arange(1.0, 7.0).view(1, 1, 3, 2)
    expected = np.zeros((6, 4), dtype=np.float32)
    for i in range(3):
        for j in range(2):
            cell = fine[0, 0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].numpy()
            row, col = np.unravel_index(cell.argmax(), (2, 2))
            expected[2 * i + row, 2 * j + col] = coarse[0, 0, i, j] + cell.max()
    np.testing.assert_allclose(step(coarse, fine)[0, 0].detach().numpy(), expected, rtol=1e-6)


def test_unpooling_a_zero_map_inverts_the_pooling_at_the_recorded_places():
    step = Unpooling(2, 2, 2, 2)
    step.project = nn.Identity()
    step.fill = nn.Sequential()
    fine = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    sparse = step(torch.zeros(1, 2, 2, 2), fine)
    torch.testing.assert_close(F.max_pool2d(sparse, 2), F.max_pool2d(fine, 2))
    assert (sparse != 0).sum() == 2 * 2 * 2
    assert torch.where(sparse != 0, sparse - fine, 0).eq(0).all()


@pytest.mark.parametrize("factor", [2, 4])
def test_deconvolution_fills_every_pixel_between_the_maxima(factor):
    step = Unpooling(1, 1, 1, factor).eval()
    for layer in step.fill:
        if isinstance(layer, nn.ConvTranspose2d):
            nn.init.ones_(layer.weight)
    fine = torch.rand(1, 1, 4 * factor, 4 * factor, generator=torch.Generator().manual_seed(2))
    nn.init.ones_(step.project.weight)
    assert (step(torch.ones(1, 1, 4, 4), fine) > 0).all()


# ---- the decoders of segmentation_models_pytorch


def library_model(name: str, encoder: str, options: dict) -> tuple[nn.Module, list[int]]:
    """The library's own model, and the stride of each of its encoder's maps."""
    wanted = demand(name, options)
    extra = {"encoder_output_stride": wanted.output_stride} if name in ("PAN", "DeepLabV3", "DeepLabV3Plus") else {}
    model = getattr(library, name)(encoder, encoder_weights=None, classes=K, **{**options, **extra}).eval()
    depth = len(model.encoder.out_channels) - 1
    return model, [min(2**i, wanted.output_stride) for i in range(depth + 1)]


def same_logits(name: str, encoder: str, options: dict, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    theirs, sizes = library_model(name, encoder, options)
    backbone = FromLibrary(theirs.encoder, demand(name, options).strides, sizes)
    ours = Segmentor(backbone, SmpDecoder(backbone.levels, K, name=name, options=options), K).eval()
    ours.decoder.decoder.load_state_dict(theirs.decoder.state_dict())
    ours.decoder.head.load_state_dict(theirs.segmentation_head.state_dict())
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = theirs(image)
        assert expected.std() > 1e-3
        torch.testing.assert_close(ours(image), expected)


@pytest.mark.parametrize("name", [n for n in SMP if n not in ("Segformer", "PAN")])
def test_logits_are_those_of_the_library_with_the_same_weights(name):
    same_logits(name, "resnet18", SMP[name], (64, 96))


def test_pan_has_the_logits_of_the_library_where_that_can_run_at_all():
    same_logits("PAN", "resnet18", SMP["PAN"], (256, 288))  # below 256 pixels the library's PAN fails


@pytest.mark.parametrize("name", ["Unet", "FPN", "Segformer"])
def test_logits_are_those_of_the_library_on_a_pyramid_from_stride_four(name):
    same_logits(name, "tu-test_convnext.r160_in1k", SMP[name], (64, 96))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Unet", {"encoder_depth": 3, "decoder_channels": [64, 32, 16], "decoder_attention_type": "scse"}),
        ("PSPNet", {"encoder_depth": 4, "upsampling": 16}),
        ("DeepLabV3Plus", {"encoder_output_stride": 8, "decoder_channels": 16}),
    ],
)
def test_options_mean_what_they_mean_in_the_library(name, options):
    ours = {k: v for k, v in options.items() if k != "upsampling"}  # which ours takes from the pyramid
    torch.manual_seed(0)
    theirs = getattr(library, name)("resnet18", encoder_weights=None, classes=K, **options).eval()
    wanted = demand(name, ours)
    sizes = [min(2**i, wanted.output_stride) for i in range(len(theirs.encoder.out_channels))]
    backbone = FromLibrary(theirs.encoder, wanted.strides, sizes)
    model = Segmentor(backbone, SmpDecoder(backbone.levels, K, name=name, options=ours), K).eval()
    model.decoder.decoder.load_state_dict(theirs.decoder.state_dict())
    model.decoder.head.load_state_dict(theirs.segmentation_head.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(image), theirs(image))


@pytest.mark.parametrize("name", SMP)
def test_every_decoder_of_the_library_keeps_the_contract(name):
    wanted = demand(name, SMP[name])
    backbone = Strided({s: 8 + s for s in wanted.strides})
    check_segmentor(Segmentor(backbone, SmpDecoder(backbone.levels, K, name=name, options=SMP[name]), K))


@pytest.mark.parametrize("name", ["Unet", "UnetPlusPlus", "MAnet", "Linknet", "UPerNet"])
def test_decoders_of_the_library_take_a_pyramid_from_stride_four(name):
    backbone = Strided({4: 8, 8: 12, 16: 16, 32: 20})
    check_segmentor(Segmentor(backbone, SmpDecoder(backbone.levels, K, name=name, options=SMP[name]), K))


@pytest.mark.parametrize(
    ("name", "options", "strides", "output_stride"),
    [
        ("Unet", None, (2, 4, 8, 16, 32), 32),
        ("Unet", {"encoder_depth": 3}, (2, 4, 8), 32),
        ("FPN", None, (4, 8, 16, 32), 32),
        ("PSPNet", None, (8,), 32),
        ("PAN", {"encoder_output_stride": 16}, (4, 8, 16), 16),
        ("DeepLabV3", None, (8,), 8),
        ("DeepLabV3Plus", None, (4, 16), 16),
    ],
)
def test_a_decoder_asks_only_for_the_strides_it_reads(name, options, strides, output_stride):
    wanted = demand(name, options)
    assert (wanted.strides, wanted.output_stride) == (strides, output_stride)


# ---- all of them


def heads() -> dict[str, object]:
    return {
        "fcn32s": lambda levels: FCN(levels, K, finest_stride=32),
        "fcn16s": lambda levels: FCN(levels, K, finest_stride=16),
        "fcn8s": lambda levels: FCN(levels, K, head_channels=9),
        "unet": lambda levels: UNet(levels, K, channels=(9, 8, 7, 6, 5)),
        "unet at stride 4, deconv": lambda levels: UNet(levels, K, upsample="deconv", finest_stride=4),
        "deconvnet": lambda levels: DeconvNet(levels, K, channels=(9, 8, 7, 6, 5)),
    }


@pytest.mark.parametrize("name", heads())
def test_our_heads_keep_the_contract_on_pyramids_from_stride_two_and_four(name):
    for backbone in (TinyBackbone(), Strided({4: 6, 8: 5, 16: 9, 32: 7})):
        check_segmentor(Segmentor(backbone, heads()[name](backbone.levels), K), ((64, 64), (33, 50), (1, 1)))


@pytest.mark.parametrize("name", ["fcn8s", "unet", "deconvnet"])
def test_our_heads_learn_to_tell_left_from_right(name):
    torch.manual_seed(0)
    model = Segmentor(backbone := TinyBackbone(), heads()[name](backbone.levels), K)
    image = torch.zeros(2, 3, 64, 64)
    image[..., 32:] = 255
    labels = (image[:, 0] > 0).long()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(25):
        optimizer.zero_grad()
        F.cross_entropy(model(image), labels).backward()
        optimizer.step()
    model.eval()
    assert (model(image).argmax(1) == labels).float().mean() > 0.9


LEVELS = TinyBackbone().levels


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: FCN(LEVELS[:4], K), "FCN-8s: needs a map of stride 32, but the backbone has strides 2, 4, 8, 16;"),
        (lambda: FCN(LEVELS, K, finest_stride=4), "finest_stride is 4; choose 32, 16 or 8"),
        (lambda: FCN(LEVELS, K, dropout=1.0), r"dropout 1.0 must be in \[0, 1\)"),
        (lambda: UNet(LEVELS, K, channels=[8, 8]), r"channels \[8, 8\] for 5 steps, from stride 32 to 1"),
        (lambda: UNet(LEVELS, K, finest_stride=3), "finest_stride 3 cannot be reached by halving"),
        (lambda: UNet(LEVELS, K, finest_stride=32), "choose 1, 2 or 4"),
        (lambda: UNet(LEVELS, K, upsample="cubic"), "upsample is 'cubic'; choose 'bilinear', 'deconv' or 'nearest'"),
        (lambda: DeconvNet(LEVELS[:1], K), r"cannot unpool between strides \[2\]"),
        (lambda: DeconvNet(LEVELS, K, channels=[4]), r"channels \[4\] for 5 levels; give one positive number"),
        (lambda: demand("Unett"), "smp decoder 'Unett' is unknown; did you mean Unet"),
        (lambda: demand("DPT"), "choose UPerNet or Segformer"),
        (lambda: demand("Unet", {"chanels": 3}), "Unet has no option chanels; it has decoder_channels, "),
        (lambda: demand("PAN", {"encoder_output_stride": 8}), "encoder_output_stride is 8; it can take 32 or 16"),
        (
            lambda: SmpDecoder(LEVELS, K, name="Unet", options={"decoder_channels": [8]}),
            "smp decoder Unet: Model depth is 5, .* correct its options",
        ),
        (
            lambda: SmpDecoder(LEVELS[2:], K, name="FPN"),
            "smp decoder FPN: needs maps of stride 4, 8, 16, 32, but the backbone has 8, 16, 32;",
        ),
    ],
)
def test_a_head_that_cannot_be_built_says_why_and_what_to_do(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


def test_one_image_per_batch_is_refused_where_global_pooling_is_normalised():
    backbone = Strided({8: 16})
    model = Segmentor(backbone, SmpDecoder(backbone.levels, K, name="DeepLabV3", options=SMP["DeepLabV3"]), K)
    with pytest.raises(ConfigError, match=r"DeepLabV3: one image per batch .* choose a batch size of at least 2"):
        model.train()(torch.rand(1, 3, 64, 64))
    assert model.eval()(torch.rand(1, 3, 64, 64)).shape == (1, K, 64, 64)
