"""The training road of detectors on made-up photos: one run, what it leaves, and every way to get the file wrong."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from visionapps.cli.main import main
from visionapps.data.fake_objects import ObjectFiles, write_fake_objects
from visionapps.data.proposals import write_proposals

BACKBONE = "test_efficientnet"  # timm's own fake network: a real pyramid in 0.4 million parameters


def settings(files: ObjectFiles, cache: Path, *, epochs: int = 2) -> dict:
    return {
        "seed_everything": 1,
        "trainer": {
            "max_epochs": epochs,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "visionapps.training.callbacks.Averaging", "init_args": {"decay": 0.5}}],
        },
        "model": {
            "class_path": "visionapps.training.detection.DetectionTask",
            "init_args": {
                "model": {
                    "class_path": "visionapps.models.faster_rcnn",
                    "init_args": {
                        "backbone": BACKBONE,
                        "num_classes": 3,
                        "features": {"strides": [8, 16, 32], "channels": 32},
                        "regions": {"hidden": 64, "sampled": 64},
                    },
                },
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}},
                "curve": {"class_path": "visionapps.training.optim.Cosine", "init_args": {"warmup": 0.1}},
            },
        },
        "data": {
            "class_path": "visionapps.training.object_data.DetectionData",
            "init_args": {
                "dataset": {
                    "images": str(files.images),
                    "annotations": str(files.annotations),
                    "split": {"group": "^(site\\d+)_", "val_groups": ["site2"]},
                    "policies": {"near_duplicate": "warn"},
                    "cache": str(cache),
                },
                "view": {"rescale": {"short": 96, "long": 96}},
                "batch_size": 4,
                "workers": 0,
            },
        },
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ObjectFiles:
    return write_fake_objects(tmp_path_factory.mktemp("objects"), images=12, size=128)


@pytest.fixture(scope="module")
def trained(files: ObjectFiles, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(config, folder) of a finished run of two epochs: 8 photos to train on, 4 to validate on, one of them empty."""
    home = tmp_path_factory.mktemp("run")
    config = home / "tiny.yaml"
    config.write_text(yaml.safe_dump(settings(files, home / "cache")))
    assert main(["fit", "--config", str(config), "--out", str(home / "out")]) == 0
    return config, home / "out"


def changed(trained: tuple[Path, Path], place: Path, *changes: tuple[tuple[str, ...], object]) -> Path:
    """The run's config with some keys changed."""
    config = yaml.safe_load(trained[0].read_text())
    for path, value in changes:
        node = config
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
    file = place / "changed.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def logged(out: Path, name: str) -> list[float]:
    rows = csv.DictReader((out / "logs/start_000/metrics.csv").open())
    return [float(row[name]) for row in rows if row.get(name)]


