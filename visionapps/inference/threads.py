"""Work that goes on beside the network: reading ahead and writing behind, with bounded queues and no lost errors."""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Clock:
    """Seconds that each stage of a pipeline spent; a stage belongs to one thread at a time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add the duration of the with block to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - began)

    def add(self, stage: str, seconds: float) -> None:
        """Add to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


class _Channel(Generic[T]):
    """A bounded queue of one producer and one consumer, each of which learns when the other has ended."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = False  # by the producer: no more items come
        self._left = False  # by the consumer: no more items are wanted

    def put(self, item: T) -> bool:
        """Wait for room and append; False when the consumer has left."""
        with self._changed:
            self._changed.wait_for(lambda: self._left or len(self._items) < self._depth)
            if self._left:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def get(self) -> T | None:
        """Wait for an item; None when the producer has ended and all items are taken."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended)
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def leave(self) -> None:
        with self._changed:
            self._left = True
            self._items.clear()
            self._changed.notify_all()


def read_ahead(
    items: Generator[T, None, None], *, depth: int, clock: Clock, stage: str, wait: str
) -> Generator[T, None, None]:
    """Run a generator in a thread of its own, at most ``depth`` items ahead of the consumer.

    Closing this generator, or an error in its consumer, stops the thread and closes ``items``.

    Args:
        items: never yields None.
        depth: items that may wait, >= 1.
        clock: gets what the thread worked, and what the consumer waited for it.
        stage: name of the work.
        wait: name of the waiting.

    Raises:
        Exception: whatever ``items`` raised, after the items before it.
    """
    channel: _Channel[T] = _Channel(depth)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            while True:
                with clock.time(stage):
                    item = next(items, None)
                if item is None or not channel.put(item):
                    break
        except BaseException as error:  # handed over to the consumer, which raises it
            failed.append(error)
        finally:
            items.close()
            channel.end()

    thread = threading.Thread(target=work, name=f"visionapps {stage}", daemon=True)
    thread.start()
    try:
        while True:
            with clock.time(wait):
                item = channel.get()
            if item is None:
                break
            yield item
        if failed:
            raise failed[0]
    finally:
        channel.leave()
        _join(thread)


class WriteBehind(Generic[T]):
    """Hands items to a function in a thread of its own, in order; leave the with block to wait for the last.

    An error of the function is raised by the next ``put`` or at the end of the with block; items after it are dropped.
    """

    def __init__(self, write: Callable[[T], None], *, depth: int, clock: Clock, stage: str, wait: str) -> None:
        self._write, self._clock, self._stage, self._wait = write, clock, stage, wait
        self._channel: _Channel[T] = _Channel(depth)
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._work, name=f"visionapps {stage}", daemon=True)

    def put(self, item: T) -> None:
        """Queue an item; waits while the queue is full."""
        with self._clock.time(self._wait):
            taken = self._channel.put(item)
        if not taken:
            raise self._failed[0]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            self._channel.leave()  # what waits is not written: the run is over
        self._channel.end()
        with self._clock.time(self._wait):
            try:
                self._thread.join()
            except BaseException:  # Ctrl-C: what waits is not written, but what is being written must end first
                self._channel.leave()
                _join(self._thread)
                raise
        if error is None and self._failed:
            raise self._failed[0]

    def _work(self) -> None:
        try:
            while (item := self._channel.get()) is not None:
                with self._clock.time(self._stage):
                    self._write(item)
        except BaseException as error:  # handed over to the producer, which raises it
            self._failed.append(error)
            self._channel.leave()


def _join(thread: threading.Thread) -> None:
    """Wait for a thread that will end, even where Ctrl-C comes meanwhile: what it uses is closed next."""
    try:
        thread.join()
    except BaseException:
        thread.join()
        raise
