"""Decoding photos and masks: numpy arrays in the file's own dtype, or one clear error with the file's name."""

import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from visionapps.data.labels import RawMask
from visionapps.errors import DataError
from visionapps.structures import GeoRef

_RASTERS = (".tif", ".tiff", ".jp2", ".vrt")
# What Pillow raises on files that are broken, foreign or too short.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_ADVICE = "replace the file, or remove it"
_MODES = {"1": "L", "LA": "L", "La": "L", "PA": "RGB", "P": "RGB", "RGBa": "RGBA", "CMYK": "RGB", "YCbCr": "RGB"}
_NAMES = {1: ("grey",), 3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha")}

Bands = Sequence[str | int] | None


class MissingBand(DataError):  # noqa: N818  names what was found, as KeyError's kin do
    """An image is sound but lacks a band that was asked for."""


class Header(NamedTuple):
    """What a file says about itself before any pixel is decoded."""

    height: int
    width: int
    bands: int  # as read_image gives them
    dtype: str
    orientation: int = 1  # of EXIF; 1: upright
    georef: GeoRef | None = None


def read_header(path: Path, bands: Bands = None) -> Header:
    """Size, bands and dtype of an image, without decoding it.

    Args:
        path: a photo or raster.
        bands: as for read_image.

    Raises:
        DataError: the file is missing or unreadable, or lacks a band.
    """
    if path.suffix.lower() in _RASTERS:
        with _open_raster(path) as raster:
            picked = _pick(path, bands, _raster_names(raster))
            georef = None
            if raster.crs is not None and not raster.transform.is_identity:
                georef = GeoRef(raster.crs.to_wkt(), tuple(raster.transform)[:6])
            return Header(raster.height, raster.width, len(picked), raster.dtypes[0], georef=georef)
    try:
        with _open_photo(path) as photo:
            names, dtype = _photo_bands(photo)
            picked = _pick(path, bands, names)
            # Not the getexif of PNG, which decodes the whole picture to look behind it.
            orientation = int(Image.Image.getexif(photo).get(0x0112, 1))
            return Header(photo.height, photo.width, len(picked), dtype, orientation)
    except _BROKEN as error:
        raise _unreadable(path, error) from error


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) from the header alone."""
    header = read_header(path)
    return header.height, header.width


def read_image(path: Path, bands: Bands = None) -> np.ndarray:
    """Decode an image as it is stored: no EXIF rotation (masks have none to follow), no scaling of values.

    Args:
        path: photo (JPEG, PNG, ...) or raster (TIFF, JPEG 2000, VRT).
        bands: which, in this order: 1-based numbers or names (band descriptions of a raster, "red", "green", "blue",
            "grey", "alpha"). None: all but alpha; palettes become colours.

    Returns:
        (H, W, C) in the dtype of the file.

    Raises:
        DataError: the file is missing, truncated or otherwise unreadable, or lacks a band.
    """
    if path.suffix.lower() in _RASTERS:
        return _read_raster(path, bands)
    try:
        with _open_photo(path) as photo:
            names, dtype = _photo_bands(photo)
            if _is_deep(photo):
                # Pillow would cut 16 bits per colour to 8 without a word; GDAL keeps them.
                return _read_raster(path, bands)
            mode = _MODES.get(photo.mode, photo.mode)
            pixels = np.asarray(photo if photo.mode == mode else photo.convert(mode))
    except _BROKEN as error:
        raise _unreadable(path, error) from error
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    picked = _pick(path, bands, names)
    if picked != list(range(pixels.shape[2])):
        pixels = pixels[:, :, picked]
    return np.ascontiguousarray(pixels.astype(dtype, copy=False))


def read_mask(path: Path) -> RawMask:
    """Decode a mask: ids, colours, or palette indices with their palette.

    Raises:
        DataError: the file is missing, truncated or unreadable, or has neither one channel nor colours.
    """
    if path.suffix.lower() in _RASTERS:
        return _read_raster_mask(path)
    try:
        with _open_photo(path) as photo:
            palette = None
            if photo.mode == "P":
                palette = np.array(photo.getpalette("RGB"), np.uint8).reshape(-1, 3)
            bilevel = photo.mode == "1"
            lossy = photo.format == "JPEG"
            if photo.mode in ("LA", "PA", "La"):
                photo.load()
                values = np.asarray(photo.getchannel(0))
            elif photo.mode in ("RGB", "RGBA"):
                values = np.asarray(photo)[..., :3]
            elif photo.mode in ("CMYK", "YCbCr", "HSV", "LAB"):
                values = np.asarray(photo.convert("RGB"))
            else:
                values = np.asarray(photo)
    except _BROKEN as error:
        raise _unreadable(path, error) from error
    return RawMask(values, palette, bilevel=bilevel, lossy=lossy, source=str(path))


def _open_photo(path: Path) -> Image.Image:
    # Photos of 200 megapixels are ordinary here and the user's own: the guard against bombs would refuse them.
    Image.MAX_IMAGE_PIXELS = None
    return Image.open(path)


def _is_deep(photo: Image.Image) -> bool:
    """Whether a PNG stores 16 bits for each of several channels."""
    tiles: Any = getattr(photo, "tile", None)  # of file formats only: (codec, box, offset, arguments)
    raw = tiles[0][3] if tiles else None
    raw = raw[0] if isinstance(raw, tuple) else raw
    return photo.mode in ("RGB", "RGBA", "LA") and isinstance(raw, str) and ";16" in raw


def _photo_bands(photo: Image.Image) -> tuple[tuple[str, ...], str]:
    """Names and dtype of the bands that read_image decodes."""
    if _is_deep(photo):
        return _NAMES.get(len(photo.getbands()), ("grey", "alpha")), "uint16"
    mode = _MODES.get(photo.mode, photo.mode)
    dtype = {"I": "int32", "F": "float32"}.get(mode, "uint16" if mode.startswith("I;16") else "uint8")
    return _NAMES[len(Image.getmodebands(mode) * " ")], dtype


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: no such file; check the path")
    reason = " ".join(str(error).split()) or type(error).__name__
    reason = reason.replace(f"{str(path)!r}", "the file").replace(str(path), "the file")
    return DataError(f"{path}: cannot be decoded, truncated or corrupt ({reason}); {_ADVICE}")


def _pick(path: Path, bands: Bands, names: Sequence[str]) -> list[int]:
    """0-based places of the wanted bands among the names."""
    if bands is None:
        return [i for i, name in enumerate(names) if name != "alpha"]
    listed = ", ".join(f"{i} {name}".rstrip() for i, name in enumerate(names, 1))
    places = []
    for band in bands:
        place = names.index(band) if isinstance(band, str) and band in names else band
        if isinstance(place, str) or not 1 <= place + isinstance(band, str) <= len(names):
            raise MissingBand(
                f"{path}: band {band!r} was asked for, but the image has {len(names)}: {listed}; correct bands"
            )
        places.append(place if isinstance(band, str) else place - 1)
    return places


def _open_raster(path: Path) -> Any:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # most training tiles lie nowhere
    try:
        return rasterio.open(path)
    except (RasterioError, OSError) as error:
        raise _unreadable(path, error if path.exists() else FileNotFoundError()) from error


def _read_bands(raster: Any, path: Path, indexes: Sequence[int]) -> np.ndarray:
    """(C, H, W) of 1-based bands."""
    from rasterio.errors import RasterioError

    try:
        pixels: np.ndarray = raster.read(list(indexes))
    except (RasterioError, OSError) as error:
        cause = error.__cause__ or error  # GDAL's own words
        raise _unreadable(path, cause if isinstance(cause, Exception) else error) from error
    return pixels


def _raster_names(raster: Any) -> list[str]:
    """Description of each band, or what its colour interpretation says."""
    meanings = [c.name.replace("gray", "grey").replace("undefined", "") for c in raster.colorinterp]
    return [text or meaning for text, meaning in zip(raster.descriptions, meanings, strict=True)]


def _read_raster(path: Path, bands: Bands) -> np.ndarray:
    with _open_raster(path) as raster:
        picked = _pick(path, bands, _raster_names(raster))
        pixels = _read_bands(raster, path, [i + 1 for i in picked])
    return np.ascontiguousarray(np.moveaxis(pixels, 0, -1))


def _read_raster_mask(path: Path) -> RawMask:
    with _open_raster(path) as raster:
        count, nodata, bilevel = raster.count, raster.nodata, False
        if count not in (1, 2, 3, 4):
            raise DataError(f"{path}: a mask has one channel of ids or three of colour, but this file has {count}")
        if count < 3:
            values = _read_bands(raster, path, [1])[0]
            bilevel = raster.tags(1, ns="IMAGE_STRUCTURE").get("NBITS") == "1"
            palette = _colormap(raster)
            return RawMask(values, palette, nodata, bilevel, source=str(path))
        if raster.dtypes[0] != "uint8":
            raise DataError(f"{path}: a colour mask is 8 bit per channel, but this file is {raster.dtypes[0]}")
        return RawMask(np.moveaxis(_read_bands(raster, path, [1, 2, 3]), 0, -1), source=str(path))


def _colormap(raster: Any) -> np.ndarray | None:
    """(N, 3) uint8 palette of a one-band raster, if it has one."""
    if raster.colorinterp[0].name != "palette":
        return None
    table = raster.colormap(1)
    palette = np.zeros((max(table) + 1, 3), np.uint8)
    for index, color in table.items():
        palette[index] = color[:3]
    return palette


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, C) to (h, w, C), same dtype: area average where it shrinks, bilinear where it grows."""
    import cv2

    height, width = size
    if image.shape[:2] == (height, width):
        return image
    kind = cv2.INTER_AREA if height <= image.shape[0] and width <= image.shape[1] else cv2.INTER_LINEAR
    # cv2 resizes no 32-bit integers
    native = image if image.dtype in (np.uint8, np.uint16, np.int16, np.float32) else image.astype(np.float64)
    result = cv2.resize(native, (width, height), interpolation=kind).reshape(height, width, image.shape[2])
    if image.dtype.kind in "iu" and native.dtype.kind == "f":
        result = np.rint(result)
    resized: np.ndarray = result.astype(image.dtype, copy=False)
    return resized


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) to (h, w): each pixel takes the label under its centre."""
    rows, cols = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp) for new, old in zip(size, labels.shape, strict=True)
    )
    resized: np.ndarray = labels[rows[:, None], cols]
    return resized
