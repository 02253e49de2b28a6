"""Memory of one large map: a raster that exists nowhere, through the engine, to a GeoTIFF on disk."""

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from ours import SPEC, draw_maps, make_engine

# ours comes first: it sets the allocator before the first tensor.
import numpy as np  # isort: skip
import torch  # isort: skip
from harness import Clocked, build, forget_peak, peak, resident  # isort: skip

from visionapps.inference.sources import ArraySource, Pixels
from visionapps.inference.tiling import Tiling
from visionapps.windows import Window


class Generated(ArraySource):
    """One row of noise, shifted a little from row to row: only the reader's own memory counts."""

    block = (512, 512)

    def __init__(self, rows: int, width: int) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (3, 1, width), dtype=np.uint8)
        super().__init__(noise, bands=SPEC.bands, name="generated")
        self.shape = (rows, width)

    def read(self, window: Window) -> Pixels:
        """Rows of the noise, and everything valid."""
        values = np.repeat(self._image[:, :, window.col : window.col_end], window.height, axis=1)
        return Pixels(values, np.ones(values.shape[1:], bool))


def main() -> None:
    """Print one line of JSON: MB over the level after model and runtime, CPU seconds, the plan's tile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--classes", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tiling = Tiling()
    engine = make_engine(Clocked(build("stub", options.classes)), options.classes, tiling)
    with TemporaryDirectory() as folder:
        output = Path(folder) / "map.tif"
        # Compiles and imports everything, blending too, and takes no memory.
        draw_maps(engine, Tiling(64, 16), [(lambda: Generated(160, 160), output)])
        before = resident()
        forget_peak()
        begun = time.process_time()
        draw_maps(engine, tiling, [(lambda: Generated(options.rows, options.width), output)])
    plan = tiling.plan((options.rows, options.width), engine.network)
    megapixels = options.rows * options.width / 1e6
    cpu = (time.process_time() - begun) / megapixels
    print(json.dumps({"before": before, "memory": peak() - before, "cpu": cpu, "tile": plan.cols.tile}))


if __name__ == "__main__":
    main()
