"""A probe as a person types it, and what evaluate then does with its bundle."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from visionapps.backbones.zoo import levels_of
from visionapps.cli.main import main
from visionapps.data.fake_classes import write_classes


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    write_classes(folder / "photos", 16, classes=3, rng=np.random.default_rng(3))
    model = {
        "class_path": "visionapps.models.classifier",
        "init_args": {"network": "test_efficientnet", "num_classes": 3},
    }
    settings = {
        "trainer": {"accelerator": "cpu", "logger": False},
        "model": {
            "class_path": "visionapps.training.classification.ClassificationTask",
            "init_args": {
                "model": model,
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
            },
        },
        "data": {
            "class_path": "visionapps.training.class_data.ClassificationData",
            "init_args": {
                "dataset": {
                    "train": str(folder / "photos"),
                    "cache": str(folder / "cache"),
                    "split": {"val_fraction": 0.25},
                },
                "view": {"side": 32},
                "batch_size": 8,
                "workers": 0,
            },
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def bundle(config: Path) -> Path:
    out = config.parent / "out"
    assert main(["probe", "--config", str(config), "--out", str(out), "--device", "cpu", "--digits", "float32"]) == 0
    return out / "bundle"


def test_a_probe_leaves_a_bundle_that_evaluate_scores_the_same(
    config: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = json.loads((bundle.parent / "scores.json").read_text())
    assert len(list((bundle.parent / "features").glob("*.npy"))) == 2
    again = config.parent / "again.json"
    command = ["evaluate", str(bundle), "--config", str(config), "--precision", "fp32", "--json", str(again)]
    assert main(command) == 0
    found = json.loads(again.read_text())
    assert found["matrix"] == scores["matrix"]
    assert found["testing"]["forwards_per_photo"] == 1
    assert "looks      1 crop" in capsys.readouterr().out


def test_evaluate_looks_in_all_ways_and_with_members(
    config: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = ["--dense", "--crops", "10", "--scales", "32,40", "--member", str(bundle)]
    assert main(["evaluate", str(bundle), "--config", str(config), *looks]) == 0
    out = capsys.readouterr().out
    assert "dense + mirrored and 10 crops at 32, 40 px, 2 models" in out
    assert f"{2 * (2 * 2 + 2 * 10)} forwards" in out


def test_features_that_are_there_are_not_computed_again(
    config: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["probe", "--config", str(config), "--out", str(bundle.parent), "--device", "cpu"]
    assert main([*command, "--digits", "float32", "--l2", "0.01", "--overwrite"]) == 0
    out = capsys.readouterr().out
    assert "there already" in out
    assert "fit              l2 0.01" in out


def test_a_map_of_the_pyramid_is_probed_in_spatial_bins(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = config.parent / "spp"
    command = ["probe", "--config", str(config), "--out", str(out), "--device", "cpu", "--stride", "8", "--pool", "spp"]
    assert main([*command, "--l2", "1"]) == 0
    width = next(level.channels for level in levels_of("test_efficientnet") if level.stride == 8)
    assert f"features         {50 * width} of each" in capsys.readouterr().out
    assert main(["evaluate", str(out / "bundle"), "--config", str(config), "--dense", "--scales", "48"]) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--l2", "much"], "--l2 much: expected auto, or a number of at least 0"),
        (["--pool", "spp"], "--pool: pools a map of the pyramid; give its --stride, too"),
        (["--weights", "hub"], "--weights: belongs to --network"),
        (["--stride", "5"], "test_efficientnet: has no map of stride 5"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    config: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", "--config", str(config), "--out", str(config.parent / "refused"), *more]) == 1
    assert message in capsys.readouterr().err


def test_a_bundle_is_not_replaced_unasked(config: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--config", str(config), "--out", str(bundle.parent)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_looks_that_a_bundle_cannot_have_are_refused(
    config: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(bundle), "--config", str(config), "--scales", "16"]) == 1
    assert "squares of 32 px do not fit into a photo of 16 x" in capsys.readouterr().err
    assert main(["evaluate", str(bundle), "--config", str(config), "--scales", "a"]) == 1
    assert "--scales a: expected shorter sides in whole pixels" in capsys.readouterr().err
    assert main(["evaluate", "--pred", "somewhere", "--masks", "elsewhere", "--dense"]) == 1
    assert "--dense: say how a classifier looks at photos; give the bundle of one" in capsys.readouterr().err
