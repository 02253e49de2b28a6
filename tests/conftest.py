"""Fixtures that every test may use."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

# One thread per process, for every core has a process of its own: two of them wait for each other more than they work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# The same examples in every run: a failure belongs to the change that it meets. New ones are sought by
# `VISIONAPPS_EXPLORE=1 pytest`; what that finds becomes an @example.
settings.register_profile("repeatable", derandomize=True, database=None)
if not os.environ.get("VISIONAPPS_EXPLORE"):
    settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images and rasters; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("VISIONAPPS_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data is absent: {folder}")
    return folder


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C is heard, though a shell may have started the tests in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)  # Lightning leaves it ignored
