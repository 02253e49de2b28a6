"""What a model remembers of its training photos: the same files, and pictures that look like them."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from visionapps.data.dataset import Dataset, Split
from visionapps.data.doctor import examine
from visionapps.data.fake import write_photos
from visionapps.data.likeness import SIDE, thumbnail
from visionapps.data.seen import Seen, content, joined
from visionapps.errors import DataError


def picture(seed: int) -> np.ndarray:
    """(64, 64, 3) blotches, unlike any other seed's."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC))


def seen_of(*seeds: int) -> Seen:
    return Seen.from_parts([bytes([s]) * 16 for s in seeds], [thumbnail(picture(s)) for s in seeds])


def test_the_same_content_is_known_and_a_turned_copy_is_known_by_its_likeness():
    asked = np.stack([thumbnail(picture(9)), thumbnail(np.rot90(picture(2))), thumbnail(picture(8))])
    found = seen_of(1, 2, 3).recognise([bytes([3]) * 16, None, b"x" * 16], asked)
    assert [(f.number, f.likeness is None) for f in found] == [(0, True), (1, False)]
    assert found[1].likeness > 0.95


def test_a_flat_picture_is_like_nothing_and_nobody_knows_what_nobody_saw():
    assert seen_of(1).recognise([None], np.zeros((1, SIDE, SIDE), np.float32)) == []
    empty = Seen.from_parts([], [])
    assert len(empty) == 0
    assert empty.recognise([b"1" * 16], thumbnail(picture(1))[None]) == []
    assert seen_of(1).recognise([], np.zeros((0, SIDE, SIDE), np.float32)) == []


def test_what_two_saw_together_holds_each_photo_once():
    both = seen_of(1, 2).joined(seen_of(2, 3))
    np.testing.assert_array_equal(both.digests[:, 0], [1, 2, 3])
    np.testing.assert_array_equal(both.pictures[2], np.rint(thumbnail(picture(3))).ravel())
    assert len(seen_of(4).joined(Seen.from_parts([], []))) == 1
    assert len(joined([seen_of(1, 2), seen_of(2), seen_of(5)])) == 3
    assert joined([seen_of(1), None]) is None  # what one does not know, nobody knows
    assert joined([]) is None


def test_the_digest_is_the_beginning_of_the_sha_256_of_the_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert content(tmp_path / "a") == hashlib.sha256(b"abc").digest()[:16]
    with pytest.raises(DataError, match=r"b: cannot be read \(No such file or directory\); check the path"):
        content(tmp_path / "b")


def test_training_photos_are_remembered_by_their_files_whether_the_cache_knows_their_digest_or_not(tmp_path):
    folders = write_photos(tmp_path, 8, rng=np.random.default_rng(0))
    dataset = Dataset(
        str(folders.images),
        str(folders.masks),
        ("a", "b", "c"),
        split=Split(group="site.", val_groups=("site2",)),
        cache=str(tmp_path / "cache"),
    )
    train = examine(dataset).train
    seen = Seen.of(train)
    files = sorted(folders.images.glob("site1_*"))
    assert {row.tobytes() for row in seen.digests} == {content(path) for path in files}
    assert len(seen) == 4
    for entry in (tmp_path / "cache").glob("*/entry.json"):  # as a version wrote them that knew no digests
        entry.write_text(entry.read_text().replace('"digest"', '"other"'))
    np.testing.assert_array_equal(Seen.of(train).digests, seen.digests)


def test_blocks_of_one_photo_are_one_photo(tmp_path):
    folders = write_photos(tmp_path, 1, size=(128, 192), rng=np.random.default_rng(0))
    dataset = Dataset(
        str(folders.images),
        str(folders.masks),
        ("a", "b", "c"),
        split=Split(block_px=64, val_fraction=0.3),
        cache=str(tmp_path / "cache"),
    )
    assert len(Seen.of(examine(dataset).train)) == 1


def test_it_is_written_without_pickle_and_comes_back(tmp_path):
    seen = seen_of(5, 6)
    seen.save(tmp_path / "seen.npz")
    back = Seen.load(tmp_path / "seen.npz")
    np.testing.assert_array_equal(back.digests, seen.digests)
    np.testing.assert_array_equal(back.pictures, seen.pictures)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"nothing", lambda b: b""])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "seen.npz"
    seen_of(5).save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"seen\.npz: damaged .*export the bundle anew"):
        Seen.load(path)


def test_arrays_of_another_kind_are_refused():
    with pytest.raises(DataError, match=r"x: the list of training photos has no 'pictures'; export"):
        Seen.from_arrays({"digests": np.zeros((1, 16), np.uint8)}, "x")
    with pytest.raises(DataError, match=r"x: pictures of training photos are \(1, 9\) uint8, expected \(1, 256\)"):
        Seen.from_arrays({"digests": np.zeros((1, 16), np.uint8), "pictures": np.zeros((1, 9), np.uint8)}, "x")
