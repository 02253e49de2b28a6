"""Files of ensembles: what they say, what they refuse, and that the verbs draw the mean of the members."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_bundles import COLORS, tiny

from visionapps.cli.main import main
from visionapps.competition.ensemble import EnsembleSpec, Member, is_spec
from visionapps.errors import ConfigError, WeightsError
from visionapps.inference.bundle import load
from visionapps.structures import LabelSpace

FIXED = ["--device", "cpu", "--precision", "fp32"]
LABELS = LabelSpace(("roof", "road", "tree"), COLORS)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two bundles, a and b, photos, and masks of them."""
    folder = tmp_path_factory.mktemp("ensemble")
    tiny(LABELS, 1).save(folder / "a")
    tiny(LABELS, 2).save(folder / "b")
    rng = np.random.default_rng(0)
    for name in ("photos", "masks"):
        (folder / name).mkdir()
    small = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(small).resize((96, 64), Image.Resampling.BICUBIC).save(folder / "photos" / "x.png")
    Image.fromarray(rng.integers(0, 3, (64, 96), dtype=np.uint8)).save(folder / "masks" / "x.png")
    return folder


def spec_of(home: Path, path: Path, **other) -> Path:
    members = [{"bundle": str(home / "a"), "weight": 1}, {"bundle": str(home / "b"), "weight": 3}]
    path.write_text(yaml.safe_dump({"members": members, **other}))
    return path


def test_a_spec_survives_its_file_and_moves_with_its_bundles(tmp_path):
    spec = EnsembleSpec(
        (Member(tmp_path / "kit" / "a", 0.25), Member(tmp_path / "kit" / "sub" / "b", 2)), "d4", (1, 1.5), 512, {"k": 4}
    )
    spec.save(tmp_path / "kit" / "all.yaml")
    written = yaml.safe_load((tmp_path / "kit" / "all.yaml").read_text())
    assert [member["bundle"] for member in written["members"]] == ["a", "sub/b"]
    assert EnsembleSpec.load(tmp_path / "kit" / "all.yaml") == spec
    (tmp_path / "kit").rename(tmp_path / "moved")
    moved = EnsembleSpec.load(tmp_path / "moved" / "all.yaml")
    assert moved.bundles == (tmp_path / "moved" / "a", tmp_path / "moved" / "sub" / "b")
    assert (moved.forwards, moved.weights) == (2 * 8 * 2, (0.25, 2.0))
    assert is_spec(tmp_path / "moved" / "all.yaml")
    assert not is_spec(tmp_path / "moved")


def test_a_bundle_without_a_weight_counts_once(tmp_path):
    (tmp_path / "all.yml").write_text("members: [a, {bundle: b}, /abs/c]\nflips: no\n")
    spec = EnsembleSpec.load(tmp_path / "all.yml")
    assert (spec.weights, spec.flips, spec.scales) == ((1.0, 1.0, 1.0), "none", (1.0,))
    assert spec.bundles == (tmp_path / "a", tmp_path / "b", Path("/abs/c"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("members: []", "no members"),
        ("a: 1", "is no ensemble; expected `members:`"),
        ("members: [a]\nflip: d4", "unknown keys flip; an ensemble has ensemble, members"),
        ("members: a", "members must be a list"),
        ("members: [{bundle: a, wieght: 2}]", "expected a folder, or {bundle: FOLDER, weight: NUMBER}"),
        ("members: [{bundle: a, weight: 0}]", "a has weight 0.0; weights are positive"),
        ("members: [{bundle: a, weight: .nan}]", "has weight nan"),
        ("members: [{bundle: a, weight: heavy}]", "a value is of the wrong kind"),
        ("members: [a, b, ./a]", "is a member twice"),
        ("members: [a]\nflips: all", "flips 'all' unknown; choose from none, flips, d4"),
        ("members: [a]\nscales: [0]", "give different factors from 0.1 to 10"),
        ("members: [a]\ntile: 0", "tile 0: must be at least 1 pixel"),
        ("members: [a]\nensemble: 2", "an ensemble of format 2, but this version reads 1"),
        ("members: [a", "cannot be read as an ensemble"),
    ],
)
def test_a_wrong_file_is_told_what_is_wrong(tmp_path, text, said):
    path = tmp_path / "all.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        EnsembleSpec.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


