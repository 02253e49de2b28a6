"""Decoding of photos and masks, on files written by the test."""

import io

import numpy as np
import pytest
import rasterio
from PIL import Image

from visionapps.data.images import (
    image_size,
    read_header,
    read_image,
    read_mask,
    resize_image,
    resize_labels,
)
from visionapps.errors import DataError

RNG = np.random.default_rng(0)
GREY, RGB, RGBA = (RNG.integers(0, 256, (5, 7, *c), dtype=np.uint8) for c in ((), (3,), (4,)))


def write_tiff(path, bands, **profile):
    """bands: (C, H, W)."""
    count, height, width = bands.shape
    with rasterio.open(path, "w", "GTiff", width, height, count, dtype=bands.dtype, **profile) as raster:
        raster.write(bands)
    return path


def test_photos_keep_dtype_and_channels_and_lose_alpha(tmp_path):
    deep = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
    for name, pixels, expected in (
        ("grey", GREY, GREY[..., None]),
        ("rgb", RGB, RGB),
        ("rgba", RGBA, RGBA[..., :3]),
        ("deep", deep, deep[..., None]),
    ):
        path = tmp_path / f"{name}.png"
        Image.fromarray(pixels).save(path)
        image = read_image(path)
        assert image.dtype == expected.dtype
        np.testing.assert_array_equal(image, expected)
        assert read_header(path)[:4] == (5, 7, expected.shape[2], str(expected.dtype))


def test_sixteen_bit_colours_in_a_png_are_not_cut_to_eight(tmp_path):
    deep = RNG.integers(0, 65536, (3, 5, 7), dtype=np.uint16)
    with rasterio.open(tmp_path / "deep.png", "w", "PNG", 7, 5, 3, dtype="uint16") as raster:
        raster.write(deep)
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png"), np.moveaxis(deep, 0, -1))
    assert read_header(tmp_path / "deep.png").dtype == "uint16"


def test_bands_are_picked_by_number_and_name_in_the_order_asked(tmp_path):
    Image.fromarray(RGBA).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", ["blue", 1]), RGBA[..., [2, 0]])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", ["alpha"]), RGBA[..., [3]])
    bands = RNG.integers(-500, 500, (3, 4, 6)).astype(np.int16)
    write_tiff(tmp_path / "b.tif", bands)
    with rasterio.open(tmp_path / "b.tif", "r+") as raster:
        raster.descriptions = ("B02", "B08", "B11")
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif", ["B11", 1]), np.moveaxis(bands[[2, 0]], 0, -1))
    assert read_header(tmp_path / "b.tif", [2])[:4] == (4, 6, 1, "int16")
    with pytest.raises(DataError, match=r"b\.tif: band 'nir' was asked for, but the image has 3: 1 B02, 2 B08, 3 B11"):
        read_image(tmp_path / "b.tif", ["nir"])
    with pytest.raises(DataError, match="band 0 was asked for"):
        read_image(tmp_path / "b.tif", [0])


def test_pixels_are_read_as_stored_whatever_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), RGB)
    assert read_header(tmp_path / "turned.png").orientation == 6
    assert image_size(tmp_path / "turned.png") == (5, 7)


def test_georeference_is_read_from_the_header(tmp_path):
    transform = rasterio.transform.from_origin(500000, 4000000, 0.5, 0.5)
    write_tiff(tmp_path / "g.tif", RGB.transpose(2, 0, 1).copy(), crs="EPSG:32633", transform=transform)
    georef = read_header(tmp_path / "g.tif").georef
    assert georef is not None
    assert georef.transform == (0.5, 0, 500000, 0, -0.5, 4000000)
    write_tiff(tmp_path / "n.tif", RGB.transpose(2, 0, 1).copy())
    assert read_header(tmp_path / "n.tif").georef is None


def encoded(format_):
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, format_)
    return buffer.getvalue()


@pytest.mark.parametrize(("name", "format_"), [("a.jpg", "JPEG"), ("a.png", "PNG"), ("a.tif", "TIFF")])
@pytest.mark.parametrize("read", [read_image, read_mask])
def test_truncated_files_are_refused_with_their_path(tmp_path, name, format_, read):
    content = encoded(format_)
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=f"{name}: cannot be decoded, truncated or corrupt"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_foreign_empty_and_missing_files_are_refused(tmp_path, name):
    with pytest.raises(DataError, match=f"{name}: no such file"):
        read_image(tmp_path / name)
    for content in (b"", b"no image at all" * 100):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: cannot be decoded"):
            read_image(tmp_path / name)
        with pytest.raises(DataError, match=f"{name}: cannot be decoded"):
            read_header(tmp_path / name)


