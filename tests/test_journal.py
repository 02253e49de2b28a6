"""Finished bands on disk: any order in, the same bands out, whole or not at all, for one run at a time."""

import itertools
import logging
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visionapps.errors import OutputError
from visionapps.inference.journal import Journal, left_by_a_kill
from visionapps.inference.products import Band
from visionapps.windows import Window

IDENTITY = {"source": {"path": "a.tif", "size": 12}, "tile": [512, 512], "precision": "fp32"}
CUTS = (0, 64, 100, 228, 300)  # the bands' rows


def band_of(index: int, planes: int = 2, width: int = 90) -> Band:
    begin, end = CUTS[index], CUTS[index + 1]
    pixels = np.random.default_rng(index).integers(0, 256, (planes, end - begin, width), dtype=np.uint8)
    return Band(Window(begin, 0, end - begin, width), pixels)


def assert_same(found: Band, expected: Band) -> None:
    assert found.window == expected.window
    assert found.planes.dtype == np.uint8
    assert np.array_equal(found.planes, expected.planes)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_bands_come_back_in_order_whatever_the_order_they_came_in(tmp_path: Path, order: tuple[int, ...]) -> None:
    with Journal(tmp_path / "j", IDENTITY) as journal:
        for index in order:
            journal.add(band_of(index))
        journal.add(band_of(2))  # a second time, as from a worker that was thought lost
        for index, band in enumerate(journal.replay()):
            assert_same(band, band_of(index))
    with Journal(tmp_path / "j", IDENTITY) as journal:
        assert len(journal) == 4
        assert journal.missing(300) == []
        for index, band in enumerate(journal.replay()):
            assert_same(band, band_of(index))


def test_planes_that_lie_scattered_in_memory_are_kept_as_they_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 100, 3), dtype=np.uint8).transpose(2, 0, 1)[:, ::2, 5:]
    with Journal(tmp_path / "j", IDENTITY) as journal:
        journal.add(Band(Window(0, 0, *pixels.shape[1:]), pixels))
        assert np.array_equal(journal.read(0).planes, pixels)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=8))
def test_missing_rows_are_those_that_no_band_covers(
    tmp_path_factory: pytest.TempPathFactory, bands: list[tuple[int, bool]]
) -> None:
    covered: list[bool] = []
    with Journal(tmp_path_factory.mktemp("missing") / "j", IDENTITY) as journal:
        for height, there in bands:
            if there:
                journal.add(Band(Window(len(covered), 0, height, 3), np.zeros((1, height, 3), np.uint8)))
            covered += [there] * height
        missing = journal.missing(len(covered))
        journal.remove()
    assert [row for begin, end in missing for row in range(begin, end)] == [
        row for row, there in enumerate(covered) if not there
    ]
    assert all(left[1] < right[0] for left, right in itertools.pairwise(missing)), "joined where they touch"


@pytest.mark.parametrize(
    ("identity", "said"),
    [
        ({**IDENTITY, "precision": "bf16"}, 'precision was "fp32", is now "bf16"'),
        ({**IDENTITY, "source": {"path": "a.tif", "size": 13}}, "source.size was 12, is now 13"),
        ({**IDENTITY, "tile": [512, 256]}, "tile was [512, 512], is now [512, 256]"),
        ({**IDENTITY, "views": None}, "views was not there, is now null"),
        ({k: v for k, v in IDENTITY.items() if k != "precision"}, 'precision was "fp32", is now not there'),
        ({**IDENTITY, "tile": "x" * 80}, 'is now "' + "x" * 56 + "..."),
    ],
)
def test_a_journal_of_other_settings_is_refused_by_the_first_that_differs(
    tmp_path: Path, identity: dict[str, object], said: str
) -> None:
    with Journal(tmp_path / "j", IDENTITY) as journal:
        journal.add(band_of(0))
    with pytest.raises(OutputError) as refused:
        Journal(tmp_path / "j", identity)
    text = str(refused.value)
    assert text.startswith(f"{tmp_path / 'j'}: an unfinished map of other settings is kept here (")
    assert said in text
    assert text.endswith("use the same settings to continue it, or begin anew with --overwrite")
    with Journal(tmp_path / "j", IDENTITY) as journal:
        assert len(journal) == 1, "the refusal changed nothing"
    with Journal(tmp_path / "j", identity, overwrite=True) as journal:
        assert len(journal) == 0
    with Journal(tmp_path / "j", IDENTITY) as journal:
        assert len(journal) == 0, "begun anew"


