"""Generated data: what it promises about classes, georeference, files and chance."""

import csv

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.crs import CRS
from scipy import ndimage

from visionapps.data.fake import DemoFiles, write_demo, write_photos
from visionapps.data.ground import BUILDING, LAND_COVER, ROAD, TREES, WATER, Style, fractal
from visionapps.data.landscape import landscape
from visionapps.errors import ConfigError, OutputError


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> DemoFiles:
    return write_demo(tmp_path_factory.mktemp("demo") / "data", seed=1)


@pytest.fixture(scope="module")
def scene():
    return landscape(512, 640, np.random.default_rng(3))


def test_a_landscape_is_decided_by_its_generator(scene):
    again, labels = landscape(512, 640, np.random.default_rng(3))
    assert np.array_equal(again, scene[0])
    assert np.array_equal(labels, scene[1])
    assert (landscape(512, 640, np.random.default_rng(4))[1] != labels).mean() > 0.2


def test_a_landscape_has_the_size_and_labels_it_promises(scene):
    image, labels = scene
    assert (image.shape, image.dtype) == ((512, 640, 3), np.uint8)
    assert (labels.shape, labels.dtype) == ((512, 640), np.uint8)
    assert labels.max() < len(LAND_COVER)
    assert image.min() >= 1  # 0 means "no data" in the orthophoto
    tiny, _ = landscape(64, 70, np.random.default_rng(0))
    assert tiny.shape == (64, 70, 3)


def test_labels_lie_where_the_objects_are_drawn(scene):
    # An edge of the labels of roofs and water is an edge of the picture: shift the labels and the contrast fades.
    image, labels = scene
    grey = image.mean(axis=2)
    strength = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1))

    def contrast(shift):
        moved = np.roll(np.isin(labels, (BUILDING, WATER, ROAD)), shift, axis=(0, 1))
        edge = moved ^ ndimage.binary_erosion(moved)
        return strength[8:-8, 8:-8][edge[8:-8, 8:-8]].mean()

    here = contrast((0, 0))
    assert all(here > 1.15 * contrast(shift) for shift in ((6, 0), (-6, 0), (0, 6), (0, -6)))


