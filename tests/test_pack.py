"""The package for a notebook without internet: what is in it, what it refuses, and that it writes the submission."""

import base64
import contextlib
import csv
import hashlib
import io
import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
import pytest
import yaml
from forked import call_each
from packaging.version import Version
from PIL import Image
from tiny_bundles import COLORS, tiny

from visionapps.cli.main import main
from visionapps.competition import pack_script
from visionapps.competition.budget import Costs, Quality
from visionapps.competition.pack import Package, check_labels, dialect_to_dict, duration
from visionapps.competition.pack_drawing import REPORT, Wishes, draw_package
from visionapps.competition.pack_images import find_images, find_sample
from visionapps.competition.pack_trial import try_package, write_verified
from visionapps.competition.pack_wheels import Target, fetch, project_wheel, read_installed
from visionapps.errors import ConfigError, DataError, OutputError, VisionAppsError, WeightsError
from visionapps.inference.dialects import BUILT_IN, Dialect, load_dialect
from visionapps.inference.file_dialects import FileDialect, load_rules
from visionapps.structures import LabelSpace

_TESTS = Path(__file__).resolve().parent
LABELS = LabelSpace(("ground", "road", "tree"), COLORS)
SIZES = {"p1": (32, 64), "p2": (64, 32), "p3": (64, 64), "p4": (32, 32)}  # (H, W)
HEAD = "order: row\nheader: [id, rle]\nrow_id: '{id}_{class}'\nlabels: [1, 2]\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundles, test images, rules, a dialect, the sample submission, and a package of all."""
    folder = tmp_path_factory.mktemp("pack")
    for name, seed in {"a": 1, "b": 2}.items():
        tiny(LABELS, seed).save(folder / name)
    rng = np.random.default_rng(0)
    (folder / "test").mkdir()
    for name, (height, width) in SIZES.items():
        small = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        Image.fromarray(small).resize((width, height)).save(folder / "test" / f"{name}.png")
    (folder / "dialect.yaml").write_text(HEAD)
    (folder / "rules.yaml").write_text("postprocess: {rules: {road: {min_area: 200}, tree: {min_area: 200}}}\n")
    (folder / "sample.csv").write_text("id,rle\n" + "".join(f"{name}_{k},\n" for name in SIZES for k in (1, 2)))
    rules = ["--postprocess", str(folder / "rules.yaml")]
    assert main([*words(folder), *rules, "--images", str(folder / "test"), "--out", str(folder / "package")]) == 0
    return folder


def words(home: Path, *bundles: str) -> list[str]:
    given = [str(home / name) for name in bundles or ("a", "b")]
    more = ["--weights", "1,3", "--tta", "flips"] if len(given) == 2 else []
    return ["pack", *given, *more, "--dialect", str(home / "dialect.yaml"), "--sample", str(home / "sample.csv")]


def draw(home: Path, out: Path, *, clock=lambda: 0.0, measure=try_package, **wishes):
    """Run the package here; what it said, and what came of it."""
    said: list[str] = []
    work = out.parent / f"{out.stem}_work"
    work.mkdir(exist_ok=True)
    asked = Wishes(**{"images": home / "test", "out": out, "device": "cpu", "overwrite": True, **wishes})
    outcome = draw_package(home / "package", asked, work=work, say=said.append, clock=clock, measure=measure)
    return "\n".join(said), outcome


def decoded(path: Path) -> dict[str, np.ndarray]:
    """Label maps of a submission, read with nothing of ours."""
    masks = {name: np.zeros(size[0] * size[1], np.uint8) for name, size in SIZES.items()}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            name, label = row["id"].split("_")
            numbers = [int(word) for word in row["rle"].split()]
            for start, length in zip(numbers[::2], numbers[1::2], strict=True):
                masks[name][start - 1 : start - 1 + length] = int(label)
    return {name: mask.reshape(SIZES[name]) for name, mask in masks.items()}


def drawn(home: Path, out: Path, *options: str) -> dict[str, np.ndarray]:
    """What `visionapps predict` draws."""
    fixed = ["--device", "cpu", "--out", str(out)]
    assert main(["predict", *options, str(home / "test"), *fixed]) == 0
    return {name: np.asarray(Image.open(out / f"{name}.png")) for name in SIZES}


_HEAVY = {"lightning", "matplotlib", "albumentations", "tensorboard", "pyogrio", "ray"}


