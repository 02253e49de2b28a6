"""What polygons of a label map cost: ours row by row beside rasterio's shapes of the whole array and a dissolve.

    python tools/bench_polygons.py [--size 6000] [--tall 4]

Every method runs in a process of its own on the same generated land cover, in CPU seconds of one thread with compiled
code warm. The peer reads the whole map, polygonises it, and dissolves each class with unary union, as one does to get
rid of the cuts of tiles. Memory is the peak resident size, ours for a map ``--tall`` times as high, too.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from visionapps.cli.table import render

SCENE = 1500  # side of a generated scene, in pixels
BAND = 448  # rows that come at once
GOAL = 1.10  # peak memory of the tall map over that of the square one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=6000, help="columns and rows of the map (6000)")
    parser.add_argument("--tall", type=int, default=4, help="times as many rows for the memory (4)")
    parser.add_argument("--simplify", type=float, default=1.0, help="tolerance in pixels (1)")
    parser.add_argument("--one", choices=tuple(METHODS), help=argparse.SUPPRESS)  # what the fresh processes do
    parser.add_argument("--map", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(*METHODS[options.one](options.map, options.size, options.simplify))
        return
    with TemporaryDirectory() as folder:
        compare(options, Path(folder))


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Run every method and print the table."""
    runs = [(name, options.size) for name in METHODS] + [("ours", options.size * options.tall)]
    results = {}
    for name, rows in runs:
        path = folder / f"{rows}.raw"
        if not path.exists():
            write_map(path, rows, options.size)
        words = [sys.executable, __file__, "--one", name, "--map", path, "--size", options.size]
        done = subprocess.run(
            [*map(str, words), "--simplify", str(options.simplify)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(done.stderr)
        results[name, rows] = tuple(map(float, done.stdout.split()))
    lines = [
        (name, str(rows), f"{cpu:.1f}", f"{before:.0f}", f"{peak:.0f}", f"{count:.0f}", f"{vertices:.0f}")
        for (name, rows), (cpu, before, peak, count, vertices) in results.items()
    ]
    print(render(("method", "rows", "CPU s", "MB before", "MB peak", "polygons", "vertices"), lines))
    square, tall, peer = (results[key] for key in (runs[0], runs[-1], ("shapes, dissolve", options.size)))
    print(f"time x {square[0] / peer[0]:.2f} of shapes and dissolve (goal <= 1)")
    print(f"peak memory x {tall[2] / square[2]:.3f} at {options.tall} times the rows (goal <= {GOAL})")


def write_map(path: Path, rows: int, width: int) -> None:
    """Labels of a mosaic of generated scenes, turned and mirrored at random."""
    from visionapps.data.landscape import landscape

    rng = np.random.default_rng(1)
    scenes = [landscape(SCENE, SCENE, rng)[1] for _ in range(6)]
    with path.open("wb") as file:
        for top in range(0, rows, SCENE):
            views = [np.rot90(scenes[rng.integers(6)], rng.integers(4)) for _ in range(0, width, SCENE)]
            strip = np.concatenate([v[:: rng.choice([-1, 1])] for v in views], axis=1)
            file.write(np.ascontiguousarray(strip[: rows - top, :width]).tobytes())


def resident() -> float:
    """Peak resident size so far, MB; of this process alone, which getrusage mixes with its parent's on Linux."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def ours(path: Path, width: int, tolerance: float) -> tuple[float, ...]:
    """CPU seconds, MB before, MB at peak, polygons, vertices; polygons are dropped as they come."""
    from visionapps.inference.polygons import Polygoniser

    for batch in [*(warm := Polygoniser(16, simplify_px=tolerance)).add(np.eye(16, dtype=np.uint8)), *warm.finish()]:
        assert len(batch)
    before = resident()
    polygoniser = Polygoniser(width, simplify_px=tolerance)
    seconds, count, vertices = 0.0, 0, 0
    with path.open("rb") as file:
        more = True
        while more:
            band = np.fromfile(file, np.uint8, BAND * width).reshape(-1, width)
            more = len(band) > 0
            began = time.process_time()
            for batch in polygoniser.add(band) if more else polygoniser.finish():
                count, vertices = count + len(batch), vertices + len(batch.points)
            seconds += time.process_time() - began
    return seconds, before, resident(), count, vertices


def dissolved(path: Path, width: int, tolerance: float) -> tuple[float, ...]:
    """The same of shapes and a dissolve per class."""
    return whole(path, width, dissolve=True)


def shapes_alone(path: Path, width: int, tolerance: float) -> tuple[float, ...]:
    """The same of shapes alone."""
    return whole(path, width, dissolve=False)


def whole(path: Path, width: int, *, dissolve: bool) -> tuple[float, ...]:
    """Polygonise the whole array with rasterio, every label's geometries apart."""
    import shapely
    from rasterio.features import shapes

    before = resident()
    labels = np.fromfile(path, np.uint8).reshape(-1, width)
    began = time.process_time()
    found: dict[int, list[shapely.Polygon]] = {}
    for geometry, label in shapes(labels, connectivity=4):
        outline, *holes = geometry["coordinates"]
        found.setdefault(int(label), []).append(shapely.Polygon(outline, holes))
    polygons = [polygon for group in found.values() for polygon in group]
    if dissolve:
        polygons = [part for group in found.values() for part in shapely.get_parts(shapely.union_all(group))]
    seconds = time.process_time() - began
    return seconds, before, resident(), len(polygons), int(shapely.get_num_coordinates(polygons).sum())


METHODS = {"ours": ours, "shapes": shapes_alone, "shapes, dissolve": dissolved}

if __name__ == "__main__":
    main()
