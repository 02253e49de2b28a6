"""Sources: which bands, which pixels are data, and what is refused."""

import json
import logging
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.env import get_gdal_config
from rasterio.transform import Affine

from visionapps.errors import ConfigError, DataError
from visionapps.inference.rasters import RasterSource
from visionapps.inference.sources import ArraySource, open_source
from visionapps.structures import InputSpec
from visionapps.windows import Window

UTM = CRS.from_epsg(32633)
HERE = Affine(0.5, 0, 400000, 0, -0.5, 5000000)
ONE = InputSpec(bands=("grey",), mean=(0.5,), std=(0.5,))


def write(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    """A GeoTIFF of (C, H, W) pixels; ``mask``, ``colors`` and ``names`` are set after the rest."""
    mask, colors, names = (options.pop(key, None) for key in ("mask", "colors", "names"))
    profile = {"driver": "GTiff", "dtype": pixels.dtype, "count": len(pixels), "crs": UTM, "transform": HERE}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", height=pixels.shape[1], width=pixels.shape[2], **(profile | options)) as file,
    ):
        if colors:
            file.colorinterp = colors
        file.write(pixels)
        if mask is not None:
            file.write_mask(mask)
        for index, name in enumerate(names or (), 1):
            file.set_band_description(index, name)
    return path


def pixels_of(bands: int, dtype: str = "uint8", height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(2).integers(1, 200, (bands, height, width)).astype(dtype)


def test_a_window_holds_the_pixels_of_the_file_and_the_georeference_travels(tmp_path: Path) -> None:
    pixels = pixels_of(3)
    with RasterSource(write(tmp_path / "a.tif", pixels), InputSpec()) as source:
        window = Window(5, 7, 11, 13)
        assert np.array_equal(source.read(window).values, pixels[:, 5:16, 7:20])
        assert source.read(window).valid.shape == (11, 13)
        assert source.read(window).valid.all()
        assert source.shape == (20, 30)
        assert source.georef is not None
        assert source.georef.transform == tuple(HERE)[:6]
        assert CRS.from_wkt(source.georef.crs) == UTM


def test_bands_are_found_by_description_before_colour_before_place(tmp_path: Path) -> None:
    pixels = pixels_of(4)
    everything = Window(0, 0, 20, 30)
    described = write(tmp_path / "d.tif", pixels, names=("NIR", "Blue", "Green", "Red"))
    colored = write(
        tmp_path / "c.tif",
        pixels,
        colors=(ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.alpha),
    )
    plain = write(tmp_path / "p.tif", pixels, photometric="MINISBLACK")
    for path, order in ((described, [3, 2, 1]), (colored, [2, 1, 0]), (plain, [0, 1, 2])):
        with RasterSource(path, InputSpec()) as source:
            assert np.array_equal(source.read(everything).values, pixels[order]), path
    with RasterSource(described, InputSpec(), bands=("nir", "4", "3")) as source:
        assert np.array_equal(source.read(everything).values, pixels[[0, 3, 2]])


def test_taking_the_first_of_many_bands_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), RasterSource(write(tmp_path / "n.tif", pixels_of(5)), InputSpec()):
        assert "taking bands 1, 2, 3 of 5 as red, green, blue; choose others with --bands" in caplog.text


def test_too_few_or_unknown_bands_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "two.tif", pixels_of(2), names=("vv", "vh"))
    with pytest.raises(DataError, match=r"two.tif: has 2 bands, but the model expects 3 \(red, green, blue\)"):
        RasterSource(path, InputSpec())
    with pytest.raises(DataError, match=r"has no band '7'; expected a number from 1 to 2 or one of vv, vh"):
        RasterSource(path, InputSpec(), bands=("1", "7", "2"))
    with pytest.raises(ConfigError, match="--bands names 2 bands, but the model expects 3"):
        RasterSource(path, InputSpec(), bands=("1", "2"))
    with RasterSource(path, InputSpec(), bands=("vv", "vh", "vv")) as source:
        assert np.array_equal(source.read(Window(0, 0, 1, 1)).values, pixels_of(2)[[0, 1, 0], :1, :1])


def test_alpha_internal_mask_and_nan_say_which_pixels_are_data(tmp_path: Path) -> None:
    hole = np.ones((20, 30), bool)
    hole[3:9, 4:20] = False
    rgba = np.concatenate([pixels_of(3), (hole * 255).astype(np.uint8)[None]])
    files = [
        write(tmp_path / "alpha.tif", rgba, photometric="RGB", alpha="YES"),
        write(tmp_path / "mask.tif", pixels_of(3), mask=hole),
        write(tmp_path / "nan.tif", np.where(hole, pixels_of(3, "float32"), np.nan).astype(np.float32)),
        write(tmp_path / "tag.tif", np.where(hole, pixels_of(3, "int16"), -9999).astype(np.int16), nodata=-9999),
    ]
    for path in files:
        with RasterSource(path, InputSpec()) as source:
            window = Window(2, 3, 15, 20)
            assert np.array_equal(source.read(window).valid, hole[window.slices]), path


