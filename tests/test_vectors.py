"""Vector layers read back with other libraries; areas against the exact cells of the ellipsoid."""

import resource
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pytest
import shapely
from forked import call_each, fill_disk_at
from rasterio.crs import CRS
from rasterio.warp import transform_geom

from visionapps.errors import ConfigError, DataError, OutputError
from visionapps.inference.areas import pixel_areas
from visionapps.inference.products import Band
from visionapps.inference.sources import ArraySource, ControlPoint, ControlPoints
from visionapps.inference.vectors import VectorOptions, vector_file
from visionapps.structures import GeoRef, LabelSpace
from visionapps.windows import Window

LABELS = LabelSpace.named(["field", "road", "house"])
MAP = np.zeros((60, 80), np.uint8)
MAP[10:30, 5:40] = 2
MAP[15:20, 10:20] = 1
MAP[40:44] = 1
MAP[50:, 70:] = 255
VOTES = np.where(MAP == 2, 254, 127).astype(np.uint8)
RADIUS, E2 = 6378137.0, 6.69437999014e-3


def wkt(code: int) -> str:
    return CRS.from_epsg(code).to_wkt()


UTM = GeoRef(wkt(32633), (0.5, 0.0, 400_000.0, 0.0, -0.5, 5_800_000.0))


def source(georef: GeoRef | None, labels: np.ndarray = MAP) -> ArraySource:
    return ArraySource(np.zeros((1, *labels.shape), np.uint8), georef=georef, name="scene.tif")


def write(path: Path, georef: GeoRef | None, *, rows: int = 17, labels: np.ndarray = MAP, **options) -> Path:
    confidence, overwrite = options.pop("confidence", 1), options.pop("overwrite", False)
    settings = VectorOptions(**options)
    of = source(georef, labels)
    planes = np.stack([labels, VOTES if labels is MAP else labels])
    with vector_file(path, of, LABELS, options=settings, confidence=confidence, overwrite=overwrite) as sink:
        for row in range(0, len(labels), rows):
            part = planes[:, row : row + rows]
            sink.write(Band(Window(row, 0, part.shape[1], labels.shape[1]), part))
    return path


def read(path: Path) -> tuple[list[dict], np.ndarray, CRS | None]:
    """Attributes, geometries and CRS as another library sees them."""
    if path.suffix == ".parquet":
        import json

        table = pq.read_table(path)
        geo = json.loads(table.schema.metadata[b"geo"])
        crs = geo["columns"]["geometry"]["crs"]
        found = None if crs is None else CRS.from_dict(crs) if "id" not in crs else CRS.from_epsg(crs["id"]["code"])
        return table.drop(["geometry"]).to_pylist(), shapely.from_wkb(table["geometry"].to_pylist()), found
    meta, _, shapes, columns = pyogrio.raw.read(path)
    rows = [dict(zip(meta["fields"], values, strict=True)) for values in zip(*columns, strict=True)]
    return rows, shapely.from_wkb(shapes), None if meta["crs"] is None else CRS.from_user_input(meta["crs"])


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".fgb", ".parquet"])
def test_every_format_holds_the_regions_with_class_area_and_confidence_where_they_lie(tmp_path, suffix):
    rows, shapes, crs = read(write(tmp_path / f"map{suffix}", UTM))
    assert sorted((r["label"], r["class"], r["pixels"]) for r in rows) == [
        (0, "field", 1180),
        (0, "field", 2500),
        (1, "road", 50),
        (1, "road", 320),
        (2, "house", 650),
    ]
    house = next(i for i, r in enumerate(rows) if r["class"] == "house")
    assert rows[house]["confidence"] == pytest.approx(1.0)
    assert rows[house]["area_m2"] == pytest.approx(650 * 0.25, rel=1e-3)
    outline = shapely.box(400002.5, 5799985, 400020, 5799995) - shapely.box(400005, 5799990, 400010, 5799992.5)
    expected = 4326 if suffix == ".geojson" else 32633
    assert crs == CRS.from_epsg(expected)
    drawn = shapely.geometry.shape(transform_geom("EPSG:32633", f"EPSG:{expected}", outline))
    assert shapely.hausdorff_distance(shapes[house], drawn) < (1e-7 if suffix == ".geojson" else 1e-6)
    assert all(shapely.is_valid(shapes))
    assert all(shapely.is_ccw(shapely.get_exterior_ring(shapes)))


