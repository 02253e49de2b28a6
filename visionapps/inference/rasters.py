"""Rasters that GDAL opens, read by windows: which bands, which pixels are data, and where they lie.

Shapes: C bands, h w window.
"""

import logging
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from visionapps.errors import ConfigError, DataError
from visionapps.inference.block_cache import BLOCK_CACHE
from visionapps.inference.inputs import is_virtual
from visionapps.inference.sources import ControlPoint, ControlPoints, Pixels, finite
from visionapps.structures import GeoRef, InputSpec
from visionapps.windows import Window

_LARGEST_CACHE = 2**28  # bytes of decoded blocks that one file may keep; a block itself may be larger
_REMOTE = {  # files on the web: no listing of the folder they are in, and a second try when the line drops
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MAX_RETRY": "4",
    "GDAL_HTTP_RETRY_DELAY": "1",
}
_LOCAL = ("/vsizip/", "/vsitar/", "/vsigzip/", "/vsi7z/", "/vsirar/", "/vsimem/")
_SEQUENTIAL = ("JPEG", "PNG", "WEBP", "GIF")  # drivers that decode from the top to get at any row
_MEMBERS = (".tif", ".tiff", ".jp2", ".img", ".jpg", ".jpeg", ".png", ".vrt")  # of a mosaic, without its side files
log = logging.getLogger(__name__)


