"""From many scenes to files: opens scenes as their turn comes, hands out what is missing, takes what is done."""

import hashlib
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from visionapps import __version__
from visionapps.errors import ConfigError, DataError, OutputError
from visionapps.inference.bundle import MODEL, WEIGHTS
from visionapps.inference.dispatch import Workers
from visionapps.inference.drawing import Drawing, Drawn, Job
from visionapps.inference.engine import Engine, Scene
from visionapps.inference.finish import Finish, finished
from visionapps.inference.geotiff import MapOptions
from visionapps.inference.inputs import Input
from visionapps.inference.products import Band
from visionapps.inference.rasters import members
from visionapps.inference.shards import split
from visionapps.inference.sources import Source
from visionapps.inference.survey import Failure, Sheet
from visionapps.inference.threads import Clock, WriteBehind
from visionapps.inference.vectors import VectorOptions
from visionapps.inference.work import Computing, Part, Reading
from visionapps.structures import LabelSpace

WRITE, WAIT_WRITE = "writing", "waiting for the disk"  # stages of the clock
_BEHIND = 2  # bands that wait for the writer


@dataclass(frozen=True)
class Order:
    """How maps are drawn.

    Attributes:
        reading: how images are opened.
        computing: how the network is set up.
        labels: what the maps' values mean.
        options: how pictures are written.
        vectors: how polygons are drawn.
        arithmetic: device and precision in words; a map is drawn with one of them, also if its run is interrupted.
        finish: changes labels by rules, here and not in workers; None: they are as the scores say.
    """

    reading: Reading
    computing: Computing
    labels: LabelSpace
    options: MapOptions = field(default_factory=MapOptions)
    vectors: VectorOptions = field(default_factory=VectorOptions)
    arithmetic: str = ""
    finish: Finish | None = None


@dataclass
class _Open:
    """A scene in the making."""

    sheet: Sheet
    source: Source
    drawing: Drawing
    kept: list[Band] = field(default_factory=list)  # where they are needed together, until all are there
    given_up: threading.Event = field(default_factory=threading.Event)  # no more of it is to be read


