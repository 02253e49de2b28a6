"""Objects of other photos set into a picture: more of what is rare, on grounds where it was never seen.

With masks the object's own pixels are taken (Ghiasi et al. 2021). Without, its box is taken whole with a narrow rim
that fades into the new ground, and only if no other object reaches into the rim, which would come along without a
box of its own. Nothing is ever pasted over an object or an ignored region, so all boxes and masks stay true.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from visionapps.data.examples import Example, Photo, read_example
from visionapps.windows import Window

RIM = 0.12  # of the box's mean side, around a box that is pasted without a mask
TRIES = 8  # places that are looked at before an object is given up
LARGEST = 0.5  # of either side of the picture: a larger object would leave too little ground


@dataclass(frozen=True, eq=False)
class Patch:
    """An object cut out.

    Attributes:
        image: (h, w, C).
        weight: (h, w) float32 in [0, 1], how much of it covers the ground.
        box: (4,) of the object in the patch.
        label: its class.
        mask: (h, w) uint8; None: there are no masks.
    """

    image: np.ndarray
    weight: np.ndarray
    box: np.ndarray
    label: int
    mask: np.ndarray | None


def cut_patch(photo: Photo, number: int, factor: float, *, masks: bool) -> Patch | None:
    """An object of a photo with what is needed around it; None: it cannot be had without parts of others.

    Args:
        photo: where from.
        number: of the object in the photo.
        factor: pixels of the patch per pixel of the photo.
        masks: cut along the mask.

    Raises:
        DataError: masks are wanted, but the photo has none.
    """
    box = photo.objects.boxes[number]
    rim = 1.0 if masks else max(2.0, RIM * float(np.mean(box[2:] - box[:2])))
    low = np.maximum(np.floor(box[:2] - rim), 0).astype(int)
    high = np.minimum(np.ceil(box[2:] + rim), photo.size[::-1]).astype(int)
    window = Window(int(low[1]), int(low[0]), int(high[1] - low[1]), int(high[0] - low[0]))
    if not masks:
        others = np.delete(photo.objects.boxes, number, axis=0)
        if ((others[:, :2] < high) & (others[:, 2:] > low)).all(1).any():
            return None
    example = read_example(photo, window, factor, masks=masks, only=number)
    if not len(example.boxes):  # scaled to nothing
        return None
    mask = None
    if example.masks is not None:
        mask = example.masks[0]
        if not mask.any():
            return None
        weight = cv2.GaussianBlur(mask.astype(np.float32), (3, 3), 0)
    else:
        weight = _fading(example.size, example.boxes[0], rim * factor)
    return Patch(example.image, weight, example.boxes[0], int(example.labels[0]), mask)


def paste(example: Example, patches: Sequence[Patch], rng: np.random.Generator) -> Example:
    """Set objects into a picture, each at a drawn place where nothing is yet; what finds none is left out.

    Args:
        example: any; it is not changed.
        patches: what to paste, in this order; of the bands, dtype and kind (with masks or without) of the example.
        rng: the source of chance.
    """
    image = example.image.copy()
    boxes, labels, masks = list(example.boxes), list(example.labels), []
    count = len(boxes)
    for patch in patches:
        patch = _flipped(patch, rng)
        corner = _free_place(example.size, patch, np.array(boxes).reshape(-1, 4), rng)
        if corner is None:
            continue
        target = Window(*corner, *patch.weight.shape)
        _blend(image[target.slices], patch)
        boxes.append(patch.box + np.array([target.col, target.row] * 2, np.float64))
        labels.append(np.int64(patch.label))
        if patch.mask is not None:
            whole = np.zeros((1, *example.size), np.uint8)
            whole[0][target.slices] = patch.mask
            masks.append(whole)
    added = len(boxes) - count
    if not added:
        return example
    return replace(
        example,
        image=image,
        boxes=np.array(boxes),
        labels=np.array(labels, np.int64),
        ignore=np.append(example.ignore, np.zeros(added, bool)),
        left=np.append(example.left, np.ones(added)),
        masks=None if example.masks is None else np.concatenate([example.masks, *masks]),
    )


def _fading(size: tuple[int, int], box: np.ndarray, rim: float) -> np.ndarray:
    """(h, w) weights: 1 in the box, falling to 0 over the rim."""
    away = []
    for axis, length in enumerate(size):
        centre = np.arange(length) + 0.5
        away.append(np.maximum(np.maximum(box[1 - axis] - centre, centre - box[3 - axis]), 0))
    distance = np.maximum(away[0][:, None], away[1][None])
    weight: np.ndarray = np.clip(1 - distance / rim, 0, 1).astype(np.float32)
    return weight


def _flipped(patch: Patch, rng: np.random.Generator) -> Patch:
    if not rng.integers(2):
        return patch
    width = patch.weight.shape[1]
    x0, y0, x1, y1 = patch.box
    mask = None if patch.mask is None else patch.mask[:, ::-1]
    box = np.array([width - x1, y0, width - x0, y1])
    return Patch(patch.image[:, ::-1], patch.weight[:, ::-1], box, patch.label, mask)


def _free_place(
    size: tuple[int, int], patch: Patch, boxes: np.ndarray, rng: np.random.Generator
) -> tuple[int, int] | None:
    """(row, col) of a patch in a picture such that it touches no box; None: there seems to be none."""
    height, width = patch.weight.shape
    if height > LARGEST * size[0] or width > LARGEST * size[1]:
        return None
    for _ in range(TRIES):
        row, col = int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))
        meets = ((boxes[:, :2] < (col + width, row + height)) & (boxes[:, 2:] > (col, row))).all(1)
        if not meets.any():
            return row, col
    return None


def _blend(ground: np.ndarray, patch: Patch) -> None:
    """Lay a patch over a part of a picture, in place."""
    weight = patch.weight[..., None]
    mixed = ground + (patch.image.astype(np.float32) - ground) * weight
    ground[:] = np.rint(mixed) if ground.dtype.kind in "ui" else mixed
