"""Objects as vector layers: where they lie, what they say, and outlines of masks."""

import json
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import shapely
from rasterio.crs import CRS
from rasterio.transform import Affine

from visionapps.errors import ConfigError, DataError, OutputError
from visionapps.inference.detecting_masks import placed
from visionapps.inference.object_vectors import mask_outline, write_object_layer
from visionapps.inference.sources import ArraySource, ControlPoint, ControlPoints
from visionapps.objects import Objects
from visionapps.structures import GeoRef

HERE = Affine(0.5, 0.1, 400000, 0.1, -0.5, 5000000)  # askew
GEOREF = GeoRef(CRS.from_epsg(32633).to_wkt(), tuple(HERE)[:6])
FOUND = Objects(np.array([[10.0, 20, 30, 26], [0, 0, 5.5, 4]]), np.array([1, 0]), np.array([0.9, 0.25]))


def source(georef: GeoRef | None = GEOREF) -> ArraySource:
    return ArraySource(np.zeros((3, 100, 120), np.uint8), georef=georef, name="scene.tif")


def test_a_box_becomes_a_polygon_in_the_reference_system_of_the_raster(tmp_path: Path) -> None:
    path = tmp_path / "found.gpkg"
    write_object_layer(path, FOUND, source(), ("car", "bus"), overwrite=False)
    meta, _, binary, columns = pyogrio.raw.read(path)
    assert CRS.from_user_input(meta["crs"]) == CRS.from_epsg(32633)
    values = dict(zip(meta["fields"], columns, strict=True))
    assert values["class"].tolist() == ["bus", "car"]
    assert values["label"].tolist() == [1, 0]
    assert values["score"].tolist() == [0.9, 0.25]
    assert values["image"].tolist() == ["scene.tif"] * 2
    shapes = shapely.from_wkb(binary)
    corners = [HERE @ corner for corner in ((10, 20), (30, 20), (30, 26), (10, 26))]
    assert shapely.equals(shapes[0], shapely.normalize(shapely.Polygon(corners)))
    assert shapely.get_num_coordinates(shapes[0]) == 5
    assert all(ring.exterior.is_ccw for ring in shapes)
    assert values["area_m2"] == pytest.approx(shapely.area(shapes), rel=2e-3)  # the scale of UTM is taken out


def test_geojson_is_in_longitude_and_latitude_and_a_photo_in_pixels(tmp_path: Path) -> None:
    write_object_layer(tmp_path / "a.geojson", FOUND, source(), ("car", "bus"), overwrite=False)
    point = json.loads((tmp_path / "a.geojson").read_text())["features"][0]["geometry"]["coordinates"][0][0]
    assert point == pytest.approx([13.73, 45.15], abs=0.02)
    write_object_layer(tmp_path / "b.geojson", FOUND, source(None), ("car", "bus"), overwrite=False)
    feature = json.loads((tmp_path / "b.geojson").read_text())["features"][1]
    assert sorted({tuple(p) for p in feature["geometry"]["coordinates"][0]}) == [(0, 0), (0, 4), (5.5, 0), (5.5, 4)]
    assert feature["properties"] == {"label": 0, "class": "car", "score": 0.25, "area": 22.0, "image": "scene.tif"}


@pytest.mark.parametrize("suffix", ["gpkg", "geojson", "fgb"])
def test_no_object_gives_an_empty_layer_and_a_second_run_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"none.{suffix}"
    write_object_layer(path, Objects.none(scored=True), source(), ("car",), overwrite=False)
    assert pyogrio.read_info(path, force_feature_count=True)["features"] == 0
    path = tmp_path / f"two.{suffix}"
    write_object_layer(path, FOUND, source(), ("car", "bus"), overwrite=False)
    first = path.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        write_object_layer(path, FOUND, source(), ("car", "bus"), overwrite=False)
    write_object_layer(path, FOUND, source(), ("car", "bus"), overwrite=True)
    assert path.read_bytes() == first


def test_masks_become_their_outlines_with_holes_and_parts(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pictures = [rng.random((9, 11)) < 0.6, np.ones((4, 5), bool)]
    places = [(30, 40), (96, 0)]
    masks = tuple(placed(p, row, col, (100, 120)) for p, (row, col) in zip(pictures, places, strict=True))
    boxes = np.array([[40.5, 30, 50, 38], [0, 96, 5, 100]])  # the first is smaller than its mask
    for picture, (row, col), mask, box in zip(pictures, places, masks, boxes, strict=True):
        outline = mask_outline(mask, box)
        inside = shapely.contains_xy(outline, *np.meshgrid(np.arange(120) + 0.5, np.arange(100) + 0.5))
        whole = np.zeros((100, 120), bool)
        whole[row : row + len(picture), col : col + picture.shape[1]] = picture
        assert np.array_equal(inside, whole)
        assert outline.area == picture.sum()
    areas = np.array([float(p.sum()) for p in pictures])
    found = Objects(boxes, np.zeros(2), np.ones(2), areas=areas, masks=masks)
    write_object_layer(tmp_path / "masks.gpkg", found, source(), ("roof",), overwrite=False)
    _, _, binary, _ = pyogrio.raw.read(tmp_path / "masks.gpkg")
    assert shapely.area(shapely.from_wkb(binary)) == pytest.approx(areas * 0.26)  # |det| of the transform


def test_what_lies_nowhere_and_unknown_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"use \.gpkg, \.geojson, \.fgb"):
        write_object_layer(tmp_path / "a.shp", FOUND, source(), ("car", "bus"), overwrite=False)
    warped = source(None)
    warped.control = ControlPoints((ControlPoint(0, 0, 1, 1, 0),), None)  # type: ignore[assignment]
    with pytest.raises(DataError, match="ground control points and no transform"):
        write_object_layer(tmp_path / "a.gpkg", FOUND, warped, ("car", "bus"), overwrite=False)
    assert not list(tmp_path.iterdir())
