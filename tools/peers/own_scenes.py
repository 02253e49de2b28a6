"""Many small scenes: from GeoTIFFs to GeoTIFFs in one run, against the bare forward of full batches."""

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from ours import SPEC, draw_maps, make_engine

# ours comes first: it sets the allocator before the first tensor.
import numpy as np  # isort: skip
import rasterio  # isort: skip
import torch  # isort: skip
from harness import Clocked, build, forget_peak, peak, resident  # isort: skip
from rasterio.windows import Window

from visionapps.inference.rasters import RasterSource
from visionapps.inference.tiling import Tiling, tiles_per_call

_BARE = 24  # batches that the bare forward is timed over, half of them before and half after the run


def main() -> None:
    """Print one line of JSON: CPU seconds of the run, of the forwards in it, of full batches; MB over the start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", type=Path, required=True, help="the scenes are cut out of it")
    parser.add_argument("--scenes", type=int, required=True)
    parser.add_argument("--side", type=int, default=300, help="of a scene, in pixels (300)")
    parser.add_argument("--classes", type=int, default=25)
    parser.add_argument("--model", choices=("stub", "unet"), default="unet")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="fp32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tiling = Tiling()
    model = Clocked(build(options.model, options.classes))
    engine = make_engine(model, options.classes, tiling, precision=options.precision)
    with TemporaryDirectory() as name:
        folder = Path(name)
        scenes = cut(options.image, options.scenes, options.side, folder)
        maps = [((lambda path=path: RasterSource(path, SPEC)), folder / f"map_{path.name}") for path in scenes]
        draw_maps(engine, tiling, maps[:2])
        plan = tiling.plan((options.side, options.side), engine.network)
        count = tiles_per_call(engine.network, plan.rows.tile * plan.cols.tile)
        batch = np.zeros((count, 3, plan.rows.tile, plan.cols.tile), np.uint8)
        bare = _forward(engine.network, model, batch)
        before = resident()
        forget_peak()
        model.reset()
        begun = time.process_time()
        draw_maps(engine, tiling, maps)
        cpu, inside, memory = time.process_time() - begun, model.seconds, peak() - before
        bare = (bare + _forward(engine.network, model, batch)) / _BARE
    full = bare * options.scenes * plan.tiles / count
    print(json.dumps({"cpu": cpu, "inside": inside, "full": full, "memory": memory, "batch": count}))


def cut(image: Path, count: int, side: int, folder: Path) -> list[Path]:
    """So many scenes from all over an image, as GeoTIFFs of one deflate block row each."""
    rng = np.random.default_rng(0)
    paths = []
    with rasterio.open(image) as data:
        profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "width": side, "height": side, "crs": data.crs}
        for number in range(count):
            row, col = (int(rng.integers(0, length - side + 1)) for length in data.shape)
            window = Window(col, row, side, side)
            place = data.window_transform(window)
            paths.append(folder / f"scene_{number:05}.tif")
            with rasterio.open(paths[-1], "w", **profile, transform=place, compress="deflate") as scene:
                scene.write(data.read(window=window))
    return paths


def _forward(network: object, model: Clocked, batch: np.ndarray) -> float:
    """CPU seconds inside the model for half of the timed batches."""
    network(batch)  # type: ignore[operator]
    model.reset()
    for _ in range(_BARE // 2):
        network(batch)  # type: ignore[operator]
    return model.seconds


if __name__ == "__main__":
    main()
