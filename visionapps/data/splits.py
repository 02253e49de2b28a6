"""Groups of photos, and a seeded division of whole groups into training and validation."""

import difflib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, cast

import numpy as np

from visionapps.data.dataset import Split
from visionapps.data.folds import FoldPlan
from visionapps.data.store import Photo
from visionapps.errors import DataError
from visionapps.structures import GeoRef
from visionapps.windows import Window

_TRIES = 100  # draws among which the first that shows every class on both sides wins
_TOLERANCE = 0.5  # such a draw may miss the wanted share by half of it
_METRES_PER_DEGREE = 111_320.0  # of latitude


class _Named(Protocol):
    @property
    def name(self) -> str: ...


P = TypeVar("P", bound=_Named)


@dataclass(frozen=True)
class Weight:
    """What a group brings to the side it lands on."""

    pixels: int
    class_pixels: tuple[int, ...]  # (K,)

    def __add__(self, other: "Weight") -> "Weight":
        both = zip(self.class_pixels, other.class_pixels, strict=True)
        return Weight(self.pixels + other.pixels, tuple(a + b for a, b in both))


def group_name(split: Split, name: str, size: tuple[int, int], georef: GeoRef | None = None) -> str:
    """The group that a photo belongs to.

    Args:
        split: how groups are formed.
        name: stem of the image.
        size: (H, W) of the image file.
        georef: where the image lies; needed for block_m.

    Raises:
        DataError: the expression does not match, or the photo lies nowhere though block_m wants to know.
    """
    if split.group is not None:
        try:
            match = re.search(split.group, name)
        except re.error as error:
            raise DataError(f"split.group: {split.group!r} is no regular expression ({error}); mend it") from error
        if match is None:
            raise DataError(f"split.group: {split.group!r} is not found in the name {name!r}; mend it, or rename")
        return (match.group(1) if match.re.groups else match.group()) or match.group()
    if split.block_m is not None:
        if georef is None:
            raise DataError(f"{name}: split.block_m needs a georeferenced image, but it has no CRS; use group instead")
        return _map_block(georef, size, split.block_m)
    return name


def cut_blocks(height: int, width: int, block_px: int) -> list[Window]:
    """Cut a photo into blocks of block_px; a rest of less than half a block joins the last one."""

    def edges(length: int) -> list[int]:
        count = max(1, round(length / block_px))
        return [*(i * block_px for i in range(count)), length]

    rows, cols = edges(height), edges(width)
    return [
        Window(top, left, bottom - top, right - left)
        for top, bottom in itertools.pairwise(rows)
        for left, right in itertools.pairwise(cols)
    ]


def divide(split: Split, groups: Mapping[str, Weight], *, blocks: bool = False) -> frozenset[str]:
    """Choose the groups that validate.

    Shuffled groups are taken as long as that brings the share of pixels closer to val_fraction; of many such draws the
    first is kept that shows every class on both sides as far as any does.

    Args:
        split: the share or the names that validate, and the seed.
        groups: what each group holds.
        blocks: photos can be cut into blocks, which is told where there are too few groups.

    Returns:
        Names of the validation groups.

    Raises:
        DataError: a named group does not exist, or one side would be empty.
    """
    names = sorted(groups)
    if split.plan is not None:
        return _planned(split).validating(split.fold, names)
    if split.val_groups:
        return _named(split, names)
    if split.val_fraction in (0, 1):
        return frozenset(names if split.val_fraction else ())
    if len(names) < 2:
        cut = "cut blocks with split.block_px, " if blocks else ""
        raise DataError(
            f"split: all usable photos are one group ({', '.join(names)}), but training and validation need one each; "
            f"change split.group, {cut}or set split.val_fraction to 0"
        )
    pixels = np.array([groups[n].pixels for n in names], np.float64)
    present = np.array([groups[n].class_pixels for n in names]) > 0  # (G, K)
    generator = np.random.default_rng(split.seed)
    best: tuple[tuple[int, bool, float], np.ndarray] | None = None
    for _ in range(_TRIES):
        chosen = _draw(pixels, split.val_fraction * pixels.sum(), generator)
        share = pixels[chosen].sum() / pixels.sum()
        lacking = int((present.any(0) & ~(present[chosen].any(0) & present[~chosen].any(0))).sum())
        miss = abs(share - split.val_fraction)
        off = bool(miss > _TOLERANCE * split.val_fraction)
        score = (lacking, off, miss if off else 0.0)
        if best is None or score < best[0]:
            best = (score, chosen)
    assert best is not None
    return frozenset(name for name, validates in zip(names, best[1].tolist(), strict=True) if validates)