def run_offline(script: str, here: str) -> str:
    """In a process of its own: run.py where no name is resolved and no socket opened, whatever asks for it."""

    def refuse(*args, **kwargs):
        raise RuntimeError(f"network: {args}")

    socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
    for name in list(sys.modules):  # visionapps shall come from the package alone, and what it asks for shall show
        if name.partition(".")[0] in {"visionapps", *_HEAVY}:
            del sys.modules[name]
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
    sys.path[:] = [path for path in sys.path if Path(path).resolve() not in (_TESTS, _TESTS.parent)]
    numba.config.DISABLE_JIT = True  # compiling takes longer than these few pixels
    os.environ.clear()
    os.environ |= {"PATH": os.defpath, "HOME": here, "OMP_NUM_THREADS": "1"}
    os.environ |= {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https", "all")}
    os.chdir(here)
    sys.argv = [script, "--device", "cpu"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), pytest.raises(SystemExit) as end:
        runpy.run_path(script, run_name="__main__")
    source = sys.modules["visionapps"].__file__
    loaded = sorted(_HEAVY & {name.partition(".")[0] for name in sys.modules})
    return json.dumps({"code": end.value.code, "from": source, "loaded": loaded, "said": said.getvalue()[-2500:]})


@pytest.mark.slow
def test_a_package_runs_anywhere_without_network_and_writes_what_predict_and_submit_would(home, tmp_path, capsys):
    package = shutil.copytree(home / "package", tmp_path / "input" / "kit")
    shutil.copytree(home / "test", tmp_path / "input" / "competition" / "test_images")
    for path in package.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    here = tmp_path / "working"
    here.mkdir()
    bare = [sys.executable, "-I", "-S", str(package / "run.py"), "--help"]  # -S: nothing is installed
    assert "--seconds" in subprocess.run(bare, capture_output=True, text=True, check=True, cwd=here).stdout
    (answer,) = call_each("test_pack", "run_offline", [(str(package / "run.py"), str(here))])
    for path in [package, *package.rglob("*")]:
        path.chmod(0o755)
    done = json.loads(answer)
    assert done["code"] == 0, done
    assert re.search(r"/visionapps_\w+/site/visionapps/__init__.py$", done["from"]), done
    assert done["loaded"] == []
    assert "drawing 4 images with 2 members x 4 views = 8 forward passes per tile" in done["said"]
    out = here / "submission.csv"
    assert sorted(path.name for path in here.iterdir()) == ["submission.csv", REPORT]
    expected = drawn(home, tmp_path / "masks", str(home / "package" / "ensemble.yaml"))
    for name, mask in decoded(out).items():
        np.testing.assert_array_equal(mask, expected[name])
    without = drawn(home, tmp_path / "plain", str(home / "package" / "ensemble.yaml"), "--postprocess", "none")
    assert any((expected[name] != without[name]).any() for name in SIZES)  # rules were obeyed
    rules = ["--dialect", str(home / "dialect.yaml"), "--sample", str(home / "sample.csv")]
    capsys.readouterr()
    assert main(["submit", str(tmp_path / "masks"), "--verify", str(out), *rules]) == 0
    assert "every pixel of 4 images" in capsys.readouterr().out
    facts = json.loads((here / REPORT).read_text())
    assert facts["drawn_with"] == facts["wanted"]
    assert (facts["images"], facts["rows"], facts["blank"], facts["lowered"]) == (4, 8, [], {})


@pytest.fixture(scope="module")
def steady(home, tmp_path_factory):
    """What the trial of the package really said, once, with given seconds: all images take one per pass."""
    kept: list[tuple] = []

    def measure(*args, **kwargs):
        kept[:] = kept or [try_package(*args, **kwargs)]
        costs, opinions, text = kept[0]
        views = {"none": 1, "flips": 4, "d4": 8}
        passes = {item: views[item.flips] / PIXELS for item in costs.passes}
        return Costs(0.0, passes, costs.base, costs.held, costs.working), opinions, text

    return measure


PIXELS = sum(height * width for height, width in SIZES.values())


def test_too_little_time_leaves_out_views_and_members_says_so_and_draws_with_the_rest(home, steady, tmp_path):
    text, outcome = draw(home, tmp_path / "s.csv", measure=steady, seconds=1.5)  # 8 passes take 8 s
    assert "everything, 2 members x 4 views = 8 forward passes per tile, would take 8.0 s" in text
    assert outcome.choice.quality == Quality((1,))  # the heavier of the two, once
    said = [line.split(";")[0] for line in text.splitlines() if line.startswith("left out: ")]
    assert sorted(said) == ["left out: member 1-pack0-a", "left out: views (flips: 4, none: 1)"]
    assert f"drawing 4 images with {outcome.choice.quality}" in text
    rules = ["--postprocess", str(home / "rules.yaml")]
    for name, mask in drawn(home, tmp_path / "masks", str(home / "b"), *rules).items():
        np.testing.assert_array_equal(decoded(tmp_path / "s.csv")[name], mask)
    facts = json.loads((tmp_path / REPORT).read_text())
    assert [step["without"] for step in facts["left_out"]] == [line.removeprefix("left out: ") for line in said]
    assert facts["drawn_with"] == {"members": ["2-pack0-b"], "flips": "none", "scales": [1.0]}
    with pytest.raises(ConfigError, match=r"--seconds 0.5: at least 2 s are needed here for 4 images, with the"):
        draw(home, tmp_path / "none.csv", measure=steady, seconds=0.5)
    assert not (tmp_path / "none.csv").exists()


def test_a_machine_that_turns_slow_lowers_what_is_left_and_leaves_out_what_cannot_be_in_time(home, steady, tmp_path):
    said: list[str] = []
    looks = [0]

    def clock() -> float:  # stands still until drawing begins; then each look at it takes eight seconds
        looks[0] += any(line.startswith("drawing 4 images") for line in said)
        return 8.0 * looks[0]

    # Expected are 8 s, 3.6 of them for p3. It takes 8, and the clock shows 48 when the next one is to begin: 10 s more
    # would be too late for 57. Two passes instead of eight would end at 50.5, but they take long again.
    (tmp_path / "work").mkdir()
    out = tmp_path / "s.csv"
    outcome = draw_package(
        home / "package",
        Wishes(images=home / "test", out=out, device="cpu", seconds=57.0),
        work=tmp_path / "work",
        say=said.append,
        clock=clock,
        measure=steady,
    )
    assert outcome.choice.quality.forwards == 8
    assert outcome.lowered == {"p1": Quality((0, 1), "none")}
    assert outcome.blank == ("p2", "p4")
    text = "\n".join(said)
    assert "too slow, 3 images go on with 2 members x 1 view = 2 forward passes per tile" in text
    assert "warning: image p2 stays without any object: there is no time left for it" in text
    assert outcome.report.rows == 8  # still every row
    found = decoded(out)
    assert found["p3"].any()
    assert found["p1"].any()
    assert not found["p2"].any()
    assert not found["p4"].any()


def test_an_image_that_cannot_be_decoded_stays_blank_and_is_told(home, tmp_path):
    folder = shutil.copytree(home / "test", tmp_path / "test")
    whole = (folder / "p2.png").read_bytes()
    (folder / "p2.png").write_bytes(whole[: len(whole) // 2])
    text, outcome = draw(home, tmp_path / "s.csv", images=folder)
    assert outcome.blank == ("p2",)
    assert "warning: image p2 stays without any object: " in text
    assert "1 hold nothing: p2" in text
    assert not decoded(tmp_path / "s.csv")["p2"].any()
    assert decoded(tmp_path / "s.csv")["p1"].any()


def test_an_image_without_a_header_stays_blank_too_with_the_size_that_most_have(home, steady, tmp_path):
    folder = shutil.copytree(home / "test", tmp_path / "test")
    (folder / "p2.png").write_bytes(b"")
    (folder / "p4.png").write_text("no image")
    text, outcome = draw(home, tmp_path / "s.csv", images=folder, measure=steady)
    assert outcome.blank == ("p2", "p4")
    assert re.search(r"warning: image p2 stays without any object: .*p2.png: cannot be decoded", text)
    assert "everything, 2 members x 4 views = 8 forward passes per tile, would take 5.3 s" in text  # of two images
    found = decoded(tmp_path / "s.csv")
    assert not found["p2"].any()
    assert found["p3"].any()
    for name in SIZES:
        (folder / f"{name}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"p1.png: cannot be decoded"):
        draw(home, tmp_path / "none.csv", images=folder, measure=steady)


@pytest.mark.parametrize(
    ("out", "sample", "error", "message"),
    [
        ("s.zip", None, ConfigError, "s.zip: rows go to a plain .csv file"),
        ("folder", None, OutputError, "folder: is a folder, but the result is a file; give a file name inside it"),
        ("file/s.csv", None, OutputError, "s.csv: cannot be written"),
        ("s.csv", "id,rle\np1_1,\n", DataError, "lacks 1 rows of images that it names: p1_2"),
    ],
)
def test_a_submission_that_could_not_be_written_is_told_before_anything_is_drawn(
    home, tmp_path, out, sample, error, message
):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "work").mkdir()
    (tmp_path / "sample.csv").write_text(sample or (home / "sample.csv").read_text())
    wishes = Wishes(home / "test", tmp_path / "sample.csv", tmp_path / out, device="cpu", overwrite=True)
    before = sorted(tmp_path.rglob("*"))

    def never(*_: object, **__: object):
        raise AssertionError("drawn")

    with pytest.raises(error, match=re.escape(message)):
        draw_package(home / "package", wishes, work=tmp_path / "work", say=print, clock=lambda: 0.0, measure=never)
    assert set(tmp_path.rglob("*")) - set(before) <= {tmp_path / "work" / "rehearsal"}


def test_a_folder_with_foreign_files_is_refused_before_anything_is_drawn(home, tmp_path):
    package = shutil.copytree(home / "package", tmp_path / "p")
    (package / "dialect.yaml").write_text(yaml.safe_dump(dialect_to_dict(load_rules("png"))))
    (package / "sample.csv").write_text("file\n" + "".join(f"{name}.png\n" for name in SIZES))
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "p1.png").touch()
    known = {"images": home / "test", "out": tmp_path / "masks", "overwrite": True}
    assert "4 images" in begun(package, tmp_path / "work", **known)  # what it would have written itself
    (tmp_path / "masks" / "thesis.docx").touch()
    with pytest.raises(OutputError, match=r"masks: holds thesis.docx, which is no file of this dialect and would be"):
        begun(package, tmp_path / "work", **known)
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["p1.png", "thesis.docx"]


@pytest.mark.parametrize("dialect", ["kaggle", "png"])
def test_images_of_nothing_but_background_and_void_are_written_as_what_they_are(home, tmp_path, dialect):
    package = replace(Package.open(home / "package"), rules=load_rules(dialect))
    mask = np.zeros((4, 6), np.uint8)
    mask[:, :2] = 255  # of a raster without data there: no 0/255 mask of another tool
    report = write_verified([("a", mask), ("b", mask * 0)], tmp_path / "s", package, sizes={"a": (4, 6), "b": (4, 6)})
    assert (report.images, report.filled, report.void_only) == (2, 0, 1)


@pytest.mark.parametrize("dialect", ["png", "png-binary"])
def test_a_package_of_mask_files_runs_too(home, steady, tmp_path, dialect):
    package = shutil.copytree(home / "package", tmp_path / "p")
    rules = replace(load_rules(dialect), labels=(1,)) if dialect == "png-binary" else load_rules(dialect)
    (package / "dialect.yaml").write_text(yaml.safe_dump(dialect_to_dict(rules)))
    (package / "sample.csv").write_text("file\n" + "".join(f"{name}.png\n" for name in SIZES))
    (tmp_path / "work").mkdir()
    wishes = Wishes(images=home / "test", out=tmp_path / "masks.tar.gz", device="cpu")
    outcome = draw_package(package, wishes, work=tmp_path / "work", say=print, clock=lambda: 0.0, measure=steady)
    assert (outcome.report.rows, outcome.blank) == (4, ())
    assert (tmp_path / "masks.tar.gz").stat().st_size > 100


def test_a_sample_among_the_inputs_goes_before_the_packed_one_as_hidden_sets_have_their_own(home, steady, tmp_path):
    given = tmp_path / "inputs" / "competition"
    given.mkdir(parents=True)
    (given / "sample.csv").write_text("id,rle\np3_1,\np3_2,\n")
    shutil.copytree(home / "test", given / "test")
    text, _ = draw(home, tmp_path / "s.csv", images=None, roots=(tmp_path / "inputs",), measure=steady)
    assert f"1 images of 0.0 megapixels in {given / 'test'}, asked for by {given / 'sample.csv'}" in text
    assert [line.split(",")[0] for line in (tmp_path / "s.csv").read_text().splitlines()] == ["id", "p3_1", "p3_2"]
    (tmp_path / "inputs" / "sample.csv").write_text("id,rle\np1_1,\np1_2,\n")
    with pytest.raises(ConfigError, match=r"several files are called sample.csv, and they differ"):
        find_sample("sample.csv", (tmp_path / "inputs",))


class StoppedError(Exception):
    """The trial would begin now."""


def begun(package: Path, work: Path, **wishes) -> str:
    """What a run says before its trial."""
    said: list[str] = []

    def stop(*_: object, **__: object):
        raise StoppedError

    work.mkdir(exist_ok=True)
    with pytest.raises(StoppedError):
        draw_package(
            package, Wishes(device="cpu", **wishes), work=work, say=said.append, clock=lambda: 0.0, measure=stop
        )
    return "\n".join(said)


def repacked(home: Path, package: Path, sample: str) -> Path:
    """A copy of the package whose sample is called otherwise."""
    shutil.copytree(home / "package", package)
    shutil.move(package / "sample.csv", package / sample)
    manifest = json.loads((package / "visionapps_package.json").read_text())
    (package / "visionapps_package.json").write_text(json.dumps({**manifest, "sample": sample}))
    return package


def test_the_submission_of_the_run_before_is_not_taken_for_a_sample_of_the_same_name(home, tmp_path, monkeypatch):
    package = repacked(home, tmp_path / "p", "submission.csv")
    here = tmp_path / "here"
    here.mkdir()
    (here / "submission.csv").write_text("id,rle\np1_1,\np1_2,\n")
    monkeypatch.chdir(here)
    known = {"images": home / "test", "overwrite": True, "roots": (here,)}
    assert f"4 images of 0.0 megapixels in {home / 'test'}, asked for by {package / 'submission.csv'}" in begun(
        package, tmp_path / "work", **known
    )
    text = begun(package, tmp_path / "work", **known, out=here / "other.csv")  # which may well be a sample then
    assert f"asked for by {here / 'submission.csv'}" in text
    with pytest.raises(OutputError, match=r"submission.csv is read to make the result, which would replace it"):
        begun(package, tmp_path / "work", **known, sample=here / "submission.csv")


def test_a_sample_that_is_a_folder_is_found_among_the_inputs_and_is_no_folder_of_images(home, tmp_path):
    package = repacked(home, tmp_path / "p", "masks")
    (package / "masks").unlink()
    (package / "dialect.yaml").write_text(yaml.safe_dump(dialect_to_dict(load_rules("png"))))
    inputs = tmp_path / "inputs"
    shutil.copytree(home / "test", inputs / "photos")
    for folder, names in ((package / "masks", SIZES), (inputs / "masks", ["p3"]), (inputs / "out", ["p3"])):
        folder.mkdir()
        for name in names:
            Image.fromarray(np.zeros(SIZES[name], np.uint8)).save(folder / f"{name}.png")
    text = begun(package, tmp_path / "work", roots=(inputs,), out=inputs / "out", overwrite=True)
    assert f"1 images of 0.0 megapixels in {inputs / 'photos'}, asked for by {inputs / 'masks'}" in text
    shutil.copytree(inputs / "masks", inputs / "copy" / "masks")
    assert find_sample("masks", (inputs,), folder=True) == inputs / "masks"
    assert find_sample("masks", (inputs,)) is None  # of a file
    (inputs / "copy" / "masks" / "p3.png").rename(inputs / "copy" / "masks" / "p4.png")
    with pytest.raises(ConfigError, match=r"several folders are called masks, and they differ: .*copy/masks; say"):
        find_sample("masks", (inputs,), folder=True)


def test_folders_that_are_linked_are_looked_into_but_not_in_circles(tmp_path):
    store, inputs = tmp_path / "store", tmp_path / "inputs"
    (store / "test").mkdir(parents=True)
    inputs.mkdir()
    (store / "test" / "7.jpg").touch()
    (store / "sample.csv").touch()
    (inputs / "data").symlink_to(store)
    (inputs / "again").symlink_to(store / "test")  # the same folder is no other one
    for name, target in {"up": tmp_path, "self": inputs / "self", "gone": tmp_path / "gone"}.items():
        (inputs / name).symlink_to(target)
    (store / "test" / "back").symlink_to(inputs)
    (inputs / "sample.csv").symlink_to(tmp_path / "gone")
    (tmp_path / "besides" / "test").mkdir(parents=True)
    shutil.copy(store / "test" / "7.jpg", tmp_path / "besides" / "test")  # nobody gave what lies above
    rules = Dialect(order="row")
    (found,) = find_images(["7"], rules, roots=(inputs,)).values()
    assert found.resolve() == store / "test" / "7.jpg"
    assert find_sample("sample.csv", (inputs,)) == inputs / "data" / "sample.csv"
    with pytest.raises(DataError, match="no image of the 1"):
        find_images(["7"], rules, roots=(inputs,), without=[store / "test"])


def test_a_folder_within_reach_of_one_root_is_found_though_another_root_reaches_it_too_late(tmp_path):
    deep = tmp_path.joinpath(*"abcdefg")
    deep.mkdir(parents=True)
    (deep / "7.jpg").touch()
    rules = Dialect(order="row")
    with pytest.raises(DataError, match="no image of the 1"):
        find_images(["7"], rules, roots=(tmp_path,))
    assert find_images(["7"], rules, roots=(tmp_path, tmp_path / "a" / "b")) == {"7": deep / "7.jpg"}


def test_images_of_a_run_must_be_those_of_the_sample(home, tmp_path):
    folder = shutil.copytree(home / "test", tmp_path / "test")
    (folder / "p4.png").unlink()
    message = r"1 of the 4 images that the sample asks for are missing: p4; the files there are p1.png, p2.png, p3.png"
    with pytest.raises(DataError, match=message):
        draw(home, tmp_path / "s.csv", images=folder)
    with pytest.raises(DataError, match=message):  # packing says the same
        main_or_raise([*words(home), "--images", str(folder), "--out", str(tmp_path / "p")])
    (tmp_path / "s.csv").touch()
    with pytest.raises(OutputError, match=r"s.csv: exists already"):
        draw(home, tmp_path / "s.csv", overwrite=False)


def main_or_raise(arguments: list[str]) -> None:
    """The verb, with its error instead of its exit code."""
    assert main(["--traceback", *arguments]) == 0


def test_test_images_are_found_by_the_ids_of_the_sample(tmp_path):
    rules = Dialect(order="row", row_id="{id}_{class}", image_id="([0-9]+)")
    for name in ("train/1_a.jpg", "train/2_a.jpg", "test/7_a.jpg", "test/8_a.jpg", "test/9_b.jpg", ".cache/7.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    test = tmp_path / "test"
    assert find_images(["8", "7"], rules, roots=(tmp_path,)) == {"8": test / "8_a.jpg", "7": test / "7_a.jpg"}
    shutil.copytree(test, tmp_path / "test_small")
    with pytest.raises(ConfigError, match=r"several folders hold all 2 images .* say which one with --images"):
        find_images(["7", "8"], rules, roots=(tmp_path,))
    shutil.move(tmp_path / "test_small", tmp_path / "copy")  # only one of them is called a test
    assert find_images(["7"], rules, roots=(tmp_path,)) == {"7": test / "7_a.jpg"}
    (test / "7_b.jpg").touch()
    with pytest.raises(DataError, match=r"7_a.jpg, 7_b.jpg have one id, 7; keep one"):
        find_images(["7"], rules, folder=test)
    with pytest.raises(DataError, match=r"test: 1 of the 3 images that the sample asks for are missing: 55"):
        find_images(["7", "8", "55"], rules, roots=(tmp_path,))
    with pytest.raises(DataError, match=r"no image of the 1 that the sample asks for \(55\) lies below"):
        find_images(["55"], rules, roots=(tmp_path,))
    with pytest.raises(DataError, match="no such folder of images; check --images"):
        find_images(["55"], rules, folder=tmp_path / "nothing")


def test_a_package_names_every_file_with_its_digest_and_opens_as_what_was_packed(home):
    package = home / "package"
    manifest = json.loads((package / "visionapps_package.json").read_text())
    names = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert names - set(manifest["files"]) == {"visionapps_package.json", "README.md"}
    readme = (package / "README.md").read_text()
    for name, facts in manifest["files"].items():
        data = (package / name).read_bytes()
        assert facts == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        assert f"| `{name}` | {len(data):,} | `{facts['sha256']}` |" in readme
    opened = Package.open(package)
    assert opened.spec.weights == (1.0, 3.0)
    assert opened.spec.flips == "flips"
    assert opened.labels == LABELS
    assert opened.rules == load_dialect(str(home / "dialect.yaml"))
    assert [name.split("-")[-1] for name in opened.names] == ["a", "b"]
    assert str(home) not in "".join(path.read_text() for path in package.glob("*.*"))  # nothing of this machine
    assert (package / "run.py").read_text() == Path(pack_script.__file__).read_text()


def test_a_notebook_is_what_the_format_of_notebooks_asks_for(home):
    """The rules of nbformat 4.5: required keys, ids of cells, and no others."""
    book = json.loads((home / "package" / "submit.ipynb").read_text())
    assert set(book) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert set(book["metadata"]["kernelspec"]) >= {"name", "display_name"}
    assert set(book["metadata"]["language_info"]) >= {"name"}
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in book["cells"]:
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell["id"])
        common = {"id", "cell_type", "metadata", "source"}
        assert set(cell) == (common | {"outputs", "execution_count"} if cell["cell_type"] == "code" else common)
        assert isinstance(cell["metadata"], dict)
        assert all(isinstance(line, str) for line in cell["source"])
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            compile("".join(cell["source"]), cell["id"], "exec")
        else:
            assert cell["cell_type"] == "markdown"


def test_the_wheel_holds_all_of_the_code_and_its_record_is_true(tmp_path):
    wheel = project_wheel(tmp_path)
    (tmp_path / "again").mkdir()
    assert project_wheel(tmp_path / "again").read_bytes() == wheel.read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    info = wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"
    record = list(csv.reader(io.StringIO(contents[f"{info}/RECORD"].decode())))
    assert {row[0] for row in record} == set(contents)
    for name, digest, size in record:
        if name != f"{info}/RECORD":
            own = base64.urlsafe_b64encode(hashlib.sha256(contents[name]).digest()).rstrip(b"=").decode()
            assert (digest, size) == (f"sha256={own}", str(len(contents[name])))
    code = Path(pack_script.__file__).parents[1]
    for path in ("py.typed", "cli/demo.yaml", "networks/facts.json", "competition/pack_script.py"):
        assert contents[f"visionapps/{path}"] == (code / path).read_bytes()
    assert b"visionapps = visionapps.cli.main:main" in contents[f"{info}/entry_points.txt"]
    assert b"\nName: visionapps\n" in contents[f"{info}/METADATA"]
    assert not [name for name in contents if "__pycache__" in name]


def fake_wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    info = f"{name}-{version}.dist-info"
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", head + "".join(f"Requires-Dist: {text}\n" for text in requires))
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.mark.slow
def test_wheels_are_fetched_for_what_the_notebook_lacks_and_for_what_these_need(tmp_path, monkeypatch):
    index, got = tmp_path / "index", tmp_path / "got"
    index.mkdir()
    got.mkdir()
    fake_wheel(index, "alpha", "2.0", "beta>=1; python_version >= '3.12'", "gamma; sys_platform == 'win32'", "delta")
    fake_wheel(index, "beta", "1.5")
    fake_wheel(index, "delta", "1.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    has = {"delta": "0.9", "torch": "2.9", "opencv-python": "4.9"}
    target = Target("3.12", has={name: Version(version) for name, version in has.items()})
    found = fetch(["alpha>=1", "torch>=2.9", "opencv-python-headless>=4"], got, target)
    assert sorted(path.name for path in found) == ["alpha-2.0-py3-none-any.whl", "beta-1.5-py3-none-any.whl"]


def test_pip_is_told_every_name_of_a_platform_and_markers_are_judged_for_it():
    target = Target("3.12", "manylinux_2_28_x86_64")
    assert target.platforms[0] == "manylinux_2_28_x86_64"
    assert {"manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64"} <= set(target.platforms)
    assert not {name for name in target.platforms if "2_29" in name}
    assert Target("3.11", "win_amd64").platforms == ("win_amd64",)
    assert Target("3.11", "win_amd64").environment()["sys_platform"] == "win32"
    assert target.environment()["platform_machine"] == "x86_64"
    with pytest.raises(ConfigError, match=r"--python 312: expected major and minor version"):
        Target("312")


def test_what_a_notebook_has_is_read_from_freeze_or_list(tmp_path):
    (tmp_path / "have.txt").write_text(
        "# comment\nPackage Version\n------- -------\ntorch==2.9.0+cu126\nPillow  11.1.0\n"
        "numpy @ file:///tmp/wheels/numpy-2.1.3-cp312-cp312-linux_x86_64.whl#sha256=0\n-e git+x\n"
    )
    found = {name: str(version) for name, version in read_installed(tmp_path / "have.txt").items()}
    assert found == {"torch": "2.9.0+cu126", "pillow": "11.1.0", "numpy": "2.1.3"}
    (tmp_path / "have.txt").write_text("nothing here\n")
    with pytest.raises(DataError, match=r"names no package with its version; give what `pip freeze` prints"):
        read_installed(tmp_path / "have.txt")


@pytest.mark.parametrize("rules", [*BUILT_IN.values(), *map(load_rules, ("png", "png-binary"))])
def test_a_dialect_survives_its_file(rules, tmp_path):
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(dialect_to_dict(rules), sort_keys=False))
    assert load_rules(str(tmp_path / "d.yaml")) == rules
    coded = FileDialect("out/{id}.png", labels=(0, 1), values=((0, 7), (1, 8)))
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(dialect_to_dict(coded)))
    assert load_rules(str(tmp_path / "d.yaml")) == coded


def test_rules_of_a_single_bundle_are_packed_and_those_of_members_are_not(home, tmp_path, caplog):
    ruled = replace(
        tiny(LABELS, 1),
        postprocess={"resolve": "argmax", "rules": {"road": {"min_area": 200}, "tree": {"min_area": 200}}},
    )
    ruled.save(tmp_path / "ruled")
    alone = tmp_path / "alone"
    main_or_raise([*words(home, str(tmp_path / "ruled")), "--out", str(alone)])
    assert Package.open(alone).postprocess == Package.open(home / "package").postprocess
    main_or_raise([*words(home, str(tmp_path / "ruled")), "--postprocess", "none", "--out", str(tmp_path / "plain")])
    assert Package.open(tmp_path / "plain").postprocess is None
    main_or_raise([*words(home, str(tmp_path / "ruled"), "b"), "--out", str(tmp_path / "both")])
    assert "so an ensemble does not take them" in caplog.text
    assert Package.open(tmp_path / "both").postprocess is None


def test_classes_that_the_models_lack_are_told(caplog):
    check_labels(load_rules("hrud"), LABELS)
    assert "writes label 3, but the models have 3 classes, 0 to 2 (ground, road, tree); rows of 22" in caplog.text


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (["--out", "package"], OutputError, "package: exists already"),
        (["nothing", "--weights", "1,1,1"], WeightsError, "nothing: no such bundle"),
        (["--dialect", "far.yaml"], ConfigError, "dialect: writes label 7, but the models have 3 classes, 0 to 2"),
        (["--sample", "absent.csv"], VisionAppsError, "absent.csv"),
        (["--sample", "other.csv"], ConfigError, "header 'a,b', but the dialect writes 'id,rle'"),
        (["--weights", "1,2,3"], ConfigError, "3 numbers for 2 bundles"),
        (["--seconds", "0"], ConfigError, "--seconds 0.0: must be positive"),
        (["--memory", "nan"], ConfigError, "--memory nan: must be positive"),
        (["--memory", "inf"], ConfigError, "--memory inf: must be positive"),
        (["--python", "3.12"], ConfigError, "--python tells which wheels are downloaded; add --wheels"),
        (["package/ensemble.yaml"], ConfigError, "the ensemble's file says this itself; leave out --weights, --tta"),
    ],
)
def test_what_cannot_be_packed_is_refused_and_leaves_nothing(home, tmp_path, monkeypatch, change, error, message):
    monkeypatch.chdir(home)
    (home / "other.csv").write_text("a,b\nx,\n")
    (home / "far.yaml").write_text(yaml.safe_dump(dialect_to_dict(replace(load_rules("hrud"), labels=(7, 8)))))
    out = [] if change[0] == "--out" else ["--out", str(tmp_path / "p")]
    line = words(home)
    bundle = [] if change[0].startswith("--") else change[:1]
    line = [line[0], *bundle, *line[1:], *change[len(bundle) :]]
    with pytest.raises(error, match=re.escape(message)):
        main_or_raise([*line, *out])
    assert list(tmp_path.iterdir()) == []