def test_members_that_do_not_fit_are_refused_by_name_before_weights_are_read(home, tmp_path):
    others = {
        "classes": ("labels", "names", ["roof", "road", "lawn"]),
        "bands": ("spec", "bands", ["red", "green", "nir"]),
        "scale": ("spec", "scale", 10000.0),
        "gsd": ("gsd", None, 0.3),
        "resize": ("resize", None, [60, 80]),
        "tile": ("tile", None, 96),
    }
    for what, (key, inner, value) in others.items():
        folder = tmp_path / what
        shutil.copytree(home / "a", folder)
        head = yaml.safe_load((folder / "model.yaml").read_text())
        (head if inner is None else head[key])[inner or key] = value
        (folder / "model.yaml").write_text(yaml.safe_dump(head))
        (folder / "weights.safetensors").write_bytes(b"not looked at")
        spec = EnsembleSpec((Member(home / "a"), Member(folder)))
        with pytest.raises(WeightsError) as caught:
            spec.require_fitting()
        assert str(caught.value).startswith(f"{folder}: was trained with {what} ")
        assert f"but {home / 'a'} with" in str(caught.value)
    assert "tile: 96" in str(caught.value)
    replace(spec, tile=96).require_fitting()  # said which: nothing to refuse
    with pytest.raises(WeightsError, match="no such bundle"):
        EnsembleSpec((Member(home / "a"), Member(home / "nothing"))).require_fitting()


def test_the_mean_of_an_ensemble_is_that_of_the_members_probabilities_by_hand(home):
    spec = EnsembleSpec((Member(home / "a", 1), Member(home / "b", 3)))
    tiles = np.random.default_rng(1).integers(0, 256, (1, 3, 64, 64), dtype=np.uint8)
    scores = spec.computing(device="cpu", precision="fp32").network()(tiles).numpy()
    with torch.inference_mode():
        p, q = (load(home / name).segmentor(torch.from_numpy(tiles)).softmax(1).numpy() for name in "ab")
    np.testing.assert_allclose(scores, p / 4 + 3 * q / 4, atol=1e-5)


def test_verbs_take_the_file_for_a_bundle_and_draw_the_weighted_mean_of_all_views(home, tmp_path, capsys):
    path = spec_of(home, tmp_path / "all.yaml", flips="flips", scales=[1, 0.5])
    rest = [str(home / "photos"), "--scores", "probabilities"]
    words = ["--member", str(home / "b"), "--weights", "1,3", "--tta", "flips", "--scales", "1,0.5"]
    assert main(["predict", str(path), *rest, *FIXED, "--out", str(tmp_path / "one")]) == 0
    assert main(["predict", str(home / "a"), *rest, *words, *FIXED, "--out", str(tmp_path / "two")]) == 0
    for file in ("x.png", "x_scores.tif"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()

    where = ["--images", str(home / "photos"), "--masks", str(home / "masks"), "--json", str(tmp_path / "all.json")]
    assert main(["evaluate", str(path), *where, *FIXED]) == 0
    with Image.open(tmp_path / "one" / "x.png") as drawn, Image.open(home / "masks" / "x.png") as true:
        cells = 3 * np.asarray(true).ravel().astype(int) + np.asarray(drawn).ravel()
    expected = np.bincount(cells, minlength=9).reshape(3, 3)
    assert json.loads((tmp_path / "all.json").read_text())["matrix"] == expected.tolist()

    capsys.readouterr()
    assert main(["predict", str(path), *rest, *words, "--out", str(tmp_path / "three")]) == 1
    said = capsys.readouterr().err
    assert "the ensemble's file says this itself; leave out --member, --weights, --tta, --scales" in said


def test_the_tile_of_the_file_is_the_tile_that_is_drawn(home, tmp_path, capsys):
    path = spec_of(home, tmp_path / "all.yaml", tile=50)  # no multiple of the members' stride
    assert main(["predict", str(path), str(home / "photos"), "--out", str(tmp_path / "maps"), *FIXED]) == 1
    assert "tile 50" in capsys.readouterr().err
