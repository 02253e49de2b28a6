"""The road of a classifier on tiny generated photos, as a person types it: check, fit, export, evaluate, predict."""

import argparse
import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

from visionapps.classification.base import Classifier
from visionapps.cli.evaluate_classes import _dataset
from visionapps.cli.main import main
from visionapps.data.class_crops import ClassSample
from visionapps.data.fake_classes import write_classes
from visionapps.errors import ConfigError
from visionapps.inference.bundle import load
from visionapps.models import classifier
from visionapps.networks.base import Network, Outputs, PooledHead
from visionapps.structures import Frame, InputSpec
from visionapps.training.callbacks import FreezeBackbone
from visionapps.training.classification import ClassificationTask
from visionapps.training.optim import LayerRates, parameter_groups

NETWORK = "test_efficientnet"


def settings(photos: Path, cache: Path) -> dict:
    return {
        "seed_everything": 1,
        "trainer": {
            "max_epochs": 3,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "visionapps.training.callbacks.Averaging", "init_args": {"decay": 0.5}}],
        },
        "model": {
            "class_path": "visionapps.training.classification.ClassificationTask",
            "init_args": {
                "model": {
                    "class_path": "visionapps.models.classifier",
                    "init_args": {"network": NETWORK, "num_classes": 3},
                },
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}},
                "scheduler": {
                    "class_path": "torch.optim.lr_scheduler.ReduceLROnPlateau",
                    "init_args": {"mode": "max", "factor": 0.1},
                },
                "label_smoothing": 0.1,
            },
        },
        "data": {
            "class_path": "visionapps.training.class_data.ClassificationData",
            "init_args": {
                "dataset": {"train": str(photos), "cache": str(cache), "split": {"val_fraction": 0.25}},
                "view": {"side": 32, "pad": 4},
                "batch_size": 8,
                "workers": 0,
                "colour_noise": 0.1,
            },
        },
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(config, folder) of a finished run."""
    home = tmp_path_factory.mktemp("classes")
    photos = write_classes(home / "photos", 24, classes=3, rng=np.random.default_rng(0))
    config = home / "tiny.yaml"
    config.write_text(yaml.safe_dump(settings(photos, home / "cache")))
    assert main(["fit", "--config", str(config), "--out", str(home / "out")]) == 0
    return config, home / "out"


@pytest.fixture(scope="module")
def bundle(trained: tuple[Path, Path]) -> Path:
    folder = trained[1] / "bundle"
    assert main(["export", str(trained[1] / "checkpoints/best.ckpt"), "--out", str(folder)]) == 0
    return folder


def changed(trained: tuple[Path, Path], place: Path, path: str, value: object) -> Path:
    """The run's config with one key changed."""
    config = yaml.safe_load(trained[0].read_text())
    *parents, last = path.split(".")
    node = config
    for key in parents:
        node = node[key]
    node[last] = value
    (place / "changed.yaml").write_text(yaml.safe_dump(config))
    return place / "changed.yaml"


def test_a_run_leaves_a_checkpoint_scores_and_pictures_and_learns(trained: tuple[Path, Path]) -> None:
    _, out = trained
    pictures = {p.name for p in (out / "report").iterdir()}
    assert {"curves.png", "confusion.png", "scores.json", "hardest.jpg"} <= pictures
    scores = json.loads((out / "report/scores.json").read_text())
    assert [c["name"] for c in scores["classes"]] == ["checks", "columns", "rows"]
    assert scores["images"] == 18
    assert scores["top1"] > 0.5  # a third by chance
    rows = list(csv.DictReader((out / "logs/start_000/metrics.csv").open()))
    logged = [float(r["val/top1"]) for r in rows if r.get("val/top1")]
    assert len(logged) == 3
    assert max(logged) == pytest.approx(scores["top1"])
    assert all(float(r["val/top5"]) == 1 for r in rows if r.get("val/top5"))