def test_replacing_maps_does_not_throw_away_bands_of_the_same_settings(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", IDENTITY) as journal:
        journal.add(band_of(0))
    again = {**IDENTITY, "tile": (512, 512)}  # JSON has no tuples
    with Journal(tmp_path / "j", again, overwrite=True) as journal:
        assert_same(journal.read(0), band_of(0))


def test_a_damaged_band_is_dropped_with_a_warning_wherever_the_damage_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Journal(tmp_path / "j", IDENTITY) as journal:
        for index in range(4):
            journal.add(band_of(index))
    path = tmp_path / "j" / "0000000064.band"
    whole = path.read_bytes()
    places = [*range(40), len(whole) // 2, *range(len(whole) - 5, len(whole))]
    damaged = [whole[:p] + bytes([whole[p] ^ 16]) + whole[p + 1 :] for p in places]
    damaged += [b"", whole[:7], whole[:36], whole[:-1], whole + b"x", (tmp_path / "j" / "0000000100.band").read_bytes()]
    for content in damaged:
        path.write_bytes(content)
        caplog.clear()
        with caplog.at_level(logging.WARNING), Journal(tmp_path / "j", IDENTITY) as journal:
            assert journal.missing(300) == [(64, 100)], content[:40]
            assert f"{path}: dropped, " in caplog.text
            assert "its rows are drawn again" in caplog.text
            journal.add(band_of(1))
        assert path.read_bytes() == whole, "drawn again"


def test_a_band_that_is_damaged_while_it_waits_is_an_error_not_a_wrong_map(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", IDENTITY) as journal:
        journal.add(band_of(0))
        path = tmp_path / "j" / "0000000000.band"
        content = bytearray(path.read_bytes())
        content[60] ^= 1
        path.write_bytes(content)
        with pytest.raises(OutputError, match=r"0000000000.band: cannot be read back \(its checksum is wrong\)"):
            journal.read(0)


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", IDENTITY) as journal:
        journal.add(band_of(0))
    (tmp_path / "j" / "0000000064.band.part").write_bytes(b"half")
    (tmp_path / "j" / "files").mkdir()
    (tmp_path / "j" / "files" / "a.tif").write_bytes(b"half")
    with Journal(tmp_path / "j", IDENTITY):
        names = sorted(path.name for path in (tmp_path / "j").iterdir())
    assert names == ["0000000000.band", "identity.json", "lock"]


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]"])
def test_bands_whose_settings_nobody_knows_any_more_are_removed(tmp_path: Path, content: bytes | None) -> None:
    with Journal(tmp_path / "j", IDENTITY) as journal:
        journal.add(band_of(0))
    (tmp_path / "j" / "identity.json").unlink()
    if content is not None:
        (tmp_path / "j" / "identity.json").write_bytes(content)
    with Journal(tmp_path / "j", IDENTITY) as journal:
        assert len(journal) == 0


def test_two_runs_cannot_draw_one_scene_at_once(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", IDENTITY) as journal:
        for overwrite in (False, True):
            with pytest.raises(
                OutputError, match=rf"j: another run \(process {os.getpid()} on .+\) draws this scene just now"
            ):
                Journal(tmp_path / "j", IDENTITY, overwrite=overwrite)
        journal.add(band_of(0))
    with Journal(tmp_path / "j", IDENTITY) as journal:
        assert len(journal) == 1


def test_the_lock_of_a_killed_run_is_taken_over(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            journal = Journal(tmp_path / "j", IDENTITY)
            journal.add(band_of(0))
            os.write(writer, b"locked")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 6) == b"locked"
    with pytest.raises(OutputError, match=rf"another run \(process {child} on "):
        Journal(tmp_path / "j", IDENTITY)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with Journal(tmp_path / "j", IDENTITY) as journal:
        assert len(journal) == 1


def test_a_journal_that_is_done_or_has_no_band_leaves_nothing_behind(tmp_path: Path) -> None:
    with Journal(tmp_path / "deep" / "j", IDENTITY):
        pass
    assert list((tmp_path / "deep").iterdir()) == []
    journal = Journal(tmp_path / "j", IDENTITY)
    journal.add(band_of(0))
    journal.finishing(["a.tif"])
    assert left_by_a_kill(tmp_path / "j") == {"a.tif"}
    journal.remove()
    journal.close()
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert left_by_a_kill(tmp_path / "j") == frozenset()


def test_a_place_that_cannot_be_written_is_an_error_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"file/j: cannot be written \(Not a directory\)"):
        Journal(tmp_path / "file" / "j", IDENTITY)


def test_labels_take_little_room(tmp_path: Path) -> None:
    """A plain run-length code of 32 bits a run is the yardstick."""
    random.seed(3)
    labels = np.repeat(np.array([random.randrange(6) for _ in range(32 * 32)], np.uint8).reshape(32, 32), 16, 1)
    labels = labels.repeat(16, 0)
    with Journal(tmp_path / "j", IDENTITY) as journal:
        journal.add(Band(Window(0, 0, 512, 512), labels[None]))
        assert (tmp_path / "j" / "0000000000.band").stat().st_size < 512 * 32 * 4 / 10
