"""The examination of whole datasets: each kind of problem alone, with each policy, and all at once."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionapps.data.dataset import Dataset, Policies, Split
from visionapps.data.doctor import Examination, examine
from visionapps.data.labels import ClassDef
from visionapps.errors import ConfigError, DataError
from visionapps.windows import Window

SIZE = (70, 90)


def scene(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W, 3) blotches of about ten pixels, unlike any other seed's."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC))


class Folder:
    """A dataset in the making: eight photos of random scenes, masks of random labels 0 and 1."""

    def __init__(self, root: Path, count: int = 8) -> None:
        self.root = root
        for name in ("images", "masks"):
            (root / name).mkdir(parents=True)
        for i in range(count):
            self.image(f"s{i}", scene(i))
            self.mask(f"s{i}", np.random.default_rng(i).integers(0, 2, SIZE, dtype=np.uint8))

    def image(self, name: str, pixels: np.ndarray) -> None:
        Image.fromarray(pixels).save(self.root / "images" / f"{name}.png")

    def mask(self, name: str, values: np.ndarray) -> None:
        Image.fromarray(values).save(self.root / "masks" / f"{name}.png")

    def dataset(self, split: Split | None = None, **policies: str) -> Dataset:
        return Dataset(
            str(self.root / "images"),
            str(self.root / "masks"),
            ("land", "sea"),
            split=split or Split(val_groups=("s6", "s7")),
            policies=Policies(**policies),  # type: ignore[arg-type]
            cache=str(self.root / "cache"),
        )


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def names(found: Examination) -> tuple[list[str], list[str]]:
    return [p.name for p in found.train], [p.name for p in found.val]


def whole(photo):
    return Window(0, 0, *photo.size)


def test_a_sound_dataset_has_no_problems_and_the_pixels_of_its_files(folder):
    found = examine(folder.dataset())
    assert found.problems == ()
    assert names(found) == ([f"s{i}" for i in range(6)], ["s6", "s7"])
    found.raise_on_errors()
    masks = [np.asarray(Image.open(folder.root / "masks" / f"s{i}.png")) for i in range(8)]
    for i, photo in enumerate((*found.train, *found.val)):
        np.testing.assert_array_equal(photo.image(whole(photo)), scene(i))
        np.testing.assert_array_equal(photo.labels(whole(photo)), masks[i])
    assert found.class_pixels == {
        "train": tuple(sum(int((m == k).sum()) for m in masks[:6]) for k in (0, 1)),
        "val": tuple(sum(int((m == k).sum()) for m in masks[6:]) for k in (0, 1)),
    }
    assert (found.bands, found.dtype) == (3, "uint8")


def spoil(folder: Folder, kind: str) -> None:
    """Give photo s2 one problem."""
    masks = folder.root / "masks"
    if kind == "missing_mask":
        (masks / "s2.png").unlink()
    elif kind == "missing_image":
        (folder.root / "images" / "s2.png").unlink()
    elif kind == "corrupt":
        content = (folder.root / "images" / "s2.png").read_bytes()
        (folder.root / "images" / "s2.png").write_bytes(content[: len(content) // 2])
    elif kind == "size_mismatch":
        folder.mask("s2", np.ones((35, 45), np.uint8))
    elif kind == "unknown_values":
        folder.mask("s2", np.full(SIZE, 9, np.uint8))
    elif kind == "soft_mask":
        pixels = Image.fromarray(np.tile(np.uint8([0, 1]), (70, 45)))
        (masks / "s2.png").unlink()
        pixels.save(masks / "s2.jpg")
    elif kind == "bands":
        folder.image("s2", scene(2)[..., 0])
    elif kind == "near_duplicate":
        folder.image("s2", scene(7))


KINDS = (
    ("missing_mask", "no mask .*s2"),
    ("missing_image", "no image .*s2"),
    ("corrupt", r"s2\.png: cannot be decoded, truncated or corrupt"),
    ("size_mismatch", r"s2\.png: the mask has 35 x 45 px \(H x W\), but its image 70 x 90"),
    ("unknown_values", r"s2\.png: the mask has values that stand for no class: 9 \(6300 px\), 100.00%"),
    ("soft_mask", r"s2\.jpg: the mask is a JPEG"),
    ("bands", r"s2\.png: 1 bands of uint8, but most photos have 3 of uint8"),
    ("near_duplicate", r"s2\.png: trains, but looks like s7\.png \(likeness 1\.00\)"),
)


@pytest.mark.parametrize(("kind", "message"), KINDS)
def test_each_problem_is_an_error_by_default_and_leaves_by_policy(folder, kind, message):
    spoil(folder, kind)
    found = examine(folder.dataset())
    assert found.counts == {(kind, "error"): 1}
    with pytest.raises(DataError, match=rf"has 1 problem \(1 {kind}\); the first: .*{message}.*visionapps check"):
        found.raise_on_errors()
    found = examine(folder.dataset(**{kind: "drop"}))
    assert found.counts == {(kind, "dropped"): 1}
    assert names(found) == (["s0", "s1", "s3", "s4", "s5"], ["s6", "s7"])
    found.raise_on_errors()


def test_a_mask_of_another_size_is_mended_by_the_nearest_pixel(folder):
    small = np.random.default_rng(0).integers(0, 2, (35, 45), dtype=np.uint8)
    folder.mask("s2", small)
    found = examine(folder.dataset(size_mismatch="fix"))
    assert found.counts == {("size_mismatch", "fixed"): 1}
    np.testing.assert_array_equal(found.train[2].labels(whole(found.train[2])), np.kron(small, np.ones((2, 2))))


def test_unknown_values_are_mended_to_void(folder):
    folder.mask("s2", np.tile(np.uint8([0, 1, 9]), (70, 30)))
    found = examine(folder.dataset(unknown_values="fix"))
    assert found.counts == {("unknown_values", "fixed"): 1}
    assert found.train[2].labels(Window(0, 0, 1, 3)).tolist() == [[0, 1, 255]]
    assert found.train[2].class_pixels == (2100, 2100)


def test_a_soft_mask_is_mended_to_the_nearest_class(folder):
    ramp = np.tile(np.linspace(0, 255, 90).astype(np.uint8), (70, 1))
    for i in range(8):
        folder.mask(f"s{i}", ramp if i == 2 else np.full(SIZE, 255 * (i % 2), np.uint8))
    dataset = replace(folder.dataset(soft_mask="fix"), classes=(ClassDef("land", (0,)), ClassDef("sea", (255,))))
    found = examine(dataset)
    assert found.counts == {("soft_mask", "fixed"): 1}
    np.testing.assert_array_equal(found.train[2].labels(whole(found.train[2])), ramp > 127)


def test_what_cannot_be_mended_stays_an_error(folder):
    folder.mask("s2", scene(5))  # colours, though no class has one
    found = examine(folder.dataset(unknown_values="fix"))
    assert found.counts == {("unknown_values", "error"): 1}
    assert "no class has one" in found.problems[0].message


def test_all_problems_are_found_in_one_go(folder):
    for kind, photo in (("corrupt", "s0"), ("size_mismatch", "s1"), ("unknown_values", "s2")):
        spoil(folder, kind)
        for part in ("images", "masks"):
            (folder.root / part / "s2.png").rename(folder.root / part / f"bad_{photo}.png")
            source = folder.root / part / "s3.png"
            (folder.root / part / "s2.png").write_bytes(source.read_bytes())
    for part in ("images", "masks"):
        (folder.root / part / "s2.png").unlink()
    found = examine(folder.dataset())
    assert found.counts == {("corrupt", "error"): 1, ("size_mismatch", "error"): 1, ("unknown_values", "error"): 1}
    with pytest.raises(DataError, match="has 3 problems"):
        found.raise_on_errors()


def test_the_second_examination_decodes_nothing_and_finds_the_same(folder, monkeypatch):
    spoil(folder, "unknown_values")
    first = examine(folder.dataset())
    stamps = {p: p.stat().st_ino for p in (folder.root / "cache").rglob("*.*")}
    assert examine(folder.dataset()) == first
    assert {p: p.stat().st_ino for p in (folder.root / "cache").rglob("*.*")} == stamps


def test_a_repaired_file_is_seen_at_once(folder):
    spoil(folder, "unknown_values")
    assert examine(folder.dataset()).errors
    folder.mask("s2", np.zeros(SIZE, np.uint8))
    assert examine(folder.dataset()).problems == ()


@pytest.mark.parametrize("change", range(8))
def test_turned_and_mirrored_copies_are_near_duplicates(folder, change):
    copy = np.rot90(scene(7), change % 4)
    folder.image("s2", np.ascontiguousarray(copy[:, ::-1] if change > 3 else copy))
    folder.mask("s2", np.zeros(copy.shape[:2], np.uint8))
    assert examine(folder.dataset()).counts == {("near_duplicate", "error"): 1}


def test_near_duplicates_on_one_side_and_photos_without_a_scene_are_fine(folder):
    folder.image("s6", scene(7))
    folder.image("s2", np.full((*SIZE, 3), 80, np.uint8))
    folder.image("s7", np.full((*SIZE, 3), 81, np.uint8))
    assert examine(folder.dataset()).problems == ()


def test_classes_that_never_occur_or_on_one_side_only_are_reported(folder):
    for i in range(8):
        folder.mask(f"s{i}", np.full(SIZE, 2 if i == 7 else 0, np.uint8))
    found = examine(replace(folder.dataset(), classes=("land", "sea", "ice")))
    assert found.counts == {("unused_class", "warning"): 1, ("one_sided_class", "warning"): 1}
    texts = [p.message for p in found.problems]
    assert texts[0].startswith("class sea (ids 1) occurs in no mask")
    assert texts[1].startswith("class ice occurs in validation only, so it cannot be learned")


def test_a_mask_without_labels_is_reported_and_can_be_dropped(folder):
    folder.mask("s2", np.full(SIZE, 7, np.uint8))
    dataset = replace(folder.dataset(), void_ids=(7,))
    assert examine(dataset).counts == {("unlabelled", "warning"): 1}
    found = examine(replace(dataset, policies=Policies(unlabelled="drop")))
    assert found.counts == {("unlabelled", "dropped"): 1}
    assert "s2" not in names(found)[0]


def test_a_photo_that_exif_turns_is_pointed_out(folder):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(scene(2)).save(folder.root / "images" / "s2.png", exif=exif)
    found = examine(folder.dataset())
    assert found.counts == {("rotated", "warning"): 1}
    assert "orientation 3" in found.problems[0].message


def test_split_problems_are_reported_with_the_others(folder):
    spoil(folder, "unknown_values")
    assert examine(folder.dataset(Split(group="^s"))).counts == {("unknown_values", "error"): 1, ("split", "error"): 1}
    found = examine(folder.dataset(Split(group="^s[0-4]")))
    assert found.counts == {("unknown_values", "error"): 1, ("split", "error"): 3}


def test_blocks_become_items_with_their_own_pixels(folder):
    found = examine(folder.dataset(Split(block_px=64)))
    photos = (*found.train, *found.val)
    assert len(photos) == 8  # 70 x 90 px: 64 and a rest of less than half a block
    folder.image("s0", scene(0, (128, 200)))
    labels = np.random.default_rng(0).integers(0, 2, (128, 200), dtype=np.uint8)
    folder.mask("s0", labels)
    found = examine(folder.dataset(Split(block_px=64)))
    blocks = {p.name: p for p in (*found.train, *found.val) if p.source.endswith("s0.png")}
    assert sorted(blocks) == ["s0@0,0", "s0@0,128", "s0@0,64", "s0@64,0", "s0@64,128", "s0@64,64"]
    last = blocks["s0@64,128"]
    assert last.size == (64, 72)
    np.testing.assert_array_equal(last.labels(whole(last)), labels[64:, 128:])
    assert last.class_pixels == tuple(int((labels[64:, 128:] == k).sum()) for k in (0, 1))
    assert not {p.group for p in found.train} & {p.group for p in found.val}


def test_photos_are_resized_once_when_stored(folder):
    found = examine(replace(folder.dataset(), resize=(35, 45)))
    photo = found.train[0]
    assert photo.size == (35, 45)
    blocks = scene(0).reshape(35, 2, 45, 2, 3).astype(float).mean((1, 3))
    assert np.abs(photo.image(whole(photo)) - blocks).max() <= 0.5
    assert set(np.unique(photo.labels(whole(photo)))) == {0, 1}


def test_photos_without_masks_can_be_examined_too(folder):
    found = examine(replace(folder.dataset(), masks=None))
    assert found.problems == ()
    assert (found.train[0].labels(whole(found.train[0])) == 255).all()


def test_a_cache_that_is_too_small_is_refused_before_anything_is_written(folder):
    with pytest.raises(ConfigError, match=r"the decoded photos need 0\.00 GB, but cache_gb is 1e-06"):
        examine(replace(folder.dataset(), cache_gb=1e-6))
    assert not (folder.root / "cache").exists()


def test_the_report_is_plain_json(folder):
    spoil(folder, "unknown_values")
    report = json.loads(json.dumps(examine(folder.dataset()).to_dict()))
    assert report["splits"]["val"]["photos"] == ["s6", "s7"]
    assert report["splits"]["train"]["class_photos"] == {"land": 5, "sea": 5}
    assert report["counts"] == [{"kind": "unknown_values", "action": "error", "count": 1}]
    assert report["problems"][0]["file"].endswith("s2.png")


DUBAI = tuple(
    ClassDef(name, color=color)
    for name, color in (
        ("Building", "#3C1098"),
        ("Land", "#8429F6"),
        ("Road", "#6EC1E4"),
        ("Vegetation", "#FEDD3A"),
        ("Water", "#E2A929"),
        ("Unlabeled", "#9B9B9B"),
    )
)


def test_index_palette_and_colour_masks_of_dubai_are_the_same_labels(shared_data, tmp_path):
    (tmp_path / "images").mkdir()
    for path in (shared_data / "dubai" / "images").glob("tile[234]_*.jpg"):  # 2 and 4: palettes; 3: colours and void
        (tmp_path / "images" / path.name).symlink_to(path)
    dataset = Dataset(
        str(tmp_path / "images"),
        str(shared_data / "dubai" / "masks"),
        DUBAI,
        void_ids=(255,),
        void_colors=("#000000",),
        split=Split(group=r"tile\d+", val_groups=("tile2",)),
        policies=Policies(missing_image="drop"),
        cache=str(tmp_path / "cache"),
    )
    ids = examine(dataset)
    colours = examine(replace(dataset, masks=str(shared_data / "dubai" / "masks_rgb")))
    assert ids.counts == colours.counts == {("missing_image", "dropped"): 35}
    assert (len(ids.train), len(ids.val)) == (14, 7)
    for ours, theirs in zip(ids.train + ids.val, colours.train + colours.val, strict=True):
        np.testing.assert_array_equal(ours.labels(whole(ours)), theirs.labels(whole(theirs)))


def test_neighbouring_drone_frames_are_near_duplicates_unless_split_by_flight(shared_data, tmp_path):
    (tmp_path / "images").mkdir()
    for path in (shared_data / "vehicles" / "images").glob("[23]_*.jpg"):
        (tmp_path / "images" / path.name).symlink_to(path)
    dataset = Dataset(str(tmp_path / "images"), None, ("car",), cache=str(tmp_path / "cache"), resize=(160, 160))
    leaks = examine(dataset).counts
    assert leaks[("near_duplicate", "error")] > 50
    assert examine(replace(dataset, split=Split(group=r"^\d+"))).problems == ()
    dropped = examine(replace(dataset, policies=Policies(near_duplicate="drop")))
    assert dropped.counts == {("near_duplicate", "dropped"): leaks[("near_duplicate", "error")]}
