"""The detections of all tiles of an image as the objects of the image, each of them once.

Shapes: N boxes, M objects, T tiles, H W image.

Every step goes through boxes in an order that their values decide, best first and ties by coordinates, so that the
result does not depend on the order in which tiles come; and looks only at boxes nearby, so that the time grows with the
number of boxes and not with its square.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from visionapps.errors import ConfigError, DataError
from visionapps.inference import merge_kernels
from visionapps.inference.detecting_masks import union
from visionapps.inference.merge_kernels import new_grid, suppress
from visionapps.inference.seam_kernels import Rules, Views, find_explained, find_pairs, join
from visionapps.objects import Objects, joined
from visionapps.windows import Window

How = Literal["nms", "wbf"]
_REACH = (0.05, 16.0)  # of a cut box: the share of its side by which it may miss the edge, and at most so many pixels
_COVER = 0.8  # of a cut box; what surer boxes cover to that share is a part of them, however badly it was drawn


@dataclass(frozen=True)
class Merging:
    """How detections of overlapping tiles become objects.

    Args:
        how: "nms" keeps the best of boxes that overlap; "wbf" averages them (weighted boxes fusion), which gives better
            places where several tiles see an object whole.
        iou: boxes of one class that overlap by more are one object, in (0, 1].
        join_cut: drop what the edge of a tile has left of an object that another tile saw whole, and join the parts of
            an object that no tile saw whole.
        agree: IoU that a cut box must have with what its tile shows of the larger object, in (0, 1].
        edge: pixels by which a box may miss the edge that cuts it, at least 0; boxes larger than 20 times that may miss
            it by a twentieth of their side.
    """

    how: How = "nms"
    iou: float = 0.5
    join_cut: bool = True
    agree: float = 0.5
    edge: float = 2.0

    def __post_init__(self) -> None:
        if self.how not in get_args(How):
            raise ConfigError(f"merging: {self.how!r} is not known; use {' or '.join(get_args(How))}")
        if not (0 < self.iou <= 1 and 0 < self.agree <= 1 and 0 <= self.edge < np.inf):
            raise ConfigError(
                f"merging: iou {self.iou} and agree {self.agree} must be in (0, 1] and edge {self.edge} at least 0"
            )


class Fused(NamedTuple):
    """Averages of boxes, numbered by their best box."""

    boxes: np.ndarray  # (M, 4)
    scores: np.ndarray  # (M,) means
    labels: np.ndarray  # (M,)
    owner: np.ndarray  # (N,) the number of the average that each box belongs to


def merge_tiles(
    parts: Sequence[tuple[Window, Objects]], shape: tuple[int, int], num_classes: int, merging: Merging | None = None
) -> Objects:
    """The objects of an image from those of its tiles.

    An object that several tiles have seen gets the best of its scores, by "wbf" their mean. A group of parts gets the
    hull of their boxes, the union of their masks and the best of their scores. What one tile has seen stays as it is.

    Args:
        parts: tiles and what was found in each, in pixels of the image; tiles may reach beyond it, and one may come
            in several parts.
        shape: (H, W) of the image.
        num_classes: K.
        merging: how; None: NMS at IoU 0.5.

    Returns:
        (M,) objects, best first, clipped to the image; masks if all parts have them.

    Raises:
        DataError: detections without scores, with labels that are no class, or with numbers that are not finite.
    """
    merging = merging or Merging()
    found, tiles = _gathered(parts, shape, num_classes)
    if not len(found):
        return found
    if (tiles == tiles[0]).all():  # the detector itself has seen to it that every object comes once
        return found
    if merging.join_cut:
        found = _without_cuts(found, tiles, shape, merging)
    if merging.how == "wbf":
        return _averaged(found, merging.iou)
    return found.take(nms(found.boxes, _scores(found), found.labels, merging.iou))


def nms(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, iou: float) -> np.ndarray:
    """Greedy suppression of boxes that overlap a better one of their class, as torchvision's in float64.

    Args:
        boxes: (N, 4) x0 y0 x1 y1, finite.
        scores: (N,); where they are equal, the box further left, then further up, is the better one.
        labels: (N,) integers >= 0.
        iou: boxes that overlap by more are one object, in (0, 1].

    Returns:
        (M,) indices of the boxes that stay, best first.
    """
    order = _best_first(boxes, scores, labels)
    kept = np.empty(len(order), bool)
    suppress(_rows(boxes[order]), labels[order].astype(np.int64), float(iou), kept, new_grid(len(order)))
    return np.asarray(order[kept])


def fuse(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, iou: float) -> Fused:
    """Weighted boxes fusion of the boxes of each class.

    Source: Solovyev, Wang and Gabruseva, Weighted boxes fusion: ensembling boxes from different object detection
    models, Image and Vision Computing 107, 2021. Scores are not lowered where few tiles have seen an object, as the
    paper does for models: outside of the overlaps one tile is all there are.

    Args:
        boxes: (N, 4) x0 y0 x1 y1, finite and not empty.
        scores: (N,) in [0, 1], the weights.
        labels: (N,) integers >= 0.
        iou: a box joins the average that it overlaps most, if by more than this, in (0, 1].
    """
    order, count = _best_first(boxes, scores, labels), len(boxes)
    owner, averages = np.empty(count, np.int64), np.empty((count, 4))
    wanted = _rows(boxes[order]), np.ascontiguousarray(scores[order], np.float64), labels[order].astype(np.int64)
    number = merge_kernels.fuse(*wanted, float(iou), owner, averages, new_grid(count))
    sizes = np.bincount(owner, minlength=number)
    means = np.bincount(owner, wanted[1], minlength=number) / np.maximum(1, sizes)
    classes = np.zeros(number, np.int64)
    classes[owner] = wanted[2]
    placed = np.empty(count, np.int64)
    placed[order] = owner
    return Fused(averages[:number], means, classes, placed)


def _gathered(
    parts: Sequence[tuple[Window, Objects]], shape: tuple[int, int], num_classes: int
) -> tuple[Objects, np.ndarray]:
    """All detections that lie in the image, best first, and the tile (x0 y0 x1 y1) of each."""
    if any(objects.scores is None for _, objects in parts):
        raise DataError("merging: the objects of a tile have no scores; give detections, not annotations")
    parts = [(window, objects) for window, objects in parts if len(objects)]
    if not parts:
        return Objects.none(scored=True), np.zeros((0, 4))
    found = joined([objects for _, objects in parts])
    if not (np.isfinite(found.boxes).all() and np.isfinite(_scores(found)).all()):
        raise DataError(
            "merging: boxes or scores are not finite numbers; the weights are damaged, or the precision is too low for "
            "them (use fp32)"
        )
    if found.labels.min() < 0 or found.labels.max() >= num_classes:
        wrong = found.labels.min() if found.labels.min() < 0 else found.labels.max()
        raise DataError(f"merging: there is a label {wrong}, but {num_classes} classes from 0 on")
    frames = np.array([(w.col, w.row, w.col_end, w.row_end) for w, _ in parts], np.float64)
    tiles = np.repeat(frames, [len(objects) for _, objects in parts], axis=0)
    height, width = shape
    boxes = found.boxes.clip(0, [width, height, width, height])
    inside = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
    order = inside[_best_first(boxes[inside], _scores(found)[inside], found.labels[inside], tiles[inside])]
    areas = {} if found.masks is None else {"areas": found.areas}  # of boxes they follow from what is clipped
    clipped = Objects(boxes, found.labels, found.scores, masks=found.masks, **areas)
    return clipped.take(order), tiles[order]


def _without_cuts(found: Objects, tiles: np.ndarray, shape: tuple[int, int], merging: Merging) -> Objects:
    """Without the parts of objects: dropped where the whole was seen, joined where it was not."""
    rules = Rules(merging.agree, _COVER, merging.edge)
    reach = np.minimum((found.boxes[:, 2:] - found.boxes[:, :2]) * _REACH[0], _REACH[1]).clip(merging.edge)
    cut = _cut(found.boxes, tiles, shape, reach)
    found, tiles, cut, reach = _unexplained(found, tiles, cut, reach, rules)
    parts = np.flatnonzero(cut.any(1))
    owner = _groups(_views(found, tiles, cut, parts), reach[parts], rules)
    sizes = np.bincount(owner, minlength=len(parts))
    groups = [parts[owner == first] for first in np.flatnonzero(sizes > 1)]
    if not groups:
        return found
    alone = np.ones(len(found), bool)
    alone[np.concatenate(groups)] = False
    whole = [_hull(found.take(group)) for group in groups]
    # What is whole now explains parts that were drawn too badly to be joined.
    nowhere = np.tile([-np.inf, -np.inf, np.inf, np.inf], (len(groups), 1))
    found = joined([found.take(alone), *whole])
    tiles, cut = np.concatenate([tiles[alone], nowhere]), np.concatenate([cut[alone], np.zeros((len(groups), 4), bool)])
    return _unexplained(found, tiles, cut, np.zeros((len(found), 2)), rules)[0]


def _cut(boxes: np.ndarray, tiles: np.ndarray, shape: tuple[int, int], reach: np.ndarray) -> np.ndarray:
    """(N, 4) bool: which sides of its tile a box ends at, left, top, right, bottom, where the image goes on."""
    height, width = shape
    inner = (tiles > 0) & (tiles < [np.inf, np.inf, width, height])
    near = np.concatenate([boxes[:, :2] - tiles[:, :2] <= reach, tiles[:, 2:] - boxes[:, 2:] <= reach], axis=1)
    return np.asarray(inner & near)


def _unexplained(
    found: Objects, tiles: np.ndarray, cut: np.ndarray, reach: np.ndarray, rules: Rules
) -> tuple[Objects, np.ndarray, np.ndarray, np.ndarray]:
    """What no box of another tile explains."""
    dropped = np.zeros(len(found), bool)
    find_explained(_views(found, tiles, cut), rules, new_grid(len(found)), dropped)
    return found.take(~dropped), tiles[~dropped], cut[~dropped], reach[~dropped]


def _groups(views: Views, reach: np.ndarray, rules: Rules) -> np.ndarray:
    """(N,) the first box of the group that each box is joined to, itself if none."""
    owner, grid = np.arange(len(views.labels)), new_grid(len(views.labels))
    if not len(owner):
        return owner
    none = np.zeros((0, 2), np.int64), np.zeros(0)
    count = find_pairs(views, reach, rules, grid, *none)
    pairs, qualities = np.empty((count, 2), np.int64), np.empty(count)
    find_pairs(views, reach, rules, grid, pairs, qualities)
    surest = np.lexsort((pairs[:, 1], pairs[:, 0], -qualities))
    join(views, pairs[surest], rules, owner, views.boxes.copy())
    return owner


def _views(found: Objects, tiles: np.ndarray, cut: np.ndarray, which: np.ndarray | None = None) -> Views:
    index = slice(None) if which is None else which
    boxes, frames = (np.ascontiguousarray(array[index], np.float64) for array in (found.boxes, tiles))
    return Views(boxes, frames, np.ascontiguousarray(cut[index]), found.labels[index], _scores(found)[index])


def _hull(parts: Objects) -> Objects:
    """The parts of one object as the object, with the best of their scores."""
    box = np.concatenate([parts.boxes[:, :2].min(0), parts.boxes[:, 2:].max(0)])
    score = _scores(parts).max(keepdims=True)
    if parts.masks is None:
        return Objects(box, parts.labels[:1], score)
    mask, area = union(parts.masks)
    return Objects(box, parts.labels[:1], score, areas=np.array([area]), masks=(mask,))


def _averaged(found: Objects, iou: float) -> Objects:
    """Weighted boxes fusion; an average has the mask of its best box."""
    fused = fuse(found.boxes, _scores(found), found.labels, iou)
    best = np.full(len(fused.boxes), len(found))
    np.minimum.at(best, fused.owner, np.arange(len(found)))  # objects stand best first
    parts: dict[str, Any] = {}
    if found.masks is not None:
        parts = {"masks": tuple(found.masks[i] for i in best), "areas": found.areas[best]}
    merged = Objects(fused.boxes, fused.labels, fused.scores, **parts)
    return merged.take(_best_first(merged.boxes, fused.scores, fused.labels))


def _best_first(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, tiles: np.ndarray | None = None
) -> np.ndarray:
    """Indices by falling score; ties by place, label and, where there are some, tile."""
    boxes = boxes.reshape(-1, 4)
    ties = [] if tiles is None else [tiles[:, 1], tiles[:, 0]]
    return np.lexsort((*ties, labels, *boxes.T[::-1], -scores))


def _scores(found: Objects) -> np.ndarray:
    assert found.scores is not None
    return found.scores


def _rows(boxes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(boxes, np.float64).reshape(-1, 4)