class RasterSource:
    """Some bands of a file that GDAL opens. A context manager.

    GDAL's datasets belong to one thread each, so every thread that reads gets a handle of its own.
    """

    def __init__(
        self, path: Path | str, spec: InputSpec, *, bands: Sequence[str] | None = None, nodata: float | None = None
    ) -> None:
        """
        Args:
            path: GeoTIFF, VRT, JPEG 2000, ..., or a name of GDAL's (/vsizip/..., /vsicurl/...).
            spec: which bands are wanted, by name.
            bands: 1-based numbers or descriptions, one per band of the spec; None: by description, else by colour,
                else the first ones.
            nodata: the value that means "no data", where the file does not say so itself.

        Raises:
            DataError: missing, not readable, or without the bands wanted.
        """
        self.name = str(path)
        data = _open(self.name)
        self._handles: dict[threading.Thread, Any] = {threading.current_thread(): data}
        self._lock = threading.Lock()
        try:
            _check_dtype(data, self.name)
            self._indexes = _choose_bands(data, self.name, spec, bands)
        except (DataError, ConfigError):
            data.close()
            raise
        self.shape = (data.height, data.width)
        self.bands = tuple(data.descriptions[i - 1] or str(i) for i in self._indexes)
        self.dtype = np.dtype(np.result_type(*(data.dtypes[i - 1] for i in self._indexes)))
        self.georef = _georef(data)
        self.control = _control_points(data)
        self._alpha = next((i for i, c in enumerate(data.colorinterp, 1) if c.name == "alpha"), None)
        self._masked = any("per_dataset" in [f.name for f in flags] for flags in data.mask_flag_enums)
        self._nodata = [data.nodatavals[i - 1] if nodata is None else nodata for i in self._indexes]
        block = _stored_block(data)
        self.block = self.shape if data.driver in _SEQUENTIAL else block
        self._cache = _cache_bytes(data, block)
        BLOCK_CACHE.reserve(self._cache)
        if not (self.georef or self.control):
            log.warning("%s: has no georeference, so its map has none either", self.name)
        elif not ((self.georef and self.georef.crs) or (self.control and self.control.crs)):
            log.warning("%s: has no coordinate reference system, so its map has none either", self.name)

    def read(self, window: Window) -> Pixels:
        indexes = [*self._indexes, self._alpha] if self._alpha else self._indexes
        bands = self._read(lambda data, w: data.read(indexes, window=w, out_dtype=self.dtype), window)
        values = bands[: len(self._indexes)]
        return Pixels(values, self._validity(window, values, bands[-1] if self._alpha else None))

    def close(self) -> None:
        """Close the handles of all threads; none of them may be reading."""
        with self._lock:
            BLOCK_CACHE.reserve(-self._cache)
            self._cache = 0
            while self._handles:
                self._handles.popitem()[1].close()

    def _handle(self) -> Any:
        """The dataset of the thread that asks; those of threads that have ended are closed."""
        thread = threading.current_thread()
        with self._lock:
            data = self._handles.get(thread)
            if data is None:
                for ended in [t for t in self._handles if not t.is_alive()]:
                    self._handles.pop(ended).close()
                data = self._handles[thread] = _open(self.name)
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _validity(self, window: Window, values: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
        flags = finite(values)
        if alpha is not None:
            flags &= alpha > 0
        elif self._masked:
            flags &= self._read(lambda data, w: data.read_masks(self._indexes[0], window=w) > 0, window)
        if None in self._nodata:
            return flags
        missing = np.stack([band == value for band, value in zip(values, self._nodata, strict=True)])
        # An unsigned nodata value such as 0 is also a legal brightness: only all bands together mean "no data".
        # -9999 in any single band is no measurement.
        return flags & ~(missing.all(0) if np.issubdtype(self.dtype, np.unsignedinteger) else missing.any(0))

    def _read(self, read: Callable[[Any, Any], Any], window: Window) -> np.ndarray:
        import rasterio
        from rasterio.errors import RasterioError
        from rasterio.windows import Window as Frame

        try:
            with rasterio.Env(**_options(self.name)):
                frame = Frame(window.col, window.row, window.width, window.height)
                return np.asarray(read(self._handle(), frame))
        except RasterioError as error:
            raise DataError(
                f"{self.name}: cannot be decoded in rows {window.row} to {window.row_end} ({root_cause(error)}); "
                "the file is damaged or cut off: copy it again"
            ) from error


_OPENING = threading.Lock()  # filters of warnings belong to the process, not to a thread


def _open(name: str) -> Any:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

    try:
        with _OPENING, warnings.catch_warnings(), rasterio.Env(**_options(name)):
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # said once, in our words
            return rasterio.open(name)
    except RasterioIOError as error:
        reason = root_cause(error).replace(f"'{name}'", "the file").rstrip(".")
        advice = "check the address" if is_virtual(name) else "it is damaged or no raster"
        raise DataError(f"{name}: cannot be opened as a raster ({reason}); {advice}") from error


def _options(name: str) -> dict[str, str]:
    """Settings of GDAL for a file."""
    return _REMOTE if is_virtual(name) and not name.startswith(_LOCAL) else {}


def _cache_bytes(data: Any, block: tuple[int, int]) -> int:
    """What GDAL may keep decoded: two rows of blocks, for a window that ends inside one and the next that begins there.

    Of wide rasters it is less, but never less than one block of all bands: that would be decoded for each band again.
    """
    pixel = data.count * max(np.dtype(name).itemsize for name in data.dtypes)
    height, width = block
    rows = 2 * height * data.width * pixel
    return int(max(min(rows, _LARGEST_CACHE), height * width * pixel, 2**24))


def _stored_block(data: Any) -> tuple[int, int]:
    """(h, w) of the blocks that are decoded at once; those of the first file of a mosaic where it has larger ones."""
    height, width = data.block_shapes[0]
    members = [name for name in data.files if Path(name).suffix.lower() in _MEMBERS and name != data.name]
    if data.driver == "VRT" and members:
        with _open(members[0]) as member:
            height, width = np.maximum(data.block_shapes[0], member.block_shapes[0])
    return int(height), min(int(width), data.width)


def _check_dtype(data: Any, path: str) -> None:
    odd = sorted({t for t in data.dtypes if np.dtype(t).kind not in "iuf"})
    if odd:
        raise DataError(f"{path}: pixels are {', '.join(odd)}; expected real numbers, such as uint8 or float32")


def _choose_bands(data: Any, path: str, spec: InputSpec, bands: Sequence[str] | None) -> list[int]:
    if bands:
        if len(bands) != len(spec.bands):
            raise ConfigError(
                f"--bands names {len(bands)} bands, but the model expects {len(spec.bands)}: {spec.bands}"
            )
        return [_find_band(data, path, band) for band in bands]
    described = [(text or "").lower() for text in data.descriptions]
    colors = [color.name for color in data.colorinterp]
    wanted = [name.lower() for name in spec.bands]
    for names in (described, colors):
        if all(names.count(name) == 1 for name in wanted):
            return [names.index(name) + 1 for name in wanted]
    usable = [i for i, color in enumerate(colors, 1) if color != "alpha"]
    if len(usable) < len(wanted):
        raise DataError(
            f"{path}: has {_bands(len(usable))}, but the model expects {len(wanted)} ({', '.join(spec.bands)}); use a "
            "raster that has them, or name bands to use (again) with --bands, as in --bands 1,1,1"
        )
    if len(usable) > len(wanted):
        log.warning(
            "%s: taking bands %s of %d as %s; choose others with --bands",
            path, ", ".join(map(str, usable[: len(wanted)])), len(usable), ", ".join(spec.bands),
        )  # fmt: skip
    return usable[: len(wanted)]


def _bands(count: int) -> str:
    return f"{count} band{'s'[: count != 1]}"


def _find_band(data: Any, path: str, band: str) -> int:
    if str(band).isdecimal() and 1 <= int(band) <= data.count:
        return int(band)
    described = [(text or "").lower() for text in data.descriptions]
    if str(band).lower() in described:
        return described.index(str(band).lower()) + 1
    known = [text for text in data.descriptions if text]
    raise DataError(
        f"{path}: has no band {band!r}; expected a number from 1 to {data.count}"
        + (f" or one of {', '.join(known)}" if known else "")
    )


def _georef(data: Any) -> GeoRef | None:
    crs = data.crs.to_wkt() if data.crs else None
    if data.transform.is_identity and crs is None:
        return None
    return GeoRef(crs, tuple(data.transform)[:6])


def _control_points(data: Any) -> ControlPoints | None:
    points, crs = data.gcps
    if not points:
        return None
    return ControlPoints(
        tuple(ControlPoint(p.row, p.col, p.x, p.y, p.z or 0.0) for p in points), crs.to_wkt() if crs else None
    )


def root_cause(error: BaseException) -> str:
    """GDAL's own words for an error that rasterio raised."""
    while error.__cause__ is not None:  # rasterio says "see previous exception" and means it
        error = error.__cause__
    return " ".join(str(error).split())


def members(path: Path) -> list[Path]:
    """The local files that a raster consists of: a VRT and the rasters it names, side files."""
    data = _open(str(path))
    try:
        return [file for name in data.files if (file := Path(name)).is_file()]
    finally:
        data.close()
