"""Workers: how work is cut, that bands come once whatever dies, and that processes give the bytes of one engine."""

import itertools
import logging
import multiprocessing
import os
import re
import select
import signal
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visionapps.errors import ConfigError, DataError, WeightsError
from visionapps.inference.bundle import Bundle
from visionapps.inference.dispatch import WorkerDied, Workers
from visionapps.inference.engine import Scene, Tally
from visionapps.inference.plan import plan
from visionapps.inference.products import Band, Products
from visionapps.inference.serving import Failure, Message, Note, Ready, serve, total
from visionapps.inference.shards import split
from visionapps.inference.tiling import Tiling
from visionapps.inference.work import Answer, Computing, Part, Reading, Task
from visionapps.inference.workers import LocalWorkers, local_devices
from visionapps.models import unet
from visionapps.structures import InputSpec, LabelSpace

TILE, OVERLAP = 32, 8


def whole(height, width, key=0, image="scene.tif"):
    layout = plan((height, width), tile=TILE, overlap=OVERLAP)
    return Part(image, key, layout, range(len(layout.rows.starts)))


def rows_of(tasks):
    return [(part.key, row) for task in tasks for part in task.parts for row in part.rows]


# How work is cut


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 400)), max_size=12), st.integers(1, 5))
def test_every_tile_row_is_in_one_task_and_in_order(shapes, workers):
    parts = [whole(h, w, key) for key, (h, w) in enumerate(shapes)]
    assert rows_of(split(parts, workers)) == [(part.key, row) for part in parts for row in part.rows]


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_a_large_scene_is_cut_into_pieces_of_eight_rows_and_more_that_shrink_towards_the_end(workers):
    sizes = [len(task.parts[0].rows) for task in split([whole(24_000, 3_000)], workers)]
    assert min(sizes[:-1]) == 8
    assert sizes[-1] >= 4
    assert sizes[:-2] == sorted(sizes[:-2], reverse=True)
    assert len(sizes) >= 4 * workers
    assert (len(sizes) - 1) / sum(sizes) < 0.09  # rows drawn twice


def test_a_scene_too_small_for_pieces_of_eight_rows_is_shared_evenly():
    assert [len(task.parts[0].rows) for task in split([whole(480, 900)], 2)] == [10, 10]
    assert [len(task.parts[0].rows) for task in split([whole(72, 900)], 2)] == [2, 1]


def test_small_scenes_are_gathered_and_many_are_not_cut():
    tasks = list(split((whole(90, 90, key) for key in range(1000)), 2))
    assert all(len(part.rows) == 4 for task in tasks for part in task.parts)
    assert {len(task.parts) for task in tasks[:100]} == {4}  # of 16 tiles each
    assert len(tasks[-1].parts) == 1


def test_scenes_are_taken_a_few_ahead_only():
    endless = (whole(90, 90, key) for key in itertools.count())
    tasks = split(endless, 2)
    next(tasks)
    assert next(endless).key <= 64


def test_no_worker_is_an_error():
    with pytest.raises(ConfigError, match="workers 0: at least 1 is needed"):
        next(split([whole(90, 90)], 0))


# Handing out, with workers that follow a script


def band_of(part, row):
    window = part.plan.band(row)
    return Band(window, np.full((1, window.height, window.width), (part.key * 16 + row) % 251, np.uint8))


class Scripted:
    """A worker that draws at once, and dies when ``dies`` says so of a part and row."""

    def __init__(self, crew):
        self.crew, self.name = crew, f"worker {next(crew.names_given)}"
        self.says = deque([crew.start()])
        self.in_hand = []  # tasks as they were handed

    def hand(self, tickets):
        self.in_hand.append([ticket.number for ticket in tickets])
        assert sum(map(bool, self.in_hand)) <= 2
        for number, part in tickets:
            for row in part.rows:
                death = self.crew.dies(part, row)
                self.says.append(WorkerDied("a script") if death else (number, part, row))

    def take(self):
        item = self.says.popleft()
        if isinstance(item, WorkerDied):
            raise item
        if isinstance(item, Ready | Failure):
            return item
        number, part, row = item
        if row == part.rows[-1]:
            next(task for task in self.in_hand if number in task).remove(number)
        return Message(number, band_of(part, row), Tally(tiles=1), (Note("visionapps.x", logging.WARNING, "slow"),))

    def end(self):
        self.says.clear()