def test_the_bytes_do_not_depend_on_how_bands_were_cut(tmp_path):
    for suffix in (".gpkg", ".geojson", ".fgb", ".parquet"):
        files = [write(tmp_path / str(rows) / f"map{suffix}", UTM, rows=rows) for rows in (1, 17, 60)]
        assert len({file.read_bytes() for file in files}) == 1, suffix


def test_a_rotated_raster_is_drawn_by_its_whole_transform(tmp_path):
    turned = GeoRef(wkt(32633), (0.4, 0.3, 4e5, 0.3, -0.4, 5.8e6))
    rows, shapes, _ = read(write(tmp_path / "map.gpkg", turned, classes=("house",)))
    assert [r["class"] for r in rows] == ["house"]
    assert shapes[0].area == pytest.approx(650 * 0.25)
    assert shapely.distance(shapes[0], shapely.Point(4e5 + 0.4 * 5 + 0.3 * 10, 5.8e6 + 0.3 * 5 - 0.4 * 10)) < 1e-6


def test_photos_get_pixel_coordinates_and_an_area_without_a_unit(tmp_path):
    for suffix in (".gpkg", ".geojson", ".fgb", ".parquet"):
        rows, shapes, crs = read(write(tmp_path / f"map{suffix}", None, confidence=None))
        assert crs is None or suffix == ".geojson"  # which has no way to say so
        house = next(i for i, r in enumerate(rows) if r["class"] == "house")
        assert set(rows[house]) == {"label", "class", "pixels", "area"}
        assert (rows[house]["area"], shapes[house].area) == (650, 650)
        assert shapes[house].bounds == (5, 10, 40, 30)


def test_small_regions_and_unwanted_classes_are_left_out(tmp_path):
    rows, _, _ = read(write(tmp_path / "map.fgb", UTM, min_area_m2=20.0, classes=("road", "house")))
    assert sorted((r["class"], r["pixels"]) for r in rows) == [("house", 650), ("road", 320)]


def test_a_map_without_data_is_a_layer_without_polygons(tmp_path):
    nothing = np.full((20, 30), 255, np.uint8)
    for suffix in (".gpkg", ".geojson", ".fgb", ".parquet"):
        rows, _, _ = read(write(tmp_path / f"map{suffix}", UTM, labels=nothing))
        assert rows == []


def exact_cell(south: float, north: float, width: float) -> float:
    """Area of the ellipsoid between two parallels and two meridians, degrees in, square metres out (Snyder, 3-12)."""
    e = E2**0.5

    def q(latitude: float) -> float:
        s = np.sin(np.deg2rad(latitude))
        return (1 - E2) * (s / (1 - E2 * s * s) + np.arctanh(e * s) / e)

    return RADIUS**2 / 2 * (q(north) - q(south)) * np.deg2rad(width)


@pytest.mark.parametrize(("size", "north"), [(1.0, 80.0), (1e-6, 52.0), (1e-3, -33.0), (0.25, 90.0)])
def test_pixels_in_degrees_have_the_area_of_the_ellipsoid(size, north):
    areas = pixel_areas(GeoRef(wkt(4326), (size, 0, 10.0, 0, -size, north)), (20, 30), name="x")
    exact = [exact_cell(north - (i + 1) * size, north - i * size, size) for i in range(20)]
    np.testing.assert_allclose(areas, exact, rtol=1e-4)


