"""What every script of this folder shares: the model, the file, the clocks and the line of JSON at the end.

Each script maps one raster with one library's own means. It runs in that library's environment, which need not have
visionapps, so this module imports only torch, segmentation_models_pytorch and rasterio. The order is always the same:
imports and model; one bare forward; a map of a small raster, so that nothing is loaded, compiled or opened for the
first time while the clock runs; then the map that is measured.

Shapes: B tiles, K classes, H W raster, h w tile.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

STRIDE = 32  # of the U-Net
LARGEST = 1152  # px, side of a tile; no plan here has larger ones


class Job(NamedTuple):
    """A map to draw: square tiles, neighbours share ``overlap`` pixels."""

    image: Path  # 8-bit RGB GeoTIFF
    output: Path  # GeoTIFF of labels
    tile: int  # px
    overlap: int  # px
    batch: int
    classes: int


class Fixed(nn.Module):
    """Computes nothing, but returns every byte that a network would: a copy of the same logits."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.logits = torch.randn(1, classes, LARGEST, LARGEST, generator=torch.Generator().manual_seed(0))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, h, w) to (B, K, h, w)."""
        height, width = image.shape[-2:]
        return self.logits[..., :height, :width].expand(len(image), -1, -1, -1).clone()


class Clocked(nn.Module):
    """A network that counts its own time.

    Attributes:
        seconds: CPU seconds of the calling thread inside the network.
        tiles: how many went through.
        pixels: of these tiles.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.seconds, self.tiles, self.pixels = 0.0, 0, 0

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, h, w) float in [0, 1] to (B, K, h, w) logits."""
        begun = time.thread_time()
        with torch.no_grad():  # not inference mode: some peers change the logits in place outside of it
            logits: Tensor = self.network(image)
        self.seconds += time.thread_time() - begun
        self.tiles += len(image)
        self.pixels += len(image) * image.shape[-2] * image.shape[-1]
        return logits


Mapper = Callable[[Job], None]
Peer = Callable[[Clocked, argparse.Namespace], Mapper]


def build(model: str, classes: int) -> nn.Module:
    """The network that everybody applies: "stub" costs nothing, "unet" is a U-Net on MobileNetV2 with seed 0."""
    if model == "stub":
        return Fixed(classes)
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    network: nn.Module = smp.Unet("tu-mobilenetv2_100", classes=classes, encoder_weights=None)
    return network.eval()


def run(peer: Peer, package: str | None) -> None:
    """Measure one peer as the command line says and print one line of JSON.

    Args:
        peer: the model and the options to a function that draws a map; imports what it needs.
        package: the distribution whose version is reported; None: none.
    """
    options = _options()
    torch.set_num_threads(1)
    model = Clocked(build(options.model, options.classes))
    job = Job(options.image, options.out, options.tile, options.overlap, options.batch, options.classes)
    draw = peer(model, options)
    model(torch.zeros(job.batch, 3, job.tile, job.tile))
    before = resident()
    draw(job._replace(image=options.warm))
    model.reset()
    forget_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    draw(job)
    result = {
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "forward": model.seconds,
        "tiles": model.tiles,
        "pixels": model.pixels,
        "memory": peak() - before,
        "version": version(package) if package else "",
    }
    check_map(job)
    print("\n" + json.dumps(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--warm", type=Path, required=True, help="a small raster to begin with")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", choices=("stub", "unet"), default="stub")
    parser.add_argument("--classes", type=int, default=25)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--overlap", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--variant", default="", help="what the script offers")
    return parser.parse_args()


def unit(tiles: np.ndarray) -> Tensor:
    """8 bits to float in [0, 1], as the model wants it."""
    return torch.from_numpy(np.ascontiguousarray(tiles)).float().div_(255)


def read_image(job: Job) -> np.ndarray:
    """The whole raster: (3, H, W) uint8."""
    import rasterio

    with rasterio.open(job.image) as data:
        return np.asarray(data.read())


def label_profile(job: Job) -> dict[str, object]:
    """The GeoTIFF that every script writes which is free to choose: one band of 8 bits, tiled, deflate."""
    import rasterio

    with rasterio.open(job.image) as data:
        size = {"width": data.width, "height": data.height, "crs": data.crs, "transform": data.transform}
    blocks = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
    return {"driver": "GTiff", "dtype": "uint8", "count": 1, "nodata": 255, **size, **blocks}


def write_labels(job: Job, labels: np.ndarray) -> None:
    """Write a map that is whole in memory: (H, W) uint8."""
    import rasterio

    with rasterio.open(job.output, "w", **label_profile(job)) as data:
        data.write(labels, 1)


def check_map(job: Job) -> None:
    """Fail unless the output is a map of the whole image with labels of the model."""
    import rasterio

    with rasterio.open(job.image) as image, rasterio.open(job.output) as drawn:
        assert drawn.shape == image.shape, f"the map is {drawn.shape}, the image {image.shape}"
        labels = drawn.read(1)
    unlabelled = float((labels >= job.classes).mean())
    assert unlabelled < 0.02, f"{unlabelled:.0%} of the map has no label"  # one peer leaves a frame of one pixel


def resident() -> float:
    """Resident size of this process, in MB."""
    return _status("VmRSS")


def peak() -> float:
    """Greatest resident size since forget_peak, in MB."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Begin peak anew."""
    Path(f"/proc/{os.getpid()}/clear_refs").write_text("5")


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {name}: this benchmark needs Linux")
