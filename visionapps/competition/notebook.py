"""A notebook that runs a package where there is no internet, as plain JSON of the format that notebooks have (4.5)."""

import json
from collections.abc import Sequence
from typing import Any

_FIND = """\
import subprocess
import sys
import time
from pathlib import Path

STARTED = time.monotonic()
SECONDS = {seconds!r}  # that the whole run may take; take off what other cells need
MEMORY = {memory!r}  # GiB that it may take
OUT = Path("{out}").resolve()
MORE = []  # what else run.py shall be told: ["--images", "/kaggle/input/...", "--sample", "..."]; see --help

# The package: attached as a data set, or in the folder of this notebook.
places = [Path.cwd(), *Path("/kaggle/input").glob("*"), *Path("/kaggle/input").glob("*/*"),
          *Path("/kaggle/input").glob("*/*/*"), *Path("/kaggle/input").glob("*/*/*/*")]
found = [place for place in places if (place / "{manifest}").is_file()]
if not found:
    raise FileNotFoundError("{manifest} is not among the inputs: attach the data set with the package")
PACKAGE = found[0]
print(PACKAGE)"""
_RUN = """\
command = [sys.executable, "-u", str(PACKAGE / "{script}"), "--out", str(OUT), "--overwrite",
           "--seconds", str(SECONDS - (time.monotonic() - STARTED)), "--memory", str(MEMORY), *MORE]
with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
    for line in process.stdout:
        print(line, end="", flush=True)
if process.returncode:
    raise SystemExit(f"run.py ended with {{process.returncode}}; the last lines say why")"""
_SHOW = """\
print(OUT, OUT.stat().st_size, "bytes")
if OUT.suffix == ".csv":
    with OUT.open() as file:
        for _ in range(5):
            print(file.readline().rstrip()[:100])
print(OUT.with_name("{report}").read_text())"""


def notebook(*, title: str, seconds: float, memory: float, out: str, names: Sequence[str]) -> str:
    """The text of an .ipynb file.

    Args:
        title: of its first cell.
        seconds: that a run may take.
        memory: GiB that it may take.
        out: name of the submission.
        names: of manifest, script and report.
    """
    manifest, script, report = names
    words = {"seconds": seconds, "memory": memory, "out": out, "manifest": manifest, "script": script, "report": report}
    text = (
        f"# {title}\n\nFinds the package and the test images, times a few of them, leaves out members, scales or views "
        "until all fits into the time, and writes a verified submission. Internet is not needed: switch it off. "
        "`README.md` of the package says what is in it."
    )
    cells = [
        {"cell_type": "markdown", "id": "what-this-is", "metadata": {}, "source": _lines(text)},
        *(
            {
                "cell_type": "code",
                "id": name,
                "metadata": {},
                "execution_count": None,
                "outputs": [],
                "source": _lines(source.format(**words)),
            }
            for name, source in (("find-package", _FIND), ("draw-and-submit", _RUN), ("look-at-it", _SHOW))
        ),
    ]
    found: dict[str, Any] = {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(found, indent=1) + "\n"


def _lines(text: str) -> list[str]:
    """As notebooks keep text."""
    return text.splitlines(keepends=True)
