"""Blended out-of-fold stores: the mean of numpy, the score that fitted weights promise, and nothing left half done."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from visionapps.cli.main import main
from visionapps.competition.blend import blend, mean_levels, members_of
from visionapps.competition.ensemble import EnsembleSpec
from visionapps.competition.oof import OofStore, OofWriter
from visionapps.competition.predicting import cross_validate
from visionapps.data.folds import FoldPlan
from visionapps.errors import ConfigError, DataError, OutputError
from visionapps.inference.bundle import Bundle
from visionapps.models import unet
from visionapps.structures import LabelSpace

LABELS = LabelSpace.named(["bare", "roof", "road"])
NAMES = [f"p{i}" for i in range(4)]
PLAN = FoldPlan(
    k=2,
    seed=0,
    rule={},
    folds={name: i % 2 for i, name in enumerate(NAMES)},
    groups={name: name for name in NAMES},
    digests={name: name for name in NAMES},
)


def store_of(folder: Path, seed: int, how: dict | None = None, masks: bool = True) -> OofStore:
    """Noisy scores of photos whose truth is the same in all stores; rows beyond one band of the blend."""
    writer = OofWriter(folder, labels=LABELS, plan=PLAN, how=how)
    for fold in range(PLAN.k):
        with writer.fold(fold, {"bundle": str(folder.parent / f"bundle_{folder.name}_{fold}")}) as part:
            for name in PLAN.names(fold):
                truth = np.random.default_rng(int(name[1:])).integers(0, 3, (520, 9)).astype(np.uint8)
                rng = np.random.default_rng((seed, int(name[1:])))
                logits = rng.normal(0, 1, (3, 520, 9)) + (np.arange(3)[:, None, None] == truth)
                p = np.exp(logits) / np.exp(logits).sum(0)
                part.write(name, p, truth=truth if masks else None)
    return OofStore.open(folder)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[OofStore]:
    home = tmp_path_factory.mktemp("stores")
    torch.manual_seed(0)
    bundle = Bundle(unet("test_efficientnet", 3, channels=(8, 8, 8, 8, 8)).eval(), LABELS, 64)
    bundle.save(home / "bundle_a_0")
    for name in ("a_1", "b_0", "b_1"):
        shutil.copytree(home / "bundle_a_0", home / f"bundle_{name}")
    how = {"flips": "d4", "scales": [1.0]}
    return [store_of(home / "a", 1, how), store_of(home / "b", 2, how)]


def labels_by_hand(stores: list[OofStore], weights: tuple[int, ...], name: str) -> np.ndarray:
    """Whole numbers: exact, the lowest class wins a tie."""
    pairs = zip(weights, stores, strict=True)
    return np.asarray(sum(w * store.scores(name).astype(np.int64) for w, store in pairs).argmax(0))


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_mean_levels_are_those_of_numpy_and_keep_the_label_of_the_exact_mean(seed, members, classes):
    rng = np.random.default_rng(seed)
    # Few levels, close together: many ties, and many means that rounding makes equal.
    stacks = [rng.integers(100, 104, (classes, 7, 11), dtype=np.uint8) for _ in range(members)]
    cuts = np.sort(rng.integers(0, 841, members - 1))
    parts = np.diff([0, *cuts, 840]).tolist()
    found = mean_levels(stacks, parts)
    total = sum(part * stack.astype(np.int64) for part, stack in zip(parts, stacks, strict=True))
    np.testing.assert_array_equal(found.argmax(0), total.argmax(0))
    assert np.abs(found - total / 840).max() <= 1.5
    loser = np.arange(classes)[:, None, None] != total.argmax(0)
    np.testing.assert_array_equal(found[loser], np.rint(total / 840)[loser])


def test_a_blend_is_a_store_of_the_same_plan_that_scores_what_the_exact_mean_does(stores, tmp_path):
    seen: list[str] = []
    found = blend(stores, (2, 1), tmp_path / "blend", progress=seen.append)
    found.require_whole()
    assert sorted(seen) == list(found.names) == NAMES
    assert (found.plan, found.fingerprint, found.labels) == (stores[0].plan, stores[0].fingerprint, LABELS)
    cells = np.zeros((3, 3), int)
    for name in NAMES:
        labels, truth = labels_by_hand(stores, (2, 1), name), stores[1].truth(name)
        assert found.fold(name) == PLAN.folds[name]
        np.testing.assert_array_equal(found.truth(name), truth)
        np.testing.assert_array_equal(found.scores(name).argmax(0), labels)
        np.add.at(cells, (truth, labels), 1)
    dice = 2 * cells.diagonal() / (cells.sum(0) + cells.sum(1))
    assert cross_validate(found).pooled.dice == pytest.approx(tuple(dice))
    assert dice.mean() > cross_validate(stores[0]).pooled.mean_dice + 0.02
    assert found.how["flips"] == "d4"
    assert [(path.resolve().name, weight) for path, weight in members_of(found, 1)] == [
        ("bundle_a_1", pytest.approx(2 / 3)),
        ("bundle_b_1", pytest.approx(1 / 3)),
    ]


def test_stores_without_truth_blend_and_a_store_without_weight_is_left_out(stores, tmp_path):
    blind = store_of(tmp_path / "blind", 3, masks=False)
    found = blend([blind, stores[0]], (1, 0), tmp_path / "blend")
    assert not any(photo.truth for photo in found.photos.values())
    assert "flips" in found.how
    assert found.how["flips"] == "none"
    np.testing.assert_array_equal(found.scores("p3"), blind.scores("p3"))


def test_what_cannot_be_blended_is_refused_and_leaves_nothing(stores, tmp_path):
    out = tmp_path / "blend"
    with pytest.raises(ConfigError, match=r"weights \[1, -1\] of 2 stores; give each one, positive or 0"):
        blend(stores, (1, -1), out)
    with pytest.raises(ConfigError, match=r"weights \[0, 0\] of 2 stores"):
        blend(stores, (0, 0), out)
    with pytest.raises(ConfigError, match="a is given twice; give it once, with a larger weight"):
        blend([stores[0], OofStore.open(stores[0].folder)], (1, 1), out)
    shutil.copytree(stores[1].folder, tmp_path / "broken")
    (tmp_path / "broken" / "fold_1" / "p3.tif").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"p3\.tif"):
        blend([stores[0], OofStore.open(tmp_path / "broken")], (1, 1), out)
    with pytest.raises(OutputError, match="a: is one of the stores that are blended, or inside it; choose"):
        blend(stores, (1, 1), stores[0].folder, overwrite=True)
    other = tmp_path / "photos"
    other.mkdir()
    (other / "mine.jpg").touch()
    with pytest.raises(OutputError, match="is no out-of-fold store, so it is not replaced by one"):
        blend(stores, (1, 1), other, overwrite=True)
    assert (other / "mine.jpg").exists()
    with pytest.raises(OutputError, match="or inside it; choose another folder"):
        blend(stores, (1, 1), stores[0].folder / "fold_0" / "blend")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "photos"]  # no blend, no temporary of one


def test_fit_writes_the_blend_that_scores_what_it_promised_and_tune_takes_it(stores, tmp_path, capsys):
    words = [str(store.folder) for store in stores]
    out, oof = tmp_path / "all.yaml", tmp_path / "oof"
    assert main(["ensemble", "fit", *words, "--method", "greedy", "--out", str(out), "--oof", str(oof)]) == 0
    spec, found = EnsembleSpec.load(out), OofStore.open(oof)
    assert spec.flips == "d4"  # as the stores were predicted
    assert cross_validate(found).pooled.mean_dice == pytest.approx(spec.fitted["score"])
    assert f"mean Dice {spec.fitted['score']:.4f}" in capsys.readouterr().out
    rules = tmp_path / "rules.yaml"
    words = ["--metric", "dice_global", "--rules", "threshold", "--out", str(rules)]
    assert main(["tune", str(oof), *words]) == 0
    assert yaml.safe_load(rules.read_text())["scores"]["before"]["score"] == pytest.approx(
        spec.fitted["score"], abs=1e-6
    )
    # A blend can be weighed, too: its members count as much as they did in it.
    again = tmp_path / "again.yaml"
    assert main(["ensemble", "fit", str(oof), "--out", str(again)]) == 0
    assert sorted(path.resolve() for path in EnsembleSpec.load(again).bundles) == sorted(
        path.resolve() for path in spec.bundles
    )
    assert sorted(EnsembleSpec.load(again).weights) == pytest.approx(sorted(spec.weights))


def test_stores_that_do_not_say_what_they_are_are_refused_before_the_search(stores, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("visionapps.competition.weights.fit_weights", lambda *_, **__: pytest.fail("searched"))
    first, out = str(stores[0].folder), tmp_path / "all.yaml"
    for name, file, key, value, text in (
        ("mute", "fold_1/fold.json", "member", {}, "mute: does not say which bundle predicted fold 1; predict it anew"),
        ("odd", "fold_1/fold.json", "member", {"members": [{"weight": 1}]}, "odd: does not say which bundle"),
        ("views", "oof.json", "how", {"scales": "x"}, "views: scales 'x' of its views are no numbers; write it anew"),
        ("twin", "oof.json", "how", {"flips": "d4", "scales": [1.0]}, "bundle_a_0 is a member twice"),
    ):
        shutil.copytree(first, tmp_path / name)
        path = tmp_path / name / file
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
        for words in (["fit", "--out", str(out)], ["blend", "--out", str(tmp_path / "blend")])[: 1 + (name != "twin")]:
            assert main(["ensemble", words[0], first, str(tmp_path / name), *words[1:]]) == 1
            assert text in capsys.readouterr().err
    assert not out.exists()
    assert not (tmp_path / "blend").exists()


def test_the_verb_blends_by_hand_and_names_views_that_differ(stores, tmp_path, capsys):
    words = [str(store.folder) for store in stores]
    assert main(["ensemble", "blend", *words, "--weights", "3,1", "--out", str(tmp_path / "oof")]) == 0
    head = json.loads((tmp_path / "oof" / "oof.json").read_text())
    assert list(head["how"]["blend"].values()) == [0.75, 0.25]
    assert main(["ensemble", "blend", *words, "--weights", "3", "--out", str(tmp_path / "x")]) == 1
    assert "--weights: 1 numbers for 2 stores; give one for each" in capsys.readouterr().err
    plain = store_of(tmp_path / "plain", 3, {"flips": "none", "scales": [1.0, 1.5]})
    words = ["ensemble", "fit", words[0], str(plain.folder), "--method", "equal"]
    assert main([*words, "--out", str(tmp_path / "x.yaml")]) == 1
    assert "plain: was predicted with flips none and scales 1,1.5, but " in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "folder")]) == 1
    assert "folder: the file of an ensemble ends in .yaml" in capsys.readouterr().err
    assert not (tmp_path / "x.yaml").exists()
