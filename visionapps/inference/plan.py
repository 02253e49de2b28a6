"""The lattice of tiles that covers one raster: which pixels each tile sees, and which it finishes. Whole numbers only.

Shapes: C bands, S score planes, N product planes, B tiles, h w tile, W raster width, o overlap.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from visionapps.errors import ConfigError
from visionapps.windows import Window, starts

TILE = 512  # default side: as fast per pixel as larger ones on CPU and GPU, and a quarter of the memory of 1024
WHOLE = 1024  # scenes up to this are one tile: nothing is computed twice
MOST_REPEATED = 1.15  # pixels computed per pixel of the raster that a plan may cost to keep its tiles of one size
_FEW = 4  # tiles on an axis that rounding their size to the multiple cannot make much dearer
# Tried in turn where memory is short: shares of TILE, and in exact mode halos in a tile if that is more. A tile of 8
# halos computes 1.8 times what it draws, one of 4, the least that is possible, 4 times. Sizes between would not do:
# their sixteenth rounds up to as much overlap as the next larger one has.
_SMALLER = ((1, 8), (1 / 2, 4))


@dataclass(frozen=True)
class Axis:
    """The lattice along one axis. Neighbours share ``overlap`` pixels, and never more than two tiles share one.

    Attributes:
        length: pixels of the raster.
        tile: pixels of a tile.
        overlap: pixels that neighbours share, at most half a tile; 0 where one tile covers the axis.
        origin: where the first tile begins, in (overlap - tile, 0].
        exact: no tile leaves the raster, and the later tile takes over at once in the middle of the overlap, so that
            every pixel is computed from what the whole image shows around it.
        trim: pixels by which the last tile is shorter than the others.
    """

    length: int
    tile: int
    overlap: int
    origin: int = 0
    exact: bool = False
    trim: int = 0

    def __post_init__(self) -> None:
        sound = self.length >= 1 and self.tile >= 1 and 0 <= self.overlap <= self.tile // 2
        sound = sound and -self.step < self.origin <= 0 and 0 <= self.trim < self.step
        sound = sound and not (self.exact and (self.overlap % 2 or self.trim))
        if not sound or self.padded < self.length:
            raise ConfigError(
                f"{self}: length and tile must be at least 1, overlap in [0, tile / 2], origin in (overlap - tile, 0], "
                "the overlap of an exact axis even, and the last tile must reach the end"
            )

    @property
    def step(self) -> int:
        """Pixels from one tile to the next."""
        return self.tile - self.overlap

    @cached_property
    def starts(self) -> list[int]:
        """First pixel of every tile, before an exact axis clips it."""
        return [self.origin + start for start in starts(self.length - self.origin, self.tile, self.overlap)]

    @property
    def padded(self) -> int:
        """Where the last tile ends; what tiles see is [origin, padded)."""
        return self.extent(len(self.starts) - 1)[1]

    @property
    def computed(self) -> int:
        """Pixels of all tiles together."""
        return sum(end - begin for begin, end in map(self.extent, range(len(self.starts))))

    def extent(self, index: int) -> tuple[int, int]:
        """[begin, end) of the pixels that a tile sees; those outside of [0, length) are reflected.

        On an exact axis no tile leaves [0, length).
        """
        begin = self.starts[index]
        end = begin + self.tile - (self.trim if index == len(self.starts) - 1 else 0)
        return (max(0, begin), min(self.length, end)) if self.exact else (begin, end)

    def finished(self, index: int) -> tuple[int, int]:
        """[begin, end) of the pixels that no later tile changes once tile ``index`` is done, after those before it."""
        last = index == len(self.starts) - 1
        return max(0, self.starts[index]), self.length if last else self.starts[index + 1]

    def ramp(self) -> np.ndarray:
        """Weights of the later tile across an overlap: (overlap,) float32; 1 - ramp belongs to the earlier one.

        Linear at pixel centres, never 0 or 1; on an exact axis 0 in the first half and 1 in the second.
        """
        centres = (np.arange(self.overlap, dtype=np.float32) + 0.5) / max(1, self.overlap)
        return (centres > 0.5).astype(np.float32) if self.exact else centres


@dataclass(frozen=True)
class Plan:
    """Tiles of a raster, row by row."""

    rows: Axis
    cols: Axis

    @property
    def tiles(self) -> int:
        """How many tiles there are."""
        return len(self.rows.starts) * len(self.cols.starts)

    @property
    def repeated(self) -> float:
        """Pixels computed per pixel of the raster, overlap and padding included: 1 is the least."""
        return self.rows.computed * self.cols.computed / (self.rows.length * self.cols.length)

    def band(self, index: int) -> Window:
        """The full-width rows that are finished after tile row ``index``."""
        begin, end = self.rows.finished(index)
        return Window(begin, 0, end - begin, self.cols.length)


class Footprint(NamedTuple):
    """What a pixel weighs on its way through the pipeline."""

    bands: int  # C
    itemsize: int  # bytes of a raw value
    scores: int  # S
    products: int = 1  # N
    activations: int = 400  # bytes per tile pixel at the peak of the forward: U-Nets take 230 to 420 (bf16: 150 to 290)
    batch: int = 1  # B


class Memory(NamedTuple):
    """Bytes that drawing takes beside weights and runtime. Nothing in it grows with the raster's height."""

    pixels: int  # rows of tiles: being read, waiting, being computed
    strips: int  # scores of the overlaps that wait for the next tile and the next row
    bands: int  # finished rows: being merged, waiting, being written
    batch: int  # tiles in the network: input and scores
    network: int  # its activations, whatever is done with the scores

    @property
    def total(self) -> int:
        return sum(self)

    @property
    def beside(self) -> int:
        """All but the network's own."""
        return self.total - self.network


