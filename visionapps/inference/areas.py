"""How many square metres of ground a pixel covers, row by row, in any coordinate reference system.

Shapes: H W raster.
"""

import numpy as np

from visionapps.errors import DataError
from visionapps.structures import GeoRef

# WGS 84, to which every system is brought: equatorial radius in metres, and the square of the eccentricity.
_RADIUS = 6378137.0
_ECCENTRICITY2 = 6.69437999014e-3
_STEP_DEGREES = 5e-4  # reach of the differences, at least: below it the inverse projections' rounding would show


def pixel_areas(georef: GeoRef, shape: tuple[int, int], *, name: str) -> np.ndarray:
    """The area of a pixel at the middle of each row.

    It is the determinant of the derivative of pixel -> longitude, latitude, by central differences, times the local
    metric of the ellipsoid. So degrees and Web Mercator give true square metres, and the scale factor of projected
    systems is taken out. Within a row the area is taken as constant: exact in geographic and cylindrical systems that
    lie straight, and within 0.1 % across a UTM raster of 100 km.

    Args:
        georef: with or without CRS; without one, the area is in squares of the map's unit.
        shape: (H, W).
        name: of the raster, for messages.

    Returns:
        (H,) float64.

    Raises:
        DataError: the raster lies nowhere on the Earth, or its CRS cannot be read.
    """
    height, width = shape
    a, b, _, d, e, _ = georef.transform
    if georef.crs is None:
        return np.full(height, abs(a * e - b * d))
    row, col = np.arange(height) + 0.5, np.full(height, width / 2)
    middle = _to_degrees(georef, np.array([height / 2]), np.array([width / 2]), name)
    beside = _to_degrees(georef, np.array([height / 2]), np.array([width / 2 + 1]), name)
    pixel_degrees = np.hypot(*_difference(middle, beside))[0]
    reach = max(0.5, _STEP_DEGREES / pixel_degrees) if pixel_degrees > 0 else 0.5
    right = _difference(_to_degrees(georef, row, col - reach, name), _to_degrees(georef, row, col + reach, name))
    down = _difference(_to_degrees(georef, row - reach, col, name), _to_degrees(georef, row + reach, col, name))
    latitude = np.deg2rad(_to_degrees(georef, row, col, name)[1])
    determinant = (right[0] * down[1] - right[1] * down[0]) / (2 * reach) ** 2 * np.deg2rad(1) ** 2
    # Meridian radius times radius of the parallel.
    metric = _RADIUS**2 * (1 - _ECCENTRICITY2) * np.cos(latitude) / (1 - _ECCENTRICITY2 * np.sin(latitude) ** 2) ** 2
    return _filled(np.abs(determinant) * metric, name)


def _to_degrees(georef: GeoRef, row: np.ndarray, col: np.ndarray, name: str) -> np.ndarray:
    """(2, n) longitude and latitude; not finite where a point has none."""
    from rasterio._err import CPLE_BaseError  # what PROJ's complaints arrive as; it has no public name
    from rasterio.errors import CRSError, RasterioError
    from rasterio.warp import transform

    a, b, c, d, e, f = georef.transform
    try:
        places = transform(georef.crs, "EPSG:4326", a * col + b * row + c, d * col + e * row + f)
    except (CRSError, RasterioError, CPLE_BaseError) as error:
        raise DataError(
            f"{name}: its coordinates cannot be brought to longitude and latitude ({error}); give the raster its "
            "right CRS, or one that lies on the Earth"
        ) from error
    return np.array(places, np.float64)


def _difference(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """two - one, (2, n) longitude and latitude, the short way round."""
    away: np.ndarray = two - one
    away[0] = (away[0] + 180) % 360 - 180
    return away


def _filled(areas: np.ndarray, name: str) -> np.ndarray:
    """Areas of rows whose middle has no longitude and latitude (beside the Earth in a world map): the nearest's."""
    good = np.flatnonzero(np.isfinite(areas))
    if not len(good):
        raise DataError(f"{name}: lies nowhere on the Earth in its CRS; give the raster its right one")
    return np.asarray(np.interp(np.arange(len(areas)), good, areas[good]))
