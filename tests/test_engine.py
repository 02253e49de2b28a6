"""Many scenes through one network: what comes out depends on the scene alone."""

import itertools
import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from visionapps.backbones.base import Backbone
from visionapps.errors import ConfigError, DataError
from visionapps.inference.engine import Engine, Result, Scene
from visionapps.inference.network import Network
from visionapps.inference.plan import exact_plan, plan
from visionapps.inference.products import Band, Products
from visionapps.inference.sources import ArraySource, Pixels
from visionapps.segmentation.base import Decoder, Segmentor
from visionapps.structures import InputSpec, Level
from visionapps.windows import Window

CLASSES = 5


class Same(Backbone):
    """The image itself as the only level."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = InputSpec()
        self.levels = (Level(8, 3),)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return (image,)


class Head(Decoder):
    """Two convolutions of 5 x 5: a pixel depends on those up to 4 away."""

    stride = 1

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, CLASSES, 5, padding=2))

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        logits: Tensor = self.layers(features[0])
        return logits


@pytest.fixture(scope="module")
def model() -> Segmentor:
    torch.manual_seed(3)
    return Segmentor(Same(), Head(), CLASSES).eval()


def engine_of(model: Segmentor, **settings: Any) -> Engine:
    return Engine(Network([model], device="cpu", precision="fp32"), **({"batch": 3} | settings))


def scene(height: int, width: int, *, tile: int = 32, overlap: int = 8, seed: int = 0, **more: Any) -> Scene:
    image = np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)
    source = ArraySource(image, name=f"scene {seed}", **more)
    layout = plan(source.shape, tile=tile, overlap=overlap, multiple=8)
    return Scene(source, layout, range(len(layout.rows.starts)), key=seed)


def maps(results: Any) -> dict[int, np.ndarray]:
    """The planes of each scene put together, after checking that its bands come in order without gaps."""
    bands: dict[int, list[Band]] = {}
    for result in results:
        assert isinstance(result.outcome, Band)
        rows = bands.setdefault(result.scene.key, [])
        assert result.outcome.window.row == (rows[-1].window.row_end if rows else 0)
        rows.append(result.outcome)
    return {key: np.concatenate([band.planes for band in rows], axis=1) for key, rows in bands.items()}


SIZES = [(100, 70), (20, 90), (33, 33), (5, 5), (64, 64), (1, 130)]


def test_maps_depend_neither_on_the_batch_nor_on_threads_nor_on_the_company(model):
    def scenes() -> list[Scene]:
        return [scene(*size, seed=seed) for seed, size in enumerate(SIZES)]

    together = maps(engine_of(model, batch=1).run(scenes()))
    for settings_ in ({"batch": 4}, {"batch": 7, "threads": 3}):
        again = maps(engine_of(model, **settings_).run(scenes()))
        assert all(np.array_equal(together[key], again[key]) for key in together)
    for key, one in enumerate(scenes()):
        assert np.array_equal(maps(engine_of(model).run([one]))[key], together[key])


def test_batches_are_filled_across_rows_and_scenes(model):
    calls: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    engine = engine_of(model, batch=4)
    maps(engine.run([scene(30, 30, seed=seed) for seed in range(10)]))
    maps(engine.run([scene(56, 32, seed=0)]))  # two rows of one tile
    handle.remove()
    assert calls == [4, 4, 2, 2]
    assert engine.tally.tiles == 12
    assert engine.tally.computed == 12 * 32 * 32
    assert engine.tally.finished == 10 * 30 * 30 + 56 * 32


@settings(max_examples=25, deadline=None)
@given(height=st.integers(40, 200), cuts=st.lists(st.integers(0, 12), max_size=3), overlap=st.sampled_from([0, 8, 16]))
def test_any_run_of_rows_gives_the_bands_of_the_whole(model, height, cuts, overlap):
    whole = scene(height, 50, overlap=overlap)
    expected = {r.outcome.window: r.outcome.planes for r in engine_of(model).run([whole])}
    count = len(whole.rows)
    edges = sorted({0, count, *(cut % count for cut in cuts)})
    shares = [Scene(whole.source, whole.plan, range(a, b)) for a, b in itertools.pairwise(edges)]
    got = {r.outcome.window: r.outcome.planes for r in engine_of(model).run(reversed(shares))}
    assert got.keys() == expected.keys()
    assert all(np.array_equal(got[window], expected[window]) for window in expected)


@pytest.mark.parametrize("shape", [(150, 130), (40, 200), (64, 64), (30, 30), (97, 65)])
def test_exact_mode_draws_what_the_model_draws_of_the_whole_image(model, shape):
    image = np.random.default_rng(1).integers(0, 256, (3, *shape), dtype=np.uint8)
    with torch.inference_mode():
        logits = model(torch.from_numpy(image)[None])[0]
    layout = exact_plan(shape, tile=48, halo=4, multiple=8)
    products = Products(("probabilities",))
    planes = maps(
        engine_of(model, products=products).run([Scene(ArraySource(image), layout, range(len(layout.rows.starts)))])
    )[0]
    assert np.array_equal(planes[0], logits.argmax(0).numpy())
    expected = logits.softmax(0).numpy() * 254
    assert np.abs(planes[1:] - expected).max() <= 0.5 + 1e-2


def test_a_scene_that_breaks_in_the_middle_ends_alone(model):
    class Broken(ArraySource):
        def read(self, window: Window) -> Pixels:
            if window.row_end > 100:
                raise DataError(f"{self.name}: rows {window.row} to {window.row_end} are damaged")
            return super().read(window)

    good, after = scene(60, 40, seed=1), scene(70, 40, seed=3)
    source = Broken(np.zeros((3, 200, 40), np.uint8), name="broken.tif")
    layout = plan(source.shape, tile=32, overlap=8, multiple=8)
    broken = Scene(source, layout, range(len(layout.rows.starts)), key=2)
    results = list(engine_of(model, batch=5).run([good, broken, after]))
    failed = [r for r in results if isinstance(r.outcome, DataError)]
    assert [r.scene.key for r in failed] == [2]
    assert "broken.tif: rows" in str(failed[0].outcome)
    rows = [r.outcome.window.row_end for r in results if r.scene is broken and isinstance(r.outcome, Band)]
    assert rows == sorted(rows)
    assert rows[-1] <= 100
    fine = maps(r for r in results if r.scene is not broken)
    alone = maps(engine_of(model).run([scene(60, 40, seed=1), scene(70, 40, seed=3)]))
    assert all(np.array_equal(fine[key], alone[key]) for key in alone)


def test_an_error_of_the_network_ends_the_run_and_the_reading_thread(model):
    before = threading.active_count()

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    handle = model.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        list(engine_of(model).run(scene(80, 80, seed=seed) for seed in range(100)))
    handle.remove()
    assert threading.active_count() == before


def test_who_stops_listening_stops_the_reading_thread(model):
    before = threading.active_count()
    results = engine_of(model).run(scene(80, 80, seed=seed) for seed in range(100))
    assert isinstance(next(results), Result)
    results.close()
    assert threading.active_count() == before


def test_pixels_without_data_are_255_in_every_plane_and_empty_tiles_are_never_computed(model):
    valid = np.zeros((64, 640), bool)
    valid[:, 300:310] = True
    engine = engine_of(model, batch=4, products=Products(("confidence", "entropy")))
    planes = maps(engine.run([scene(64, 640, tile=64, overlap=0, valid=valid)]))[0]
    assert planes.shape == (3, 64, 640)
    assert ((planes == 255) == ~valid).all()
    assert (engine.tally.tiles, engine.tally.skipped) == (10, 9)
    assert engine.tally.computed == 64 * 64


def test_rows_without_data_are_given_back_while_a_batch_fills(model):
    """A large empty scene must not pile up rows behind a batch that never fills."""
    held = []
    valid = np.zeros((4000, 8), bool)
    valid[:4] = True
    one = scene(4000, 8, tile=8, overlap=0, valid=valid)
    engine = engine_of(model, batch=8)
    flush = engine._flush

    def watched(waiting: list[Any]) -> Any:
        held.append(len(waiting))
        return flush(waiting)

    engine._flush = watched  # type: ignore[method-assign]
    assert (maps(engine.run([one]))[0][0] != 255).sum() == 32
    assert max(held) <= 4 * 8


def test_scenes_of_the_wrong_number_of_bands_fail_alone(model):
    source = ArraySource(np.zeros((2, 30, 30), np.uint8), name="two.tif")
    wrong = Scene(source, plan((30, 30), tile=32, overlap=0, multiple=8), range(1), key=7)
    first, second = engine_of(model).run([wrong, scene(30, 30, seed=1)])
    assert str(first.outcome) == (
        "two.tif: 2 bands, but the model expects 3 (red, green, blue); choose them with --bands"
    )
    assert isinstance(second.outcome, Band)


def test_an_empty_batch_is_refused(model):
    with pytest.raises(ConfigError, match="batch 0: must be at least 1 tile"):
        engine_of(model, batch=0)
