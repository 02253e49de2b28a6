"""Truth and detections of many images as flat arrays: what every score of detectors is computed from.

Shapes: I images, K classes, G true objects, D detections.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from visionapps.errors import DataError
from visionapps.masks import CocoRle
from visionapps.objects import Objects

Kind = Literal["box", "mask"]
_COLUMNS = ("image", "boxes", "labels", "areas", "crowd", "ignored", "scores")


@dataclass(frozen=True, eq=False)
class Rows:
    """The objects of all images one after the other.

    Attributes:
        image: (N,) int64, index of the image, ascending.
        boxes: (N, 4) float64, x0 y0 x1 y1.
        labels: (N,) int64 in [0, K).
        areas: (N,) float64 pixels: as annotated; of detections, of the box or the mask.
        crowd: (N,) bool.
        ignored: (N,) bool: crowds and difficult ones.
        scores: (N,) float64; zeros for the truth.
        masks: one per object where masks are compared.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray
    scores: np.ndarray
    masks: tuple[CocoRle, ...] | None

    def __len__(self) -> int:
        return len(self.image)

    @property
    def corners_and_sides(self) -> np.ndarray:
        """(N, 4) x, y, width, height as COCO files have them.

        Rounded to a billionth of a pixel: x + w - x is not w in the last digits, and some IoUs lie on a threshold.
        """
        return np.concatenate([self.boxes[:, :2], np.round(self.boxes[:, 2:] - self.boxes[:, :2], 9)], axis=1)

    def take(self, index: np.ndarray) -> "Rows":
        """Some of them, by (M,) places."""
        parts = {name: getattr(self, name)[index] for name in _COLUMNS}
        return Rows(**parts, masks=None if self.masks is None else tuple(self.masks[i] for i in index))

    def firsts(self, images: int) -> np.ndarray:
        """(I + 1,) where the rows of each image begin."""
        return np.searchsorted(self.image, np.arange(images + 1))


@dataclass(frozen=True, eq=False)
class ObjectTable:
    """What is to be found and what was found. Detections of an image stand best first, equal scores in given order.

    Attributes:
        truth: G rows, in the order given.
        found: D rows.
        source: (D,) int64, the place that each detection had in its image before they were put in order.
        images: I.
        num_classes: K.
        kind: whether boxes or masks are compared.
    """

    truth: Rows
    found: Rows
    source: np.ndarray
    images: int
    num_classes: int
    kind: Kind

    @property
    def true_counts(self) -> np.ndarray:
        """(K,) objects of each class that are to be found."""
        return np.bincount(self.truth.labels[~self.truth.ignored], minlength=self.num_classes)

    @property
    def found_counts(self) -> np.ndarray:
        """(K,) detections of each class."""
        return np.bincount(self.found.labels, minlength=self.num_classes)

    @property
    def places(self) -> np.ndarray:
        """(D,) how many detections of its class in its image are before each one: caps compare with it."""
        group = self.found.image * self.num_classes + self.found.labels
        order = np.argsort(group, kind="stable")
        ordered = group[order]
        begins = np.flatnonzero(np.diff(ordered, prepend=-1))
        places = np.empty(len(group), np.int64)
        places[order] = np.arange(len(group)) - np.repeat(begins, np.diff(begins, append=len(group)))
        return places

    def take(self, images: np.ndarray) -> "ObjectTable":
        """The table of some images: (J,) ascending indices, which become 0 to J - 1."""
        inside = np.isin(self.found.image, images)
        truth = self.truth.take(np.flatnonzero(np.isin(self.truth.image, images)))
        found = self.found.take(np.flatnonzero(inside))
        truth = replace(truth, image=np.searchsorted(images, truth.image))
        found = replace(found, image=np.searchsorted(images, found.image))
        return ObjectTable(truth, found, self.source[inside], len(images), self.num_classes, self.kind)


