"""The check verb as a user calls it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from visionapps.cli.main import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Four photos with masks of classes 0 and 1, a class table and a config; the working folder is there."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for i in range(4):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((80, 64)).save(tmp_path / "images" / f"s{i}.png")
        Image.fromarray(rng.integers(0, 2, (64, 80), dtype=np.uint8)).save(tmp_path / "masks" / f"s{i}.png")
    (tmp_path / "classes.yaml").write_text("- land\n- {name: sea, ids: [1]}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path


OPTIONS = ["check", "--images", "images", "--masks", "masks", "--classes", "classes.yaml"]
CONFIG = """
data:
  init_args:
    batch_size: 2
    dataset:
      images: images
      masks: masks
      classes: [land, {name: sea, ids: [1]}]
      split: {val_groups: [s3]}
"""


def test_a_sound_dataset_exits_with_0_and_shows_classes_and_split(folder, capsys):
    assert main([*OPTIONS, "--val-groups", "s1"]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert ["train", "3", "0.015", "100.00%", "64", "x", "80", "3", "s0,", "s2,", "s3"] in lines
    assert ["val", "1", "0.005", "100.00%", "64", "x", "80", "1", "s1"] in lines
    labels = np.asarray(Image.open("masks/s1.png"))
    sea = next(line for line in lines if line[:1] == ["sea"])
    assert sea[3:] == [f"{(labels == 1).mean():.2%}", "3", "1"]
    assert "Nothing forbids training." in out


def test_problems_exit_with_1_and_are_all_shown_on_request(folder, capsys):
    for i in range(4):
        Image.fromarray(np.full((64, 80), 9, np.uint8)).save(f"masks/s{i}.png")
    assert main([*OPTIONS]) == 1
    out = capsys.readouterr().out
    assert "unknown_values  error        4" in out
    assert "... and 1 more unknown_values; --all shows them" in out
    assert main([*OPTIONS, "--all"]) == 1
    assert "masks/s3.png: the mask has values that stand for no class: 9 (5120 px)" in capsys.readouterr().out
    assert main([*OPTIONS, "--policy", "unknown_values=drop"]) == 1  # nothing is left
    assert "no photo is left to train on" in capsys.readouterr().out


def test_the_json_report_is_written_and_not_overwritten_unasked(folder, capsys):
    assert main([*OPTIONS, "--json", "report.json"]) == 0
    report = json.loads((folder / "report.json").read_text())
    assert sum(len(split["photos"]) for split in report["splits"].values()) == 4
    assert main([*OPTIONS, "--json", "report.json"]) == 1
    assert "report.json: exists already" in capsys.readouterr().err
    assert main([*OPTIONS, "--json", "report.json", "--overwrite"]) == 0


def test_a_config_is_checked_by_its_dataset(folder, capsys):
    (folder / "run.yaml").write_text(CONFIG)
    assert main(["check", "--config", "run.yaml"]) == 0
    plain = CONFIG.replace("  init_args:\n", "").replace("\n    ", "\n  ")
    (folder / "plain.yaml").write_text(plain)
    first = capsys.readouterr().out
    assert main(["check", "--config", "plain.yaml"]) == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("masks: masks", "mask: masks", "data.init_args.dataset: there is no setting 'mask'; did you mean masks?"),
        (
            "val_groups",
            "val_group",
            "data.init_args.dataset.split: there is no setting 'val_group'; did you mean val_g",
        ),
        ("ids: [1]", "id: [1]", "data.init_args.dataset.classes: there is no setting 'id'; did you mean ids?"),
        ("ids: [1]", "ids: [one]", "dataset"),
        ("masks: masks", "masks: masks\n      resize: 4", "resize"),
        ("masks: masks", "masks: masks\n      policies: {corrupt: fix}", "corrupt"),
        ("    dataset:", "    datset:", "no dataset under data.init_args, only batch_size, datset"),
        ("      images: images\n", "", "dataset.images"),
        ("[s3]", "[s3", "is no valid YAML"),
    ],
)
def test_mistakes_in_a_config_are_one_line_and_exit_with_1(folder, capsys, old, new, message):
    assert old in CONFIG
    (folder / "run.yaml").write_text(CONFIG.replace(old, new))
    assert main(["check", "--config", "run.yaml"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: run.yaml")
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_missing_files_and_options_are_named(folder, capsys):
    for arguments, message in (
        (["check", "--config", "none.yaml"], "none.yaml: cannot be read"),
        (["check", "--images", "images"], "--classes: give the class table"),
        ([*OPTIONS, "--policy", "corrupt"], "'corrupt' is not KIND=WHAT"),
        ([*OPTIONS, "--policy", "corupt=drop"], "no setting 'corupt'; did you mean corrupt?"),
        ([*OPTIONS, "--group", "x"], None),
        (["check", "--images", "nowhere", "--masks", "masks", "--classes", "classes.yaml"], "nowhere: no such folder"),
    ):
        assert main(arguments) == 1
        captured = capsys.readouterr()
        assert (message or "'x' is not found in the name 's0'") in captured.err + captured.out


def test_options_reach_the_dataset(folder, capsys):
    assert main([*OPTIONS, "--block-px", "64", "--resize", "128", "128", "--bands", "3", "red", "--seed", "4"]) == 0
    out = capsys.readouterr().out
    assert "4 usable photos, 2 bands of uint8" in out
    assert "64 x 64" in out


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from visionapps.cli.main import main\n"
        "try: main(['check', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'numpy', 'torch', 'yaml', 'jsonargparse', 'PIL', 'rasterio'} & {*sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--images" in done.stdout
    assert done.stderr.strip() == "[]"
