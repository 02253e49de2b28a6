"""What drawing will take, before it begins: every scene opened, its tiles counted, memory and time estimated."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from visionapps.data.images import image_size
from visionapps.errors import DataError, VisionAppsError
from visionapps.inference.aoi import OutsideError
from visionapps.inference.drawing import Job
from visionapps.inference.network import Network, neutral_values
from visionapps.inference.plan import Memory, Plan, memory
from visionapps.inference.products import Products
from visionapps.inference.tiling import Tiling, tiles_per_call
from visionapps.inference.work import Reading


@dataclass(frozen=True)
class Sheet:
    """A scene that can be drawn.

    Attributes:
        key: its place among the jobs.
        job: image and files.
        shape: (H, W) of the map.
        plan: how the network sees it; of another size than the map where a photo is resized.
    """

    key: int
    job: Job
    shape: tuple[int, int]
    plan: Plan

    @property
    def resized(self) -> bool:
        """Whether the network sees the photo at another size."""
        return (self.plan.rows.length, self.plan.cols.length) != self.shape


class Failure(NamedTuple):
    """A scene that cannot be drawn, and why."""

    job: Job
    error: VisionAppsError


@dataclass(frozen=True)
class Estimate:
    """What is known before anything is drawn."""

    pixels: int  # of all maps
    computed: int  # that the network will see if all of them have data
    tiles: int
    seconds: float | None  # of the network; None: not measured
    memory: Memory  # of the scene that takes the most

    @property
    def repeated(self) -> float:
        """Pixels computed per pixel drawn."""
        return self.computed / max(1, self.pixels)


class Surveyor:
    """Plans scenes for one network."""

    def __init__(self, reading: Reading, network: Network, tiling: Tiling, *, products: Products) -> None:
        self._reading, self._network, self._tiling, self._products = reading, network, tiling, products

    def survey(
        self, jobs: Sequence[Job], *, each: Callable[[Iterable[Job]], Iterable[Job]] = iter
    ) -> tuple[list[Sheet], list[Failure], list[Job]]:
        """Open every scene once and plan it.

        Args:
            jobs: what is to be drawn.
            each: goes through the jobs; shows a progress bar, for instance.

        Returns:
            Scenes that can be drawn, those that cannot, and those outside of the area of interest.
        """
        sheets, failures, outside = [], [], []
        for key, job in enumerate(each(jobs)):
            try:
                shape, seen, dtype = self._size(job)
                plan = self._tiling.plan(seen, self._network, dtype=dtype, products=self._products)
                sheets.append(Sheet(key, job, shape, plan))
            except OutsideError:
                outside.append(job)
            except DataError as error:
                failures.append(Failure(job, error))
        return sheets, failures, outside

    def estimate(self, sheets: Sequence[Sheet], *, timed: bool = False) -> Estimate:
        """Sum up.

        Args:
            sheets: at least one.
            timed: run the network on a tile of the largest plan to tell the time. Takes as long as two tiles.
        """
        computed = [sheet.plan.rows.computed * sheet.plan.cols.computed for sheet in sheets]
        footprint = self._tiling.footprint(self._network, products=self._products)
        most = max((memory(sheet.plan, footprint) for sheet in sheets), key=lambda m: m.total)
        seconds = None
        if timed:
            largest = max(sheets, key=lambda sheet: sheet.plan.tiles).plan
            seconds = sum(computed) * self._seconds_per_pixel(largest)
        return Estimate(
            pixels=sum(sheet.shape[0] * sheet.shape[1] for sheet in sheets),
            computed=sum(computed),
            tiles=sum(sheet.plan.tiles for sheet in sheets),
            seconds=seconds,
            memory=most,
        )

    def _size(self, job: Job) -> tuple[tuple[int, int], tuple[int, int], np.dtype[Any] | None]:
        """(H, W) of the map, (H, W) that the network sees, and the type of the pixels."""
        if not job.image.raster and job.image.path is not None and job.image.path.is_file():
            shape = image_size(job.image.path)  # its header says so: a photo is decoded whole otherwise
            return shape, self._reading.resize or shape, None
        source = self._reading.open(job.image.name)
        try:
            return source.shape, self._reading.shown(source).shape, source.dtype
        finally:
            source.close()

    def _seconds_per_pixel(self, plan: Plan) -> float:
        height, width = (min(axis.tile, axis.padded - axis.origin) for axis in (plan.rows, plan.cols))
        spec, batch = self._network.spec, self._tiling.batch or tiles_per_call(self._network, height * width)
        tiles = np.broadcast_to(
            neutral_values(spec, np.dtype(np.uint8))[None, :, None, None], (batch, len(spec.bands), height, width)
        )
        self._network(
            np.ascontiguousarray(tiles)
        ).sum().item()  # the first call prepares things; sum() waits for the device
        began = time.perf_counter()
        self._network(np.ascontiguousarray(tiles)).sum().item()
        return (time.perf_counter() - began) / (batch * height * width)