class Desk:
    """Opens scenes as their turn comes, and takes their bands in any order; a context manager.

    ``parts`` may run in another thread than ``take``, which may run in another one than the rest.

    Attributes:
        drawn: finished scenes.
        failures: scenes that cannot be drawn, for a reason of their own.
    """

    def __init__(self, order: Order, *, on_found: Callable[[int], object] | None = None) -> None:
        """
        Args:
            order: how.
            on_found: told how many tiles of a scene an earlier run has done.
        """
        self._order = order
        self._on_found = on_found
        self._model = fingerprint(order.computing.bundles)
        self._open: dict[int, _Open] = {}
        self._given_up: list[Source] = []  # closed at the end: the reader may still be in them
        self.drawn: list[tuple[Job, Drawn]] = []
        self.failures: list[Failure] = []

    def scenes(self, sheets: Iterable[Sheet]) -> Generator[Scene, None, None]:
        """What is missing of the scenes, open for the engine of this process."""
        for opened in self._opened(sheets):
            sheet = opened.sheet
            source = self._order.reading.shown(opened.source)
            for rows in _missing(opened):
                yield Scene(source, sheet.plan, rows, sheet.key, opened.given_up)

    def parts(self, sheets: Iterable[Sheet]) -> Generator[Part, None, None]:
        """What is missing of the scenes, as plain data for workers."""
        for opened in self._opened(sheets):
            sheet = opened.sheet
            for rows in _missing(opened):
                yield Part(sheet.job.image.name, sheet.key, sheet.plan, rows)

    def take(self, item: tuple[int, Band | DataError]) -> None:
        """Take a finished band of the scene with this key, or the end of it.

        Raises:
            OutputError: the disk refuses it.
        """
        key, outcome = item
        opened = self._open.get(key)
        if opened is None:  # it has failed before, and other parts of it are on their way
            return
        try:
            if isinstance(outcome, DataError):
                raise outcome
            self._add(opened, outcome)
            if not opened.drawing.missing:
                self._finish(opened)
        except DataError as error:  # this image's own fault; a full disk stops everything
            self._give_up(opened, error)

    def settle(self) -> None:
        """After the last band: finish the scenes of which nothing was missing."""
        for opened in list(self._open.values()):
            assert not opened.drawing.missing, f"{opened.sheet.job.image.name} is not complete"
            try:
                self._finish(opened)
            except DataError as error:
                self._give_up(opened, error)

    def __enter__(self) -> "Desk":
        return self

    def __exit__(self, *error: object) -> None:
        for opened in list(self._open.values()):
            self._close(opened)
        for source in self._given_up:
            source.close()

    def _opened(self, sheets: Iterable[Sheet]) -> Iterator[_Open]:
        order = self._order
        for sheet in sheets:
            try:
                source = order.reading.open(sheet.job.image.name)
            except DataError as error:
                self.failures.append(Failure(sheet.job, error))
                continue
            try:
                if order.finish is not None:
                    order.finish.require_room(source.name, (sheet.plan.rows.length, sheet.plan.cols.length))
            except DataError as error:
                self.failures.append(Failure(sheet.job, error))
                source.close()
                continue
            try:
                drawing = Drawing(
                    sheet.job,
                    source,
                    labels=order.labels,
                    spec=order.reading.spec,
                    products=order.finish.drawn if order.finish else order.computing.products,
                    identity=self._identity(sheet),
                    options=order.options,
                    vectors=order.vectors,
                )
            except OutputError as error:  # a journal of other settings, or another run: the other scenes can be drawn
                self.failures.append(Failure(sheet.job, error))
                source.close()
                continue
            opened = _Open(sheet, source, drawing)
            self._open[sheet.key] = opened
            if self._on_found:
                done = len(sheet.plan.rows.starts) - sum(len(rows) for rows in _missing(opened))
                self._on_found(done * len(sheet.plan.cols.starts))
            yield opened

    def _add(self, opened: _Open, band: Band) -> None:
        finish = self._order.finish
        if not self._together(opened.sheet):
            opened.drawing.add(finish(band) if finish else band)
            return
        opened.kept.append(band)
        if sum(b.window.height for b in opened.kept) == opened.sheet.plan.rows.length:
            bands = sorted(opened.kept, key=lambda b: b.window.row)
            opened.drawing.add(finished(bands, opened.sheet.shape, finish))

    def _together(self, sheet: Sheet) -> bool:
        """Whether all bands of a scene are needed before any of it can be drawn."""
        return sheet.resized or (self._order.finish is not None and self._order.finish.whole)

    def _finish(self, opened: _Open) -> None:
        self.drawn.append((opened.sheet.job, opened.drawing.finish()))
        self._close(opened)

    def _give_up(self, opened: _Open, error: DataError) -> None:
        opened.given_up.set()
        self.failures.append(Failure(opened.sheet.job, error))
        opened.drawing.abandon()
        self._given_up.append(opened.source)
        del self._open[opened.sheet.key]

    def _close(self, opened: _Open) -> None:
        opened.drawing.abandon()  # nothing is left to abandon where it is finished
        opened.source.close()
        del self._open[opened.sheet.key]

    def _identity(self, sheet: Sheet) -> dict[str, Any] | None:
        """Everything that decides the pixels of a scene; None for scenes of one row of tiles."""
        if self._together(sheet) or len(sheet.plan.rows.starts) == 1:
            return None
        order = self._order
        computing = order.computing
        rules = {} if order.finish is None else {"rules": dict(order.finish.identity())}
        return rules | {
            "visionapps": __version__,
            "image": _image_identity(sheet.job.image),
            "model": self._model,
            "reading": {k: v for k, v in asdict(order.reading).items() if k != "area"},
            "area": None if order.reading.area is None else file_hash(order.reading.area),
            "plan": asdict(sheet.plan),
            "weights": computing.weights,
            "views": asdict(computing.views),
            "products": computing.products.extras,
            "arithmetic": order.arithmetic,
        }