def beyond_buffer(split: Split, train: Sequence[P]) -> list[P]:
    """The training photos of a fold without those that its plan keeps as a buffer around what validates.

    Args:
        split: names a plan; without one, nothing is left out.
        train: photos, or blocks of photos, of which a part may lie in the buffer.

    Raises:
        DataError: the plan cannot be read, or all of them lie in the buffer.
    """
    if split.plan is None:
        return list(train)
    plan = _planned(split)
    excluded, trimmed = frozenset(plan.excluded.get(split.fold, ())), plan.trimmed.get(split.fold, {})
    kept = [photo for photo in train if photo.name not in excluded]
    if train and not kept:
        raise DataError(f"{split.plan}: all photos that train in fold {split.fold} lie in the buffer; make it smaller")
    for place, photo in enumerate(kept):
        if isinstance(photo, Photo) and photo.name in trimmed:
            kept[place] = cast(P, photo.cut(trimmed[photo.name]))
    return kept


def _planned(split: Split) -> FoldPlan:
    """The plan of a split, made for groups that are formed in the same way."""
    assert split.plan is not None
    plan = FoldPlan.load(Path(split.plan))
    for key in ("group", "block_px", "block_m"):
        own, planned = getattr(split, key), plan.rule.get(key)
        if own != planned:
            raise DataError(
                f"{split.plan}: was made with split.{key} {planned}, but the dataset has {own}; set split.{key} to "
                f"{'null' if planned is None else repr(planned)}, or make a new plan"
            )
    return plan


def _named(split: Split, names: list[str]) -> frozenset[str]:
    for wanted in split.val_groups:
        if wanted not in names:
            close = difflib.get_close_matches(wanted, names, 3) or names[:8]
            raise DataError(f"split.val_groups: no group is called {wanted!r}; there are {', '.join(close)}, ...")
    if len(set(split.val_groups)) == len(names):
        raise DataError(f"split.val_groups: names all {len(names)} groups, so nothing is left for training; name fewer")
    return frozenset(split.val_groups)


def _draw(pixels: np.ndarray, target: float, generator: np.random.Generator) -> np.ndarray:
    """(G,) bool: at least one group and not all of them."""
    chosen = np.zeros(len(pixels), bool)
    total = 0.0
    order = generator.permutation(len(pixels))
    for index in order:
        if abs(total + pixels[index] - target) < abs(total - target):
            chosen[index] = True
            total += pixels[index]
    if not chosen.any():  # every group is larger than twice the wanted share
        chosen[order[0]] = True
    if chosen.all():
        chosen[order[-1]] = False
    return chosen


def _map_block(georef: GeoRef, size: tuple[int, int], block_m: float) -> str:
    """The square of the map that holds the centre of an image."""
    import rasterio.crs

    crs = rasterio.crs.CRS.from_wkt(georef.crs)
    a, b, c, d, e, f = georef.transform
    row, col = size[0] / 2, size[1] / 2
    x, y = a * col + b * row + c, d * col + e * row + f
    if crs.is_geographic:
        down = math.floor(y * _METRES_PER_DEGREE / block_m)
        # Width of a degree at the middle of the row of squares, so that all squares of a row agree.
        latitude = (down + 0.5) * block_m / _METRES_PER_DEGREE
        across = math.floor(x * _METRES_PER_DEGREE * math.cos(math.radians(latitude)) / block_m)
    else:
        factor = crs.linear_units_factor[1]
        across, down = math.floor(x * factor / block_m), math.floor(y * factor / block_m)
    code = crs.to_epsg()
    return f"{code or 'map'}:{across},{down}"
