"""What a worker does, wherever it runs: it builds its engine once and draws the parts that are handed to it."""

import logging
import os
import socket
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import NamedTuple, Protocol

from visionapps.errors import DataError, VisionAppsError
from visionapps.inference.engine import Engine, Scene, Tally
from visionapps.inference.products import Band
from visionapps.inference.sources import Source
from visionapps.inference.threads import Clock
from visionapps.inference.work import Computing, Part


class Ticket(NamedTuple):
    """A part on its way to a worker."""

    number: int  # of this part in these hands: what comes back bears it
    part: Part


class Note(NamedTuple):
    """A line of a worker's log."""

    logger: str
    level: int
    text: str


class Ready(NamedTuple):
    """A worker has built its engine."""

    host: str
    process: int


class Message(NamedTuple):
    """A finished band, or why an image cannot be read, with what the worker has done so far."""

    number: int
    outcome: Band | DataError
    tally: Tally
    notes: tuple[Note, ...]


class Failure(NamedTuple):
    """Why a worker cannot go on: not the fault of one image."""

    error: VisionAppsError | None  # None: a bug, or the machine's fault
    trace: str


class Inbox(Protocol):
    """Where tasks come from."""

    def get(self, *, wait: bool) -> Sequence[Ticket] | None:
        """The next task; None when no more come, or, without waiting, when none is there."""


class Opener(Protocol):
    """What is wanted of a Reading."""

    def open(self, image: str) -> Source:
        """The image as its owner sees it."""

    def shown(self, source: Source) -> Source:
        """The image as the network sees it."""


def serve(computing: Computing, reading: Opener, inbox: Inbox) -> Iterator[Ready | Message | Failure]:
    """Draw what the inbox holds until no more comes.

    Tasks that are already there run in one stream, so that reading goes on and batches fill across them; when none is
    there, what has been read is finished at once.

    Yields:
        Ready; then Messages, those of a part in order; last of all a Failure if something broke.
    """
    notes = _Notes()
    logger = logging.getLogger("visionapps")
    logger.addHandler(notes)
    try:
        engine = computing.engine()
        yield Ready(socket.gethostname(), os.getpid())
        while (first := inbox.get(wait=True)) is not None:
            yield from _draw(engine, _Opening(reading, inbox, first, notes), notes)
    except Exception as error:  # whatever it is, the driver has to know
        known = error if isinstance(error, VisionAppsError) else None
        yield Failure(known, traceback.format_exc())
    finally:
        logger.removeHandler(notes)


def _draw(engine: Engine, opening: "_Opening", notes: "_Notes") -> Iterator[Message]:
    def refusals() -> Iterator[Message]:
        while opening.refused:
            number, error = opening.refused.popleft()
            yield Message(number, error, snapshot(engine.tally), notes.drain())

    results = engine.run(opening.scenes())
    try:
        for scene, outcome in results:
            yield Message(scene.key, outcome, snapshot(engine.tally), notes.drain())
            yield from refusals()
        yield from refusals()
    finally:
        results.close()


class _Opening:
    """Opens the images of one stream of tasks, each while it is read."""

    def __init__(self, reading: Opener, inbox: Inbox, first: Sequence[Ticket], notes: "_Notes") -> None:
        self._reading, self._inbox, self._first, self._notes = reading, inbox, first, notes
        self.refused: deque[tuple[int, DataError]] = deque()

    def scenes(self) -> Iterator[Scene]:
        """Scenes whose keys are ticket numbers; run by the engine's reading thread."""
        task: Sequence[Ticket] | None = self._first
        while task is not None:
            for number, part in task:
                yield from self._scene(number, part)
            task = self._inbox.get(wait=False)

    def _scene(self, number: int, part: Part) -> Iterator[Scene]:
        try:
            with self._notes.muted():  # the driver opened this image to plan it, and has said what there is to say
                source = self._reading.open(part.image)
        except DataError as error:
            self.refused.append((number, error))
            return
        try:
            with self._notes.muted():
                shown = self._reading.shown(source)
            yield Scene(shown, part.plan, part.rows, number)
        except DataError as error:
            self.refused.append((number, error))
        finally:
            source.close()


class _Notes(logging.Handler):
    """Keeps what is logged until it travels to the driver."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: deque[Note] = deque(maxlen=100)
        self._silent: int | None = None  # a thread

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread != self._silent:
            self._lines.append(Note(record.name, record.levelno, record.getMessage()))

    def drain(self) -> tuple[Note, ...]:
        """The lines since the last call."""
        return tuple(self._lines.popleft() for _ in range(len(self._lines)))

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Drop what this thread logs in the with block."""
        self._silent = threading.get_ident()
        try:
            yield
        finally:
            self._silent = None


def snapshot(tally: Tally) -> Tally:
    """A copy that the engine no longer changes; its threads may be working."""
    clock = Clock()
    clock.seconds = dict(tally.clock.seconds)
    return replace(tally, clock=clock)


def total(tallies: Sequence[Tally]) -> Tally:
    """What several engines have done together; the seconds of a stage are summed over them."""
    result = Tally()
    for tally in tallies:
        for stage, seconds in tally.clock.seconds.items():
            result.clock.add(stage, seconds)
        for field in fields(Tally):
            if field.name != "clock":
                setattr(result, field.name, getattr(result, field.name) + getattr(tally, field.name))
    return result
