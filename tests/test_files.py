"""Lists of files, and results that appear whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from visionapps.errors import DataError, OutputError
from visionapps.files import list_files, output_error, refuse_existing, refuse_sources, whole_output


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


class TestListFiles:
    def test_gives_the_wanted_suffixes_in_any_case_sorted_without_hidden_ones(self, tmp_path):
        for name in ("b.PNG", "a.jpg", "c.tif", "notes.txt", ".hidden.png", "d.jpeg"):
            (tmp_path / name).touch()
        (tmp_path / "folder").mkdir()
        assert [p.name for p in list_files(tmp_path)] == ["a.jpg", "b.PNG", "c.tif", "d.jpeg"]
        assert [p.name for p in list_files(tmp_path, (".png",))] == ["b.PNG"]

    def test_says_what_is_wrong_with_the_folder(self, tmp_path):
        with pytest.raises(DataError, match=r"none: no such folder; check the path \(relative to .+\)"):
            list_files(tmp_path / "none")
        (tmp_path / "file.png").touch()
        with pytest.raises(DataError, match=r"file\.png: is a file, but a folder of \.png/\.tif files was expected"):
            list_files(tmp_path / "file.png", (".png", ".tif"))
        with pytest.raises(DataError, match=r"the folder holds no \.tif file; check the path"):
            list_files(tmp_path, (".tif",))


class TestRefuseSources:
    def test_a_result_may_not_replace_what_it_is_made_from(self, tmp_path):
        (tmp_path / "data" / "masks").mkdir(parents=True)
        (tmp_path / "link").symlink_to(tmp_path / "data")
        masks = tmp_path / "data" / "masks"
        for place in ("data/masks", "data", "link", "link/masks", "data/../data/masks"):
            with pytest.raises(OutputError, match=r"masks is read to make the result, which would replace it; choose"):
                refuse_sources(tmp_path / place, [None, masks])

    def test_a_place_beside_or_inside_the_sources_is_free(self, tmp_path):
        (tmp_path / "masks").mkdir()
        (tmp_path / "masks2").mkdir()
        for place in ("masks/out.csv", "masks2", "mask"):
            refuse_sources(tmp_path / place, [tmp_path / "masks", None])


class TestWholeOutput:
    def test_a_file_takes_its_name_only_at_the_end(self, tmp_path):
        path = tmp_path / "deep" / "map.tif"
        with whole_output(path) as temporary:
            assert temporary.parent == path.parent
            assert temporary.suffix == ".tif"
            temporary.write_text("new")
            assert not path.exists()
        assert path.read_text() == "new"
        assert names(path.parent) == ["map.tif"]

    def test_a_folder_takes_its_name_only_at_the_end(self, tmp_path):
        with whole_output(tmp_path / "bundle") as temporary:
            temporary.mkdir()
            (temporary / "card.json").write_text("{}")
        assert names(tmp_path) == ["bundle"]
        assert names(tmp_path / "bundle") == ["card.json"]

    @pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), DataError("y")])
    @pytest.mark.parametrize("kind", ["file", "folder"])
    def test_any_error_leaves_the_old_result_and_nothing_else(self, tmp_path, error, kind):
        path = tmp_path / "result"
        path.write_text("old")

        def work() -> None:
            with whole_output(path, overwrite=True) as temporary:
                if kind == "folder":
                    temporary.mkdir()
                    (temporary / "half").write_text("half")
                else:
                    temporary.write_text("half")
                raise error

        with pytest.raises(type(error)):
            work()
        assert names(tmp_path) == ["result"]
        assert path.read_text() == "old"

    def test_what_stands_there_is_refused_before_any_work(self, tmp_path):
        path = tmp_path / "result"
        path.write_text("old")
        with (
            pytest.raises(OutputError, match=r"result: exists already; choose another output, or .* --overwrite"),
            whole_output(path),
        ):
            pytest.fail("the body must not run")
        assert path.read_text() == "old"

    def test_a_folder_is_never_emptied_for_a_single_file(self, tmp_path):
        (tmp_path / "photo.jpg").touch()

        def write() -> None:
            with whole_output(tmp_path, overwrite=True) as temporary:
                temporary.write_text("a submission, say")

        with pytest.raises(OutputError, match="is a folder, but the result is a file; give a file name inside it"):
            write()
        assert names(tmp_path) == ["photo.jpg"]
        assert not list(tmp_path.parent.glob(".*part*"))

    def test_overwriting_replaces_files_and_folders_with_content(self, tmp_path):
        for name in ("file", "folder"):
            if name == "folder":
                (tmp_path / name).mkdir()
                (tmp_path / name / "old").touch()
            else:
                (tmp_path / name).write_text("old")
            with whole_output(tmp_path / name, overwrite=True) as temporary:
                temporary.mkdir()
                (temporary / "new").touch()
            assert names(tmp_path / name) == ["new"]

    @pytest.mark.parametrize(
        ("number", "message"),
        [
            (errno.ENOSPC, "no space left on the device; free some, or choose another output folder"),
            (errno.EDQUOT, "no space left on the device"),
            (errno.EACCES, "writing is not permitted here; choose another output folder"),
            (errno.EROFS, "writing is not permitted here"),
            (errno.EIO, f"cannot be written ({os.strerror(errno.EIO)})"),
        ],
    )
    def test_a_disk_that_refuses_becomes_one_clear_line(self, tmp_path, number, message):
        def write() -> None:
            with whole_output(tmp_path / "map.tif") as temporary:
                temporary.write_text("half")
                raise OSError(number, os.strerror(number))

        with pytest.raises(OutputError) as caught:
            write()
        assert str(caught.value).startswith(f"{tmp_path / 'map.tif'}: {message}")
        assert names(tmp_path) == []

    def test_a_parent_that_is_a_file_becomes_one_clear_line(self, tmp_path):
        (tmp_path / "file").touch()
        with (
            pytest.raises(OutputError, match=r"map\.tif: cannot be written"),
            whole_output(tmp_path / "file" / "map.tif"),
        ):
            pytest.fail("the body must not run")


def test_an_empty_folder_may_be_filled_without_asking(tmp_path):
    refuse_existing(tmp_path, overwrite=False)
    refuse_existing(tmp_path / "none", overwrite=False)
    (tmp_path / "x").touch()
    with pytest.raises(OutputError, match="exists already"):
        refuse_existing(tmp_path, overwrite=False)
    refuse_existing(tmp_path, overwrite=True)


def test_an_error_without_a_number_keeps_its_text():
    assert str(output_error(Path("a.tif"), OSError("driver failed"))) == "a.tif: cannot be written (driver failed)"