def make_table(
    truth: Sequence[Objects], found: Sequence[Objects], num_classes: int, *, kind: Kind = "box"
) -> ObjectTable:
    """Check truth and detections of the same images, and lay them out.

    Args:
        truth: the annotated objects of each image.
        found: the detections of each image, in the same order of images.
        num_classes: K.
        kind: compare boxes, or masks.

    Raises:
        DataError: lists of different length, detections without scores, a label outside the classes, a number that is
            not finite, an inverted box, masks missing or of different sizes. The message tells the place of the image
            in the lists.
    """
    if len(truth) != len(found):
        raise DataError(
            f"scores: truth of {len(truth)} images, but detections of {len(found)}; give one entry per image in both, "
            "in the same order, an empty one where nothing was found"
        )
    for i, objects in enumerate(found):
        if objects.scores is None and len(objects):
            raise DataError(
                f"scores: detections of image {i}: {len(objects)} objects without scores; only what has scores can be "
                "judged as detections"
            )
    true, detected = _rows(truth, kind), _rows(found, kind)
    _check(true, "truth", num_classes)
    _check(detected, "detections", num_classes)
    if kind == "mask":
        _check_sizes(true, detected)
    order = np.lexsort((-detected.scores, detected.image))
    source = order - detected.firsts(len(found))[detected.image]
    ranked = detected.take(order)
    return ObjectTable(true, _as_found(ranked, kind), source, len(truth), num_classes, kind)


def _rows(objects: Sequence[Objects], kind: Kind) -> Rows:
    def column(name: str, empty: np.ndarray) -> np.ndarray:
        return np.concatenate([empty, *(getattr(o, name) for o in objects if len(o))])

    counts = [len(o) for o in objects]
    scores = [np.zeros(len(o)) if o.scores is None else o.scores for o in objects]
    none, no = np.zeros(0), np.zeros(0, bool)
    crowd = column("crowd", no)
    return Rows(
        image=np.repeat(np.arange(len(objects)), counts),
        boxes=column("boxes", np.zeros((0, 4))),
        labels=column("labels", np.zeros(0, np.int64)),
        areas=column("areas", none),
        crowd=crowd,
        ignored=crowd | column("difficult", no),
        scores=np.concatenate([none, *scores]),
        masks=_masks(objects) if kind == "mask" else None,
    )


def _masks(objects: Sequence[Objects]) -> tuple[CocoRle, ...]:
    for i, one in enumerate(objects):
        if one.masks is None and len(one):
            raise DataError(
                f"scores: image {i}: {len(one)} {'true objects' if one.scores is None else 'detections'} without "
                "masks; compare boxes instead, or give masks"
            )
    return tuple(mask for one in objects for mask in one.masks or ())


def _as_found(rows: Rows, kind: Kind) -> Rows:
    """Detections are measured by what is compared, and none of them is ignored beforehand."""
    if kind == "mask":
        from pycocotools import mask as coco

        masks = list(rows.masks or ())
        # pycocotools overflows on more than 255 masks at a time.
        parts = [coco.area(masks[i : i + 128]) for i in range(0, len(masks), 128)]
        areas = np.concatenate([np.zeros(0), *parts])
    else:
        areas = rows.corners_and_sides[:, 2:].prod(1)
    return replace(rows, areas=areas, crowd=np.zeros(len(rows), bool), ignored=np.zeros(len(rows), bool))


def _check(rows: Rows, what: str, num_classes: int) -> None:
    strange = np.flatnonzero((rows.labels < 0) | (rows.labels >= num_classes))
    if len(strange):
        first = strange[0]
        raise DataError(
            f"scores: {what} of image {rows.image[first]}: label {rows.labels[first]}, but there are {num_classes} "
            f"classes; expected labels from 0 to {num_classes - 1}"
        )
    finite = np.isfinite(rows.boxes).all(1) & np.isfinite(rows.scores) & ~np.isnan(rows.areas)
    if not finite.all():
        first = np.flatnonzero(~finite)[0]
        raise DataError(
            f"scores: {what} of image {rows.image[first]}: box {rows.boxes[first].tolist()} with area "
            f"{rows.areas[first]} and score {rows.scores[first]} must be finite numbers; drop it, or mend its source"
        )
    inverted = np.flatnonzero((rows.boxes[:, 2:] < rows.boxes[:, :2]).any(1))
    if len(inverted):
        first = inverted[0]
        raise DataError(
            f"scores: {what} of image {rows.image[first]}: box {rows.boxes[first].tolist()} is inverted; x1 and y1 "
            "must not lie before x0 and y0: drop it, or mend its source"
        )


def _check_sizes(truth: Rows, found: Rows) -> None:
    sizes: dict[int, tuple[int, int]] = {}
    for rows in (truth, found):
        for image, mask in zip(rows.image.tolist(), rows.masks or (), strict=True):
            height, width = int(mask["size"][0]), int(mask["size"][1])
            known = sizes.setdefault(image, (height, width))
            if known != (height, width):
                raise DataError(
                    f"scores: image {image}: masks of {known[0]} x {known[1]} and {height} x {width} px (H x W); all "
                    "masks of an image must have its size: scale predictions of a resized image back first"
                )
