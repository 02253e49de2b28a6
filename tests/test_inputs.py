"""Inputs: what a person may name, and what is said when it is not there."""

from pathlib import Path

import pytest

from visionapps.errors import DataError
from visionapps.inference.inputs import Input, gdal_name, is_raster, list_inputs


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """A folder of empty files: only their names matter here."""
    for name in ("b.tif", "a.jpg", "notes.md", ".hidden.tif", "sub/c.JP2", "sub/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(inputs: list[Input], folder: Path) -> list[str]:
    return [str(Path(i.name).relative_to(folder)) for i in inputs]


def test_files_and_folders_come_in_the_order_given_and_folders_sorted(scenes: Path) -> None:
    found = list_inputs([str(scenes / "sub"), str(scenes), str(scenes / "b.tif")])
    assert names(found, scenes) == ["sub/c.JP2", "sub/d.png", "a.jpg", "b.tif", "b.tif"]
    assert [i.stem for i in found] == ["c", "d", "a", "b", "b"]
    assert [i.raster for i in found] == [True, False, False, True, True]
    assert found[0].path == scenes / "sub" / "c.JP2"


def test_a_list_is_relative_to_itself_and_may_name_folders_lists_and_addresses(scenes: Path) -> None:
    (scenes / "all.txt").write_text("\ufeff# flight of May\n\n  b.tif  \nsub\n@sub/more.lst\n", encoding="utf-8")
    (scenes / "sub" / "more.lst").write_text("../a.jpg\r\nhttps://host/x.tif?sig=1.2\r\n")
    for text in (str(scenes / "all.txt"), f"@{scenes / 'all.txt'}"):
        *found, last = list_inputs([text])
        assert [Path(i.name).resolve() for i in found] == [
            scenes / name for name in ("b.tif", "sub/c.JP2", "sub/d.png", "a.jpg")
        ]
        assert last == Input("/vsicurl/https://host/x.tif?sig=1.2", raster=True)
        assert last.stem == "x"
        assert last.path is None


@pytest.mark.parametrize(
    ("text", "name", "stem"),
    [
        ("s3://bucket/flights/one.tif", "/vsis3/bucket/flights/one.tif", "one"),
        ("HTTPS://host/one.jpg", "/vsicurl/https://host/one.jpg", "one"),
        ("gs://bucket/one.tif", "/vsigs/bucket/one.tif", "one"),
        ("/vsizip/scenes.zip/in/one.tif", "/vsizip/scenes.zip/in/one.tif", "one"),
        ("/vsicurl/http://host/one.two.tif", "/vsicurl/http://host/one.two.tif", "one.two"),
    ],
)
def test_addresses_are_spelt_as_gdal_does(text: str, name: str, stem: str) -> None:
    (found,) = list_inputs([text])
    assert found == Input(name, raster=True)
    assert found.stem == stem
    assert gdal_name(text) == name


def test_a_photo_with_a_world_file_is_a_raster(tmp_path: Path) -> None:
    for photo, world in (("a.jpg", "a.jgw"), ("b.JPG", "b.JGW"), ("c.png", "c.wld"), ("d.jpeg", "d.jpegw")):
        (tmp_path / photo).touch()
        assert not is_raster(tmp_path / photo)
        (tmp_path / world).touch()
        assert is_raster(tmp_path / photo)
    assert is_raster(tmp_path / "x.img")


def test_what_is_missing_empty_or_circular_is_named_with_its_place(scenes: Path) -> None:
    def message(text: str) -> str:
        with pytest.raises(DataError) as caught:
            list_inputs([text])
        return str(caught.value)

    assert message(str(scenes / "gone.tif")).startswith(f"{scenes}/gone.tif: no such file or folder; check the path")
    assert message(f"@{scenes}/gone.txt").startswith(f"{scenes}/gone.txt: no such list")
    assert message("ssh://host/a.tif") == (
        "ssh://host/a.tif: no address that can be read; known are http://, https://, ftp://, s3://, gs://, az://"
    )
    (scenes / "empty.txt").write_text("# nothing yet\n\n")
    assert message(str(scenes / "empty.txt")) == (
        f"{scenes}/empty.txt: the list is empty; one image, folder or list per line is expected"
    )
    (scenes / "bad.txt").write_text("b.tif\n\nno.tif\n")
    assert message(str(scenes / "bad.txt")).startswith(f"{scenes}/bad.txt: line 3: {scenes}/no.tif: no such file")
    (scenes / "round.txt").write_text("@other.txt\n")
    (scenes / "other.txt").write_text("a.jpg\nround.txt\n")
    assert message(str(scenes / "round.txt")) == (
        f"{scenes}/other.txt: line 2: {scenes}/round.txt: the list names itself; "
        "it must name images, folders or other lists"
    )
    (scenes / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    assert message(str(scenes / "bytes.txt")).startswith(
        f"{scenes}/bytes.txt: cannot be read as a list (it is no UTF-8"
    )
    (scenes / "none").mkdir()
    (scenes / "folder.txt").write_text("none\n")
    assert message(str(scenes / "folder.txt")).startswith(
        f"{scenes}/folder.txt: line 1: {scenes}/none: the folder holds no .jpg/.jpeg/"
    )
