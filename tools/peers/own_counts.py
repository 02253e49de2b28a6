"""What is counted, not timed: pixels computed twice, blocks decoded, forwards of tiles without data."""

import argparse
import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from ours import SPEC, draw_maps, make_engine

# ours comes first: it sets the allocator before the first tensor.
import numpy as np  # isort: skip
import torch  # isort: skip
from harness import Clocked, build  # isort: skip

from visionapps.inference.sources import ArraySource, Pixels
from visionapps.inference.tiling import Tiling
from visionapps.windows import Window

_BLOCK = 512


class Counting(ArraySource):
    """An array that claims to be stored in blocks and counts how often each is decoded.

    Attributes:
        decoded: reads by (block row, block column).
    """

    block = (_BLOCK, _BLOCK)

    def __init__(self, image: np.ndarray, valid: np.ndarray | None = None) -> None:
        super().__init__(image, valid=valid, bands=SPEC.bands, name="counted")
        self.decoded: Counter[tuple[int, int]] = Counter()

    def read(self, window: Window) -> Pixels:
        """As an array, and one more for every block that the window touches."""
        rows = range(window.row // _BLOCK, -(-window.row_end // _BLOCK))
        cols = range(window.col // _BLOCK, -(-window.col_end // _BLOCK))
        self.decoded.update((row, col) for row in rows for col in cols)
        return super().read(window)


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=3000, help="side of the raster that is drawn (3000)")
    parser.add_argument("--classes", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tiling = Tiling()
    model = Clocked(build("stub", options.classes))
    engine = make_engine(model, options.classes, tiling)
    plan = tiling.plan((options.size, options.size), engine.network)
    image = np.zeros((3, options.size, options.size), np.uint8)
    corner = np.zeros(image.shape[1:], bool)
    corner[: options.size // 3, : options.size // 4] = True
    whole, partly = Counting(image), Counting(image, corner)
    with TemporaryDirectory() as folder:
        draw_maps(engine, tiling, [(lambda: whole, Path(folder) / "whole.tif")])
        model.reset()
        draw_maps(engine, tiling, [(lambda: partly, Path(folder) / "partly.tif")])
    blocks = (-(-options.size // _BLOCK)) ** 2
    repeated = {str(n): tiling.plan((n, n), engine.network).repeated for n in (1000, 3000, 6000, 12000, 24000, 100000)}
    print(
        json.dumps(
            {
                "repeated": repeated,
                "blocks": blocks,
                "decoded": whole.decoded.total(),
                "decoded_most": max(whole.decoded.values()),
                "tiles": plan.tiles,
                "tiles_with_data": _seeing(corner, plan),
                "forwards": model.tiles,
            }
        )
    )


def _seeing(valid: np.ndarray, plan: object) -> int:
    """Tiles with a valid pixel, counted from the plan; the first pixels of an axis are mirrored before it."""
    rows, cols = plan.rows, plan.cols  # type: ignore[attr-defined]

    def inside(axis: object, index: int) -> slice:
        begin, end = axis.extent(index)  # type: ignore[attr-defined]
        return slice(max(0, begin), end)

    return sum(
        bool(valid[inside(rows, r), inside(cols, c)].any())
        for r in range(len(rows.starts))
        for c in range(len(cols.starts))
    )


if __name__ == "__main__":
    main()
