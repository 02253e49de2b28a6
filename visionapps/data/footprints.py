"""Where the photos of a dataset lie on the ground, and the blocks that they are cut into.

Shapes: H W photo.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from visionapps.data.folding import Box
from visionapps.data.folds import FoldItem
from visionapps.data.images import read_header
from visionapps.data.store import Photo
from visionapps.structures import GeoRef
from visionapps.windows import Window

_METRES_PER_DEGREE = 111_320.0  # of latitude
_GEOREFERENCED = (".tif", ".tiff", ".jp2", ".vrt")
_Placed = tuple[GeoRef, tuple[int, int]]  # the frame of an image and its (H, W)


def ground_boxes(items: Sequence[FoldItem]) -> dict[str, Box]:
    """Where photos and blocks lie, in metres of one frame; those without a coordinate system are left out.

    Raises:
        DataError: a header cannot be read.
    """
    sources: dict[str, list[FoldItem]] = {}
    for item in items:
        if Path(item.source).suffix.lower() in _GEOREFERENCED:
            sources.setdefault(item.source, []).append(item)
    georefs: dict[str, _Placed] = {}
    for source, own in sources.items():
        header = read_header(Path(source))
        if header.georef is not None and header.georef.crs is not None:
            georefs |= _of_blocks(own, header.georef, (header.height, header.width))
    alone = len({georef.crs for georef, _ in georefs.values()}) == 1
    bounds = {name: _bounds(georef, size, own=alone) for name, (georef, size) in georefs.items()}
    if not bounds:
        return {}
    middle = float(np.mean([box[1] + box[3] for box, _ in bounds.values()])) / 2
    found = {}
    for name, ((x0, y0, x1, y1), factor) in bounds.items():
        if factor is None:  # degrees: a metre is as wide as in the middle of the dataset
            across, down = _METRES_PER_DEGREE * math.cos(math.radians(middle)), _METRES_PER_DEGREE
        else:
            across = down = factor
        found[name] = (x0 * across, y0 * down, x1 * across, y1 * down)
    return found


def georef_of(photo: Photo) -> GeoRef | None:
    """Where an item of a dataset lies, in its own pixels; None where its file does not say.

    Raises:
        DataError: the header of its file cannot be read.
    """
    if Path(photo.source).suffix.lower() not in _GEOREFERENCED:
        return None
    header = read_header(Path(photo.source))
    if header.georef is None:
        return None
    return part_of(header.georef, (header.height, header.width), _stored_size(photo), photo.window)


def part_of(georef: GeoRef, size: tuple[int, int], stored: tuple[int, int], window: Window) -> GeoRef:
    """The frame of a window of a photo that may have been resized since.

    Args:
        georef: of the image file.
        size: (H, W) of the file.
        stored: (H, W) that it was resized to.
        window: of the resized photo.
    """
    a, b, c, d, e, f = georef.transform
    down, right = size[0] / stored[0], size[1] / stored[1]
    row, col = window.row * down, window.col * right
    corner = a * col + b * row + c, d * col + e * row + f
    return GeoRef(georef.crs, (a * right, b * down, corner[0], d * right, e * down, corner[1]))


def _stored_size(photo: Photo) -> tuple[int, int]:
    """(H, W) of the stored photo, of which the item may be a block."""
    height, width = np.load(Path(photo.folder) / "image.npy", mmap_mode="r").shape[:2]
    return int(height), int(width)


def _of_blocks(own: Sequence[FoldItem], georef: GeoRef, size: tuple[int, int]) -> dict[str, _Placed]:
    """The frames of a photo, or of all blocks of one, whose file has this frame and size."""
    ends = [(item.window.row_end, item.window.col_end) for item in own if item.window is not None]
    if not ends:
        return {item.name: (georef, size) for item in own}
    # Blocks are counted in pixels of the stored photo; together they cover it.
    stored = max(row for row, _ in ends), max(col for _, col in ends)
    windows = {item.name: item.window or Window(0, 0, *stored) for item in own}
    return {name: (part_of(georef, size, stored, w), (w.height, w.width)) for name, w in windows.items()}


def _bounds(georef: GeoRef, size: tuple[int, int], *, own: bool) -> tuple[Box, float | None]:
    """Corners of an image and the metres of their unit, None for degrees; own: in its own system, else degrees."""
    import rasterio.crs
    import rasterio.warp

    a, b, c, d, e, f = georef.transform
    corners = [(a * col + b * row + c, d * col + e * row + f) for row in (0, size[0]) for col in (0, size[1])]
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    box = (min(xs), min(ys), max(xs), max(ys))
    crs = rasterio.crs.CRS.from_wkt(georef.crs)
    if not own:
        return tuple(map(float, rasterio.warp.transform_bounds(crs, "EPSG:4326", *box))), None  # type: ignore[return-value]
    return box, None if crs.is_geographic else float(crs.linear_units_factor[1])
