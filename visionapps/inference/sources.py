"""Where pixels come from: arrays, photos, rasters. Every source gives numpy by windows and says which pixels are data.

Shapes: C bands, H W source, h w window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from visionapps.errors import ConfigError, DataError
from visionapps.inference.inputs import gdal_name, is_virtual
from visionapps.inference.inputs import is_raster as is_raster
from visionapps.structures import IGNORE, GeoRef, InputSpec
from visionapps.windows import Window

INVALID = IGNORE  # label of pixels without data in every map


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


class Pixels(NamedTuple):
    """What a window holds. The arrays may be views of the source's own: copy what is to be changed."""

    values: np.ndarray  # (C, h, w) raw
    valid: np.ndarray  # (h, w) bool: False where a pixel is nodata, NaN, masked or transparent


class Source(Protocol):
    """Pixels by windows, for several threads at once."""

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

    @property
    def block(self) -> tuple[int, int]:
        """(h, w) of the blocks it is stored in: reading part of one costs as much as reading it whole."""

    def read(self, window: Window) -> Pixels:
        """The pixels of a window inside the source; safe to call from several threads at once."""

    def close(self) -> None:
        """Release the file."""


class ArraySource:
    """An image in memory."""

    control = None
    block = (1, 1)

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

    def read(self, window: Window) -> Pixels:
        values = self._image[:, *window.slices]
        flags = finite(values)
        return Pixels(values, flags if self._valid is None else flags & self._valid[window.slices])

    def close(self) -> None:
        """Nothing to release."""


class RescaledSource:
    """Another source whose raw value ``value`` means 1.0, brought to the scale that a model expects."""

    def __init__(self, source: Source, *, value: float, scale: float) -> None:
        if value <= 0:
            raise ConfigError(f"scale {value}: must be positive, the raw value that means 1.0, such as 10000")
        self._source, self._factor = source, np.float32(scale / value)
        self.name, self.shape, self.bands = source.name, source.shape, source.bands
        self.dtype: np.dtype[Any] = np.dtype(np.float32)
        self.georef, self.control, self.block = source.georef, source.control, source.block

    def read(self, window: Window) -> Pixels:
        values, valid = self._source.read(window)
        return Pixels(values.astype(np.float32) * self._factor, valid)

    def close(self) -> None:
        self._source.close()


def open_source(
    image: Path | str,
    spec: InputSpec,
    *,
    bands: Sequence[str] | None = None,
    scale: float | None = None,
    nodata: float | None = None,
    gsd: float | None = None,
    area: Path | None = None,
) -> Source:
    """Open a photo or a raster as a model wants it; close it after use.

    Args:
        image: a path, an address, or a name of GDAL's; see is_raster for what becomes of it.
        spec: bands and scale that the model expects.
        bands: 1-based numbers or descriptions to read, in the order of the spec; None: found by name or colour.
        scale: the raw value in the file that means 1.0, where it differs from the spec's.
        nodata: the raw value in a raster that means "no data", where the file does not say so itself.
        gsd: metres per pixel to read georeferenced rasters at, where they differ by more than a twentieth; None: their
            own. What cannot be told from the file, as of photos, is left as it is.
        area: vector file; only pixels inside its polygons are valid. None: everywhere.

    Raises:
        DataError: missing, damaged, too few bands, values on another scale than the spec's (and no ``scale``), or the
            area cannot be read or does not meet the raster.
    """
    name = gdal_name(str(image))
    if not is_virtual(name) and not Path(name).is_file():
        raise DataError(f"{name}: no such file; check the path (relative to {Path.cwd()})")
    opened: Source
    if is_raster(name):
        from visionapps.inference.rasters import RasterSource

        opened = RasterSource(name, spec, bands=bands, nodata=nodata)
    else:
        opened = photo_source(Path(name), bands=bands)
    try:
        if scale is None:
            _check_scale(opened, spec)
        if gsd is not None:
            from visionapps.inference.resolution import at_resolution

            opened = at_resolution(opened, gsd)
        if scale is not None:
            opened = RescaledSource(opened, value=scale, scale=spec.scale)
        if area is not None:
            from visionapps.inference.aoi import Area, ClippedSource

            opened = ClippedSource(opened, Area.open(area, opened.georef, opened.shape, name=opened.name))
    except (DataError, ConfigError):
        opened.close()
        raise
    return opened


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


def finite(values: np.ndarray) -> np.ndarray:
    """Where all bands are finite: (C, h, w) to (h, w) bool."""
    if values.dtype.kind != "f":
        return np.ones(values.shape[-2:], bool)
    return np.asarray(np.isfinite(values).all(0))
