"""The check verb on datasets of objects, as a user calls it."""

import json

import numpy as np
import pytest
from PIL import Image

from visionapps.cli.main import main
from visionapps.data.annotations import read_annotations
from visionapps.data.object_compare import compare
from visionapps.data.object_dataset import ObjectDataset

CHECK = ["check", "--images", "images", "--annotations", "a.json", "--val-groups", "p3"]
CONFIG = """
data:
  init_args:
    dataset:
      images: images
      annotations: a.json
      classes: [car, {name: large, names: [bus], ids: [9]}]
      split: {val_groups: [p3]}
      policies: {inverted_box: fix}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Four photos of 60 x 80 px with five boxes each, a COCO file and a config; the working folder is there."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    rows = []
    for i in range(4):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((80, 60)).save(tmp_path / "images" / f"p{i}.png")
        for j in range(5):
            box = [1 + 14 * j, 3 + 2 * i, 12, 20]
            rows.append({"id": len(rows) + 1, "image_id": i + 1, "category_id": 4 if j % 2 else 9, "bbox": box})
    images = [{"id": i + 1, "file_name": f"p{i}.png", "height": 60, "width": 80} for i in range(4)]
    names = [{"id": 4, "name": "car"}, {"id": 9, "name": "bus"}]
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": rows, "categories": names}))
    (tmp_path / "run.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path


def spoil(folder, **changes):
    """Change the first annotation."""
    data = json.loads((folder / "a.json").read_text())
    data["annotations"][0] |= changes
    (folder / "a.json").write_text(json.dumps(data))


def test_a_sound_dataset_exits_with_0_and_shows_classes_and_split(folder, capsys):
    assert main(CHECK) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["car", "4", "6", "2", "3", "1"] in lines
    assert ["bus", "9", "9", "3", "3", "1"] in lines
    #        split   photos empty objects ignored per most small medium large groups
    assert ["train", "3", "0", "15", "0", "5.0", "5", "15", "0", "0", "3", "p0,", "p1,", "p2"] in lines
    assert ["Nothing", "forbids", "training."] in lines


def test_problems_exit_with_1_and_the_saved_report_counts_them_by_class(folder, capsys):
    spoil(folder, bbox=[20, 20, -5, 5])
    assert main([*CHECK, "--json", "report.json"]) == 1
    out = capsys.readouterr().out
    assert ["inverted_box", "error", "1"] in [line.split() for line in out.splitlines()]
    assert "error: a.json: annotation 1: box 20 20 15 25 (x0 y0 x1 y1) is inverted" in out
    report = json.loads((folder / "report.json").read_text())
    assert report["objects_met"] == [{"kind": "inverted_box", "action": "error", "class": "bus", "objects": 1}]
    assert main([*CHECK, "--policy", "inverted_box=fix", "--quick"]) == 0
    assert ["inverted_box", "fixed", "bus", "1"] in [line.split() for line in capsys.readouterr().out.splitlines()]


def test_a_config_is_checked_by_its_dataset_and_its_class_table(folder, capsys):
    spoil(folder, bbox=[20, 20, -5, 5])
    assert main(["check", "--config", "run.yaml"]) == 0
    assert ["inverted_box", "fixed", "large", "1"] in [line.split() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("annotations: a.json", "annotations: b.json", "b.json: no such file or folder"),
        (
            "policies: {inverted_box",
            "policies: {inverted",
            "run.yaml: data.init_args.dataset.policies: there is no sett",
        ),
        ("      images", "      origins: 1\n      images", "there is no setting 'origins'; did you mean origin?"),
        ("{name: large", "{title: large", "there is no setting 'title'"),
        ("inverted_box: fix", "inverted_box: mend", "inverted_box"),
        ("names: [bus]", "names: [bas]", "Nothing"),
    ],
)
def test_wrong_settings_are_refused_with_their_place(folder, capsys, old, new, message):
    (folder / "run.yaml").write_text(CONFIG.replace(old, new))
    code = main(["check", "--config", "run.yaml"])
    told = capsys.readouterr()
    assert code == (0 if message == "Nothing" else 1)  # ids: [9] still finds the bus
    assert message in told.err + told.out


def test_options_that_do_not_belong_together_are_refused(folder, capsys):
    assert main([*CHECK, "--masks", "images"]) == 1
    assert "--masks: is for datasets with masks" in capsys.readouterr().err
    (folder / "classes.yaml").write_text("[a, b]\n")
    masks = ["check", "--images", "images", "--masks", "images", "--classes", "classes.yaml"]
    assert main([*masks, "--origin", "1"]) == 1
    assert "--origin: goes with --annotations" in capsys.readouterr().err


def moved(folder, *, to, extra=()):
    """The COCO file in another form; returns the path."""
    out = {"voc": "voc", "yolo": "yolo", "csv": "b.csv", "coco": "b.json"}[to]
    assert main(["convert", "--annotations", "a.json", "--images", "images", "--to", to, "--out", out, *extra]) == 0
    return out


@pytest.mark.parametrize("to", ["voc", "yolo", "csv", "coco"])
def test_a_faithful_copy_in_any_form_says_the_same(folder, capsys, to):
    other = moved(folder, to=to)
    assert main([*CHECK, "--quick", "--against", other]) == 0
    out = capsys.readouterr().out
    assert f"a.json and {other}: 4 common images, 20 common objects, of which 20 have equal boxes" in out
    assert "both say the same" in out


@pytest.mark.parametrize(
    ("to", "origin", "inclusive", "told", "setting"),
    [
        ("yolo", "-1", "false", "x0 -1, y0 -1, x1 -1, y1 -1", "origin: -1"),
        ("voc", "0", "false", "x0 -1, y0 -1, x1 +0, y1 +0", "origin: 0"),
        ("voc", "0", "true", "x0 -1, y0 -1, x1 -1, y1 -1", "origin: 0, inclusive: true"),
        ("coco", "0.5", "false", "x0 +0.5, y0 +0.5, x1 +0.5, y1 +0.5", "origin: 0.5"),
        ("csv", "0", "true", "x0 +0, y0 +0, x1 -1, y1 -1", "origin: 0, inclusive: true"),
    ],
)
def test_a_systematic_shift_is_found_with_the_setting_that_removes_it(
    folder, capsys, to, origin, inclusive, told, setting
):
    other = moved(folder, to=to, extra=("--out-origin", origin, "--out-inclusive", inclusive))
    assert main([*CHECK, "--quick", "--against", other]) == 0
    out = capsys.readouterr().out
    assert f"the boxes of {other} are systematically shifted by {told} px" in out
    assert f"  if a.json is right, set for {other}: {setting}\n" in out
    sets = []
    for annotations, how in (("a.json", {}), (other, {"origin": float(origin), "inclusive": inclusive == "true"})):
        dataset = ObjectDataset(images="images", annotations=annotations, classes=("car", "bus"), **how)
        sets.append((read_annotations(dataset), dataset))
    found = compare(sets[0][0], sets[1][0], (sets[0][1], sets[1][1]))
    assert found.same
    assert not found.shifted


def test_the_real_yolo_files_are_found_one_pixel_off(shared_data, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root = shared_data / "vehicles"
    what = ["check", "--quick", "--images", str(root / "images"), "--annotations", str(root / "annotations_coco.json")]
    assert main([*what, "--group", "^([^_]+)_", "--against", str(root / "yolo_txt")]) == 0
    out = capsys.readouterr().out
    assert "608 common images, 2628 common objects, of which 0 have equal boxes" in out
    assert "systematically shifted by x0 -1, y0 -1, x1 -1, y1 -1 px" in out
    assert f"set for {root / 'yolo_txt'}: origin: -1\n" in out
    assert f"267 boxes of {root / 'yolo_txt'} reach out of their images, which speaks against it" in out


def test_differences_without_a_system_are_counted(folder, capsys):
    data = json.loads((folder / "a.json").read_text())
    rng = np.random.default_rng(1)
    for row in data["annotations"]:
        row["bbox"][0] += float(rng.uniform(0, 3))
    del data["annotations"][0]
    data["annotations"][3]["category_id"] = 4
    del data["images"][3]
    data["annotations"] = [row for row in data["annotations"] if row["image_id"] != 4]
    (folder / "b.json").write_text(json.dumps(data))
    assert main([*CHECK, "--quick", "--against", "b.json"]) == 0
    out = capsys.readouterr().out
    assert "a.json and b.json: 3 common images, 14 common objects, of which 0 have equal boxes" in out
    assert "1 images only in a.json" in out
    assert "1 objects in common images only in a.json" in out
    assert "1 common objects have different classes" in out
    assert "systematically" not in out


@pytest.mark.parametrize(
    "given",
    [
        ["--origin", "0"],
        ["--ignore", "car"],
        ["--form", "coco"],
        ["--no-masks"],
        ["--policy", "tiny_box=error"],
        ["--annotations", "a.json"],
        ["--val-fraction", "0.5"],
        ["--classes", "classes.yaml"],
        ["--cache-gb", "1"],
    ],
)
def test_options_that_the_config_decides_are_refused(folder, capsys, given):
    for verb in (["check"], ["evaluate", "--pred", "a.json"], ["proposals"]):
        if verb[0] == "check" or given[0] in ("--origin", "--ignore", "--form", "--no-masks"):
            assert main([*verb, "--config", "run.yaml", *given]) == 1
            assert f"{given[0]}: run.yaml says that of its dataset; write it there" in capsys.readouterr().err


def test_policies_and_split_of_the_file_of_classes_hold_until_an_option_says_otherwise(folder, capsys):
    spoil(folder, bbox=[20, 20, -5, 5])
    (folder / "classes.yaml").write_text(
        "{classes: [car, bus], split: {val_groups: [p1]}, policies: {inverted_box: fix, tiny_box: error}, form: coco}\n"
    )
    check = ["check", "--images", "images", "--annotations", "a.json", "--quick", "--classes", "classes.yaml"]
    assert main([*check, "--policy", "empty_image=error"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["inverted_box", "fixed", "1"] in lines
    assert any(line[:2] == ["val", "1"] and line[-1] == "p1" for line in lines)
    assert main([*check, "--policy", "inverted_box=drop", "--val-groups", "p2"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["inverted_box", "dropped", "1"] in lines
    assert any(line[:2] == ["val", "1"] and line[-1] == "p2" for line in lines)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[car, 7]", "classes: entry 2 is 7, but a name or a mapping {name, ids, names, ignore} is expected"),
        ("[[car]]", "classes: entry 1 is ['car'], but a name or"),
        ("7", "classes: is 7, but a list of names or of {name, ids, names, ignore} is expected"),
        ("{classes: {car: 1}}", "classes: is {'car': 1}, but a list of names"),
        ("[{ids: [4]}]", "classes: entry 1 has no name"),
        ("[no, car]", "classes: entry 1 is False, but a name or"),
    ],
)
def test_class_tables_of_anything_else_are_refused_in_words(folder, capsys, text, told):
    (folder / "classes.yaml").write_text(text + "\n")
    assert main([*CHECK, "--quick", "--classes", "classes.yaml"]) == 1
    assert told in capsys.readouterr().err


def test_photos_of_one_group_are_told_what_objects_can_do_about_it(folder, capsys):
    assert main(["check", "--images", "images", "--annotations", "a.json", "--quick", "--group", "^p"]) == 1
    out = capsys.readouterr().out
    assert "split: all usable photos are one group (p), but training and validation need one each" in out
    assert "block_px" not in out
