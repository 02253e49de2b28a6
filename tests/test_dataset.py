"""Pairing of images and masks, and settings that cannot work."""

from pathlib import Path

import pytest

from visionapps.data.dataset import Dataset, Pair, Policies, Split, find_pairs
from visionapps.data.labels import ClassDef
from visionapps.errors import ConfigError, DataError


def touch(folder: Path, *names: str) -> str:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return str(folder)


def test_images_and_masks_pair_by_stem_whatever_their_suffix(tmp_path):
    images, masks = touch(tmp_path / "i", "b.jpg", "a.TIF", "notes.txt"), touch(tmp_path / "m", "a.png", "b.tif")
    pairs, problems = find_pairs(Dataset(images, masks, ("x",)))
    assert pairs == [
        Pair("a", tmp_path / "i" / "a.TIF", tmp_path / "m" / "a.png"),
        Pair("b", tmp_path / "i" / "b.jpg", tmp_path / "m" / "b.tif"),
    ]
    assert problems == []


def test_both_kinds_of_missing_partners_are_reported_with_their_policy(tmp_path):
    images, masks = touch(tmp_path / "i", "a.jpg", "b.jpg"), touch(tmp_path / "m", "a.png", "c.png")
    pairs, problems = find_pairs(Dataset(images, masks, ("x",), policies=Policies(missing_image="drop")))
    assert [p.name for p in pairs] == ["a"]
    assert [(p.kind, p.action, Path(p.file).name) for p in problems] == [
        ("missing_mask", "error", "b.jpg"),
        ("missing_image", "dropped", "c.png"),
    ]
    assert problems[0].message.endswith("m/b.*; add it, or set policies.missing_mask: drop")


def test_masks_beside_their_images_pair_by_suffix(tmp_path):
    folder = touch(tmp_path / "f", "a.jpg", "a_mask.png", "b.png", "b_mask.png")
    pairs, problems = find_pairs(Dataset(folder, folder, ("x",), mask_suffix="_mask"))
    assert [(p.name, p.image.name, p.mask and p.mask.name) for p in pairs] == [
        ("a", "a.jpg", "a_mask.png"),
        ("b", "b.png", "b_mask.png"),
    ]
    assert problems == []


def test_a_name_that_occurs_twice_is_an_error(tmp_path):
    images, masks = touch(tmp_path / "i", "a.jpg", "a.png"), touch(tmp_path / "m", "a.png")
    pairs, problems = find_pairs(Dataset(images, masks, ("x",)))
    assert len(pairs) == 1
    assert [(p.kind, p.action) for p in problems] == [("same_name", "error")]
    assert "a.png: a.jpg has the same name" in problems[0].message


def test_when_nothing_matches_the_suffix_is_suggested(tmp_path):
    images = touch(tmp_path / "i", "a.jpg", "b.jpg")
    with pytest.raises(DataError, match="no mask has the name of its image; set mask_suffix: '_lab'"):
        find_pairs(Dataset(images, touch(tmp_path / "m", "a_lab.png", "b_lab.png"), ("x",)))
    with pytest.raises(DataError, match="such as a and q"):
        find_pairs(Dataset(images, touch(tmp_path / "n", "q.png"), ("x",)))


def test_missing_and_empty_folders_are_named(tmp_path):
    images = touch(tmp_path / "i", "a.jpg")
    with pytest.raises(DataError, match="none: no such folder"):
        find_pairs(Dataset(images, str(tmp_path / "none"), ("x",)))
    with pytest.raises(DataError, match="empty: the folder holds no"):
        find_pairs(Dataset(touch(tmp_path / "empty"), images, ("x",)))


def test_lists_as_yaml_brings_them_become_tuples_and_names_become_classes():
    dataset = Dataset("i", "m", ["land", ClassDef("sea", [7, 8])], void_ids=[255], resize=[4, 5])
    assert dataset.resize == (4, 5)
    assert dataset.coding().ids == ((0,), (7, 8))
    assert dataset.coding().labels.names == ("land", "sea")
    assert hash(dataset) == hash(Dataset("i", "m", ("land", ClassDef("sea", (7, 8))), void_ids=(255,), resize=(4, 5)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Policies(soft_mask="mend"), "policies.soft_mask: 'mend' is no choice; write one of error, fix, drop"),
        (lambda: Policies(corrupt="fix"), "policies.corrupt: 'fix' is no choice; write one of error, drop"),
        (lambda: Split(group="a", block_px=64), "group and block_px are two ways"),
        (lambda: Split(val_fraction=1.5), "1.5 is not in 0..1"),
        (lambda: Split(block_px=100), "100 is not a multiple of 64"),
        (lambda: Split(block_m=0), "must be positive"),
        (lambda: Dataset("i", "m", ("x",), resize=(0, 5)), "at least 1 pixel"),
        (lambda: Dataset("i", "m", ("x",), cache_gb=0), "cache_gb: 0 must be positive"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_the_cache_lives_in_the_users_cache_folder_unless_named(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert Dataset("i", "m", ("x",)).cache_folder() == Path("/somewhere/visionapps/photos")
    assert Dataset("i", "m", ("x",), cache="here").cache_folder() == Path("here")
