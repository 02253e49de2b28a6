"""Hands tasks to workers that may die at any moment, and gives back every band exactly once."""

import itertools
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from visionapps.errors import ConfigError, DataError
from visionapps.inference.engine import Tally
from visionapps.inference.products import Band
from visionapps.inference.serving import Failure, Message, Ready, Ticket, total
from visionapps.inference.work import Answer, Part, Task

DEATHS = 3  # of workers without one new band, after which a part is given up
_IN_HAND = 2  # tasks per worker: while it draws one, it reads the next
log = logging.getLogger(__name__)


class WorkerDied(Exception):  # noqa: N818 - a signal between modules; no user sees it
    """A worker is gone; the text says how."""


class Worker(Protocol):
    """A process somewhere that runs ``serve``."""

    name: str

    def hand(self, tickets: Sequence[Ticket]) -> None:
        """Give it a task. Whether it still lives is for ``take`` to find out."""

    def take(self) -> Ready | Message | Failure:
        """The next thing it says. Raises WorkerDied when nothing more can come."""

    def end(self) -> None:
        """Stop it at once."""


@dataclass(eq=False)
class _Share:
    """A part that is being drawn."""

    part: Part  # as it was asked for
    rows: range  # that are still missing
    deaths: int = 0  # of workers that had nothing else, since its last band
    alone: bool = False  # nothing beside it, so that one knows who is to blame

    @property
    def rest(self) -> Part:
        return self.part._replace(rows=self.rows)


@dataclass(eq=False)
class _Seat:
    """A place for a worker, and what is in its hands."""

    worker: Worker
    ready: bool = False
    tasks: list[dict[int, _Share]] = field(default_factory=list)  # unfinished shares by ticket number
    tally: Tally = field(default_factory=Tally)

    def take_back(self) -> list[_Share]:
        """Everything unfinished."""
        shares = [share for task in self.tasks for share in task.values()]
        self.tasks = []
        return shares


