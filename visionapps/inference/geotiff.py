"""The one writer of GeoTIFFs: tiled, compressed, block by block from top to bottom, in place on the ground.

The bytes depend on the pixels and the options alone, neither on how the rows were cut nor on time, threads or machine.

Shapes: N bands, H W raster, h w window.
"""

import errno
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from visionapps.errors import ConfigError, DataError
from visionapps.files import is_full, output_error, whole_output
from visionapps.inference.block_cache import BLOCK_CACHE
from visionapps.inference.rasters import root_cause
from visionapps.inference.sources import INVALID, Source
from visionapps.windows import Window

Compression = Literal["deflate", "zstd"]
BLOCK = 512  # side of the blocks, in pixels
_OVERVIEWS_ABOVE = 8192  # px: a smaller map is shown whole in under a second without them


@dataclass(frozen=True)
class MapOptions:
    """How maps are written.

    Attributes:
        overwrite: replace existing files, and drop what an interrupted run with other settings has left.
        compression: "deflate" opens everywhere; "zstd" costs a quarter of the time where GDAL is 2.3 or later.
        overviews: smaller copies inside the file, so that GIS programs show a large map at once; they cost about 15 ms
            of one core per megapixel and a third of the size. None: for rasters over 8192 pixels on a side.
        cog: arrange GeoTIFFs for reading over the network (cloud optimised), with overviews.
        opacity: share of the classes' colours in an overlay, in [0, 1].
    """

    overwrite: bool = False
    compression: Compression = "deflate"
    overviews: bool | None = None
    cog: bool = False
    opacity: float = 0.5

    def __post_init__(self) -> None:
        if self.compression not in ("deflate", "zstd"):
            raise ConfigError(f"compression {self.compression!r}: must be deflate or zstd")
        if not 0 <= self.opacity <= 1:
            raise ConfigError(f"opacity {self.opacity}: must be in [0, 1]")


@dataclass(frozen=True)
class Kind:
    """How pixels of one kind are stored best; measured on maps of trained models.

    Attributes:
        nodata: the value that means no data; None: the last band is alpha.
        level: of deflate. Labels: 5 halves the time of 6 for a sixth more bytes. Continuous values: 1 saves as much as
            6 within 10 %, in a fifth of the time.
        predictor: 2 stores differences to the left neighbour, which saves a fifth on continuous values.
        interleave: "band" stores each band by itself: read alone, a fifth smaller.
        resampling: of overviews, in GDAL's words.
    """

    nodata: int | None
    level: int
    predictor: int
    interleave: Literal["pixel", "band"]
    resampling: Literal["mode", "average"]


LABELS = Kind(INVALID, level=5, predictor=1, interleave="pixel", resampling="mode")
QUANTITIES = Kind(INVALID, level=1, predictor=2, interleave="band", resampling="average")
PICTURE = Kind(None, level=1, predictor=2, interleave="pixel", resampling="average")
# Probabilities: 0 counts as nothing, so that blocks where a class is nowhere take no room.
SCORES = Kind(0, level=1, predictor=2, interleave="band", resampling="average")