class ScriptedWorkers(Workers):
    def __init__(self, count, *, dies=lambda part, row: False, start=lambda: Ready("here", 1)):
        super().__init__(count)
        self.dies, self.start, self.names_given = dies, start, itertools.count(1)

    def _hire(self, number):
        return Scripted(self)

    def _wait(self, workers):
        talking = [worker for worker in workers if worker.says]
        assert talking, "waiting for workers that have nothing to say would never end"
        return talking


def drawn(answers):
    """Rows of every part as they came, and what went wrong."""
    rows, errors = {}, {}
    for part, outcome in answers:
        if isinstance(outcome, DataError):
            errors[part.key] = str(outcome)
        else:
            row = next(i for i in range(len(part.plan.rows.starts)) if part.plan.band(i) == outcome.window)
            assert np.array_equal(outcome.planes, band_of(part, row).planes)
            rows.setdefault(part.key, []).append(row)
    return rows, errors


@settings(max_examples=80, deadline=None)
@given(st.data(), st.integers(1, 4), st.lists(st.integers(1, 700), min_size=1, max_size=8))
def test_every_band_comes_once_wherever_workers_die(data, count, heights):
    parts = [whole(height, 40, key) for key, height in enumerate(heights)]
    died = {}

    def dies(part, row):  # at most twice on the same row, so that the third worker gets through
        if died.get((part.key, row), 0) < 2 and data.draw(st.integers(0, 9)) == 0:
            died[part.key, row] = died.get((part.key, row), 0) + 1
            return True
        return False

    with ScriptedWorkers(count, dies=dies) as crew:
        answers = list(crew.run(split(parts, count)))
    rows, errors = drawn(answers)
    assert not errors
    assert {key: sorted(found) for key, found in rows.items()} == {p.key: list(p.rows) for p in parts}


def test_a_part_that_kills_three_workers_is_given_up_and_the_others_are_drawn(caplog):
    parts = [whole(400, 40, key, f"{key}.tif") for key in range(6)]
    with ScriptedWorkers(1, dies=lambda part, row: part.key == 3 and row == 5) as crew:
        rows, errors = drawn(crew.run(Task((part,)) for part in parts))
    every = list(parts[0].rows)
    assert rows == {key: every[:5] if key == 3 else every for key in range(6)}
    assert list(errors) == [3]
    # Rows 5 to 16 of 24 px steps.
    assert re.match(r"3\.tif: 3 workers in turn died on rows 120 to 400 \(a script\); .* fewer workers", errors[3])
    assert sum("another one goes on" in record.message for record in caplog.records) == 4  # once beside others


def test_workers_that_die_before_they_are_ready_end_the_run():
    with ScriptedWorkers(2, start=lambda: WorkerDied("exit code 1")) as crew, pytest.raises(ConfigError) as caught:
        list(crew.run([Task((whole(90, 90),))]))
    assert "3 in a row died while they loaded the model (exit code 1)" in str(caught.value)


def test_a_failure_of_a_worker_is_raised_whole():
    damaged, bug = Failure(WeightsError("b: damaged"), ""), Failure(None, "Traceback\nKeyError: 7")
    with ScriptedWorkers(1, start=lambda: damaged) as crew, pytest.raises(WeightsError, match=r"^b: damaged$"):
        list(crew.run([Task((whole(90, 90),))]))
    with (
        ScriptedWorkers(1, start=lambda: bug) as crew,
        pytest.raises(RuntimeError, match=r"worker 1 .*\n.*\nKeyError: 7"),
    ):
        list(crew.run([Task((whole(90, 90),))]))


def test_warnings_of_workers_are_said_once_and_their_tallies_added(caplog):
    with ScriptedWorkers(3) as crew:
        list(crew.run(split([whole(900, 40)], 3)))
        assert crew.tally.tiles >= 1
    assert [record.message for record in caplog.records] == ["slow"]
    sums = total([Tally(tiles=1, finished=5), Tally(tiles=2, skipped=1)])
    assert (sums.tiles, sums.skipped, sums.finished) == (3, 1, 5)


