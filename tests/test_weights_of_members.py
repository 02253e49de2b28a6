"""Weights of ensembles: searches held against exhaustive ones, a store with a known answer, and what is refused."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visionapps.cli.main import main
from visionapps.competition.ensemble import EnsembleSpec
from visionapps.competition.oof import OofStore, OofWriter
from visionapps.competition.weights import descend, fit_weights, greedy, likeliest, mixed, on_grid, require_one_plan
from visionapps.data.folds import FoldPlan
from visionapps.errors import ConfigError, DataError
from visionapps.inference.bundle import Bundle
from visionapps.metrics.competition import build_metric
from visionapps.models import unet
from visionapps.structures import LabelSpace

LABELS = LabelSpace.named(["bare", "roof", "road"])


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_labels_of_a_mean_are_those_of_numpy(seed, members, classes):
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 40)), int(rng.integers(1, 60)))  # beyond one block of the kernel, and below
    stack = rng.integers(0, 256, (members, classes, *shape), dtype=np.uint8)
    weights = rng.integers(0, 5, members) + (np.arange(members) == 0)
    expected = np.tensordot(weights, stack.astype(np.int64), 1).argmax(0)  # whole numbers: exact, ties to the lowest
    np.testing.assert_array_equal(mixed(stack, tuple(map(float, weights))), expected)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=9).filter(lambda w: sum(w) > 1e-3))
def test_weights_on_the_grid_sum_to_one_and_are_near(weights):
    found = on_grid(weights)
    assert sum(found) == pytest.approx(1, abs=1e-12)
    assert min(found) >= 0
    np.testing.assert_allclose(found, np.array(weights) / sum(weights), atol=1 / 840)


def test_the_greedy_search_finds_the_best_bag_that_numbers_allow():
    # The metric likes (0.5, 0.25, 0.25): four members taken, by hand 0, then 1 or 2, then 0, then the other.
    aim = np.array([0.5, 0.25, 0.25])
    asked = []

    def rate(weights):
        asked.append(weights)
        return -float(np.abs(np.array(weights) / sum(weights) - aim).sum())

    assert greedy(3, rate, most=6) == pytest.approx(tuple(aim))
    assert len(asked) == 3 * 6
    assert greedy(3, lambda weights: weights[1] / sum(weights), most=4) == (0, 1, 0)


def test_the_likeliest_weights_are_those_of_an_exhaustive_search():
    rng = np.random.default_rng(0)
    p, truth = rng.uniform(0.02, 1, (3, 300)), rng.integers(0, 2, 300) * 2  # a class between them does not occur
    truth[:280] = 0
    p[1, :280] *= 0.5
    steps = np.arange(0, 101) / 100
    grid = np.array([(a, b, 1 - a - b) for a, b in itertools.product(steps, steps) if a + b <= 1 + 1e-9]).clip(0)
    log = np.log(grid @ p)
    gain = sum(log[:, truth == k].mean(1) for k in (0, 2))  # all classes alike
    np.testing.assert_allclose(likeliest(p, truth), grid[gain.argmax()], atol=0.011)


def test_the_simplex_search_is_never_worse_than_its_start_and_climbs():
    aim = np.array([0.6, 0.3, 0.1])

    def rate(weights):
        return -float(np.square(np.array(weights) - aim).sum())

    start = (1 / 3, 1 / 3, 1 / 3)
    found = descend(start, rate)
    assert rate(found) > rate(start) / 10
    assert descend((1.0, 0.0), lambda weights: weights[0]) == (1.0, 0.0)


def plan_of(photos: int, folds: int, seed: int = 0) -> FoldPlan:
    names = [f"p{i}" for i in range(photos)]
    return FoldPlan(
        k=folds,
        seed=seed,
        rule={},
        folds={name: i % folds for i, name in enumerate(names)},
        groups={name: name for name in names},
        digests={name: name for name in names},
    )


def store_of(folder: Path, strength: float, seed: int, *, plan: FoldPlan, truths, labels=LABELS, **other) -> OofStore:
    """Scores that favour the truth by ``strength``, with noise of their own."""
    rng = np.random.default_rng(seed)
    writer = OofWriter(folder, labels=labels, plan=plan)
    for fold in range(other.get("folds", plan.k)):
        with writer.fold(fold, {"bundle": f"{folder.name}_{fold}"}) as part:
            for name in plan.names(fold):
                truth = truths[name]
                logits = rng.normal(0, 1, (3, *truth.shape)) + strength * (np.arange(3)[:, None, None] == truth)
                p = np.exp(logits) / np.exp(logits).sum(0)
                part.write(name, p, truth=truth if other.get("masks", True) else None)
    return OofStore.open(folder)


@pytest.fixture(scope="module")
def truths():
    rng = np.random.default_rng(9)
    found = {f"p{i}": rng.integers(0, 3, (24, 32)).astype(np.uint8) for i in range(6)}
    found["p0"][:4] = 255
    return found


@pytest.fixture(scope="module")
def stores(tmp_path_factory, truths):
    home, plan = tmp_path_factory.mktemp("oof"), plan_of(6, 3)
    return [store_of(home / f"s{i}", s, i, plan=plan, truths=truths) for i, s in enumerate((1.0, 1.0, 0.0))]


def by_hand(stores, truths, weights, photos):
    """Mean Dice over classes of all pixels together, in plain numpy."""
    cells = np.zeros((3, 3), int)
    for name in photos:
        mean = sum(w * store.scores(name).astype(float) for w, store in zip(weights, stores, strict=True))
        known = truths[name] != 255
        np.add.at(cells, (truths[name][known], mean.argmax(0)[known]), 1)
    return np.mean(2 * cells.diagonal() / (cells.sum(0) + cells.sum(1)))


def test_members_that_know_something_share_and_one_that_knows_nothing_gets_little(stores, truths):
    require_one_plan(stores)
    fitted = fit_weights(stores, build_metric("dice_global", LABELS.names))
    assert sum(fitted.weights) == pytest.approx(1)
    assert min(fitted.weights[:2]) > 0.25
    assert fitted.weights[2] < 0.2
    everything = sorted(truths)
    assert fitted.score == pytest.approx(by_hand(stores, truths, np.rint(np.array(fitted.weights) * 840), everything))
    assert fitted.equal == pytest.approx(by_hand(stores, truths, (1, 1, 1), everything))
    alone = [by_hand(stores, truths, unit, everything) for unit in np.eye(3)]
    assert fitted.alone == pytest.approx(alone)
    assert fitted.score == max(fitted.scores.values()) >= fitted.equal > max(fitted.alone[0], 0.5)
    assert list(fitted.scores) == ["equal", "likelihood", "greedy", "simplex"]
    assert fitted.photos == 6


def test_the_nested_score_draws_each_fold_with_weights_of_the_others(stores, truths):
    metric = build_metric("dice_per_image", LABELS.names)
    fitted = fit_weights(stores, metric, method="greedy")
    stacks = {name: np.stack([store.scores(name) for store in stores]) for name in truths}
    total = 0
    for fold in range(3):
        inner = [name for name in truths if stores[0].fold(name) != fold]

        def rate(weights, inner=inner):
            return metric.score(sum(count(name, weights) for name in inner))

        def count(name, weights):
            parts = [round(840 * weight) for weight in on_grid(weights)]
            return metric.count(mixed(stacks[name], parts), truths[name])

        found = greedy(3, rate)
        total = total + sum(count(name, found) for name in truths if stores[0].fold(name) == fold)
    assert fitted.nested == pytest.approx(metric.score(total))
    assert fitted.method == "greedy"
    assert fitted.nested <= fitted.score


def test_fewer_photos_are_drawn_evenly_from_the_folds(stores):
    metric = build_metric("dice_global", LABELS.names)
    assert fit_weights(stores, metric, method="equal", most=4).photos == 4
    each = 24 * 32 * (3 * 3 + 1)
    assert fit_weights(stores, metric, method="equal", memory=2 * each).photos == 2
    with pytest.raises(ConfigError, match="do not fit into memory; write the stores in a smaller --oof-size"):
        fit_weights(stores, metric, memory=each - 1)
    with pytest.raises(ConfigError, match="method 'hill' is unknown; choose from best, equal"):
        fit_weights(stores, metric, method="hill")
    with pytest.raises(ConfigError, match="seed -1: must be a whole number from 0 on"):
        fit_weights(stores, metric, seed=-1)
    with pytest.raises(ConfigError, match="seed -1: must be a whole number from 0 on"):
        fit_weights(stores, metric, seed=-1)
    alone = fit_weights(stores[:1], metric)
    assert (alone.weights, alone.method) == ((1.0,), "equal")


def test_stores_that_cannot_be_weighed_together_are_refused_by_name(stores, truths, tmp_path):
    other = store_of(tmp_path / "plan", 1, 0, plan=plan_of(6, 3, seed=1), truths=truths)
    with pytest.raises(DataError, match=r"plan: was written for the fold plan \w+, but .*s0 for .* the same --plan"):
        require_one_plan([stores[0], other])
    names = LabelSpace.named(["bare", "roof", "lawn"])
    other = store_of(tmp_path / "names", 1, 0, plan=plan_of(6, 3), truths=truths, labels=names)
    with pytest.raises(
        DataError, match=r"names: was written for classes bare, roof, lawn, but .*s0 for bare, roof, road"
    ):
        require_one_plan([stores[0], other])
    small = {name: truth[:12] for name, truth in truths.items()}
    other = store_of(tmp_path / "small", 1, 0, plan=plan_of(6, 3), truths=small)
    with pytest.raises(DataError, match=r"small: has p0 in 12 x 32 px, but .*s0 in 24 x 32; .*--oof-size"):
        require_one_plan([stores[0], other])
    other = store_of(tmp_path / "half", 1, 0, plan=plan_of(6, 3), truths=truths, folds=2)
    with pytest.raises(DataError, match=r"1 of 3 folds are missing \(2\)"):
        require_one_plan([stores[0], other])
    other = store_of(tmp_path / "blind", 1, 0, plan=plan_of(6, 3), truths=truths, masks=False)
    with pytest.raises(DataError, match="blind: p0 has no true labels"):
        require_one_plan([other, stores[0]])


def test_the_verb_fits_weights_and_names_the_bundles_of_all_folds(stores, tmp_path, capsys):
    home = stores[0].folder.parent
    torch.manual_seed(0)
    bundle = Bundle(unet("test_efficientnet", 3, channels=(8, 8, 8, 8, 8)).eval(), LABELS, 64)
    bundle.save(home / "s0_0")
    for name in ("s0_1", "s0_2", "s1_0", "s1_1", "s1_2"):
        shutil.copytree(home / "s0_0", home / name)
    for store in stores[:2]:  # the store names its bundles as they were seen from where folds were trained
        for fold in range(3):
            path = store.folder / f"fold_{fold}" / "fold.json"
            path.write_text(
                path.read_text().replace(f'"{store.folder.name}_{fold}"', f'"{home}/{store.folder.name}_{fold}"')
            )
    out = tmp_path / "all.yaml"
    words = [str(store.folder) for store in stores[:2]]
    (tmp_path / "metric.yaml").write_text("metric: {name: dice_per_image, empty: skip}")
    words += ["--method", "greedy", "--tta", "flips", "--metric", str(tmp_path / "metric.yaml"), "--exclude", "0,road"]
    assert main(["ensemble", "fit", *words, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "taken: greedy" in shown
    assert "is there on photos that had no say" in shown
    spec = EnsembleSpec.load(out)
    metric = build_metric({"name": "dice_per_image", "empty": "skip", "exclude": ["bare", "road"]}, LABELS.names)
    fitted = fit_weights(stores[:2], metric, method="greedy")
    assert spec.flips == "flips"
    assert [path.name for path in spec.bundles] == ["s0_0", "s0_1", "s0_2", "s1_0", "s1_1", "s1_2"]
    assert spec.weights == pytest.approx([w / 3 for w in fitted.weights for _ in range(3)])
    assert spec.fitted["nested"] == pytest.approx(fitted.nested)
    assert spec.fitted["metric"] == metric.to_dict()