def test_an_unsigned_nodata_value_must_fill_all_bands_and_a_signed_one_any(tmp_path: Path) -> None:
    pixels = pixels_of(3)
    pixels[0, 0, 0] = 0  # a dark red is no hole
    pixels[:, 1, 1] = 0
    with RasterSource(write(tmp_path / "u.tif", pixels, nodata=0), InputSpec()) as source:
        assert np.argwhere(~source.read(Window(0, 0, 20, 30)).valid).tolist() == [[1, 1]]
    signed = pixels_of(3, "int16")
    signed[0, 0, 0] = -1
    with RasterSource(write(tmp_path / "s.tif", signed, nodata=-1), InputSpec()) as source:
        assert np.argwhere(~source.read(Window(0, 0, 20, 30)).valid).tolist() == [[0, 0]]


def test_a_nodata_value_that_the_file_does_not_tell_can_be_given(tmp_path: Path) -> None:
    pixels = pixels_of(3)
    pixels[:, 4, 5] = 255
    path = write(tmp_path / "untold.tif", pixels)
    for nodata, holes in ((None, []), (255.0, [[4, 5]])):
        source = open_source(path, InputSpec(), nodata=nodata)
        assert np.argwhere(~source.read(Window(0, 0, 20, 30)).valid).tolist() == holes
        source.close()


@pytest.mark.parametrize(
    ("dtype", "scale"), [("uint16", 255.0), ("float32", 255.0), ("uint8", 10000.0), ("uint8", 1.0)]
)
def test_values_on_another_scale_are_refused_until_the_scale_is_told(tmp_path: Path, dtype: str, scale: float) -> None:
    path = write(tmp_path / "x.tif", pixels_of(1, dtype))
    spec = InputSpec(bands=("grey",), scale=scale, mean=(0.5,), std=(0.5,))
    with pytest.raises(DataError, match=rf"x.tif: pixels are {dtype}, but the model .* {scale:g} means 1.0; .*--scale"):
        open_source(path, spec)
    source = open_source(path, spec, scale=50)
    expected = pixels_of(1, dtype).astype(np.float64) / 50 * scale
    np.testing.assert_allclose(source.read(Window(0, 0, 20, 30)).values, expected, rtol=1e-6)
    source.close()
    with pytest.raises(ConfigError, match="scale 0"):
        open_source(path, spec, scale=0)


def test_control_points_are_kept_and_files_without_georeference_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corners = ((0, 0), (0, 30), (20, 0), (20, 30))
    points = [GroundControlPoint(r, c, 400000 + 2.0 * c, 5000000 - 2.0 * r) for r, c in corners]
    path = write(tmp_path / "g.tif", pixels_of(1), crs=UTM, gcps=points, transform=None)
    with RasterSource(path, ONE) as source:
        assert source.georef is None
        assert source.control is not None
        assert [(p.row, p.col, p.x) for p in source.control.points][1] == (0, 30, 400060)
        assert CRS.from_wkt(source.control.crs) == UTM
    with caplog.at_level(logging.WARNING):
        RasterSource(write(tmp_path / "bare.tif", pixels_of(1), crs=None, transform=None), ONE).close()
        RasterSource(write(tmp_path / "nocrs.tif", pixels_of(1), crs=None), ONE).close()
    assert "bare.tif: has no georeference" in caplog.text
    assert "nocrs.tif: has no coordinate reference system" in caplog.text


def test_missing_foreign_and_cut_off_files_are_one_line_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.tif: no such file"):
        open_source(tmp_path / "gone.tif", InputSpec())
    (tmp_path / "text.tif").write_text("not a raster")
    with pytest.raises(DataError, match=r"text.tif: cannot be opened as a raster \(the file not recognized"):
        open_source(tmp_path / "text.tif", InputSpec())
    noise = np.random.default_rng(0).integers(0, 256, (3, 256, 256), dtype=np.uint8)
    path = write(tmp_path / "cut.tif", noise, tiled=True, blockxsize=64, blockysize=64)
    path.write_bytes(path.read_bytes()[:150_000])
    source = open_source(path, InputSpec())
    assert source.read(Window(0, 0, 64, 256)).values.shape == (3, 64, 256)
    with pytest.raises(DataError, match=r"cut.tif: cannot be decoded in rows 192 to 256 .*; the file is damaged"):
        source.read(Window(192, 0, 64, 256))
    source.close()


