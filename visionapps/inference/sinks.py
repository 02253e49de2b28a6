"""Where maps go: index masks, colour overlays, planes of scores. Written by rows, under their name only when whole.

A sink is opened as a context manager and takes finished bands in order; so another kind of file is one more function
like those here.

Shapes: N bands of a file, H W raster, h w window.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from xml.etree import ElementTree

import numpy as np

from visionapps.errors import ConfigError
from visionapps.files import whole_output
from visionapps.inference.geotiff import LABELS, PICTURE, QUANTITIES, MapOptions, tiff_file
from visionapps.inference.products import LEVELS, Band
from visionapps.inference.sources import INVALID, Source
from visionapps.structures import RGB, InputSpec, LabelSpace

_DEFAULT = MapOptions()
_TIFF = (".tif", ".tiff")
_PHOTO = (".jpg", ".jpeg", ".png")


class Sink(Protocol):
    """Takes bands from top to bottom without gaps, inside the with block that opened it."""

    def write(self, band: Band) -> None: ...


class _Rows(Protocol):
    """A file of N bands of 8 bit that takes finished rows in order."""

    def write(self, pixels: np.ndarray) -> None:
        """(N, h, W) uint8."""


@contextmanager
def mask_file(path: Path, source: Source, labels: LabelSpace, *, options: MapOptions = _DEFAULT) -> Iterator[Sink]:
    """An index mask: pixel value = label, INVALID = no data, with the classes' colours as palette.

    A .tif is a tiled GeoTIFF that lies where the source lies, names its classes in tags and in a ``.aux.xml`` beside
    it (GIS programs show them in the legend), and is written by rows. A .png holds the photo's mask.

    Args:
        path: .tif, .tiff or .png.
        source: gives size and georeference.
        labels: names and colours.
        options: how it is written.

    Yields:
        A sink that writes the labels. An error inside the block leaves no file behind.

    Raises:
        OutputError: the file exists already, or the disk refuses it.
    """
    _check_suffix(path, (*_TIFF, ".png"))

    def describe(dataset: Any) -> None:
        dataset.update_tags(**{f"CLASS_{i}": name for i, name in enumerate(labels.names)})
        dataset.write_colormap(1, {**dict(enumerate(labels.colors)), INVALID: (0, 0, 0, 0)})

    if path.suffix.lower() in _TIFF:
        names = whole_output(path.with_name(path.name + ".aux.xml"), overwrite=True)
        with names as aux, tiff_file(path, source, LABELS, bands=1, options=options, describe=describe) as rows:
            aux.write_bytes(_category_names(labels))
            yield _PlaneSink(rows, slice(0, 1))
    else:
        with whole_output(path, options.overwrite) as part, _photo(part, source, 1, palette=labels) as photo:
            yield _PlaneSink(photo, slice(0, 1))


@contextmanager
def scores_file(path: Path, source: Source, names: Sequence[str], *, options: MapOptions = _DEFAULT) -> Iterator[Sink]:
    """The planes beside the labels (confidence, entropy, ...) as named bands: value / 254, INVALID = no data.

    The scale stands in the file, so that GIS programs show quantities from 0 to 1.

    Args:
        path: .tif or .tiff.
        source: gives size and georeference.
        names: of all N planes of the bands that come, the labels included, which are not written.
        options: how it is written.

    Yields:
        A sink that writes the planes after the labels. An error inside the block leaves no file behind.

    Raises:
        OutputError: the file exists already, or the disk refuses it.
    """
    _check_suffix(path, _TIFF)
    count = len(names) - 1
    if count < 1:
        raise ConfigError(f"{path}: there is nothing to write but labels; ask for confidence, entropy or another plane")

    def describe(dataset: Any) -> None:
        from rasterio.enums import ColorInterp

        dataset.descriptions = tuple(names[1:])
        dataset.scales, dataset.offsets = (1 / LEVELS,) * count, (0.0,) * count
        dataset.units = ("1",) * count  # a plain number, as UDUNITS writes it
        dataset.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * (count - 1)

    with tiff_file(path, source, QUANTITIES, bands=count, options=options, describe=describe) as rows:
        yield _PlaneSink(rows, slice(1, None))


@contextmanager
def overlay_file(
    path: Path, source: Source, labels: LabelSpace, *, spec: InputSpec, options: MapOptions = _DEFAULT
) -> Iterator[Sink]:
    """The image with the classes' colours laid over it.

    Args:
        path: .tif or .tiff (RGBA, georeferenced, transparent where there is no data), .jpg, .jpeg or .png.
        source: the image; read again as the rows come.
        labels: colours.
        spec: which bands are red, green and blue, and which value is full brightness.
        options: how it is written, and how opaque the colours are.

    Yields:
        A sink that writes the picture. An error inside the block leaves no file behind.

    Raises:
        OutputError: the file exists already, or the disk refuses it.
    """
    _check_suffix(path, (*_TIFF, *_PHOTO))
    tint = _Tint(labels, spec, options.opacity)
    if path.suffix.lower() in _TIFF:
        with tiff_file(path, source, PICTURE, bands=4, options=options) as rows:
            yield _OverlaySink(rows, source, tint, transparency=True)
    else:
        with whole_output(path, options.overwrite) as part, _photo(part, source, 3) as photo:
            yield _OverlaySink(photo, source, tint, transparency=False)


def to_rgb(values: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Raw bands as a picture: (C, h, w) to (3, h, w) float32 in [0, 255]; grey where there are fewer than three."""
    picture = np.nan_to_num(values[_rgb_bands(spec)].astype(np.float32)) * np.float32(255 / spec.scale)
    return np.asarray(picture.clip(0, 255))


