"""What tiled prediction costs beside the network, and what memory it takes as a raster grows in height.

Measured in one run: memory as peak resident size of fresh processes over generated rasters that exist nowhere, time as
CPU seconds against the bare forward of the same tiles and against a network that computes nothing.

    python tools/bench_predict.py [--width 4096] [--rows 6000 24000]
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

GOAL = 1.10  # peak memory at the greater height over that at the smaller one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=4096, help="pixels (4096)")
    parser.add_argument("--rows", type=int, nargs="+", default=[6000, 24000], help="heights to compare (6000 24000)")
    parser.add_argument("--classes", type=int, default=6, help="classes (6)")
    parser.add_argument("--tiff", action="store_true", help="read a real, tiled GeoTIFF from disk instead")
    parser.add_argument("--skip-time", action="store_true", help="memory only")
    parser.add_argument("--one", type=int, metavar="ROWS", help=argparse.SUPPRESS)  # what the fresh processes do
    options = parser.parse_args()
    if options.one:
        print(*measure_memory(options.one, options.width, options.classes, options.tiff))
        return
    print(f"{'rows':>8} {'peak MB':>9} {'over start MB':>14} {'CPU s':>8} {'s/MP':>7}")
    peaks = []
    for rows in options.rows:
        words = [sys.executable, __file__, "--one", rows, "--width", options.width, "--classes", options.classes]
        done = subprocess.run([str(w) for w in [*words, *["--tiff"] * options.tiff]], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        before, peak, cpu = map(float, done.stdout.split())
        peaks.append(peak)
        print(f"{rows:>8} {peak:>9.0f} {peak - before:>14.0f} {cpu:>8.1f} {cpu / (rows * options.width / 1e6):>7.3f}")
    ratio = max(peaks) / peaks[0]
    print(f"peak memory x {ratio:.3f} over the heights (goal <= {GOAL}): {'met' if ratio <= GOAL else 'MISSED'}")
    if not options.skip_time:
        report_time(options.classes)


def measure_memory(rows: int, width: int, classes: int, tiff: bool) -> tuple[float, float, float]:
    """Predict one raster to a GeoTIFF with a network that computes nothing: resident MB before, at peak; CPU s."""
    import torch

    from visionapps.inference.predictor import Predictor
    from visionapps.inference.sinks import mask_file
    from visionapps.inference.sources import Source
    from visionapps.structures import InputSpec, LabelSpace

    torch.set_num_threads(1)
    labels = LabelSpace.named([f"class {i}" for i in range(classes)])
    predictor = Predictor(fixed_model(classes), device="cpu")
    with TemporaryDirectory() as folder:
        source: Source = generated(rows, width)
        if tiff:
            from visionapps.inference.rasters import RasterSource

            path = Path(folder) / "image.tif"
            subprocess.run([sys.executable, "-c", WRITE_TIFF, str(path), str(rows), str(width)], check=True)
            source = RasterSource(path, InputSpec())
        before, began = resident(), time.process_time()
        with mask_file(Path(folder) / "map.tif", source, labels) as sink:
            for window, values in predictor.segment(source):
                sink.write(window, values)
        source.close()
    return before, resident(), time.process_time() - began


def report_time(classes: int) -> None:
    """End to end against the bare forward of the same tiles, both on one thread in this process."""
    from visionapps.runtime import keep_freed_memory

    keep_freed_memory()
    import torch

    from visionapps.inference.predictor import Predictor
    from visionapps.inference.sinks import mask_file
    from visionapps.models import unet
    from visionapps.structures import LabelSpace

    torch.set_num_threads(1)
    labels = LabelSpace.named([f"class {i}" for i in range(classes)])
    print(f"\n{'network':<24} {'end to end s':>13} {'forward s':>10} {'ratio':>7} {'beside it s/MP':>15}")
    models = {"nothing": fixed_model(classes), "U-Net / MobileNetV2": unet("mobilenetv2_100", classes)}
    for name, model in models.items():
        predictor = Predictor(model, tile=512, overlap=128, device="cpu")
        source = generated(1408, 1408)
        with TemporaryDirectory() as folder, clock(predictor.model) as forward:
            began = time.process_time()
            with mask_file(Path(folder) / "map.tif", source, labels) as sink:
                for window, values in predictor.segment(source):
                    sink.write(window, values)
            total = time.process_time() - began
        spent = sum(forward)
        beside = (total - spent) / (1408**2 / 1e6)
        print(f"{name:<24} {total:>13.2f} {spent:>10.2f} {total / spent:>7.3f} {beside:>15.3f}")


@contextmanager
def clock(model: "object") -> "Iterator[list[float]]":
    """CPU seconds of every call of a module."""
    spent: list[float] = []
    begun: list[float] = []
    hooks = (
        model.register_forward_pre_hook(lambda *_: begun.append(time.process_time())),  # type: ignore[attr-defined]
        model.register_forward_hook(lambda *_: spent.append(time.process_time() - begun.pop())),  # type: ignore[attr-defined]
    )
    yield spent
    for hook in hooks:
        hook.remove()


def fixed_model(classes: int) -> "object":
    """A Segmentor that returns a copy of the same logits: no computing, but every byte that a network would return."""
    import torch
    from torch import Tensor

    from visionapps.segmentation.base import Decoder, Segmentor
    from visionapps.testing import TinyBackbone

    class Fixed(Segmentor):
        def forward(self, image: Tensor) -> Tensor:
            batch, _, height, width = image.shape
            if self.logits.shape[-2:] != (height, width):
                self.logits = torch.randn(1, classes, height, width)
            return self.logits.expand(batch, -1, -1, -1).clone()

    model = Fixed(TinyBackbone(), Decoder(), classes)
    model.logits = torch.zeros(1, classes, 1, 1)
    return model


def generated(rows: int, width: int):  # type: ignore[no-untyped-def]
    """A raster that is computed as it is read, so that only the reader's memory counts."""
    import numpy as np

    from visionapps.inference.sources import ArraySource
    from visionapps.windows import Window

    class Generated(ArraySource):
        def __init__(self) -> None:
            super().__init__(np.random.default_rng(0).integers(0, 256, (3, 1, width), dtype=np.uint8), name="generated")
            self.shape = (rows, width)

        def read(self, window: Window) -> np.ndarray:
            return np.repeat(self._image[:, :, window.col : window.col_end], window.height, axis=1)

    return Generated()


def resident() -> float:
    """Peak resident size of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


WRITE_TIFF = """
import sys, numpy as np, rasterio
path, rows, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
profile = dict(driver="GTiff", dtype="uint8", count=3, height=rows, width=width, tiled=True, blockxsize=512,
               blockysize=512, compress="deflate", interleave="pixel", zlevel=1)
with rasterio.open(path, "w", **profile) as file:
    for row in range(0, rows, 512):
        height = min(512, rows - row)
        pixels = np.random.default_rng(row).integers(0, 256, (3, height, width), dtype=np.uint8)
        file.write(pixels, window=rasterio.windows.Window(0, row, width, height))
"""

if __name__ == "__main__":
    main()
