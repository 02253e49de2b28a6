"""Rectangles of whole pixels and the lattices that cover a raster with them."""

from collections.abc import Iterator
from dataclasses import dataclass

from visionapps.errors import ConfigError


@dataclass(frozen=True, order=True)
class Window:
    """A half-open rectangle of pixels: rows [row, row + height), columns [col, col + width)."""

    row: int
    col: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 0 or self.width < 0:
            raise ConfigError(f"window: height {self.height} and width {self.width} must not be negative")

    @property
    def row_end(self) -> int:
        return self.row + self.height

    @property
    def col_end(self) -> int:
        return self.col + self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """Row and column slices into an array of the whole raster; for windows that lie inside it."""
        return slice(self.row, self.row_end), slice(self.col, self.col_end)

    def shift(self, rows: int, cols: int) -> "Window":
        """The same rectangle, moved by whole pixels."""
        return Window(self.row + rows, self.col + cols, self.height, self.width)

    def intersect(self, other: "Window") -> "Window":
        """The common part of both; empty (height or width 0) where they do not meet."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        height = max(0, min(self.row_end, other.row_end) - row)
        width = max(0, min(self.col_end, other.col_end) - col)
        return Window(row, col, height, width)


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin so that they cover [0, length) on a fixed lattice.

    The last tile may run past the end and is to be padded; it is never snapped back, so every
    tile keeps its place on the lattice and no pixel is computed more often than the overlap says.

    Args:
        length: pixels to cover, >= 1.
        tile: pixels of one tile, >= 1.
        overlap: pixels that neighbours share, in [0, tile).
    """
    if length < 1 or tile < 1 or not 0 <= overlap < tile:
        raise ConfigError(f"tiles: length {length} and tile {tile} must be at least 1, overlap {overlap} in [0, tile)")
    step = tile - overlap
    return list(range(0, max(1, length - overlap), step))


def blocks(height: int, width: int, size: int) -> Iterator[Window]:
    """Cut a raster into size x size windows without overlap, the last ones smaller, row by row."""
    for row in range(0, height, size):
        for col in range(0, width, size):
            yield Window(row, col, min(size, height - row), min(size, width - col))
