"""Reading ahead and writing behind: order, bounds, errors from either side, and threads that end."""

import threading
from collections.abc import Generator

import pytest

from visionapps.inference.threads import Clock, WriteBehind, read_ahead


def ahead(items, depth=2, clock=None):
    return read_ahead(items, depth=depth, clock=clock or Clock(), stage="read", wait="wait")


def behind(write, depth=2, clock=None):
    return WriteBehind(write, depth=depth, clock=clock or Clock(), stage="write", wait="wait")


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def test_items_come_in_order_and_the_times_of_both_sides_are_counted():
    clock = Clock()
    assert list(ahead((i for i in range(1, 50)), clock=clock)) == list(range(1, 50))
    assert set(clock.seconds) == {"read", "wait"}


def test_the_reader_is_never_more_than_its_depth_ahead():
    made, taken, most = [], [], []

    def items() -> Generator[int, None, None]:
        for i in range(1, 30):
            made.append(i)
            most.append(len(made) - len(taken))
            yield i

    for item in ahead(items(), depth=3):
        taken.append(item)
    # Three wait, one is in the reader's hand, one in ours (taken, not yet counted).
    assert max(most) <= 5


def test_an_error_of_the_reader_comes_after_the_items_before_it():
    def items() -> Generator[int, None, None]:
        yield 1
        yield 2
        raise KeyError("broken")

    got = []
    with pytest.raises(KeyError, match="broken"):
        got.extend(ahead(items()))
    assert got == [1, 2]


def test_a_consumer_that_stops_early_stops_the_reader_and_closes_its_generator():
    closed = threading.Event()

    def items() -> Generator[int, None, None]:
        try:
            i = 1
            while True:
                yield i
                i += 1
        finally:
            closed.set()

    reader = ahead(items())
    assert next(reader) == 1
    reader.close()
    assert closed.is_set()


def test_everything_put_is_written_in_order_before_the_block_ends():
    written = []
    clock = Clock()
    with behind(written.append, clock=clock) as writer:
        for i in range(100):
            writer.put(i)
    assert written == list(range(100))
    assert set(clock.seconds) == {"write", "wait"}


def test_an_error_of_the_writer_is_raised_by_a_later_put_and_never_waits_for_ever():
    def write(item):
        raise OSError(f"no room for {item}")

    def put_many():
        with behind(write, depth=1) as writer:
            for i in range(1000):
                writer.put(i)

    with pytest.raises(OSError, match="no room for 0"):
        put_many()


def test_an_error_on_the_last_item_is_raised_at_the_end():
    def write(item):
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"), behind(write) as writer:
        writer.put(0)


def test_an_error_of_the_producer_drops_what_waits_and_is_the_one_that_is_raised():
    gate = threading.Event()
    written = []

    def write(item):
        gate.wait(10)
        written.append(item)

    def put_and_fail():
        with behind(write, depth=5) as writer:
            for i in range(3):
                writer.put(i)
            gate.set()
            raise KeyError

    with pytest.raises(KeyError):
        put_and_fail()
    assert written in ([], [0], [0, 1], [0, 1, 2])
