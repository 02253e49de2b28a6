"""The training road on tiny generated photos: one run, resumed, and every way to get the file wrong."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from visionapps.cli.main import main
from visionapps.data.fake import PhotoFolders, write_photos
from visionapps.errors import ConfigError

BACKBONE = "test_efficientnet"  # timm's own fake network: a real pyramid in 0.4 million parameters


def settings(folders: PhotoFolders, cache: Path, *, classes: int = 3, epochs: int = 2) -> dict:
    return {
        "seed_everything": 1,
        "trainer": {
            "max_epochs": epochs,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [
                {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.5}},
                {"class_path": "visionapps.training.callbacks.FreezeBackbone", "init_args": {"epochs": 1}},
            ],
        },
        "model": {
            "class_path": "visionapps.training.segmentation.SegmentationTask",
            "init_args": {
                "model": {
                    "class_path": "visionapps.models.unet",
                    "init_args": {"backbone": BACKBONE, "num_classes": 3, "channels": [16, 16, 8, 8, 8]},
                },
                "loss": {
                    "class_path": "visionapps.losses.DiceCrossEntropy",
                    "init_args": {"class_weights": {"rule": "effective", "beta": 0.9}},
                },
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
                "curve": {"class_path": "visionapps.training.optim.Cosine", "init_args": {"warmup": 0.1}},
            },
        },
        "data": {
            "class_path": "visionapps.training.data.SegmentationData",
            "init_args": {
                "dataset": {
                    "images": str(folders.images),
                    "masks": str(folders.masks),
                    "classes": [{"name": f"class{k}"} for k in range(classes)],
                    "split": {"group": "site\\d+", "val_fraction": 0.3},
                    "policies": {"near_duplicate": "warn"},
                    "cache": str(cache),
                },
                "crops": {
                    "size": 32,
                    "per_epoch": 16,
                    "balance": {"start": 1.0, "end": 0.5, "epochs": 2},
                    "area_bins": 2,
                },
                "batch_size": 4,
                "workers": 0,
                "val_tile": 64,
            },
        },
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> PhotoFolders:
    return write_photos(tmp_path_factory.mktemp("photos"), 12, rng=np.random.default_rng(0))


@pytest.fixture(scope="module")
def trained(folders: PhotoFolders, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(config, folder) of a finished run of two epochs."""
    home = tmp_path_factory.mktemp("run")
    config = home / "tiny.yaml"
    config.write_text(yaml.safe_dump(settings(folders, home / "cache")))
    assert main(["fit", "--config", str(config), "--out", str(home / "out")]) == 0
    return config, home / "out"


def rewritten(trained: tuple[Path, Path], place: Path, path: tuple[str, ...], value: object) -> Path:
    """The run's config with one key changed."""
    config = yaml.safe_load(trained[0].read_text())
    node = config
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    file = place / "changed.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def test_a_run_leaves_checkpoints_logs_settings_and_pictures(trained: tuple[Path, Path]):
    _, out = trained
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "logs/start_000/metrics.csv"):
        assert (out / name).is_file(), name
    assert list((out / "tensorboard").glob("events*"))
    pictures = {p.name for p in (out / "report").iterdir()}
    assert {"curves.png", "confusion.png", "scores.json", "worst_1.jpg", "best_1.jpg"} <= pictures
    scores = json.loads((out / "report/scores.json").read_text())
    assert [c["name"] for c in scores["classes"]] == ["class0", "class1", "class2"]
    assert 0 <= scores["mean_dice"] <= 1


def pixels_drawn(out: Path, epoch: int) -> list[int]:
    """Pixels of each class in an epoch, as the run counted them."""
    rows = csv.DictReader((out / "drawn.csv").open())
    return [int(row["pixels"]) for row in rows if row["epoch"] == str(epoch)]


def pixels_of_crops(config: Path, place: Path, epoch: int) -> list[int]:
    """The same, counted in the 16 crops that belong to the epoch."""
    from visionapps.training.run import build

    *_, data, _ = build(config, place / "unused", [])
    data.setup("fit")
    crops = data.random_crops()
    labels = np.stack([crops[i].labels.numpy() for i in range(16 * epoch, 16 * epoch + 16)])
    return [int((labels == k).sum()) for k in range(3)]


