"""Masks of one bit and of 0 and 255, whose foreground must not vanish without a word."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionapps.cli.main import main
from visionapps.errors import DataError
from visionapps.inference.dialects import KAGGLE, Dialect
from visionapps.inference.file_dialects import PNG, PNG_BINARY
from visionapps.inference.file_submission import verify_files, write_files
from visionapps.inference.submission import mask_files, read_masks, verify, write_submission
from visionapps.inference.void_masks import VoidCheck

SHAPE = np.array([[0, 1, 1], [0, 0, 1]], bool)
EMPTY, HALF, WHOLE = (np.array(values, np.uint8) for values in ([[0, 0]], [[0, 255]], [[255, 255]]))
LABELLED = np.array([[0, 3]], np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_a_mask_of_one_bit_is_written_as_the_same_mask_of_bytes(tmp_path, suffix):
    (tmp_path / "bits").mkdir()
    Image.fromarray(SHAPE).save(tmp_path / "bits" / f"a.{suffix}")
    ((_, labels),) = read_masks(mask_files(tmp_path / "bits"))
    assert labels.view(np.uint8).tolist() == [[0, 1, 1], [0, 0, 1]]
    report = write_submission([("a", labels)], tmp_path / "s.csv", dialect=KAGGLE)
    assert (tmp_path / "s.csv").read_text().splitlines()[1:] == ["a,3 1 5 2"]
    assert report.filled == 1
    write_files([("a", labels)], tmp_path / "out", dialect=PNG_BINARY)
    assert np.asarray(Image.open(tmp_path / "out" / "a.png")).tolist() == [[0, 255, 255], [0, 0, 255]]


def test_bits_that_pillow_gives_as_bytes_of_255_are_foreground(tmp_path):
    Image.fromarray(SHAPE).save(tmp_path / "a.png")
    bits = np.asarray(Image.open(tmp_path / "a.png"))
    write_submission([("a", bits)], tmp_path / "s.csv", dialect=KAGGLE)
    assert (tmp_path / "s.csv").read_text().splitlines()[1:] == ["a,3 1 5 2"]


@pytest.mark.parametrize("dialect", [KAGGLE, PNG, PNG_BINARY], ids=["rows", "index files", "binary files"])
def test_an_empty_mask_among_those_of_0_and_255_does_not_hide_that_all_foreground_is_lost(tmp_path, dialect):
    write = write_submission if isinstance(dialect, Dialect) else write_files
    masks = [("a", HALF), ("b", EMPTY), ("c", WHOLE)]
    message = (
        r"out: no mask holds foreground: 2 of 3 hold only background and 255, which means void, the others background "
        r"alone; if 255 means foreground here, give --labels 255"
    )
    with pytest.raises(DataError, match=message):
        write(masks, tmp_path / "out", dialect=dialect)
    assert list(tmp_path.iterdir()) == []
    # A mask of labels shows that these are label maps: void is void then, and told.
    report = write([*masks, ("d", LABELLED)], tmp_path / "out", dialect=dialect)
    assert (report.void_only, report.filled) == (2, 1)


@pytest.mark.parametrize(
    ("foreground", "masks", "lost"),
    [
        ([1], [HALF], "all 1 masks hold only"),
        ([1], [WHOLE, WHOLE], "all 2 masks hold only"),
        ([1], [WHOLE, EMPTY], None),  # an image without any data beside one without objects
        ([1], [EMPTY], None),
        ([255], [HALF, EMPTY], None),
        ([0, 1], [HALF], None),  # the background is a class of its own
        ([1], [LABELLED, HALF], None),
    ],
)
def test_only_0_and_255_without_any_other_label_are_refused(foreground, masks, lost):
    check = VoidCheck(foreground)
    for mask in masks:
        check.add(mask)
    if lost is None:
        check.refuse(Path("m"))
    else:
        with pytest.raises(DataError, match=f"m: {lost}"):
            check.refuse(Path("m"))


def test_masks_taller_than_one_look_are_looked_at_to_their_end():
    check = VoidCheck([7])
    tall = np.zeros((5000, 3), np.int64)
    tall[0, 0], tall[-1, -1] = 255, 7
    check.add(tall)
    assert (check.masks, check.void_only) == (1, 0)
    tall[-1, -1] = 0
    check.add(tall)
    assert (check.masks, check.void_only) == (2, 1)


@pytest.mark.parametrize("dialect", [KAGGLE, PNG, PNG_BINARY], ids=["rows", "index files", "binary files"])
def test_an_empty_submission_is_not_verified_against_masks_of_0_and_255(tmp_path, dialect):
    rows = isinstance(dialect, Dialect)
    empty = [("a", EMPTY), ("b", EMPTY)]
    (write_submission if rows else write_files)(empty, tmp_path / "out", dialect=dialect)
    with pytest.raises(DataError, match="out: no mask holds foreground: 1 of 2 hold only background and 255"):
        (verify if rows else verify_files)(tmp_path / "out", dialect, masks=[("a", HALF), ("b", EMPTY)])
    found = (verify if rows else verify_files)(tmp_path / "out", dialect, masks=[("a", LABELLED), ("b", WHOLE)])
    assert (found.void_only, found.compared) == (1, 2)


def test_the_verb_warns_of_masks_that_lose_all_they_hold(tmp_path, capsys):
    (tmp_path / "masks").mkdir()
    for name, mask in (("a", HALF), ("b", LABELLED)):
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    for name in ("kaggle", "png"):
        assert main(["submit", str(tmp_path / "masks"), "--out", str(tmp_path / name), "--dialect", name]) == 0
        assert "warning: 1 of 2 masks hold only background and 255, which means void" in capsys.readouterr().err
        assert main(["submit", str(tmp_path / "masks"), "--verify", str(tmp_path / name), "--dialect", name]) == 0
        assert "warning: 1 of 2 masks hold only background and 255, which means void" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["kaggle", "png", "png-binary"])
def test_masks_of_nothing_and_some_void_are_submitted_where_255_is_said_to_be_void(tmp_path, capsys, name):
    (tmp_path / "masks").mkdir()
    for image, mask in (("a", HALF), ("b", EMPTY)):
        Image.fromarray(mask).save(tmp_path / "masks" / f"{image}.png")
    line = ["submit", str(tmp_path / "masks"), "--dialect", name]
    written = tmp_path / "written"
    for action in ("--out", "--verify"):
        assert main([*line, action, str(written)]) == 1
        assert "; if it is void, and no image has an object, --allow-empty" in capsys.readouterr().err
        assert main([*line, action, str(written), "--allow-empty"]) == 0
        assert "every pixel of 2 images" in capsys.readouterr().out
    if name == "kaggle":
        assert written.read_text().splitlines()[1:] == ["a,", "b,"]
    else:
        assert not any(np.asarray(Image.open(path)).any() for path in written.iterdir())
