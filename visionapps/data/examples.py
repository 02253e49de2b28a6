"""One training example of a detector, and the exact changes of frame that all augmentation is made of.

An example is a picture with what lies in it. Cropping, scaling by a factor, padding and the eight symmetries map its
boxes exactly: a pixel edge at x lies at ``factor * x + shift`` afterwards, never at the nearest rounded size.
Shapes: h w picture, C bands, N objects, P proposals.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import torch

from visionapps.boxes import Batch, Targets
from visionapps.data.transforms import by_bands, rearrange
from visionapps.errors import DataError
from visionapps.masks import CocoRle, coco_to_runs
from visionapps.objects import Objects
from visionapps.windows import Window

SLIVER = 0.5  # px: what a cut leaves of a box is gone when a side of it is below


class Photo(Protocol):
    """What examples need of a stored photo; see visionapps.data.object_dataset.ObjectPhoto."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> tuple[int, int]: ...  # (H, W)
    @property
    def objects(self) -> Objects: ...
    @property
    def proposals(self) -> np.ndarray | None: ...  # (P, 4)
    def image(self, window: Window) -> np.ndarray: ...  # (h, w, C), window inside the photo


@dataclass(frozen=True, eq=False)
class Example:
    """A picture and its objects, whose boxes never leave the picture.

    Attributes:
        image: (h, w, C) raw pixels.
        boxes: (N, 4) float64, x0 y0 x1 y1 in pixels of the picture, half-open.
        labels: (N,) int64.
        ignore: (N,) bool, crowd and difficult ones.
        left: (N,) share of each object in (0, 1] that is left of it after all cuts.
        masks: (N, h, w) uint8 0 or 1; None: boxes only.
        proposals: (P, 4) float64; None: there are none.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    left: np.ndarray
    masks: np.ndarray | None = None
    proposals: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        return self.image.shape[0], self.image.shape[1]

    def take(self, which: np.ndarray) -> "Example":
        """The same picture with some of its objects: (M,) indices or an (N,) bool mask."""
        masks = None if self.masks is None else self.masks[which]
        return replace(
            self,
            boxes=self.boxes[which],
            labels=self.labels[which],
            ignore=self.ignore[which],
            left=self.left[which],
            masks=masks,
        )

    def redrawn(
        self, image: np.ndarray, boxes: np.ndarray, masks: np.ndarray | None, proposals: np.ndarray | None
    ) -> "Example":
        """The same objects in another picture, which may show less of them.

        Args:
            image: (h', w', C).
            boxes: (N, 4) of the same objects there; they may stick out of the picture, and are cut.
            masks: (N, h', w').
            proposals: (P, 4) there; what has nothing in the picture is left out.
        """
        size = image.shape[0], image.shape[1]
        seen = cut_boxes(boxes, size)
        moved = replace(self, image=image, boxes=seen.boxes, left=self.left * seen.left, masks=masks)
        if proposals is not None:
            inside = cut_boxes(proposals, size)
            proposals = inside.boxes[inside.left > 0]
        moved = replace(moved, proposals=proposals)
        return moved if np.all(seen.left > 0) else moved.take(seen.left > 0)


class CutBoxes(NamedTuple):
    """Boxes after a cut."""

    boxes: np.ndarray  # (N, 4), inside
    left: np.ndarray  # (N,) share of the area that is left; 0: nothing, or less than SLIVER wide


def cut_boxes(boxes: np.ndarray, size: tuple[int, int]) -> CutBoxes:
    """Clip boxes to a picture.

    Args:
        boxes: (N, 4) with positive sides.
        size: (h, w).
    """
    limits = np.array([size[1], size[0], size[1], size[0]], np.float64)
    clipped = np.clip(boxes, 0.0, limits)
    before = boxes[:, 2:] - boxes[:, :2]
    after = clipped[:, 2:] - clipped[:, :2]
    whole = (after >= before).all(1)  # a box that was not cut stays, however small
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.minimum(1.0, (after / before).prod(1))
    return CutBoxes(clipped, np.where(whole, 1.0, np.where((after >= SLIVER).all(1), share, 0.0)))


def read_example(photo: Photo, window: Window, factor: float, *, masks: bool, only: int | None = None) -> Example:
    """A window of a photo as an example.

    Args:
        photo: where from.
        window: inside the photo, in its pixels.
        factor: pixels of the example per pixel of the photo.
        masks: whether the objects' masks are wanted.
        only: number of the one object that is wanted, without proposals; None: all that the window shows.

    Raises:
        DataError: masks are wanted, but the photo has none.
    """
    objects = photo.objects
    if masks and objects.masks is None and len(objects):
        raise DataError(
            f"{photo.name}: masks are wanted, but its annotations are boxes only; annotate masks, or train a detector "
            "that gives boxes"
        )
    near = _meets(objects.boxes, window) if only is None else np.array([only])
    corner = np.array([window.col, window.row, window.col, window.row], np.float64)
    proposals = photo.proposals if only is None else None
    if proposals is not None:
        proposals = proposals[_meets(proposals, window)].astype(np.float64) - corner
    shown = None
    if masks:
        rles = () if objects.masks is None else objects.masks
        shown = decode_masks([rles[i] for i in near], objects.boxes[near], window)
    boxes, image = objects.boxes[near] - corner, photo.image(window)
    whole = Example(image, boxes, objects.labels[near], objects.ignored[near], np.ones(len(near)))
    return rescaled(whole.redrawn(image, boxes, shown, proposals), factor)


def _meets(boxes: np.ndarray, window: Window) -> np.ndarray:
    """Indices of the boxes that have something in a window."""
    inside = np.clip(boxes, (window.col, window.row) * 2, (window.col_end, window.row_end) * 2)
    return np.flatnonzero((inside[:, 2:] > inside[:, :2]).all(1))


def decode_masks(rles: list[CocoRle], boxes: np.ndarray, window: Window) -> np.ndarray:
    """What a window shows of masks; costs what the boxes in it measure, whatever the size of the photo.

    Args:
        rles: N masks of the whole photo.
        boxes: (N, 4) around them, in pixels of the photo.
        window: inside the photo.

    Returns:
        (N, h, w) uint8 0 or 1.
    """
    result = np.zeros((len(rles), window.height, window.width), np.uint8)
    low, high = np.floor(boxes[:, :2]).astype(np.int64), np.ceil(boxes[:, 2:]).astype(np.int64)
    for shown, rle, (x0, y0), (x1, y1) in zip(result, rles, low, high, strict=True):
        part = Window(int(y0), int(x0), int(y1 - y0), int(x1 - x0)).intersect(window)
        height, first = rle["size"][0], part.col * rle["size"][0]  # runs go down the columns
        starts, lengths = coco_to_runs(rle, base=0).T
        begins, ends = np.clip(np.stack([starts, starts + lengths]) - first, 0, part.width * height)
        seen = ends > begins
        steps = np.zeros(part.width * height + 1, np.int8)
        steps[begins[seen]] += 1
        steps[ends[seen]] -= 1
        columns = np.cumsum(steps[:-1], dtype=np.int8).reshape(part.width, height)
        moved = part.shift(-window.row, -window.col)
        shown[moved.slices] = columns[:, part.row : part.row_end].T
    return result


def rescaled(example: Example, factor: float) -> Example:
    """An example at another resolution.

    Args:
        example: any.
        factor: new pixels per old pixel, > 0.
    """
    if factor == 1.0:
        return example
    image = resample(example.image, factor)
    masks = None
    if example.masks is not None:
        rows, cols = (
            np.minimum(((np.arange(new) + 0.5) / factor).astype(np.int64), old - 1)
            for new, old in zip(image.shape[:2], example.size, strict=True)
        )
        masks = np.ascontiguousarray(example.masks[:, rows][:, :, cols])
    proposals = None if example.proposals is None else example.proposals * factor
    # The size is whole pixels: up to half a pixel of the last row and column may be missing, which cuts no object.
    limits = np.array([image.shape[1], image.shape[0]] * 2, np.float64)
    boxes = np.minimum(example.boxes * factor, limits)
    inside = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))
    moved = replace(example, image=image, boxes=boxes, masks=masks).take(inside)
    if proposals is not None:
        proposals = np.minimum(proposals, limits)
        proposals = proposals[(proposals[:, 2:] > proposals[:, :2]).all(1)]
    return replace(moved, proposals=proposals)


def resample(image: np.ndarray, factor: float) -> np.ndarray:
    """A picture at another resolution, by exactly this factor: (h, w, C) to (round(h factor), round(w factor), C).

    A size of whole pixels would stretch each axis a little differently, and boxes would have to follow. This is how
    training sees photos; whoever predicts should scale them so, too.

    Args:
        image: any dtype and number of bands.
        factor: new pixels per old pixel, > 0.
    """
    if factor == 1.0:
        return image
    # Averaging takes seven times as long, and below a factor of two linear sampling aliases little.
    method = cv2.INTER_AREA if factor <= 0.5 else cv2.INTER_LINEAR
    height, width = image.shape[:2]
    if min(height, width) * factor <= 0.5:  # rounds to nothing: one pixel is the least
        size = max(1, round(width * factor)), max(1, round(height * factor))
        return by_bands(image, lambda part: cv2.resize(part, size, interpolation=cv2.INTER_AREA))
    return by_bands(image, lambda part: cv2.resize(part, None, fx=factor, fy=factor, interpolation=method))


def cropped(example: Example, window: Window) -> Example:
    """A part of an example.

    Args:
        example: any.
        window: inside the picture.
    """
    corner = np.array([window.col, window.row] * 2, np.float64)
    rows, cols = window.slices
    masks = None if example.masks is None else example.masks[:, rows, cols]
    proposals = None if example.proposals is None else example.proposals - corner
    return example.redrawn(example.image[rows, cols], example.boxes - corner, masks, proposals)


def padded(example: Example, size: tuple[int, int], corner: tuple[int, int], fill: np.ndarray) -> Example:
    """An example inside a larger picture.

    Args:
        example: any.
        size: (h, w) of the new picture, not smaller.
        corner: (row, col) of the old one in it.
        fill: (C,) pixel of the rest.
    """
    if size == example.size:
        return example
    place = Window(*corner, *example.size)
    image = blank(size, fill.astype(example.image.dtype))
    image[place.slices] = example.image
    masks = None
    if example.masks is not None:
        masks = np.zeros((len(example.masks), *size), np.uint8)
        masks[(slice(None), *place.slices)] = example.masks
    shift = np.array([place.col, place.row] * 2, np.float64)
    proposals = None if example.proposals is None else example.proposals + shift
    return replace(example, image=image, boxes=example.boxes + shift, masks=masks, proposals=proposals)


def turned(example: Example, turn: int, mirror: bool) -> Example:
    """Flip left to right if asked, then turn by quarters counter-clockwise.

    Args:
        example: any; h and w change places when the turn is odd.
        turn: quarter turns, 0 to 3.
        mirror: flip first.
    """
    if not turn and not mirror:
        return example
    size = example.size
    proposals = None if example.proposals is None else turn_boxes(example.proposals, size, turn, mirror)
    masks = example.masks
    if masks is not None and len(masks):
        masks = np.stack([rearrange(mask, turn, mirror) for mask in masks])
    elif masks is not None:
        masks = np.zeros((0, *(size[::-1] if turn % 2 else size)), np.uint8)
    boxes = turn_boxes(example.boxes, size, turn, mirror)
    image = rearrange(example.image, turn, mirror)
    return replace(example, image=image, boxes=boxes, masks=masks, proposals=proposals)


def turn_boxes(boxes: np.ndarray, size: tuple[int, int], turn: int, mirror: bool) -> np.ndarray:
    """(N, 4) boxes of a picture of ``size`` (h, w) after ``turned``."""
    height, width = size
    x0, y0, x1, y1 = boxes.T
    if mirror:
        x0, x1 = width - x1, width - x0
    for _ in range(turn):
        x0, y0, x1, y1 = y0, width - x1, y1, width - x0
        height, width = width, height
    return np.stack([x0, y0, x1, y1], axis=1)


def blank(size: tuple[int, int], pixel: np.ndarray) -> np.ndarray:
    """(h, w, C) picture of one colour; by rows, as numpy takes ten times as long for pixel after pixel."""
    image = np.empty((*size, len(pixel)), pixel.dtype)
    image[:] = np.tile(pixel, (size[1], 1))
    return image


def mean_pixel(image: np.ndarray) -> np.ndarray:
    """(C,) mean of every eighth pixel each way, in the dtype of the image: what stands where there is no picture."""
    mean = image[::8, ::8].mean((0, 1), dtype=np.float64)
    return np.asarray(np.rint(mean) if image.dtype.kind in "ui" else mean).astype(image.dtype)


def to_batch(example: Example, *, keep: float, key: int, origin: tuple[int, int], factor: float) -> Batch:
    """An example as a batch of one image.

    Args:
        example: finished.
        keep: objects of which less than this share is left become ``ignore``.
        key: number of the photo it is of.
        origin: (row, col) of its corner in that photo, in the photo's pixels.
        factor: its pixels per pixel of the photo.
    """
    image = example.image
    planes = np.stack(cv2.split(image)) if image.dtype == np.uint8 else image.transpose(2, 0, 1).copy()
    cut = example.left < keep - 1e-9
    masks = None if example.masks is None else torch.from_numpy(np.ascontiguousarray(example.masks))
    targets = Targets(
        torch.from_numpy(example.boxes.astype(np.float32)),
        torch.from_numpy(example.labels.astype(np.int64)),
        torch.from_numpy(example.ignore | cut),
        masks,
    )
    proposals = None
    if example.proposals is not None:
        proposals = (torch.from_numpy(example.proposals.astype(np.float32)),)
    return Batch(torch.from_numpy(planes)[None], (example.size,), (targets,), proposals, (key,), (origin,), (factor,))
