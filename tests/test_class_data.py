"""Datasets of photos with one class each: what is listed, what is wrong, how they are divided, what a network sees."""

import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from visionapps.data.cifar_files import CIFAR, find_cifar, read_batches
from visionapps.data.class_crops import ClassView, MiddleSquares, RandomSquares, middle_square, random_square
from visionapps.data.class_dataset import ClassDataset, ClassPhoto, ClassPolicies
from visionapps.data.class_doctor import examine_classes
from visionapps.data.class_listing import list_photos
from visionapps.data.colour_noise import ColourNoise, Colours, principal_colours
from visionapps.data.dataset import Split
from visionapps.data.fake_classes import KINDS, write_classes
from visionapps.data.images import resize_image
from visionapps.errors import ConfigError, DataError
from visionapps.structures import Frame
from visionapps.training.class_data import ClassificationData, with_noise


def noise(seed: int, size: tuple[int, int] = (20, 24)) -> np.ndarray:
    """Smooth enough to have a scene, and different for every seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


def save(path: Path, image: np.ndarray, form: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, form)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of twelve photos each."""
    for k, name in enumerate(("elm", "oak")):
        for i in range(12):
            save(tmp_path / "photos" / name / f"site{i // 3}_{i}.png", noise(100 * k + i))
    return tmp_path / "photos"


def dataset(folder: Path, **changes: object) -> ClassDataset:
    return ClassDataset(str(folder), **{"cache": str(folder.parent / "cache"), **changes})  # type: ignore[arg-type]


def test_folders_are_classes_and_every_class_gives_the_same_share_to_validation(folder: Path) -> None:
    found = examine_classes(dataset(folder, split=Split(val_fraction=0.15)))
    assert found.labels.names == ("elm", "oak")
    assert not found.problems
    assert (found.class_photos("train"), found.class_photos("val")) == ((10, 10), (2, 2))
    assert (found.bands, found.dtype) == (3, "uint8")
    for photo in (*found.train, *found.val):
        assert np.array_equal(photo.image(), np.asarray(Image.open(photo.source))), photo.name
        assert found.labels.names[photo.label] == photo.name.split("/")[0]
    again = examine_classes(dataset(folder, split=Split(val_fraction=0.15)))
    assert again.train == found.train


def test_groups_stay_on_one_side(folder: Path) -> None:
    found = examine_classes(dataset(folder, split=Split(group="site\\d", val_groups=("site2",))))
    assert {p.group for p in found.val} == {"site2"}
    assert {p.group for p in found.train} == {"site0", "site1", "site3"}
    assert len(found.val) == 6


def test_photos_are_decoded_once_and_again_when_a_file_changes(folder: Path) -> None:
    settings_ = dataset(folder)
    examine_classes(settings_)
    (kept,) = (folder.parent / "cache").iterdir()
    stamp = (kept / "pixels.bin").stat().st_mtime_ns
    examine_classes(settings_)
    assert (kept / "pixels.bin").stat().st_mtime_ns == stamp
    save(folder / "oak" / "site0_0.png", noise(999, (30, 30)))
    examine_classes(settings_)
    assert len(list((folder.parent / "cache").iterdir())) == 2


def test_large_photos_are_kept_smaller_or_not_at_all(folder: Path) -> None:
    small = examine_classes(dataset(folder, keep_px=10)).train[0]
    assert small.size == (10, 12)
    assert np.array_equal(small.image(), resize_image(np.asarray(Image.open(small.source)), (10, 12)))
    never = examine_classes(dataset(folder, keep_px=None)).train[0]
    assert never.store == ""
    assert np.array_equal(never.image(), np.asarray(Image.open(never.source)))
    with pytest.raises(
        ConfigError, match=r"1 of 24 decoded photos take 0.00 GB, but cache_gb is 1e-09; raise it, lower"
    ):
        examine_classes(dataset(folder, cache_gb=1e-9))


