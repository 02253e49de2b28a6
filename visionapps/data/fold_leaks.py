"""What a fold plan has to know of a dataset, and what its folds must not share: likeness, and ground.

Shapes: N photos.
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from visionapps.data.class_dataset import ClassPhoto
from visionapps.data.folding import Box, gap
from visionapps.data.folds import FoldItem, FoldPlan
from visionapps.data.images import read_header
from visionapps.data.likeness import SIDE, near_duplicates, thumbnail
from visionapps.data.object_dataset import ObjectPhoto
from visionapps.data.store import Photo, likeness
from visionapps.errors import DataError
from visionapps.structures import GeoRef

AnyPhoto = Photo | ObjectPhoto | ClassPhoto
_ROWS = 2000  # thumbnails compared with all others at a time: 80 MB for ten thousand photos
_SHARED = 0.01  # of the smaller photo: neighbours on a lattice touch, and rounding of their corners is no overlap
_METRES_PER_DEGREE = 111_320.0  # of latitude
_GEOREFERENCED = (".tif", ".tiff", ".jp2", ".vrt")


class Leak(NamedTuple):
    """Two photos in different folds that should not be."""

    kind: str  # "near_duplicate" or "overlap"
    one: str
    other: str
    amount: float  # likeness, or the share of the smaller photo's ground


def fold_items(photos: Sequence[AnyPhoto], classes: int) -> list[FoldItem]:
    """What a plan has to know of the photos of a dataset of any kind.

    Args:
        photos: of an examination, those that train and those that validate.
        classes: K.
    """
    return [_item(photo, classes) for photo in photos]


def _item(photo: AnyPhoto, classes: int) -> FoldItem:
    window, source = None, photo.source
    if isinstance(photo, Photo):
        amounts = photo.class_pixels
        if photo.name.endswith(f"@{photo.window.row},{photo.window.col}"):
            window = photo.window
    elif isinstance(photo, ObjectPhoto):
        found = photo.objects.labels[~photo.objects.ignored]
        amounts = tuple(np.bincount(found, minlength=classes).tolist())
    else:
        amounts = tuple(int(label == photo.label) for label in range(classes))
        source = photo.name  # of CIFAR all photos lie in one file
    return FoldItem(photo.name, photo.group, photo.size, amounts, source, window)


def pictures(photos: Sequence[AnyPhoto]) -> np.ndarray:
    """(N, SIDE, SIDE) small grey pictures; flat, and so like nothing, where there are none."""
    found = np.zeros((len(photos), SIDE, SIDE), np.float32)
    for place, photo in enumerate(photos):
        if isinstance(photo, ClassPhoto):
            found[place] = thumbnail(photo.image())
        elif values := likeness(photo.folder):
            found[place] = np.array(values, np.float32).reshape(SIDE, SIDE)
    return found


def alike(items: Sequence[FoldItem], thumbnails: np.ndarray, sides: Sequence[object]) -> list[Leak]:
    """Near-duplicates on different sides: the closest one of each photo.

    Args:
        items: photos.
        thumbnails: of them, see pictures.
        sides: N, the fold or the group of each.
    """
    sources = np.unique([item.source for item in items], return_inverse=True)[1]
    names = np.unique([str(side) for side in sides], return_inverse=True)[1]
    found: dict[tuple[str, str], Leak] = {}
    for begin in range(0, len(items), _ROWS):
        rows = slice(begin, begin + _ROWS)
        same = (sources[rows, None] == sources[None]) | (names[rows, None] == names[None])
        for i, j, value in near_duplicates(thumbnails[rows], thumbnails, same):
            one, other = sorted((items[begin + i].name, items[j].name))
            found.setdefault((one, other), Leak("near_duplicate", one, other, value))
    return list(found.values())


def families(items: Sequence[FoldItem], thumbnails: np.ndarray) -> list[tuple[str, str]]:
    """Pairs of photos that look alike and lie in different groups: joined, no two groups have such a pair."""
    group = {item.group: item.group for item in items}
    pairs: list[tuple[str, str]] = []
    while True:
        sides = [group[item.group] for item in items]
        found = alike(items, thumbnails, sides)
        if not found:
            return pairs
        side = dict(zip((item.name for item in items), sides, strict=True))
        for leak in found:
            one, other = _root(group, side[leak.one]), _root(group, side[leak.other])
            group[max(one, other)] = min(one, other)
            pairs.append((leak.one, leak.other))
        for name in group:
            group[name] = _root(group, name)


def _root(group: dict[str, str], name: str) -> str:
    while group[name] != name:
        name = group[name]
    return name


def same_in_table(path: Path, items: Sequence[FoldItem]) -> list[tuple[str, str]]:
    """Pairs of photos of which a table says the same: a CSV with a header, photo names first, their group second.

    Args:
        path: of the table; names with or without folder and suffix, rows of other photos do not matter.
        items: photos, or blocks of photos.

    Raises:
        DataError: it cannot be read, or lacks photos.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row][1:]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a CSV table ({error})") from error
    short = next((row for row in rows if len(row) < 2), None)
    if short is not None:
        raise DataError(f"{path}: the row {','.join(short)!r} has no second column; expected name,group")
    group = {Path(name.strip()).stem: value.strip() for name, value, *_ in rows}
    names = {item.name: Path(item.name.rsplit("@", 1)[0] if item.window else item.name).stem for item in items}
    lacking = sorted({short for short in names.values() if short not in group})
    if lacking:
        raise DataError(f"{path}: {len(lacking)} photos have no row ({', '.join(lacking[:4])}); add them")
    first: dict[str, str] = {}
    pairs = []
    for item in items:
        other = first.setdefault(group[names[item.name]], item.name)
        if other != item.name:
            pairs.append((other, item.name))
    return pairs


