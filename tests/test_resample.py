"""Reading at another resolution: no seams, no leaks of what is not valid, and the same place on the ground."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.transform import Affine, xy

from visionapps import testing
from visionapps.errors import ConfigError
from visionapps.inference.resample import ResampledSource, taps
from visionapps.inference.resolution import at_resolution, ground_resolution, pixel_size
from visionapps.inference.sources import ArraySource, open_source
from visionapps.structures import GeoRef, InputSpec
from visionapps.windows import Window


def image_of(height: int, width: int, dtype: str = "uint8", bands: int = 2) -> np.ndarray:
    return np.random.default_rng(height + width).integers(0, 256, (bands, height, width)).astype(dtype)


def whole(source: Any) -> Any:
    return source.read(Window(0, 0, *source.shape))


def georef(epsg: int, *transform: float) -> GeoRef:
    return GeoRef(CRS.from_epsg(epsg).to_wkt(), transform)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(40, 60), (33, 47), (13, 9), (1, 1)])
def test_shrinking_weighs_by_area_as_opencv_does(size: tuple[int, int]) -> None:
    image = image_of(80, 120, "float32")
    source = ResampledSource(ArraySource(image), (80 / size[0], 120 / size[1]))
    assert source.shape == size
    expected = cv2.resize(np.moveaxis(image, 0, -1), size[::-1], interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(whole(source).values, np.moveaxis(expected, -1, 0), rtol=1e-4)


def test_growing_is_linear_between_centres_as_opencv_does() -> None:
    image = image_of(40, 30, "float32")
    source = ResampledSource(ArraySource(image), (0.4, 0.7))
    expected = cv2.resize(np.moveaxis(image, 0, -1), source.shape[::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(whole(source).values, np.moveaxis(expected, -1, 0), atol=0.02)


def test_whole_numbers_are_rounded_and_keep_their_type() -> None:
    image = np.array([[[1, 2, 10, 10], [2, 2, 11, 11]]], np.uint8)
    pixels = whole(ResampledSource(ArraySource(image), (2, 2)))
    assert pixels.values.dtype == np.uint8
    assert pixels.values.tolist() == [[[2, 11]]]  # means 1.75 and 10.5
    large = np.full((1, 4, 4), 2**31 - 65, np.int32)
    assert (whole(ResampledSource(ArraySource(large), (1.3, 1.7))).values == 2**31 - 65).all()


@settings(max_examples=80, deadline=None)
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    step=st.tuples(st.floats(0.3, 4), st.floats(0.3, 4)),
    dtype=st.sampled_from(["uint8", "float32"]),
    data=st.data(),
)
def test_the_pixels_of_a_window_do_not_depend_on_the_window(
    size: tuple[int, int], step: tuple[float, float], dtype: str, data: st.DataObject
) -> None:
    valid = np.random.default_rng(0).random(size) < data.draw(st.sampled_from([0.5, 0.97, 2]))
    source = ResampledSource(ArraySource(image_of(*size, dtype), valid=valid), step)
    height, width = source.shape
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    window = Window(row, col, data.draw(st.integers(1, height - row)), data.draw(st.integers(1, width - col)))
    everything, part = whole(source), source.read(window)
    assert np.array_equal(part.values, everything.values[:, *window.slices])
    assert np.array_equal(part.valid, everything.valid[window.slices])


def test_rows_read_in_several_goes_meet_without_a_seam() -> None:
    image = image_of(2600, 2000, bands=1)  # 5.2 million pixels: more than are read at a time
    valid = np.arange(2600)[:, None] < np.full(2000, 2470)
    pixels = whole(ResampledSource(ArraySource(image, valid=valid), (1.3, 1.3)))
    expected = cv2.resize(image[0].astype(np.float32), (1538, 2000), interpolation=cv2.INTER_AREA)
    assert pixels.valid[:1900].all()
    assert not pixels.valid[1900:].any()
    assert np.abs(pixels.values[0] - expected)[:1900].max() <= 0.51


def test_pixels_that_are_not_valid_take_no_part_and_half_of_a_pixel_is_enough() -> None:
    rng = np.random.default_rng(3)
    image = rng.integers(0, 100, (1, 40, 100)).astype(np.float32)
    image[0, rng.random((40, 100)) < 0.5] = np.nan
    source = ResampledSource(ArraySource(image), (2, 5))
    pixels = whole(source)
    for row in range(20):
        for col in range(20):
            cell = image[0, 2 * row : 2 * row + 2, 5 * col : 5 * col + 5]
            assert pixels.valid[row, col] == (np.isfinite(cell).sum() >= 5)
            if np.isfinite(cell).any():
                assert pixels.values[0, row, col] == pytest.approx(np.nanmean(cell), rel=1e-5)
    testing.check_source(source)


@given(source=st.integers(1, 300), result=st.integers(1, 300))
def test_weights_sum_to_one_and_reach_every_pixel_when_shrinking(source: int, result: int) -> None:
    first, weights = taps(source, result)
    assert np.abs(weights.sum(1) - 1).max() < 1e-6
    share = np.zeros(source + weights.shape[1])
    for begin, row in zip(first, weights, strict=True):
        share[begin : begin + len(row)] += row
    assert share[source:].max(initial=0) == 0
    if source >= result:
        np.testing.assert_allclose(share[:source], result / source, atol=1e-5)


def test_the_corners_stay_where_they_are() -> None:
    turned = GeoRef("crs", (0.3, 0.1, 500.0, 0.1, -0.3, 900.0))
    source = ResampledSource(ArraySource(image_of(101, 77), georef=turned), (2.5, 1.9))
    assert source.georef is not None
    assert source.georef.crs == "crs"
    for down in (0, 1):
        for right in (0, 1):
            old = xy(Affine(*turned.transform), 101 * down, 77 * right, offset="ul")
            new = xy(Affine(*source.georef.transform), source.shape[0] * down, source.shape[1] * right, offset="ul")
            assert new == pytest.approx(old)


@pytest.mark.parametrize(
    ("place", "size"),
    [
        # lengths of a degree: 110,574 by 111,320 m on the equator, 111,412 by 55,800 m at 60 degrees
        (georef(4326, 1e-5, 0, 10, 0, -1e-5, 0), (1.10574, 1.11320)),
        (georef(4326, 1e-5, 0, 10, 0, -1e-5, 60), (1.11412, 0.55800)),
        (georef(3857, 2, 0, 0, 0, -2, 8399737.9), (1.0, 1.0)),  # Mercator stretches by 2 at 60 degrees
        (georef(3832, 2, 0, 3339584.72 - 100, 0, -2, 8362698), (1.0, 1.0)),  # the middle lies on the date line
        (georef(32633, 0, 0.5, 500000, 0.3, 0, 5000000), (0.5, 0.3)),  # turned by a quarter: rows run east
        (georef(32633, 3, 4, 500000, 4, -3, 5000000), (5, 5)),
        (georef(2263, 1, 0, 987000, 0, -2, 212000), (0.6096, 0.3048)),  # in feet
        (georef(32633, 1, 0, 1e12, 0, -1, 1e12), None),
        (GeoRef(None, (1, 0, 0, 0, -1, 0)), None),
        (GeoRef('LOCAL_CS["site",UNIT["metre",1]]', (1, 0, 0, 0, -1, 0)), None),
    ],
)
def test_sizes_are_true_metres_on_the_ground(place: GeoRef, size: tuple[float, float] | None) -> None:
    found = pixel_size(place, (100, 100))
    if size is None:
        assert found is None
    else:
        assert found == pytest.approx(size, rel=5e-3)  # the ellipsoid, and the scale of the projection
        source = ArraySource(np.zeros((1, 100, 100)), georef=place)
        assert ground_resolution(source) == pytest.approx((size[0] * size[1]) ** 0.5, rel=5e-3)


def test_small_differences_and_unknown_sizes_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    metre = georef(32633, 1, 0, 500000, 0, -1, 5000000)
    source = ArraySource(image_of(60, 90), georef=metre)
    assert at_resolution(source, 1.04) is source
    assert at_resolution(source, 0.96) is source
    assert at_resolution(source, 1.5).shape == (40, 60)
    photo = ArraySource(image_of(60, 90))
    assert at_resolution(photo, 0.1) is photo
    with pytest.raises(ConfigError, match="gsd 0: must be positive"):
        at_resolution(source, 0)
    assert not caplog.text
    assert at_resolution(source, 0.2).shape == (300, 450)
    assert "array: has pixels of 1 m and is enlarged to the 0.2 m of the model" in caplog.text


def test_degrees_become_square_on_the_ground(shared_data: Path) -> None:
    source = open_source(shared_data / "rasters" / "ortho_za_rgba_epsg4326.tif", InputSpec(), gsd=5)
    assert source.georef is not None
    assert pixel_size(source.georef, source.shape) == pytest.approx((5, 5), rel=2e-3)
    assert source.shape == (1685, 507)  # of 3039 x 1098 pixels of 2.773 x 2.309 m
    pixels = source.read(Window(800, 200, 64, 64))
    assert pixels.valid.all()
    source.close()
