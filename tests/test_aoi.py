"""Areas of interest: the pixels that rasterio would burn, whatever the window, and no block read in vain."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.features import geometry_mask
from rasterio.transform import Affine
from rasterio.warp import transform_geom

from visionapps import testing
from visionapps.errors import DataError
from visionapps.inference.aoi import Area, ClippedSource
from visionapps.inference.sources import ArraySource, Pixels, open_source
from visionapps.structures import GeoRef, InputSpec
from visionapps.windows import Window

UTM = CRS.from_epsg(32633)
HERE = Affine(0.5, 0, 400000, 0, -0.5, 5000000)
GRID = GeoRef(UTM.to_wkt(), tuple(HERE)[:6])  # type: ignore[arg-type]
SHAPE = (200, 300)


class CountingSource(ArraySource):
    """An array that remembers which windows were read."""

    def __init__(self, image: np.ndarray, block: tuple[int, int], **options: Any) -> None:
        super().__init__(image, **options)
        self.block = block
        self.windows: list[Window] = []

    def read(self, window: Window) -> Pixels:
        self.windows.append(window)
        return super().read(window)


def star(x: float, y: float, radius: float, corners: int = 9) -> Any:
    """A jagged polygon with a hole in the middle."""
    angles = np.linspace(0, 2 * np.pi, 2 * corners, endpoint=False)
    radii = np.where(np.arange(2 * corners) % 2, radius / 2, radius)
    rim = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], axis=1)
    return shapely.Polygon(rim, [shapely.Point(x, y).buffer(radius / 5).exterior.coords])


def write(path: Path, *geometries: Any, crs: str | None = "EPSG:32633") -> Path:
    """A GeoJSON file (longitude and latitude unless a CRS is named)."""
    shapes = [{"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(g)} for g in geometries]
    member = {"crs": {"type": "name", "properties": {"name": crs}}} if crs else {}
    path.write_text(json.dumps({"type": "FeatureCollection", **member, "features": shapes}))
    return path


def burnt(geometries: list[Any], georef: GeoRef = GRID, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """rasterio's own idea of what lies inside."""
    return np.asarray(~geometry_mask(geometries, shape, Affine(*georef.transform)))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_mask_is_what_rasterio_burns_whatever_the_window(data: st.DataObject) -> None:
    size = st.floats(5, 120)
    shapes = [
        star(data.draw(st.floats(-20, 320)), data.draw(st.floats(-20, 220)), data.draw(size), data.draw(corners))
        for corners in [st.integers(3, 400)] * data.draw(st.integers(1, 3))
    ]
    area = Area(shapes, SHAPE)
    row, col = data.draw(st.integers(0, SHAPE[0] - 1)), data.draw(st.integers(0, SHAPE[1] - 1))
    window = Window(row, col, data.draw(st.integers(1, SHAPE[0] - row)), data.draw(st.integers(1, SHAPE[1] - col)))
    expected = np.asarray(~geometry_mask(shapes, SHAPE, Affine.identity()))
    whole = area.mask(Window(0, 0, *SHAPE))
    assert (whole != expected).sum() <= 2  # cutting a polygon up may move a corner by a rounding error
    assert np.array_equal(area.mask(window), whole[window.slices])
    assert area.touches(window) or not whole[window.slices].any()
    assert area.touches(Window(0, 0, *SHAPE)) or not whole.any()


def test_a_turned_raster_and_an_area_in_its_own_crs(tmp_path: Path) -> None:
    turned = GeoRef(UTM.to_wkt(), (0.4, 0.3, 400000, 0.3, -0.4, 5000000))
    shape = star(400080, 4999990, 40)
    area = Area.open(write(tmp_path / "a.geojson", shape), turned, SHAPE)
    assert np.array_equal(area.mask(Window(0, 0, *SHAPE)), burnt([shape], turned))
    bounds = area.bounds
    rows, cols = np.nonzero(area.mask(Window(0, 0, *SHAPE)))
    assert bounds.row <= rows.min() <= rows.max() < bounds.row_end
    assert bounds.col <= cols.min() <= cols.max() < bounds.col_end


