"""Where pixels come from: arrays, photos, rasters. Every source gives numpy by windows and says which pixels are data.

Shapes: C bands, H W source, h w window.
"""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from visionapps.errors import ConfigError, DataError
from visionapps.structures import GeoRef, InputSpec
from visionapps.windows import Window

RASTER_SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2", ".img")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ControlPoint:
    """A pixel position (row, col) whose place on the map is known."""

    row: float
    col: float
    x: float
    y: float
    z: float


@dataclass(frozen=True)
class ControlPoints:
    """Ground control points: where a raster lies when it has no affine transform."""

    points: tuple[ControlPoint, ...]
    crs: str | None  # WKT


class Source(Protocol):
    """Pixels by windows. Reading the same window's values and validity in turn is cheap."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)"""

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the C bands that read gives."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """What read gives."""

    @property
    def georef(self) -> GeoRef | None:
        """Where it lies; None for photos."""

    @property
    def control(self) -> ControlPoints | None:
        """Ground control points, where there are some instead of a transform."""

    def read(self, window: Window) -> np.ndarray:
        """(C, h, w) values of a window inside the source."""

    def valid(self, window: Window) -> np.ndarray:
        """(h, w) bool: False where a pixel is nodata, NaN, masked or transparent."""

    def close(self) -> None:
        """Release the file."""


class ArraySource:
    """An image in memory."""

    control = None

    def __init__(
        self,
        image: np.ndarray,
        *,
        valid: np.ndarray | None = None,
        bands: Sequence[str] | None = None,
        georef: GeoRef | None = None,
        name: str = "array",
    ) -> None:
        """
        Args:
            image: (C, H, W) of any real dtype; NaN is not valid.
            valid: (H, W) bool; None: all but NaN.
            bands: C names; None: "1", "2", ...
            georef: where it lies.
            name: for messages.
        """
        if image.ndim != 3 or not image.size:
            raise DataError(f"{name}: image of shape {image.shape}, expected (bands, height, width), none of them 0")
        self._image, self._valid, self.name, self.georef = image, valid, name, georef
        self.shape = (image.shape[1], image.shape[2])
        self.bands = tuple(bands or (str(i + 1) for i in range(len(image))))
        self.dtype = image.dtype

    def read(self, window: Window) -> np.ndarray:
        return self._image[:, *window.slices]

    def valid(self, window: Window) -> np.ndarray:
        flags = _finite(self.read(window))
        return flags if self._valid is None else flags & self._valid[window.slices]

    def close(self) -> None:
        """Nothing to release."""


class RasterSource:
    """Some bands of a file that GDAL opens. A context manager."""

    def __init__(
        self, path: Path, spec: InputSpec, *, bands: Sequence[str] | None = None, nodata: float | None = None
    ) -> None:
        """
        Args:
            path: GeoTIFF, VRT, JPEG 2000, ...
            spec: which bands are wanted, by name.
            bands: 1-based numbers or descriptions, one per band of the spec; None: by description, else by colour,
                else the first ones.
            nodata: the value that means "no data", where the file does not say so itself.

        Raises:
            DataError: missing, not readable, or without the bands wanted.
        """
        self._data = _open(path)
        self._path = path
        try:
            _check_dtype(self._data, path)
            self._indexes = _choose_bands(self._data, path, spec, bands)
        except Exception:
            self._data.close()
            raise
        data = self._data
        self.name = str(path)
        self.shape = (data.height, data.width)
        self.bands = tuple(data.descriptions[i - 1] or str(i) for i in self._indexes)
        self.dtype = np.dtype(np.result_type(*(data.dtypes[i - 1] for i in self._indexes)))
        self.georef = _georef(data)
        self.control = _control_points(data)
        self._alpha = next((i for i, c in enumerate(data.colorinterp, 1) if c.name == "alpha"), None)
        self._masked = any("per_dataset" in [f.name for f in flags] for flags in data.mask_flag_enums)
        self._nodata = [data.nodatavals[i - 1] if nodata is None else nodata for i in self._indexes]
        self._last: tuple[Window, np.ndarray] | None = None
        if not (self.georef or self.control):
            log.warning("%s: has no georeference, so its map has none either", path)
        elif not ((self.georef and self.georef.crs) or (self.control and self.control.crs)):
            log.warning("%s: has no coordinate reference system, so its map has none either", path)

    def read(self, window: Window) -> np.ndarray:
        indexes = [*self._indexes, self._alpha] if self._alpha else self._indexes
        data = self._read(lambda w: self._data.read(indexes, window=w, out_dtype=self.dtype), window)
        values = data[: len(self._indexes)]
        # The mask is asked for next and comes out of the same bytes: decoding twice would cost as much as reading.
        self._last = window, self._validity(window, values, data[-1] if self._alpha else None)
        return values

    def valid(self, window: Window) -> np.ndarray:
        if self._last is None or self._last[0] != window:
            self.read(window)
        assert self._last is not None
        return self._last[1]

    def close(self) -> None:
        self._data.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _validity(self, window: Window, values: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
        flags = _finite(values)
        if alpha is not None:
            flags &= alpha > 0
        elif self._masked:
            flags &= self._read(lambda w: self._data.read_masks(self._indexes[0], window=w) > 0, window)
        if None in self._nodata:
            return flags
        missing = np.stack([band == value for band, value in zip(values, self._nodata, strict=True)])
        # An unsigned nodata value such as 0 is also a legal brightness: only all bands together mean "no data".
        # -9999 in any single band is no measurement.
        return flags & ~(missing.all(0) if np.issubdtype(self.dtype, np.unsignedinteger) else missing.any(0))

    def _read(self, read: Any, window: Window) -> np.ndarray:
        from rasterio.errors import RasterioError
        from rasterio.windows import Window as Frame

        try:
            return np.asarray(read(Frame(window.col, window.row, window.width, window.height)))
        except RasterioError as error:
            raise DataError(
                f"{self._path}: cannot be decoded in rows {window.row} to {window.row_end} ({_cause(error)}); the file "
                "is damaged or cut off: copy it again"
            ) from error


class RescaledSource:
    """Another source whose raw value ``value`` means 1.0, brought to the scale that a model expects."""

    def __init__(self, source: Source, *, value: float, scale: float) -> None:
        if value <= 0:
            raise ConfigError(f"scale {value}: must be positive, the raw value that means 1.0, such as 10000")
        self._source, self._factor = source, np.float32(scale / value)
        self.name, self.shape, self.bands = source.name, source.shape, source.bands
        self.dtype: np.dtype[Any] = np.dtype(np.float32)
        self.georef, self.control = source.georef, source.control

    def read(self, window: Window) -> np.ndarray:
        return self._source.read(window).astype(np.float32) * self._factor

    def valid(self, window: Window) -> np.ndarray:
        return self._source.valid(window)

    def close(self) -> None:
        self._source.close()


def open_source(
    path: Path,
    spec: InputSpec,
    *,
    bands: Sequence[str] | None = None,
    scale: float | None = None,
    nodata: float | None = None,
) -> Source:
    """Open a photo or a raster as a model wants it; close it after use.

    Args:
        path: the file; its suffix decides between photo and raster.
        spec: bands and scale that the model expects.
        bands: 1-based numbers or descriptions to read, in the order of the spec; None: found by name or colour.
        scale: the raw value in the file that means 1.0, where it differs from the spec's.
        nodata: the raw value in a raster that means "no data", where the file does not say so itself.

    Raises:
        DataError: missing, damaged, too few bands, or values on another scale than the spec's (and no ``scale``).
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path (relative to {Path.cwd()})")
    opened: Source
    if is_raster(path):
        opened = RasterSource(path, spec, bands=bands, nodata=nodata)
    else:
        opened = photo_source(path, bands=bands)
    try:
        if scale is not None:
            return RescaledSource(opened, value=scale, scale=spec.scale)
        _check_scale(opened, spec)
    except (DataError, ConfigError):
        opened.close()
        raise
    return opened


