"""Areas of interest: polygons of a vector file, outside of which nothing is read and nothing is drawn.

Shapes: C bands, h w window.
"""

import logging
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from visionapps.errors import DataError
from visionapps.inference.sources import Pixels, Source
from visionapps.structures import GeoRef
from visionapps.windows import Window

_CORNERS = 256  # of a polygon; larger ones are cut up, so that a window meets only what lies near it
_NARROWEST = 256  # columns; reading less at a time costs more calls than it saves pixels
_STEPS = 200  # edges as long as this share of the raster stay straight in another projection to less than a pixel
_POLYGONS = (3, 6)  # GEOS's numbers of Polygon and MultiPolygon
log = logging.getLogger(__name__)


class OutsideError(DataError):
    """A raster lies outside of the area."""


class Area:
    """Polygons on the grid of one raster. A pixel belongs to the area if its centre does."""

    def __init__(self, polygons: Sequence[Any], shape: tuple[int, int]) -> None:
        """
        Args:
            polygons: valid shapely polygons; x is columns, y rows, in pixels of the raster.
            shape: (H, W) of the raster.
        """
        import shapely

        whole = shapely.box(0, 0, shape[1], shape[0])
        parts = [part for polygon in polygons for part in _polygons(shapely.intersection(polygon, whole))]
        self._parts = np.array([piece for part in parts for piece in _cut_up(part)], dtype=object)
        self._tree = shapely.STRtree(self._parts)
        self._tree.query(whole)  # builds it now: threads ask later, all at once

    @classmethod
    def open(cls, path: Path, georef: GeoRef | None, shape: tuple[int, int], *, name: str = "the raster") -> "Area":
        """Read an area in any coordinate reference system onto the grid of a raster.

        Args:
            path: GeoPackage, GeoJSON, shapefile, ...; the first layer, all its polygons together.
            georef: of the raster.
            shape: (H, W) of the raster.
            name: of the raster, for messages.

        Raises:
            DataError: the file cannot be read, has no polygon or no CRS, the raster has none, or they do not meet.
        """
        from rasterio._err import CPLE_BaseError
        from rasterio.errors import CRSError
        from rasterio.transform import Affine

        if georef is None or georef.crs is None:
            raise DataError(
                f"{name}: where it lies is not known, so the area {path} cannot be found on it; "
                "give it a georeference first, or leave the area out"
            )
        polygons, crs = _read_polygons(path)
        inverse = ~Affine(*georef.transform)
        try:
            onto = _projected(polygons, crs, georef, shape)
        except (CRSError, CPLE_BaseError) as error:
            raise DataError(
                f"{path}: cannot be brought from its coordinate reference system to that of {name} ({error}); "
                "save it in the raster's"
            ) from error
        area = cls([_moved(polygon, inverse) for polygon in onto], shape)
        if not len(area._parts):
            raise OutsideError(
                f"{path}: none of its {len(polygons)} polygons meets {name}; use the area of this raster, and check "
                "that both have the right coordinate reference system"
            )
        return area

    @property
    def bounds(self) -> Window:
        """The smallest window that holds all of it."""
        import shapely

        left, top, right, bottom = shapely.total_bounds(self._parts)
        row, col = int(np.floor(top)), int(np.floor(left))
        return Window(row, col, int(np.ceil(bottom)) - row, int(np.ceil(right)) - col)

    def touches(self, window: Window) -> bool:
        """Whether a window may hold pixels of the area; False is certain."""
        return bool(len(self._near(window)))

    def mask(self, window: Window) -> np.ndarray:
        """(h, w) bool: True inside the area."""
        import shapely
        from rasterio.features import rasterize
        from rasterio.transform import Affine

        shape = (window.height, window.width)
        near = self._near(window)
        if not len(near):
            return np.zeros(shape, bool)
        frame = _box(window)
        if shapely.contains_properly(self._parts[near], frame).any():
            return np.ones(shape, bool)
        # Cut to the window and a margin: a rasteriser looks at every corner, however far away.
        seen = shapely.intersection(self._parts[near], shapely.buffer(frame, 1, cap_style="square", join_style="mitre"))
        seen = [part for geometry in seen for part in _polygons(geometry)]
        if not seen:
            return np.zeros(shape, bool)
        burnt = rasterize(seen, shape, transform=Affine.translation(window.col, window.row), dtype=np.uint8)
        return np.asarray(burnt.view(bool))

    def _near(self, window: Window) -> np.ndarray:
        return np.asarray(self._tree.query(_box(window), predicate="intersects"))


