"""The bytes of GeoTIFFs: aligned, sparse, the same however rows come; overviews, COG, and files that were cut off."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import rasterio
from forked import call_each, fill_disk_at
from rasterio.crs import CRS
from rasterio.env import get_gdal_config, set_gdal_config
from test_sinks import pour

from visionapps.errors import ConfigError, OutputError
from visionapps.inference.geotiff import LABELS, PICTURE, QUANTITIES, Kind, MapOptions, tiff_file
from visionapps.inference.sinks import mask_file
from visionapps.inference.sources import ArraySource
from visionapps.structures import GeoRef, LabelSpace

HERE = GeoRef(CRS.from_epsg(32633).to_wkt(), (0.5, 0.0, 400000.0, 0.0, -0.5, 5000000.0))
PLAIN = MapOptions()
BANDS = {"labels": 1, "quantities": 3, "picture": 4}
KINDS = {"labels": LABELS, "quantities": QUANTITIES, "picture": PICTURE}


def source_of(height: int, width: int) -> ArraySource:
    return ArraySource(np.zeros((1, height, width), np.uint8), georef=HERE)


def pixels_of(kind: str, height: int = 1300, width: int = 1100) -> np.ndarray:
    """Smooth, with a noisy corner, and a region of no data that covers whole blocks."""
    rng, empty = np.random.default_rng(5), KINDS[kind].nodata or 0
    coarse = rng.integers(1, 6, (BANDS[kind], height // 40 + 1, width // 40 + 1), dtype=np.uint8)
    pixels = coarse.repeat(40, 1).repeat(40, 2)[:, :height, :width] * 40
    pixels[:, :200, :300] = rng.integers(0, 255, (BANDS[kind], 200, 300))
    pixels[:, 500:1040, 500:] = empty
    return pixels


def write(
    path: Path, kind: Kind, pixels: np.ndarray, *, options: MapOptions = PLAIN, cuts: Sequence[int] = (1300,)
) -> bytes:
    """Write (N, H, W) by bands whose heights are the cuts in turn."""
    count, height, width = pixels.shape
    with tiff_file(path, source_of(height, width), kind, bands=count, options=options) as rows:
        row, turn = 0, 0
        while row < height:
            rows.write(pixels[:, row : row + cuts[turn % len(cuts)]])
            row, turn = row + cuts[turn % len(cuts)], turn + 1
    return path.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_depend_neither_on_how_rows_come_nor_on_the_processors(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = pixels_of(kind)
    options = MapOptions(overwrite=True, overviews=True)
    whole = write(tmp_path / "a.tif", KINDS[kind], pixels, options=options)
    for cuts, processors in (((512,), 1), ((1, 700, 3), 3), ((511, 2, 511, 1), 8)):
        monkeypatch.setattr(os, "cpu_count", lambda count=processors: count)
        assert write(tmp_path / "a.tif", KINDS[kind], pixels, options=options, cuts=cuts) == whole
    with rasterio.open(tmp_path / "a.tif") as file:
        assert np.array_equal(file.read(), pixels)
        assert file.crs == CRS.from_epsg(32633)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compression", ["deflate", "zstd"])
def test_every_block_is_stored_once_and_empty_ones_not_at_all(tmp_path: Path, kind: str, compression: str) -> None:
    """A block that is written again leaves its first bytes in the file, used by nothing."""
    pixels = pixels_of(kind)
    options = MapOptions(compression=compression)  # type: ignore[arg-type]
    size = len(write(tmp_path / "a.tif", KINDS[kind], pixels, options=options, cuts=(96, 411)))
    used, stored = 0, {}
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.profile["compress"] == compression
        assert set(file.block_shapes) == {(512, 512)}
        for band in range(1, 2 if KINDS[kind].interleave == "pixel" else file.count + 1):
            for row, col in np.ndindex(3, 3):
                length = file.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=band)
                used += int(length or 0)
                stored[row, col] = length is not None
        assert np.array_equal(file.read(), pixels)
    assert [place for place, there in stored.items() if not there] == [(1, 1), (1, 2)], "the two blocks without data"
    assert 0 < size - used < 3000, "header and directory"


def test_a_map_without_data_is_tiny(tmp_path: Path) -> None:
    empty = np.full((1, 6000, 5000), 255, np.uint8)
    assert len(write(tmp_path / "a.tif", LABELS, empty)) < 3000
    with rasterio.open(tmp_path / "a.tif") as file:
        assert (file.read() == 255).all()


def test_overviews_of_labels_show_the_most_frequent_class_and_no_data_only_where_there_is_nothing(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(6)
    shown = rng.integers(0, 4, (600, 600), dtype=np.uint8)
    quads = shown[..., None].repeat(4, -1)
    quads[..., 0] = rng.integers(0, 4, shown.shape)  # one of four pixels is another class
    quads[..., 1:][rng.random((600, 600)) < 0.2] = 255  # three of four have no data: the one that has is shown
    expected = np.where(quads[..., 1] == 255, quads[..., 0], shown)
    quads[100:200, 100:200] = expected[100:200, 100:200] = 255
    pixels = quads.reshape(600, 600, 2, 2).transpose(0, 2, 1, 3).reshape(1, 1200, 1200)
    write(tmp_path / "a.tif", LABELS, pixels, options=MapOptions(overviews=True))
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.overviews(1) == [2, 4], "down to one block"
    with rasterio.open(tmp_path / "a.tif", OVERVIEW_LEVEL=0) as smaller:
        assert np.array_equal(smaller.read(1), expected)


def test_overviews_of_quantities_are_means_of_what_has_data(tmp_path: Path) -> None:
    pixels = np.tile(np.array([[100, 201], [255, 200]], np.uint8), (300, 300))[None]
    write(tmp_path / "a.tif", QUANTITIES, pixels, options=MapOptions(overviews=True))
    with rasterio.open(tmp_path / "a.tif", OVERVIEW_LEVEL=0) as smaller:
        assert (smaller.read(1) == 167).all(), "(100 + 201 + 200) / 3"


def test_overviews_of_pictures_are_not_darkened_by_transparent_pixels(tmp_path: Path) -> None:
    pixels = np.zeros((4, 600, 600), np.uint8)
    pixels[:, ::2] = np.array([10, 90, 200, 255], np.uint8)[:, None, None]
    write(tmp_path / "a.tif", PICTURE, pixels, options=MapOptions(overviews=True))
    with rasterio.open(tmp_path / "a.tif", OVERVIEW_LEVEL=0) as smaller:
        assert smaller.read()[:3, 7, 7].tolist() == [10, 90, 200]


@pytest.mark.parametrize(("width", "factors"), [(8192, []), (8193, [2, 4, 8, 16, 32])])
def test_only_large_maps_get_overviews_unless_told_otherwise(tmp_path: Path, width: int, factors: list[int]) -> None:
    pixels = np.zeros((1, 3, width), np.uint8)
    write(tmp_path / "a.tif", LABELS, pixels)
    write(tmp_path / "b.tif", LABELS, pixels, options=MapOptions(overviews=False))
    for name, expected in (("a.tif", factors), ("b.tif", [])):
        with rasterio.open(tmp_path / name) as file:
            assert file.overviews(1) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compression", ["deflate", "zstd"])
def test_a_cloud_optimised_map_holds_the_same_pixels_and_overviews(tmp_path: Path, kind: str, compression: str) -> None:
    pixels = pixels_of(kind)
    options = MapOptions(compression=compression, overviews=True)  # type: ignore[arg-type]
    write(tmp_path / "a.tif", KINDS[kind], pixels, options=options)
    cog = MapOptions(compression=compression, cog=True)  # type: ignore[arg-type]
    first, again = (write(tmp_path / name, KINDS[kind], pixels, options=cog) for name in ("b.tif", "c.tif"))
    assert first == again
    with rasterio.open(tmp_path / "a.tif") as plain, rasterio.open(tmp_path / "b.tif") as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.tags(ns="IMAGE_STRUCTURE")["COMPRESSION"] == compression.upper()
        assert file.overviews(1) == [2, 4] == plain.overviews(1)
        assert np.array_equal(file.read(), pixels)
        assert file.colorinterp == plain.colorinterp
        assert (file.nodata, file.transform, file.crs) == (plain.nodata, plain.transform, plain.crs)
        assert file.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1) is None, "no data, no block"
    for level in (0, 1):
        with (
            rasterio.open(tmp_path / "a.tif", OVERVIEW_LEVEL=level) as plain,
            rasterio.open(tmp_path / "b.tif", OVERVIEW_LEVEL=level) as file,
        ):
            assert np.array_equal(file.read(), plain.read())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "b.tif", "c.tif"]


def test_a_cloud_optimised_mask_keeps_palette_and_names(tmp_path: Path) -> None:
    labels = LabelSpace(("roof", "road"), ((200, 0, 0), (0, 100, 0)))
    with mask_file(tmp_path / "m.tif", source_of(600, 700), labels, options=MapOptions(cog=True)) as sink:
        pour(sink, np.ones((600, 700), np.uint8))
    with rasterio.open(tmp_path / "m.tif") as file:
        assert file.colormap(1)[1][:3] == (0, 100, 0)
        assert file.tags()["CLASS_1"] == "road"
        assert f"{tmp_path / 'm.tif'}.aux.xml" in file.files


def test_bytes_are_the_same_while_other_threads_fill_gdals_cache(tmp_path: Path) -> None:
    """GDAL's block cache is one for all files: a reader may push out what a writer has not written yet."""
    pixels = np.concatenate([pixels_of("picture"), pixels_of("picture")], axis=1)
    whole = write(tmp_path / "a.tif", PICTURE, pixels)
    stop = threading.Event()
    limit = get_gdal_config("GDAL_CACHEMAX")  # of the process: the threads change it for all tests after this one

    def read() -> None:
        with rasterio.open(tmp_path / "a.tif") as file:
            while not stop.is_set():
                with rasterio.Env(GDAL_CACHEMAX=2**21):
                    file.read()

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(4):
            assert write(tmp_path / f"{turn}.tif", PICTURE, pixels, cuts=(300,)) == whole
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        set_gdal_config("GDAL_CACHEMAX", limit)