class Workers(ABC):
    """Several workers as one; a context manager. Subclasses say where they live."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ConfigError(f"workers {count}: at least 1 is needed")
        self._count = count
        self._seats: list[_Seat] = []
        self._numbers = itertools.count()
        self._retired: list[Tally] = []
        self._suspects: deque[_Share] = deque()
        self._said: set[str] = set()
        self._failed_starts = 0

    @property
    def count(self) -> int:
        """How many work at the same time."""
        return self._count

    @property
    def names(self) -> tuple[str, ...]:
        """Of the workers there are now; their process ids are in them once they are ready."""
        return tuple(seat.worker.name for seat in self._seats)

    @property
    def tally(self) -> Tally:
        """What all of them have done so far, as far as they have told; seconds of a stage are summed over them."""
        return total([*self._retired, *(seat.tally for seat in self._seats)])

    @abstractmethod
    def _hire(self, number: int) -> Worker:
        """Start a worker that says Ready when it can draw."""

    @abstractmethod
    def _wait(self, workers: Sequence[Worker]) -> Sequence[Worker]:
        """Wait until some of them have something to take, their death included."""

    def __enter__(self) -> Self:
        self._fill()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        while self._seats:
            self._retire(self._seats[-1])

    def run(self, tasks: Iterable[Task]) -> Iterator[Answer]:
        """Draw tasks. Where a worker dies, another one goes on with what it had not given back yet.

        Args:
            tasks: one after the other is taken when a worker has room for it.

        Yields:
            Bands as they are finished: those of a part from top to bottom, parts in any order; after a DataError
            nothing more of that part. A part that three workers died on, with nothing else in hand and without one new
            band, ends with a DataError.

        Raises:
            VisionAppsError: what a worker met and is not the fault of one image.
            RuntimeError: any other failure of a worker, with its traceback.
        """
        fresh = deque(itertools.islice(coming := iter(tasks), 1))
        self._fill()
        try:
            while True:
                self._hand_out(fresh, coming)
                busy = [seat for seat in self._seats if seat.tasks]
                if not (fresh or self._suspects or busy):
                    return
                starting = [seat for seat in self._seats if not seat.ready]
                heard = self._wait([seat.worker for seat in busy + starting])
                for seat in [seat for seat in self._seats if seat.worker in heard]:
                    yield from self._take(seat)
        finally:
            self._suspects.clear()
            for seat in [seat for seat in self._seats if seat.tasks]:
                self._retire(seat)  # nobody waits for what it would still say

    def _fill(self) -> None:
        while len(self._seats) < self._count:
            self._seats.append(_Seat(self._hire(len(self._seats))))

    def _retire(self, seat: _Seat) -> None:
        self._seats.remove(seat)
        self._retired.append(seat.tally)
        seat.worker.end()

    def _hand_out(self, fresh: deque[Task], coming: Iterator[Task]) -> None:
        """Give every worker what it has room for; ``fresh`` holds the next task, if there is one."""
        for depth, seat in itertools.product(range(_IN_HAND), self._seats):
            if not seat.ready or len(seat.tasks) != depth:
                continue
            if self._suspects:  # not beside other work: whoever has some ends that first
                if depth == 0:
                    self._give(seat, [self._suspects.popleft()])
            elif fresh and not any(share.alone for task in seat.tasks for share in task.values()):
                self._give(seat, [_Share(part, part.rows) for part in fresh.popleft().parts if part.rows])
                fresh.extend(itertools.islice(coming, 1))

    def _give(self, seat: _Seat, shares: Sequence[_Share]) -> None:
        task = dict(zip(self._numbers, shares))  # noqa: B905 - the numbers never end
        if task:
            seat.tasks.append(task)
            seat.worker.hand([Ticket(number, share.rest) for number, share in task.items()])

    def _take(self, seat: _Seat) -> Iterator[Answer]:
        try:
            message = seat.worker.take()
        except WorkerDied as death:
            yield from self._replace(seat, death)
            return
        if isinstance(message, Ready):
            seat.ready, self._failed_starts = True, 0
        elif isinstance(message, Failure):
            if message.error is not None:
                raise message.error
            raise RuntimeError(f"{seat.worker.name} failed:\n{message.trace}")
        else:
            seat.tally = message.tally
            self._repeat(message)
            yield self._settle(seat, message)

    def _settle(self, seat: _Seat, message: Message) -> Answer:
        """Note what has arrived."""
        task = next(task for task in seat.tasks if message.number in task)
        share = task[message.number]
        if isinstance(message.outcome, Band):
            assert message.outcome.window == share.part.plan.band(share.rows[0]), "bands of a part come in order"
            share.rows, share.deaths = share.rows[1:], 0
        else:
            share.rows = share.rows[:0]
        if not share.rows:
            del task[message.number]
        if not task:
            seat.tasks.remove(task)
        return Answer(share.part, message.outcome)

    def _repeat(self, message: Message) -> None:
        """Log a worker's warnings here, each text once."""
        for note in message.notes:
            if note.text not in self._said:
                self._said.add(note.text)
                logging.getLogger(note.logger).log(note.level, "%s", note.text)

    def _replace(self, seat: _Seat, death: WorkerDied) -> Iterator[Answer]:
        """Hire another worker, and put what the dead one had aside, to be drawn by itself."""
        log.warning("%s died (%s); another one goes on with its work", seat.worker.name, death)
        lost, was_ready = seat.take_back(), seat.ready
        self._retire(seat)
        if not was_ready:
            self._failed_starts += 1
            if self._failed_starts >= DEATHS:
                raise ConfigError(
                    f"workers: {self._failed_starts} in a row died while they loaded the model ({death}); "
                    "use fewer workers if memory is short, and call this under if __name__ == '__main__' in a script"
                )
        given_up: list[_Share] = []
        for share in lost:
            share.deaths += len(lost) == 1  # of several, only one is to blame: alone, each shows whether it is
            share.alone = True
            (given_up if share.deaths >= DEATHS else self._suspects).append(share)
        self._fill()
        for share in given_up:
            yield Answer(share.part, _fatal(share, death))


def _fatal(share: _Share, death: WorkerDied) -> DataError:
    plan = share.part.plan
    top, end = plan.band(share.rows[0]).row, plan.band(share.rows[-1]).row_end
    return DataError(
        f"{share.part.image}: {share.deaths} workers in turn died on rows {top} to {end} ({death}); "
        "the file crashes its decoder, or memory is short: use fewer workers or a smaller --tile"
    )
