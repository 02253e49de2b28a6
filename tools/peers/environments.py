"""One virtual environment per peer, outside of the repository, that shares the torch which is running.

A .pth file shows the running interpreter's packages to each environment; what a peer needs beside them, or in another
version, is installed in front of them. torch itself is held, so that everybody runs the same network.
"""

import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

_HELD = ("torch", "torchvision")
_FAILED = "failed.txt"  # in an environment: why its packages could not be installed


@dataclass(frozen=True)
class Peer:
    """A script of this folder and how it runs.

    Attributes:
        title: in the tables.
        script: without its suffix.
        package: what to install; None: it runs in this interpreter.
        variant: handed to the script.
    """

    title: str
    script: str
    package: str | None = None
    variant: str = ""


OURS = (
    Peer("visionapps, 512 px, 25 % overlap", "ours"),
    Peer("visionapps, default plan", "ours", variant="default"),
)
OTHERS = (
    Peer("naive windows, last one wins", "naive"),
    Peer("MONAI, gaussian", "monai_window", "monai"),
    Peer("torchgeo, GridGeoSampler", "torchgeo_stitch", "torchgeo"),
    Peer("pytorch-toolbelt, TileMerger", "toolbelt_merge", "pytorch-toolbelt"),
    Peer("Raster Vision, discrete", "raster_vision", "rastervision-pytorch-learner"),
    Peer("Raster Vision, smooth", "raster_vision", "rastervision-pytorch-learner", "smooth"),
    Peer("TerraTorch, tiled_inference", "terratorch_tiled", "terratorch"),
    Peer("geoai, predict_geotiff", "geoai_map", "geoai-py"),
    Peer("tiler, Merger", "tiler_merge", "tiler"),
)


def python_of(peer: Peer, folder: Path | None) -> Path | str:
    """The interpreter that runs a peer, or why there is none.

    Args:
        peer: which.
        folder: of the environments; None: there are none.
    """
    if peer.package is None:
        return Path(sys.executable)
    if folder is None:
        return "no --peers-dir"
    home = folder / peer.package
    if (home / _FAILED).exists():
        return f"cannot be installed: {(home / _FAILED).read_text().strip()}"
    python = _python(home)
    return python if python.exists() else "not installed; run with --install"


def install(folder: Path, timeout: float = 900) -> None:
    """Create what is missing of the environments of all peers; a failure is kept as the reason in the table.

    Args:
        folder: outside of the repository; created if need be.
        timeout: seconds per peer.
    """
    for package in dict.fromkeys(peer.package for peer in OTHERS if peer.package):
        home = folder / package
        if _python(home).exists() and not (home / _FAILED).exists():
            continue
        print(f"installing {package} into {home}", file=sys.stderr, flush=True)
        reason = _create(home, package, timeout)
        (home / _FAILED).unlink(missing_ok=True)
        if reason:
            (home / _FAILED).write_text(reason)
            print(f"{package}: {reason}", file=sys.stderr, flush=True)


def _create(home: Path, package: str, timeout: float) -> str:
    """Build one environment; the last line of what went wrong, or nothing."""
    # The running interpreter's pip is shared like its other packages; it changes nothing outside of the environment.
    venv.create(home, clear=True, symlinks=os.name != "nt", with_pip=find_spec("pip") is None)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    shared = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (packages / "zz_shared.pth").write_text("\n".join(shared))  # zz: after what is installed in the environment
    held = home / "constraints.txt"
    held.write_text("\n".join(f"{name}=={version(name)}" for name in _HELD))
    command = [str(_python(home)), "-m", "pip", "install", "--quiet", "--constraint", str(held), package]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return f"pip took more than {timeout:.0f} s"
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["pip failed"])[-1]


def _python(home: Path) -> Path:
    return home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
