"""The store of out-of-fold probabilities: what is written is read, by windows, and only whole folds are there."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from visionapps.competition.oof import OofStore, OofWriter, as_levels
from visionapps.competition.predicting import cross_validate, predict_photos, to_levels
from visionapps.data.dataset import Dataset, Policies, Split
from visionapps.data.doctor import examine
from visionapps.data.fake import write_photos
from visionapps.data.fold_leaks import fold_items
from visionapps.data.folding import plan_folds
from visionapps.data.folds import FoldItem, FoldPlan
from visionapps.data.store import Photo
from visionapps.errors import ConfigError, DataError, OutputError
from visionapps.inference.engine import Engine
from visionapps.inference.evaluation import evaluate_photos
from visionapps.inference.network import Network
from visionapps.inference.predictor import Predictor
from visionapps.inference.products import Products
from visionapps.inference.tiling import Tiling
from visionapps.metrics.confusion import Scores
from visionapps.segmentation.base import Segmentor
from visionapps.segmentation.unet import UNet
from visionapps.structures import LabelSpace
from visionapps.testing import TinyBackbone
from visionapps.windows import Window

LABELS = LabelSpace.named(("a", "b", "c"))
SIZE = (70, 530)  # wider than a block of the file


@pytest.fixture
def plan() -> FoldPlan:
    """Four photos in two folds."""
    found = [FoldItem(f"p{n}", f"p{n}", SIZE, (5, 5, 5), f"p{n}.png") for n in range(4)]
    return plan_folds(found, 2)


def probabilities(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    values = np.random.default_rng(seed).gamma(0.3, size=(3, *size)) + 1e-9
    return values / values.sum(0)


def test_scores_come_back_by_windows_and_truth_beside_them(tmp_path: Path, plan: FoldPlan):
    truth = np.random.default_rng(9).integers(0, 3, SIZE).astype(np.uint8)
    writer = OofWriter(tmp_path / "oof", labels=LABELS, plan=plan)
    with writer.fold(1, {"bundle": "b1"}) as fold:
        for seed, name in enumerate(plan.names(1)):
            fold.write(name, probabilities(seed), truth=truth)
    store = OofStore.open(tmp_path / "oof")
    assert store.names == plan.names(1)
    assert store.labels.names == LABELS.names
    assert (store.plan, store.fingerprint, store.members) == (plan.key, plan.fingerprint, {1: {"bundle": "b1"}})
    for seed, name in enumerate(store.names):
        expected = np.round(probabilities(seed) * 255).astype(np.uint8)
        np.testing.assert_array_equal(store.scores(name), expected)
        window = Window(3, 500, 60, 25)  # across the border of two blocks
        np.testing.assert_array_equal(store.scores(name, window), expected[:, 3:63, 500:525])
        np.testing.assert_array_equal(store.truth(name, window), truth[3:63, 500:525])
        assert (store.fold(name), store.shape(name)) == (1, SIZE)


def test_rows_that_stream_in_make_the_file_of_the_whole_photo(tmp_path: Path, plan: FoldPlan):
    scores = probabilities(0)
    name, other = plan.names(0)
    with OofWriter(tmp_path / "oof", labels=LABELS, plan=plan).fold(0, {}) as fold:
        fold.write(name, scores)
        fold.write(other, (scores[:, top : top + 13] for top in range(0, 70, 13)), shape=SIZE)
    store = OofStore.open(tmp_path / "oof")
    assert store.path(name).read_bytes() == store.path(other).read_bytes()
    with pytest.raises(DataError, match=f"{name} has no true labels; the dataset had no masks"):
        store.truth(name)


def test_scores_of_another_size_are_means_of_the_pixels_they_cover(tmp_path: Path, plan: FoldPlan):
    scores = probabilities(0, (64, 64))
    truth = np.kron(np.arange(4).reshape(2, 2), np.ones((32, 32))).astype(np.uint8)
    with OofWriter(tmp_path / "oof", labels=LABELS, plan=plan, size=(16, 16)).fold(0, {}) as fold:
        for name in plan.names(0):
            fold.write(name, scores, truth=truth)
    store = OofStore.open(tmp_path / "oof")
    means = as_levels(scores).reshape(3, 16, 4, 16, 4).mean((2, 4))
    assert np.abs(store.scores(store.names[0]) - means).max() <= 0.5 + 1e-6
    np.testing.assert_array_equal(store.truth(store.names[0]), truth[::4, ::4])


def test_a_missing_fold_is_named_and_its_photos_are_not_there(tmp_path: Path, plan: FoldPlan):
    writer = OofWriter(tmp_path / "oof", labels=LABELS, plan=plan)
    with writer.fold(1, {}) as fold:
        for name in plan.names(1):
            fold.write(name, probabilities(0))
    store = OofStore.open(tmp_path / "oof")
    assert store.missing() == (0,)
    with pytest.raises(DataError, match=r"1 of 2 folds are missing \(0\).*--only 0 --resume"):
        store.require_whole()
    with pytest.raises(DataError, match=f"no scores of {plan.names(0)[0]}: fold 0 is missing"):
        store.scores(plan.names(0)[0])
    with pytest.raises(DataError, match="no scores of strange: it is none of the plan"):
        store.scores("strange")
    with pytest.raises(ConfigError, match="is not inside the photo of 70 x 530 px"):
        store.scores(plan.names(1)[0], Window(0, 0, 71, 5))


def test_a_fold_that_breaks_off_leaves_nothing_and_a_photo_too_few_is_told(tmp_path: Path, plan: FoldPlan):
    writer = OofWriter(tmp_path / "oof", labels=LABELS, plan=plan)
    name = plan.names(0)[0]

    def breaks_off():
        yield probabilities(0)[:, :30]
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"), writer.fold(0, {}) as fold:
        fold.write(name, breaks_off(), shape=SIZE)
    with pytest.raises(DataError, match="fold 0 lacks the scores of 1 photos"), writer.fold(0, {}) as fold:
        fold.write(name, probabilities(0))
    assert [p.name for p in (tmp_path / "oof").iterdir()] == ["oof.json"]


def test_a_photo_that_the_model_learned_from_is_refused(tmp_path: Path, plan: FoldPlan):
    seen = plan.names(1)[0]
    writer = OofWriter(tmp_path / "oof", labels=LABELS, plan=plan)
    with pytest.raises(ConfigError, match=f"{seen}: does not validate in this fold"), writer.fold(0, {}) as fold:
        fold.write(seen, probabilities(0))


def test_a_store_whose_folds_are_not_those_of_the_plan_is_refused(tmp_path: Path, plan: FoldPlan):
    writer = OofWriter(tmp_path / "oof", labels=LABELS, plan=plan)
    with writer.fold(0, {}) as fold:
        for name in plan.names(0):
            fold.write(name, probabilities(0))
    (tmp_path / "oof" / "fold_0").rename(tmp_path / "oof" / "fold_1")
    with pytest.raises(DataError, match="was predicted by fold 1, but the plan has it in 0; such a model may have"):
        OofStore.open(tmp_path / "oof")


def test_a_store_of_other_things_is_not_gone_on_with(tmp_path: Path, plan: FoldPlan):
    folder = tmp_path / "oof"
    writer = OofWriter(folder, labels=LABELS, plan=plan, how={"flips": "none"})
    assert not folder.exists()
    with writer.fold(0, {"digest": "0a"}) as fold:
        for name in plan.names(0):
            fold.write(name, probabilities(0))
    assert OofWriter(folder, labels=LABELS, plan=plan, how={"flips": "none"}).members() == {0: {"digest": "0a"}}
    with pytest.raises(OutputError, match="holds something else than out-of-fold predictions; choose another folder"):
        OofWriter(tmp_path, labels=LABELS, plan=plan)
    others = {
        "another size": {"size": (8, 8), "how": {"flips": "none"}},
        "other views": {"how": {"flips": "d4"}},
        "other classes": {"labels": LabelSpace.named(("a", "b", "d")), "how": {"flips": "none"}},
    }
    for what, change in others.items():
        with pytest.raises(OutputError, match=f"holds out-of-fold predictions of {what}; choose another folder"):
            OofWriter(folder, **({"labels": LABELS, "plan": plan} | change))
    with pytest.raises(DataError, match="no out-of-fold store"):
        OofStore.open(tmp_path / "none")
    (folder / "oof.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(DataError, match="the out-of-fold store is damaged"):
        OofStore.open(folder)


def test_rounding_never_changes_the_label():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 0.01, (3, 40, 40))  # all three classes nearly equal everywhere
    exact = np.exp(logits) / np.exp(logits).sum(0)
    planes = np.rint(exact * 254).astype(np.uint8)
    labels = exact.argmax(0).astype(np.uint8)
    assert (planes.argmax(0) != labels).mean() > 0.2
    levels = to_levels(planes, labels)
    np.testing.assert_array_equal(levels.argmax(0), labels)
    assert np.abs(levels - exact * 255).max() <= 2.01
    nothing = to_levels(np.full((3, 1, 1), 255, np.uint8), np.full((1, 1), 255, np.uint8))
    assert nothing.max() == 0
    certain = to_levels(np.array([0, 254, 0], np.uint8).reshape(3, 1, 1), np.ones((1, 1), np.uint8))
    assert certain.ravel().tolist() == [0, 255, 0]


def model_of(seed: int) -> Segmentor:
    torch.manual_seed(seed)
    backbone = TinyBackbone()
    return Segmentor(backbone, UNet(backbone.levels, 3, channels=(12, 10, 8, 8, 8)), 3).eval()


def test_a_dataset_through_the_engine_is_judged_as_evaluate_judges_it(tmp_path: Path):
    folders = write_photos(tmp_path / "photos", 8, size=(48, 80), rng=np.random.default_rng(0))
    dataset = Dataset(
        str(folders.images),
        str(folders.masks),
        LABELS.names,
        split=Split(group="site\\d+", val_fraction=0),
        policies=Policies(near_duplicate="warn"),
        cache=str(tmp_path / "cache"),
    )
    found = examine(dataset)
    photos = found.train
    plan = plan_folds(fold_items(photos, 3), 2, rule={"group": "site\\d+"})
    writer = OofWriter(tmp_path / "oof", labels=found.coding.labels, plan=plan)
    expected = {}
    tiling = Tiling(tile=32, overlap=8)
    for number in range(2):
        model = model_of(number)
        own = [p for p in photos if p.name in plan.names(number)]
        expected[number] = evaluate_photos(Predictor(model, tile=32, overlap=8, precision="fp32"), own, LABELS)
        engine = Engine(Network([model], precision="fp32"), products=Products(("probabilities",)))
        with writer.fold(number, {}) as fold:
            predict_photos(engine, own, fold, tiling=tiling)
    store = OofStore.open(tmp_path / "oof")
    result = cross_validate(store)
    assert {fold: scores.matrix for fold, scores in result.folds.items()} == {
        fold: scores.matrix for fold, scores in expected.items()
    }
    summed = np.array(expected[0].matrix) + np.array(expected[1].matrix)
    assert result.pooled == Scores.from_matrix(summed)
    dice = [expected[0].mean_dice, expected[1].mean_dice]
    assert result.spread(lambda s: s.mean_dice) == pytest.approx((np.mean(dice), np.std(dice, ddof=1)))
    planes = store.scores(photos[0].name).astype(int).sum(0)
    assert np.abs(planes - 255).max() <= 4
    with pytest.raises(ConfigError, match="the engine must draw probabilities"):
        predict_photos(Engine(Network([model])), photos, None)


@pytest.mark.parametrize(("size", "pixel"), [(None, 4.0), ((16, 16), 8.0)])
def test_scores_lie_where_their_photo_lies(tmp_path: Path, size: tuple[int, int] | None, pixel: float):
    rasterio = pytest.importorskip("rasterio")
    place = rasterio.Affine(2, 0, 500000, 0, -2, 5300000)
    with rasterio.open(tmp_path / "a.tif", "w", "GTiff", 128, 64, 3, "EPSG:32633", place, "uint8"):
        pass
    # Stored at half the size and cut into two blocks, of which this is the right one.
    np.save(tmp_path / "image.npy", np.zeros((32, 64, 3), np.uint8))
    np.save(tmp_path / "labels.npy", np.zeros((32, 64), np.uint8))
    photos = [
        Photo(f"a@0,{col}", f"a@0,{col}", Window(0, col, 32, 32), (1024, 0, 0), str(tmp_path / "a.tif"), str(tmp_path))
        for col in (0, 32)
    ]
    plan = plan_folds(fold_items(photos, 3), 2)
    engine = Engine(Network([model_of(0)], precision="fp32"), products=Products(("probabilities",)))
    with OofWriter(tmp_path / "oof", labels=LABELS, plan=plan, size=size).fold(plan.folds["a@0,32"], {}) as fold:
        predict_photos(engine, photos[1:], fold)
    path = OofStore.open(tmp_path / "oof").path("a@0,32")
    for file in (path, path.with_suffix(".truth.tif")):
        with rasterio.open(file) as raster:
            assert raster.crs.to_epsg() == 32633
            assert tuple(raster.transform)[:6] == (pixel, 0, 500000 + 128, 0, -pixel, 5300000)