def plan(shape: tuple[int, int], *, tile: int, overlap: int, multiple: int = 32) -> Plan:
    """Lay square tiles of just this size over a raster; the last ones are padded.

    An axis shorter than a tile gets one smaller tile.

    Args:
        shape: (H, W) of the raster.
        tile: side in pixels, a multiple of ``multiple``.
        overlap: pixels that neighbours share, in [0, tile / 2], so that two ramps suffice to blend them.
        multiple: the coarsest stride of the model; tiles are whole multiples, so that it never pads inside.

    Raises:
        ConfigError: tile or overlap do not meet these conditions.
    """
    _check(tile, overlap, multiple)
    rows, cols = (_single(n, multiple) if n <= tile else Axis(n, tile, overlap) for n in shape)
    return Plan(rows, cols)


def fitted(shape: tuple[int, int], *, tile: int, overlap: int, multiple: int = 32) -> Plan:
    """Lay tiles of about the wanted size so that little is computed twice.

    Each axis gets as few tiles as the wanted size allows, all of the size that these then need. Sizes are whole
    multiples, and what rounding adds on a long axis is cut from its last tile. Columns keep one size, which fills
    batches across rows, where the plan stays within MOST_REPEATED or has few of them.

    Args:
        shape: (H, W) of the raster.
        tile: the largest side in pixels, a multiple of ``multiple``; tiles come out at 0.75 to 1 of it, less where two
            or three of them cover the axis.
        overlap: pixels that neighbours share, in [0, tile / 2].
        multiple: the coarsest stride of the model.

    Raises:
        ConfigError: tile or overlap do not meet these conditions.
    """
    _check(tile, overlap, multiple)
    rows, cols = (_trimmed(n, tile, overlap, multiple) for n in shape)
    even = _even(shape[1], tile, overlap, multiple)
    if len(even.starts) <= _FEW or Plan(rows, even).repeated <= MOST_REPEATED:
        cols = even
    return Plan(rows, cols)


def exact_plan(shape: tuple[int, int], *, tile: int, halo: int, multiple: int = 32) -> Plan:
    """Lay tiles so that a fully convolutional model draws what it would draw of the whole raster at once.

    Args:
        shape: (H, W) of the raster.
        tile: side in pixels, a multiple of ``multiple``; the last tile ends with the raster.
        halo: pixels around a pixel that the model looks at, see visionapps.inference.field; rounded up to the multiple.
        multiple: the coarsest stride of the model.

    Raises:
        ConfigError: the tile is no multiple, or smaller than four halos.
    """
    margin = _round_up(halo, multiple)
    _check(tile, 0, multiple)
    if halo < 0 or (4 * margin > tile and max(shape) > tile):
        raise ConfigError(
            f"exact mode: the model looks {halo} px around a pixel, so tiles must have at least {4 * margin} px to "
            f"finish half of what they see, but the tile has {tile}; give --tile {max(8 * margin, multiple)}, or "
            f"{4 * margin} where memory is short"
        )
    rows, cols = (
        Axis(n, _round_up(n, multiple), 0, exact=True) if n <= tile else Axis(n, tile, 2 * margin, exact=True)
        for n in shape
    )
    return Plan(rows, cols)