def test_wrong_options_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"compression 'lzw': must be deflate or zstd"):
        MapOptions(compression="lzw")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"opacity 1.5: must be in \[0, 1\]"):
        MapOptions(opacity=1.5)


def write_on_a_small_disk(path: Path, kind: str, options: MapOptions, limit: int) -> str:
    fill_disk_at(limit)
    try:
        write(path, KINDS[kind], pixels_of(kind, 700, 600), options=options)
    except OutputError as error:
        return f"refused: {error}"
    return "written"


def test_a_map_that_the_disk_cuts_off_is_an_error_even_where_gdal_says_nothing(tmp_path: Path) -> None:
    """The last blocks are written when the file is closed, and GDAL reports no failure there."""
    path = tmp_path / "out" / "m.tif"
    cases: list[tuple[Path, str, MapOptions, int]] = []
    for kind, options in (
        ("labels", MapOptions()),
        ("picture", MapOptions(overviews=True)),
        ("quantities", MapOptions(overviews=True, cog=True)),
    ):
        size = len(write(tmp_path / f"{kind}.tif", KINDS[kind], pixels_of(kind, 700, 600), options=options))
        limits = [*(size * share // 6 for share in range(1, 6)), size - 300, size - 1]
        cases += [(path, kind, options, limit) for limit in limits]
    for case, said in zip(cases, call_each("test_geotiff", "write_on_a_small_disk", cases), strict=True):
        assert said.startswith(f"refused: {path}: cannot be written ("), f"{case}: {said}"
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_overviews_of_a_map_with_large_empty_corners_are_complete(tmp_path: Path, kind: str) -> None:
    """GDAL stores no block of an overview under which there is no data, and none whose mode is no data."""
    empty = KINDS[kind].nodata or 0
    pixels = np.full((BANDS[kind], 3200, 2100), empty, np.uint8)
    pixels[:, 1100:, 1100:] = 7
    pixels[:, 5, 5] = 9  # a block of the map with data, which no overview by mode shows
    write(tmp_path / "a.tif", KINDS[kind], pixels, options=MapOptions(overviews=True), cuts=(512,))
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.overviews(1) == [2, 4, 8]
        assert np.array_equal(file.read(), pixels)
    with rasterio.open(tmp_path / "a.tif", overview_level=1) as file:
        assert (file.read()[:, 280:, 280:] == 7).all()