def test_long_edges_bend_on_their_way_to_another_crs(tmp_path: Path) -> None:
    shape = (400, 4000)  # 400 km wide: a straight line of latitude sags by kilometres in UTM
    georef = GeoRef(UTM.to_wkt(), (100, 0, 300000, 0, -100, 6700000))
    box = shapely.box(11, 60.2, 20, 60.35)
    area = Area.open(write(tmp_path / "a.geojson", box, crs=None), georef, shape)
    dense = transform_geom("EPSG:4326", UTM, shapely.geometry.mapping(shapely.segmentize(box, 0.001)))
    straight = transform_geom("EPSG:4326", UTM, shapely.geometry.mapping(box))
    mask, expected = area.mask(Window(0, 0, *shape)), burnt([dense], georef, shape)
    assert (mask != expected).mean() < 2e-4
    assert (burnt([straight], georef, shape) != expected).mean() > 0.05


def test_only_what_lies_near_is_projected(tmp_path: Path) -> None:
    """The whole earth as an area: most of it has no place in UTM."""
    earth = shapely.box(-180, -90, 180, 90)
    area = Area.open(write(tmp_path / "earth.geojson", earth, crs=None), GRID, SHAPE)
    assert area.mask(Window(0, 0, *SHAPE)).all()
    assert area.mask(Window(20, 30, 5, 5)).all()
    # 900 km wide: its northernmost point, on the central meridian, is none of those that bounds are taken from
    wide = GeoRef(UTM.to_wkt(), (1000, 0, 111364, 0, -20, 7700000))
    area = Area.open(tmp_path / "earth.geojson", wide, (900, 900))
    assert area.mask(Window(0, 0, 900, 900)).all()