def shifted(layout: Plan, *, multiple: int = 32) -> Plan:
    """The lattice moved up and left by half a step, rounded to the multiple; an axis of one tile stays as it is."""

    def moved(axis: Axis) -> Axis:
        origin = -max(multiple, axis.step // 2 // multiple * multiple)
        if len(axis.starts) == 1 or -origin >= axis.step:
            return axis
        return Axis(axis.length, axis.tile, axis.overlap, origin, axis.exact)

    return Plan(moved(layout.rows), moved(layout.cols))


def default_overlap(tile: int, multiple: int = 32) -> int:
    """A sixteenth of the tile, rounded up to the multiple, but never more than half of the tile."""
    return min(_round_up(tile // 16, multiple), tile // 2)


def choose(
    shape: tuple[int, int],
    footprint: Footprint,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    halo: int | None = None,
    multiple: int = 32,
    budget: int = 600_000_000,
) -> Plan:
    """The plan of a raster where a person leaves it to us.

    Args:
        shape: (H, W) of the raster.
        footprint: what its pixels weigh.
        tile: the largest side in pixels; None: one tile for a scene up to WHOLE, else the largest up to TILE (in exact
            mode more, where the halo asks for it) that keeps within the budget, or the smallest tried.
        overlap: pixels that neighbours share; None: ``default_overlap``. Of no meaning in exact mode.
        halo: exact mode with this many pixels around; None: blended.
        multiple: the coarsest stride of the model.
        budget: bytes for everything that ``memory`` counts beside the network.

    Raises:
        ConfigError: tile, overlap or halo do not go together.
    """
    margin = _round_up(halo or 0, multiple)
    offered = (max(_round_up(int(TILE * share), multiple), margins * margin) for share, margins in _SMALLER)
    sizes = [tile] if tile else [size for size in offered if (overlap or 0) <= size // 2] or [TILE]
    if not tile and halo is None and max(shape) <= WHOLE:
        sizes = [_round_up(WHOLE, multiple)]
    for size in sizes:
        layout = _layout(shape, size, overlap, halo=halo, multiple=multiple)
        if memory(layout, footprint).beside <= budget:
            break
    return layout


def memory(layout: Plan, footprint: Footprint) -> Memory:
    """What drawing a raster by this plan takes, in bytes; an estimate for people, some 20 % off."""
    rows, cols = layout.rows, layout.cols
    height, width = (min(axis.tile, axis.padded - axis.origin) for axis in (rows, cols))
    across = cols.padded - cols.origin
    pixels = 3 * height * across * (footprint.bands * footprint.itemsize + 1)  # + 1: the validity of a pixel
    strips = 4 * footprint.scores * (rows.overlap * across + cols.overlap * height)
    bands = 3 * footprint.products * min(rows.step, rows.length) * cols.length
    # Scores are there twice: as the network leaves them, and as planes in fp32.
    tile = footprint.bands * (footprint.itemsize + 4) + 2 * 4 * footprint.scores
    computed = footprint.batch * height * width
    return Memory(pixels, strips, bands, computed * tile, computed * footprint.activations)


def _layout(shape: tuple[int, int], tile: int, overlap: int | None, *, halo: int | None, multiple: int) -> Plan:
    if halo is not None:
        return exact_plan(shape, tile=tile, halo=halo, multiple=multiple)
    shared = default_overlap(tile, multiple) if overlap is None else overlap
    return fitted(shape, tile=tile, overlap=shared, multiple=multiple)


def _check(tile: int, overlap: int, multiple: int) -> None:
    if tile < multiple or tile % multiple:
        below = max(multiple, tile // multiple * multiple)
        raise ConfigError(f"tile {tile} px: must be a multiple of the model's stride {multiple}, such as {below}")
    if not 0 <= overlap <= tile // 2:
        raise ConfigError(f"overlap {overlap} px: must be in [0, {tile // 2}], at most half of the tile of {tile} px")


def _single(length: int, multiple: int) -> Axis:
    """One tile that covers the whole axis."""
    return Axis(length, _round_up(length, multiple), 0)


def _trimmed(length: int, tile: int, overlap: int, multiple: int) -> Axis:
    """The fewest tiles, then the smallest; the last one as short as the multiple allows."""
    if length <= tile:
        return _single(length, multiple)
    count = len(starts(length, tile, overlap))
    size = _smallest(length, count, overlap, multiple)
    axis = Axis(length, size, overlap)
    return Axis(
        length, size, overlap, trim=axis.padded - axis.starts[-1] - _round_up(length - axis.starts[-1], multiple)
    )


def _even(length: int, tile: int, overlap: int, multiple: int) -> Axis:
    """Tiles of one size that compute the least: from 0.75 of the wanted size (less if so few suffice) to all of it."""
    if length <= tile:
        return _single(length, multiple)
    count = len(starts(length, tile, overlap))
    size = _smallest(length, count, overlap, multiple)
    lowest = min(size, _round_up(max(3 * tile // 4, 2 * overlap, 1), multiple))
    axes = (Axis(length, side, overlap) for side in range(tile, lowest - 1, -multiple))
    return min(axes, key=lambda axis: axis.computed)  # the largest of equals


def _smallest(length: int, count: int, overlap: int, multiple: int) -> int:
    """The smallest size with which so many tiles suffice."""
    need = -(-(length + (count - 1) * overlap) // count)
    return _round_up(max(need, 2 * overlap), multiple)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