def test_the_run_counts_what_its_crops_showed_of_each_class(trained: tuple[Path, Path], tmp_path: Path):
    from visionapps.training.run import build

    config, out = trained
    *_, data, _ = build(config, tmp_path, [])
    data.setup("fit")
    crops = data.random_crops()
    rows = list(csv.DictReader((out / "drawn.csv").open()))
    assert [(row["epoch"], row["class"]) for row in rows] == [
        (epoch, f"class{k}") for epoch in ("photos", "0", "1") for k in range(3)
    ]
    for epoch in range(2):
        labels = np.stack([crops[i].labels.numpy() for i in range(16 * epoch, 16 * epoch + 16)])
        for k, row in enumerate(rows[3 * epoch + 3 : 3 * epoch + 6]):
            assert int(row["crops"]) == 16
            assert int(row["crops_with_class"]) == (labels == k).any(axis=(1, 2)).sum()
            assert int(row["pixels"]) == (labels == k).sum()
            assert float(row["share_of_crops"]) == pytest.approx((labels == k).any(axis=(1, 2)).mean())
            assert float(row["share_of_pixels"]) == pytest.approx((labels == k).sum() / (labels != 255).sum(), abs=1e-7)
    truth = [photo.labels(photo.window) for photo in data.examination.train]
    for k, row in enumerate(rows[:3]):
        assert int(row["crops"]) == len(truth)
        assert int(row["pixels"]) == sum((labels == k).sum() for labels in truth)
    assert (out / "report/drawn.png").is_file()


def test_class_weights_of_a_rule_come_from_the_training_photos_and_stand_in_the_checkpoint(trained: tuple[Path, Path]):
    _, out = trained
    rows = list(csv.DictReader((out / "drawn.csv").open()))[:3]
    samples = np.array([int(row["pixels"]) for row in rows]) / 64**2
    expected = 0.1 / (1 - 0.9**samples)
    checkpoint = torch.load(out / "checkpoints/best.ckpt", weights_only=True)
    weights = checkpoint["visionapps"]["class_weights"]
    assert weights["cross_entropy"] == pytest.approx(expected / expected.mean(), rel=1e-5)
    assert not any("class_weights" in name for name in checkpoint["state_dict"])


def test_the_log_holds_the_mean_dice_and_the_share_of_waiting(trained: tuple[Path, Path]):
    rows = list(csv.DictReader((trained[1] / "logs/start_000/metrics.csv").open()))
    dice = [float(r["val/dice"]) for r in rows if r.get("val/dice")]
    assert len(dice) == 2
    classes = [[float(r[f"val/dice/class{k}"]) for k in range(3)] for r in rows if r.get("val/dice/class0")]
    assert dice == pytest.approx([float(np.mean(c)) for c in classes], abs=1e-6)
    assert all(0 <= float(r["time/data_wait"]) <= 1 for r in rows if r.get("time/data_wait"))


def test_the_best_checkpoint_holds_the_averaged_weights_that_were_validated(trained: tuple[Path, Path]):
    # The report predicts with the bundle of best.ckpt: it meets the logged score only if both used the same weights.
    _, out = trained
    rows = list(csv.DictReader((out / "logs/start_000/metrics.csv").open()))
    logged = max(float(r["val/dice"]) for r in rows if r.get("val/dice"))
    assert json.loads((out / "report/scores.json").read_text())["mean_dice"] == pytest.approx(logged, abs=1e-4)
    checkpoint = torch.load(out / "checkpoints/best.ckpt", weights_only=True)
    averaged, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    assert any(not torch.equal(averaged[name], current[name]) for name in averaged)