class TiffRows:
    """An open GeoTIFF that takes full-width rows in order.

    Rows are collected until they fill a row of blocks: a block that is written twice is compressed and stored twice.
    Calls may come from different threads, one after the other.
    """

    def __init__(self, part: Path, path: Path, source: Source, kind: Kind, *, bands: int, options: MapOptions) -> None:
        """
        Args:
            part: where to write.
            path: the final name, for messages.
            source: gives size and georeference.
            kind: what the pixels are.
            bands: N.
            options: compression and overviews.
        """
        self._part, self._path, self._kind, self._options = part, path, kind, options
        self.dataset = _create(part, source, kind, bands, options)
        height, width = source.shape
        self._buffer = np.empty((bands, BLOCK, width), np.uint8)
        self._filled = self._written = 0
        # Blocks that are not empty, of each band that is stored by itself.
        stored = bands if kind.interleave == "band" else 1
        self._full = np.zeros((stored, -(-height // BLOCK), -(-width // BLOCK)), bool)

    def write(self, pixels: np.ndarray) -> None:
        """Take the next rows: (N, h, W) uint8.

        Raises:
            OutputError: the disk refuses them.
        """
        taken = 0
        while taken < pixels.shape[1]:
            count = min(BLOCK - self._filled, pixels.shape[1] - taken)
            self._buffer[:, self._filled : self._filled + count] = pixels[:, taken : taken + count]
            taken += count
            self._filled += count
            if self._filled == BLOCK or self._written + self._filled == self.dataset.height:
                self._flush()

    def complete(self) -> None:
        """Add overviews, close the file, and make sure that all of it is there.

        Raises:
            OutputError: the disk refused some of it.
        """
        from rasterio._err import CPLE_BaseError  # what some calls let through; it has no public name

        assert self._written == self.dataset.height, f"{self._path}: rows from {self._written} on are missing"
        factors = self._overview_factors()
        try:
            if factors:
                self._build_overviews(factors)
            self.close()
            _check_complete(self._part, self._full, len(factors))
            if self._options.cog:
                _rearrange(self._part, self._kind, self._options)
                _check_complete(self._part, self._full, len(factors))
        except (OSError, CPLE_BaseError) as error:
            raise output_error(self._path, _reason(self._path, error)) from error

    def close(self) -> None:
        """Close the file as it is."""
        with _settings():
            self.dataset.close()

    def _flush(self) -> None:
        from rasterio.windows import Window as Frame

        rows = self._buffer[:, : self._filled]
        used = (rows != (self._kind.nodata or 0)).any(axis=1)  # (N, W)
        blocks = np.logical_or.reduceat(used, np.arange(0, used.shape[1], BLOCK), axis=1)
        self._full[:, self._written // BLOCK] = blocks if len(self._full) > 1 else blocks.any(axis=0)
        frame = Frame(0, self._written, self.dataset.width, self._filled)
        try:
            with _settings():
                self.dataset.write(rows, window=frame)
        except OSError as error:
            raise output_error(self._path, _reason(self._path, error)) from error
        self._written += self._filled
        self._filled = 0

    def _overview_factors(self) -> list[int]:
        """Powers of two until the map fits into one block; none if no overviews are wanted."""
        longer = max(self.dataset.shape)
        wanted = self._options.overviews
        if not (self._options.cog or (longer > _OVERVIEWS_ABOVE if wanted is None else wanted)):
            return []
        return [2**i for i in range(1, 32) if -(-longer // 2 ** (i - 1)) > BLOCK]

    def _build_overviews(self, factors: list[int]) -> None:
        from rasterio.enums import Resampling

        with _settings(GDAL_TIFF_OVR_BLOCKSIZE=BLOCK):
            self.dataset.build_overviews(factors, Resampling[self._kind.resampling])


@contextmanager
def tiff_file(
    path: Path,
    source: Source,
    kind: Kind,
    *,
    bands: int,
    options: MapOptions,
    describe: Callable[[Any], None] | None = None,
) -> Iterator[TiffRows]:
    """A GeoTIFF of 8 bit that lies where the source lies and takes rows in order.

    Args:
        path: the final name.
        source: gives size and georeference.
        kind: what the pixels are.
        bands: N.
        options: compression, overviews, arrangement.
        describe: adds palette, tags and names to rasterio's dataset before the first pixel.

    Yields:
        What takes the rows; all H must come. An error inside the block leaves no file behind.

    Raises:
        OutputError: the file exists already, or the disk refuses it.
    """
    # Overviews are made from what was written: without a limit, all of it would stay in memory.
    room = max(2 * BLOCK * source.shape[1] * bands, 2**25)
    with whole_output(path, options.overwrite) as part, BLOCK_CACHE.room(room):
        rows = TiffRows(part, path, source, kind, bands=bands, options=options)
        try:
            if describe:
                describe(rows.dataset)
            yield rows
            rows.complete()
        finally:
            rows.close()


def read_tiff(path: Path, window: Window) -> np.ndarray:
    """All bands of a window of a file that was written here: (N, h, w).

    Raises:
        DataError: it is missing or damaged.
    """
    from rasterio.errors import RasterioError
    from rasterio.windows import Window as Frame

    try:
        with _open(path) as dataset:
            return np.asarray(dataset.read(window=Frame(window.col, window.row, window.width, window.height)))
    except (OSError, RasterioError) as error:
        raise DataError(f"{path}: cannot be read ({root_cause(error)}); write it anew") from error


def _create(part: Path, source: Source, kind: Kind, bands: int, options: MapOptions) -> Any:
    from rasterio.control import GroundControlPoint
    from rasterio.crs import CRS
    from rasterio.transform import Affine

    height, width = source.shape
    profile: dict[str, Any] = {
        "driver": "GTiff", "dtype": "uint8", "count": bands, "height": height, "width": width,
        "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "interleave": kind.interleave,
        "bigtiff": "IF_SAFER", "sparse_ok": True, **_packing(kind, options),
    }  # fmt: skip
    profile |= {"photometric": "RGB", "alpha": "YES"} if kind.nodata is None else {"nodata": kind.nodata}
    if bands > 1:  # blocks come out in order whatever the number; a single band of labels is not worth the threads
        profile["num_threads"] = min(bands, os.cpu_count() or 1)
    if source.georef:
        profile["transform"] = Affine(*source.georef.transform)
        profile["crs"] = CRS.from_wkt(source.georef.crs) if source.georef.crs else None
    dataset = _open(part, "w", **profile)
    if source.control and not source.georef:
        points = [GroundControlPoint(p.row, p.col, p.x, p.y, p.z) for p in source.control.points]
        dataset.gcps = points, CRS.from_wkt(source.control.crs) if source.control.crs else CRS()
    return dataset


def _packing(kind: Kind, options: MapOptions) -> dict[str, Any]:
    """GDAL's options of compression."""
    # zstd needs no more than its first level: on labels it is then a quarter of deflate's time at the same size.
    level = {"zlevel": kind.level} if options.compression == "deflate" else {"zstd_level": 1}
    return {"compress": options.compression, "predictor": kind.predictor, **level}


def _rearrange(part: Path, kind: Kind, options: MapOptions) -> None:
    """Make a finished GeoTIFF a cloud optimised one."""
    from rasterio.shutil import copy

    arranged = part.with_name(f"{part.name}.cog.tif")
    packing = _packing(kind, options)
    settings = {
        "compress": packing["compress"], "level": packing.get("zlevel", packing.get("zstd_level")),
        "predictor": "STANDARD" if kind.predictor == 2 else "NO", "blocksize": BLOCK, "bigtiff": "IF_SAFER",
        "sparse_ok": "TRUE", "overviews": "AUTO",
    }  # fmt: skip
    try:
        with _settings():
            copy(part, arranged, driver="COG", **settings)
        os.replace(arranged, part)
    finally:
        with suppress(OSError):
            arranged.unlink()


def _check_complete(part: Path, full: np.ndarray, overviews: int) -> None:
    """Raise OSError unless every block that is not empty is in the file.

    GDAL writes what it still holds when the file is closed, and a full disk is then a line on stderr, not an error.

    Args:
        part: the file.
        full: (N or 1, block rows, block columns) bool, the blocks that are not empty.
        overviews: how many there are; a block of one covers two by two of the level below.
    """
    size = part.stat().st_size
    with _open(part) as dataset:
        if len(dataset.overviews(1)) != overviews:
            raise OSError(errno.EIO, "the file was cut off")

        def has(band: int, row: int, col: int, level: int | None) -> bool:
            """Whether a block is in the file, wholly."""
            at, length = (
                dataset.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=band, ovr=level)
                for what in ("OFFSET", "SIZE")
            )
            return at is not None and length is not None and int(at) + int(length) <= size

        for band, row, col in np.argwhere(full).tolist():
            if not has(band + 1, row, col, None):
                raise OSError(errno.EIO, "the file was cut off")
        for level in range(overviews):
            full = np.logical_or.reduceat(full, np.arange(0, full.shape[1], 2), axis=1)
            full = np.logical_or.reduceat(full, np.arange(0, full.shape[2], 2), axis=2)
            for band, row, col in np.argwhere(full).tolist():
                if not has(band + 1, row, col, level) and _mostly_valid(dataset, band + 1, row, col, level):
                    raise OSError(errno.EIO, "the file was cut off")


def _mostly_valid(dataset: Any, band: int, row: int, col: int, level: int) -> bool:
    """Whether what a block of an overview covers has data: where most of it has none, the block may be empty, too."""
    from rasterio.windows import Window as Frame

    side = BLOCK * 2 ** (level + 1)
    height, width = min(side, dataset.height - row * side), min(side, dataset.width - col * side)
    valid = 0
    for top in range(0, height, BLOCK):
        rows = min(BLOCK, height - top)
        mask = dataset.read_masks(band, window=Frame(col * side, row * side + top, width, rows))
        valid += int(np.count_nonzero(mask))
    return bool(2 * valid > height * width)


def _reason(path: Path, error: Exception) -> OSError:
    """GDAL does not say why a write failed: a full disk is told by its free space."""
    if is_full(path.parent):
        return OSError(errno.ENOSPC, "")
    if isinstance(error, OSError) and error.strerror:
        return error
    return OSError(None, root_cause(error))  # without GDAL's own number, which means something else


def _settings(**more: Any) -> AbstractContextManager[Any]:
    """Settings of GDAL for writing: no side files.

    Around single calls only: they belong to one thread, and the file may move to another between two calls.
    """
    import rasterio

    return cast(AbstractContextManager[Any], rasterio.Env(GDAL_PAM_ENABLED="NO", **more))


def _open(path: Path, mode: str = "r", **profile: Any) -> Any:
    """A dataset of rasterio. No warning about a missing georeference: the source already told."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    with _settings(), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path, mode, **profile)
