"""Calls in processes of their own, which may run out of disk or be killed: forked after the imports, so cheap."""

import atexit
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NamedTuple

KILLED = "killed"


def call_each(module: str, function: str, calls: Sequence[tuple[Any, ...]], *, together: bool = False) -> list[str]:
    """What a function of a test module says, in a new process for each call.

    The processes are not forked from this one, whose other threads they would lack, but from one that has imported
    everything and done nothing: there is one for all tests.

    Args:
        module: such as "test_drawing".
        function: returns text without line breaks, of less than 4000 bytes; what it prints is lost.
        calls: the arguments of each; must pickle.
        together: all processes run at the same time; else one after the other.

    Returns:
        One text per call; KILLED where the process was; what went wrong where it raised.
    """
    server = _server()
    pickle.dump((module, function, list(calls), together), server.calls)
    server.calls.flush()
    said: dict[int, str] = {}
    while len(said) < len(calls):
        number, _, text = server.answers.readline().decode().rstrip("\n").partition(" ")
        assert number, server.complaints()
        said[int(number)] = text
    return [said[number] for number in range(len(calls))]


class _Server(NamedTuple):
    calls: IO[bytes]
    answers: IO[bytes]
    log: IO[bytes]

    def complaints(self) -> str:
        """What the server and its children wrote to stderr, and to stdout."""
        self.log.seek(0)
        return self.log.read().decode(errors="replace")[-5000:]


@lru_cache(maxsize=1)
def _server() -> _Server:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import forked; forked.serve()"
    log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this process
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
    assert process.stdin
    assert process.stdout
    atexit.register(process.communicate)  # it ends where its input does
    return _Server(process.stdin, process.stdout, log)


def serve() -> None:
    """Make the calls that come by stdin, until that ends."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what commands print is no answer
    for lazy in (
        "rasterio",
        "rasterio.control",
        "rasterio.shutil",
        "rasterio.windows",
        "pyarrow",
        "PIL.Image",
        "numpy.ma",
    ):
        import_module(lazy)  # once, not in every child
    while True:
        try:
            module, function, calls, together = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        call = getattr(import_module(module), function)
        children: dict[int, int] = {}
        for number, arguments in enumerate(calls):
            child = os.fork()
            if child == 0:
                _answer(answers, number, call, arguments)
            children[child] = number
            if not together:
                _wait(answers, children)
        while children:
            _wait(answers, children)


def _answer(answers: int, number: int, call: Any, arguments: tuple[Any, ...]) -> None:
    """The whole life of a child."""
    said = "an error that is none"
    try:
        said = str(call(*arguments))
    except Exception as error:
        said = f"{type(error).__name__}: {error}".replace("\n", " ")
    finally:
        os.write(answers, f"{number} {said}\n".encode())
        os._exit(0)


def _wait(answers: int, children: dict[int, int]) -> None:
    child, status = os.wait()
    number = children.pop(child)
    if os.WIFSIGNALED(status):
        os.write(answers, f"{number} {KILLED}\n".encode())


def fill_disk_at(limit: int) -> None:
    """From now on no file of this process may grow beyond so many bytes: it meets the same as on a full disk."""
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)  # the log is a file, too
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


class Mortality:
    """Counts the calls that change what is on the disk, and kills the process instead of making a certain one."""

    CALLS = ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir", "open", "write", "ftruncate")

    def __init__(self, fatal: int = 0) -> None:
        """
        Args:
            fatal: number of the call, from 1; 0: none.
        """
        self.calls, self._fatal = 0, fatal
        for name in self.CALLS:
            setattr(os, name, self._mortal(getattr(os, name)))

    def _mortal(self, call: Any) -> Any:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls == self._fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **named)

        return wrapped