MODEL = ("model", "init_args", "model", "init_args")
DATA = ("data", "init_args")


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run a command that must fail with exit code 1 and exactly one line, which is returned."""
    assert main([str(w) for w in words]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_a_run_leaves_checkpoints_logs_settings_and_pictures(trained: tuple[Path, Path]):
    _, out = trained
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "logs/start_000/metrics.csv"):
        assert (out / name).is_file(), name
    pictures = {p.name for p in (out / "report").iterdir()}
    assert {"curves.png", "confusion.png", "precision_recall.png", "scores.json", "worst_1.jpg"} <= pictures
    scores = json.loads((out / "report/scores.json").read_text())
    assert scores["images"] == 4
    assert [c["name"] for c in scores["coco"]["box"]["classes"]] == ["disc", "square", "triangle"]


def test_the_log_holds_every_term_of_the_loss_and_the_scores(trained: tuple[Path, Path]):
    _, out = trained
    terms = ("rpn_objectness", "rpn_box", "roi_class", "roi_box")
    for split, count in (("train", 4), ("val", 2)):
        parts = [logged(out, f"{split}/loss/{term}") for term in terms]
        assert [len(part) for part in parts] == [count] * 4
        assert [sum(step) for step in zip(*parts, strict=True)] == pytest.approx(logged(out, f"{split}/loss"), rel=1e-5)
    for name in ("val/ap", "val/ap50", "val/ap75", "val/ar"):
        assert len(logged(out, name)) == 2
        assert all(0 <= value <= 1 for value in logged(out, name))


def test_the_best_checkpoint_holds_the_averaged_weights_that_were_validated(trained: tuple[Path, Path]):
    # The report detects with the bundle of best.ckpt: it meets the logged AP only if both used the same weights.
    _, out = trained
    checkpoint = torch.load(out / "checkpoints/best.ckpt", weights_only=True)
    reported = json.loads((out / "report/scores.json").read_text())["coco"]["box"]["ap"]
    assert reported == pytest.approx(max(logged(out, "val/ap")), abs=1e-6)
    averaged, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    assert any(not torch.equal(averaged[name], current[name]) for name in averaged)


def test_the_checkpoint_is_plain_data_that_rebuilds_the_detector(trained: tuple[Path, Path]):
    from visionapps.inference.bundle import from_checkpoint
    from visionapps.structures import Rescale

    _, out = trained
    said = torch.load(out / "checkpoints/last.ckpt", weights_only=True)["visionapps"]
    assert said["labels"]["names"] == ["disc", "square", "triangle"]
    assert said["category_ids"] == [3, 7, 20]
    assert said["limits"] == {"score": 0.05, "nms": 0.5, "most": 100}
    assert said["metrics"]["kind"] == "box"
    bundle = from_checkpoint(out / "checkpoints/last.ckpt")
    assert bundle.rescale == Rescale(96, 96)
    assert bundle.tile == 96
    assert bundle.category_ids == (3, 7, 20)
    assert bundle.detector.limits.most == 100


def test_an_exported_detector_finds_what_the_checkpoint_found(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from visionapps.inference.bundle import from_checkpoint, load

    checkpoint = trained[1] / "checkpoints/best.ckpt"
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "bundle")]) == 0
    shown = capsys.readouterr().out
    assert "faster_rcnn on test_efficientnet" in shown
    assert "3, 7, 20" in shown
    assert "at most 100 per image, from score 0.05" in shown
    bundle = load(tmp_path / "bundle")
    image = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8)
    with torch.inference_mode():
        ours = bundle.detector.detect(image, ((96, 96),))[0]
        theirs = from_checkpoint(checkpoint).detector.detect(image, ((96, 96),))[0]
    assert len(ours.scores) > 0
    assert all(torch.equal(a, b) for a, b in zip(ours[:3], theirs[:3], strict=True))


def test_resuming_goes_on_from_the_last_epoch(trained: tuple[Path, Path], tmp_path: Path):
    copy = tmp_path / "out"
    shutil.copytree(trained[1], copy)
    words = ["fit", "--config", str(trained[0]), "--out", str(copy), "--no-report", "--trainer.max_epochs", "3"]
    assert main([*words, "--resume"]) == 0
    checkpoint = torch.load(copy / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6  # 3 epochs of 2 batches: the first two were not repeated


def test_training_on_tiles_is_scored_on_whole_photos(trained: tuple[Path, Path], tmp_path: Path):
    config = changed(
        trained,
        tmp_path,
        ((*DATA, "view"), {"tile": 64, "overlap": 32, "per_epoch": 8}),
        (("trainer", "max_epochs"), 1),
    )
    assert main(["fit", "--config", str(config), "--out", str(tmp_path / "out")]) == 0
    scores = json.loads((tmp_path / "out/report/scores.json").read_text())
    # Every object is counted once, though tiles overlap and cut them; what was found is the same in both places.
    assert (scores["images"], scores["objects"]) == (4, sum(c["objects"] for c in scores["coco"]["box"]["classes"]))
    assert scores["coco"]["box"]["ap"] == pytest.approx(logged(tmp_path / "out", "val/ap")[0], abs=1e-6)
    said = torch.load(tmp_path / "out/checkpoints/last.ckpt", weights_only=True)["visionapps"]
    assert (said["tile"], said["rescale"]) == (64, None)


def test_early_stopping_watches_the_ap(trained: tuple[Path, Path], tmp_path: Path):
    stop = {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "val/ap", "mode": "max", "patience": 1, "min_delta": 1.0},
    }
    config = changed(trained, tmp_path, (("trainer", "callbacks"), [stop]), (("trainer", "max_epochs"), 5))
    assert main(["fit", "--config", str(config), "--out", str(tmp_path / "out"), "--no-report"]) == 0
    assert torch.load(tmp_path / "out/checkpoints/last.ckpt", weights_only=True)["epoch"] == 1


def test_a_wrong_number_of_classes_names_both_numbers(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = changed(trained, tmp_path, ((*MODEL, "num_classes"), 80))
    message = refused(capsys, "fit", "--config", config, "--out", tmp_path / "out")
    assert "num_classes is 80, but the data has 3 classes (disc, square, triangle); set num_classes to 3" in message
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_other_classes_is_not_resumed(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    copy = tmp_path / "out"
    shutil.copytree(trained[1], copy)
    renamed = [{"name": f"my {name}", "names": [name]} for name in ("disc", "square", "triangle")]
    config = changed(trained, tmp_path, ((*DATA, "dataset", "classes"), renamed))
    message = refused(capsys, "fit", "--config", config, "--out", copy, "--resume")
    assert "trained on the classes disc, square, triangle, but the data has my disc, my square, my triangle" in message


def test_a_dataset_without_any_object_is_refused(
    trained: tuple[Path, Path], files: ObjectFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    content = json.loads(files.annotations.read_text())
    content["annotations"] = []
    (tmp_path / "none.json").write_text(json.dumps(content))
    config = changed(trained, tmp_path, ((*DATA, "dataset", "annotations"), str(tmp_path / "none.json")))
    message = refused(capsys, "fit", "--config", config, "--out", tmp_path / "out")
    assert "none of the 8 training photos has an object to learn from" in message
    assert not (tmp_path / "out").exists()


def test_a_detector_that_needs_proposals_asks_for_the_file(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = ("model", "init_args", "model")
    model = {"class_path": "visionapps.models.fast_rcnn", "init_args": {"backbone": BACKBONE, "num_classes": 3}}
    message = refused(capsys, "fit", "--config", changed(trained, tmp_path, (path, model)), "--out", tmp_path / "out")
    assert "write them with `visionapps proposals` and name the file in data.init_args.dataset.proposals" in message


def test_a_segmentation_task_on_objects_names_the_right_data(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    task = {
        "class_path": "visionapps.training.segmentation.SegmentationTask",
        "init_args": {
            "model": {"class_path": "visionapps.models.unet", "init_args": {"backbone": BACKBONE, "num_classes": 3}},
            "loss": {"class_path": "visionapps.losses.DiceCrossEntropy"},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        },
    }
    message = refused(
        capsys, "fit", "--config", changed(trained, tmp_path, (("model",), task)), "--out", tmp_path / "o"
    )
    assert "SegmentationTask learns from SegmentationData, but the run has DetectionData" in message


def test_a_loss_that_is_no_number_stops_the_run(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e30}}
    path = ("model", "init_args", "optimizer")
    config = changed(trained, tmp_path, (path, optimizer), (("trainer", "max_epochs"), 5))
    message = refused(capsys, "fit", "--config", config, "--out", tmp_path / "out", "--no-report")
    assert "the loss is no number any more at step" in message
    assert "lower the optimizer's lr" in message


def test_check_rehearses_a_good_run_and_finds_what_forbids_a_bad_one(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["check", "--config", str(trained[0])]) == 0
    assert "Nothing forbids training." in capsys.readouterr().out
    bad = changed(trained, tmp_path, ((*MODEL, "num_classes"), 7))
    assert main(["check", "--config", str(bad)]) == 1
    assert "num_classes is 7, but the data has 3 classes" in capsys.readouterr().out


def test_masks_are_learnt_and_scored_where_the_annotations_have_them(trained: tuple[Path, Path], tmp_path: Path):
    model = yaml.safe_load(trained[0].read_text())["model"]["init_args"]["model"]
    model["class_path"] = "visionapps.models.mask_rcnn"
    model["init_args"]["regions"]["size"] = 3  # bins; masks of 12 px
    config = changed(trained, tmp_path, (("model", "init_args", "model"), model))
    assert main(["fit", "--config", str(config), "--out", str(tmp_path / "out")]) == 0
    assert logged(tmp_path / "out", "val/loss/mask")[-1] < 0.6  # drawn by lot, masks cost ln 2
    scores = json.loads((tmp_path / "out/report/scores.json").read_text())["coco"]
    assert scores["mask"]["ap"] == pytest.approx(max(logged(tmp_path / "out", "val/mask_ap")), abs=1e-6)


def test_masks_are_asked_for_where_the_annotations_hold_boxes_only(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = changed(
        trained,
        tmp_path,
        (("model", "init_args", "model", "class_path"), "visionapps.models.mask_rcnn"),
        ((*DATA, "dataset", "masks"), False),
    )
    message = refused(capsys, "fit", "--config", config, "--out", tmp_path / "out")
    assert "the model draws masks, but the annotations hold boxes only" in message


def test_proposals_of_a_file_are_what_fast_rcnn_learns_from(
    trained: tuple[Path, Path], files: ObjectFiles, tmp_path: Path
):
    from visionapps.data.proposals import write_proposals

    content = json.loads(files.annotations.read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    near: dict[str, list[list[float]]] = {name: [[0, 0, 64, 64], [64, 64, 128, 128]] for name in names.values()}
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        near[names[annotation["image_id"]]].append([max(0, x - 2), y, min(128, x + w + 1), min(128, y + h + 2)])
    boxes = {name: np.array(each, np.float32) for name, each in near.items()}
    write_proposals(tmp_path / "near.npz", boxes, sizes=dict.fromkeys(names.values(), (128, 128)))
    model = yaml.safe_load(trained[0].read_text())["model"]["init_args"]["model"]
    model["class_path"] = "visionapps.models.fast_rcnn"
    config = changed(
        trained,
        tmp_path,
        (("model", "init_args", "model"), model),
        ((*DATA, "dataset", "proposals"), str(tmp_path / "near.npz")),
        (("trainer", "max_epochs"), 8),
        (("trainer", "check_val_every_n_epoch"), 8),
    )
    assert main(["fit", "--config", str(config), "--out", str(tmp_path / "out")]) == 0
    losses = logged(tmp_path / "out", "train/loss/roi_class")
    assert losses[-1] < losses[0] / 2
    scores = json.loads((tmp_path / "out/report/scores.json").read_text())["coco"]
    assert scores["box"]["ap"] == pytest.approx(logged(tmp_path / "out", "val/ap")[0], abs=1e-6)


@pytest.mark.slow
def test_two_processes_score_all_tiles_of_all_photos_together(trained: tuple[Path, Path], tmp_path: Path):
    view = {"tile": 64, "overlap": 32, "per_epoch": 32}
    config = changed(trained, tmp_path, ((*DATA, "view"), view))
    words = ["fit", "--config", str(config), "--out", str(tmp_path / "out")]
    words += ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_epochs", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "visionapps.cli.main", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best checkpoint") == 1  # one process reports
    # The report goes over everything in one process; half of the tiles would give another number.
    scores = json.loads((tmp_path / "out/report/scores.json").read_text())
    assert scores["coco"]["box"]["ap"] == pytest.approx(max(logged(tmp_path / "out", "val/ap")), abs=1e-6)
    assert scores["images"] == 4


def test_a_validation_without_any_object_is_refused(
    files: ObjectFiles, trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    truth = json.loads(files.annotations.read_text())
    val = {image["id"] for image in truth["images"] if image["file_name"].startswith("site2")}
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] not in val]
    annotations = tmp_path / "train_only.json"
    annotations.write_text(json.dumps(truth))
    split = {"group": r"^(site\d+)_", "val_groups": ["site2"]}
    changes = [((*DATA, "dataset", name), v) for name, v in (("annotations", str(annotations)), ("split", split))]
    message = refused(capsys, "fit", "--config", changed(trained, tmp_path, *changes), "--out", tmp_path / "out")
    assert "validation photos has an object to be scored by" in message


def test_objects_without_proposals_are_not_pasted_where_proposals_are_needed(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = {"class_path": "visionapps.models.fast_rcnn", "init_args": {"backbone": BACKBONE, "num_classes": 3}}
    changes = [(("model", "init_args", "model"), model), ((*DATA, "view"), {"copy_paste": 0.5})]
    config = changed(trained, tmp_path, *changes)
    settings = yaml.safe_load(config.read_text())
    boxes = tmp_path / "boxes.npz"
    dataset = settings["data"]["init_args"]["dataset"]
    images = json.loads(Path(dataset["annotations"]).read_text())["images"]
    names = {image["file_name"]: (image["height"], image["width"]) for image in images}
    write_proposals(boxes, {name: np.array([[0.0, 0, 9, 9]]) for name in names}, sizes=names)
    dataset["proposals"] = str(boxes)
    config.write_text(yaml.safe_dump(settings))
    assert "set view.copy_paste: 0" in refused(capsys, "fit", "--config", config, "--out", tmp_path / "out")


def test_a_plateau_that_would_lower_the_rate_while_the_score_rises_is_refused(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = yaml.safe_load(trained[0].read_text())
    arguments = config["model"]["init_args"]
    arguments.pop("curve", None)
    arguments["scheduler"] = {"class_path": "torch.optim.lr_scheduler.ReduceLROnPlateau", "init_args": {"factor": 0.1}}
    file = tmp_path / "plateau.yaml"
    file.write_text(yaml.safe_dump(config))
    message = refused(capsys, "fit", "--config", file, "--out", tmp_path / "out")
    assert "watches val/ap, of which more is better" in message
