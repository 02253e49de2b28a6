"""Streamed polygons against those that GDAL makes of the whole array, and simplified ones as coverages."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from rasterio.features import shapes
from scipy.ndimage import gaussian_filter

from visionapps.errors import ConfigError, DataError
from visionapps.inference.polygon_state import WINDOW
from visionapps.inference.polygons import Polygon, Polygoniser

MAPS = npst.arrays(
    np.uint8, npst.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.sampled_from([0, 1, 2, 255])
)


def polygonise(labels: np.ndarray, tolerance: float = 0.0, *, cuts: tuple[int, ...] = (), **options) -> list[Polygon]:
    polygoniser = Polygoniser(labels.shape[1], simplify_px=tolerance, **options)
    found = [polygon for rows in np.split(labels, cuts) for batch in polygoniser.add(rows) for polygon in batch]
    return found + [polygon for batch in polygoniser.finish() for polygon in batch]


def shape(polygon: Polygon) -> shapely.Polygon:
    return shapely.Polygon(polygon.rings[0], polygon.rings[1:])


def corners(ring: np.ndarray) -> list[tuple[float, float]]:
    """A ring without the vertices at which it does not turn."""
    points = np.asarray(ring)[:-1]
    back, ahead = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    return [tuple(p) for p in points[back[:, 0] * ahead[:, 1] != back[:, 1] * ahead[:, 0]]]


def plain(label: int, rings) -> tuple[int, str]:
    """The same text for the same polygon, wherever its rings begin."""
    outline, *holes = (corners(ring) for ring in rings)
    return label, shapely.normalize(shapely.Polygon(outline, holes)).wkt


def reference(labels: np.ndarray) -> list[tuple[int, str]]:
    found = shapes(labels, mask=labels != 255, connectivity=4)
    return sorted(plain(int(label), geometry["coordinates"]) for geometry, label in found)


def ours(polygons: list[Polygon]) -> list[tuple[int, str]]:
    return sorted(plain(p.label, p.rings) for p in polygons)


def same(one: list[Polygon], two: list[Polygon]) -> bool:
    return len(one) == len(two) and all(
        a[:1] == b[:1]
        and a[2:4] == b[2:4]
        and len(a.rings) == len(b.rings)
        and all(map(np.array_equal, a.rings, b.rings))
        for a, b in zip(one, two, strict=True)
    )


def smooth_map(seed: int, height: int, width: int, *, grain: float, classes: int = 3) -> np.ndarray:
    """Blobs of land cover with some holes in the data."""
    rng = np.random.default_rng(seed)
    field = np.stack([gaussian_filter(rng.normal(size=(height, width)), grain) for _ in range(classes)])
    labels = field.argmax(0).astype(np.uint8)
    labels[gaussian_filter(rng.normal(size=(height, width)), grain) > 0.4 / grain] = 255
    return labels


@settings(max_examples=150, deadline=None)
@given(MAPS, st.data())
def test_any_map_in_any_bands_gives_the_polygons_of_the_whole_array(labels, data):
    cuts = tuple(sorted(data.draw(st.lists(st.integers(0, len(labels)), max_size=4))))
    polygons = polygonise(labels, cuts=cuts)
    assert ours(polygons) == reference(labels)
    assert all(shape(p).is_valid for p in polygons)
    assert [shape(p).area for p in polygons] == [p.pixels for p in polygons]


@settings(max_examples=150, deadline=None)
@given(MAPS, st.floats(0.1, 6), st.data())
def test_simplified_polygons_are_valid_and_share_their_edges_whatever_the_tolerance_and_the_bands(labels, px, data):
    cuts = tuple(sorted(data.draw(st.lists(st.integers(0, len(labels)), max_size=4))))
    polygons = polygonise(labels, px, cuts=cuts)
    assert same(polygons, polygonise(labels, px))
    assert len(polygons) == len(polygonise(labels))
    drawn = [shape(p) for p in polygons]
    assert all(d.is_valid and d.area > 0 for d in drawn)
    assert shapely.coverage_is_valid(drawn)
    assert shapely.union_all(drawn).area == pytest.approx(sum(d.area for d in drawn))


@pytest.mark.parametrize("tolerance", [1.0, 5.0])
@pytest.mark.parametrize("grain", [1.0, 4.0])
def test_chains_longer_than_the_window_of_the_lattice_stay_valid_too(grain, tolerance):
    labels = smooth_map(3, 2 * WINDOW + 700, 24, grain=grain)
    labels[:, 11:13] = 1  # runs through all windows
    assert ours(polygonise(labels)) == reference(labels)
    polygons = polygonise(labels, tolerance, cuts=(1, 500, 513, 1500))
    assert same(polygons, polygonise(labels, tolerance))
    drawn = [shape(p) for p in polygons]
    assert all(d.is_valid for d in drawn)
    assert shapely.coverage_is_valid(drawn)


def test_without_gaps_in_the_data_simplified_polygons_cover_the_raster_exactly():
    labels = smooth_map(5, 300, 200, grain=4.0)
    labels[labels == 255] = 0
    drawn = [shape(p) for p in polygonise(labels, 1.5)]
    assert sum(d.area for d in drawn) == pytest.approx(300 * 200)
    assert shapely.union_all(drawn).equals(shapely.box(0, 0, 200, 300))


def test_the_corners_of_the_raster_are_never_cut_off():
    for seed in range(20):
        labels = np.random.default_rng(seed).integers(0, 3, (3, 4)).astype(np.uint8)
        assert sum(shape(p).area for p in polygonise(labels, 3.0)) == pytest.approx(12)


def test_outlines_stay_within_the_tolerance_and_have_far_fewer_vertices():
    labels = (np.hypot(*np.mgrid[-100:101, -100:101]) < 80).astype(np.uint8)
    (exact,), (simple,) = polygonise(labels, classes=[1]), polygonise(labels, 1.0, classes=[1])
    # Vertices that are left are corners of the stairs, and nothing is farther than a pixel.
    assert shapely.hausdorff_distance(shape(exact).exterior, shape(simple).exterior, densify=0.05) <= 1.0
    assert len(simple.rings[0]) < 0.25 * len(exact.rings[0])
    assert shape(simple).area == pytest.approx(np.pi * 80**2, rel=0.02)


def test_a_slanted_edge_becomes_one_line_and_rectangles_stay():
    stairs = np.tri(20, dtype=np.uint8)
    lower = next(p for p in polygonise(stairs, 1.0) if p.label == 1)
    assert len(corners(lower.rings[0])) <= 6  # two of them are corners of the raster
    for height, width in ((1, 1), (1, 7), (3, 2)):
        labels = np.full((height + 2, width + 2), 255, np.uint8)
        labels[1:-1, 1:-1] = 4
        (polygon,) = polygonise(labels, 1.0)
        assert shape(polygon).equals(shapely.box(1, 1, 1 + width, 1 + height))


def test_pixels_that_touch_by_corners_are_joined_only_by_what_connects_them_elsewhere():
    checkers = np.indices((5, 6)).sum(0).astype(np.uint8) % 2
    assert len(polygonise(checkers)) == 30
    ring = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], np.uint8)
    polygons = polygonise(ring)
    assert sorted((p.label, p.pixels, len(p.rings)) for p in polygons) == [(0, 1, 1), (0, 8, 1), (1, 7, 2)]
    assert all(shape(p).is_valid for p in polygons)


def test_islands_in_lakes_on_islands_are_holes_and_polygons_of_their_own():
    labels = np.zeros((9, 9), np.uint8)
    for i, label in ((1, 1), (2, 2), (3, 1), (4, 255)):
        labels[i:-i, i:-i] = label
    assert sorted((p.label, p.pixels, len(p.rings)) for p in polygonise(labels)) == [
        (0, 32, 2),
        (1, 8, 2),
        (1, 24, 2),
        (2, 16, 2),
    ]


def test_no_vertex_tells_where_bands_were_cut():
    labels = np.zeros((40, 10), np.uint8)
    labels[:, 5:] = 1
    for polygon in polygonise(labels, cuts=tuple(range(1, 40))):
        assert len(polygon.rings[0]) == 5


def test_rows_columns_and_maps_without_data_work():
    assert polygonise(np.full((6, 6), 255, np.uint8)) == []
    assert [p.pixels for p in polygonise(np.array([[0, 0, 1, 255, 1]], np.uint8))] == [2, 1, 1]
    assert [p.pixels for p in polygonise(np.array([[0], [0], [2]], np.uint8))] == [2, 1]


def test_areas_and_confidences_are_those_of_the_pixels():
    labels = np.array([[0, 0, 1], [0, 1, 1]], np.uint8)
    votes = np.array([[254, 127, 0], [0, 255, 254]], np.uint8)
    polygoniser = Polygoniser(3, simplify_px=0)
    batches = [*polygoniser.add(labels, areas=np.array([2.0, 3.0]), confidence=votes), *polygoniser.finish()]
    found = {p.label: p for batch in batches for p in batch}
    assert (found[0].area_m2, found[1].area_m2) == (7.0, 8.0)
    assert found[0].confidence == pytest.approx((1 + 0.5 + 0) / 3)
    assert found[1].confidence == pytest.approx((0 + 1) / 2)  # 255 has no vote
    assert np.isnan(polygonise(labels)[0].confidence)


def test_small_regions_and_other_classes_are_left_out_and_change_nothing_else():
    labels = smooth_map(8, 120, 90, grain=1.5)
    everything = polygonise(labels, 1.0)
    large = polygonise(labels, 1.0, min_area=30)
    assert same(large, [p for p in everything if p.pixels >= 30])
    assert 0 < len(large) < len(everything)
    assert ours(polygonise(labels, classes=[2])) == [p for p in reference(labels) if p[0] == 2]


def test_polygons_come_while_the_map_goes_on_and_memory_is_used_again():
    scene = smooth_map(1, 256, 64, grain=2.0)
    polygoniser = Polygoniser(64)
    sizes, early = [], 0
    for _ in range(12):
        early += sum(len(batch) for batch in polygoniser.add(scene))
        state = polygoniser._state
        sizes.append((len(state.corners), len(state.ends), len(state.regions)))
    late = sum(len(batch) for batch in polygoniser.finish())
    assert early > 20 * late
    assert sizes[-1] == sizes[1]


def test_noise_without_any_order_fits_into_growing_memory():
    labels = np.random.default_rng(0).integers(0, 3, (40, 1500)).astype(np.uint8)
    polygons = polygonise(labels)
    assert ours(polygons) == reference(labels)
    drawn = [shape(p) for p in polygonise(labels, 1.0)]
    assert all(d.is_valid for d in drawn)
    assert sum(d.area for d in drawn) == pytest.approx(labels.size)


def test_wrong_rows_and_settings_are_refused():
    with pytest.raises(ConfigError, match="width 0 must be at least 1"):
        Polygoniser(0)
    with pytest.raises(ConfigError, match=r"simplify -1\.0 .* must not be negative"):
        Polygoniser(5, simplify_px=-1.0)
    with pytest.raises(DataError, match=r"rows of \(2, 4\) uint8; \(h, 5\) uint8 is expected"):
        list(Polygoniser(5).add(np.zeros((2, 4), np.uint8)))