def test_a_member_outside_of_the_package_and_a_damaged_file_are_refused(home, tmp_path, capsys):
    package = shutil.copytree(home / "package", tmp_path / "p")
    spec = yaml.safe_load((package / "ensemble.yaml").read_text())
    spec["members"][0]["bundle"] = str(home / "a")
    (package / "ensemble.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(WeightsError, match=r"ensemble.yaml: member .*a lies outside of the package"):
        Package.open(package)
    assert pack_script.main([], root=package) == 1
    assert "ensemble.yaml: is not what was packed" in capsys.readouterr().err
    whole = home / "package"
    (tmp_path / "file").touch()
    assert pack_script.main(["--work", str(tmp_path / "file" / "work")], root=whole) == 1
    assert "work: no folder can be made here (Not a directory); give another --work" in capsys.readouterr().err
    weights = next(package.rglob("weights.safetensors"))
    weights.unlink()
    assert pack_script.main([], root=package) == 1
    assert "weights.safetensors: missing; upload the whole package again" in capsys.readouterr().err
    (package / "visionapps_package.json").unlink()
    assert pack_script.main([], root=package) == 1
    assert "visionapps_package.json cannot be read" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="is no package"):
        Package.open(package)


def test_a_python_that_is_too_old_or_lacks_a_wheel_is_told_what_to_pack(home, tmp_path):
    manifest = json.loads((home / "package" / "visionapps_package.json").read_text())
    old = tmp_path / "visionapps_package.json"
    old.write_text(json.dumps({**manifest, "python": [4, 1]}))
    with pytest.raises(pack_script.PackageError, match=r"Python 4.1 or later is needed, but this is 3\.\d+"):
        pack_script.read_manifest(tmp_path)
    lacking = {**manifest, "requirements": ["numpy>=1.26", "no-such-package-of-ours>=3"]}
    with pytest.raises(pack_script.PackageError) as caught:
        pack_script.install(home / "package", lacking, tmp_path / "site")
    text = str(caught.value)
    assert text.startswith("this Python lacks no-such-package-of-ours>=3, and the wheels of the package (visionapps-")
    assert "pack again with --wheels --has have.txt" in text


