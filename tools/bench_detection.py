"""Tiled detection over a raster: ours beside SAHI and beside the bare network, in one process on one machine.

    python tools/bench_detection.py                          # MobileNetV3-FPN, CPU seconds on one thread
    python tools/bench_detection.py --model fasterrcnn_resnet50_fpn --tiles 4
    python tools/bench_detection.py --device cuda            # wall seconds, real batches

Every row detects in the same tiles of the same GeoTIFF, with the same weights. "outside" is what a tile costs beside
the network: reading, cutting, converting, merging. The rows of the stub take that to its end: a network that computes
nothing and finds so many boxes in every tile. Rows of SAHI are left out where it is not installed.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
import torch
from torch import Tensor, nn
from torchvision.models import detection as peers

from visionapps.boxes import Detections
from visionapps.detection.base import Detector
from visionapps.inference.detecting import ObjectPredictor
from visionapps.inference.rasters import RasterSource
from visionapps.models.published import torchvision_detector
from visionapps.runtime import keep_freed_memory
from visionapps.structures import InputSpec
from visionapps.testing import TinyBackbone

sys.path.insert(0, str(Path(__file__).parent))
from peers.sahi_scene import sliced

TILE, OVERLAP = 512, 128


class Row(NamedTuple):
    """What a run took."""

    name: str
    seconds: float  # in all: CPU seconds of the process, on a GPU wall seconds
    inside: float  # of these in the network
    tiles: int
    found: int


class Clocked(nn.Module):
    """A torchvision detector that counts its own time and tiles."""

    def __init__(self, model: nn.Module, clock: Callable[[], float]) -> None:
        super().__init__()
        self.model, self.clock, self.seconds, self.tiles = model, clock, 0.0, 0

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Detections of (3, h, w) images in [0, 1]."""
        began = self.clock()
        with torch.inference_mode():
            found: list[dict[str, Tensor]] = self.model(images)
        self.seconds += self.clock() - began
        self.tiles += len(images)
        return found


class Stub(nn.Module):
    """Computes nothing and finds boxes at the same places of every tile."""

    def __init__(self, count: int) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        corner, size = rng.uniform(0, TILE - 60, (count, 2)), rng.uniform(10, 60, (count, 2))
        boxes = torch.from_numpy(np.concatenate([corner, corner + size], 1)).float()
        scores = torch.from_numpy(np.sort(rng.uniform(0.3, 1, count))[::-1].copy()).float()
        self.found = {"boxes": boxes, "labels": torch.from_numpy(rng.integers(1, 6, count)), "scores": scores}

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """The same for every image."""
        return [self.found for _ in images]


class Wrapped(Detector):
    """Any torchvision detector, as one of ours."""

    def __init__(self, model: Clocked) -> None:
        super().__init__(TinyBackbone(InputSpec(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))), 91)
        self.model = model

    def detect(
        self, image: Tensor, sizes: tuple[tuple[int, int], ...], proposals: tuple[Tensor, ...] | None = None
    ) -> list[Detections]:
        found = self.model([each[:, :h, :w].float() / 255 for each, (h, w) in zip(image, sizes, strict=True)])
        return [Detections(each["boxes"], each["labels"] - 1, each["scores"]) for each in found]


class StubDetector(Detector):
    """The stub, as one of our detectors: they take raw pixels."""

    def __init__(self, stub: Stub) -> None:
        super().__init__(TinyBackbone(), 91)
        each = stub.found
        self.found = Detections(each["boxes"], each["labels"] - 1, each["scores"])

    def detect(
        self, image: Tensor, sizes: tuple[tuple[int, int], ...], proposals: tuple[Tensor, ...] | None = None
    ) -> list[Detections]:
        return [Detections(*(part if part is None else part.to(image.device) for part in self.found)) for _ in sizes]


class Bench:
    """One raster, one clock."""

    def __init__(self, raster: Path, tiles: int, device: str) -> None:
        self.raster, self.tiles, self.device = raster, tiles, device
        self.cuda = device.startswith("cuda")
        self.whole = time.perf_counter if self.cuda else time.process_time
        self.thread = self._synchronised if self.cuda else time.thread_time

    def _synchronised(self) -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    def forward(self, model: nn.Module) -> Row:
        """The bare torchvision network over tiles that lie ready, one by one as SAHI calls it."""
        with rasterio.open(self.raster) as file:
            pixels = file.read()
        starts = [i * (TILE - OVERLAP) for i in range(self.tiles)]
        cut = [torch.from_numpy(pixels[:, y : y + TILE, x : x + TILE].copy()) for y in starts for x in starts]
        ready = [(tile.float() / 255).to(self.device) for tile in cut]
        network = Clocked(model, self.thread)
        network(ready[:1])
        network.seconds = 0.0
        found = sum(len(network([tile])[0]["scores"]) for tile in ready)
        return Row("bare torchvision network", network.seconds, network.seconds, len(ready), found)

    def sahi(self, model: nn.Module, name: str) -> Row:
        """SAHI, reading the file itself."""
        network = Clocked(model, self.thread)
        options = {"tile": TILE, "overlap": OVERLAP, "classes": 91, "device": self.device}
        sliced(network, self.raster, **options)  # type: ignore[arg-type]
        network.seconds, network.tiles = 0.0, 0
        began = self.whole()
        found = sliced(network, self.raster, **options)  # type: ignore[arg-type]
        return Row(name, self.whole() - began, network.seconds, network.tiles, found)

    def ours(self, model: Detector, name: str, *, precision: str, network: Clocked | None = None) -> Row:
        """ObjectPredictor, reading the file itself."""
        predictor = ObjectPredictor(
            model, tile=TILE, overlap=OVERLAP, device=self.device, precision=precision  # type: ignore[arg-type]
        )  # fmt: skip
        predictor.threads = 1
        for _ in range(2):  # the first run compiles and warms up
            before = predictor.tally.tiles
            clock = network or _watched(model, self.thread)
            clock.seconds = 0.0
            source = RasterSource(str(self.raster), model.spec)
            began = self.whole()
            found = predictor.detect(source)
            seconds = self.whole() - began
            source.close()
        return Row(name, seconds, clock.seconds, predictor.tally.tiles - before, len(found))