def test_the_checkpoint_is_plain_data_that_rebuilds_the_model(trained: tuple[Path, Path]):
    from visionapps.inference.bundle import from_checkpoint

    _, out = trained
    checkpoint = torch.load(out / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["visionapps"]["labels"]["names"] == ["class0", "class1", "class2"]
    assert checkpoint["visionapps"]["tile"] == 64
    bundle = from_checkpoint(out / "checkpoints/last.ckpt")
    image = torch.randint(0, 256, (1, 3, 40, 56), dtype=torch.uint8)
    assert bundle.model(image).shape == (1, 3, 40, 56)


def test_a_frozen_backbone_stands_still_and_then_moves(folders: PhotoFolders, tmp_path: Path):
    from visionapps.training.run import build

    config = tmp_path / "freeze.yaml"
    content = settings(folders, tmp_path / "cache", epochs=1)
    content["trainer"]["callbacks"] = content["trainer"]["callbacks"][1:]
    config.write_text(yaml.safe_dump(content))

    def drift(epochs: int) -> float:
        trainer, task, data, _ = build(config, tmp_path / f"out{epochs}", ["--trainer.max_epochs", str(epochs)])
        before = {n: t.clone() for n, t in task.model.backbone.state_dict().items()}
        trainer.fit(task, data)
        after = task.model.backbone.state_dict()
        return max(float((after[n] - t).abs().max()) for n, t in before.items() if t.is_floating_point())

    assert drift(1) == 0
    assert drift(2) > 0


def test_resuming_goes_on_from_the_last_epoch(trained: tuple[Path, Path], tmp_path: Path):
    import shutil

    config, out = trained
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    again = ["fit", "--config", str(config), "--out", str(copy), "--no-report", "--trainer.max_epochs", "3"]
    assert main([*again, "--resume", "--data.init_args.workers", "1"]) == 0
    assert pixels_drawn(copy, 2) == pixels_of_crops(config, tmp_path, 2)
    checkpoint = torch.load(copy / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 2
    assert sorted(p.parent.name for p in copy.glob("logs/*/metrics.csv")) == ["start_000", "start_001"]
    assert checkpoint["global_step"] == 12  # 3 epochs of 4 batches: the first two were not repeated


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_run_goes_on_from_its_last_step(trained: tuple[Path, Path], tmp_path: Path):
    import signal

    from lightning.pytorch import Callback

    from visionapps.training.run import build

    class PressCtrlC(Callback):
        def on_train_batch_end(self, trainer, *rest):
            if trainer.global_step == 6:  # in the middle of the second epoch
                signal.raise_signal(signal.SIGINT)

    out = tmp_path / "out"
    trainer, task, data, _ = build(trained[0], out, [])
    trainer.callbacks.append(PressCtrlC())
    with pytest.raises(SystemExit):
        trainer.fit(task, data)
    assert torch.load(out / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 6
    assert main(["fit", "--config", str(trained[0]), "--out", str(out), "--resume", "--no-report"]) == 0
    assert torch.load(out / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 8  # 2 epochs of 4 batches
    # It goes on with the crops that it had not seen, and counts on from what is in the checkpoint.
    assert (out / "drawn.csv").read_text() == (trained[1] / "drawn.csv").read_text()


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run a command that must fail with exit code 1 and exactly one line, which is returned."""
    assert main([str(w) for w in words]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_an_existing_run_is_refused_and_left_alone(trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    config, out = trained
    before = (out / "checkpoints/best.ckpt").stat().st_mtime_ns
    message = refused(capsys, "fit", "--config", config, "--out", out)
    assert "exists already" in message
    assert "--overwrite" in message
    assert (out / "checkpoints/best.ckpt").stat().st_mtime_ns == before


def test_a_misspelt_key_is_named(trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = rewritten(trained, tmp_path, ("data", "init_args", "batchsize"), 4)
    assert "batchsize" in refused(capsys, "fit", "--config", config, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wrong_number_of_classes_names_both_numbers(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = ("model", "init_args", "model", "init_args", "num_classes")
    config = rewritten(trained, tmp_path, path, 7)
    message = refused(capsys, "fit", "--config", config, "--out", tmp_path / "out")
    assert "num_classes is 7, but the data has 3 classes" in message
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_other_classes_is_not_resumed(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    import shutil

    copy = tmp_path / "out"
    shutil.copytree(trained[1], copy)
    names = [{"name": name} for name in ("water", "field", "house")]
    config = rewritten(trained, tmp_path, ("data", "init_args", "dataset", "classes"), names)
    message = refused(capsys, "fit", "--config", config, "--out", copy, "--resume")
    assert "trained on the classes class0, class1, class2, but the data has water, field, house" in message


def test_resuming_without_a_checkpoint_says_so(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    message = refused(capsys, "fit", "--config", trained[0], "--out", tmp_path / "none", "--resume")
    assert "no checkpoint to resume from" in message


def test_a_missing_config_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "none.yaml: no such file" in refused(capsys, "fit", "--config", tmp_path / "none.yaml")


def test_scheduler_and_curve_together_are_refused(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    scheduler = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1}}
    config = rewritten(trained, tmp_path, ("model", "init_args", "scheduler"), scheduler)
    message = refused(capsys, "fit", "--config", config, "--out", tmp_path / "out")
    assert "scheduler or a curve, not both" in message


def test_sgd_with_plateau_watches_the_mean_dice(trained: tuple[Path, Path], tmp_path: Path):
    from visionapps.training.run import build

    config = yaml.safe_load(trained[0].read_text())
    arguments = config["model"]["init_args"]
    del arguments["curve"]
    arguments["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}}
    arguments["scheduler"] = {
        "class_path": "torch.optim.lr_scheduler.ReduceLROnPlateau",
        "init_args": {"mode": "max", "factor": 0.5, "patience": 0},
    }
    file = tmp_path / "plateau.yaml"
    file.write_text(yaml.safe_dump(config))
    trainer, task, data, _ = build(file, tmp_path / "out", [])
    trainer.fit(task, data)
    assert trainer.lr_scheduler_configs[0].monitor == "val/dice"
    assert trainer.lr_scheduler_configs[0].scheduler.best == pytest.approx(
        float(trainer.checkpoint_callback.best_model_score), abs=1e-6
    )


def found_by_check(config: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["check", "--config", str(config), "--all"]) == 1
    return capsys.readouterr().out


def test_check_rehearses_a_good_run_and_leaves_nothing(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["check", "--config", str(trained[0])]) == 0
    assert "Nothing forbids training." in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_check_finds_a_wrong_number_of_classes(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = ("model", "init_args", "model", "init_args", "num_classes")
    assert "num_classes is 7, but the data has 3" in found_by_check(rewritten(trained, tmp_path, path, 7), capsys)


def test_check_finds_missing_weights(trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = ("model", "init_args", "model", "init_args", "weights")
    assert "gone.safetensors" in found_by_check(rewritten(trained, tmp_path, path, "gone.safetensors"), capsys)


def test_check_finds_a_misspelt_key_of_the_model(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = ("model", "init_args", "model", "init_args", "chanels")
    assert "chanels" in found_by_check(rewritten(trained, tmp_path, path, [8]), capsys)


def test_check_finds_a_loss_that_does_not_fit_by_taking_a_step(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    loss = {"class_path": "torch.nn.BCEWithLogitsLoss"}
    config = rewritten(trained, tmp_path, ("model", "init_args", "loss"), loss)
    assert "one training step on two images fails" in found_by_check(config, capsys)


@pytest.mark.parametrize(
    ("kind", "given", "text"),
    [
        ("crops", {"balance": {"start": 0.8, "end": 0.2}}, "run.balance: the following arguments are required: epochs"),
        ("crops", {"balance": {"start": 0.8, "ends": 0.2, "epochs": 3}}, "run.balance: Option 'ends' is not accepted"),
        ("crops", {"balance": {"start": 1.8, "end": 0.2, "epochs": 3}}, "start is 1.8; choose a value in [0, 1]"),
        ("crops", {"balance": "half"}, "run.balance: Expected a <class 'float'>"),
        ("crops", {"area_bins": 3.5}, "run.area_bins: Expected a <class 'int'>, or a <class 'tuple'>"),
        ("data", {"extra": {"images": "a", "masks": "b"}}, "run.extra: is a list; write - {images: ..., masks: ...}"),
        ("data", {"extra": [{"images": "a", "mask": "b"}]}, "run.extra: Option 'mask' is not accepted"),
        ("loss", {"class_weights": {"rule": "effective", "beta": 1}}, "choose a value in [0, 1), such as 0.999"),
        (
            "loss",
            {"class_weights": "invers"},
            "run.class_weights: Expected a <class 'collections.abc.Sequence'>, or a typing.Literal['inverse', "
            "'median_frequency', 'effective']",
        ),
    ],
)
def test_a_setting_that_may_be_of_several_kinds_says_what_is_wrong_with_the_one_that_was_meant(kind, given, text):
    from jsonargparse import ArgumentError, ArgumentParser

    from visionapps.data.dataset import Dataset
    from visionapps.losses import CrossEntropy
    from visionapps.training.data import Crops
    from visionapps.training.run import _first_cause

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments({"crops": Crops, "data": Dataset, "loss": CrossEntropy}[kind], "run")
    with pytest.raises((ArgumentError, ValueError)) as error:
        parser.instantiate(parser.parse_object({"run": given}))
    assert _first_cause(error.value).endswith(text)


def test_photos_of_another_range_or_band_count_are_refused():
    from visionapps.models import unet
    from visionapps.structures import InputSpec, LabelSpace
    from visionapps.training.task import require_fitting

    labels = LabelSpace.named(("a", "b", "c"))
    model = unet(BACKBONE, 3)
    require_fitting(model, labels, bands=3, dtype="uint8")
    with pytest.raises(ConfigError, match=r"takes 3 bands .* but the photos have 8"):
        require_fitting(model, labels, bands=8, dtype="uint8")
    with pytest.raises(ConfigError, match=r"raw value of 255 means 1\.0, but the photos hold uint16"):
        require_fitting(model, labels, bands=3, dtype="uint16")
    reflectance = unet(BACKBONE, 3, spec=InputSpec(scale=10000))
    require_fitting(reflectance, labels, bands=3, dtype="uint16")