def test_a_photo_is_read_as_it_is_stored_and_transparent_pixels_are_no_data(tmp_path: Path) -> None:
    rgba = np.random.default_rng(1).integers(0, 256, (8, 9, 4), dtype=np.uint8)
    rgba[..., 3] = 255
    rgba[2, 3, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "p.png")
    source = open_source(tmp_path / "p.png", InputSpec())
    everything = Window(0, 0, 8, 9)
    assert np.array_equal(source.read(everything).values, rgba[..., :3].transpose(2, 0, 1))
    assert np.argwhere(~source.read(everything).valid).tolist() == [[2, 3]]
    assert source.georef is None
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError, match=r"broken.jpg"):
        open_source(tmp_path / "broken.jpg", InputSpec())


def test_an_array_must_have_bands_height_and_width() -> None:
    with pytest.raises(DataError, match=r"array: image of shape \(4, 5\), expected \(bands, height, width\)"):
        ArraySource(np.zeros((4, 5)))
    source = ArraySource(np.array([[[1.0, np.nan]], [[np.inf, 2.0]]]))
    assert source.read(Window(0, 0, 1, 2)).valid.tolist() == [[False, False]]


@pytest.mark.parametrize(
    ("name", "scale", "outcome"),
    [
        ("s2_8band.tif", None, (2201, 2629)),
        ("s2_8band_uint16.tif", 10000, (379, 578)),
        ("s2_8band_uint16.tif", None, "pixels are uint16"),
        ("naip_4band_2020.tif", None, (723, 934)),
        ("uav_ortho_rgba.tif", None, (758, 686)),
        ("ortho_za_rgba_epsg4326.tif", None, (3039, 1098)),
        ("landsat7_int16_nodata.tif", 255, (250, 250)),
        ("rgba_uint16.tif", 65535, (411, 634)),
        ("rgb_internal_mask.tif", None, (232, 383)),
        ("gcps_only.tif", None, "has 1 band, but the model expects 3"),
        ("rotated.tif", None, "has 1 band, but the model expects 3"),
        ("cog_nodata_nan.tif", None, "has 1 band, but the model expects 3"),
        ("corrupt.tif", None, "cannot be decoded in rows 0 to 1024"),
    ],
)
def test_every_awkward_raster_opens_or_says_why_not(
    shared_data: Path, name: str, scale: float | None, outcome: Any
) -> None:
    def size() -> tuple[int, int]:
        source = open_source(shared_data / "rasters" / name, InputSpec(), scale=scale)
        try:
            source.read(Window(0, 0, *source.shape))
            return source.shape
        finally:
            source.close()

    if isinstance(outcome, str):
        with pytest.raises(DataError, match=outcome):
            size()
    else:
        assert size() == outcome


def handles(source: RasterSource) -> list[Any]:
    """The datasets that a source has open."""
    return list(source._handles.values())


def test_many_threads_read_at_once_each_with_a_handle_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = pixels_of(4, height=200, width=300)
    pixels[3] = np.random.default_rng(5).random((200, 300)) < 0.5
    path = write(
        tmp_path / "t.tif", pixels, crs=None, transform=None, photometric="RGB", alpha="YES", tiled=True,
        blockxsize=32, blockysize=32, compress="deflate",
    )  # fmt: skip
    source = RasterSource(path, InputSpec())
    assert source.block == (32, 32)
    rng = np.random.default_rng(6)
    corners = [(int(rng.integers(0, 150)), int(rng.integers(0, 200))) for _ in range(300)]
    meeting = threading.Barrier(4)

    def read_some(which: int) -> int:
        meeting.wait()
        wrong = 0
        for row, col in corners[which::4]:
            window = Window(row, col, 50, 100)
            values, valid = source.read(window)
            wrong += not np.array_equal(values, pixels[:3, *window.slices])
            wrong += not np.array_equal(valid, pixels[3][window.slices] > 0)
        return wrong

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read_some, range(4))) == [0] * 4
        assert len(handles(source)) == 5
    assert caplog.text.count("no georeference") == 1, "said when it was opened, not by every thread"
    with ThreadPoolExecutor(1) as pool:
        pool.submit(source.read, Window(0, 0, 1, 1)).result()
    opened = handles(source)
    assert len(opened) == 2, "handles of threads that have ended are closed when others come"
    source.close()
    assert all(handle.closed for handle in opened)
    source.close()  # twice is once