def _watched(model: Detector, clock: Callable[[], float]) -> Clocked:
    """Let a detector count its time."""
    counter, inner = Clocked(nn.Identity(), clock), type(model).detect

    def detect(*args: object) -> list[Detections]:
        began = clock()
        found = inner(model, *args)  # type: ignore[arg-type]
        counter.seconds += clock() - began
        return found

    model.detect = detect  # type: ignore[assignment,method-assign]
    return counter


def write_raster(path: Path, side: int) -> None:
    """A tiled GeoTIFF with something like ground and things on it."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 200, (3, side // 16 + 1, side // 16 + 1), dtype=np.uint8)
    image = coarse.repeat(16, 1).repeat(16, 2)[:, :side, :side] + rng.integers(0, 30, (3, side, side), dtype=np.uint8)
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "tiled": True, "compress": "deflate"}
    with rasterio.open(path, "w", height=side, width=side, blockxsize=256, blockysize=256, **profile) as file:
        file.write(image)


def our_own(name: str, state: dict[str, Tensor]) -> Detector:
    """The same network from our parts, with the same weights."""
    categories = peers.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    names = tuple(n for n in categories if n not in ("__background__", "N/A"))
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / "detector.pth")
        model = torchvision_detector(name, len(names), checkpoint=str(Path(folder) / "detector.pth"))
        model.load_pretrained(names)
    return model


def rows_of(bench: Bench, options: argparse.Namespace) -> list[Row]:
    """All rows; those that change how the process allocates memory come last."""
    torch.manual_seed(0)
    peer = getattr(peers, options.model)(
        weights=None,
        weights_backbone=None,
        num_classes=91,
        min_size=TILE,
        max_size=TILE,
        box_score_thresh=options.score,
    )
    peer = peer.eval().to(options.device)
    stub = Stub(options.detections)
    stub_name = f"stub, {options.detections} boxes a tile"
    rows = [bench.forward(peer)]
    if find_spec("sahi"):
        rows += [bench.sahi(peer, "SAHI"), bench.sahi(stub, f"SAHI, {stub_name}")]
    network = Clocked(peer, bench.thread)
    rows.append(bench.ours(Wrapped(network), "ours, torchvision's network, fp32", precision="fp32", network=network))
    rows.append(bench.ours(StubDetector(stub), f"ours, {stub_name}", precision="fp32"))
    own = our_own(options.model, peer.state_dict())
    own.limits = type(own.limits)(score=options.score, nms=0.5, most=100)
    rows.append(bench.ours(own, "ours, our parts, fp32", precision="fp32"))
    keep_freed_memory()
    rows.append(bench.ours(own, "ours, our parts, fast recipe", precision="auto"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fasterrcnn_mobilenet_v3_large_fpn", help="of torchvision.models.detection")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--tiles", type=int, default=6, help="tiles along a side of the raster (6)")
    parser.add_argument("--detections", type=int, default=100, help="boxes that the stub finds in a tile (100)")
    parser.add_argument("--score", type=float, default=0.05, help="least score; random weights find little above 0.05")
    options = parser.parse_args()
    torch.set_num_threads(1)
    side = TILE + (options.tiles - 1) * (TILE - OVERLAP)
    with tempfile.TemporaryDirectory() as folder:
        raster = Path(folder) / "scene.tif"
        write_raster(raster, side)
        bench = Bench(raster, options.tiles, options.device)
        rows = rows_of(bench, options)
    bare = rows[0].seconds / rows[0].tiles
    print(f"{options.model}, {side} x {side} px, {rows[0].tiles} tiles of {TILE} px, {options.device}")
    print(
        f"{'':34}{'ms a tile':>10}{'outside':>9}{'/ own forward':>15}{'/ bare':>8}{'tiles/s':>9}{'MP/s':>7}"
        f"{'objects':>9}"
    )
    for row in rows:
        each = row.seconds / row.tiles
        outside = (row.seconds - row.inside) / row.tiles
        ratio = f"{row.seconds / row.inside:.3f}" if "stub" not in row.name else "-"
        share = f"{each / bare:.3f}" if "stub" not in row.name else "-"
        rate = side**2 / 1e6 / row.seconds
        print(
            f"{row.name:34}{1000 * each:10.2f}{1000 * outside:9.2f}{ratio:>15}{share:>8}{1 / each:9.1f}{rate:7.2f}"
            f"{row.found:9d}"
        )


if __name__ == "__main__":
    main()
