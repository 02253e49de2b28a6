"""Calls in processes of their own, which may run out of disk or be killed: forked after the imports, so cheap."""

import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

KILLED = "killed"


def call_each(module: str, function: str, calls: Sequence[tuple[Any, ...]]) -> list[str]:
    """What a function of a test module says, in a new process for each call.

    The processes are not forked from this one, whose other threads they would lack.

    Args:
        module: such as "test_drawing".
        function: returns text without line breaks.
        calls: the arguments of each; must pickle.

    Returns:
        One text per call; KILLED where the process was; what went wrong where it raised.
    """
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import forked; forked.serve()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps((module, function, list(calls))),
        capture_output=True,
        check=False,
    )
    lines = done.stdout.decode().splitlines()
    assert len(lines) == len(calls), done.stdout.decode() + done.stderr.decode()
    return lines


def serve() -> None:
    """Make the calls that stdin holds."""
    module, function, calls = pickle.load(sys.stdin.buffer)
    call = getattr(import_module(module), function)
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
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # GDAL's own complaints
    for arguments in calls:
        child = os.fork()
        if child == 0:
            said = "an error that is none"
            try:
                said = call(*arguments)
            except Exception as error:
                said = f"{type(error).__name__}: {error}".replace("\n", " ")
            finally:
                os.write(1, said.encode() + b"\n")
                os._exit(0)
        if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            os.write(1, KILLED.encode() + b"\n")


def fill_disk_at(limit: int) -> None:
    """From now on no file of this process may grow beyond so many bytes: it meets the same as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


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
