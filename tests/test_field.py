"""The reach of models, against receptive fields worked out by hand and by gradients; exact tiling against the whole."""

import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.backbones.base import Backbone
from visionapps.errors import ConfigError
from visionapps.inference.engine import Engine, Scene
from visionapps.inference.field import halo, reach
from visionapps.inference.network import Network
from visionapps.inference.plan import Plan, exact_plan, shifted
from visionapps.inference.sources import ArraySource
from visionapps.segmentation.base import Decoder, Segmentor
from visionapps.segmentation.deconvnet import DeconvNet
from visionapps.segmentation.fcn import FCN
from visionapps.segmentation.unet import UNet
from visionapps.structures import InputSpec, Level
from visionapps.testing import TinyBackbone

CLASSES = 3


class Same(Backbone):
    """The image itself as the only level."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.spec = InputSpec()
        self.levels = (Level(stride, 3),)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return (image,)


class Layers(Decoder):
    stride = 1

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        logits: Tensor = self.layers(features[0])
        return logits


class SqueezeExcite(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((2, 3), keepdim=True).sigmoid()


class GlobalMean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        mean: Tensor = self.pool(x)
        return mean.expand_as(x)


class SelfAttention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        coarse = F.avg_pool2d(x, 8)
        tokens = coarse.flatten(2).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2).reshape(coarse.shape)
        return F.interpolate(mixed, scale_factor=8)


class Windows(nn.Module):
    """Means of windows that do not lie on the stride: local, but bound to the image's corner."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(F.avg_pool2d(x, 12, ceil_mode=True), scale_factor=12)[..., : x.shape[-2], : x.shape[-1]]


class OneSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 224:
            raise ValueError(f"Input width {x.shape[-1]} doesn't match model (224)")
        return x