def test_masks_bring_ids_colours_or_a_palette(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "ids.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "ids.png").values, GREY)
    Image.fromarray(RGBA).save(tmp_path / "colours.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "colours.png").values, RGBA[..., :3])
    indexed = Image.fromarray(GREY % 3)
    indexed.putpalette([1, 2, 3, 4, 5, 6, 7, 8, 9])
    indexed.save(tmp_path / "palette.png")
    mask = read_mask(tmp_path / "palette.png")
    np.testing.assert_array_equal(mask.values, GREY % 3)
    assert mask.palette is not None
    assert mask.palette[:3].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_one_bit_masks_are_marked_in_png_and_tiff(tmp_path):
    bits = GREY > 127
    Image.fromarray(bits).save(tmp_path / "bits.png")
    write_tiff(tmp_path / "bits.tif", bits[None].astype(np.uint8), nbits=1)
    for name in ("bits.png", "bits.tif"):
        mask = read_mask(tmp_path / name)
        assert mask.bilevel
        np.testing.assert_array_equal(mask.values.astype(bool), bits)
        assert mask.values.max() == 1


def test_tiff_masks_bring_nodata_and_palette(tmp_path):
    write_tiff(tmp_path / "m.tif", (GREY % 3)[None], nodata=2)
    with rasterio.open(tmp_path / "m.tif", "r+") as raster:
        raster.write_colormap(1, {0: (9, 8, 7, 255), 2: (1, 2, 3, 255)})
    mask = read_mask(tmp_path / "m.tif")
    assert mask.nodata == 2
    assert mask.palette is not None
    assert mask.palette[[0, 2]].tolist() == [[9, 8, 7], [1, 2, 3]]
    write_tiff(tmp_path / "colours.tif", RGB.transpose(2, 0, 1).copy())
    np.testing.assert_array_equal(read_mask(tmp_path / "colours.tif").values, RGB)
    write_tiff(tmp_path / "many.tif", np.zeros((5, 4, 4), np.uint8))
    with pytest.raises(DataError, match=r"many\.tif: a mask has one channel .* has 5"):
        read_mask(tmp_path / "many.tif")


def test_shrinking_averages_areas_for_every_dtype():
    for dtype in (np.uint8, np.uint16, np.int16, np.float32, np.int32):
        image = np.arange(4 * 6 * 2).reshape(4, 6, 2).astype(dtype)
        blocks = image.reshape(2, 2, 3, 2, 2).astype(np.float64).mean((1, 3))
        small = resize_image(image, (2, 3))
        assert small.dtype == dtype
        assert np.abs(small - blocks).max() <= (0.5 if np.issubdtype(dtype, np.integer) else 1e-4)


def test_labels_are_resized_by_the_pixel_under_the_centre():
    labels = np.array([[0, 1, 2], [3, 4, 5]], np.uint8)
    assert resize_labels(labels, (4, 6)).tolist() == np.kron(labels, np.ones((2, 2), np.uint8)).tolist()
    assert resize_labels(labels, (1, 1)).tolist() == [[4]]  # centre (1.0, 1.5) of a 2 x 3 picture


def test_landsat_bands_and_labels_are_read_with_names_and_nodata(shared_data):
    path = shared_data / "rasters" / "landsat7_int16_nodata.tif"
    image = read_image(path, ["band 4 reflectance", 1])
    with rasterio.open(path) as raster:
        np.testing.assert_array_equal(image, np.moveaxis(raster.read([4, 1]), 0, -1))
    assert image.dtype == np.int16
    mask = read_mask(shared_data / "rasters" / "landsat7_labels.tif")
    assert mask.nodata == 0
    assert set(np.unique(mask.values)) <= {0, 1, 2, 3, 4, 5}


def test_the_corrupt_raster_is_refused(shared_data):
    with pytest.raises(DataError, match=r"corrupt\.tif: cannot be decoded"):
        read_image(shared_data / "rasters" / "corrupt.tif")
