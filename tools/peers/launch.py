"""Run a script of this folder in a fresh process, within limits, and take its line of JSON."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_POLL = 0.1  # s between looks at the memory
_SCRIPTS = Path(__file__).parent
# One thread for everybody, and no look at a network.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
# What visionapps sets in its own process (runtime.keep_freed_memory); here for the peers.
_KEEP = str(2**31 - 1)
TUNED = {"MALLOC_MMAP_THRESHOLD_": _KEEP, "MALLOC_TRIM_THRESHOLD_": _KEEP, "MALLOC_ARENA_MAX": "1"}


class Limits(NamedTuple):
    """What a run may take."""

    seconds: float
    megabytes: float  # resident


Facts = dict[str, float]


def launch(
    python: Path, script: str, words: Sequence[object], *, limits: Limits, env: dict[str, str] | None = None
) -> Facts | str:
    """What a script measured, or in a few words why it did not.

    Args:
        python: the interpreter.
        script: without its suffix.
        words: its arguments.
        limits: beyond them the process is ended.
        env: more of the environment.
    """
    command = [str(python), str(_SCRIPTS / f"{script}.py"), *map(str, words)]
    settings = os.environ | _ONE_THREAD | _OFFLINE | (env or {})
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=settings)
        refused = _watch(process, limits)
        if refused:
            return refused
        out.seek(0)
        err.seek(0)
        if process.returncode:
            return (err.read().strip().splitlines() or [f"exit code {process.returncode}"])[-1][:120]
        facts: Facts = json.loads(next(line for line in reversed(out.read().splitlines()) if line.startswith("{")))
        return facts


def _watch(process: subprocess.Popen[bytes], limits: Limits) -> str:
    """Wait for a process; why it was ended, or nothing."""
    begun = time.monotonic()
    try:
        while True:
            try:
                process.wait(_POLL)
                return ""
            except subprocess.TimeoutExpired:
                if time.monotonic() - begun > limits.seconds:
                    return f"more than {limits.seconds:.0f} s"
                if _resident(process.pid) > limits.megabytes:
                    return f"more than {limits.megabytes / 1000:.0f} GB"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _resident(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def progress(text: str) -> None:
    """Say what runs now, apart from the tables."""
    print(f"... {text}", file=sys.stderr, flush=True)