def test_a_bundle_of_the_run_judges_as_the_run_did(
    trained: tuple[Path, Path], bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(bundle).frame == Frame(32, 1.0)
    words = ["evaluate", str(bundle), "--config", str(trained[0]), "--json", str(tmp_path / "s.json")]
    assert main([*words, "--precision", "fp32", "--pictures", str(tmp_path / "pictures")]) == 0
    scores = json.loads((tmp_path / "s.json").read_text())
    expected = json.loads((trained[1] / "report/scores.json").read_text())
    assert scores["top1"] == expected["top1"]
    assert scores["matrix"] == expected["matrix"]
    assert f"top-1 {scores['top1']:.3f}, top-5 1.000 over 18 images" in capsys.readouterr().out
    assert (tmp_path / "pictures" / "confusion.png").is_file()
    photos = yaml.safe_load(trained[0].read_text())["data"]["init_args"]["dataset"]["train"]
    assert main(["evaluate", str(bundle), "--classes-of", photos]) == 0
    assert "over 72 images" in capsys.readouterr().out


def test_evaluate_keeps_photos_as_large_as_it_looks_at_them(
    trained: tuple[Path, Path], bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = argparse.Namespace(classes_of=Path("x"), config=None, bands=None)
    assert _dataset(options, load(bundle), 600).keep_px == 600
    assert _dataset(options, load(bundle), 64).keep_px == 512
    assert main(["evaluate", str(bundle), "--config", str(trained[0]), "--scales", "64,600"]) == 1
    assert "--scales: brings photos to a shorter side of 600 px, but they are kept with 512" in capsys.readouterr().err
    options = argparse.Namespace(classes_of=None, config=trained[0], bands="3,2,1")
    assert _dataset(options, load(bundle), 64).bands == (3, 2, 1)


def test_evaluate_refuses_what_a_classifier_has_no_use_for(
    trained: tuple[Path, Path], bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_config, of_folder = ["--config", str(trained[0])], ["--classes-of", str(tmp_path)]
    for words, message in (
        ([*of_config, "--scale", "255"], "--scale: the bundle holds a classifier"),
        ([*of_config, "--tile", "64", "--nodata", "0"], "--tile, --nodata: the bundle holds"),
        ([*of_config, "--mask-suffix", "_m", "--voc"], "--mask-suffix, --voc: the bundle holds"),
        ([*of_config, "--report", str(tmp_path / "r")], "--report: the bundle holds"),
        ([*of_folder, "--split", "train"], "--split: the bundle holds"),
        ([*of_config, "--batch", "0"], "--batch 0: must be at least 1"),
        ([*of_config, "--scales", ","], "--scales ,: expected shorter sides"),
    ):
        assert main(["evaluate", str(bundle), *words]) == 1, words
        assert message in capsys.readouterr().err
    photos = yaml.safe_load(trained[0].read_text())["data"]["init_args"]["dataset"]["train"] + "/rows"
    assert main(["predict", str(bundle), photos, "--out", str(tmp_path / "p"), "--batch", "0"]) == 1
    assert "--batch 0: must be at least 1" in capsys.readouterr().err


def test_predict_writes_the_first_answers_of_every_photo_and_tells_bad_ones(
    trained: tuple[Path, Path], bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = Path(yaml.safe_load(trained[0].read_text())["data"]["init_args"]["dataset"]["train"]) / "rows"
    (tmp_path / "bad.png").write_bytes(b"no photo")
    words = [
        "predict",
        str(bundle),
        str(photos),
        str(tmp_path / "bad.png"),
        "--out",
        str(tmp_path / "out"),
        "--top",
        "2",
    ]
    assert main(words) == 1
    assert "bad.png: cannot be decoded" in capsys.readouterr().err
    rows = list(csv.DictReader((tmp_path / "out/classes.csv").open()))
    assert len(rows) == 24
    assert list(rows[0]) == ["image", "class", "score", "class_2", "score_2"]
    model = load(bundle).classifier
    from visionapps.data.images import read_image

    for row in rows[:3]:  # the network by hand
        image = torch.tensor(read_image(Path(row["image"]))).permute(2, 0, 1)[None]
        with torch.inference_mode():
            found = model(image).softmax(1)[0]
        best, second = found.argsort(descending=True)[:2].tolist()
        assert [row["class"], row["class_2"]] == [load(bundle).labels.names[k] for k in (best, second)]
        assert float(row["score"]) == pytest.approx(float(found[best]), abs=0.02)  # it may compute in bf16


def test_options_of_other_kinds_of_models_are_refused(
    trained: tuple[Path, Path], bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(bundle), str(tmp_path), "--out", str(tmp_path / "o"), "--vectors", "gpkg"]) == 1
    assert "holds a classifier; leave out --vectors, which maps and boxes alone have" in capsys.readouterr().err
    assert main(["evaluate", str(bundle)]) == 1
    assert "give either --config YAML or --classes-of PATH for a classifier" in capsys.readouterr().err
    assert main(["export", "--out", str(tmp_path / "o")]) == 1
    assert "give either a checkpoint or --network NAME" in capsys.readouterr().err


def test_check_rehearses_a_run_and_reads_options(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = changed(trained, tmp_path, "model.init_args.model.init_args.num_classes", 4)
    assert main(["check", "--config", str(config), "--json", str(tmp_path / "c.json")]) == 1
    shown = capsys.readouterr().out
    assert "num_classes is 4, but the data has 3 classes (checks, columns, rows); set num_classes to 3" in shown
    assert json.loads((tmp_path / "c.json").read_text())["splits"]["val"]["class_photos"] == {
        "checks": 6, "columns": 6, "rows": 6,
    }  # fmt: skip
    photos = yaml.safe_load(config.read_text())["data"]["init_args"]["dataset"]["train"]
    words = ["check", "--train", photos, "--val-fraction", "0.5", "--cache", str(tmp_path / "cache")]
    assert main(words) == 0
    assert "Nothing forbids training." in capsys.readouterr().out
    assert main(["check", "--train", photos, "--masks", photos]) == 1
    assert "--masks: photos with one class have none; leave it out" in capsys.readouterr().err
    config = changed(trained, tmp_path, "data.init_args.dataset.trian", "x")
    assert main(["check", "--config", str(config)]) == 1
    assert "trian" in capsys.readouterr().err


class TwoAnswers(Network):
    """A network with an auxiliary classifier and a penalty."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("conv", nn.Conv2d(3, 4, 3))
        self.head, self.aux = PooledHead(4, 3), PooledHead(4, 3)
        self.native = 8
        self.auxiliary = (0.3,)

    def outputs(self, image: torch.Tensor) -> Outputs:
        map_ = self.features(image)
        return Outputs((self.head(map_), self.aux(map_)), torch.tensor(0.25))


def test_auxiliary_logits_and_penalties_count_by_their_weights() -> None:
    torch.manual_seed(0)
    net = TwoAnswers()
    task = ClassificationTask(Classifier(net, InputSpec(), 3), torch.optim.SGD, label_smoothing=0.1)
    image, label = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8), torch.tensor([0, 1, 2, 0])
    map_ = net.features(task.model.normalize(image))
    smooth = 0.9 * F.one_hot(label, 3) + 0.1 / 3
    main_, aux = (-(smooth * head(map_).log_softmax(1)).sum(1).mean() for head in (net.head, net.aux))
    got = task.loss_of(ClassSample(image, label, label))
    assert float(got.detach()) == pytest.approx(float((main_ + 0.3 * aux + 0.25).detach()), abs=1e-6)
    with pytest.raises(ConfigError, match=r"label_smoothing: 1.0 must be in \[0, 1\); 0.1 is usual"):
        ClassificationTask(task.model, torch.optim.SGD, label_smoothing=1.0)


def test_rates_and_freezing_know_all_but_the_head_as_the_backbone() -> None:
    model = classifier(NETWORK, 3)
    groups = parameter_groups(model, LayerRates(backbone=0.1))
    by_scale = {s: sum(len(g["params"]) for g in groups if g["lr_scale"] == s) for s in (0.1, 1.0)}  # type: ignore[arg-type, misc]
    assert by_scale[1.0] == 2  # weight and bias of the head
    assert sum(by_scale.values()) == len(list(model.parameters()))
    blocks = parameter_groups(model, LayerRates(depth_decay=0.5))
    assert len({g["lr_scale"] for g in blocks}) > 3
    task = ClassificationTask(model, torch.optim.SGD)

    class Trainer:
        current_epoch = 0

    freeze = FreezeBackbone(epochs=1)
    freeze.on_fit_start(Trainer(), task)  # type: ignore[arg-type]
    freeze.on_train_epoch_start(Trainer(), task)  # type: ignore[arg-type]
    assert not any(p.requires_grad for p in model.network.features.parameters())
    assert all(p.requires_grad for p in model.network.head.parameters())
    with pytest.raises(ConfigError, match="stride 4 means a map of a pyramid, which a classifier has not"):
        FreezeBackbone(stride=4).on_fit_start(Trainer(), task)  # type: ignore[arg-type]


def test_a_view_that_the_network_cannot_take_is_refused_before_training(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(trained, tmp_path, "model.init_args.model.init_args.network", "test_vit")
    config = changed((tmp_path / "changed.yaml", tmp_path), tmp_path, "data.init_args.view.side", 33)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    assert main(["fit", "--config", str(config), "--out", str(tmp_path / "out")]) == 1
    assert "data.view.side: the network cannot take images of 33 x 33 px" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_network_whose_policy_gets_no_gradient_is_refused_with_what_trains_it() -> None:
    task = ClassificationTask(classifier("visionapps/blockdrop_110", 3), torch.optim.SGD)
    with pytest.raises(
        ConfigError, match=r"model.network: BlockDrop cannot be trained by fit: its policy .* with BlockDrop.reinforce"
    ):
        task.meet(None)  # type: ignore[arg-type] # refused before the data is asked for anything