def test_what_lies_outside_is_not_valid_and_not_read(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(1, 255, (2, 600, 2000), dtype=np.uint8)
    holes = np.random.default_rng(1).random((600, 2000)) < 0.9
    source = CountingSource(image, (64, 300), valid=holes)
    shapes = [shapely.box(310, 100, 500, 180), shapely.box(1250, 120, 1800, 300)]
    clipped = ClippedSource(source, Area(shapes, (600, 2000)))
    testing.check_source(clipped)
    source.windows.clear()
    inside = np.zeros((600, 2000), bool)
    inside[100:180, 310:500] = inside[120:300, 1250:1800] = True
    pixels = clipped.read(Window(0, 0, 600, 2000))
    assert np.array_equal(pixels.valid, inside & holes)
    assert np.array_equal(pixels.values[:, inside], image[:, inside])
    assert source.windows == [Window(100, 300, 200, 300), Window(100, 1200, 200, 600)]
    source.windows.clear()
    assert not clipped.read(Window(310, 0, 290, 2000)).valid.any()
    assert not clipped.read(Window(0, 600, 600, 500)).valid.any()
    assert source.windows == []
    clipped.read(Window(130, 1300, 50, 100))
    assert source.windows == [Window(130, 1300, 50, 100)]
    edge = Window(100, 300, 80, 210)
    assert np.array_equal(clipped.read(edge).valid, (inside & holes)[edge.slices])


@pytest.mark.parametrize("suffix", [".gpkg", ".shp", ".geojson", ".fgb"])
def test_every_common_format_is_read(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    import pyogrio

    shapes = [star(400060, 4999950, 30), star(400100, 4999960, 20)]
    path = tmp_path / f"area{suffix}"
    options: dict[str, Any] = {"geometry_type": "Polygon", "crs": "EPSG:32633"}
    pyogrio.raw.write(path, shapely.to_wkb(shapes), [], [], **options)
    with caplog.at_level(logging.WARNING):
        area = Area.open(path, GRID, SHAPE)
    assert np.array_equal(area.mask(Window(0, 0, *SHAPE)), burnt(shapes))
    assert not caplog.text
    if suffix == ".gpkg":
        pyogrio.raw.write(path, shapely.to_wkb(shapes), [], [], layer="more", append=True, **options)
        Area.open(path, GRID, SHAPE)
        assert "area.gpkg: has the layers area, more; the area is taken from the first" in caplog.text


def test_what_cannot_be_an_area_is_named(tmp_path: Path) -> None:
    def message(path: Path, georef: GeoRef | None = GRID) -> str:
        with pytest.raises(DataError) as caught:
            Area.open(path, georef, SHAPE, name="scene.tif")
        return str(caught.value)

    good = write(tmp_path / "good.geojson", star(400060, 4999950, 30))
    assert message(tmp_path / "gone.gpkg").startswith(f"{tmp_path}/gone.gpkg: no such file; check the path")
    (tmp_path / "text.gpkg").write_text("no vectors")
    assert "text.gpkg: cannot be read (the file not recognized" in message(tmp_path / "text.gpkg")
    line = write(tmp_path / "line.geojson", shapely.LineString([(400000, 5000000), (400050, 4999950)]))
    assert "line.geojson: holds no polygon in its layer line" in message(line)
    assert "empty.geojson: h" in message(write(tmp_path / "empty.geojson"))
    away = write(tmp_path / "away.geojson", star(10, 10, 2), star(12, 10, 2), crs=None)
    assert "away.geojson: none of its 2 polygons meets scene.tif" in message(away)
    for georef in (None, GeoRef(None, GRID.transform)):
        assert message(good, georef).startswith("scene.tif: where it lies is not known")
    local = GeoRef('LOCAL_CS["site",UNIT["metre",1]]', GRID.transform)
    assert "good.geojson: cannot be brought from its coordinate reference system to that of scene.tif" in message(
        good, local
    )
    import pyogrio

    options: dict[str, Any] = {"geometry_type": "Polygon", "crs": None}
    with pytest.warns(UserWarning, match="'crs' was not provided"):
        pyogrio.raw.write(tmp_path / "bare.shp", shapely.to_wkb([star(400060, 4999950, 30)]), [], [], **options)
    assert "bare.shp: has no coordinate reference system; say which" in message(tmp_path / "bare.shp")


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326"])
def test_a_self_crossing_polygon_is_mended(tmp_path: Path, crs: str) -> None:
    bow = shapely.Polygon([(400010, 4999990), (400050, 4999950), (400050, 4999990), (400010, 4999950)])
    there = shapely.geometry.shape(transform_geom(UTM, crs, shapely.geometry.mapping(bow)))
    area = Area.open(write(tmp_path / "bow.geojson", there, crs=crs), GRID, SHAPE)
    mask = area.mask(Window(0, 0, *SHAPE))
    assert mask.sum() == pytest.approx(2 * 400 / 0.25, rel=0.03)  # two triangles of 20 m x 40 m / 2
    assert mask[60, 25]
    assert not mask[25, 60]


def test_a_real_shapefile_in_another_crs(shared_data: Path) -> None:
    rasters = shared_data / "rasters"
    shapefile = rasters / "s2_landcover_polygons.shp"
    source = open_source(rasters / "s2_8band.tif", InputSpec(), bands=["3", "2", "1"], area=shapefile)
    valid = source.read(Window(0, 0, *source.shape)).valid
    source.close()
    import pyogrio

    meta, _, binary, _ = pyogrio.raw.read(shapefile, columns=[])
    shapes = [transform_geom(meta["crs"], "EPSG:4326", shapely.geometry.mapping(g)) for g in shapely.from_wkb(binary)]
    with rasterio.open(rasters / "s2_8band.tif") as raster:
        expected = ~geometry_mask(shapes, raster.shape, raster.transform)
    assert valid.sum() > 500
    assert np.array_equal(valid, expected)
