"""The verb score, as a person calls it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionapps.cli.main import main

TRUTH = "ImageId,EncodedPixels,Usage\na,1 4,Public\nb,1 2,Private\nc,,Private\n"
SUBMISSION = "ImageId,EncodedPixels\na,1 2\nc,\nb,1 2\n"


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "s.csv").write_text(SUBMISSION)
    (tmp_path / "t.csv").write_text(TRUTH)
    return ["score", str(tmp_path / "s.csv"), str(tmp_path / "t.csv"), "--dialect", "kaggle"]


def boards(text: str) -> dict[str, str]:
    return {line.split()[0]: line.split()[1] for line in text.splitlines() if line.startswith(("all", "Pu", "Pr"))}


def test_both_leaderboards_are_shown(files, capsys):
    assert main(files) == 0
    text = capsys.readouterr().out
    assert boards(text) == {"all": "0.88889", "Public": "0.66667", "Private": "1.00000"}
    assert text.splitlines()[0].split("  ")[0] == "leaderboard"
    assert text.splitlines()[-1] == (
        "3 images, 1 classes; empty one, mean over cells; rows stand in another order than in the truth and were "
        "matched by id"
    )


def test_flags_and_a_file_say_what_the_metric_is(files, tmp_path, capsys):
    assert main([*files, "--empty", "skip"]) == 0
    assert boards(capsys.readouterr().out)["all"] == "0.83333"
    (tmp_path / "run.yaml").write_text("metric:\n  name: iou_per_image\n  empty: zero\n")
    assert main([*files, "--metric", str(tmp_path / "run.yaml")]) == 0
    assert boards(capsys.readouterr().out)["all"] == "0.50000"
    options = ["--metric", "map_per_image", "--set", "thresholds=[0.4]", "--set", "formula=f2", "--resize", "2x4"]
    assert main([*files, *options]) == 0
    text = capsys.readouterr().out
    assert boards(text)["all"] == "1.00000"
    assert text.endswith(
        "thresholds [0.4], formula f2; rows stand in another order than in the truth and were matched by id\n"
    )


def test_classes_one_by_one_and_all_numbers_as_json(files, tmp_path, capsys):
    out = tmp_path / "score.json"
    assert main([*files, "--per-class", "--json", str(out), "--empty", "skip"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["label", "all", "Public", "Private", "in", "the", "truth", "predicted"]
    assert lines[2].split() == ["1", "0.833", "0.667", "1.000", "2", "2"]
    found = json.loads(out.read_text())
    assert found["metric"] == {"name": "dice_per_image", "exclude": [0], "empty": "skip"}
    assert [(board["name"], board["rows"]) for board in found["boards"]] == [("all", 3), ("Public", 1), ("Private", 2)]
    assert found["boards"][1]["per_class"] == {"1": pytest.approx(2 / 3)}
    assert found["boards"][1]["interval"] == [None, None]
    assert main([*files, "--json", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_what_submit_wrote_of_the_true_masks_is_right(tmp_path, capsys):
    (tmp_path / "masks").mkdir()
    rng = np.random.default_rng(0)
    for name in ("6411_a", "8389_b"):
        labels = np.kron(rng.integers(0, 25, (6, 8), np.uint8), np.ones((64, 64), np.uint8))
        Image.fromarray(labels).save(tmp_path / "masks" / f"{name}.png")
    csv = str(tmp_path / "s.csv")
    assert main(["submit", str(tmp_path / "masks"), "--out", csv, "--dialect", "hrud"]) == 0
    capsys.readouterr()
    assert main(["score", csv, str(tmp_path / "masks"), "--dialect", "hrud", "--empty", "skip"]) == 0
    text = capsys.readouterr().out
    assert boards(text)["all"] == "1.00000"
    assert text.splitlines()[-1] == "2 images, 24 classes; empty skip, mean over cells"


def test_labels_make_0_and_255_a_truth(tmp_path, capsys):
    (tmp_path / "masks").mkdir()
    mask = np.zeros((4, 4), np.uint8)
    mask[1, 1] = 255
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    (tmp_path / "s.csv").write_text("ImageId,EncodedPixels\na,6 2\n")
    arguments = ["score", str(tmp_path / "s.csv"), str(tmp_path / "masks"), "--dialect", "kaggle"]
    assert main(arguments) == 1
    assert "all 1 masks hold only background and 255, which means void" in capsys.readouterr().err
    assert main([*arguments, "--labels", "255"]) == 0
    assert boards(capsys.readouterr().out)["all"] == "0.66667"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric", "dize"], "metric 'dize' is unknown"),
        (["--metric", "none.yaml"], "none.yaml"),
        (["--set", "tolerance"], "--set tolerance: KEY=VALUE is expected"),
        (["--set", "tolerance_px=2"], "metric dice_per_image: unknown option 'tolerance_px'"),
        (["--exclude", "road"], "metric dice_per_image: exclude 'road' is no class; known are background; give"),
        (["--usage", "Split"], "t.csv: has no column 'Split'; its columns are ImageId, EncodedPixels, Usage"),
        (["--dialect", "png"], "score: png is a dialect of mask files, but rows are scored; write them with"),
        (["--exclude", "1"], "all 2 classes are excluded"),
        (["--labels", "one"], "--labels one: 'one' is neither a label nor a range such as 1-4"),
        (["--resize", "big"], "--resize 'big' is no size"),
        (["--dialect", "hurd"], "dialect 'hurd'"),
        (["--dialect", "hrud"], "the dialect has 'ImageClassId,rle_mask'"),
    ],
)
def test_mistakes_are_one_line(files, capsys, arguments, message):
    assert main([*files, *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert captured.out == ""


def test_scoring_by_areas_imports_neither_torch_nor_anything_as_heavy(files):
    code = (
        "import json, sys\n"
        "from visionapps.cli.main import main\n"
        f"assert main({files!r}) == 0\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "torchvision", "lightning", "timm", "albumentations", "cv2", "rasterio", "scipy", "numba"}
    assert heavy.isdisjoint(json.loads(done.stdout.splitlines()[-1]))
