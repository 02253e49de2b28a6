"""How large the pixels of a raster are on the ground, and reading it as if they had the size a model was trained at."""

import logging
import math

from visionapps.errors import ConfigError
from visionapps.inference.sources import Source
from visionapps.structures import GeoRef

_ALIKE = 0.05  # share by which sizes may differ and count as equal: augmentation varies scales by more
_BLURRED = 3  # enlarged by more than this, a raster shows nothing of what the model looks for
# WGS 84: half axis in metres, square of the eccentricity
_AXIS, _ECCENTRICITY_2 = 6378137.0, 0.00669437999014
log = logging.getLogger(__name__)


def at_resolution(source: Source, gsd: float) -> Source:
    """A source whose pixels are gsd x gsd metres large on the ground; it closes the one it reads from.

    Args:
        source: returned as it is where its pixels have about that size, or where their size is not known.
        gsd: metres, > 0.

    Raises:
        ConfigError: gsd is not positive.
    """
    if not gsd > 0:
        raise ConfigError(f"gsd {gsd}: must be positive, the metres that a pixel is wide on the ground, such as 0.3")
    sizes = pixel_size(source.georef, source.shape) if source.georef else None
    if sizes is None:
        return source
    down, right = (gsd / size if abs(gsd / size - 1) > _ALIKE else 1.0 for size in sizes)
    if down == right == 1:
        return source
    if min(down, right) * _BLURRED < 1:
        log.warning(
            "%s: has pixels of %.3g m and is enlarged to the %.3g m of the model, which finds no detail there",
            source.name, math.sqrt(sizes[0] * sizes[1]), gsd,
        )  # fmt: skip
    from visionapps.inference.resample import ResampledSource

    return ResampledSource(source, (down, right))


def ground_resolution(source: Source) -> float | None:
    """Metres on the ground that a pixel measures in the middle of the raster; None where nobody knows.

    It is the mean of both sides: in degrees, pixels are seldom square on the ground.
    """
    sizes = pixel_size(source.georef, source.shape) if source.georef else None
    return None if sizes is None else math.sqrt(sizes[0] * sizes[1])


def pixel_size(georef: GeoRef, shape: tuple[int, int]) -> tuple[float, float] | None:
    """Metres on the ground from the middle pixel of a raster to the one below and to the one on its right.

    True distances whatever the projection: a pixel of 0.3 m in Web Mercator is 0.2 m large at 48 degrees north.

    Args:
        georef: where it lies.
        shape: (H, W)

    Returns:
        (down, right), or None without a coordinate reference system, or with one that is not of the earth.
    """
    if georef.crs is None:
        return None
    a, b, c, d, e, f = georef.transform
    row, col = shape[0] / 2, shape[1] / 2
    ends = [(row - 0.5, col), (row + 0.5, col), (row, col - 0.5), (row, col + 0.5)]
    xs, ys = [a * x + b * y + c for y, x in ends], [d * x + e * y + f for y, x in ends]
    places = _degrees(georef.crs, xs, ys)
    if places is None:
        return None
    above, below, left, right = places
    sizes = _distance(above, below), _distance(left, right)
    return sizes if min(sizes) > 0 else None


def _degrees(crs: str, xs: list[float], ys: list[float]) -> list[tuple[float, float]] | None:
    """Longitude and latitude of points; None where the CRS has no tie to the earth, or they lie outside of it."""
    from rasterio._err import CPLE_BaseError
    from rasterio.crs import CRS
    from rasterio.errors import CRSError
    from rasterio.warp import transform

    try:
        longitudes, latitudes = transform(CRS.from_wkt(crs), CRS.from_epsg(4326), xs, ys)
    except (CRSError, CPLE_BaseError):  # rasterio lets the latter through where PROJ knows no way
        return None
    places = list(zip(longitudes, latitudes, strict=True))
    return places if all(math.isfinite(x) and abs(y) <= 90 for x, y in places) else None


def _distance(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Metres between two places (longitude, latitude in degrees) a few pixels apart.

    Source: radii of curvature of the ellipsoid, Snyder, Map Projections: A Working Manual (1987), eq. 4-18 and 4-20.
    """
    latitude = math.radians((first[1] + second[1]) / 2)
    flat = 1 - _ECCENTRICITY_2 * math.sin(latitude) ** 2
    meridian, normal = _AXIS * (1 - _ECCENTRICITY_2) / flat**1.5, _AXIS / math.sqrt(flat)
    east = (second[0] - first[0] + 180) % 360 - 180  # the date line may lie between them
    return math.hypot(math.radians(second[1] - first[1]) * meridian, math.radians(east) * normal * math.cos(latitude))
