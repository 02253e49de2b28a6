"""The benchmark of maps: it runs, its clocks and limits hold, and it says why a peer is missing."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import rasterio
import torch
from torch import nn

TOOLS = Path(__file__).parents[1] / "tools"
pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")


def run_tool(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, TOOLS / "bench_maps.py", *words], capture_output=True, text=True, timeout=240
    )


def load(name: str, monkeypatch: pytest.MonkeyPatch, *, folder: Path = TOOLS / "peers") -> ModuleType:
    """A module of tools/peers, imported as the tool does, or the tool."""
    monkeypatch.syspath_prepend(str(TOOLS))
    spec = importlib.util.spec_from_file_location(
        f"peers.{name}" if folder.name == "peers" else name, folder / f"{name}.py"
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_help_says_what_every_part_measures():
    done = run_tool("--help")
    assert done.returncode == 0
    for part in ("peers", "pipeline", "memory", "small"):
        assert f"\n  {part} " in done.stdout


def test_installing_without_a_folder_is_refused():
    done = run_tool("--install")
    assert done.returncode == 2
    assert "--install needs --peers-dir" in done.stderr


def test_a_tiny_run_measures_us_and_the_naive_loop_and_says_why_a_peer_is_missing(tmp_path, monkeypatch, capsys):
    tool = load("bench_maps", monkeypatch, folder=TOOLS)
    monkeypatch.setattr(tool, "OURS", tool.OURS[:1])  # the plan that is chosen for large rasters is of no use here
    report = tmp_path / "maps.json"
    words = ["--only", "peers", "--peer", "ours", "naive", "monai_window", "--models", "stub", "--classes", "3"]
    words += ["--sizes", "416", "--tile", "128", "--overlap", "32", "--json", str(report)]
    monkeypatch.setattr(sys, "argv", ["bench_maps.py", *words])
    tool.main()
    rows = {row["peer"]: row for row in json.loads(report.read_text())["peers"]}
    ours = rows["visionapps, 512 px, 25 % overlap"]
    naive = rows["naive windows, last one wins"]
    # ceil((416 - 32) / 96) = 4 tiles of 128 px on each axis
    assert ours["pixels"] == naive["pixels"] == pytest.approx((4 * 128) ** 2 / 416**2)
    assert ours["beside s/MP"] > 0
    assert naive["x ours"] == pytest.approx(naive["beside s/MP"] / ours["beside s/MP"])
    assert rows["MONAI, gaussian"]["note"] == "no --peers-dir"
    assert "no --peers-dir" in capsys.readouterr().out


def test_a_run_beyond_its_time_is_ended(monkeypatch):
    launch = load("launch", monkeypatch)
    limits = launch.Limits(seconds=0.2, megabytes=10_000)
    assert launch.launch(Path(sys.executable), "own_counts", [], limits=limits) == "more than 0 s"


def test_a_run_beyond_its_memory_is_ended(monkeypatch):
    launch = load("launch", monkeypatch)
    limits = launch.Limits(seconds=60, megabytes=8)  # less than a bare interpreter
    assert launch.launch(Path(sys.executable), "own_counts", [], limits=limits) == "more than 0 GB"


def test_a_peer_that_could_not_be_installed_says_why(monkeypatch, tmp_path):
    environments = load("environments", monkeypatch)
    peer = environments.Peer("MONAI", "monai_window", "monai")
    assert environments.python_of(peer, tmp_path) == "not installed; run with --install"
    (tmp_path / "monai").mkdir()
    (tmp_path / "monai" / "failed.txt").write_text("no matching distribution\n")
    assert environments.python_of(peer, tmp_path) == "cannot be installed: no matching distribution"


def test_the_stub_returns_a_fresh_copy_of_the_same_logits_every_time(monkeypatch):
    harness = load("harness", monkeypatch)
    stub = harness.Fixed(3)
    first = stub(torch.zeros(2, 3, 40, 24))
    kept = first.clone()
    first += 1  # what a merger may do
    assert first.shape == (2, 3, 40, 24)
    assert torch.equal(stub(torch.ones(2, 3, 40, 24)), kept)
    assert torch.equal(kept[0], kept[1])


def test_the_clock_counts_tiles_pixels_and_time_of_the_network_only(monkeypatch):
    harness = load("harness", monkeypatch)
    ticks = iter([1.0, 1.5, 4.0, 4.25])
    monkeypatch.setattr(harness.time, "thread_time", lambda: next(ticks))
    model = harness.Clocked(nn.Identity())
    model(torch.zeros(4, 3, 8, 16))
    model(torch.zeros(1, 3, 8, 16))
    assert (model.seconds, model.tiles, model.pixels) == (0.75, 5, 5 * 8 * 16)


def test_a_map_of_another_size_or_without_labels_does_not_count(monkeypatch, tmp_path):
    harness = load("harness", monkeypatch)
    bench = load("bench", monkeypatch)
    image = tmp_path / "image.tif"
    bench.write_raster(image, 100, None)
    job = harness.Job(image, tmp_path / "map.tif", 64, 16, 1, 3)
    harness.write_labels(job, np.full((100, 100), 2, np.uint8))
    harness.check_map(job)
    harness.write_labels(job, np.full((100, 100), 3, np.uint8))
    with pytest.raises(AssertionError, match="100% of the map has no label"):
        harness.check_map(job)
    with rasterio.open(job.output, "w", **harness.label_profile(job) | {"height": 99}) as smaller:
        smaller.write(np.zeros((99, 100), np.uint8), 1)
    with pytest.raises(AssertionError, match=r"the map is \(99, 100\), the image \(100, 100\)"):
        harness.check_map(job)
