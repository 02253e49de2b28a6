"""Draws images with any quality of a package, and times it."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from visionapps.competition.budget import Load, Quality
from visionapps.competition.finishing import Finishing
from visionapps.competition.pack import Package
from visionapps.inference.bundle import Bundle
from visionapps.inference.draw import Desk, Order, draw, plan_jobs
from visionapps.inference.engine import COMPUTE
from visionapps.inference.geotiff import MapOptions
from visionapps.inference.inputs import Input
from visionapps.inference.products import Products
from visionapps.inference.survey import Failure, Sheet, Surveyor
from visionapps.inference.tiling import Tiling
from visionapps.inference.work import Computing, Reading


class Taken(NamedTuple):
    """What drawing took."""

    seconds: float
    network: float  # of these


class Painter:
    """Applies the members of a package, as many of them as are wanted, to images.

    Attributes:
        bundles: of the members that are loaded.
        reading: how images are opened.
        failures: images that could not be drawn since ``begin``.
    """

    def __init__(self, package: Package, device: str = "auto") -> None:
        """
        Args:
            package: what to draw with; all its members are loaded.
            device: see choose_device.

        Raises:
            WeightsError: a bundle is damaged.
            ConfigError: the device is not there.
        """
        self.device = device
        self._package = package
        self.bundles: dict[int, Bundle] = dict(enumerate(package.spec.computing().load()))
        first = self.bundles[0]
        self.reading = Reading(first.spec, gsd=first.gsd, resize=first.resize)
        self._stack = ExitStack()

    def begin(self, quality: Quality, folder: Path) -> None:
        """Draw with this quality, to masks in this folder, from now on; members beyond it are let go.

        Args:
            quality: of members that are loaded.
            folder: masks that lie there are replaced.
        """
        self.end()
        spec = self._package.spec
        rules = self._package.postprocess
        finish = None if rules is None else Finishing(rules, self._package.labels)
        computing = Computing(
            bundles=tuple(spec.bundles[member] for member in quality.members),
            weights=tuple(spec.weights[member] for member in quality.members),
            views=quality.views,
            tiling=Tiling(spec.tile),
            products=finish.computed if finish else Products(),
            device=self.device,
        )
        self._engine = computing.engine([self.bundles[member] for member in quality.members])
        self._surveyor = Surveyor(self.reading, self._engine.network, computing.tiling, products=computing.products)
        order = Order(
            self.reading,
            computing,
            self._package.labels,
            MapOptions(overwrite=True),
            arithmetic=self._engine.arithmetic,
            finish=finish,
        )
        self._folder = folder
        self._desk = self._stack.enter_context(Desk(order))

    @property
    def arithmetic(self) -> str:
        """Device and precision in words."""
        return self._engine.arithmetic

    @property
    def failures(self) -> list[Failure]:
        """Images that could not be drawn since ``begin``."""
        return self._desk.failures

    def survey(self, images: Sequence[Input]) -> tuple[list[Sheet], list[Failure]]:
        """Plans of images, and those that cannot be opened."""
        sheets, failures, _ = self._surveyor.survey(plan_jobs(images, self._folder))
        return sheets, failures

    def paint(self, sheets: Sequence[Sheet]) -> Taken:
        """Draw images; those that cannot be are among ``failures`` then.

        Raises:
            OutputError: the disk refuses a mask.
        """
        clock = self._engine.tally.clock
        before, began = clock.seconds.get(COMPUTE, 0.0), time.perf_counter()
        draw(self._desk, self._engine, sheets)
        return Taken(time.perf_counter() - began, clock.seconds.get(COMPUTE, 0.0) - before)

    def keep(self, quality: Quality) -> None:
        """Let go of all members that a quality does not need."""
        self.bundles = {member: bundle for member, bundle in self.bundles.items() if member in quality.members}

    def end(self) -> None:
        """Close what is open."""
        self._stack.close()


def load_of(sheet: Sheet) -> Load:
    """What an image asks for."""
    return Load(sheet.shape[0] * sheet.shape[1], sheet.plan.rows.computed * sheet.plan.cols.computed)
