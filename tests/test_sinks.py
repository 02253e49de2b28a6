"""Maps on disk: pixels, palette, names, georeference; and nothing at all after an error."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.crs import CRS

from visionapps.errors import ConfigError, OutputError
from visionapps.inference.geotiff import MapOptions
from visionapps.inference.products import Band
from visionapps.inference.sinks import Sink, mask_file, overlay_file, scores_file, to_rgb
from visionapps.inference.sources import ArraySource, ControlPoint, ControlPoints
from visionapps.structures import GeoRef, InputSpec, LabelSpace
from visionapps.windows import Window

LABELS = LabelSpace(("roof", "road", "tree & shrub"), ((200, 0, 0), (0, 100, 0), (0, 0, 50)))
UTM = CRS.from_epsg(32633).to_wkt()
TURNED = (0.4, 0.3, 400000.0, 0.3, -0.4, 5000000.0)


def source_of(height: int = 700, width: int = 530, georef: GeoRef | None = None) -> ArraySource:
    image = np.random.default_rng(1).integers(0, 256, (3, height, width), dtype=np.uint8)
    return ArraySource(image, georef=georef)


def labels_of(height: int = 700, width: int = 530) -> np.ndarray:
    labels = np.random.default_rng(2).integers(0, 3, (height, width), dtype=np.uint8)
    labels[100:200, 50:60] = 255
    return labels


def pour(sink: Sink, planes: np.ndarray, step: int = 96) -> None:
    """Write (H, W) labels or (N, H, W) planes by bands of some rows."""
    planes = planes if planes.ndim == 3 else planes[None]
    _, height, width = planes.shape
    for row in range(0, height, step):
        window = Window(row, 0, min(step, height - row), width)
        sink.write(Band(window, planes[:, *window.slices]))


def test_a_geotiff_mask_lies_in_place_with_palette_names_and_nodata(tmp_path: Path) -> None:
    path, labels = tmp_path / "deep" / "map.tif", labels_of()
    with mask_file(path, source_of(georef=GeoRef(UTM, TURNED)), LABELS) as sink:
        pour(sink, labels)
    with rasterio.open(path) as file:
        assert np.array_equal(file.read(1), labels)
        assert file.nodata == 255
        assert tuple(file.transform)[:6] == pytest.approx(TURNED), "a rotated transform is kept"
        assert file.crs == CRS.from_epsg(32633)
        assert file.colormap(1)[1][:3] == (0, 100, 0)
        assert file.block_shapes == [(512, 512)]
        assert file.profile["compress"] == "deflate"
        assert [file.tags()[f"CLASS_{i}"] for i in range(3)] == list(LABELS.names)
        assert f"{path}.aux.xml" in file.files, "GDAL must find the names beside the map"
    categories = ElementTree.parse(f"{path}.aux.xml").iterfind("PAMRasterBand/CategoryNames/Category")
    assert [category.text for category in categories] == list(LABELS.names)
    assert sorted(p.name for p in path.parent.iterdir()) == ["map.tif", "map.tif.aux.xml"]


def test_control_points_go_to_the_map_as_they_came(tmp_path: Path) -> None:
    source = source_of(20, 30)
    points = tuple(ControlPoint(r, c, 400000 + 2.0 * c, 5000000 - 2.0 * r, 5.0) for r, c in ((0, 0), (0, 30), (20, 0)))
    source.control = ControlPoints(points, UTM)  # type: ignore[assignment]
    with mask_file(tmp_path / "g.tif", source, LABELS) as sink:
        pour(sink, labels_of(20, 30))
    with rasterio.open(tmp_path / "g.tif") as file:
        found, crs = file.gcps
        assert crs == CRS.from_epsg(32633)
        assert [(p.row, p.col, p.x, p.y, p.z) for p in found] == [(p.row, p.col, p.x, p.y, p.z) for p in points]


def test_a_png_mask_has_labels_as_values_and_the_classes_colours(tmp_path: Path) -> None:
    labels = labels_of(50, 70)
    with mask_file(tmp_path / "m.png", source_of(50, 70), LABELS) as sink:
        pour(sink, labels)
    with Image.open(tmp_path / "m.png") as mask:
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(mask), labels)
        painted = np.asarray(mask.convert("RGB"))
    assert (painted[labels == 2] == (0, 0, 50)).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_an_overlay_mixes_image_and_colour_by_the_opacity(tmp_path: Path, dtype: type[np.generic]) -> None:
    labels = labels_of(60, 90)
    labels[10:20] = 255
    raw = np.random.default_rng(3).integers(0, 256, (3, 60, 90)).astype(dtype)
    source = ArraySource(raw, georef=GeoRef(UTM, TURNED))
    image, colors = raw.astype(float), np.array(LABELS.colors, float)
    mixed = np.stack([0.7 * image[b] + 0.3 * colors[labels % 255, b] for b in range(3)])
    for name in ("o.tif", "o.png"):
        with overlay_file(tmp_path / name, source, LABELS, spec=InputSpec(), options=MapOptions(opacity=0.3)) as sink:
            pour(sink, labels, step=7)
    with rasterio.open(tmp_path / "o.tif") as file:
        pixels = file.read()
        assert tuple(file.transform)[:6] == pytest.approx(TURNED)
    assert np.abs(pixels[:3] - np.where(labels == 255, 0, mixed)).max() <= 0.501
    assert np.array_equal(pixels[3], np.where(labels == 255, 0, 255)), "no data is transparent"
    with Image.open(tmp_path / "o.png") as photo:
        shown = np.asarray(photo).transpose(2, 0, 1)
    assert np.abs(shown - np.where(labels == 255, image, mixed)).max() <= 0.501, "a photo shows the image there"


def test_scores_are_named_bands_that_gis_programs_show_as_quantities_from_0_to_1(tmp_path: Path) -> None:
    planes = np.random.default_rng(4).integers(0, 256, (3, 40, 50), dtype=np.uint8)
    source = source_of(40, 50, GeoRef(UTM, TURNED))
    with scores_file(tmp_path / "s.tif", source, ("label", "confidence", "probability roof")) as sink:
        pour(sink, planes, step=9)
    with rasterio.open(tmp_path / "s.tif") as file:
        assert np.array_equal(file.read(), planes[1:])
        assert file.descriptions == ("confidence", "probability roof")
        assert file.scales == (1 / 254, 1 / 254)
        assert file.offsets == (0, 0)
        assert file.units == ("1", "1")
        assert file.nodata == 255
        assert [color.name for color in file.colorinterp] == ["gray", "undefined"]
    assert [path.name for path in tmp_path.iterdir()] == ["s.tif"], "no side file"


def test_scores_without_a_plane_beside_the_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"s.tif: there is nothing to write but labels; ask for confidence"):
        scores_file(tmp_path / "s.tif", source_of(), ("label",)).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_picture_takes_red_green_and_blue_by_name_and_scales_to_8_bit() -> None:
    spec = InputSpec(("nir", "blue", "green", "red"), scale=1000.0, mean=(0,) * 4, std=(1,) * 4)
    values = np.array([9, 100, 500, 2000], np.uint16).reshape(4, 1, 1)
    assert to_rgb(values, spec).ravel().tolist() == pytest.approx([255, 127.5, 25.5])
    assert to_rgb(np.full((1, 1, 1), 7.0), InputSpec(("vv",), 255.0, (0,), (1,))).ravel().tolist() == [7, 7, 7]


@pytest.mark.parametrize("name", ["m.tif", "m.png"])
@pytest.mark.parametrize("mistake", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_middle_leaves_nothing_behind(tmp_path: Path, name: str, mistake: type[BaseException]) -> None:
    def spoil() -> None:
        with mask_file(tmp_path / name, source_of(), LABELS) as sink:
            pour(sink, labels_of()[:600])
            raise mistake

    with pytest.raises(mistake):
        spoil()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_map_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "m.tif"
    path.write_text("precious")
    with pytest.raises(OutputError, match=r"m.tif: exists already"), mask_file(path, source_of(), LABELS):
        pass
    assert path.read_text() == "precious"
    with mask_file(path, source_of(9, 9, GeoRef(UTM, TURNED)), LABELS, options=MapOptions(overwrite=True)) as sink:
        pour(sink, labels_of(9, 9))
    with rasterio.open(path) as file:
        assert file.shape == (9, 9)


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"m.jpg: cannot be written as .jpg; use .tif, .tiff, .png"),
        mask_file(tmp_path / "m.jpg", source_of(), LABELS),
    ):
        pass
