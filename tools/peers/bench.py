"""The rasters of the benchmark, and running a script on them."""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from peers.environments import OURS, Peer, python_of
from peers.launch import TUNED, Facts, Limits, launch, progress

SIDE = 1098  # px of the real orthophoto that is warped up
WARM = 768  # px of the raster that every script maps first


class Measured(NamedTuple):
    """One script on one raster."""

    facts: Facts | None
    reason: str  # why there are no facts
    megapixels: float

    @property
    def beside(self) -> float | None:
        """CPU seconds per megapixel outside of the forward."""
        return None if self.facts is None else (self.facts["cpu"] - self.facts["forward"]) / self.megapixels

    @property
    def ratio(self) -> float | None:
        """All CPU time over that of the forward."""
        return None if self.facts is None else self.facts["cpu"] / self.facts["forward"]

    def per_megapixel(self, name: str) -> float | None:
        """A fact per megapixel of the raster."""
        return None if self.facts is None else self.facts[name] / self.megapixels


class Bench:
    """The rasters and the way scripts are run on them."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.limits = Limits(options.time_limit, options.memory_limit)

    def raster(self, size: int) -> Path:
        """A square RGB GeoTIFF, made when first asked for."""
        path = self.folder / f"image_{size}.tif"
        if not path.exists():
            write_raster(path, size, self.options.image or real_image())
        return path

    def measure(self, peer: Peer, model: str, size: int) -> Measured:
        """Run a peer; the median of repeated runs of the stub."""
        python = python_of(peer, self.options.peers_dir)
        if isinstance(python, str):
            return Measured(None, python, size**2 / 1e6)
        o = self.options
        words = ["--image", self.raster(size), "--warm", self.raster(min(size, WARM)), "--model", model]
        words += ["--out", self.folder / "map.tif", "--classes", o.classes, "--tile", o.tile]
        words += ["--overlap", o.overlap, "--batch", o.batch, f"--variant={peer.variant}"]
        env = TUNED if o.tuned and peer not in OURS else None
        runs: list[Facts] = []
        for number in range(o.repeat if model == "stub" else 1):
            progress(f"{peer.title}: {model}, {size} px" + (f", run {number + 1}" if number else ""))
            facts = launch(python, peer.script, words, limits=self.limits, env=env)
            if isinstance(facts, str):
                return Measured(None, facts, size**2 / 1e6)
            runs.append(facts)
        middle = sorted(runs, key=lambda f: f["cpu"] - f["forward"])[(len(runs) - 1) // 2]
        middle["memory"] = statistics.median(f["memory"] for f in runs)
        return Measured(middle, "", size**2 / 1e6)

    def own(self, script: str, words: Sequence[object], what: str) -> Facts:
        """Run one of the own_ scripts; the benchmark ends where it fails."""
        progress(what)
        facts = launch(Path(sys.executable), script, words, limits=self.limits)
        if isinstance(facts, str):
            sys.exit(f"{what}: {facts}")
        return facts


def real_image() -> Path | None:
    """The orthophoto of the shared data, where that is at hand."""
    path = Path(__file__).parents[3] / "shared" / "data" / "rasters" / "ortho_za_rgba_epsg4326.tif"
    return path if path.exists() else None


def write_raster(path: Path, size: int, image: Path | None) -> None:
    """A square of an image warped up (or smooth noise), as a tiled deflate GeoTIFF in metres."""
    import numpy as np
    import rasterio
    from rasterio.enums import Resampling
    from rasterio.windows import Window

    if image:
        with rasterio.open(image) as data:
            side = min(SIDE, data.height, data.width)
            window = Window((data.width - side) // 2, (data.height - side) // 2, side, side)
            form = (3, size, size)
            pixels = data.read([1, 2, 3], window=window, out_shape=form, resampling=Resampling.cubic)
    else:
        rng = np.random.default_rng(0)
        coarse = rng.integers(40, 200, (3, size // 64 + 1, size // 64 + 1)).repeat(64, 1).repeat(64, 2)
        pixels = (coarse[:, :size, :size] + rng.integers(0, 40, (3, size, size))).astype(np.uint8)
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "width": size, "height": size, "crs": "EPSG:32734"}
    blocks = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "interleave": "pixel"}
    place = rasterio.Affine(0.1, 0, 300_000, 0, -0.1, 6_000_000)
    with rasterio.open(path, "w", **profile, **blocks, photometric="rgb", transform=place) as file:
        file.write(pixels)