class ClippedSource:
    """Another source of which only an area is valid, and read; it closes the one it reads from."""

    def __init__(self, source: Source, area: Area) -> None:
        self._source, self._area = source, area
        self.name, self.shape, self.bands, self.dtype = source.name, source.shape, source.bands, source.dtype
        self.georef, self.control, self.block = source.georef, source.control, source.block

    def read(self, window: Window) -> Pixels:
        inside = self._area.mask(window)
        parts = self._needed(window, inside)
        if parts == [window]:
            values, valid = self._source.read(window)
            return Pixels(values, valid & inside)
        values = np.zeros((len(self.bands), window.height, window.width), self.dtype)
        valid = np.zeros((window.height, window.width), bool)
        for part in parts:
            rows, cols = part.shift(-window.row, -window.col).slices
            values[:, rows, cols], valid[rows, cols] = self._source.read(part)
        return Pixels(values, valid & inside)

    def close(self) -> None:
        self._source.close()

    def _needed(self, window: Window, inside: np.ndarray) -> list[Window]:
        """The parts of a window that have to be read: whole columns of blocks, and the rows between first and last."""
        rows = np.flatnonzero(inside.any(1))
        if not len(rows):
            return []
        top, height = window.row + int(rows[0]), int(rows[-1] - rows[0]) + 1
        step = -(-_NARROWEST // self.block[1]) * self.block[1]
        edges = [window.col, *range((window.col // step + 1) * step, window.col_end, step), window.col_end]
        hit = [inside[:, a - window.col : b - window.col].any() for a, b in pairwise(edges)]
        turns = np.flatnonzero(np.diff([False, *hit, False]))  # begin, end, begin, end ... of runs that are hit
        return [Window(top, edges[a], height, edges[b] - edges[a]) for a, b in turns.reshape(-1, 2).tolist()]


def _read_polygons(path: Path) -> tuple[np.ndarray, str]:
    """The polygons of a vector file and their CRS."""
    import pyogrio
    import shapely
    from pyogrio.errors import DataLayerError, DataSourceError, FeatureError

    if not path.exists():
        raise DataError(f"{path}: no such file; check the path (relative to {Path.cwd()})")
    try:
        layers = [str(name) for name, _ in pyogrio.list_layers(path)]
        if not layers:
            raise DataError(f"{path}: has no layer with polygons; an area of interest is expected")
        meta, _, binary, _ = pyogrio.raw.read(path, layer=layers[0], columns=[])
    except (DataSourceError, DataLayerError, FeatureError) as error:
        reason = " ".join(str(error).split()).replace(f"'{path}'", "the file").split(";")[0].rstrip(".")
        raise DataError(f"{path}: cannot be read ({reason}); expected vector data such as GeoPackage") from error
    if len(layers) > 1:
        log.warning("%s: has the layers %s; the area is taken from the first", path, ", ".join(layers))
    geometries = shapely.from_wkb([wkb for wkb in binary if wkb is not None]) if binary is not None else []
    polygons = [part for geometry in geometries for part in _polygons(shapely.make_valid(shapely.force_2d(geometry)))]
    if not polygons:
        raise DataError(f"{path}: holds no polygon in its layer {layers[0]}; an area of interest is made of polygons")
    if not meta["crs"]:
        raise DataError(f"{path}: has no coordinate reference system; say which (a .prj file beside a shapefile)")
    return np.array(polygons, dtype=object), str(meta["crs"])


def _projected(polygons: np.ndarray, crs: str, georef: GeoRef, shape: tuple[int, int]) -> list[Any]:
    """Polygons near a raster, in the raster's CRS."""
    import shapely
    from rasterio.crs import CRS
    from rasterio.warp import transform, transform_bounds

    own, raster = CRS.from_user_input(crs), CRS.from_wkt(georef.crs)
    if own == raster:
        return list(polygons)
    height, width = shape
    corners = np.array([(0, 0), (width, 0), (0, height), (width, height)])
    xs, ys = _applied(georef.transform, corners).T.tolist()
    # Only what lies near is projected: elsewhere it may not even be possible.
    left, bottom, right, top = transform_bounds(raster, own, min(xs), min(ys), max(xs), max(ys))
    margin = max(right - left, top - bottom) / 10
    frame = shapely.box(left - margin, bottom - margin, right + margin, top + margin)
    near = [part for polygon in polygons for part in _polygons(shapely.intersection(polygon, frame))]
    # What is straight here is bent there.
    dense = shapely.segmentize(near, max(right - left, top - bottom) / _STEPS)

    def project(points: np.ndarray) -> np.ndarray:
        return np.stack(transform(own, raster, points[:, 0], points[:, 1]), axis=1)

    return [part for g in dense for part in _polygons(shapely.make_valid(shapely.transform(g, project)))]


def _moved(polygon: Any, affine: Sequence[float]) -> Any:
    import shapely

    moved = shapely.transform(polygon, lambda points: _applied(affine, points))
    return moved if shapely.is_valid(moved) else shapely.make_valid(moved)


def _applied(affine: Sequence[float], points: np.ndarray) -> np.ndarray:
    """(n, 2) points x, y under the affine a, b, c, d, e, f of GeoRef."""
    a, b, c, d, e, f = affine[:6]
    x, y = points.T
    return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)


def _polygons(geometry: Any) -> list[Any]:
    """The polygons in a geometry that are not empty; lines and points have no area."""
    import shapely

    parts = shapely.get_parts(shapely.get_parts(geometry))  # collections may hold multi-polygons
    return [part for part in parts if shapely.get_type_id(part) in _POLYGONS and not shapely.is_empty(part)]


def _cut_up(polygon: Any) -> list[Any]:
    """A polygon in parts with few corners, cut along the edges of pixels: no centre of a pixel lies on a cut."""
    import shapely

    left, top, right, bottom = shapely.bounds(polygon)
    wide = right - left >= bottom - top
    middle = np.round((left + right) / 2 if wide else (top + bottom) / 2)
    if shapely.get_num_coordinates(polygon) <= _CORNERS or max(right - left, bottom - top) < 4:
        return [polygon]
    first = shapely.box(left, top, middle, bottom) if wide else shapely.box(left, top, right, middle)
    second = shapely.box(middle, top, right, bottom) if wide else shapely.box(left, middle, right, bottom)
    halves = (part for half in (first, second) for part in _polygons(shapely.intersection(polygon, half)))
    return [piece for part in halves for piece in _cut_up(part)]


def _box(window: Window) -> Any:
    import shapely

    return shapely.box(window.col, window.row, window.col_end, window.row_end)
