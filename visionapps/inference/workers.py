"""Workers as processes of this machine: one per GPU, or several on the processor."""

import os
import pickle
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from multiprocessing import get_all_start_methods, get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from visionapps.errors import ConfigError
from visionapps.inference.dispatch import Worker, WorkerDied, Workers
from visionapps.inference.serving import Failure, Inbox, Message, Ready, Ticket, serve
from visionapps.inference.work import Computing, Reading
from visionapps.runtime import keep_freed_memory


class LocalWorkers(Workers):
    """One process per device, each with an engine of its own; a context manager.

    A script of one's own that uses this must stand under ``if __name__ == "__main__"``: each process reads it.
    """

    def __init__(self, computing: Computing, reading: Reading, *, devices: Sequence[str]) -> None:
        """
        Args:
            computing: what each process builds its engine from; its device is replaced.
            reading: how images are opened.
            devices: one name per process: "cuda:0", "cuda:1", or "cpu" several times, which share the threads that
                torch has here.

        Raises:
            ConfigError: no device is named.
        """
        if not devices:
            raise ConfigError("workers: no device is named; give one per process, such as cuda:0,cuda:1 or cpu,cpu")
        super().__init__(len(devices))
        self._computing, self._reading, self._devices = computing, reading, tuple(devices)
        self._threads = max(1, torch.get_num_threads() // max(1, self._devices.count("cpu")))

    def _hire(self, number: int) -> Worker:
        computing = replace(self._computing, device=self._free_device())
        return _Process(computing, self._reading, threads=self._threads)

    def _free_device(self) -> str:
        free = list(self._devices)
        for seat in self._seats:
            assert isinstance(seat.worker, _Process)
            free.remove(seat.worker.device)
        return free[0]

    def _wait(self, workers: Sequence[Worker]) -> Sequence[Worker]:
        pipes = {worker.pipe: worker for worker in workers if isinstance(worker, _Process)}
        return [pipes[pipe] for pipe in wait(list(pipes)) if isinstance(pipe, Connection)]


def local_devices(count: int | None, device: str = "auto") -> tuple[str, ...]:
    """The devices of so many processes.

    Args:
        count: of processes; None: one per GPU, or one.
        device: "auto" spreads them over the GPUs if there are any; any other name is given to each.

    Raises:
        ConfigError: fewer than one process.
    """
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if device in ("auto", "cuda") else []
    places = gpus or ["cpu" if device == "auto" else device]
    wanted = len(places) if count is None else count
    if wanted < 1:
        raise ConfigError(f"workers {wanted}: at least 1 is needed")
    return tuple(places[i % len(places)] for i in range(wanted))


class _Process:
    """A process at the other end of a pipe. The pipe is short: who is not listened to waits."""

    def __init__(self, computing: Computing, reading: Reading, *, threads: int) -> None:
        self.device = computing.device
        context: Any = get_context(_start_method(self.device))
        if context.get_start_method() == "forkserver":
            context.set_forkserver_preload([__name__])
        self.pipe, theirs = context.Pipe()
        # A daemon: it ends with this process even where nobody leaves the with block.
        self._process = context.Process(target=_work, args=(theirs, computing, reading, threads), daemon=True)
        with _interrupts_held() if context.get_start_method() == "spawn" else nullcontext():
            self._process.start()
        theirs.close()  # so that its death is the end of the pipe
        self.name = f"worker on {self.device} (process {self._process.pid})"

    def hand(self, tickets: Sequence[Ticket]) -> None:
        try:
            self.pipe.send(list(tickets))
        except OSError:
            return  # take() will say so

    def take(self) -> Ready | Message | Failure:
        try:
            return _receive(self.pipe)
        except (EOFError, OSError) as error:
            self._process.join(5)
            raise WorkerDied(_manner(self._process.exitcode)) from error

    def end(self) -> None:
        self._process.kill()  # it keeps nothing that would have to be put in order
        self._process.join()
        self._process.close()
        self.pipe.close()


def _start_method(device: str) -> str:
    """How a process begins. What imports everything once and forks then starts in no time and shares the libraries'
    memory; but a GPU must not be looked at before a fork, which no library promises for its import."""
    return "forkserver" if device == "cpu" and "forkserver" in get_all_start_methods() else "spawn"


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes spawned here never see Ctrl-C, which goes to all of a terminal: the driver ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _manner(code: int | None) -> str:
    if code is None:
        return "it closed its pipe"
    if code >= 0:
        return f"exit code {code}"
    hint = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
    return f"killed by {signal.Signals(-code).name}{hint}"


def _work(pipe: Connection, computing: Computing, reading: Reading, threads: int) -> None:
    """The process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a fork has the mask of its server
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    keep_freed_memory()
    torch.set_num_threads(threads)
    if computing.device.startswith("cuda"):
        torch.cuda.set_device(computing.device)  # what says nothing of a device is meant for this one
    messages = serve(computing, reading, _PipeInbox(pipe))
    try:
        for message in messages:
            _send(pipe, message)
    except (BrokenPipeError, ConnectionResetError):
        os._exit(1)  # the driver is gone, and nobody is there to be told


def _leave_with_parent() -> None:
    """A busy process would notice only with its next band that its driver was killed."""
    driver = parent_process()
    assert driver is not None
    wait([driver.sentinel])
    os._exit(1)


class _PipeInbox(Inbox):
    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def get(self, *, wait: bool) -> Sequence[Ticket] | None:
        try:
            if not wait and not self._pipe.poll():
                return None
            tickets: Sequence[Ticket] = self._pipe.recv()
        except (EOFError, OSError):  # the driver has left
            return None
        return tickets


def _send(pipe: Connection, item: Ready | Message | Failure) -> None:
    """Pixels travel as they lie in memory: three times as fast as inside of a pickle."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(item, 5, buffer_callback=buffers.append)
    pipe.send((head, [buffer.raw().nbytes for buffer in buffers]))
    for buffer in buffers:
        pipe.send_bytes(buffer.raw())


def _receive(pipe: Connection) -> Ready | Message | Failure:
    head, sizes = pipe.recv()
    buffers = [bytearray(size) for size in sizes]
    for buffer in buffers:
        pipe.recv_bytes_into(buffer)
    item: Ready | Message | Failure = pickle.loads(head, buffers=buffers)
    return item