def test_gdals_block_cache_is_bounded_while_files_are_open(tmp_path: Path) -> None:
    before = get_gdal_config("GDAL_CACHEMAX")
    path = write(tmp_path / "c.tif", pixels_of(3))
    first, second = RasterSource(path, InputSpec()), RasterSource(path, InputSpec())
    assert get_gdal_config("GDAL_CACHEMAX") == 2 * 2**24
    first.read(Window(0, 0, 5, 5))
    first.close()
    first.close()
    assert get_gdal_config("GDAL_CACHEMAX") == 2**24
    second.close()
    assert get_gdal_config("GDAL_CACHEMAX") == before


def test_a_raster_in_an_archive_is_read_where_it_lies(tmp_path: Path) -> None:
    pixels = pixels_of(3)
    path = write(tmp_path / "in.tif", pixels)
    with zipfile.ZipFile(tmp_path / "flight.zip", "w") as archive:
        archive.write(path, "may/in.tif")
    name = f"/vsizip/{tmp_path}/flight.zip/may/in.tif"
    source = open_source(name, InputSpec())
    assert np.array_equal(source.read(Window(0, 0, 20, 30)).values, pixels)
    assert source.name == name
    source.close()
    with pytest.raises(DataError, match=r"flight.zip/gone.tif: cannot be opened as a raster \(.*; check the address"):
        open_source(f"/vsizip/{tmp_path}/flight.zip/gone.tif", InputSpec())


def test_a_mosaic_is_read_along_the_blocks_of_its_files(tmp_path: Path) -> None:
    pixels = pixels_of(1, height=512, width=512)
    write(tmp_path / "part.tif", pixels, tiled=True, blockxsize=256, blockysize=256)
    (tmp_path / "all.vrt").write_text(
        '<VRTDataset rasterXSize="512" rasterYSize="512"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        '<SourceFilename relativeToVRT="1">part.tif</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    source = open_source(tmp_path / "all.vrt", ONE)
    assert source.block == (256, 256)
    assert np.array_equal(source.read(Window(100, 0, 300, 512)).values, pixels[:, 100:400])
    source.close()


def test_a_photo_with_a_world_file_lies_somewhere_and_is_one_block(tmp_path: Path) -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "p.png")
    (tmp_path / "p.pgw").write_text("0.5\n0\n0\n-0.5\n400000.25\n4999999.75\n")
    source = open_source(tmp_path / "p.png", InputSpec())
    assert source.georef is not None
    assert source.georef.transform == tuple(HERE)[:6]
    assert np.array_equal(source.read(Window(3, 4, 5, 6)).values, rgb[3:8, 4:10].transpose(2, 0, 1))
    source.close()
    Image.fromarray(rgb).save(tmp_path / "j.jpg")
    (tmp_path / "j.jgw").write_text("0.5\n0\n0\n-0.5\n400000.25\n4999999.75\n")
    source = open_source(tmp_path / "j.jpg", InputSpec())
    assert source.block == (40, 50), "it is decoded from the top"
    source.close()


def test_a_source_that_cannot_be_used_is_closed_again(tmp_path: Path) -> None:
    before = get_gdal_config("GDAL_CACHEMAX")
    path = write(tmp_path / "deep.tif", pixels_of(3, "uint16"))
    with pytest.raises(DataError, match="pixels are uint16"):
        open_source(path, InputSpec())
    with pytest.raises(ConfigError, match="gsd -1"):
        open_source(path, InputSpec(), scale=1000, gsd=-1)
    with pytest.raises(DataError, match=r"gone.gpkg: no such file"):
        open_source(path, InputSpec(), scale=1000, area=tmp_path / "gone.gpkg")
    assert get_gdal_config("GDAL_CACHEMAX") == before


def test_scale_resolution_and_area_work_together(tmp_path: Path) -> None:
    pixels = np.repeat(np.repeat(pixels_of(3, "uint16", 10, 15), 2, 1), 2, 2)
    path = write(tmp_path / "deep.tif", pixels)  # pixels of half a metre
    area = tmp_path / "area.geojson"
    ring = [[400002, 5000000], [400006, 5000000], [400006, 4999997], [400002, 4999997], [400002, 5000000]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    crs = {"type": "name", "properties": {"name": "EPSG:32633"}}
    feature = {"type": "Feature", "properties": {}, "geometry": geometry}
    area.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [feature]}))
    source = open_source(path, InputSpec(), scale=1000, gsd=1, area=area)
    values, valid = source.read(Window(0, 0, *source.shape))
    expected = np.zeros((10, 15), bool)
    expected[:3, 2:6] = True
    assert np.array_equal(valid, expected)
    np.testing.assert_allclose(values[:, :3, 2:6], pixels[:, ::2, ::2][:, :3, 2:6] * 0.255, rtol=1e-5)
    assert source.dtype == values.dtype == np.float32
    source.close()
