"""Data sets to try things on, generated so that nothing needs to be downloaded: a demo, and tiny photos for tests."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from visionapps.data.ground import LAND_COVER, Style
from visionapps.data.landscape import landscape
from visionapps.errors import ConfigError
from visionapps.files import whole_output
from visionapps.structures import LabelSpace
from visionapps.windows import Window, blocks

SITES = 6  # flights with photos and masks
PHOTO = 512  # px
SCENE = 2 * PHOTO  # each site is one scene, cut into four photos: neighbours, so split by site
MIN_SHARE = 0.01  # of every class in every scene, so that each site can teach and test all of them
ORTHOPHOTO = (1536, 2048)  # (H, W)
PIXEL_SIZE = 0.25  # m
EPSG = 32633  # UTM zone 33 north
CORNER = (389_000.0, 5_821_000.0)  # easting and northing of the upper left corner: fields north of Potsdam
HRUD_ROWS = range(1, 25)  # classes that the HRUD competition wants a row for, whatever a model knows


class PhotoFolders(NamedTuple):
    """Where photos and masks of the same stems lie."""

    images: Path
    masks: Path


class DemoFiles(NamedTuple):
    """What write_demo leaves."""

    images: Path  # 24 photos site<k>_<n>.jpg
    masks: Path  # index masks with a palette, site<k>_<n>.png
    test_images: Path  # 4 photos <id>.jpg without masks
    orthophoto: Path  # GeoTIFF, RGB, no data in the corners
    truth: Path  # folder with the orthophoto's labels, of the same name and on the same grid
    sample_submission: Path


def write_demo(folder: Path, *, seed: int = 0, overwrite: bool = False) -> DemoFiles:
    """Generate the data of the demo: six sites to train on, test photos, and a georeferenced orthophoto.

    Args:
        folder: made whole, or not at all.
        seed: another seed, another country.
        overwrite: replace what is in the folder.

    Raises:
        OutputError: the folder holds something already, or cannot be written.
    """
    with whole_output(folder, overwrite) as part:
        files = _demo_files(part)
        for place in (files.images, files.masks, files.test_images, files.truth):
            place.mkdir(parents=True)
        for site in range(1, SITES + 1):
            image, labels = _scene(SCENE, SCENE, seed, site)
            for number, window in enumerate(blocks(SCENE, SCENE, PHOTO), 1):
                stem = f"site{site}_{number}"
                _write_photo(files.images / f"{stem}.jpg", image, window)
                write_mask(files.masks / f"{stem}.png", labels[window.slices], LAND_COVER)
        image, _ = _scene(SCENE, SCENE, seed, 0)
        ids = sorted(int(i) for i in np.random.default_rng((seed, 0)).choice(range(6000, 11000), 4, replace=False))
        for identity, window in zip(ids, blocks(SCENE, SCENE, PHOTO), strict=True):
            _write_photo(files.test_images / f"{identity}.jpg", image, window)
        rows = (f"{identity}_{label},\n" for identity in ids for label in HRUD_ROWS)
        files.sample_submission.write_text("ImageClassId,rle_mask\n" + "".join(rows), encoding="ascii", newline="\n")
        _write_orthophoto(files, seed)
    return _demo_files(folder)


def write_photos(
    folder: Path, count: int, *, size: tuple[int, int] = (64, 64), classes: int = 3, rng: np.random.Generator
) -> PhotoFolders:
    """A tiny data set for tests, learnable in a few steps: patches of K colours with some noise.

    Args:
        folder: gets the folders images and masks.
        count: photos site<k>_<n>.png, four per site; each shows every class if it has that many 16 px patches.
        size: (H, W) of each.
        classes: K, labels 0 to K - 1; no pixel is without.
        rng: decides everything.

    Raises:
        ConfigError: nothing would be written.
    """
    if count < 1 or min(size) < 1 or not 1 <= classes <= 255:
        raise ConfigError(f"fake photos: count {count} and size {size} must be at least 1, classes {classes} in 1..255")
    labels = LabelSpace.named([f"class{k}" for k in range(classes)])
    folders = PhotoFolders(folder / "images", folder / "masks")
    for place in folders:
        place.mkdir(parents=True, exist_ok=True)
    colors = np.array(labels.colors)
    rows, cols = (-(-length // 16) for length in size)
    for number in range(count):
        patches = rng.permutation(np.arange(rows * cols) % classes).astype(np.uint8).reshape(rows, cols)
        truth = np.kron(patches, np.ones((16, 16), np.uint8))[: size[0], : size[1]]
        image = np.clip(colors[truth] + rng.normal(0, 12, (*size, 3)), 0, 255).astype(np.uint8)
        name = f"site{number // 4 + 1}_{number % 4 + 1}.png"
        Image.fromarray(image).save(folders.images / name)
        write_mask(folders.masks / name, truth, labels)
    return folders


def write_mask(path: Path, mask: np.ndarray, labels: LabelSpace) -> None:
    """Write labels as a palette PNG: the value of a pixel is its label, and any viewer shows the class colours.

    Args:
        path: ends in .png.
        mask: (H, W) uint8.
        labels: whose colours make the palette.
    """
    picture = Image.fromarray(mask)
    picture.putpalette(np.array(labels.colors, dtype=np.uint8).tobytes())
    picture.save(path, optimize=False)


def _demo_files(folder: Path) -> DemoFiles:
    names = ("images", "masks", "test_images", "orthophoto.tif", "truth", "sample_submission.csv")
    return DemoFiles(*(folder / name for name in names))


def _scene(height: int, width: int, seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A scene that has something of every class."""
    rng = np.random.default_rng((seed, number))
    style = Style.draw(rng)
    while True:  # now and then a scene has too few houses
        image, labels = landscape(height, width, rng, style, water=1.0)
        if np.bincount(labels.ravel(), minlength=len(LAND_COVER)).min() >= MIN_SHARE * labels.size:
            return image, labels


def _write_photo(path: Path, image: np.ndarray, window: Window) -> None:
    Image.fromarray(np.ascontiguousarray(image[window.slices])).save(path, quality=92)


def _write_orthophoto(files: DemoFiles, seed: int) -> None:
    """The flight's footprint is turned against the grid: the corners hold no data, 0 in the image, 255 in the truth."""
    image, labels = _scene(*ORTHOPHOTO, seed, SITES + 1)
    height, width = ORTHOPHOTO
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = np.deg2rad(6.0)
    x, y = x - width / 2, y - height / 2
    across, down = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    outside = (np.abs(across) > 0.475 * width) | (np.abs(down) > 0.46 * height)
    image[outside] = 0
    labels[outside] = LAND_COVER.ignore
    grid = {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "dtype": "uint8",
        "crs": f"EPSG:{EPSG}",
        "transform": from_origin(*CORNER, PIXEL_SIZE, PIXEL_SIZE),
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "compress": "deflate",
    }
    with rasterio.open(files.orthophoto, "w", count=3, nodata=0, photometric="RGB", predictor=2, **grid) as raster:
        raster.write(image.transpose(2, 0, 1))
    with rasterio.open(files.truth / files.orthophoto.name, "w", count=1, nodata=LAND_COVER.ignore, **grid) as raster:
        raster.write_colormap(1, dict(enumerate(LAND_COVER.colors)))  # before any pixel, or GDAL leaves it out
        raster.write(labels, 1)