def _rgb_bands(spec: InputSpec) -> list[int]:
    names = [name.lower() for name in spec.bands]
    if all(color in names for color in RGB):
        return [names.index(color) for color in RGB]
    return [0, 1, 2] if len(names) >= 3 else [0, 0, 0]


class _PlaneSink:
    """Writes some planes of the bands as they are."""

    def __init__(self, rows: _Rows, planes: slice) -> None:
        self._rows, self._planes = rows, planes

    def write(self, band: Band) -> None:
        self._rows.write(band.planes[self._planes])


class _Tint:
    """Lays the classes' colours over raw pixels."""

    def __init__(self, labels: LabelSpace, spec: InputSpec, opacity: float) -> None:
        self._spec = spec
        self._colors = np.zeros((256, 3), np.float32)
        self._colors[: len(labels)] = labels.colors
        self._share = np.full(256, opacity, np.float32)  # of each label
        self._share[INVALID] = 0

    def __call__(self, values: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Raw (C, h, w) pixels and (h, w) labels as a picture (3, h, w) uint8."""
        if values.dtype == np.uint8:  # looked up: a sixth of the time of computing it
            places = labels.astype(np.uint16) << 8
            return np.stack([self._table[i][places | values[b]] for i, b in enumerate(_rgb_bands(self._spec))])
        return self._mix(to_rgb(values, self._spec), labels)

    def _mix(self, picture: np.ndarray, labels: np.ndarray) -> np.ndarray:
        picture += self._share[labels] * (np.moveaxis(self._colors[labels], -1, 0) - picture)
        return np.asarray(np.rint(picture).astype(np.uint8))

    @cached_property
    def _table(self) -> np.ndarray:
        """Every mix of a label and a raw value of 8 bits: (3, 65536) uint8, at label * 256 + value."""
        every = np.arange(256, dtype=np.uint8)
        values = np.broadcast_to(every, (len(self._spec.bands), 256, 256))
        labels = np.broadcast_to(every[:, None], (256, 256))
        return self._mix(to_rgb(values, self._spec), labels).reshape(3, -1)


class _OverlaySink:
    def __init__(self, rows: _Rows, source: Source, tint: _Tint, *, transparency: bool) -> None:
        self._rows, self._source, self._tint, self._transparency = rows, source, tint, transparency

    def write(self, band: Band) -> None:
        labels = band.planes[0]
        picture = self._tint(self._source.read(band.window).values, labels)
        if self._transparency:
            alpha = np.where(labels == INVALID, np.uint8(0), np.uint8(255))
            # Nothing is kept under transparent pixels: what a file has where it has no data is of no use to anyone.
            picture = np.concatenate([picture & alpha, alpha[None]])
        self._rows.write(picture)


class _PhotoRows:
    """A photo's worth of rows in memory."""

    def __init__(self, shape: tuple[int, int], bands: int) -> None:
        self.pixels = np.empty((*shape, bands), np.uint8)
        self._row = 0

    def write(self, pixels: np.ndarray) -> None:
        self.pixels[self._row : self._row + pixels.shape[1]] = np.moveaxis(pixels, 0, -1)
        self._row += pixels.shape[1]


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
