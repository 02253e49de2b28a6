"""Where maps go: GeoTIFF or PNG index masks, and colour overlays. Written by windows, under their name only when whole.

Shapes: N bands, H W raster, h w window.
"""

import errno
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar
from xml.etree import ElementTree

import numpy as np

from visionapps.errors import ConfigError
from visionapps.files import output_error, whole_output
from visionapps.inference.rasters import root_cause
from visionapps.inference.sources import INVALID, Source
from visionapps.structures import RGB, InputSpec, LabelSpace
from visionapps.windows import Window

_FULL_DISK = 2**20  # a disk with less free bytes than one block of four bands is full
_BLOCK = 512  # side of the blocks of a GeoTIFF, in pixels
_TIFF = (".tif", ".tiff")
_PHOTO = (".jpg", ".jpeg", ".png")
T_contra = TypeVar("T_contra", contravariant=True)


class Sink(Protocol[T_contra]):
    """Takes full-width rows, from top to bottom without gaps, inside the with block that opened it."""

    def write(self, window: Window, value: T_contra) -> None: ...


class _Rows(Protocol):
    """A file of N bands of 8 bit that takes finished rows in order."""

    def write(self, pixels: np.ndarray) -> None:
        """(N, h, W) uint8."""


@contextmanager
def mask_file(path: Path, source: Source, labels: LabelSpace, *, overwrite: bool = False) -> Iterator[Sink[np.ndarray]]:
    """An index mask: pixel value = label, INVALID = no data, with the classes' colours as palette.

    A .tif is a tiled GeoTIFF that lies where the source lies, names its classes in tags and in a ``.aux.xml`` beside
    it (GIS programs show them in the legend), and is written by rows. A .png holds the photo's mask.

    Args:
        path: .tif, .tiff or .png.
        source: gives size and georeference.
        labels: names and colours.
        overwrite: replace an existing file.

    Yields:
        A sink of (h, W) uint8 labels. An error inside the block leaves no file behind.

    Raises:
        OutputError: the file exists already, or the disk refuses it.
    """
    _check_suffix(path, (*_TIFF, ".png"))
    if path.suffix.lower() in _TIFF:
        names = whole_output(path.with_name(path.name + ".aux.xml"), overwrite=True)
        with names as aux, whole_output(path, overwrite) as part, _tiff(path, part, source, 1) as (dataset, rows):
            aux.write_bytes(_category_names(labels))
            dataset.update_tags(**{f"CLASS_{i}": name for i, name in enumerate(labels.names)})
            dataset.write_colormap(1, {**dict(enumerate(labels.colors)), INVALID: (0, 0, 0, 0)})
            yield _MaskSink(rows)
    else:
        with whole_output(path, overwrite) as part, _photo(part, source, 1, palette=labels) as rows:
            yield _MaskSink(rows)


@contextmanager
def overlay_file(
    path: Path, source: Source, labels: LabelSpace, *, spec: InputSpec, opacity: float = 0.5, overwrite: bool = False
) -> Iterator[Sink[np.ndarray]]:
    """The image with the classes' colours laid over it.

    Args:
        path: .tif or .tiff (RGBA, georeferenced, transparent where there is no data), .jpg, .jpeg or .png.
        source: the image; read again as the rows come.
        labels: colours.
        spec: which bands are red, green and blue, and which value is full brightness.
        opacity: share of the colour, in [0, 1].
        overwrite: replace an existing file.

    Yields:
        A sink of (h, W) uint8 labels. An error inside the block leaves no file behind.

    Raises:
        OutputError: the file exists already, or the disk refuses it.
    """
    _check_suffix(path, (*_TIFF, *_PHOTO))
    colors = np.zeros((256, 3), np.float32)
    colors[: len(labels)] = labels.colors
    if path.suffix.lower() in _TIFF:
        with whole_output(path, overwrite) as part, _tiff(path, part, source, 4) as (_, rows):
            yield _OverlaySink(rows, source, spec, colors, opacity, transparency=True)
    else:
        with whole_output(path, overwrite) as part, _photo(part, source, 3) as rows:
            yield _OverlaySink(rows, source, spec, colors, opacity, transparency=False)


