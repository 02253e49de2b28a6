"""Logistic regression on fixed features, the file that keeps them, and the classifier that comes of both."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from visionapps.classification.base import Classifier
from visionapps.classification.levels import BinnedHead
from visionapps.classification.probe import choose_l2, fit_probe, hold_out
from visionapps.data.class_crops import middle_square
from visionapps.data.class_dataset import ClassPhoto
from visionapps.errors import ConfigError, DataError
from visionapps.inference import bundle as bundles
from visionapps.inference.classifying import ClassPredictor
from visionapps.inference.features import FeatureStore, last_layer
from visionapps.models import classifier, level_classifier
from visionapps.structures import Frame, LabelSpace
from visionapps.training.probing import held_photos, probe_photos

FRAME = Frame(32, 1.0)
LABELS = LabelSpace.named(("dark", "light"))


def blobs(count: int = 120, width: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three overlapping classes, of features with very different scales."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)
    centres = np.random.default_rng(99).normal(size=(3, width))
    scales = 10.0 ** np.linspace(-2, 3, width)
    return ((centres[labels] + rng.normal(size=(count, width))) * scales + 5 * scales).astype(np.float32), labels


def photos(folder: Path, count: int, seed: int = 0) -> tuple[ClassPhoto, ...]:
    """Dark and light noise of 40 x 48 px, kept decoded in a file."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    pixels = [rng.integers(0, 120, (40, 48, 3)) + 100 * label for label in labels]
    store = folder / f"pixels{seed}.bin"
    store.write_bytes(b"".join(each.astype(np.uint8).tobytes() for each in pixels))
    size = 40 * 48 * 3
    return tuple(
        ClassPhoto(f"{seed}_{i}", int(k), f"{seed}_{i}", (40, 48), str(store), 3, "uint8", str(store), i * size)
        for i, k in enumerate(labels)
    )


def small(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return classifier("visionapps/resnet20", 2).eval()


def test_the_fit_is_the_minimum_that_another_search_finds() -> None:
    features, labels = blobs()
    scaled = (features - features.mean(0, dtype=np.float64)) / features.std(0, dtype=np.float64)
    l2 = 0.01

    def objective(flat: np.ndarray) -> float:
        weight, bias = flat[:18].reshape(3, 6), flat[18:]
        logits = scaled @ weight.T + bias
        logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return float(-logs[np.arange(len(labels)), labels].mean() + l2 / 2 * (weight**2).sum())

    expected = minimize(objective, np.zeros(21), method="BFGS").x
    probe = fit_probe(features, labels, 3, l2=l2)
    assert probe.converged
    logits = scaled @ expected[:18].reshape(3, 6).T + expected[18:]
    found = probe.logits(features).numpy()
    centred = [each - each.mean(1, keepdims=True) for each in (found, logits)]  # a constant per image means nothing
    np.testing.assert_allclose(centred[0], centred[1], atol=2e-3)


def test_features_of_16_bits_on_disk_a_few_at_a_time_give_the_same_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels = blobs()
    np.save(tmp_path / "half.npy", (features / features.std(0)).astype(np.float16))
    half = np.load(tmp_path / "half.npy", mmap_mode="r")
    whole = fit_probe(half.astype(np.float32), labels, 3, l2=0.1)
    monkeypatch.setattr("visionapps.classification.probe._CHUNK", 6 * 50)
    parts = fit_probe(half, labels, 3, l2=0.1)
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-3, atol=1e-4)


def test_rows_choose_images_and_a_start_changes_nothing_but_the_way() -> None:
    features, labels = blobs()
    rows = np.arange(0, 120, 2)
    some = fit_probe(features[rows], labels[rows], 3, l2=0.1)
    chosen = fit_probe(features, labels, 3, l2=0.1, rows=rows)
    torch.testing.assert_close(chosen.weight, some.weight)
    again = fit_probe(features, labels, 3, l2=0.1, rows=rows, start=some)
    assert again.steps <= 2
    torch.testing.assert_close(again.logits(features), some.logits(features), rtol=1e-3, atol=1e-3)


def test_a_feature_that_never_changes_has_no_weight() -> None:
    features, labels = blobs()
    features[:, 2] = 1000.0
    probe = fit_probe(features, labels, 3, l2=0.1)
    assert float(probe.weight[:, 2].abs().max()) == 0
    assert torch.isfinite(probe.logits(features)).all()