def test_web_mercator_pixels_have_their_true_area():
    top, size = 6_800_000.0, 10.0
    areas = pixel_areas(GeoRef(wkt(3857), (size, 0, 1e6, 0, -size, top)), (2000, 9), name="x")
    edges = np.rad2deg(2 * np.arctan(np.exp((top - size * np.array([0, 1, 1999, 2000])) / RADIUS)) - np.pi / 2)
    width = np.rad2deg(size / RADIUS)
    assert areas[0] == pytest.approx(exact_cell(edges[1], edges[0], width), rel=1e-5)
    assert areas[-1] == pytest.approx(exact_cell(edges[3], edges[2], width), rel=1e-5)


def test_projected_pixels_have_their_area_without_the_scale_factor_and_in_metres():
    for size in (0.03, 10.0):  # on the central meridian lengths on the map are 0.9996 of those on the ground
        areas = pixel_areas(GeoRef(wkt(32633), (size, 0, 5e5 - 5 * size, 0, -size, 5.8e6)), (50, 10), name="x")
        np.testing.assert_allclose(areas, size**2 / 0.9996**2, rtol=1e-6)
    feet = pixel_areas(GeoRef(wkt(2263), (1, 0, 1e6, 0, -1, 2e5)), (3, 3), name="x")
    np.testing.assert_allclose(feet, (1200 / 3937) ** 2, rtol=3e-4)


def test_a_raster_beside_the_earth_is_refused():
    with pytest.raises(DataError, match=r"far\.tif: (lies nowhere|its coordinates cannot be brought)"):
        pixel_areas(GeoRef(wkt(32633), (1, 0, 1e12, 0, -1, 1e12)), (3, 3), name="far.tif")


def test_wrong_requests_say_what_to_do(tmp_path):
    with (
        pytest.raises(ConfigError, match=r"map\.dxf: no vector format has the suffix '\.dxf'; use \.gpkg"),
        vector_file(tmp_path / "map.dxf", source(UTM), LABELS),
    ):
        pass
    with pytest.raises(ConfigError, match="no class lake; there are field, road, house"):
        write(tmp_path / "map.gpkg", UTM, classes=("lake",))
    with pytest.raises(ConfigError, match=r"min_area_m2 -1 must not be negative"):
        VectorOptions(min_area_m2=-1)
    tied = source(None)
    tied.control = ControlPoints((ControlPoint(0, 0, 1, 1, 0),), wkt(4326))
    with (
        pytest.raises(DataError, match=r"scene\.tif: has ground control points and no transform"),
        vector_file(tmp_path / "map.gpkg", tied, LABELS),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write(tmp_path / "map.gpkg", UTM)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        write(path, UTM)
    with pytest.raises(ZeroDivisionError), vector_file(path, source(UTM), LABELS, overwrite=True) as sink:
        sink.write(Band(Window(0, 0, 30, 80), MAP[None, : 30 // 0]))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def write_on_small_disks(folder: Path) -> str:
    """In one process, which compiles and opens everything once."""
    noise = np.random.default_rng(0).integers(0, 3, (150, 150)).astype(np.uint8)
    said = []
    for suffix in (".gpkg", ".geojson", ".fgb", ".parquet"):
        whole = write(folder / "whole" / f"map{suffix}", UTM, labels=noise).stat().st_size
        for share in (0.3, 0.96):
            fill_disk_at(int(whole * share))
            try:
                write(folder / "cut" / f"map{suffix}", UTM, labels=noise)
                said.append(f"written {suffix} {share}")
            except OutputError as error:
                said.append(f"refused in {str(error).count(chr(10))} line breaks")
            fill_disk_at(resource.RLIM_INFINITY)
    return ",".join(said)


def test_a_disk_that_cuts_files_off_is_one_error_and_leaves_nothing(tmp_path):
    (said,) = call_each("test_vectors", "write_on_small_disks", [(tmp_path,)])
    assert said.split(",") == ["refused in 0 line breaks"] * 8
    assert list((tmp_path / "cut").iterdir()) == []
