"""`visionapps folds` on tiny generated photos: plan, folds, out-of-fold scores, going on, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from visionapps.cli.main import main
from visionapps.competition.oof import OofStore
from visionapps.data.fake import write_photos
from visionapps.data.fake_classes import write_classes
from visionapps.data.fake_objects import write_fake_objects
from visionapps.data.folds import FoldPlan
from visionapps.data.seen import content
from visionapps.errors import OutputError
from visionapps.inference.bundle import load
from visionapps.training.folds import Study, model_digest

BACKBONE = "test_efficientnet"  # timm's own fake network: a real pyramid in 0.4 million parameters
TRAINER = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run's file and its photos, of three sites."""
    home = tmp_path_factory.mktemp("folds")
    folders = write_photos(home / "photos", 12, rng=np.random.default_rng(0))
    model = {"backbone": BACKBONE, "num_classes": 3, "channels": [8, 8, 8, 8, 8]}
    dataset = {
        "images": str(folders.images),
        "masks": str(folders.masks),
        "classes": ["a", "b", "c"],
        "split": {"group": "site\\d+", "val_fraction": 0.3},
        "policies": {"near_duplicate": "warn"},
        "cache": str(home / "cache"),
    }
    content = {
        "seed_everything": 1,
        "trainer": TRAINER,
        "model": {
            "class_path": "visionapps.training.segmentation.SegmentationTask",
            "init_args": {
                "model": {"class_path": "visionapps.models.unet", "init_args": model},
                "loss": {"class_path": "visionapps.losses.DiceCrossEntropy"},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
            },
        },
        "data": {
            "class_path": "visionapps.training.data.SegmentationData",
            "init_args": {
                "dataset": dataset,
                "crops": {"size": 32, "per_epoch": 16},
                "batch_size": 4,
                "workers": 0,
                "val_tile": 64,
            },
        },
    }
    (home / "tiny.yaml").write_text(yaml.safe_dump(content))
    return home


@pytest.fixture(scope="module")
def begun(home: Path) -> Path:
    """The folder of a study of two folds, of which one is trained."""
    assert folds(home, home / "study", "--k", 2, "--only", 1) == 0
    return home / "study"


def folds(home: Path, out: Path, *words: object) -> int:
    return main(["folds", "--config", str(home / "tiny.yaml"), "--out", str(out), *map(str, words)])


def refused(capsys: pytest.CaptureFixture[str], home: Path, out: Path, *words: object) -> str:
    capsys.readouterr()
    assert folds(home, out, *words) == 1
    return capsys.readouterr().err


def test_folds_trained_one_by_one_give_a_store_that_evaluate_agrees_with(home, begun, tmp_path, capsys):
    out = tmp_path / "study"
    shutil.copytree(begun, out)
    before = (out / "fold_1/checkpoints/best.ckpt").stat().st_mtime_ns
    assert OofStore.open(out / "oof").missing() == (0,)
    assert folds(home, out, "--resume") == 0
    printed = capsys.readouterr().out
    assert f"fold 1 of 2 (trained already): {out / 'fold_1'}" in printed
    assert (out / "fold_1/checkpoints/best.ckpt").stat().st_mtime_ns == before
    store, plan = OofStore.open(out / "oof"), FoldPlan.load(out / "plan.json")
    store.require_whole()
    assert store.names == tuple(sorted(plan.folds))
    assert {name: store.fold(name) for name in store.names} == plan.folds
    found = json.loads((out / "cv.json").read_text())
    config, bundle = out / "fold_0/run.yaml", out / "fold_0/bundle"
    words = ["--config", config, "--precision", "fp32", "--json", tmp_path / "scores.json"]
    assert main(["evaluate", *map(str, [bundle, *words])]) == 0
    expected = json.loads((tmp_path / "scores.json").read_text())
    assert found["folds"]["0"]["matrix"] == expected["matrix"]
    assert f"{found['pooled']['mean_dice']:.3f}" in printed
    dice = [found["folds"][fold]["mean_dice"] for fold in "01"]
    assert found["over_folds"]["mean_dice"]["mean"] == pytest.approx(np.mean(dice))


def test_the_bundle_of_a_fold_knows_what_trained_it_and_what_validated_it_it_never_saw(home, begun):
    plan = FoldPlan.load(begun / "plan.json")
    seen = load(begun / "fold_1/bundle").seen
    files = {path.stem: content(path) for path in (home / "photos/images").iterdir()}
    assert {row.tobytes() for row in seen.digests} == {files[name] for name in plan.folds if plan.saw(1, name)}
    assert len(seen) < len(files)


