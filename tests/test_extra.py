"""Further photos that only train: pseudo-labels and other masks beside a dataset, and everything that may be wrong."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from visionapps.cli.check import build_dataset
from visionapps.data.crops import RandomCrops
from visionapps.data.dataset import Dataset, Extra, Policies, Split
from visionapps.data.doctor import Examination, examine
from visionapps.data.drawn import Drawn
from visionapps.data.draws import ClassCells
from visionapps.data.extra import require_apart
from visionapps.data.labels import ClassDef
from visionapps.data.likeness import thumbnail
from visionapps.data.pseudo_table import PseudoTable
from visionapps.data.seen import Seen, content
from visionapps.errors import ConfigError, DataError
from visionapps.training.data import Crops, SegmentationData
from visionapps.windows import Window

SIZE = (70, 90)


def scene(seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(SIZE[::-1], Image.Resampling.BICUBIC))


def truth(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, SIZE, dtype=np.uint8)


class Folder:
    """Four labelled photos s0 to s3 with ids 0 and 7, of which s3 validates; and two, u8 and u9, with pseudo-labels."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("images", "masks", "more", "pseudo/masks"):
            (root / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(scene(i)).save(root / "images" / f"s{i}.png")
            Image.fromarray(truth(i) * 7).save(root / "masks" / f"s{i}.png")
        for i in (8, 9):
            Image.fromarray(scene(i)).save(root / "more" / f"u{i}.png")
            Image.fromarray(self.labels(i)).save(root / "pseudo" / "masks" / f"u{i}.png")
        self.index()

    @staticmethod
    def labels(seed: int) -> np.ndarray:
        """Of the teacher, whose classes are sea, land; 255 in ten rows."""
        found = truth(seed)
        found[:10] = 255
        return found

    def index(self, names=("sea", "land"), *, soft: bool = False, seen: Seen | None = None, **photos: str) -> None:
        digests = {path.stem: content(path).hex() for path in (self.root / "more").iterdir()}
        PseudoTable(names, soft, digests | photos, seen).save(self.root / "pseudo" / "masks")

    def reindex(self, **changes) -> None:
        for name in ("pseudo.json", "seen.npz"):
            (self.root / "pseudo" / "masks" / name).unlink(missing_ok=True)
        self.index(**changes)

    def dataset(self, *, weight: float = 1.0, masks: str = "pseudo", **policies: str) -> Dataset:
        return Dataset(
            str(self.root / "images"),
            str(self.root / "masks"),
            (ClassDef("land", (0,)), ClassDef("sea", (7,))),
            split=Split(val_groups=("s3",)),
            policies=Policies(**policies),  # type: ignore[arg-type]
            cache=str(self.root / "cache"),
            extra=(Extra(str(self.root / "more"), str(self.root / masks), weight),),
        )


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def told(found: Examination) -> list[tuple[str, str, str]]:
    return [(p.kind, p.action, p.message) for p in found.problems]


def test_extra_photos_train_and_never_validate_and_their_classes_go_by_name(folder):
    found = examine(folder.dataset(weight=0.5))
    assert told(found) == []
    assert [p.name for p in found.train] == ["s0", "s1", "s2"]
    assert [p.name for p in found.val] == ["s3"]
    assert [p.name for p in found.learned] == ["s0", "s1", "s2", "u8", "u9"]
    assert found.class_pixels["train"] == tuple(sum(int((truth(i) == k).sum()) for i in range(3)) for k in (0, 1))
    for photo, seed in zip(found.extra, (8, 9), strict=True):
        whole = Window(0, 0, *photo.size)
        np.testing.assert_array_equal(photo.image(whole), scene(seed))
        expected = np.array([1, 0, *[255] * 254], np.uint8)[folder.labels(seed)]  # sea, land of the teacher
        np.testing.assert_array_equal(photo.labels(whole), expected)
        np.testing.assert_array_equal(photo.draw_labels(whole, np.random.default_rng(0)), expected)
        assert (photo.weight, photo.origin, photo.soft) == (0.5, str(folder.root / "pseudo"), False)
    (source,) = found.to_dict()["extra"]
    assert (source["photos"], source["weight"], source["pixels"]) == (["u8", "u9"], 0.5, 2 * 70 * 90)
    assert sum(source["class_pixels"].values()) == 2 * 60 * 90


def test_the_weight_is_how_often_a_source_is_drawn_for_its_area_with_and_without_balance(folder):
    photos = examine(folder.dataset(weight=3.0)).learned
    for balance in (0.0, 1.0):
        crops = RandomCrops(photos, size=32, length=1, balance=balance)
        drawn = np.bincount([crops.draw(i)[0] for i in range(2000)], minlength=5) / 2000
        area = np.array([1, 1, 1, 3, 3]) * ([70 * 90] * 5 if balance == 0 else [70 * 90] * 3 + [60 * 90] * 2)
        assert np.abs(drawn - area / area.sum()).max() < 0.05  # four deviations of a share of 1/3
    even = ClassCells([replace(p, weight=1.0) for p in photos])
    assert even._total[-1] == sum(sum(p.class_pixels) for p in photos)


def test_masks_of_other_people_are_read_with_the_classes_of_the_dataset(folder):
    (folder.root / "others").mkdir()
    for i in (8, 9):
        Image.fromarray(truth(i) * 7).save(folder.root / "others" / f"u{i}.png")
    found = examine(folder.dataset(masks="others"))
    assert told(found) == []
    np.testing.assert_array_equal(found.extra[1].labels(Window(0, 0, *SIZE)), truth(9))
    Image.fromarray(truth(8) * 5).save(folder.root / "others" / "u8.png")
    assert [(p.kind, p.action) for p in examine(folder.dataset(masks="others")).problems] == [
        ("unknown_values", "error")
    ]


def soften(folder: Folder, planes: np.ndarray) -> None:
    for i in (8, 9):
        (folder.root / "pseudo" / "masks" / f"u{i}.png").unlink()
        profile = {"driver": "GTiff", "height": SIZE[0], "width": SIZE[1], "count": 2, "dtype": "uint8", "nodata": 0}
        with rasterio.open(folder.root / "pseudo" / "masks" / f"u{i}.tif", "w", **profile) as file:
            file.write(planes)
    folder.reindex(soft=True)


def test_crops_draw_soft_labels_by_their_own_generator_and_validation_takes_the_largest(folder):
    planes = np.stack([np.full(SIZE, 51, np.uint8), np.full(SIZE, 204, np.uint8)])  # sea 0.2, land 0.8
    planes[:, :, :20] = 0
    soften(folder, planes)
    found = examine(folder.dataset())
    assert told(found) == []
    photo = found.extra[0]
    labels = photo.labels(Window(0, 0, *SIZE))
    assert (labels[:, :20] == 255).all()
    assert (labels[:, 20:] == 0).all()
    crops = RandomCrops(found.extra, size=64, length=1, balance=0.0)
    drawn = np.concatenate([crops[i].labels.numpy().ravel() for i in range(40)])
    share = (drawn == 1).sum() / (drawn != 255).sum()
    assert abs(share - 0.2) < 0.01  # 40 crops of about 3,500 pixels: a deviation of 0.001
    np.testing.assert_array_equal(crops[7].labels, crops[7].labels)
    assert (crops[7].labels != RandomCrops(found.extra, size=64, length=1, balance=0.0, seed=1)[7].labels).any()


def test_soft_labels_follow_resized_photos(folder):
    planes = np.random.default_rng(1).integers(1, 128, (2, *SIZE)).astype(np.uint8)
    soften(folder, planes)
    found = examine(replace(folder.dataset(), resize=(35, 45)))
    means = planes.reshape(2, 35, 2, 45, 2).mean((2, 4))[::-1]  # land, sea
    sure = np.abs(means[0] - means[1]) > 1  # rounding cannot turn these round
    np.testing.assert_array_equal(found.extra[0].labels(Window(0, 0, 35, 45))[sure], means.argmax(0)[sure])


@pytest.mark.parametrize(
    ("source", "how", "text"),
    [
        ("s3", lambda p: p, "which validates; take it out of the extra source, or set policies.near_duplicate: drop"),
        ("s1", lambda p: p, "s1.png, which trains with a mask of its own; take it out"),
        ("s3", lambda p: np.rot90(p, 2), "looks like s3.png (likeness 1.00), which validates; take it out"),
    ],
)
def test_a_labelled_photo_and_a_copy_of_a_validation_photo_are_refused_or_dropped(folder, source, how, text):
    pixels = np.asarray(Image.open(folder.root / "images" / f"{source}.png"))
    Image.fromarray(np.ascontiguousarray(how(pixels))).save(folder.root / "more" / "u8.png")
    folder.reindex()
    found = examine(folder.dataset())
    (problem,) = told(found)
    assert problem[:2] == ("near_duplicate", "error")
    assert "u8.png: is an extra photo of" in problem[2]
    assert text in problem[2]
    with pytest.raises(DataError, match="the dataset has 1 problem"):
        found.raise_on_errors()
    found = examine(folder.dataset(near_duplicate="drop"))
    assert [p.name for p in found.extra] == ["u9"]
    found.raise_on_errors()
    very = "the very photo" if "looks" not in text else "a copy"
    action = told(examine(folder.dataset(near_duplicate="warn")))[0][1]
    assert action == {"the very photo": "error", "a copy": "warning"}[very]


def test_a_copy_of_a_training_photo_may_train_too(folder):
    Image.fromarray(np.ascontiguousarray(np.rot90(scene(1), 2))).save(folder.root / "more" / "u8.png")
    folder.reindex()
    assert told(examine(folder.dataset())) == []


def test_folds_refuse_extra_photos_that_look_like_any_labelled_one(folder):
    Image.fromarray(np.ascontiguousarray(np.rot90(scene(1), 2))).save(folder.root / "more" / "u8.png")
    folder.reindex()
    found = examine(replace(folder.dataset(), split=Split(val_fraction=0.0)))
    with pytest.raises(DataError, match=r"folds: 1 extra photos cannot train in every fold; .*looks like s1\.png"):
        require_apart(found.extra, found.train, Policies())
    require_apart(found.extra, found.train, Policies(near_duplicate="drop"))
    require_apart(found.extra[1:], found.train, Policies())


def test_other_classes_are_refused_by_name(folder):
    folder.reindex(names=("sea", "ice"))
    with pytest.raises(ConfigError, match=r"other classes than the dataset \(without land and with ice\); a pixel of"):
        examine(folder.dataset())


def test_unfinished_and_damaged_labels_are_refused(folder):
    index = folder.root / "pseudo" / "masks" / "pseudo.json"
    index.write_text(index.read_text()[:-20])
    with pytest.raises(DataError, match=r"pseudo\.json: damaged .*write the labels anew with `visionapps pseudo`"):
        examine(folder.dataset())
    (folder.root / "half" / "predictions").mkdir(parents=True)
    (folder.root / "half" / "predictions" / "teacher.json").write_text("{}")
    with pytest.raises(DataError, match=r"predictions: holds predictions, sure or not; give .*half, where the labels"):
        examine(folder.dataset(masks="half/predictions"))
    with pytest.raises(DataError, match="half: the pseudo-labels are not finished, only predictions are there; run"):
        examine(folder.dataset(masks="half"))
    with pytest.raises(DataError, match="nowhere: no such folder"):
        examine(folder.dataset(masks="nowhere"))


def test_an_image_that_changed_since_it_was_labelled_is_refused_and_one_that_was_not_labelled_is_told(folder):
    Image.fromarray(scene(20)).save(folder.root / "more" / "u8.png")
    Image.fromarray(scene(21)).save(folder.root / "more" / "u10.png")
    found = examine(folder.dataset())
    assert [p[:2] for p in told(found)] == [("missing_mask", "dropped"), ("changed_image", "error")]
    assert "labels 2 of 3 images; the others are left out" in told(found)[0][2]
    assert "u8.png: is not the image that" in told(found)[1][2]


def test_photos_without_a_labelled_pixel_and_photos_of_other_bands_are_left_out(folder):
    Image.fromarray(np.full(SIZE, 255, np.uint8)).save(folder.root / "pseudo" / "masks" / "u8.png")
    Image.fromarray(scene(9)[..., 0]).save(folder.root / "more" / "u9.png")
    folder.reindex()
    found = examine(folder.dataset(bands="drop"))
    assert [p[:2] for p in told(found)] == [("unlabelled", "dropped"), ("bands", "dropped"), ("empty_extra", "error")]
    assert "1 bands of uint8, but the dataset's own photos have 3 of uint8" in told(found)[1][2]
    assert "pseudo: none of its 2 photos can train, see the other problems; mend them, or take" in told(found)[2][2]
    assert found.extra == ()
    Image.fromarray(scene(9)).save(folder.root / "more" / "u9.png")
    folder.reindex()
    assert [p[:2] for p in told(examine(folder.dataset()))] == [("unlabelled", "dropped")]


def test_a_class_that_only_extra_photos_show_can_be_learned(folder):
    for i in range(3):
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(folder.root / "masks" / f"s{i}.png")
    assert told(examine(folder.dataset())) == []
    found = examine(replace(folder.dataset(), extra=()))
    assert [p[:2] for p in told(found)] == [("one_sided_class", "warning")]
    assert told(found)[0][2].startswith("class sea occurs in validation only, so it cannot be learned")


def test_a_teacher_that_trained_on_validation_photos_is_told(folder):
    folder.reindex(seen=Seen.from_parts([b"0" * 16], [thumbnail(np.rot90(scene(3)))]))
    (problem,) = told(examine(folder.dataset()))
    assert problem[:2] == ("taught_by_validation", "warning")
    assert "was trained on 1 photos that validate here (s3), so the scores will be too good" in problem[2]
    folder.reindex(seen=Seen.from_parts([content(folder.root / "images" / "s0.png")], [thumbnail(scene(0))]))
    assert told(examine(folder.dataset())) == []


def test_a_run_draws_as_many_crops_as_cover_all_sources_by_weight_and_remembers_all_photos(folder, caplog):
    folder.reindex(seen=Seen.from_parts([content(folder.root / "images" / "s3.png")], [thumbnail(scene(3))]))
    data = SegmentationData(folder.dataset(weight=0.5), crops=Crops(size=16), batch_size=2, workers=0)
    data.setup("fit")
    assert "trained on 1 photos that validate here (s3)" in caplog.text
    assert len(data.random_crops()) == round((3 + 2 * 0.5) * 70 * 90 / 16**2)
    files = [*(folder.root / "images").glob("s[012].png"), *(folder.root / "more").iterdir()]
    assert {row.tobytes() for row in data.seen().digests} == {content(path) for path in files}
    land = sum((truth(i) == 0).sum() for i in range(3)) + sum((folder.labels(i) == 1).sum() for i in (8, 9))
    labelled = (3 * 70 + 2 * 60) * 90
    assert data.photo_counts() == Drawn(5, (5, 5), (land, labelled - land))  # what there is, whatever its weight
    assert data.class_counts().pixels[0] < land


def test_labels_of_a_fold_go_with_it(folder):
    (folder.root / "pseudo").rename(folder.root / "fold_2")
    dataset = folder.dataset(masks="fold_{fold}")
    found = examine(replace(dataset, split=replace(dataset.split, fold=2)))
    assert [p.origin for p in found.extra] == [str(folder.root / "fold_2")] * 2
    with pytest.raises(DataError, match="fold_0: no such folder"):
        examine(dataset)


def test_a_source_that_is_named_twice_is_refused_and_a_key_without_sources_means_none(folder):
    dataset = folder.dataset()
    with pytest.raises(ConfigError, match=r"extra: .*pseudo is a source twice; give it once, with a larger weight"):
        replace(dataset, extra=dataset.extra * 2)
    assert replace(dataset, extra=None).extra == ()


@pytest.mark.parametrize("extra", [{"images": "more", "masks": "pseudo"}, "pseudo"])
def test_a_source_that_is_no_list_is_told_how_to_write_one(extra):
    settings = {"images": "images", "masks": "masks", "classes": ["sea", "land"]}
    with pytest.raises(ConfigError, match=r"run.yaml: extra is a list; write - \{images: ..., masks: ...\}"):
        build_dataset(settings | {"extra": extra}, "run.yaml")
    assert build_dataset(settings | {"extra": None}, "run.yaml").extra == ()


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(ConfigError, match="of pseudo must be positive; leave a source out that shall not count"):
        Extra("more", "pseudo", weight)
