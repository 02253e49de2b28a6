"""What a fold plan has to know of a dataset, and what its folds must not share: likeness, and ground.

Shapes: N photos.
"""

import csv
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from visionapps.data.class_dataset import ClassPhoto
from visionapps.data.folding import Box, gap
from visionapps.data.folds import FoldItem, FoldPlan
from visionapps.data.likeness import SIDE, near_duplicates, thumbnail
from visionapps.data.object_dataset import ObjectPhoto
from visionapps.data.store import Photo, likeness
from visionapps.errors import DataError
from visionapps.files import IMAGE_SUFFIXES

AnyPhoto = Photo | ObjectPhoto | ClassPhoto
_ROWS = 2000  # thumbnails compared with all others at a time: 80 MB for ten thousand photos
_SHARED = 0.01  # of the smaller photo: neighbours on a lattice touch, and rounding of their corners is no overlap


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


def alike(
    items: Sequence[FoldItem], thumbnails: np.ndarray, sides: Sequence[object], plan: FoldPlan | None = None
) -> list[Leak]:
    """Near-duplicates on different sides: the closest one of each photo.

    Args:
        items: photos.
        thumbnails: of them, see pictures.
        sides: N, the fold or the group of each.
        plan: only pairs count of which one teaches the model that is judged on the other; None: all.
    """
    touched = None if plan is None else _Touched(plan, items)
    sources = np.unique([item.source for item in items], return_inverse=True)[1]
    names = np.unique([str(side) for side in sides], return_inverse=True)[1]
    found: dict[tuple[str, str], Leak] = {}
    for begin in range(0, len(items), _ROWS):
        rows = slice(begin, begin + _ROWS)
        same = (sources[rows, None] == sources[None]) | (names[rows, None] == names[None])
        if touched is not None:
            same |= ~touched.pairs(rows)
        for i, j, value in near_duplicates(thumbnails[rows], thumbnails, same):
            one, other = sorted((items[begin + i].name, items[j].name))
            found.setdefault((one, other), Leak("near_duplicate", one, other, value))
    return list(found.values())


class _Touched:
    """Of which pairs of photos one teaches the model that is judged on the other; those in a buffer teach nobody."""

    def __init__(self, plan: FoldPlan, items: Sequence[FoldItem]) -> None:
        self._saw = np.array([[plan.saw(fold, item.name) for item in items] for fold in range(plan.k)])  # (k, N)
        self._folds = np.array([plan.folds[item.name] for item in items])

    def pairs(self, rows: slice) -> np.ndarray:
        """(R, N) bool of some of the photos with all."""
        return np.asarray(self._saw[self._folds[rows]] | self._saw[:, rows][self._folds].T)


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
        path: of the table. A row may name a photo with its folder and image suffix; one that names it exactly counts
            before others. Rows of other photos do not matter. A row may also name a block, as plans do.
        items: photos, or blocks of photos.

    Raises:
        DataError: it cannot be read, lacks photos or a header, or puts a photo into no group or into two.
    """
    head, rows = _table(path)
    exact: dict[str, set[str]] = {}
    loose: dict[str, set[str]] = {}
    for name, value in rows:
        exact.setdefault(name, set()).add(value)
        parts = _bare(name).split("/")
        for begin in range(len(parts)):
            loose.setdefault("/".join(parts[begin:]), set()).add(value)
    named = {item.name: _names(item) for item in items}
    found = {
        item: next((told for name in names for told in (exact.get(name), loose.get(name)) if told), set())
        for item, names in named.items()
    }
    lacking = sorted({named[item][-1] for item, told in found.items() if not told})
    if {head[0], _bare(head[0]).rsplit("/", 1)[-1]} & set(lacking):
        raise DataError(
            f"{path}: the first line ({','.join(head)}) is a photo, but a header belongs there; put photo,group above"
        )
    if lacking:
        raise DataError(f"{path}: {len(lacking)} photos have no row ({', '.join(lacking[:4])}); add them")
    torn = next((item for item in sorted(found) if len(found[item]) > 1), None)
    if torn is not None:
        raise DataError(
            f"{path}: {named[torn][-1]} has two groups ({', '.join(sorted(found[torn])[:4])}); leave one row of it, or "
            "name photos with their folders"
        )
    first: dict[str, str] = {}
    pairs = []
    for item, (group,) in found.items():
        other = first.setdefault(group, item)
        if other != item:
            pairs.append((other, item))
    return pairs


def _names(item: FoldItem) -> tuple[str, ...]:
    """What a table may call a photo or block: the block first, then its photo."""
    return (item.name,) if item.window is None else (item.name, item.name.rsplit("@", 1)[0])


def _bare(name: str) -> str:
    """A name in a table without the suffix of an image file; other dots belong to it: S2.2020."""
    bare = PurePosixPath(name.replace("\\", "/"))
    return str(bare.with_suffix("") if bare.suffix.lower() in IMAGE_SUFFIXES else bare)


def _table(path: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """The first line of a CSV, and name and group of the others.

    Raises:
        DataError: it cannot be read, or a row lacks one of them.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [[cell.strip() for cell in row] for row in csv.reader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a CSV table ({error})") from error
    rows = [row for row in lines if any(row)]
    for row in rows[1:]:
        if len(row) < 2:
            raise DataError(f"{path}: the row {','.join(row)!r} has no second column; expected name,group")
        if not (row[0] and row[1]):
            raise DataError(
                f"{path}: the row {','.join(row)!r} has no {'group' if row[0] else 'photo'}; a photo that stands alone "
                "needs a group of its own"
            )
    return rows[0] if rows else [""], [(row[0], row[1]) for row in rows[1:]]


def overlaps(items: Sequence[FoldItem], boxes: dict[str, Box], plan: FoldPlan) -> list[Leak]:
    """Photos that teach what is judged on others of the same ground: of each the one that shares most with it."""
    placed = [item for item in items if item.name in boxes]
    if not placed:
        return []
    places = np.array([boxes[item.name] for item in placed])
    sources = np.unique([item.source for item in placed], return_inverse=True)[1]
    areas = (places[:, 2] - places[:, 0]) * (places[:, 3] - places[:, 1])
    touched = _Touched(plan, placed)
    found: dict[tuple[str, str], Leak] = {}
    for i, box in enumerate(places):
        # Blocks of one photo touch, and their boxes may overlap where the photo is turned or its frame is another one.
        torn = touched.pairs(slice(i, i + 1))[0]
        near = np.flatnonzero((gap(places, box) < 0) & torn & (sources != sources[i]))
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
    sides = [plan.folds[item.name] for item in items]
    return alike(items, thumbnails, sides, plan) + overlaps(items, boxes, plan)
