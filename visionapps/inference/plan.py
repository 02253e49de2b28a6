"""The lattice of tiles that covers one raster: which pixels each tile sees, and which it finishes."""

from dataclasses import dataclass

from visionapps.errors import ConfigError
from visionapps.windows import Window, starts


@dataclass(frozen=True)
class Axis:
    """The lattice along one axis. Neighbours share ``overlap`` pixels, and never more than two tiles share one.

    Attributes:
        length: pixels of the raster.
        tile: pixels of a tile; the last tile may run past the end and is padded.
        overlap: pixels that neighbours share, at most half a tile; 0 where one tile covers the axis.
    """

    length: int
    tile: int
    overlap: int

    @property
    def starts(self) -> list[int]:
        """First pixel of every tile."""
        return starts(self.length, self.tile, self.overlap)

    @property
    def padded(self) -> int:
        """Pixels from 0 to the end of the last tile."""
        return self.starts[-1] + self.tile

    def finished(self, index: int) -> tuple[int, int]:
        """[begin, end) of the pixels that no later tile changes once tile ``index`` is done, after those before it."""
        begin = self.starts[index]
        last = index == len(self.starts) - 1
        return begin, self.length if last else begin + self.tile - self.overlap


@dataclass(frozen=True)
class Plan:
    """Tiles of a raster, row by row."""

    rows: Axis
    cols: Axis

    @property
    def tiles(self) -> int:
        """How many tiles there are."""
        return len(self.rows.starts) * len(self.cols.starts)

    def band(self, index: int) -> Window:
        """The full-width rows that are finished after tile row ``index``."""
        begin, end = self.rows.finished(index)
        return Window(begin, 0, end - begin, self.cols.length)


def plan(shape: tuple[int, int], *, tile: int, overlap: int, multiple: int = 32) -> Plan:
    """Lay square tiles over a raster; an axis shorter than a tile gets one smaller tile.

    Args:
        shape: (H, W) of the raster.
        tile: side in pixels, a multiple of ``multiple``.
        overlap: pixels that neighbours share, in [0, tile / 2], so that two ramps suffice to blend them.
        multiple: the coarsest stride of the model; tiles are whole multiples, so that it never pads inside.

    Raises:
        ConfigError: tile or overlap do not meet these conditions.
    """
    if tile < multiple or tile % multiple:
        below = max(multiple, tile // multiple * multiple)
        raise ConfigError(f"tile {tile} px: must be a multiple of the model's stride {multiple}, such as {below}")
    if not 0 <= overlap <= tile // 2:
        raise ConfigError(f"overlap {overlap} px: must be in [0, {tile // 2}], at most half of the tile of {tile} px")
    height, width = (_axis(length, tile, overlap, multiple) for length in shape)
    return Plan(height, width)


def _axis(length: int, tile: int, overlap: int, multiple: int) -> Axis:
    if length <= tile:
        return Axis(length, -(-length // multiple) * multiple, 0)
    return Axis(length, tile, overlap)
