"""Many scenes through one network: rows are read ahead, batches cross tile rows and scenes, finished bands come out.

Shapes: C bands, S score planes, N product planes, h w tile.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from visionapps.errors import ConfigError, DataError
from visionapps.inference.merge import StripMerger
from visionapps.inference.network import Network, neutral_values
from visionapps.inference.plan import Plan
from visionapps.inference.products import Band, Products
from visionapps.inference.rows import TileRow, tile_rows
from visionapps.inference.sources import INVALID, Source
from visionapps.inference.threads import Clock, read_ahead
from visionapps.inference.tiling import tiles_per_call

READ, COMPUTE, MERGE = "reading", "network", "merging"  # stages of the clock
WAIT_READ = "waiting for pixels"
_AHEAD = 2  # tile rows that wait for the network: one hides the reading, two hide its jitter
_HELD = 4  # batches' worth of tiles, skipped ones included, that wait for a batch to fill; each holds its row


@dataclass(frozen=True, eq=False)
class Scene:
    """A source to be drawn, wholly or in part.

    Attributes:
        source: open for reading.
        plan: of the source's size.
        rows: the contiguous tile rows whose bands are wanted.
        key: the caller's, to know it again.
        given_up: set by the caller, from any thread, when no more of it is wanted.
    """

    source: Source
    plan: Plan
    rows: range
    key: int = 0
    given_up: threading.Event = field(default_factory=threading.Event)

    @property
    def tiles(self) -> int:
        """Tiles to look at, the row that only warms up the overlap included."""
        return (len(self.rows) + (self.rows.start > 0)) * len(self.plan.cols.starts)


@dataclass
class Tally:
    """What has been done so far."""

    tiles: int = 0  # looked at
    skipped: int = 0  # of these, without a valid pixel: they cost no forward pass
    computed: int = 0  # pixels that went through the network, overlap and padding included
    finished: int = 0  # pixels of finished bands, valid or not
    clock: Clock = field(default_factory=Clock)


class Result(NamedTuple):
    """A finished band of a scene, or why the scene cannot be read any further."""

    scene: Scene
    outcome: Band | DataError


class _Tile(NamedTuple):
    drawing: "_Merging"
    row: TileRow
    columns: slice | None  # of the row's arrays; None: not one valid pixel, nothing to compute
    last: bool  # of its row


@dataclass(eq=False)
class _Merging:
    scene: Scene
    merger: StripMerger


class _Fetching(NamedTuple):
    """Finished labels on their way from the device."""

    scene: Scene
    band: Band
    valid: np.ndarray
    arrived: torch.cuda.Event | None


class Engine:
    """Runs a network over scenes. Results depend neither on the batch size nor on what else is in the run."""

    def __init__(
        self, network: Network, *, batch: int | None = None, products: Products | None = None, threads: int = 1
    ) -> None:
        """
        Args:
            network: what computes scores.
            batch: tiles per call of the network, >= 1; None: as many as keep the device busy.
            products: what is drawn; None: labels only.
            threads: that decode a row of blocks at a time, >= 1.

        Raises:
            ConfigError: a number is out of range.
        """
        if batch is not None and batch < 1:
            raise ConfigError(f"batch {batch}: must be at least 1 tile")
        if threads < 1:
            raise ConfigError(f"threads {threads}: at least 1 must decode pixels")
        self.network = network
        self.products = products or Products()
        self._batch = batch
        self.threads = threads
        self.tally = Tally()
        self.progress: Callable[[int], None] | None = None  # told how many tiles more are done, after each batch

    @property
    def arithmetic(self) -> str:
        """What decides the last digits of scores, in words."""
        return self.network.arithmetic + (f", {self._batch} tiles" if self.network.device.type == "cuda" else "")

    def run(self, scenes: Iterable[Scene]) -> Generator[Result, None, None]:
        """Draw scenes one after the other.

        Args:
            scenes: taken in a thread of its own, as the reading comes to them.

        Yields:
            Bands of each scene from top to bottom, scenes in order; after a DataError no more of that scene.

        Raises:
            VisionAppsError: anything that is not the fault of one scene.
        """
        rows = read_ahead(self._read(scenes), depth=_AHEAD, clock=self.tally.clock, stage=READ, wait=WAIT_READ)
        fetching: deque[_Fetching] = deque()
        # On a GPU a band is waited for only when the next one is queued, so that copying hides behind computing.
        behind = 1 if self.network.device.type == "cuda" else 0
        try:
            for outcome in self._compute(rows):
                if isinstance(outcome, _Fetching):
                    fetching.append(outcome)
                while len(fetching) > (behind if isinstance(outcome, _Fetching) else 0):
                    yield self._fetched(fetching.popleft())
                if isinstance(outcome, Result):
                    yield outcome
            while fetching:
                yield self._fetched(fetching.popleft())
        finally:
            rows.close()

    def _read(self, scenes: Iterable[Scene]) -> Generator[tuple[Scene, TileRow | DataError], None, None]:
        for scene in scenes:
            # The overlap with the row above is computed again: bands are stateless, any run of rows can be drawn alone.
            rows = range(max(0, scene.rows.start - 1), scene.rows.stop)
            fill = neutral_values(self.network.spec, scene.source.dtype)
            try:
                self._check_bands(scene.source)
                for row in tile_rows(scene.source, scene.plan, fill=fill, rows=rows, threads=self.threads):
                    if scene.given_up.is_set():
                        break
                    yield scene, row
            except DataError as error:
                yield scene, error

    def _check_bands(self, source: Source) -> None:
        spec = self.network.spec
        if len(source.bands) != len(spec.bands):
            raise DataError(
                f"{source.name}: {len(source.bands)} bands, but the model expects {len(spec.bands)} "
                f"({', '.join(spec.bands)}); choose them with --bands"
            )

    def _compute(self, rows: Iterable[tuple[Scene, TileRow | DataError]]) -> Iterator[_Fetching | Result]:
        waiting: list[_Tile] = []
        merging: _Merging | None = None
        for scene, row in rows:
            if isinstance(row, DataError):
                yield from self._flush(waiting)
                waiting = []
                yield Result(scene, row)
                continue
            if merging is None or merging.scene is not scene:
                merging = _Merging(scene, self._merger(scene, row.index))
            for tile in self._tiles(merging, row):
                if self._full(waiting, tile):
                    yield from self._flush(waiting)
                    waiting = []
                waiting.append(tile)
        yield from self._flush(waiting)

    def _merger(self, scene: Scene, first: int) -> StripMerger:
        return StripMerger(
            scene.plan,
            self.network.num_classes,
            products=self.products,
            form=self.network.form,
            device=self.network.device,
            first=first,
        )

    @staticmethod
    def _tiles(merging: _Merging, row: TileRow) -> Iterator[_Tile]:
        cols = merging.scene.plan.cols
        count = len(cols.starts)
        for index in range(count):
            begin, end = (x - cols.origin for x in cols.extent(index))
            wanted = row.valid[:, begin:end].any()
            yield _Tile(merging, row, slice(begin, end) if wanted else None, index == count - 1)

    def _full(self, waiting: list[_Tile], tile: _Tile) -> bool:
        """Whether a tile has no place in the batch: it is full, or of another shape or type, or holds too many rows."""
        wanted = [t for t in waiting if t.columns is not None]
        most = self._most(wanted[0] if wanted else tile)
        if len(waiting) >= _HELD * most:
            return True
        if tile.columns is None or not wanted:
            return False
        return len(wanted) >= most or _form(wanted[0]) != _form(tile)

    def _most(self, tile: _Tile) -> int:
        """Tiles of this size per call of the network."""
        if self._batch is not None:
            return self._batch
        pixels = 0 if tile.columns is None else tile.row.values.shape[1] * (tile.columns.stop - tile.columns.start)
        return tiles_per_call(self.network, pixels)

    def _flush(self, waiting: list[_Tile]) -> Iterator[_Fetching]:
        """Compute a batch, and merge its tiles and the skipped ones between them in order."""
        tiles = [tile.row.values[..., tile.columns] for tile in waiting if tile.columns is not None]
        scores: Iterator[Tensor] = iter(())
        if tiles:
            with self.tally.clock.time(COMPUTE):
                first = next(tile for tile in waiting if tile.columns is not None)
                # Not beyond what the scene itself has: a small photo shall not be computed forty times.
                full = min(self._most(first), first.drawing.scene.plan.tiles)
                scores = iter(self.network(np.stack(tiles), full=full))
            self.tally.computed += sum(tile.shape[-1] * tile.shape[-2] for tile in tiles)
        for tile in waiting:
            with self.tally.clock.time(MERGE):
                tile.drawing.merger.add(None if tile.columns is None else next(scores))
                band = self._finish(tile) if tile.last else None
            self.tally.tiles += 1
            self.tally.skipped += tile.columns is None
            if band is not None:
                yield band
        if self.progress and waiting:
            self.progress(sum(tile.row.index >= tile.drawing.scene.rows.start for tile in waiting))

    def _finish(self, tile: _Tile) -> _Fetching | None:
        """Start fetching the band that a row of tiles has finished; None if the row was a warm-up."""
        scene, row = tile.drawing.scene, tile.row
        planes = tile.drawing.merger.finished_rows()
        window = scene.plan.band(row.index)
        if row.index < scene.rows.start:
            row.release()
            return None
        top, left = window.row - scene.plan.rows.extent(row.index)[0], -scene.plan.cols.origin
        valid = row.valid[top : top + window.height, left : left + window.width].copy()
        row.release()
        arrived = None
        if planes.is_cuda:
            host = torch.empty(planes.shape, dtype=planes.dtype, pin_memory=True)
            host.copy_(planes, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(torch.cuda.current_stream(planes.device))  # by default that of the first GPU
        else:
            host = planes.cpu()
        return _Fetching(scene, Band(window, host.numpy()), valid, arrived)

    def _fetched(self, item: _Fetching) -> Result:
        if item.arrived is not None:
            with self.tally.clock.time(COMPUTE):
                item.arrived.synchronize()
        if not item.valid.all():
            item.band.planes[:, ~item.valid] = INVALID
        self.tally.finished += item.valid.size
        return Result(item.scene, item.band)


def _form(tile: _Tile) -> tuple[object, ...]:
    assert tile.columns is not None
    values = tile.row.values
    return values.dtype, values.shape[1], tile.columns.stop - tile.columns.start