def plan_jobs(
    inputs: Sequence[Input],
    folder: Path,
    *,
    masks: bool = True,
    overlays: bool = False,
    scores: bool = False,
    vectors: str | None = None,
) -> list[Job]:
    """Which image becomes which files.

    Args:
        inputs: see list_inputs.
        folder: where the maps go: NAME.tif or NAME.png, NAME_overlay.tif or NAME_overlay.jpg, ...
        masks: draw index masks.
        overlays: draw overlays.
        scores: draw the products beside labels, NAME_scores.tif.
        vectors: suffix of the polygons' files, ".gpkg" for instance; None: no polygons.

    Raises:
        ConfigError: two inputs would be drawn to one file, or an input would be overwritten.
    """
    jobs = []
    for image in inputs:
        stem = folder / image.stem
        mask, overlay = (".tif", ".tif") if image.raster else (".png", ".jpg")
        jobs.append(
            Job(
                image,
                mask=stem.with_name(f"{image.stem}{mask}") if masks else None,
                overlay=stem.with_name(f"{image.stem}_overlay{overlay}") if overlays else None,
                scores=stem.with_name(f"{image.stem}_scores.tif") if scores else None,
                vectors=stem.with_name(f"{image.stem}{vectors}") if vectors else None,
            )
        )
    originals = {image.path.resolve() for image in inputs if image.path}
    takers: dict[Path, str] = {}
    for job in jobs:
        for output in job.outputs:
            if output.resolve() in originals:
                raise ConfigError(f"{output}: is an input itself and would be overwritten; choose another --out")
            if output in takers:
                both = f"{takers[output]} and {job.image.name}"
                raise ConfigError(f"{output}: both {both} would be drawn to it; predict them separately")
            takers[output] = job.image.name
    return jobs


def draw(desk: Desk, engine: Engine, sheets: Iterable[Sheet]) -> None:
    """Draw scenes with the engine of this process; the desk keeps what came of each.

    Raises:
        VisionAppsError: anything that is not the fault of one scene.
    """
    results = engine.run(desk.scenes(sheets))
    try:
        _take_all(desk, ((result.scene.key, result.outcome) for result in results), engine.tally.clock)
    finally:
        results.close()


def draw_elsewhere(
    desk: Desk, workers: Workers, sheets: Sequence[Sheet], *, on_tiles: Callable[[int], object] | None = None
) -> Clock:
    """Draw scenes with workers that have been started; the files are those of one process, byte for byte.

    Args:
        desk: keeps what comes of each scene.
        workers: see LocalWorkers and RayWorkers.
        sheets: what is to be drawn.
        on_tiles: told how many tiles more are done.

    Returns:
        What writing took here.
    """

    def items() -> Iterator[tuple[int, Band | DataError]]:
        for answer in workers.run(split(desk.parts(sheets), workers.count)):
            if on_tiles:
                on_tiles(len(answer.part.plan.cols.starts))
            yield answer.part.key, answer.outcome

    clock = Clock()
    _take_all(desk, items(), clock)
    return clock


def fingerprint(bundles: Sequence[Path]) -> str:
    """A number that tells models apart: SHA-256 of all files that decide what a bundle computes."""
    files = (folder / name for folder in bundles for name in (MODEL, WEIGHTS))
    return hashlib.sha256("".join(map(file_hash, files)).encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _take_all(desk: Desk, items: Iterable[tuple[int, Band | DataError]], clock: Clock) -> None:
    with WriteBehind(desk.take, depth=_BEHIND, clock=clock, stage=WRITE, wait=WAIT_WRITE) as writer:
        for item in items:
            writer.put(item)
    desk.settle()


def _missing(opened: _Open) -> list[range]:
    """The tile rows whose bands are still to be drawn."""
    plan = opened.sheet.plan
    if opened.sheet.resized:
        return [range(len(plan.rows.starts))]
    found = []
    for begin, end in opened.drawing.missing:
        rows = [i for i in range(len(plan.rows.starts)) if begin < plan.band(i).row_end and plan.band(i).row < end]
        found.append(range(rows[0], rows[-1] + 1))
    return found


def _image_identity(image: Input) -> Mapping[str, Any]:
    if image.path is None:
        return {"name": image.name}
    files = [image.path]
    if image.path.suffix.lower() == ".vrt":  # pixels lie in the files that it names
        files = members(image.path)
    stats = [file.stat() for file in files]
    return {
        "name": str(image.path.resolve()),
        "bytes": sum(stat.st_size for stat in stats),
        "modified": max(stat.st_mtime_ns for stat in stats),
    }