def ground_boxes(items: Sequence[FoldItem]) -> dict[str, Box]:
    """Where photos lie, in metres of one frame; blocks and photos without a coordinate system are left out.

    Raises:
        DataError: a header cannot be read.
    """
    georefs = {}
    for item in items:
        if item.window is None and Path(item.source).suffix.lower() in _GEOREFERENCED:
            header = read_header(Path(item.source))
            if header.georef is not None and header.georef.crs is not None:
                georefs[item.name] = (header.georef, (header.height, header.width))
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


def overlaps(items: Sequence[FoldItem], boxes: dict[str, Box], plan: FoldPlan) -> list[Leak]:
    """Photos of different folds that show the same ground: of each the one that shares most with it."""
    placed = [item for item in items if item.name in boxes]
    if not placed:
        return []
    places = np.array([boxes[item.name] for item in placed])
    folds = np.array([plan.folds[item.name] for item in placed])
    areas = (places[:, 2] - places[:, 0]) * (places[:, 3] - places[:, 1])
    found: dict[tuple[str, str], Leak] = {}
    for i, box in enumerate(places):
        near = np.flatnonzero((gap(places, box) < 0) & (folds != folds[i]))
        if not len(near):
            continue
        common = np.minimum(places[near, 2:], box[2:]) - np.maximum(places[near, :2], box[:2])
        shares = common.prod(1) / np.minimum(areas[near], areas[i])
        best = int(shares.argmax())
        if shares[best] > _SHARED:
            one, other = sorted((placed[i].name, placed[int(near[best])].name))
            found.setdefault((one, other), Leak("overlap", one, other, float(shares[best])))
    return list(found.values())


def leaks(plan: FoldPlan, items: Sequence[FoldItem], thumbnails: np.ndarray, boxes: dict[str, Box]) -> list[Leak]:
    """What a model of the plan would see of photos that it is judged on: near-duplicates first, then common ground.

    Args:
        plan: of the items; photos that it keeps in a buffer train nobody.
        items: all photos of the dataset.
        thumbnails: of them, see pictures.
        boxes: where they lie, see ground_boxes.
    """
    found = alike(items, thumbnails, [plan.folds[item.name] for item in items]) + overlaps(items, boxes, plan)
    return [
        leak
        for leak in found
        if plan.saw(plan.folds[leak.one], leak.other) or plan.saw(plan.folds[leak.other], leak.one)
    ]