def test_the_penalty_is_the_best_on_images_kept_apart() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=80)
    features = rng.normal(size=(80, 60)).astype(np.float32)  # mostly noise: little penalty learns it by heart
    features[:, 0] += 1.5 * labels
    held = hold_out(labels, 0.5)
    l2, tried = choose_l2(features, labels, 2, held, grid=(1e-6, 1e-1, 1.0))
    assert [each.l2 for each in tried] == [1.0, 1e-1, 1e-6]
    alone = {each.l2: fit_probe(features[~held], labels[~held], 2, l2=each.l2) for each in tried}
    right = {k: float((p.logits(features[held]).argmax(1).numpy() == labels[held]).mean()) for k, p in alone.items()}
    assert right[l2] == max(right.values())
    assert right[l2] > right[1e-6]


def test_holding_out_takes_the_same_share_of_every_class_and_never_all() -> None:
    labels = np.array([0] * 10 + [1] * 5 + [2] * 2 + [3])
    held = hold_out(labels, 0.2)
    assert [int(held[labels == k].sum()) for k in range(4)] == [2, 1, 1, 0]


def test_a_fifth_is_kept_apart_by_groups_where_photos_have_some(tmp_path: Path) -> None:
    plain = photos(tmp_path, 40)
    assert held_photos(plain, 2, 0).sum() == 8
    grouped = [ClassPhoto(**{**vars(p), "group": f"g{i // 4}"}) for i, p in enumerate(plain)]
    held = held_photos(grouped, 2, 0).reshape(10, 4)
    assert set(held.all(1).tolist()) == {True, False}
    assert (held.any(1) == held.all(1)).all()
    assert held.any(1).sum() == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"l2": -1.0}, "l2 -1.0 must not be negative"),
        ({"num_classes": 2}, "labels from 0 to 2, but there are 2 classes"),
        ({"labels": np.zeros(3, np.int64)}, r"features of shape \(120, 6\) for 3 labels"),
    ],
)
def test_impossible_fits_are_refused(change: dict[str, object], message: str) -> None:
    features, labels = blobs()
    arguments: dict[str, object] = {"features": features, "labels": labels, "num_classes": 3, "l2": 0.1} | change
    with pytest.raises((ConfigError, DataError), match=message):
        fit_probe(**arguments)  # type: ignore[arg-type]


def test_features_that_are_no_numbers_are_refused() -> None:
    features, labels = blobs()
    features[3, 4] = np.nan
    with pytest.raises(DataError, match="some features are no numbers"):
        fit_probe(features, labels, 3, l2=0.1)


def test_nothing_kept_apart_chooses_nothing() -> None:
    features, labels = blobs()
    with pytest.raises(ConfigError, match="0 of 120 images kept apart"):
        choose_l2(features, labels, 3, np.zeros(120, bool))


def test_features_are_what_the_last_layer_sees_and_are_computed_once(tmp_path: Path) -> None:
    model, some = small(), photos(tmp_path, 6)
    store = FeatureStore(tmp_path / "features", digits="float32", device="cpu", batch=4)
    found = store.features(model, FRAME, some, what="train")
    squares = np.stack([middle_square(photo.image(), FRAME) for photo in some])
    with torch.no_grad():
        maps = model.network.features(model.normalize(torch.from_numpy(squares).permute(0, 3, 1, 2)))
    np.testing.assert_allclose(found.values, maps.mean((2, 3)).numpy(), atol=1e-5)
    assert found.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert found.seconds > 0
    again = store.features(small(), FRAME, some, what="train")  # another object with the same weights
    assert again.seconds == 0
    assert np.array_equal(again.values, found.values)


def test_other_weights_frames_photos_and_digits_have_other_files_but_other_heads_have_not(tmp_path: Path) -> None:
    some = photos(tmp_path, 4)
    store = FeatureStore(tmp_path / "features", device="cpu")
    first = store.features(small(), FRAME, some, what="train").path
    head = small()
    with torch.no_grad():
        last_layer(head).weight.zero_()
    assert store.features(head, FRAME, some, what="train").path == first
    others = [
        store.features(small(1), FRAME, some, what="train"),
        store.features(small(), Frame(32, 0.9), some, what="train"),
        store.features(small(), FRAME, some[::-1], what="train"),
        FeatureStore(tmp_path / "features", digits="float32", device="cpu").features(
            small(), FRAME, some, what="train"
        ),
    ]
    assert len({first, *(each.path for each in others)}) == 5


