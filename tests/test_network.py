"""Scores of batches against the model itself and against means computed by hand."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from visionapps.backbones.base import Backbone
from visionapps.errors import ConfigError
from visionapps.inference import network as module
from visionapps.inference.convolution import OneKernel
from visionapps.inference.network import Network, as_signed, as_unsigned, choose_precision, planes_of, upload
from visionapps.inference.views import Views
from visionapps.runtime import cpu_has_bf16
from visionapps.segmentation.base import Decoder, Segmentor
from visionapps.segmentation.unet import UNet, Upsample
from visionapps.structures import InputSpec, Level
from visionapps.testing import TinyBackbone

CLASSES = 3
CPU = torch.device("cpu")


class Same(Backbone):
    """The normalised image itself as the only level."""

    def __init__(self, stride: int = 1, spec: InputSpec | None = None) -> None:
        super().__init__()
        self.spec = spec or InputSpec()
        self.levels = (Level(stride, len(self.spec.bands)),)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return (image,)


class Head(Decoder):
    """One convolution, or whatever a test wants."""

    stride = 1

    def __init__(self, layer: nn.Module, watch: Callable[[Tensor], None] = lambda image: None) -> None:
        super().__init__()
        self.layer, self.watch = layer, watch

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        self.watch(features[0])
        logits: Tensor = self.layer(features[0])
        return logits


def model_of(
    kernel: int = 1,
    *,
    classes: int = CLASSES,
    stride: int = 1,
    seed: int = 0,
    watch: Callable[[Tensor], None] | None = None,
) -> Segmentor:
    torch.manual_seed(seed)
    layer = nn.Conv2d(3, classes, kernel, padding=kernel // 2)
    return Segmentor(Same(stride), Head(layer, watch or (lambda image: None)), classes).eval()


def unet_of(classes: int, upsample: Upsample = "bilinear") -> Segmentor:
    torch.manual_seed(0)
    backbone = TinyBackbone()
    decoder = UNet(backbone.levels, classes, channels=(12, 10, 8, 8, 8), upsample=upsample)
    return Segmentor(backbone, decoder, classes).eval()


def tiles_of(count: int, height: int = 32, width: int = 64, dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (count, 3, height, width)).astype(dtype)


@torch.inference_mode()
def logits_of(model: Segmentor, tiles: np.ndarray) -> np.ndarray:
    return np.asarray(model(torch.from_numpy(tiles)).numpy())


def softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(exp / exp.sum(1, keepdims=True))


@pytest.mark.parametrize("classes", [1, 3, 12])
def test_one_model_gives_its_logits_as_planes(classes: int) -> None:
    model, tiles = unet_of(classes), tiles_of(2)
    network = Network([model], device="cpu", precision="fp32")
    scores = network(tiles)
    assert (network.form, network.num_classes, network.stride) == ("logits", classes, 32)
    assert scores.dtype == torch.float32
    assert scores.is_contiguous()
    np.testing.assert_allclose(scores.numpy(), logits_of(model, tiles), atol=1e-5)


@pytest.mark.parametrize("upsample", ["bilinear", "deconv"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_scores_depend_neither_on_the_batch_size_nor_on_the_threads(precision: Any, upsample: Any) -> None:
    """Small tiles and odd channels, where torch would choose different kernels."""
    network, tiles = Network([unet_of(9, upsample)], device="cpu", precision=precision), tiles_of(4)
    usual = torch.get_num_threads()
    try:
        results = []
        for threads, batch in ((1, 1), (1, 3), (1, 4), (2, 1), (2, 4)):
            torch.set_num_threads(threads)
            results.append(torch.cat([network(tiles[i : i + batch]) for i in range(0, 4, batch)]))
    finally:
        torch.set_num_threads(usual)
    assert all(torch.equal(results[0], result) for result in results[1:])


def test_one_kernel_computes_what_torch_computes() -> None:
    x = torch.randn(2, 6, 13, 11)
    layers = [
        nn.Conv2d(6, 4, 1),
        nn.Conv2d(6, 4, 3, padding=1, stride=2, bias=False),
        nn.Conv2d(6, 6, (3, 5), padding=(1, 2), groups=3, dilation=(1, 2)),
        nn.Conv2d(6, 4, 3, padding="same"),
        nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1),
        nn.ConvTranspose2d(6, 6, 3, output_padding=1, stride=2, groups=2),
    ]
    with torch.inference_mode():
        for layer in layers:
            for batch in (x, x[:1], x[0]):
                expected = layer(batch)
                with OneKernel():
                    result = layer(batch)
                torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_an_ensemble_is_the_weighted_mean_of_the_probabilities() -> None:
    models, tiles = [model_of(seed=s) for s in range(3)], tiles_of(2)
    p = [softmax(logits_of(model, tiles)) for model in models]
    network = Network(models, weights=(2, 1, 1), device="cpu", precision="fp32")
    assert network.form == "probabilities"
    np.testing.assert_allclose(network(tiles).numpy(), p[0] / 2 + p[1] / 4 + p[2] / 4, atol=1e-6)
    equal = Network(models, device="cpu", precision="fp32")
    np.testing.assert_allclose(equal(tiles).numpy(), sum(p) / 3, atol=1e-6)


def test_disagreement_is_the_mean_distance_of_the_members_from_their_mean() -> None:
    models, tiles = [model_of(seed=s) for s in range(3)], tiles_of(2)
    share, p = (0.5, 0.25, 0.25), [softmax(logits_of(model, tiles)) for model in models]
    mean = sum(s * q for s, q in zip(share, p, strict=True))
    expected = sum(s * np.abs(q - mean).sum(1) / 2 for s, q in zip(share, p, strict=True))
    scores = Network(models, weights=(2, 1, 1), device="cpu", precision="fp32", disagreement=True)(tiles)
    assert scores.shape == (2, CLASSES + 1, 32, 64)
    np.testing.assert_allclose(scores[:, :CLASSES].numpy(), mean, atol=1e-6)
    np.testing.assert_allclose(scores[:, CLASSES].numpy(), expected, atol=1e-3)
    assert expected.max() > 0.1, "the test must show something"


def test_members_that_agree_have_no_disagreement() -> None:
    scores = Network([model_of(), model_of()], device="cpu", disagreement=True)(tiles_of(1))
    assert scores[:, CLASSES].max() < 1e-3


@pytest.mark.parametrize("flips", ["flips", "d4"])
def test_views_of_a_model_that_looks_at_single_pixels_change_nothing(flips: Any) -> None:
    """Such a model is equivariant: each view, brought back, says the same."""
    model, tiles = model_of(kernel=1), tiles_of(2)
    scores = Network([model], views=Views(flips), device="cpu", precision="fp32")(tiles)
    np.testing.assert_allclose(scores.numpy(), softmax(logits_of(model, tiles)), atol=1e-5)


def test_views_are_averaged_as_by_hand() -> None:
    model, tiles = model_of(kernel=5), tiles_of(2)
    expected = np.zeros((2, CLASSES, 32, 64))
    for turns in range(4):
        for mirrored in (False, True):
            seen = tiles[..., ::-1] if mirrored else tiles
            back = np.rot90(softmax(logits_of(model, np.rot90(seen, turns, (2, 3)).copy())), -turns, (2, 3))
            expected += (back[..., ::-1] if mirrored else back) / 8
    network = Network([model], views=Views("d4"), device="cpu", precision="fp32", disagreement=True)
    scores = network(tiles).numpy()
    np.testing.assert_allclose(scores[:, :CLASSES], expected, atol=1e-5)
    assert scores[:, CLASSES].max() > 0.01
    plain = softmax(logits_of(model, tiles))
    assert np.abs(plain - expected).max() > 0.01, "a model of 5 x 5 pixels is not equivariant"


def test_scaled_views_agree_where_the_image_is_smooth() -> None:
    sizes: list[tuple[int, ...]] = []
    model = model_of(kernel=1, stride=32, watch=lambda image: sizes.append(tuple(image.shape[-2:])))
    slope = np.linspace(20, 220, 128)[None, None, None, :].repeat(3, 1).repeat(64, 2).astype(np.uint8)
    scores = Network([model], views=Views(scales=(1.0, 0.5, 1.5)), device="cpu", precision="fp32")(slope)
    assert sizes == [(64, 128), (32, 64), (96, 192)]
    np.testing.assert_allclose(scores.numpy(), softmax(logits_of(model, slope)), atol=0.02)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", ">u2", ">f4"])
def test_every_dtype_of_a_raster_reaches_the_model_with_its_values(dtype: str) -> None:
    top = 100 if np.dtype(dtype).itemsize == 1 else 60000 if dtype.endswith("u2") else 30000
    tiles = np.random.default_rng(0).integers(0, top, (2, 3, 8, 8)).astype(dtype)
    seen: list[Tensor] = []
    model = model_of(watch=lambda image: seen.append(image))
    Network([model], device="cpu", precision="fp32")(tiles)
    spec = InputSpec()
    mean, std = (np.array(v)[:, None, None] for v in (spec.mean, spec.std))
    np.testing.assert_allclose(seen[0].numpy(), (tiles.astype(float) / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    native = tiles.astype(tiles.dtype.newbyteorder("="))
    travelled = as_unsigned(torch.from_numpy(as_signed(native)), native.dtype)
    assert np.array_equal(travelled.numpy().astype(float), native.astype(float))
    assert travelled.dtype not in (torch.uint16, torch.uint32, torch.uint64)


def test_pixels_travel_in_their_own_type_and_interleaved() -> None:
    images = upload(tiles_of(2), CPU)
    assert images.dtype == torch.uint8
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 3, 8, 13])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_planes_hold_the_same_scores(channels: int, dtype: Any, layout: Any) -> None:
    scores = torch.randn(2, channels, 5, 7).to(dtype).contiguous(memory_format=layout)
    planes = planes_of(scores)
    assert planes.is_contiguous()
    assert planes.dtype == torch.float32
    assert torch.equal(planes, scores.float())
    padded = scores[..., :4, :6]  # as a model gives them that had to pad
    assert torch.equal(planes_of(padded), padded.float())


class Hungry(nn.Module):
    """Runs out of memory above so many tiles."""

    def __init__(self, limit: int, error: RuntimeError) -> None:
        super().__init__()
        self.limit, self.error, self.seen = limit, error, list[int]()

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(len(image))
        if len(image) > self.limit:
            raise self.error
        return image


OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
CPU_OUT = RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.mark.parametrize("error", [OUT, CPU_OUT])
def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(
    error: RuntimeError, caplog: pytest.LogCaptureFixture
) -> None:
    layer = Hungry(3, error)
    model = Segmentor(Same(), Head(layer), 3).eval()
    network, tiles = Network([model], device="cpu", precision="fp32"), tiles_of(9)
    assert network.largest_batch is None
    with caplog.at_level(logging.WARNING):
        scores = network(tiles)
    assert layer.seen == [9, 4, 2, 2, 2, 2, 1]
    assert network.largest_batch == 2
    assert torch.equal(scores, network(tiles))
    assert layer.seen[7:] == [2, 2, 2, 2, 1], "the smaller batch is remembered"
    assert caplog.messages == [
        "cpu has not enough memory for batches of 9 tiles of 32 x 64 px: 4 from now on",
        "cpu has not enough memory for batches of 4 tiles of 32 x 64 px: 2 from now on",
    ]
    layer.limit = 100
    assert torch.equal(scores, Network([model], device="cpu", precision="fp32")(tiles))


def test_a_tile_that_does_not_fit_alone_is_an_error_that_says_what_to_do() -> None:
    network = Network([Segmentor(Same(), Head(Hungry(0, OUT)), 3).eval()], device="cpu", precision="fp32")
    with pytest.raises(ConfigError, match=r"tile 32 x 64 px: cpu has not enough memory for a single one .* --tile"):
        network(tiles_of(2))


def test_other_errors_of_a_model_are_not_taken_for_a_lack_of_memory() -> None:
    model = Segmentor(Same(), Head(Hungry(0, RuntimeError("sizes do not match"))), 3).eval()
    with pytest.raises(RuntimeError, match="sizes do not match"):
        Network([model], device="cpu", precision="fp32")(tiles_of(2))


def test_where_the_batch_size_matters_small_batches_are_filled_up() -> None:
    sizes: list[int] = []
    model, tiles = model_of(watch=lambda image: sizes.append(len(image))), tiles_of(3)
    network = Network([model], device="cpu", precision="fp32")
    expected = network(tiles, full=8)
    assert sizes == [3], "on the CPU it does not matter"
    network._fixed = True  # as on CUDA
    assert torch.equal(network(tiles, full=8), expected)
    assert sizes == [3, 8]


def test_filled_batches_are_halved_too() -> None:
    layer = Hungry(3, OUT)
    network = Network([Segmentor(Same(), Head(layer), 3).eval()], device="cpu", precision="fp32")
    network._fixed = True
    assert len(network(tiles_of(5), full=8)) == 5
    assert layer.seen == [8, 4, 2, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"members": []}, "ensemble: no model"),
        ({"members": [model_of(), model_of(classes=4)]}, "model 2 has 4 classes, but the first has 3"),
        (
            {
                "members": [
                    model_of(),
                    Segmentor(Same(spec=InputSpec(bands=("red", "green", "nir"))), Head(nn.Conv2d(3, 3, 1)), 3),
                ]
            },
            "model 2 reads the bands red, green, nir, but the first reads red, green, blue",
        ),
        ({"members": [model_of()], "weights": (1, 2)}, "2 weights for 1 models; give one for each"),
        ({"members": [model_of(), model_of()], "weights": (1, -1)}, r"weights \[1.0, -1.0\]; they must be finite"),
        ({"members": [model_of(), model_of()], "weights": (0, 0)}, "not all 0"),
        ({"members": [model_of()], "disagreement": True}, "one model that looks once cannot disagree"),
        ({"members": [model_of()], "device": "gpu"}, "device 'gpu': not usable here"),
        ({"members": [model_of()], "precision": "fp8"}, "precision 'fp8': must be auto, fp32, bf16 or fp16"),
    ],
)
def test_bad_settings_are_named(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Network(arguments.pop("members"), **{"device": "cpu", **arguments})


def test_precision_follows_the_processor(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert choose_precision("auto", CPU) == (torch.bfloat16 if cpu_has_bf16() else torch.float32)
    monkeypatch.setattr(module, "cpu_has_bf16", lambda: False)
    assert choose_precision("auto", CPU) == torch.float32
    assert not caplog.messages
    assert choose_precision("bf16", CPU) == torch.bfloat16
    assert "no bf16 arithmetic and will be slower than with fp32" in caplog.messages[0]
    assert choose_precision("fp16", CPU) == torch.float16
    assert "fp16: processors compute it slowly; fp32 is faster here" in caplog.messages[1]
    cuda = torch.device("cuda", 0)
    for capability, expected in (((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), torch.float16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert choose_precision("auto", cuda) == expected


def test_bf16_gives_nearly_the_scores_of_fp32() -> None:
    model, tiles = unet_of(9), tiles_of(2)
    full, half = (Network([model], device="cpu", precision=p)(tiles) for p in ("fp32", "bf16"))  # type: ignore[arg-type]
    assert not torch.equal(full, half)
    assert (full - half).abs().max() < 0.1 * full.abs().max()


@pytest.mark.slow
def test_a_compiler_that_fails_is_an_error_that_names_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(ConfigError, match=r"--compile: torch.compile cannot prepare this model here .*leave --compile"):
        Network([model_of(kernel=3)], device="cpu", precision="fp32", compiled=True)(tiles_of(1))