def test_tasks_are_taken_only_when_a_worker_has_room():
    taken = []
    tasks = (taken.append(key) or Task((whole(90, 40, key),)) for key in range(50))
    with ScriptedWorkers(2) as crew:
        answers = crew.run(tasks)
        next(answers)
        assert len(taken) <= 2 * 2 + 1
        answers.close()
        assert len(drawn(crew.run([Task((whole(90, 40, 99),))]))[0][99]) == 4  # a second run is not disturbed


# The same bytes, from real processes


@dataclass(frozen=True)
class Field:
    """A bundle, a raster, and the bands that an engine of this process draws."""

    computing: Computing
    reading: Reading
    part: Part
    bands: list


@pytest.fixture(scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_field(folder: Path) -> Field:
    torch.manual_seed(0)
    model = unet("test_efficientnet", 4, channels=(8, 8, 8, 8, 8))  # timm's own fake network, in every process
    Bundle(model, LabelSpace.named(["a", "b", "c", "d"]), TILE).save(folder / "bundle")
    image = np.random.default_rng(0).integers(0, 256, (3, 600, 150), dtype=np.uint8)
    image[:, 100:220, :60] = 0
    options = {"driver": "GTiff", "count": 3, "dtype": "uint8", "nodata": 0, "crs": "EPSG:32735"}
    place = rasterio.transform.from_origin(300000, 7000000, 1, 1)
    with rasterio.open(folder / "r.tif", "w", height=600, width=150, transform=place, **options) as data:
        data.write(image)
    computing = Computing(
        (folder / "bundle",),
        tiling=Tiling(tile=TILE, overlap=OVERLAP, batch=5),
        products=Products(("confidence", "probabilities")),
        device="cpu",
        threads=1,
    )
    reading = Reading(model.spec)
    part = whole(600, 150, 5, str(folder / "r.tif"))
    source = reading.open(part.image)
    bands = [result.outcome for result in computing.engine().run([Scene(source, part.plan, part.rows)])]
    source.close()
    return Field(computing, reading, part, bands)


@pytest.fixture(scope="module")
def made(tmp_path_factory, one_thread):
    return make_field(tmp_path_factory.mktemp("field"))


@pytest.fixture(scope="module")
def pair(made):
    with LocalWorkers(made.computing, made.reading, devices=("cpu", "cpu")) as workers:
        yield workers


def same(answers, bands):
    """Whether answers are just these bands, each once, byte for byte, in whatever order."""
    found = [outcome for _, outcome in answers]
    assert all(isinstance(outcome, Band) for outcome in found), [str(e) for e in found if isinstance(e, DataError)]
    found.sort(key=lambda band: band.window)
    return len(found) == len(bands) and all(
        a.window == b.window and np.array_equal(a.planes, b.planes) for a, b in zip(found, bands, strict=True)
    )


class ListInbox:
    """Tasks that are all there at once."""

    def __init__(self, tasks):
        self.tasks, numbers = deque(), itertools.count()
        for task in tasks:
            self.tasks.append([(next(numbers), part) for part in task.parts])

    def get(self, *, wait):
        return self.tasks.popleft() if self.tasks else None


def test_serving_gives_the_bands_of_the_engine_and_names_an_image_that_is_missing(made):
    missing = made.part._replace(image="/nowhere/x.tif", key=6)
    tasks = [*split([made.part], 2), Task((missing,))]
    ready, *messages = serve(made.computing, made.reading, ListInbox(tasks))
    assert ready.process == os.getpid()
    (error,) = [message.outcome for message in messages if isinstance(message.outcome, DataError)]
    assert str(error).startswith("/nowhere/x.tif: no such file")
    assert same([Answer(made.part, m.outcome) for m in messages if m.outcome is not error], made.bands)
    assert messages[-1].tally.finished == 600 * 150


def test_one_process_and_two_give_the_bands_of_the_engine(made, pair):
    assert same(pair.run(split([made.part], 2)), made.bands)
    with LocalWorkers(made.computing, made.reading, devices=("cpu",)) as single:
        assert same(single.run(split([made.part], 1)), made.bands)
    assert pair.tally.finished == 600 * 150


def kill_first(workers, answers):
    """The answers, a worker being killed after the first."""
    for number, answer in enumerate(answers):
        yield answer
        if number == 0:
            os.kill(process_ids(workers)[0], signal.SIGKILL)


def test_a_process_killed_in_the_middle_costs_no_band_and_doubles_none(made, pair, caplog):
    assert same(kill_first(pair, pair.run(split([made.part], 2))), made.bands)
    assert "killed by SIGKILL, as the system does when memory runs out" in caplog.text


@dataclass(frozen=True)
class Deadly(Reading):
    """Kills whoever opens an image of a certain name."""

    def open(self, image):
        if image.endswith("deadly.tif"):
            os.kill(os.getpid(), signal.SIGKILL)
        if image.endswith("odd.tif"):
            raise KeyError("an odd bug")
        if image.endswith("wrong.tif"):
            raise ConfigError("--bands: names 2 bands")
        return super().open(image)


def test_an_image_that_kills_processes_is_named_and_the_others_are_drawn(made):
    deadly = made.part._replace(image="deadly.tif", key=1)
    reading = Deadly(made.reading.spec)
    with LocalWorkers(made.computing, reading, devices=("cpu",)) as workers:
        answers = list(workers.run([Task((deadly, made.part))]))
    (error,) = [str(outcome) for part, outcome in answers if part.key == 1]
    assert error.startswith("deadly.tif: 3 workers in turn died on rows 0 to 600 (killed by SIGKILL")
    assert same([answer for answer in answers if answer.part.key != 1], made.bands)


@pytest.mark.parametrize(
    ("image", "kind", "text"),
    [
        ("odd.tif", RuntimeError, r"(?s)worker on cpu \(process \d+\) failed:\nTraceback.*KeyError: 'an odd bug'"),
        ("wrong.tif", ConfigError, "^--bands: names 2 bands$"),
    ],
)
def test_errors_cross_the_border_of_processes(made, image, kind, text):
    reading = Deadly(made.reading.spec)
    with LocalWorkers(made.computing, reading, devices=("cpu",)) as workers, pytest.raises(kind, match=text):
        list(workers.run([Task((made.part._replace(image=image),))]))


def process_ids(workers):
    return [int(re.search(r"process (\d+)", name)[1]) for name in workers.names]


def all_end(handles):
    """Whether all processes of these pidfds end in time."""
    left = set(handles)
    while left:
        ended, _, _ = select.select(left, [], [], 30)
        if not ended:
            return False
        left -= set(ended)
    for handle in handles:
        os.close(handle)
    return True


needs_pidfd = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for processes through pidfd")


@needs_pidfd
@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_all_processes(made):
    def interrupted():
        with LocalWorkers(made.computing, made.reading, devices=("cpu", "cpu")) as workers:
            for _ in workers.run(split(itertools.repeat(made.part), 2)):
                handles.extend(os.pidfd_open(pid) for pid in process_ids(workers) if len(handles) < 2)
                for pid in (*process_ids(workers), os.getpid()):  # Ctrl-C goes to all of a terminal
                    os.kill(pid, signal.SIGINT)

    handles: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(handles) == 2
    assert all_end(handles)


def drive(pipe, computing, reading, part):
    """A driver in a process of its own, to be killed."""
    torch.set_num_threads(1)
    with LocalWorkers(computing, reading, devices=("cpu",)) as workers:
        for _ in workers.run(split(itertools.repeat(part), 1)):
            pipe.send(process_ids(workers))


@needs_pidfd
@pytest.mark.slow
def test_no_process_is_left_when_the_driver_is_killed(made):
    context = multiprocessing.get_context("forkserver")
    pipe, theirs = context.Pipe()
    driver = context.Process(target=drive, args=(theirs, made.computing, made.reading, made.part))
    driver.start()
    theirs.close()
    handles = [os.pidfd_open(pid) for pid in pipe.recv()]
    driver.kill()
    driver.join()
    assert len(handles) == 1
    assert all_end(handles)


def test_devices_are_named_and_spread():
    assert local_devices(3, "cpu") == ("cpu", "cpu", "cpu")
    assert local_devices(None, "cuda:1") == ("cuda:1",)
    if not torch.cuda.is_available():
        assert local_devices(None) == ("cpu",)
    with pytest.raises(ConfigError, match="workers 0: at least 1"):
        local_devices(0)
    with pytest.raises(ConfigError, match="no device is named"):
        LocalWorkers(Computing(()), Reading(InputSpec()), devices=())