def test_a_fold_that_was_cut_off_goes_on_from_its_checkpoint(home, begun, tmp_path, capsys):
    out = tmp_path / "study"
    shutil.copytree(begun, out)
    for lost in ("bundle", "done.json"):
        path = out / "fold_1" / lost
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(out / "oof/fold_1")
    assert folds(home, out, "--resume", "--only", 1) == 0
    assert "trained already" not in capsys.readouterr().out
    assert len(list((out / "fold_1/logs").glob("start_*"))) == 2  # a second start of the same run
    assert (out / "fold_1/done.json").is_file()
    assert OofStore.open(out / "oof").missing() == (0,)


def test_views_go_to_a_store_of_their_own_without_training_again(home, begun, tmp_path, capsys):
    out = tmp_path / "study"
    shutil.copytree(begun, out)
    words = ("--resume", "--only", 1, "--tta", "flips")
    assert "holds out-of-fold predictions of other views; choose another folder" in refused(capsys, home, out, *words)
    assert folds(home, out, *words, "--oof", out / "oof_flips", "--oof-size", "32x48") == 0
    store = OofStore.open(out / "oof_flips")
    assert store.how == {"flips": "flips", "scales": [1.0]}
    assert {store.shape(name) for name in store.names} == {(32, 48)}
    assert (out / "oof_flips_cv.json").is_file()


def test_a_study_is_not_gone_on_with_in_another_way(home, begun, tmp_path, capsys):
    assert "holds folds already; go on with --resume" in refused(capsys, home, begun, "--only", 0)
    text = refused(capsys, home, begun, "--resume", "--trainer.max_epochs", 9)
    assert "were trained with other settings (none)" in text
    text = refused(capsys, home, begun, "--resume", "--k", 4)
    assert f"--k 4: but the plan {begun / 'plan.json'} was made with 2" in text
    assert "--only 2: the plan has 2 folds from 0 to 1" in refused(capsys, home, begun, "--resume", "--only", 2)
    config = yaml.safe_load((home / "tiny.yaml").read_text())
    config["data"]["init_args"]["batch_size"] = 8
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config) + f"# {home}\n")
    text = refused(capsys, tmp_path, begun, "--resume", "--only", 0)
    assert "(data.init_args.batch_size was 4, is 8)" in text


def test_the_plan_of_another_dataset_is_refused_before_any_training(home, begun, tmp_path, capsys):
    config = yaml.safe_load((home / "tiny.yaml").read_text())
    images = shutil.copytree(home / "photos", tmp_path / "photos")
    (images / "images/site1_1.png").unlink()
    (images / "masks/site1_1.png").unlink()
    dataset = config["data"]["init_args"]["dataset"]
    dataset |= {"images": str(images / "images"), "masks": str(images / "masks")}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    text = refused(capsys, tmp_path, tmp_path / "out", "--plan", begun / "plan.json")
    assert "the fold plan was made for another dataset of 12 photos: 1 photos of the plan are missing (site1_1)" in text
    assert not (tmp_path / "out").exists()


def test_a_fold_of_another_model_is_predicted_anew_in_the_studys_own_store_and_nowhere_else(
    home, begun, tmp_path, capsys
):
    """As after a fold's folder was removed and trained again."""
    out = tmp_path / "study"
    shutil.copytree(begun, out)
    index = out / "oof/fold_1/fold.json"
    mine = json.loads(index.read_text())["member"]["digest"]
    assert mine == model_digest(out / "fold_1/bundle")
    before = index.stat().st_mtime_ns
    assert folds(home, out, "--resume", "--only", 1) == 0
    assert index.stat().st_mtime_ns == before
    index.write_text(index.read_text().replace(mine, "0" * 16))
    text = refused(capsys, home, out, "--resume", "--only", 0)
    assert f"fold 1 was predicted by another model than {out / 'fold_1/bundle'} is now" in text
    assert not (out / "fold_0").exists()
    assert folds(home, out, "--resume", "--only", 1) == 0
    assert json.loads(index.read_text())["member"]["digest"] == mine
    # A second study of the same plan, whose folds would be judged by the predictions of the first.
    words = ("--plan", out / "plan.json", "--only", 0, "--oof", out / "oof")
    text = refused(capsys, home, tmp_path / "other", *words)
    assert f"fold 1 was predicted by another model than that of {tmp_path / 'other/fold_1'}; choose another" in text
    assert not (tmp_path / "other").exists()


