"""Mask files in folders and archives against tarfile, zipfile and Pillow, and archives broken by hand."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionapps.cli.main import main
from visionapps.errors import ConfigError, DataError, OutputError
from visionapps.inference.dialects import KAGGLE
from visionapps.inference.file_dialects import (
    PNG,
    PNG_BINARY,
    FileDialect,
    file_dialect_from_dict,
    load_rules,
)
from visionapps.inference.file_submission import (
    match_sample_files,
    read_sample_files,
    verify_files,
    write_files,
)
from visionapps.inference.submission import write_submission

MASKS = [("a_x", np.array([[0, 1, 2], [2, 2, 255]], np.uint8)), ("b_x", np.zeros((4, 5), np.uint8))]
CITY = FileDialect(
    file="results/{id}_labelIds.png", image_id="([^_]+)", labels=(0, 1, 2), values=((0, 7), (1, 8), (2, 11)), void=4
)
CLASSES = FileDialect(file="{id}/{class}.png", foreground=1, image_id="([^_]+)", labels=(1, 2))
PLACES = ("out", "out.zip", "out.tar", "out.tar.gz", "out.tgz")


def unpack(path: Path) -> dict[str, np.ndarray]:
    """Every file of a folder or archive, by the standard library and Pillow."""
    if path.is_dir():
        files = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*.*")}
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as packed:
            files = {name: packed.read(name) for name in packed.namelist()}
    else:
        with tarfile.open(path) as tar:
            files = {info.name: tar.extractfile(info).read() for info in tar}
    return {name: np.asarray(Image.open(io.BytesIO(data))) for name, data in files.items()}


def picture(values: object, mode: str | None = None, form: str = "PNG") -> bytes:
    data = io.BytesIO()
    image = Image.fromarray(np.array(values, np.uint8))
    (image.convert(mode) if mode else image).save(data, form)
    return data.getvalue()


def tar_of(path: Path, files: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("place", PLACES)
def test_index_masks_with_the_values_of_the_competition(tmp_path, place):
    report = write_files(MASKS, tmp_path / place, dialect=CITY)
    found = unpack(tmp_path / place)
    assert found.keys() == {"results/a_labelIds.png", "results/b_labelIds.png"}
    assert found["results/a_labelIds.png"].tolist() == [[7, 8, 11], [11, 11, 4]]
    assert found["results/b_labelIds.png"].tolist() == [[7] * 5] * 4
    assert (report.rows, report.images, report.labels, report.compared) == (2, 2, 1, 2)
    assert verify_files(tmp_path / place, CITY, masks=MASKS).problems == ()


@pytest.mark.parametrize("place", PLACES)
def test_the_same_masks_are_the_same_bytes(tmp_path, place):
    for name in ("first", "second"):
        write_files(MASKS, tmp_path / name / place, dialect=CLASSES)
    first, second = tmp_path / "first" / place, tmp_path / "second" / place
    if not first.is_dir():
        assert first.read_bytes() == second.read_bytes()
    assert sorted(unpack(first)) == ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]


def test_a_binary_file_for_each_class_or_for_all_of_them(tmp_path):
    report = write_files(MASKS, tmp_path / "each.tar.gz", dialect=CLASSES)
    found = unpack(tmp_path / "each.tar.gz")
    assert found["a/1.png"].tolist() == [[0, 1, 0], [0, 0, 0]]
    assert found["a/2.png"].tolist() == [[0, 0, 1], [1, 1, 0]]
    assert (report.rows, report.images, report.labels, report.filled) == (4, 2, 2, 2)
    assert verify_files(tmp_path / "each.tar.gz", CLASSES, masks=MASKS).problems == ()
    write_files(MASKS, tmp_path / "all", dialect=PNG_BINARY, classes=3)
    assert unpack(tmp_path / "all")["a_x.png"].tolist() == [[0, 255, 255], [255, 255, 0]]


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_formats_are_lossless_and_masks_are_resized_first(tmp_path, suffix):
    mask = np.random.default_rng(0).integers(0, 25, (60, 80)).astype(np.uint8)
    dialect = FileDialect(file=f"{{id}}.{suffix}", resize=(32, 32))
    write_files([("a", mask)], tmp_path / "out", dialect=dialect, classes=25)
    expected = np.asarray(Image.fromarray(mask).resize((32, 32), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(unpack(tmp_path / "out")[f"a.{suffix}"], expected)


def test_everything_wrong_with_an_archive_is_reported(tmp_path):
    good = picture(np.zeros((2, 3)))
    path = tar_of(
        tmp_path / "s.tar.gz",
        [
            ("./a.png", good),
            ("a.png", good),
            ("../evil.png", good),
            ("c.jpg", good),
            ("d.png", picture(np.zeros((2, 3, 3)))),
            ("e.png", good[:-20]),
            ("f.png", picture(np.full((2, 3), 9))),
            ("g.png", picture(np.zeros((3, 2)))),
            ("h.png", b"no picture"),
            ("i.png", picture([[0, 255]], "1")),
        ],
    )
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    problems = verify_files(path, PNG, classes=3, sizes={"g": (2, 3), "z": (1, 1)}).problems
    assert problems[:3] == (
        "file a.png is there more than once",
        "file '../evil.png' leads out of the archive",
        "file 'c.jpg' does not have the form {id}.png",
    )
    assert problems[3] == "file d.png holds RGB pixels, but one channel of 8 bits is expected"
    assert problems[4].startswith("file e.png is broken (")
    assert problems[5:] == (
        "file f.png: holds the value 9; known are 0, 1, 2",
        "file g.png: 3 x 2 px (H x W), not 2 x 3",
        "file h.png is no image that can be read",
        "file i.png holds 1 pixels, but one channel of 8 bits is expected",
        "6 ids belong to no image: a, d, e, f, h, ...",
        "1 images have no files: z",
    )
    assert verify_files(tmp_path / "links.tar", PNG).problems == ("file 'a.png' is a link or a device, not a file",)


def test_classes_that_share_pixels_and_files_that_are_missing_are_reported(tmp_path):
    files = [("a/1.png", [[1, 1]]), ("a/2.png", [[0, 1]]), ("b/1.png", [[0, 0]]), ("b/7.png", [[0, 0]])]
    path = tar_of(tmp_path / "s.tar", [(name, picture(values)) for name, values in files])
    assert verify_files(path, CLASSES).problems == (
        "file a/2.png: shares 1 pixels with other classes of image a",
        "file b/7.png: label 7 has no files in this dialect",
        "1 files are missing: b/2.png",
    )


def test_files_are_held_against_the_masks(tmp_path):
    write_files(MASKS, tmp_path / "out.zip", dialect=CITY)
    other = [("a_x", MASKS[0][1][::-1]), ("b_x", np.zeros((5, 4), np.uint8)), ("c_x", MASKS[0][1])]
    assert verify_files(tmp_path / "out.zip", CITY, masks=other).problems == (
        "file results/a_labelIds.png: differs from its mask",
        "file results/b_labelIds.png: 4 x 5 px (H x W), but its mask is 5 x 4",
        "file results/c_labelIds.png: cannot be compared with its mask, it is missing or cannot be read",
    )


class TestSample:
    def test_a_sample_archive_gives_names_and_sizes(self, tmp_path):
        sample = tar_of(tmp_path / "sample.tar.gz", [("b_x.png", picture(np.zeros((4, 5))))])
        report = write_files(MASKS, tmp_path / "out", dialect=PNG, sample=sample)
        assert (report.left_out, list(unpack(tmp_path / "out"))) == (1, ["b_x.png"])
        found = verify_files(tmp_path / "out", PNG, sample=sample, masks=MASKS)
        assert (found.problems, found.compared, found.left_out) == ((), 1, 1)
        assert len(verify_files(tmp_path / "out", PNG, masks=MASKS).problems) == 1
        tar_of(sample, [("b_x.png", picture(np.zeros((4, 6))))])
        with pytest.raises(DataError, match=r"b_x: mask is 4 x 5 px \(H x W\), but 4 x 6 are wanted"):
            write_files(MASKS, tmp_path / "out2", dialect=PNG, sample=sample)
        assert verify_files(tmp_path / "out", PNG, sample=sample).problems == (
            "file b_x.png: 4 x 5 px (H x W), not 4 x 6",
        )

    def test_a_list_gives_ids_or_names(self, tmp_path):
        (tmp_path / "ids.csv").write_text("id\na\nb\n")
        (tmp_path / "ids.txt").write_text("a\nb\n", encoding="utf-8-sig")  # as Windows' editor saves it
        assert read_sample_files(tmp_path / "ids.txt", PNG).names == ("a.png", "b.png")
        (tmp_path / "names.txt").write_text("a/1.png\na/2.png\n")
        report = write_files(MASKS, tmp_path / "out", dialect=CLASSES, sample=tmp_path / "ids.csv")
        assert (report.rows, report.left_out) == (4, 0)
        assert verify_files(tmp_path / "out", CLASSES, sample=tmp_path / "names.txt").problems == (
            "2 files are not in the sample: b/1.png, b/2.png",
        )
        (tmp_path / "blank.csv").write_text("\n\nid\na\n")
        assert read_sample_files(tmp_path / "blank.csv", PNG).names == ("a.png",)
        (tmp_path / "ids.csv").write_text("id\na\nz\n")
        with pytest.raises(DataError, match=r"ids\.csv: 2 files have no mask: z/1\.png, z/2\.png; predict those"):
            match_sample_files(["a_x"], CLASSES, sample=tmp_path / "ids.csv")
        (tmp_path / "names.txt").write_text("a/1.png\n")
        with pytest.raises(DataError, match=r"names\.txt: 1 files are not in the sample: a/2\.png"):
            write_files(MASKS, tmp_path / "out2", dialect=CLASSES, sample=tmp_path / "names.txt")
        assert not (tmp_path / "out2").exists()

    def test_a_list_that_names_nothing_is_refused(self, tmp_path):
        write_files(MASKS, tmp_path / "out", dialect=PNG)
        (tmp_path / "ids.csv").write_text("id\n")
        with pytest.raises(DataError, match=r"ids\.csv: holds no file and no id; give the competition's own sample"):
            verify_files(tmp_path / "out", PNG, sample=tmp_path / "ids.csv")
        with pytest.raises(DataError, match=r"ids\.csv: holds no file and no id"):
            write_files(MASKS, tmp_path / "out2", dialect=PNG, sample=tmp_path / "ids.csv")


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([("a", np.array([[9]]))], "a: mask has label 9, but the labels here are 0 to 2 and 255 for void"),
        ([("a", np.zeros((2, 2)))], "a: mask of shape (2, 2) and float64"),
        ([("a", np.eye(2, dtype=int)), ("a", np.eye(2, dtype=int))], "a: another mask has the id 'a' already"),
        ([], "there was no mask to write"),
    ],
)
def test_masks_that_cannot_be_written_leave_nothing_behind(tmp_path, masks, message):
    for place in PLACES:
        with pytest.raises(DataError) as caught:
            write_files(masks, tmp_path / place, dialect=PNG, classes=3)
        assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_masks_of_0_and_255_are_refused_until_255_is_named_foreground(tmp_path):
    masks = [("a", np.array([[0, 255]], np.uint8))]
    with pytest.raises(DataError, match=r"all 1 masks hold only background and 255, .* --labels 255"):
        write_files(masks, tmp_path / "out", dialect=PNG_BINARY)
    dialect = FileDialect(file="{id}.png", foreground=255, labels=(255,))
    write_files(masks, tmp_path / "out", dialect=dialect)
    assert unpack(tmp_path / "out")["a.png"].tolist() == [[0, 255]]


def test_what_is_there_stays_until_overwriting_is_asked_for(tmp_path):
    (tmp_path / "out.zip").write_text("old")
    with pytest.raises(OutputError, match="exists already"):
        write_files(MASKS, tmp_path / "out.zip", dialect=PNG)
    assert (tmp_path / "out.zip").read_text() == "old"
    write_files(MASKS, tmp_path / "out.zip", dialect=PNG, overwrite=True)
    assert len(unpack(tmp_path / "out.zip")) == 2


def test_a_folder_is_replaced_only_if_it_holds_such_files_alone(tmp_path):
    out = tmp_path / "out"
    (out / "results").mkdir(parents=True)
    (out / "results" / "old_labelIds.png").write_bytes(b"old")
    write_files(MASKS, out, dialect=CITY, overwrite=True)
    assert unpack(out).keys() == {"results/a_labelIds.png", "results/b_labelIds.png"}
    for name in ("notes.txt", "results/sub/a.py"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
        with pytest.raises(OutputError, match=rf"out: holds {name}, which is no file of this dialect"):
            write_files(MASKS, out, dialect=CITY, overwrite=True)
        assert (out / name).read_text() == "mine"
        (out / name).unlink()
    (out / "results" / "c_labelIds.png").symlink_to(tmp_path)
    with pytest.raises(OutputError, match=r"out: holds results/c_labelIds\.png, which is no file of this dialect"):
        write_files(MASKS, out, dialect=CITY, overwrite=True)


def test_what_masks_are_made_from_is_never_replaced(tmp_path, capsys):
    masks, sample = tmp_path / "data" / "masks", tmp_path / "sample.csv"
    masks.mkdir(parents=True)
    for name, mask in MASKS:
        Image.fromarray(mask).save(masks / f"{name}.png")
    sample.write_text("ImageId,EncodedPixels\na_x,\n")
    before = {path: path.read_bytes() for path in (*masks.iterdir(), sample)}
    for out, dialect in ((masks, "png"), (masks.parent, "png"), (sample, "kaggle"), (masks / "a_x.png", "kaggle")):
        options = ["--out", str(out), "--dialect", dialect, "--sample", str(sample), "--overwrite"]
        assert main(["submit", str(masks), *options]) == 1
        assert "is read to make the result, which would replace it" in capsys.readouterr().err
    with pytest.raises(OutputError, match="which would replace it"):
        write_files(MASKS, tmp_path, dialect=PNG, sample=sample, overwrite=True)
    with pytest.raises(OutputError, match="which would replace it"):
        write_submission(MASKS, sample, dialect=KAGGLE, sample=sample, overwrite=True)
    assert {path: path.read_bytes() for path in (*masks.iterdir(), sample)} == before


def test_places_that_are_no_archive_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"go to a folder or into \.tar\.gz, .*, not into \.csv; name it so"):
        write_files(MASKS, tmp_path / "s.csv", dialect=PNG)
    with pytest.raises(DataError, match="no such file or folder"):
        verify_files(tmp_path / "none.zip", PNG)
    for name in ("s.zip", "s.tar.gz", "s.tar"):
        (tmp_path / name).write_bytes(b"broken")
        with pytest.raises(DataError, match=f"{name}: cannot be read as"):
            verify_files(tmp_path / name, PNG)
    write_files(MASKS, tmp_path / "cut.tar.gz", dialect=PNG)
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "cut.tar.gz").read_bytes()[:-60])
    with pytest.raises(DataError, match="it may be cut off"):
        verify_files(tmp_path / "cut.tar.gz", PNG)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "the key file is missing"),
        ({"file": "{id}.png", "ordr": 1}, "unknown key 'ordr'; known are file, foreground"),
        ({"file": "x.png"}, "must hold {id} once"),
        ({"file": "../{id}.png"}, "must be a plain relative path"),
        ({"file": "/{id}.png"}, "must be a plain relative path"),
        ({"file": "{id}.jpg"}, "must end in .png"),
        ({"file": "{id}_{class}.png"}, "give foreground, such as 255"),
        ({"file": "{id}.png", "foreground": 0}, "foreground 0 must be a whole number from 1 to 255"),
        ({"file": "{id}.png", "foreground": 1, "values": {1: 2}}, "give one of them"),
        ({"file": "{id}.png", "values": {1: 256}}, "must map labels to values"),
        ({"file": "{id}.png", "values": 3}, "must map labels to values"),
        ({"file": "{id}.png", "values": {0: 7, 9: 3}, "labels": [0, 1]}, "values name the label 9, which is not among"),
        ({"file": "{id}.png", "void": -1}, "void -1 must be"),
        ({"file": "{id}.png", "labels": [1, 1]}, "labels (1, 1) must be"),
        ({"file": "{id}.png", "image_id": ".+"}, "must have exactly one group"),
        ({"file": "{id}.png", "nearest": "x"}, "nearest 'x' is unknown"),
    ],
)
def test_rules_that_cannot_work_are_refused(data, message):
    with pytest.raises(ConfigError) as caught:
        file_dialect_from_dict(data)
    assert message in str(caught.value)


def test_a_value_of_a_label_that_would_be_written_as_void_is_refused(tmp_path):
    dialect = FileDialect(file="{id}.png", values=((1, 8), (3, 9)))
    message = "values name the label 3, which is not among the labels that are written (0 to 2); add it to labels or"
    for work in (lambda: write_files(MASKS, tmp_path / "out", dialect=dialect, classes=3), lambda: dialect.written(3)):
        with pytest.raises(ConfigError) as caught:
            work()
        assert message in str(caught.value)
    assert dialect.written(4) == (0, 1, 2, 3)
    with pytest.raises(ConfigError, match=r"label 255, which is not .* \(0 to 254\); .*: void is for where nothing is"):
        FileDialect(file="{id}.png", values=((255, 9),)).written(None)


def test_a_yaml_file_with_the_key_file_is_a_dialect_of_files(tmp_path):
    path = tmp_path / "city.yaml"
    path.write_text(
        'file: "results/{id}_labelIds.png"\nimage_id: "([^_]+)"\nlabels: [0, 1, 2]\n'
        "values: {0: 7, 1: 8, 2: 11}\nvoid: 4\n"
    )
    assert load_rules(str(path)) == CITY
    assert load_rules("png") == PNG
    path.write_text("file: 3\n")
    with pytest.raises(ConfigError, match=r"city\.yaml: dialect: file 3 must hold \{id\} once"):
        load_rules(str(path))


def test_the_verb_writes_and_verifies_an_archive_against_the_test_images(tmp_path, capsys):
    (tmp_path / "masks").mkdir()
    (tmp_path / "images").mkdir()
    for name, mask in MASKS:
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
        Image.new("RGB", mask.shape[::-1]).save(tmp_path / "images" / f"{name}.jpg")
    masks, images, out = (str(tmp_path / name) for name in ("masks", "images", "out.tar.gz"))
    rules = ["--dialect", "png-binary", "--file", "m/{id}_{class}.png", "--labels", "1-2", "--images", images]
    assert main(["submit", masks, "--out", out, *rules]) == 0
    assert "every pixel of 2 images" in capsys.readouterr().out
    assert main(["submit", masks, "--verify", out, *rules]) == 0
    assert len(unpack(Path(out))) == 4
    Image.new("RGB", (3, 3)).save(tmp_path / "images" / "a_x.jpg")
    Image.new("RGB", (3, 3)).save(tmp_path / "images" / "c.jpg")
    assert main(["submit", "--verify", out, *rules]) == 1
    text = capsys.readouterr().out
    assert "problem: file m/a_x_1.png: 2 x 3 px (H x W), not 3 x 3" in text
    assert "problem: 1 images have no files: c" in text
    assert main(["submit", masks, "--out", str(tmp_path / "x"), *rules]) == 1
    assert "1 images have no mask: c" in capsys.readouterr().err
    assert main(["submit", masks, "--out", str(tmp_path / "x"), *rules, "--order", "row", "--base", "0"]) == 1
    assert "--base, --order has no meaning for png-binary, a dialect of mask files" in capsys.readouterr().err
    assert main(["submit", masks, "--out", str(tmp_path / "x"), "--dialect", "hrud", "--void", "1"]) == 1
    assert "--void has no meaning for hrud, a dialect of rows" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