def test_a_separate_validation_may_not_have_classes_of_its_own(folder: Path, tmp_path: Path) -> None:
    save(tmp_path / "val" / "oak" / "a.png", noise(500))
    save(tmp_path / "val" / "ash" / "b.png", noise(501))
    found = examine_classes(dataset(folder, val=str(tmp_path / "val")))
    assert len(found.train) == 24
    assert [p.name for p in found.val] == ["oak/a"]
    (error,) = found.errors
    assert "b.png: class ash (1 photos) validates, but never trains; correct its name" in error.message
    (warning,) = [p for p in found.problems if p.kind == "one_sided_class"]
    assert "class elm trains only, so it cannot be judged" in warning.message
    with pytest.raises(DataError, match=r"the dataset has 1 problem \(1 unknown_class\); the first: .*ash"):
        found.raise_on_errors()
    policies = ClassPolicies(unknown_class="drop")
    assert not examine_classes(dataset(folder, val=str(tmp_path / "val"), policies=policies)).errors


def test_everything_that_is_wrong_is_found_and_named(folder: Path) -> None:
    whole = (folder / "oak" / "site0_0.png").read_bytes()
    (folder / "oak" / "cut.png").write_bytes(whole[: len(whole) // 2])
    save(folder / "oak" / "grey.png", noise(600)[..., 0])
    save(folder / "oak" / "named.jpg", noise(601), "PNG")
    save(folder / "oak" / "again.png", noise(101))  # that of oak/site0_1
    save(folder / "elm" / "stolen.png", noise(102))  # that of oak/site0_2
    save(folder / "beside.png", noise(602))
    (folder / "empty").mkdir()
    found = examine_classes(dataset(folder, split=Split(val_fraction=0)))
    texts = {p.kind: p.message for p in found.problems}
    assert "cut.png: cannot be decoded, truncated or corrupt" in texts["corrupt"]
    assert "grey.png: 1 bands of uint8, but most photos have 3 of uint8" in texts["bands"]
    assert "named.jpg: holds PNG, though its name says otherwise; rename it" in texts["wrong_suffix"]
    assert "site0_1.png: the very same photo is" in texts["repeated"]
    assert "again.png; remove one" in texts["repeated"]
    assert "of another class (elm, oak); keep the right one" in texts["contested"]
    assert "beside.png: lies beside the folders of classes" in texts["stray"]
    assert "class empty has no photo" in texts["empty_class"]
    actions = {p.kind: p.action for p in found.problems}
    assert {k for k, a in actions.items() if a == "error"} == {"corrupt", "bands", "contested", "empty_class"}


def test_policies_mend_or_leave_out(folder: Path) -> None:
    save(folder / "oak" / "grey.png", noise(600)[..., 0])
    save(folder / "elm" / "stolen.png", noise(102))
    policies = ClassPolicies(bands="fix", contested="drop")
    found = examine_classes(dataset(folder, split=Split(val_fraction=0), policies=policies))
    assert not found.errors
    names = {p.name for p in found.train}
    assert "oak/grey" in names
    assert not {"elm/stolen", "oak/site0_2"} & names
    grey = next(i for i, p in enumerate(found.train) if p.name == "oak/grey")
    sample = MiddleSquares(found.train, frame=Frame(16, 1.0), bands=3)[grey]
    assert torch.equal(sample.image[0], sample.image[2])
    with pytest.raises(ConfigError, match=r"policies.corrupt: 'fix' is no choice; write one of error, drop"):
        ClassPolicies(corrupt="fix")  # type: ignore[arg-type]


def test_copies_across_the_split_are_found_even_turned_ones(folder: Path, tmp_path: Path) -> None:
    val = tmp_path / "val"
    save(val / "oak" / "same.png", noise(100))
    save(val / "oak" / "turned.png", np.ascontiguousarray(np.rot90(noise(105, (24, 24)))))
    save(folder / "oak" / "square.png", noise(105, (24, 24)))
    save(val / "elm" / "other.png", noise(700))
    found = examine_classes(dataset(folder, val=str(val)))
    texts = {p.kind: p.message for p in found.problems}
    assert "oak/site0_0 trains, but oak/same, the very same photo, validates" in texts["duplicate"]
    assert "oak/square trains, but looks like oak/turned (likeness" in texts["near_duplicate"]
    policies = ClassPolicies(duplicate="drop", near_duplicate="drop")
    kept = examine_classes(dataset(folder, val=str(val), policies=policies))
    gone = {p.name for p in found.train} - {p.name for p in kept.train}
    assert {"oak/site0_0", "oak/square"} <= gone


def test_lists_name_photos_with_and_without_suffix(folder: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    for i in range(4):
        save(flat / f"p{i}.png", noise(800 + i))
    (tmp_path / "labels.csv").write_text("id,breed\np0,terrier\np1.png,poodle\np2,poodle\np9,poodle\n")
    found = examine_classes(dataset(tmp_path / "labels.csv", images=str(flat), split=Split(val_fraction=0)))
    assert found.labels.names == ("poodle", "terrier")
    assert [(p.name, p.label) for p in found.train] == [("p0", 1), ("p1", 0), ("p2", 0)]
    (missing,) = found.errors
    assert "labels.csv: line 5:" in missing.message
    assert "p9 does not exist; correct the name, or set images to its folder" in missing.message
    for text, message in (
        ("a,b\n1,2\n", "has the columns a, b, but an image and a class are needed"),
        ("image,class\n", "the list is empty"),
        ("image,class\np0\n", "line 2 has no image or no class"),
    ):
        (tmp_path / "labels.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            examine_classes(dataset(tmp_path / "labels.csv", images=str(flat)))


def test_places_without_photos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder or list; check the path"):
        examine_classes(dataset(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="holds no folders; expected one folder of photos per class"):
        examine_classes(dataset(tmp_path))
    with pytest.raises(ConfigError, match="block_px and block_m cut label maps; photos with one class have groups"):
        dataset(tmp_path, split=Split(block_px=64))


def test_a_folder_of_splits_is_not_taken_for_one_of_classes(tmp_path: Path) -> None:
    root = tmp_path / "layout"
    for split in ("train", "val"):
        save(root / split / "oak" / "a.png", noise(1))
        save(root / split / "elm" / "b.png", noise(2))
    match = rf"holds the splits train, val, not classes; set train: {root}/train, val: {root}/val \("
    with pytest.raises(DataError, match=match):
        list_photos(dataset(root))
    (root / "notes").mkdir()
    with pytest.raises(DataError, match=match):
        list_photos(dataset(root))
    save(root / "train" / "engine.png", noise(3))  # photos of trains, and of valleys
    save(root / "val" / "alps.png", noise(4))
    assert list_photos(dataset(root)).kinds == ("notes", "train", "val")


def test_names_of_a_list_may_have_dots_and_folders_and_lack_suffixes(tmp_path: Path) -> None:
    for i, name in enumerate(("a.1.png", "a.2.JPG", "rows/0001.png")):
        save(tmp_path / "flat" / name, noise(i), "PNG")
    (tmp_path / "l.csv").write_text("id,class\na.1,x\na.2,x\nrows/0001,y\n")
    found = list_photos(dataset(tmp_path / "l.csv", images=str(tmp_path / "flat")))
    assert [(p.name, p.path.name) for p in found.train] == [
        ("a.1", "a.1.png"), ("a.2", "a.2.JPG"), ("rows/0001", "0001.png"),
    ]  # fmt: skip
    assert not found.problems
    with pytest.raises(DataError, match=r"l.csv: none of the 3 photos that it names is there; the first: .*line 2: .*"):
        list_photos(dataset(tmp_path / "l.csv"))
    (tmp_path / "empty" / "oak").mkdir(parents=True)
    with pytest.raises(DataError, match="empty: holds no photo; expected folders of classes"):
        list_photos(dataset(tmp_path / "empty"))


def test_cifar_is_kept_where_other_photos_would_be_decoded_again(tmp_path: Path) -> None:
    home = tmp_path / "c"
    write_cifar10(home, binary=True)
    policies = ClassPolicies(empty_class="warn", unknown_class="drop")
    found = examine_classes(dataset(home, keep_px=None, policies=policies))
    assert np.array_equal(found.train[5].image(), read_batches(home, CIFAR["cifar10"], "train").images[5])


def cifar_arrays(count: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3072), dtype=np.uint8), np.arange(count) % classes


def write_cifar10(folder: Path, *, binary: bool) -> None:
    """In the layout of the published archives, four photos a batch."""
    folder.mkdir(parents=True)
    names = [f"class{k}" for k in range(10)]
    for i, stem in enumerate((*CIFAR["cifar10"].train, "test_batch")):
        pixels, labels = cifar_arrays(4, 10, i)
        if binary:
            rows = np.concatenate([labels[:, None].astype(np.uint8), pixels], 1)
            (folder / f"{stem}.bin").write_bytes(rows.tobytes())
        else:
            content = {b"data": pixels, b"labels": labels.tolist(), b"batch_label": b"x"}
            (folder / stem).write_bytes(pickle.dumps(content, protocol=2))
    if binary:
        (folder / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    else:
        (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [n.encode() for n in names]}, protocol=2))


@pytest.mark.parametrize("form", ["python", "binary", "archive"])
def test_cifar_is_read_in_every_published_form(form: str, tmp_path: Path) -> None:
    home = tmp_path / "cifar-10-batches-py"
    write_cifar10(home, binary=form == "binary")
    path = home
    if form == "archive":
        path = tmp_path / "cifar-10-python.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.add(home, home.name)
    assert find_cifar(path) == "cifar10"
    pixels, labels = cifar_arrays(4, 10, 1)
    batch = read_batches(path, CIFAR["cifar10"], "train")
    assert batch.images.shape == (20, 32, 32, 3)
    assert batch.labels[4:8].tolist() == labels.tolist()
    # Row by row, first all red, then all green: by hand for one pixel.
    assert batch.images[5, 7, 3].tolist() == [pixels[1, band * 1024 + 7 * 32 + 3] for band in range(3)]
    found = examine_classes(dataset(path, policies=ClassPolicies(empty_class="warn", unknown_class="drop")))
    assert (len(found.train), len(found.val)) == (20, 4)
    assert found.labels.names == tuple(f"class{k}" for k in range(10))
    assert np.array_equal(found.train[5].image(), batch.images[5])
    assert found.train[5].name == "train_00005"


def test_cifar_100_has_the_fine_class_in_its_second_byte(tmp_path: Path) -> None:
    pixels, _ = cifar_arrays(3, 1, 0)
    for side in ("train", "test"):
        rows = np.concatenate([np.full((3, 1), 19, np.uint8), np.array([[0], [99], [7]], np.uint8), pixels], 1)
        (tmp_path / f"{side}.bin").write_bytes(rows.tobytes())
    (tmp_path / "fine_label_names.txt").write_text("\n".join(f"f{k}" for k in range(100)))
    assert find_cifar(tmp_path) == "cifar100"
    assert read_batches(tmp_path, CIFAR["cifar100"], "test").labels.tolist() == [0, 99, 7]
    (tmp_path / "train.bin").write_bytes(b"123")
    with pytest.raises(DataError, match=r"train.bin: 3 bytes are no multiple of 3074; copy or download it again"):
        read_batches(tmp_path, CIFAR["cifar100"], "train")


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("raise SystemExit('executed')",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "c"
    write_cifar10(home, binary=False)
    (home / "data_batch_3").write_bytes(pickle.dumps({b"data": Harmful(), b"labels": []}))
    with pytest.raises(DataError, match=r"data_batch_3: is damaged or holds more than arrays .*builtins.exec.*nothing"):
        read_batches(home, CIFAR["cifar10"], "train")
    (home / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"data_batch_3: no such file, nor data_batch_3.bin; unpack CIFAR-10 whole"):
        read_batches(home, CIFAR["cifar10"], "train")


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 60), st.integers(8, 60), st.integers(1, 40), st.floats(0.3, 1.0))
def test_the_middle_of_any_photo_is_a_square_of_the_wanted_side(h: int, w: int, side: int, share: float) -> None:
    frame = Frame(side, share)
    square = middle_square(np.zeros((h, w, 2), np.uint16), frame)
    assert square.shape == (side, side, 2)
    height, width = frame.size(h, w)
    assert min(height, width) == max(side, round(side / share))
    assert height / width == pytest.approx(h / w, rel=0.5 / min(height, width) * 2)


def test_the_middle_is_cut_where_a_ruler_says() -> None:
    image = np.arange(8 * 12, dtype=np.uint8).reshape(8, 12, 1)
    assert np.array_equal(middle_square(image, Frame(8, 1.0))[..., 0], image[:, 2:10, 0])
    assert np.array_equal(middle_square(image, Frame(4, 0.5))[..., 0], image[2:6, 4:8, 0])


@settings(max_examples=30, deadline=None)
@given(
    st.integers(6, 50), st.integers(6, 50), st.sampled_from([{}, {"scale": (24, 40)}, {"area": (0.1, 1.0)}, {"pad": 4}])
)
def test_random_squares_have_the_wanted_side_whatever_the_photo(h: int, w: int, how: dict) -> None:
    view = ClassView(side=16, **how)
    for seed in range(4):
        square = random_square(np.full((h, w, 3), 9, np.uint8), view, np.random.default_rng(seed))
        assert square.shape == (16, 16, 3)
        assert square.flags.c_contiguous


def test_padding_and_flips_give_the_squares_of_the_cifar_recipe() -> None:
    image = np.random.default_rng(0).integers(1, 256, (32, 32, 3), dtype=np.uint8)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    possible = {
        hashlib.md5(np.ascontiguousarray(variant).tobytes()).hexdigest()
        for y in range(9)
        for x in range(9)
        for variant in (padded[y : y + 32, x : x + 32], padded[y : y + 32, x : x + 32][:, ::-1])
    }
    view = ClassView(side=32, pad=4)
    seen = {
        hashlib.md5(random_square(image, view, np.random.default_rng(i)).tobytes()).hexdigest() for i in range(1500)
    }
    assert seen == possible  # all 162, and nothing else


def test_scale_jitter_draws_the_shorter_side_from_its_range() -> None:
    steps = np.repeat(np.arange(0, 256, dtype=np.uint8)[None, :, None], 256, 0)  # value = column of 256
    view = ClassView(side=64, scale=(64, 128), flip=False)
    slopes = []
    for seed in range(60):
        row = random_square(steps, view, np.random.default_rng(seed))[32, :, 0].astype(float)
        slopes.append(256 / ((row[-1] - row[0]) / 63))  # columns that the whole photo had
    assert 62 < min(slopes) < 70
    assert 120 < max(slopes) < 132


def test_each_photo_comes_once_an_epoch_in_an_order_of_its_own(folder: Path) -> None:
    found = examine_classes(dataset(folder, split=Split(val_fraction=0)))
    squares = RandomSquares(found.train, view=ClassView(side=16, pad=2), seed=3)
    epochs = [[int(squares[e * 24 + i].key) for i in range(24)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(24))
    assert epochs[0] != epochs[1]
    again = RandomSquares(found.train, view=ClassView(side=16, pad=2), seed=3)
    assert torch.equal(again[40].image, squares[40].image)  # whoever makes it, and in whatever order


def test_views_that_make_no_sense_are_refused() -> None:
    for wrong, message in (
        ({"scale": (256, 256), "area": (0.1, 1.0)}, "scale and area are two ways to draw a square; keep one"),
        ({"scale": (100, 256)}, r"scale \[100, 256\] must ascend from side 224 or more"),
        ({"area": (0.0, 1.0)}, r"area \[0.0, 1.0\] must be shares in \(0, 1\], ascending"),
        ({"side": 0}, "side 0 must be at least 1 px"),
        ({"area": (0.1, 1.0), "pad": 4}, "crops by area have no border, leave pad out"),
    ):
        with pytest.raises(ConfigError, match=message):
            ClassView(**wrong)  # type: ignore[arg-type]
    assert ClassView(side=32).frame == Frame(32, 1.0)
    assert ClassView(scale=(256, 512)).frame == Frame(224, 0.875)


def test_photos_are_not_shown_larger_than_they_are_kept() -> None:
    sides = [ClassView(**how).largest for how in ({"side": 32}, {}, {"area": (0.1, 1.0)}, {"scale": (256, 512)})]
    assert sides == [32, 224, 256, 512]
    message = "data.view: brings photos to a shorter side of 700 px, but they are kept with 512 at most; set .* to 700"
    with pytest.raises(ConfigError, match=message):
        ClassificationData(ClassDataset("x"), view=ClassView(scale=(600, 700)), batch_size=1)
    for keep in (700, None):
        ClassificationData(ClassDataset("x", keep_px=keep), view=ClassView(scale=(600, 700)), batch_size=1)


def stored(image: np.ndarray, path: Path) -> ClassPhoto:
    path.write_bytes(image.tobytes())
    return ClassPhoto("a", 0, "a", image.shape[:2], "a.png", image.shape[2], str(image.dtype), str(path), 0)


def test_principal_colours_are_those_of_the_covariance_of_all_pixels(tmp_path: Path) -> None:
    images = [noise(i, (30, 20)) for i in range(3)]
    photos = [stored(image, tmp_path / f"{i}.bin") for i, image in enumerate(images)]
    found = principal_colours(photos, bands=3, scale=255.0)
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]) / 255
    covariance = np.cov(pixels.T, bias=True)
    directions, variances = np.array(found.directions), np.array(found.variances)
    assert np.allclose(directions @ np.diag(variances) @ directions.T, covariance, atol=1e-10)
    assert (np.diff(variances) <= 0).all()


def test_colour_noise_moves_all_pixels_alike_and_by_the_papers_covariance() -> None:
    colours = Colours((0.2, 0.05, 0.01), ((0.6, 0.8, 0.0), (0.8, -0.6, 0.0), (0.0, 0.0, 1.0)))
    image = np.full((4, 5, 3), 0.5, np.float64)
    noise_ = ColourNoise(colours, scale=1.0, sigma=0.1)
    rng = np.random.default_rng(0)
    moved = np.stack([noise_(image, np.zeros((4, 5), np.uint8), rng)[0] - 0.5 for _ in range(4000)])
    assert np.ptp(moved, axis=(1, 2)).max() < 1e-12
    p, values = np.array(colours.directions), np.array(colours.variances)
    expected = p @ np.diag((0.1 * values) ** 2) @ p.T
    assert np.allclose(np.cov(moved[:, 0, 0].T), expected, atol=0.05 * expected.max())
    whole = ColourNoise(colours, sigma=50.0)(np.full((2, 2, 3), 200, np.uint8), np.zeros((2, 2), np.uint8), rng)[0]
    assert whole.dtype == np.uint8  # and clipped, not wrapped: a channel is at one of its ends
    assert {0, 255} & set(whole.ravel().tolist())


def test_label_noise_draws_its_share_anew_from_all_classes() -> None:
    labels = np.repeat(np.arange(4), 5000)
    noisy = with_noise(labels, 0.4, 4, seed=1)
    assert np.mean(noisy != labels) == pytest.approx(0.4 * 3 / 4, abs=0.01)  # a quarter of those drawn stay
    assert np.array_equal(noisy, with_noise(labels, 0.4, 4, seed=1))
    assert np.array_equal(with_noise(labels, 0.0, 4, seed=1), labels)


def test_fake_classes_are_as_many_as_asked_for(tmp_path: Path) -> None:
    write_classes(tmp_path / "f", 2, classes=10, side=16, rng=np.random.default_rng(0))
    assert sorted(p.name for p in (tmp_path / "f").iterdir()) == sorted(KINDS)
    assert all(len(list(p.iterdir())) == 2 for p in (tmp_path / "f").iterdir())
    with pytest.raises(ConfigError, match=r"classes 11 in 1..10"):
        write_classes(tmp_path / "g", 1, classes=11, rng=np.random.default_rng(0))


def test_an_archive_cut_short_is_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    path = tmp_path / "cifar.tar.gz"
    path.write_bytes(buffer.getvalue()[:10])
    assert find_cifar(path) is None
    with pytest.raises(DataError, match="cannot be read as an archive"):
        read_batches(path, CIFAR["cifar10"], "train")