class Forgiving(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.nan_to_num()


def conv(kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(3, 3, kernel, stride=stride, dilation=dilation, padding=dilation * (kernel // 2))


def model_of(*layers: nn.Module, stride: int = 1) -> Segmentor:
    torch.manual_seed(0)
    return Segmentor(Same(stride), Layers(*layers), CLASSES)


def tiny(kind: str) -> Segmentor:
    """A small model of ours on TinyBackbone, all of whose weights count."""
    torch.manual_seed(1)
    backbone = TinyBackbone()
    decoders = {
        "unet": lambda: UNet(backbone.levels, CLASSES, channels=(8, 8, 8, 8, 8), finest_stride=2),
        "unet to stride 1": lambda: UNet(backbone.levels, CLASSES, channels=(8, 8, 8, 8, 8), finest_stride=1),
        "fcn32s": lambda: FCN(backbone.levels, CLASSES, finest_stride=32),
        "fcn8s": lambda: FCN(backbone.levels, CLASSES, finest_stride=8),
        "deconvnet": lambda: DeconvNet(backbone.levels, CLASSES, channels=(8, 8, 8, 8, 8)),
    }
    model = Segmentor(backbone, decoders[kind](), CLASSES)
    if isinstance(model.decoder, FCN):
        for score in model.decoder.scores:
            nn.init.normal_(score.weight)
    return model.eval()


@pytest.mark.parametrize(
    ("layers", "stride", "expected"),
    [
        ((conv(1),), 1, 0),
        ((conv(3),), 1, 1),
        ((conv(5), nn.ReLU(), conv(3)), 1, 3),
        ((conv(3, dilation=7), conv(3)), 1, 8),
        ((conv(3, dilation=600),), 1, 600),
        ((nn.MaxPool2d(3, stride=1, padding=1), conv(1)), 1, 1),
        # Coarse pixel i sees 2 i - 1 .. 2 i + 1 and is shown at 2 i, 2 i + 1: an edge at 2 m disturbs 2 m, 2 m + 1.
        ((conv(3, stride=2), nn.Upsample(scale_factor=2)), 2, 2),
        # Pooled pixel i sees 4 i .. 4 i + 3, its neighbours see 4 more on each side.
        ((nn.MaxPool2d(4), conv(3), nn.Upsample(scale_factor=4)), 4, 4),
        # Bilinear by 2: fine pixels 2 i and 2 i + 1 take from coarse i - 1 .. i + 1, at most one pixel past the edge.
        ((nn.AvgPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear")), 2, 1),
    ],
)
def test_the_reach_of_a_few_layers_is_what_a_hand_computes(
    layers: tuple[nn.Module, ...], stride: int, expected: int
) -> None:
    assert reach(model_of(*layers, stride=stride)).pixels == expected


def test_the_reach_of_fcn32s_is_what_a_hand_computes() -> None:
    """Pixel j of stride 32 sees 32 j - 31 .. 32 j + 31, and the deconvolution of kernel 64 shows it at
    32 j - 16 .. 32 j + 47: what lies left of 32 m reaches j = m and so 32 m + 47."""
    assert reach(tiny("fcn32s")).pixels == 48


@pytest.mark.parametrize("kind", ["unet", "unet to stride 1", "fcn8s"])
def test_the_reach_equals_that_of_gradients_where_no_weight_is_negative(kind: str) -> None:
    """With positive weights nothing cancels, so that exactly what looks at a pixel has a derivative by it."""
    model = tiny(kind).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_().add_(0.01)
    side, edge = 640, 320
    disturbed = []
    for dim in (-1, -2):
        image = torch.full((1, 3, 64, side) if dim == -1 else (1, 3, side, 64), 255.0).double()
        for beyond in (slice(edge, side), slice(0, edge)):
            change = torch.zeros_like(image)
            change.narrow(dim, beyond.start, edge).fill_(1)
            _, response = torch.func.jvp(model, (image,), (change,))
            (touched,) = response.movedim(dim, 0).flatten(1).any(1).nonzero(as_tuple=True)
            disturbed.append(int(edge - touched[0] if beyond.start else touched[-1] + 1 - edge))
    assert reach(model).pixels == max(disturbed)


def drawn(model: Segmentor, image: Tensor, layout: Plan) -> Tensor:
    """Logits of an image tile by tile on an exact plan: the later tile wins from the middle of an overlap on."""
    result = torch.zeros(1, model.num_classes, *image.shape[-2:], dtype=image.dtype)
    for row in range(len(layout.rows.starts)):
        for col in range(len(layout.cols.starts)):
            (top, bottom), (left, right) = layout.rows.extent(row), layout.cols.extent(col)
            skip_down = int((layout.rows.ramp() == 0).sum()) if row else 0
            skip_right = int((layout.cols.ramp() == 0).sum()) if col else 0
            logits = model(image[..., top:bottom, left:right])
            result[..., top + skip_down : bottom, left + skip_right : right] = logits[..., skip_down:, skip_right:]
    return result


@pytest.mark.parametrize("kind", ["unet", "unet to stride 1", "fcn32s", "fcn8s", "deconvnet"])
@torch.no_grad()
def test_exact_tiles_equal_the_whole_image_and_a_halo_one_stride_too_small_does_not(kind: str) -> None:
    model = tiny(kind).double()
    found = halo(model)
    margin = -(-found // 32) * 32
    generator = torch.Generator().manual_seed(2)
    # Repeated pixels beyond the border tie as maxima within rounding, and DeconvNet unpools whichever wins.
    height, width = (320, 704) if kind == "deconvnet" else (300, 700)
    image = torch.randint(0, 256, (1, 3, height, width), generator=generator).double()
    whole = model(image)
    layout = exact_plan((height, width), tile=4 * margin + 32, halo=found, multiple=32)
    assert layout.tiles > 1
    for lattice in (layout, shifted(layout, multiple=32)):
        torch.testing.assert_close(drawn(model, image, lattice), whole, rtol=0, atol=1e-11)
    short = exact_plan((height, width), tile=4 * margin + 32, halo=margin - 32, multiple=32)
    assert (drawn(model, image, short) - whole).abs().max() > 1e-7


@pytest.mark.parametrize("kind", ["unet", "fcn8s"])
def test_the_engine_draws_the_labels_of_the_whole_image_on_an_exact_plan(kind: str) -> None:
    model = tiny(kind)
    image = np.random.default_rng(3).integers(0, 256, (3, 300, 1100), dtype=np.uint8)
    with torch.no_grad():
        expected = model(torch.from_numpy(image)[None])[0].numpy()
    layout = exact_plan((300, 1100), tile=544, halo=halo(model))
    engine = Engine(Network([model], device="cpu", precision="fp32"), batch=2)
    scene = Scene(ArraySource(image), layout, range(len(layout.rows.starts)))
    labels = np.concatenate([result.outcome.planes[0] for result in engine.run([scene])])  # type: ignore[union-attr]
    # Rounding may turn a tie: where labels differ, both classes have the same logit but for the last bits.
    margin = np.take_along_axis(expected, expected.argmax(0)[None], 0) - np.take_along_axis(expected, labels[None], 0)
    assert margin.max() < 1e-5
    assert (labels == expected.argmax(0)).mean() > 0.9999


@torch.no_grad()
def test_a_halo_one_pixel_too_small_is_not_exact_without_strides() -> None:
    model = model_of(conv(5), nn.ReLU(), conv(3)).double().eval()
    image = torch.randint(0, 256, (1, 3, 40, 90), generator=torch.Generator().manual_seed(2)).double()
    whole = model(image)
    found = halo(model)
    assert found == 3
    exact = drawn(model, image, exact_plan((40, 90), tile=24, halo=found, multiple=1))
    torch.testing.assert_close(exact, whole, rtol=0, atol=1e-12)
    short = drawn(model, image, exact_plan((40, 90), tile=24, halo=found - 1, multiple=1))
    assert (short - whole).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (SqueezeExcite(), "decoder.layers.1 (SqueezeExcite) looks at the whole image"),
        (SelfAttention(), "decoder.layers.1 (SelfAttention) looks at the whole image"),
        (nn.GroupNorm(1, 3), "decoder.layers.1 (GroupNorm) looks at the whole image"),
        (GlobalMean(), "decoder.layers.1.pool (AdaptiveAvgPool2d) looks at the whole image"),
        (nn.Sequential(*(conv(3, dilation=1400) for _ in range(3))), "it looks farther than 2048 px"),
        (nn.Sequential(nn.AvgPool2d(8), nn.UpsamplingBilinear2d(scale_factor=8)), "it draws the same pixels"),
        (Windows(), "it draws the same pixels differently where they stand elsewhere in the image"),
        (
            OneSize(),
            "it refuses images of other sizes than it was made for (Input width 2048 doesn't match model (224))",
        ),
        (Forgiving(), "it hides missing values (NaN), so that what depends on them cannot be seen"),
    ],
)
def test_a_model_that_cannot_be_tiled_exactly_says_why(layer: nn.Module, reason: str) -> None:
    model = model_of(conv(3), layer, stride=8)
    found = reach(model)
    assert found.pixels is None
    assert found.reason.startswith(reason)
    with pytest.raises(ConfigError, match=r"exact mode is not possible for this model: .*" + re.escape(reason)):
        halo(model)
    with pytest.raises(ConfigError, match=r"leave out --exact .* `visionapps seams`"):
        halo(model)


def test_the_model_stays_as_it_was() -> None:
    model = tiny("unet").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reach(model)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.backends.mkldnn.enabled


def test_the_reach_does_not_depend_on_the_weights() -> None:
    model = tiny("fcn8s")
    expected = reach(model).pixels
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert reach(model).pixels == expected


def test_unpooling_reaches_from_any_place_of_a_cell() -> None:
    """The maximum of a cell of 4 px may be unpooled to any of its places."""

    class Unpool(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            maxima, places = F.max_pool2d(x, 4, return_indices=True)
            return F.max_unpool2d(maxima, places, 4)

    assert reach(model_of(Unpool(), stride=4)).pixels == 0
    assert reach(model_of(Unpool(), conv(3), stride=4)).pixels == 1
    assert reach(model_of(conv(3), Unpool(), stride=4)).pixels == 4
    assert np.isfinite(model_of(Unpool(), stride=4)(torch.ones(1, 3, 8, 8)).detach().numpy()).all()