def test_colour_alone_does_not_tell_the_classes_apart_but_says_something():
    # The best guess from the colour of a pixel, learned on other scenes.
    def bins(image):
        return (image // 24).astype(int) @ (121, 11, 1)

    table = np.zeros((1331, len(LAND_COVER)))
    for seed in range(6):
        image, labels = landscape(384, 384, np.random.default_rng(seed))
        np.add.at(table, (bins(image).ravel(), labels.ravel()), 1)
    image, labels = landscape(384, 384, np.random.default_rng(77))
    guess = table[bins(image)].argmax(axis=2)
    accuracy = (guess == labels).mean()
    assert np.bincount(labels.ravel()).max() / labels.size < accuracy + 0.15
    assert accuracy < 0.85
    roofs_and_roads = np.isin(labels, (BUILDING, ROAD))
    assert (guess == labels)[roofs_and_roads].mean() < 0.5


def test_styles_differ_in_light():
    styles = [Style.draw(np.random.default_rng(i)) for i in range(8)]
    means = [landscape(128, 128, np.random.default_rng(5), style)[0].mean() for style in styles]
    assert np.std(means) > 5


def test_noise_is_smooth_and_of_unit_deviation():
    noise = fractal(300, 400, 32, 4, np.random.default_rng(0))
    assert noise.shape == (300, 400)
    assert noise.std() == pytest.approx(1, abs=0.2)
    assert np.abs(np.diff(fractal(300, 400, 32, 1, np.random.default_rng(0)), axis=1)).max() < 0.4


def test_demo_photos_and_masks_pair_up_by_stem_and_size(demo):
    photos, masks = sorted(demo.images.iterdir()), sorted(demo.masks.iterdir())
    assert [p.stem for p in photos] == [m.stem for m in masks]
    assert [p.stem for p in photos] == [f"site{k}_{n}" for k in range(1, 7) for n in range(1, 5)]
    assert {p.suffix for p in photos} == {".jpg"}
    for photo, mask in zip(photos, masks, strict=True):
        with Image.open(photo) as picture, Image.open(mask) as truth:
            assert (picture.mode, picture.size) == ("RGB", (512, 512))
            assert (truth.mode, truth.size) == ("P", (512, 512))
            palette = np.array(truth.getpalette()).reshape(-1, 3)[: len(LAND_COVER)]
            assert palette.tolist() == [list(c) for c in LAND_COVER.colors]
            assert np.array(truth).max() < len(LAND_COVER)


def test_every_site_shows_every_class(demo):
    for site in range(1, 7):
        found = np.zeros(len(LAND_COVER))
        for path in demo.masks.glob(f"site{site}_*.png"):
            found += np.bincount(np.array(Image.open(path)).ravel(), minlength=len(LAND_COVER))
        assert (found / found.sum()).min() >= 0.01


def test_the_orthophoto_and_its_truth_lie_on_one_georeferenced_grid(demo):
    with rasterio.open(demo.orthophoto) as photo, rasterio.open(demo.truth / "orthophoto.tif") as truth:
        assert photo.crs == truth.crs == CRS.from_epsg(32633)
        assert photo.transform == truth.transform
        assert photo.res == (0.25, 0.25)
        assert (photo.shape, photo.count, photo.dtypes[0]) == ((1536, 2048), 3, "uint8")
        assert photo.block_shapes[0] == (256, 256)
        assert (photo.nodata, truth.nodata) == (0, 255)
        assert [c.name for c in photo.colorinterp] == ["red", "green", "blue"]
        assert truth.colormap(1)[TREES][:3] == LAND_COVER.colors[TREES]
        image, labels = photo.read(), truth.read(1)
    empty = labels == 255
    assert np.array_equal(empty, (image == 0).all(axis=0))
    assert np.array_equal(empty, (image == 0).any(axis=0))
    assert 0.05 < empty.mean() < 0.25
    assert empty[0, -1]
    assert empty[-1, 0]
    shares = np.bincount(labels[~empty], minlength=len(LAND_COVER)) / (~empty).sum()
    assert len(shares) == len(LAND_COVER)
    assert shares.min() > 0.005


def test_the_sample_submission_lists_24_rows_for_each_test_photo(demo):
    with demo.sample_submission.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["ImageClassId", "rle_mask"]
    ids = sorted((p.stem for p in demo.test_images.iterdir()), key=int)
    assert len(ids) == 4
    assert [r[0] for r in rows] == [f"{i}_{k}" for i in ids for k in range(1, 25)]
    assert {r[1] for r in rows} == {""}


def test_a_demo_is_not_written_over_something_else(demo):
    with pytest.raises(OutputError, match=r"exists already.*--overwrite"):
        write_demo(demo.images.parent)


def test_tiny_photos_show_every_class_and_are_decided_by_their_generator(tmp_path):
    one = write_photos(tmp_path / "a", 5, size=(40, 70), classes=6, rng=np.random.default_rng(0))
    two = write_photos(tmp_path / "b", 5, size=(40, 70), classes=6, rng=np.random.default_rng(0))
    names = [p.name for p in sorted(one.images.iterdir())]
    assert names == ["site1_1.png", "site1_2.png", "site1_3.png", "site1_4.png", "site2_1.png"]
    for name in names:
        image, mask = np.array(Image.open(one.images / name)), np.array(Image.open(one.masks / name))
        assert image.shape == (40, 70, 3)
        assert set(np.unique(mask)) == set(range(6))
        assert np.array_equal(image, np.array(Image.open(two.images / name)))
        means = np.array([image[mask == k].mean(axis=0) for k in range(6)])
        apart = np.linalg.norm(means[:, None] - means[None], axis=2)[~np.eye(6, dtype=bool)]
        assert apart.min() > 24  # more than the noise: a few steps suffice to learn it


def test_no_photos_and_too_many_classes_are_refused(tmp_path):
    for count, classes in ((0, 3), (1, 256)):
        with pytest.raises(ConfigError, match="fake photos: count"):
            write_photos(tmp_path, count, classes=classes, rng=np.random.default_rng(0))