def test_the_digest_of_a_model_changes_with_its_weights_and_not_with_its_rules(begun, tmp_path):
    bundle = Path(shutil.copytree(begun / "fold_1/bundle", tmp_path / "bundle"))
    before = model_digest(bundle)
    said = yaml.safe_load((bundle / "model.yaml").read_text())
    (bundle / "model.yaml").write_text(yaml.safe_dump(said | {"postprocess": {"order": ["fill"]}}))
    assert model_digest(bundle) == before
    weights = bytearray((bundle / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (bundle / "weights.safetensors").write_bytes(weights)
    assert model_digest(bundle) != before


def test_another_plan_in_the_folder_is_never_replaced(home, begun, tmp_path, capsys):
    out = tmp_path / "study"
    out.mkdir()
    before = (begun / "plan.json").read_bytes()
    (out / "plan.json").write_bytes(before)
    text = refused(capsys, home, out, "--k", 3, "--plan", tmp_path / "other.json", "--no-oof")
    assert f"{out / 'plan.json'}: is another fold plan than the one to train; choose another folder with --out" in text
    assert (out / "plan.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--joinalike",), "--joinalike: is no option, and no key of the run's file such as --trainer.max_epochs; did"),
        (("--strat", "presence"), "did you mean --stratify?"),
        (("presence",), "presence: is no option"),
        (
            ("--trainer.max_epochs", 2, "--plan-only", "--plan", "p"),
            "--trainer.max_epochs: means nothing with --plan-o",
        ),
        (("--data.init_args.dataset.images=x",), "--data.init_args.dataset.images: the plan is made from the file's"),
        (("--plan-only",), "--plan-only: goes with --plan FILE"),
        (("--seed", -1), "seed -1 must not be negative"),
        (("--buffer", -1), "buffer -1 must be a distance"),
        (("--buffer", "nan"), "buffer nan must be a distance"),
        (("--group", "["), "--group [: is no regular expression"),
        (("--scales", "1;1.25"), "--scales 1;1.25: expected numbers"),
        (("--scales", "20"), "views: scales (20.0,); give different factors"),
        (("--device", "abacus"), "device 'abacus': not usable here"),
    ],
)
def test_options_that_are_wrong_whatever_the_photos_are_refused_before_those_are_read(
    home, tmp_path, capsys, monkeypatch, words, expected
):
    monkeypatch.setattr("visionapps.cli.check.read_dataset", None)
    assert expected in refused(capsys, home, tmp_path / "out", "--k", 2, *words)
    assert not (tmp_path / "out").exists()


def test_a_store_that_cannot_be_taken_is_refused_before_any_training(home, begun, tmp_path, capsys):
    out, plan = tmp_path / "out", ("--plan", begun / "plan.json", "--only", 0)
    for store in (out, out / "fold_0", out / "fold_1/oof"):
        text = refused(capsys, home, out, *plan, "--oof", store)
        assert f"--oof {store}: the folds' runs lie there; choose another folder, such as {out / 'oof'}" in text
    text = refused(capsys, home, out, *plan, "--oof", home / "photos")
    assert "holds something else than out-of-fold predictions" in text
    text = refused(capsys, home, out, *plan, "--oof", begun / "oof", "--oof-size", "8x8")
    assert "holds out-of-fold predictions of another size" in text
    assert not out.exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("x")
    text = refused(capsys, home, tmp_path / "notes", *plan)
    assert "holds something else than folds of `visionapps folds`, which is not replaced; choose another folder" in text


def test_settings_and_config_may_change_until_something_is_trained(home, begun, tmp_path):
    plan, config = FoldPlan.load(begun / "plan.json"), home / "tiny.yaml"
    out = tmp_path / "study"
    for typo in (("--trainer.max_epoch", "5"), ("--trainer.max_epochs", "5")):
        Study(out, config, plan, typo).begin(resume=False)
        assert json.loads((out / "folds.json").read_text())["settings"] == list(typo)
    (out / "fold_0/checkpoints").mkdir(parents=True)
    (out / "fold_0/config.yaml").touch()
    with pytest.raises(OutputError, match="holds folds already; go on with --resume"):
        Study(out, config, plan).begin(resume=False)
    Study(out, config, plan).begin(resume=True)
    (out / "fold_0/checkpoints/last.ckpt").touch()
    with pytest.raises(OutputError, match=r"were trained with other settings \(none\)"):
        Study(out, config, plan, ("--trainer.max_epochs", "5")).begin(resume=True)


