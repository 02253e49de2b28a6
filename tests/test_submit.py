"""The verb submit, as a person calls it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionapps.cli.main import main


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    folder = tmp_path / "masks"
    folder.mkdir()
    for name, mask in {"6411_a": [[0, 2], [24, 2]], "8389_b": [[0, 0], [0, 0]]}.items():
        Image.fromarray(np.array(mask, np.uint8)).save(folder / f"{name}.png")
    return folder


def table(text: str) -> list[str]:
    """The cells of the one row under the headers and the rule."""
    return [cell.strip() for cell in text.splitlines()[2].split("  ") if cell.strip()]


def test_a_folder_becomes_a_submission_and_a_table(masks, tmp_path, capsys):
    out = tmp_path / "s.csv"
    assert main(["submit", str(masks), "--out", str(out), "--dialect", "hrud"]) == 0
    captured = capsys.readouterr()
    headers = [cell.strip() for cell in captured.out.splitlines()[0].split("  ") if cell]
    assert headers == ["submission", "rows", "images", "classes", "non-empty rows", "verified"]
    assert table(captured.out) == [str(out), "48", "2", "24", "2", "every pixel of 2 images"]
    lines = out.read_text().splitlines()
    assert lines[0] == "ImageClassId,rle_mask"
    assert len(lines) == 49
    assert lines[2].startswith("6411_2,513 512 1537 512")
    assert lines[25] == "8389_1,"


def test_verify_accepts_what_was_written_and_exits_with_1_on_problems(masks, tmp_path, capsys):
    out = tmp_path / "s.csv"
    main(["submit", str(masks), "--out", str(out), "--dialect", "hrud"])
    capsys.readouterr()
    assert main(["submit", str(masks), "--verify", str(out), "--dialect", "hrud"]) == 0
    assert table(capsys.readouterr().out)[-1] == "every pixel of 2 images"
    assert main(["submit", "--verify", str(out), "--dialect", "hrud"]) == 0
    assert table(capsys.readouterr().out)[-1] == "ids and runs"
    out.write_text(out.read_text().replace("513 512", "513 51x", 1).replace("8389_1,", "8389_1,7"))
    assert main(["submit", "--verify", str(out), "--dialect", "hrud"]) == 1
    text = capsys.readouterr().out
    assert table(text)[-1] == "2 problems"
    assert "problem: line 3 (6411_2): run 1: '51x' is no whole number" in text
    assert "problem: line 26 (8389_1): run 1: start 7 has no length" in text


def test_a_long_list_of_problems_is_cut(tmp_path, capsys):
    path = tmp_path / "s.csv"
    path.write_text("ImageId,EncodedPixels\n" + "".join(f"{i},1\n" for i in range(25)))
    assert main(["submit", "--verify", str(path), "--dialect", "kaggle"]) == 1
    text = capsys.readouterr().out
    assert text.count("problem: ") == 20
    assert text.endswith("... and 5 more problems\n")


def test_flags_override_the_dialect(masks, tmp_path, capsys):
    out = tmp_path / "s.csv"
    flags = "--order row --base 0 --relative --header Id,Mask --row-id {id}.jpg_{class} --labels 2-3,24 --empty -1"
    dialect = ["--dialect", "kaggle", *flags.split(), "--image-id", r"(\d+)", "--resize", "2x2"]
    assert main(["submit", str(masks), "--out", str(out), *dialect]) == 0
    rows = ["Id,Mask", "6411.jpg_2,1 1 1 1", "6411.jpg_3,-1", "6411.jpg_24,2 1"]
    assert out.read_text().splitlines()[:4] == rows
    assert main(["submit", str(masks), "--verify", str(out), *dialect]) == 0
    capsys.readouterr()


def test_a_dialect_file_and_classes(masks, tmp_path, capsys):
    (tmp_path / "own.yaml").write_text('order: column\nrow_id: "{id}_{class}"\n')
    dialect = ["--dialect", str(tmp_path / "own.yaml")]
    out = tmp_path / "s.csv"
    assert main(["submit", str(masks), "--out", str(out), *dialect]) == 1
    assert "give --classes or --labels" in capsys.readouterr().err
    assert main(["submit", str(masks), "--out", str(out), *dialect, "--classes", "25"]) == 0
    assert "6411_a_2,3 2" in out.read_text().splitlines()
    capsys.readouterr()


def test_the_sample_decides_which_ids_are_written(masks, tmp_path, capsys):
    out, sample = tmp_path / "s.csv", tmp_path / "sample_submission.csv"
    command = ["submit", str(masks), "--out", str(out), "--dialect", "hrud", "--sample", str(sample)]
    sample.write_text("ImageClassId,rle_mask\n" + "".join(f"8389_{k},1 1\n" for k in range(24, 0, -1)))
    assert main(command) == 0
    assert out.read_text().splitlines()[1:3] == ["8389_24,", "8389_23,"]
    assert capsys.readouterr().err == "1 masks were left out: the sample does not ask for them\n"
    out.unlink()
    # A mask that cannot be decoded is not even opened when another one is missing.
    (masks / "8389_b.png").write_bytes(b"broken")
    sample.write_text(sample.read_text() + "".join(f"9_{k},\n" for k in range(1, 25)))
    assert main(command) == 1
    assert capsys.readouterr().err == (
        f"error: {sample}: 24 of 48 ids have no mask: 9_1, 9_2, 9_3, 9_4, 9_5, ...; "
        "predict those images too, or check --image-id and --classes\n"
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{out}/none", "--out", "{out}/s.csv", "--dialect", "hrud"], "no such folder"),
        (
            ["{masks}", "--out", "{out}/s.csv", "--dialect", "hurd"],
            "neither built in (hrud, kaggle, siim, severstal, dsb2018, png, png-binary) nor a YAML file",
        ),
        (["{masks}", "--out", "{out}/s.csv", "--dialect", "hrud", "--labels", "1-2"], "6411_a: mask has label 24"),
        (["--out", "{out}/s.csv", "--dialect", "hrud"], "a folder of masks is needed to write a submission"),
        (["{masks}", "--out", "{masks}/6411_a.png", "--dialect", "hrud"], "exists already"),
        (["{masks}", "--out", "{out}/s.csv", "--dialect", "kaggle", "--header", "a"], "must be two titles"),
        (["--verify", "{out}/none.csv", "--dialect", "hrud"], "no such file"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing_behind(masks, tmp_path, capsys, arguments, message):
    arguments = [a.replace("{masks}", str(masks)).replace("{out}", str(tmp_path)) for a in arguments]
    assert main(["submit", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert captured.out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["masks"]


def test_a_truncated_mask_is_one_line_and_leaves_nothing_behind(masks, tmp_path, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 25, (64, 64), np.uint8)).save(masks / "8389_b.png")
    whole = (masks / "8389_b.png").read_bytes()
    (masks / "8389_b.png").write_bytes(whole[: len(whole) // 2])
    assert main(["submit", str(masks), "--out", str(tmp_path / "s.csv"), "--dialect", "hrud"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert "8389_b.png" in error
    assert [p.name for p in tmp_path.iterdir()] == ["masks"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m", "--dialect", "hrud"], "one of the arguments --out --verify is required"),
        (["m", "--out", "a", "--verify", "b", "--dialect", "hrud"], "not allowed with argument --out"),
        (["m", "--out", "a"], "the following arguments are required: --dialect"),
        (["m", "--out", "a", "--dialect", "hrud", "--labels", "1-x"], "'1-x' is neither a label nor a range"),
        (["m", "--out", "a", "--dialect", "hrud", "--resize", "big"], "'big' is no size; give height and width"),
    ],
)
def test_wrong_arguments_exit_with_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        main(["submit", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_submitting_imports_neither_torch_nor_anything_as_heavy(masks, tmp_path):
    code = (
        "import json, sys\n"
        "from visionapps.cli.main import main\n"
        f"assert main(['submit', {str(masks)!r}, '--out', {str(tmp_path / 's.csv')!r}, '--dialect', 'hrud']) == 0\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "torchvision", "lightning", "timm", "albumentations", "cv2", "rasterio", "scipy", "matplotlib"}
    assert heavy.isdisjoint(json.loads(done.stdout.splitlines()[-1]))
