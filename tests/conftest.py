"""Fixtures that every test may use."""

import os
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
