"""Tiled prediction against the model applied to the whole image at once."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from visionapps.backbones.base import Backbone
from visionapps.errors import ConfigError, DataError
from visionapps.inference.predictor import Predictor
from visionapps.inference.sources import ArraySource
from visionapps.segmentation.base import Decoder, Segmentor
from visionapps.structures import InputSpec, Level

CLASSES = 4


class Same(Backbone):
    """The image itself as the only level."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.spec = InputSpec()
        self.levels = (Level(stride, 3),)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return (image,)


class Head(Decoder):
    """Convolutions without stride; kernel 1 makes the model pixelwise."""

    stride = 1

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, kernel, padding=kernel // 2), nn.ReLU(), nn.Conv2d(8, CLASSES, kernel, padding=kernel // 2)
        )

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        logits: Tensor = self.layers(features[0])
        return logits


def model_of(kernel: int, stride: int = 1) -> Segmentor:
    torch.manual_seed(3)
    return Segmentor(Same(stride), Head(kernel), CLASSES).eval()


def image_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (3, height, width), dtype=np.uint8)


def whole(predictor: Predictor, source: Any) -> np.ndarray:
    """All bands put together, after checking that they tile the raster from top to bottom."""
    labels = np.full(source.shape, 254, np.uint8)
    row = 0
    for window, band in predictor.segment(source):
        assert (window.row, window.col, window.width) == (row, 0, source.shape[1])
        assert band.shape == (window.height, window.width)
        assert band.dtype == np.uint8
        labels[window.slices] = band
        row = window.row_end
    assert row == source.shape[0]
    return labels


@torch.inference_mode()
def at_once(model: Segmentor, image: np.ndarray) -> np.ndarray:
    return np.asarray(model(torch.from_numpy(image)[None])[0].numpy().argmax(0))


@pytest.mark.parametrize("shape", [(150, 130), (40, 300), (300, 40), (7, 5), (1, 1), (96, 96), (97, 65)])
@pytest.mark.parametrize("overlap", [0, 7, 16, 32])
def test_a_pixelwise_model_gives_the_labels_of_the_whole_image(shape: tuple[int, int], overlap: int) -> None:
    model, image = model_of(kernel=1, stride=8), image_of(*shape)
    predictor = Predictor(model, tile=64, overlap=overlap, device="cpu", batch=3)
    assert np.array_equal(whole(predictor, ArraySource(image)), at_once(model, image))


def test_a_convolutional_model_agrees_with_the_whole_image_where_tiles_see_enough() -> None:
    model, image = model_of(kernel=5), image_of(200, 180)
    expected = at_once(model, image)
    labels = whole(Predictor(model, tile=64, overlap=32, device="cpu"), ArraySource(image))
    inner = (slice(8, -8), slice(8, -8))  # at its rim the whole image is padded by zeros, a tile by reflection
    assert (labels == expected)[inner].mean() > 0.97
    apart = whole(Predictor(model, tile=64, overlap=0, device="cpu"), ArraySource(image))
    assert (labels == expected)[inner].mean() > (apart == expected)[inner].mean(), "blending must pay"


def test_the_batch_size_changes_nothing() -> None:
    model, source = model_of(kernel=3), ArraySource(image_of(150, 260))
    one, many = (whole(Predictor(model, tile=64, overlap=16, device="cpu", batch=b), source) for b in (1, 7))
    assert np.array_equal(one, many)


def test_pixels_without_data_are_255_and_do_not_disturb_their_neighbours() -> None:
    model, image = model_of(kernel=3), image_of(90, 200).astype(np.float32)
    valid = np.ones((90, 200), bool)
    valid[:, 100:] = False
    valid[10:20, 10:20] = False
    broken = np.where(valid, image, np.nan)
    labels = whole(Predictor(model, tile=32, overlap=8, device="cpu"), ArraySource(broken))
    assert np.array_equal(labels == 255, ~valid)
    # What the holes hold must not matter: garbage there gives the same map.
    garbage = np.where(valid, image, 1e9)
    again = whole(Predictor(model, tile=32, overlap=8, device="cpu"), ArraySource(garbage, valid=valid))
    assert np.array_equal(labels, again)


def test_tiles_without_a_valid_pixel_are_never_computed() -> None:
    model = model_of(kernel=1)
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    valid = np.zeros((64, 640), bool)
    valid[:, 300:310] = True
    whole(Predictor(model, tile=64, overlap=0, device="cpu", batch=4), ArraySource(image_of(64, 640), valid=valid))
    assert seen == [1], "one of ten tiles has data"


def test_a_source_without_any_valid_pixel_is_an_error() -> None:
    source = ArraySource(image_of(40, 50), valid=np.zeros((40, 50), bool), name="empty.tif")
    with pytest.raises(DataError, match=r"empty.tif: no valid pixel"):
        whole(Predictor(model_of(kernel=1), tile=32, device="cpu"), source)


def test_a_small_image_is_computed_in_one_tile_hardly_larger_than_itself() -> None:
    model = model_of(kernel=1, stride=32)
    sizes = []
    model.register_forward_pre_hook(lambda module, inputs: sizes.append(tuple(inputs[0].shape)))
    whole(Predictor(model, tile=512, device="cpu"), ArraySource(image_of(70, 33)))
    assert sizes == [(1, 3, 96, 64)]


def test_progress_ends_with_all_tiles() -> None:
    calls: list[tuple[int, int]] = []
    predictor = Predictor(model_of(kernel=1), tile=32, overlap=0, device="cpu", batch=4)
    for _ in predictor.segment(
        ArraySource(image_of(64, 100)), progress=lambda done, total: calls.append((done, total))
    ):
        pass
    assert calls == [(4, 8), (8, 8)]


def test_bad_settings_are_named() -> None:
    model = model_of(kernel=1, stride=32)
    with pytest.raises(ConfigError, match="tile 500 px: must be a multiple of the model's stride 32, such as 480"):
        Predictor(model, tile=500, device="cpu")
    with pytest.raises(ConfigError, match=r"overlap 300 px: must be in \[0, 256\]"):
        Predictor(model, tile=512, overlap=300, device="cpu")
    with pytest.raises(ConfigError, match="batch 0"):
        Predictor(model, batch=0, device="cpu")
    with pytest.raises(ConfigError, match="device 'gpu'"):
        Predictor(model, device="gpu")
    with pytest.raises(ConfigError, match="precision 'fp8'"):
        Predictor(model, device="cpu", precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"array: 2 bands, but the model expects 3 \(red, green, blue\)"):
        whole(Predictor(model, device="cpu"), ArraySource(image_of(40, 40)[:2]))


def test_bf16_gives_nearly_the_labels_of_fp32() -> None:
    model, source = model_of(kernel=3), ArraySource(image_of(64, 64))
    full, half = (whole(Predictor(model, tile=32, device="cpu", precision=p), source) for p in ("fp32", "bf16"))  # type: ignore[arg-type]
    assert (full == half).mean() > 0.95