def test_features_beyond_16_bits_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    model = small()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.fill_(30.0)
    store = FeatureStore(tmp_path / "features", device="cpu")
    with pytest.raises(DataError, match=r"features of train photos: one is .*, which float16 does not hold"):
        store.features(model, FRAME, photos(tmp_path, 2), what="train")
    assert not list((tmp_path / "features").glob("*"))


@pytest.mark.parametrize("network", ["visionapps/resnet20", "visionapps/lenet5_plain", "mobilenetv3_small_050"])
def test_the_last_layer_gives_the_answer(network: str) -> None:
    model = classifier(network, 7).eval()
    layer = last_layer(model)
    seen = []
    layer.register_forward_hook(lambda *call: seen.append(call[2]))
    side = model.network.native
    with torch.no_grad():
        answer = model(torch.zeros(1, 3, side, side, dtype=torch.uint8))
    assert torch.equal(seen[-1], answer)


def test_a_network_whose_answer_is_a_convolution_says_so() -> None:
    with pytest.raises(ConfigError, match="torchvision/squeezenet1_1: its answer is not that of one linear layer"):
        last_layer(classifier("torchvision/squeezenet1_1", 5))


def test_a_probe_of_random_features_tells_dark_from_light_and_its_bundle_agrees(tmp_path: Path) -> None:
    train, val = photos(tmp_path, 40), photos(tmp_path, 20, seed=1)
    store = FeatureStore(tmp_path / "features", device="cpu")
    before = {name: tensor.clone() for name, tensor in small().network.features.state_dict().items()}
    probed = probe_photos(small(), LABELS, FRAME, train=train, val=val, store=store)
    assert probed.scores is not None
    assert probed.scores.top1 == 1
    assert (probed.width, len(probed.tried)) == (64, 8)
    probed.bundle.save(tmp_path / "bundle")
    loaded = bundles.load(tmp_path / "bundle")
    after = loaded.classifier.network.features.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    judged = ClassPredictor([loaded], "cpu", "fp32").judge((p.image() for p in val), [p.label for p in val])
    assert judged.top1 == 1
    assert loaded.frame == FRAME
    with pytest.raises(ConfigError, match="the model has 2 classes, but the data has 3"):
        probe_photos(small(), LabelSpace.named(("a", "b", "c")), FRAME, train=train, val=val, store=store)


def test_bins_of_a_map_are_those_of_a_loop() -> None:
    head = BinnedHead(2, 5, (1, 3), "max").eval()
    image = torch.randn(1, 2, 7, 5)
    seen: list[torch.Tensor] = []
    head.linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    head(image)
    expected = []
    for n in (1, 3):
        for channel in range(2):
            for i in range(n):
                for j in range(n):
                    rows, cols = slice(i * 7 // n, -(-(i + 1) * 7 // n)), slice(j * 5 // n, -(-(j + 1) * 5 // n))
                    expected.append(float(image[0, channel, rows, cols].max()))
    assert seen[0][0].tolist() == expected


def test_a_level_of_any_pyramid_classifies_and_is_built_again_from_its_recipe(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = level_classifier("resnet10t", 2, stride=8, bins=(1, 2), pooling="max").eval()
    image = torch.randint(0, 256, (2, 3, 37, 50), dtype=torch.uint8)
    with torch.no_grad():
        expected = model(image)
    assert (
        last_layer(model).in_features == model.network.features.get_submodule("level.backbone").levels[-1].channels * 5
    )
    bundles.Bundle(model, LABELS, 64, frame=Frame(64, 1.0)).save(tmp_path / "bundle")
    with torch.no_grad():
        torch.testing.assert_close(bundles.load(tmp_path / "bundle").classifier(image), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stride": 7}, "resnet10t: has no map of stride 7; choose one of 2, 4, 8, 16, 32"),
        ({"bins": ()}, r"bins \[\]: give whole numbers"),
        ({"pooling": "mean"}, "pooling 'mean' is no choice"),
    ],
)
def test_impossible_levels_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        level_classifier("resnet10t", 2, **arguments)  # type: ignore[arg-type]