def is_raster(path: Path) -> bool:
    """Whether a file is taken for a raster that may be georeferenced and larger than memory."""
    return path.suffix.lower() in RASTER_SUFFIXES


def photo_source(path: Path, *, bands: Sequence[str] | None = None) -> ArraySource:
    """A photo, decoded as in training; transparent pixels are not valid."""
    from PIL import Image

    from visionapps.data.images import read_image

    image = read_image(path, [int(b) if b.isdecimal() else b for b in bands] if bands else None)
    with Image.open(path) as photo:
        valid = np.asarray(photo.getchannel("A")) > 0 if "A" in photo.getbands() else None
    return ArraySource(np.ascontiguousarray(image.transpose(2, 0, 1)), valid=valid, name=str(path))


def _check_scale(source: Source, spec: InputSpec) -> None:
    """Refuse values that cannot be on the scale of the spec: a map of a wrongly scaled raster looks like a map."""
    kind, scale = source.dtype.kind, spec.scale
    eight_bit = source.dtype == np.uint8
    if (eight_bit and scale <= 255 and scale > 1) or (not eight_bit and scale > 255) or (kind == "f" and scale <= 1):
        return
    if not eight_bit and kind in "iu" and 1 < scale < 255:
        return
    raise DataError(
        f"{source.name}: pixels are {source.dtype}, but the model was trained on values where {scale:g} means 1.0; "
        "say which raw value means 1.0 here with --scale (10000 for Sentinel-2 reflectance, 65535 for full 16 bit)"
    )


def _open(path: Path) -> Any:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # said once, in our words
            return rasterio.open(path)
    except RasterioIOError as error:
        raise DataError(
            f"{path}: cannot be opened as a raster ({_cause(error)}); it is damaged or no raster"
        ) from error


def _check_dtype(data: Any, path: Path) -> None:
    odd = sorted({t for t in data.dtypes if np.dtype(t).kind not in "iuf"})
    if odd:
        raise DataError(f"{path}: pixels are {', '.join(odd)}; expected real numbers, such as uint8 or float32")


def _choose_bands(data: Any, path: Path, spec: InputSpec, bands: Sequence[str] | None) -> list[int]:
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
            f"{path}: has {len(usable)} bands, but the model expects {len(wanted)} ({', '.join(spec.bands)}); use a "
            "raster that has them, or name bands to use (again) with --bands, as in --bands 1,1,1"
        )
    if len(usable) > len(wanted):
        log.warning(
            "%s: taking bands %s of %d as %s; choose others with --bands",
            path, ", ".join(map(str, usable[: len(wanted)])), len(usable), ", ".join(spec.bands),
        )  # fmt: skip
    return usable[: len(wanted)]


def _find_band(data: Any, path: Path, band: str) -> int:
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


def _finite(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind != "f":
        return np.ones(values.shape[-2:], bool)
    return np.asarray(np.isfinite(values).all(0))


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:  # rasterio says "see previous exception" and means it
        error = error.__cause__
    return " ".join(str(error).split())
