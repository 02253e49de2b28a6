"""Polygons and run lengths of annotation files: to run-length masks of whole images, and back to polygons."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from visionapps.errors import DataError
from visionapps.masks import CocoRle, coco_to_runs, decode, runs_to_coco

_AT_ONCE = 255  # pycocotools 2.0.11 fails on lists longer than a uint8 counts

Polygon = tuple[float, ...]  # x, y, x, y, ... in half-open pixels


def shape_mask(shape: Any, size: tuple[int, int]) -> CocoRle:
    """A mask from polygons or run lengths.

    Args:
        shape: polygons [[x, y, ...], ...] in pixels, or run lengths {"size", "counts"}, packed or not.
        size: (H, W) of the image.

    Raises:
        DataError: it is neither, or of another size.
    """
    from pycocotools import mask as coco

    if isinstance(shape, Mapping):
        runs = coco_to_runs(shape)
        if tuple(int(side) for side in shape["size"]) != tuple(size):
            raise DataError(f"run lengths of an image of {shape['size']} (H, W), but it has {list(size)}")
        counts = shape["counts"]
        return {"size": list(size), "counts": counts} if isinstance(counts, str) else runs_to_coco(runs, size, base=1)
    parts = coco.frPyObjects([list(part) for part in polygons_of(shape)], size[0], size[1])
    packed = parts[0] if len(parts) == 1 else coco.merge(parts)
    return {"size": list(size), "counts": packed["counts"].decode("ascii")}


def polygons_of(shape: Any) -> list[Polygon]:
    """The polygons of a shape, checked.

    Raises:
        DataError: they are no lists of at least three points.
    """
    if isinstance(shape, list | tuple) and shape and not isinstance(shape[0], list | tuple):
        shape = [shape]  # a single polygon without the outer list
    if not isinstance(shape, list | tuple) or not shape:
        raise DataError(f"segmentation is {str(shape)[:40]!r}, but polygons [[x, y, ...], ...] or run lengths expected")
    found = []
    for part in shape:
        try:
            points = np.array(part, np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"a polygon is {str(part)[:40]!r}, but numbers x, y, x, y, ... are expected") from error
        if points.ndim != 1 or len(points) < 6 or len(points) % 2:
            raise DataError(f"a polygon has {points.size} numbers, but an even count from 6 on is expected")
        if not np.isfinite(points).all() or np.abs(points).max() > 1e7:
            raise DataError("a polygon has a coordinate that is not finite or absurd")
        found.append(tuple(points.tolist()))
    return found


def box_mask(box: np.ndarray, size: tuple[int, int]) -> CocoRle:
    """The mask of a box: all pixels whose centre it holds."""
    x0, y0, x1, y1 = box.tolist()
    first_row, last_row = (int(np.clip(np.ceil(v - 0.5), 0, size[0])) for v in (y0, y1))
    first_col, last_col = (int(np.clip(np.ceil(v - 0.5), 0, size[1])) for v in (x0, x1))
    columns = np.arange(first_col, last_col, dtype=np.int64) if last_row > first_row else np.zeros(0, np.int64)
    runs = np.stack([columns * size[0] + first_row, np.full(len(columns), last_row - first_row)], 1)
    if last_row - first_row == size[0] and len(columns):  # whole columns touch
        runs = np.array([[first_col * size[0], len(columns) * size[0]]], np.int64)
    return runs_to_coco(runs.astype(np.int64), size, base=0)


def mask_area(masks: Sequence[CocoRle]) -> np.ndarray:
    """(N,) pixels of each mask."""
    from pycocotools import mask as coco

    packed = [{"size": m["size"], "counts": m["counts"].encode("ascii")} for m in masks]
    parts = [coco.area(packed[i : i + _AT_ONCE]) for i in range(0, len(packed), _AT_ONCE)]
    return np.concatenate([np.zeros(0), *parts]).astype(np.float64)


def mask_polygons(mask: CocoRle) -> list[Polygon]:
    """The outlines of the parts of a mask, along the edges of its pixels; holes are lost.

    Returns:
        One closed outline per part, without its first point again; filling them gives the mask plus its holes.
    """
    import cv2

    height, width = mask["size"]
    pixels = decode(coco_to_runs(mask, base=1), (height, width), order="column", base=1)
    rows, cols = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    if not len(rows):
        return []
    part = np.ascontiguousarray(pixels[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]).astype(np.uint8)
    # cv2 gives centres of border pixels; of the picture at double size, corners of pixels are recovered from them.
    double = np.pad(part.repeat(2, 0).repeat(2, 1), 1)
    outlines, _ = cv2.findContours(double, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    found = []
    for outline in outlines:
        points = np.floor((outline[:, 0].astype(np.float64) - 1) / 2 + 0.5)  # nearest corner of a pixel
        found.append(_corners(points + np.array([cols[0], rows[0]])))
    return [polygon for polygon in found if len(polygon) >= 6]


def _corners(points: np.ndarray) -> Polygon:
    """A closed line without repeats and without points on straight stretches."""
    points = points[np.any(points != np.roll(points, 1, 0), 1)]
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return tuple(points[turns].ravel().tolist())
