"""The decoded cache: windows equal slices, counts equal loops, and room is made for the right entries."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from visionapps.data.store import CELL, Entry, Finding, Photo, Store, count_cells, photo_key
from visionapps.errors import ConfigError, DataError
from visionapps.windows import Window

BLANK = Entry("", 100, 150, 3, "uint16", (0,) * 3, (0.5, 1.0), (Finding("rotated", "look"),))


def arrays(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 2, 255], (100, 150)).astype(np.uint8)
    return rng.integers(0, 4096, (100, 150, 3), dtype=np.uint16), labels


def test_what_was_put_is_found_again(tmp_path):
    image, labels = arrays()
    put = Store(tmp_path / "cache", 1).put("k", BLANK, image, labels)
    assert put.class_pixels == tuple(int((labels == k).sum()) for k in range(3))
    assert Store(tmp_path / "cache", 1).find("k") == put
    assert Store(tmp_path / "cache", 1).find("other") is None
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["k"]


def test_findings_alone_are_stored_too(tmp_path):
    store = Store(tmp_path, 1)
    put = store.put("k", BLANK)
    assert put.folder == ""
    assert store.find("k") == put


def test_windows_of_a_photo_are_slices_of_its_arrays_also_in_another_process(tmp_path):
    image, labels = arrays()
    entry = Store(tmp_path, 1).put("k", BLANK, image, labels)
    photo = Photo("a", "g", Window(64, 64, 36, 80), (), "a.jpg", entry.folder)
    assert len(pickle.dumps(photo)) < 1000
    copy = pickle.loads(pickle.dumps(photo))
    window = Window(3, 5, 20, 30)
    np.testing.assert_array_equal(copy.image(window), image[67:87, 69:99])
    np.testing.assert_array_equal(copy.labels(window), labels[67:87, 69:99])
    assert copy.image(window).flags.writeable
    assert copy.size == (36, 80)
    for outside in (Window(-1, 0, 5, 5), Window(30, 0, 7, 5), Window(0, 76, 5, 5)):
        with pytest.raises(ConfigError, match="is not inside the photo of 36 x 80 px"):
            copy.image(outside)


def test_presence_counts_the_labels_of_each_cell_of_the_item(tmp_path):
    image, labels = arrays()
    entry = Store(tmp_path, 1).put("k", BLANK, image, labels)
    photo = Photo("a", "g", Window(0, 64, 100, 86), (), "a.jpg", entry.folder)
    part = labels[:, 64:]
    expected = [[[(part[r : r + CELL, c : c + CELL] == k).sum() for k in range(3)] for c in (0, 64)] for r in (0, 64)]
    assert photo.presence.tolist() == expected


def test_a_full_cell_of_one_class_does_not_overflow():
    assert count_cells(np.full((64, 64), 4, np.uint8), 5).tolist() == [[[0, 0, 0, 0, 4096]]]


def test_the_key_changes_with_file_and_settings(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"1")
    os.utime(path, (1, 1))
    keys = {photo_key(path, None, {"a": 1}), photo_key(path, None, {"a": 2}), photo_key(path, path, {"a": 1})}
    os.utime(path, (2, 2))
    keys.add(photo_key(path, None, {"a": 1}))
    path.write_bytes(b"22")
    os.utime(path, (1, 1))
    keys.add(photo_key(path, None, {"a": 1}))
    assert len(keys) == 5


def filled(tmp_path: Path, limit_gb: float = 1) -> tuple[Store, int]:
    """Three entries, "a" used longest ago; and the bytes of one."""
    store = Store(tmp_path / "cache", limit_gb)
    for age, key in enumerate("cba"):
        store.put(key, BLANK, *arrays(age))
        os.utime(store.folder / key / "entry.json", (1000 - age, 1000 - age))
    return store, sum(f.stat().st_size for f in (store.folder / "a").iterdir())


def test_room_is_made_from_the_least_recently_used_entries_of_others(tmp_path):
    store, size = filled(tmp_path)
    tight = Store(store.folder, 3.5 * size / 1e9)
    assert tight.make_room(size // 4, {"a"}) == 0
    assert tight.make_room(size, {"a"}) == 1
    assert sorted(p.name for p in store.folder.iterdir()) == ["a", "c"]


def test_finding_an_entry_keeps_it_from_being_next(tmp_path):
    store, size = filled(tmp_path)
    store.find("a")
    Store(store.folder, 3.5 * size / 1e9).make_room(size, set())
    assert sorted(p.name for p in store.folder.iterdir()) == ["a", "c"]


def test_a_dataset_that_cannot_fit_is_refused_with_its_size(tmp_path):
    store, _ = filled(tmp_path)
    with pytest.raises(ConfigError, match=r"need 5\.00 GB, but cache_gb is 1; raise cache_gb, set resize"):
        store.make_room(int(5e9), set())
    assert len(list(store.folder.iterdir())) == 3


def test_what_is_not_an_entry_is_never_removed(tmp_path):
    store, size = filled(tmp_path)
    (store.folder / "mine").mkdir()
    (store.folder / "mine" / "letter.txt").write_text("dear")
    Store(store.folder, 1.5 * size / 1e9).make_room(size, set())
    assert [p.name for p in store.folder.iterdir()] == ["mine"]


def test_the_second_of_two_processes_that_store_the_same_photo_keeps_the_first(tmp_path):
    store = Store(tmp_path, 1)
    store.put("k", BLANK, *arrays())
    stamp = (tmp_path / "k" / "image.npy").stat().st_ino
    store.put("k", BLANK, *arrays())
    assert (tmp_path / "k" / "image.npy").stat().st_ino == stamp
    assert [p.name for p in tmp_path.iterdir()] == ["k"]


def test_ruins_of_an_entry_are_replaced(tmp_path):
    store = Store(tmp_path, 1)
    store.put("k", BLANK, *arrays())
    (tmp_path / "k" / "image.npy").unlink()
    assert store.find("k") is None
    assert store.put("k", BLANK, *arrays()) == store.find("k")


def test_an_entry_removed_under_a_running_training_says_so(tmp_path):
    photo = Photo("a", "g", Window(0, 0, 9, 9), (), "a.jpg", str(tmp_path / "gone"))
    with pytest.raises(DataError, match="removed by another run that needed the room; raise cache_gb"):
        photo.image(Window(0, 0, 9, 9))


def test_a_moved_cache_is_found_at_its_new_place(tmp_path):
    put = Store(tmp_path / "old", 1).put("k", BLANK, *arrays())
    (tmp_path / "old").rename(tmp_path / "new")
    assert Store(tmp_path / "new", 1).find("k") == replace(put, folder=str(tmp_path / "new" / "k"))