def to_rgb(values: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Raw bands as a picture: (C, h, w) to (3, h, w) float32 in [0, 255]; grey where there are fewer than three."""
    names = [name.lower() for name in spec.bands]
    if all(color in names for color in RGB):
        picked = [names.index(color) for color in RGB]
    else:
        picked = [0, 1, 2] if len(names) >= 3 else [0, 0, 0]
    picture = np.nan_to_num(values[picked].astype(np.float32)) * np.float32(255 / spec.scale)
    return np.asarray(picture.clip(0, 255))


class _MaskSink:
    def __init__(self, rows: _Rows) -> None:
        self._rows = rows

    def write(self, window: Window, value: np.ndarray) -> None:
        self._rows.write(value[None])


class _OverlaySink:
    def __init__(
        self,
        rows: _Rows,
        source: Source,
        spec: InputSpec,
        colors: np.ndarray,
        opacity: float,
        *,
        transparency: bool,
    ) -> None:
        self._rows, self._source, self._spec = rows, source, spec
        self._colors, self._opacity, self._transparency = colors, np.float32(opacity), transparency

    def write(self, window: Window, value: np.ndarray) -> None:
        picture = to_rgb(self._source.read(window).values, self._spec)
        shown = value != INVALID
        share = np.where(shown, self._opacity, np.float32(0))
        picture += share * (np.moveaxis(self._colors[value], -1, 0) - picture)
        pixels = np.rint(picture).astype(np.uint8)
        if self._transparency:
            pixels = np.concatenate([pixels, shown[None].astype(np.uint8) * 255])
        self._rows.write(pixels)


class _TiffRows:
    """Collects rows until they fill a row of blocks: a block that is written twice is compressed and stored twice."""

    def __init__(self, dataset: Any, path: Path) -> None:
        self._dataset, self._path = dataset, path
        self._buffer = np.empty((dataset.count, _BLOCK, dataset.width), np.uint8)
        self._filled = self._written = 0

    def write(self, pixels: np.ndarray) -> None:
        taken = 0
        while taken < pixels.shape[1]:
            count = min(_BLOCK - self._filled, pixels.shape[1] - taken)
            self._buffer[:, self._filled : self._filled + count] = pixels[:, taken : taken + count]
            taken += count
            self._filled += count
            if self._filled == _BLOCK or self._written + self._filled == self._dataset.height:
                self._flush()

    def _flush(self) -> None:
        from rasterio.windows import Window as Frame

        frame = Frame(0, self._written, self._dataset.width, self._filled)
        try:
            self._dataset.write(self._buffer[:, : self._filled], window=frame)
        except OSError as error:
            raise output_error(self._path, _reason(self._path, error)) from error
        self._written += self._filled
        self._filled = 0


class _PhotoRows:
    """A photo's worth of rows in memory."""

    def __init__(self, shape: tuple[int, int], bands: int) -> None:
        self.pixels = np.empty((*shape, bands), np.uint8)
        self._row = 0

    def write(self, pixels: np.ndarray) -> None:
        self.pixels[self._row : self._row + pixels.shape[1]] = np.moveaxis(pixels, 0, -1)
        self._row += pixels.shape[1]


@contextmanager
def _tiff(path: Path, part: Path, source: Source, bands: int) -> Iterator[tuple[Any, _TiffRows]]:
    import rasterio
    from rasterio.control import GroundControlPoint
    from rasterio.crs import CRS
    from rasterio.transform import Affine

    profile: dict[str, Any] = {
        "driver": "GTiff", "dtype": "uint8", "count": bands, "height": source.shape[0], "width": source.shape[1],
        "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK,
        # Deflate opens everywhere; zstd would save 8 ms a megapixel, a hundredth of the network's time on a CPU.
        "compress": "deflate", "bigtiff": "IF_SAFER",
    }  # fmt: skip
    profile |= {"nodata": INVALID} if bands == 1 else {"photometric": "RGB", "alpha": "YES"}
    if source.georef:
        profile["transform"] = Affine(*source.georef.transform)
        profile["crs"] = CRS.from_wkt(source.georef.crs) if source.georef.crs else None
    with rasterio.Env(GDAL_PAM_ENABLED="NO"), _quiet(), rasterio.open(part, "w", **profile) as dataset:
        if source.control and not source.georef:
            points = [GroundControlPoint(p.row, p.col, p.x, p.y, p.z) for p in source.control.points]
            dataset.gcps = points, CRS.from_wkt(source.control.crs) if source.control.crs else CRS()
        yield dataset, _TiffRows(dataset, path)
    _check_complete(part, path)


def _check_complete(part: Path, path: Path) -> None:
    """Raise OutputError unless every block is in the file.

    GDAL writes what it still holds when the file is closed, and a full disk is then a line on stderr, not an error.
    """
    import rasterio

    try:
        size = part.stat().st_size
        with _quiet(), rasterio.open(part) as dataset:
            rows, cols = (-(-length // _BLOCK) for length in dataset.shape)
            for row in range(rows):
                for col in range(cols):
                    at, length = (
                        dataset.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=1) for what in ("OFFSET", "SIZE")
                    )
                    if at is None or length is None or int(at) + int(length) > size:
                        raise OSError(errno.EIO, "the file was cut off")
    except OSError as error:
        raise output_error(path, _reason(path, error)) from error


def _reason(path: Path, error: OSError) -> OSError:
    """GDAL does not say why a write failed: a full disk is told by its free space."""
    full = shutil.disk_usage(path.parent).free < _FULL_DISK
    return OSError(errno.ENOSPC, "") if full else OSError(error.errno, root_cause(error))


@contextmanager
def _quiet() -> Iterator[None]:
    """No warning about a missing georeference: the source already told."""
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


@contextmanager
def _photo(part: Path, source: Source, bands: int, palette: LabelSpace | None = None) -> Iterator[_PhotoRows]:
    from PIL import Image

    rows = _PhotoRows(source.shape, bands)
    yield rows
    image = Image.fromarray(rows.pixels[..., 0] if bands == 1 else rows.pixels)
    if palette is not None:
        table = np.zeros((256, 3), np.uint8)
        table[: len(palette)] = palette.colors
        image.putpalette(table.tobytes())
    image.save(part, quality=90) if part.suffix.lower() in (".jpg", ".jpeg") else image.save(part)


def _category_names(labels: LabelSpace) -> bytes:
    """GDAL's side file with one name per label; GeoTIFF itself has no place for them."""
    root = ElementTree.Element("PAMDataset")
    names = ElementTree.SubElement(ElementTree.SubElement(root, "PAMRasterBand", band="1"), "CategoryNames")
    for name in labels.names:
        ElementTree.SubElement(names, "Category").text = name
    return ElementTree.tostring(root)


def _check_suffix(path: Path, suffixes: tuple[str, ...]) -> None:
    if path.suffix.lower() not in suffixes:
        raise ConfigError(
            f"{path}: cannot be written as {path.suffix or 'a file without suffix'}; use {', '.join(suffixes)}"
        )