@pytest.mark.parametrize(
    ("change", "lacking"),
    [
        ({"files": None, "requirements": None}, "files, requirements"),
        ({"python": ["3", "11"]}, "python"),
        ({"python": [3]}, "python"),
        ({"files": {"run.py": "digest"}}, "files"),
        ({"files": {"run.py": {"bytes": 1}}}, "files"),
        ({"requirements": ["numpy", 2]}, "requirements"),
        ({"sample": 7, "seconds": "long", "memory": True}, "sample, seconds, memory"),
    ],
)
def test_a_manifest_that_was_edited_is_told_by_its_keys(home, tmp_path, change, lacking):
    manifest = json.loads((home / "package" / "visionapps_package.json").read_text())
    edited = {name: value for name, value in {**manifest, **change}.items() if value is not None}
    (tmp_path / "visionapps_package.json").write_text(json.dumps(edited))
    message = f"visionapps_package.json lacks {lacking}, or holds something else there; copy the whole package again"
    with pytest.raises(pack_script.PackageError, match=re.escape(message)):
        pack_script.read_manifest(tmp_path)


def test_a_manifest_that_is_no_manifest_is_told(tmp_path):
    (tmp_path / "visionapps_package.json").write_text("[1]")
    with pytest.raises(pack_script.PackageError, match=r"a package of format None, but run.py reads 1"):
        pack_script.read_manifest(tmp_path)


def test_durations_are_for_people():
    told = [duration(seconds) for seconds in (0.04, 8, 89, 600, 32400)]
    assert told == ["0.0 s", "8.0 s", "89 s", "10 min", "9 h 00 min"]