def test_groups_of_an_option_that_photos_do_not_have_are_told_without_sending_to_the_file(home, tmp_path, capsys):
    text = refused(capsys, home, tmp_path / "out", "--group", "zzz", "--k", 2)
    assert "folds: not every photo can be put into a group; the first: split.group: 'zzz' is not found in" in text
    assert "visionapps check" not in text


def test_near_duplicates_in_two_folds_are_refused_or_joined(home, tmp_path, capsys):
    config = yaml.safe_load((home / "tiny.yaml").read_text())
    folders = shutil.copytree(home / "photos", tmp_path / "photos")
    for name in ("site4_1", "site5_1"):
        for kind in ("images", "masks"):
            shutil.copy(folders / kind / "site1_1.png", folders / kind / f"{name}.png")
    dataset = config["data"]["init_args"]["dataset"]
    dataset |= {"images": str(folders / "images"), "masks": str(folders / "masks"), "policies": {}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    words = ("--plan-only", "--k", 3)
    text = refused(capsys, tmp_path, tmp_path / "out", *words, "--plan", tmp_path / "a.json")
    assert "pairs of photos of different folds look alike" in text
    assert "keep them together with --join-alike" in text
    assert not (tmp_path / "a.json").exists()
    assert folds(tmp_path, tmp_path / "out", *words, "--join-alike", "--plan", tmp_path / "b.json") == 0
    plan = FoldPlan.load(tmp_path / "b.json")
    assert plan.folds["site1_1"] == plan.folds["site4_1"] == plan.folds["site5_1"]
    assert plan.rule["join"] == "alike"
    assert folds(tmp_path, tmp_path / "out", "--plan-only", "--join-alike", "--plan", tmp_path / "b.json") == 0
    plan = json.loads((tmp_path / "b.json").read_text())
    for name, photo in plan["photos"].items():
        photo["fold"] = int(name[4]) % 3
    (tmp_path / "c.json").write_text(json.dumps(plan))
    text = refused(capsys, tmp_path, tmp_path / "out", "--plan-only", "--join-alike", "--plan", tmp_path / "c.json")
    assert "--join-alike: site1_1 and site" in text
    assert f"lie in two folds of {tmp_path / 'c.json'}; leave the option out, or make a new plan" in text


def test_photos_with_objects_get_a_plan_of_their_sites(tmp_path, capsys):
    files = write_fake_objects(tmp_path / "objects", images=12, size=96)
    dataset = {
        "images": str(files.images),
        "annotations": str(files.annotations),
        "policies": {"near_duplicate": "warn"},
        "cache": str(tmp_path / "cache"),
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"data": {"dataset": dataset}}))
    plan = tmp_path / "plan.json"
    assert folds(tmp_path, tmp_path, "--k", 2, "--group", "^(site\\d+)_", "--plan", plan, "--plan-only") == 0
    found = FoldPlan.load(plan)
    assert len(found.folds) == 12
    assert set(found.folds.values()) == {0, 1}
    assert "fold  photos  groups" in capsys.readouterr().out


def test_a_classifier_is_trained_fold_by_fold_and_told_with_its_spread(tmp_path, capsys):
    photos = write_classes(tmp_path / "photos", 6, classes=3, rng=np.random.default_rng(0))
    content = {
        "trainer": TRAINER,
        "model": {
            "class_path": "visionapps.training.classification.ClassificationTask",
            "init_args": {
                "model": {
                    "class_path": "visionapps.models.classifier",
                    "init_args": {"network": BACKBONE, "num_classes": 3},
                },
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}},
            },
        },
        "data": {
            "class_path": "visionapps.training.class_data.ClassificationData",
            "init_args": {
                "dataset": {"train": str(photos), "cache": str(tmp_path / "cache")},
                "view": {"side": 32},
                "batch_size": 6,
                "workers": 0,
            },
        },
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    assert folds(tmp_path, tmp_path / "out", "--k", 2) == 0
    printed = capsys.readouterr().out
    assert "top1" in printed
    assert "deviation" in printed
    assert "of this kind of model each fold has its report and bundle" in printed
    assert (tmp_path / "out/fold_0/bundle").is_dir()
    assert not (tmp_path / "out/oof").exists()
