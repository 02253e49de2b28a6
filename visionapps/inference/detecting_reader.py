"""From images to batches of tiles for a detector, in a thread of its own.

Shapes: B tiles, C bands, h w tile, H W image, P proposals.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from visionapps.errors import ConfigError, DataError
from visionapps.inference.network import neutral_values, upload
from visionapps.inference.photos import at_scale
from visionapps.inference.plan import Axis, Plan, fitted
from visionapps.inference.rows import TileRow, tile_rows
from visionapps.inference.sources import Source
from visionapps.structures import InputSpec, Rescale
from visionapps.windows import Window

_WHOLE = 2  # tiles' sides up to which an image is taken whole, if it has no more pixels than so many tiles
# Pixels per call. A CPU is as fast with one tile of 512 px as with more; a GPU wants more, and each proposal's features
# of a large batch would take gigabytes.
_CPU_PIXELS, _GPU_PIXELS = 2**18, 2**22


@dataclass(frozen=True)
class Looking:
    """How a detector looks at images.

    Attributes:
        tile: side of the tiles in pixels, at least 1; None: every image is taken whole.
        overlap: pixels that neighbouring tiles share, at most half a tile; None: a fifth of the tile.
        rescale: photos are taken whole, scaled like this; None: at their own size. What lies on the ground keeps its
            resolution, and is cut into tiles.
        batch: tiles per call of the network; None: chosen by the device.
    """

    tile: int | None = None
    overlap: int | None = None
    rescale: Rescale | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        if self.tile is not None and self.tile < 1:
            raise ConfigError(f"tile {self.tile}: must be at least 1 pixel")
        if self.overlap is not None and self.tile is None:
            raise ConfigError(f"overlap {self.overlap}: whole images have no overlap; give a tile, too")
        if self.overlap is not None and self.tile is not None and not 0 <= self.overlap <= self.tile // 2:
            raise ConfigError(f"overlap {self.overlap} px: must be in [0, {self.tile // 2}], half of the tile at most")
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"batch {self.batch}: must be at least 1 tile")

    def shown(self, source: Source) -> "tuple[Source, float, Looking]":
        """The image as the network sees it, its pixels per pixel of the image's own, and how that is looked at."""
        if self.rescale is None or source.georef is not None or source.control is not None:
            return source, 1.0, self
        factor = self.rescale.factor(*source.shape)
        return at_scale(source, factor), factor, Looking(batch=self.batch)

    def plan(self, shape: tuple[int, int], multiple: int) -> Plan:
        """Tiles of an image; none of them reaches beyond it.

        Args:
            shape: (H, W).
            multiple: the coarsest stride of the network.
        """
        side, overlap = max(shape), 0
        if self.tile and (max(shape) > _WHOLE * self.tile or shape[0] * shape[1] > _WHOLE * self.tile**2):
            side = _round_up(self.tile, multiple)
            overlap = self._overlap(side)
        layout = fitted(shape, tile=_round_up(side, multiple), overlap=overlap, multiple=multiple)
        rows, cols = (Axis(axis.length, axis.tile, axis.overlap, exact=True) for axis in (layout.rows, layout.cols))
        return Plan(rows, cols)

    def per_call(self, pixels: int, device: torch.device) -> int:
        """Tiles of so many pixels per call of the network."""
        return self.batch or max(1, (_GPU_PIXELS if device.type == "cuda" else _CPU_PIXELS) // pixels)

    def _overlap(self, side: int) -> int:
        wanted = side // 5 if self.overlap is None else self.overlap
        return min(_round_up(wanted, 2), side // 4 * 2)


class Place(NamedTuple):
    """Which part of which image a tile shows."""

    key: int  # number of the image
    window: Window  # in pixels of the image as the network sees it
    shape: tuple[int, int]  # (H, W) of the image as the network sees it
    valid: np.ndarray | None  # (h, w) bool; None: every pixel


class Glimpse(NamedTuple):
    """A tile for which proposals are wanted."""

    pixels: np.ndarray  # (h, w, C) raw values
    name: str  # of its image
    window: Window  # in pixels of the image as the network sees it
    factor: float  # pixels of that per pixel of the image


Propose = Callable[[Glimpse], np.ndarray]  # (P, 4) boxes in pixels of the glimpse


class Load(NamedTuple):
    """A batch on the device."""

    images: Tensor  # (B, C, h, w) raw values, 0 beyond the size of each
    sizes: tuple[tuple[int, int], ...]
    places: tuple[Place, ...]
    proposals: tuple[Tensor, ...] | None  # (P, 4) each


class Ending(NamedTuple):
    """All of an image has been read."""

    key: int
    source: Source
    shape: tuple[int, int]  # (H, W) as the network sees it
    factor: float  # pixels of that per pixel of the image
    tiles: int  # that were put into batches
    skipped: int  # that have no valid pixel
    error: DataError | None  # why it cannot be read


class _Tile(NamedTuple):
    values: np.ndarray  # (C, h, w), of the reader's own memory
    name: str  # of its image
    factor: float  # pixels of the place per pixel of the image
    padded: tuple[int, int]
    place: Place


@dataclass
class Reader:
    """Cuts images into batches. An image that cannot be read ends with its error and does not stop the others.

    Attributes:
        looking: how images are cut.
        spec: bands and scale that the network expects.
        multiple: its coarsest stride.
        device: where batches go.
        threads: that decode pixels.
        propose: the proposals of a tile, for detectors that make none; None: there are none.
    """

    looking: Looking
    spec: InputSpec
    multiple: int
    device: torch.device
    threads: int = 2
    propose: Propose | None = None

    def loads(self, sources: Iterable[Source]) -> Generator[Load | Ending, None, None]:
        """Batches across images, and after the last tile of each image was taken in, its end.

        A batch holds tiles of one padded size and one type of pixels.
        """
        waiting: list[_Tile] = []
        for key, source in enumerate(sources):
            taken, skipped, error, shape, factor = 0, 0, None, source.shape, 1.0
            try:
                _check_bands(source, self.spec)
                shown, factor, looking = self.looking.shown(source)
                shape = shown.shape
                for tile in self._tiles(key, shown, factor, looking.plan(shape, self.multiple)):
                    if tile is None:
                        skipped += 1
                        continue
                    if waiting and self._full(waiting, tile):
                        yield self._load(waiting)
                        waiting = []
                    waiting.append(tile)
                    taken += 1
            except DataError as caught:
                error = caught
            yield Ending(key, source, shape, factor, taken, skipped, error)
        if waiting:
            yield self._load(waiting)

    def _tiles(self, key: int, source: Source, factor: float, plan: Plan) -> Iterator[_Tile | None]:
        padded = (plan.rows.tile, plan.cols.tile)
        fill = neutral_values(self.spec, source.dtype)
        for row in tile_rows(source, plan, fill=fill, threads=self.threads):
            top, bottom = plan.rows.extent(row.index)
            for index in range(len(plan.cols.starts)):
                left, right = plan.cols.extent(index)
                place = Place(key, Window(top, left, bottom - top, right - left), source.shape, None)
                cut = _cut(row, place)
                yield None if cut is None else _Tile(cut[0], source.name, factor, padded, cut[1])
            row.release()

    def _full(self, waiting: list[_Tile], tile: _Tile) -> bool:
        first = waiting[0]
        alike = first.padded == tile.padded and first.values.dtype == tile.values.dtype
        return not alike or len(waiting) >= self.looking.per_call(tile.padded[0] * tile.padded[1], self.device)

    def _load(self, tiles: list[_Tile]) -> Load:
        height, width = tiles[0].padded
        bands, dtype = len(tiles[0].values), tiles[0].values.dtype
        images = np.zeros((len(tiles), bands, height, width), dtype)
        for image, tile in zip(images, tiles, strict=True):
            image[:, : tile.values.shape[1], : tile.values.shape[2]] = tile.values
        proposals = None
        if self.propose is not None:
            found = (self.propose(_glimpse(tile)) for tile in tiles)
            proposals = tuple(torch.from_numpy(boxes.astype(np.float32)).to(self.device) for boxes in found)
        sizes = tuple((tile.place.window.height, tile.place.window.width) for tile in tiles)
        return Load(upload(images, self.device), sizes, tuple(tile.place for tile in tiles), proposals)


def _glimpse(tile: _Tile) -> Glimpse:
    pixels = np.ascontiguousarray(np.moveaxis(tile.values, 0, -1))
    return Glimpse(pixels, tile.name, tile.place.window, tile.factor)


def _cut(row: TileRow, place: Place) -> tuple[np.ndarray, Place] | None:
    """(C, h, w) a tile of a row, and its place with its valid pixels; None without any."""
    window = place.window
    columns = slice(window.col, window.col_end)
    valid = row.valid[: window.height, columns]
    if not valid.any():
        return None
    values = row.values[:, : window.height, columns].copy()  # the row's memory is used again
    return values, place if valid.all() else place._replace(valid=valid.copy())


def _check_bands(source: Source, spec: InputSpec) -> None:
    if len(source.bands) != len(spec.bands):
        raise DataError(
            f"{source.name}: {len(source.bands)} bands, but the model expects {len(spec.bands)} "
            f"({', '.join(spec.bands)}); choose them with --bands"
        )


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
