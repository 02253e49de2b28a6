"""Four pictures in one: more scenes per step, objects at all places. Source: Bochkovskiy et al. 2020 (YOLOv4)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from visionapps.data.examples import Example, blank, cropped, mean_pixel
from visionapps.windows import Window

CENTRE = (0.25, 0.75)  # where the four meet, as shares of each side


def quarters(size: tuple[int, int], rng: np.random.Generator) -> tuple[Window, Window, Window, Window]:
    """Divide a picture at a drawn point: upper left, upper right, lower left, lower right; none is empty.

    Args:
        size: (h, w), each at least 2.
        rng: the source of chance.
    """
    height, width = size
    row, col = (min(n - 1, max(1, round(float(rng.uniform(*CENTRE)) * n))) for n in size)
    return (
        Window(0, 0, row, col),
        Window(0, col, row, width - col),
        Window(row, 0, height - row, col),
        Window(row, col, height - row, width - col),
    )


def mosaic(size: tuple[int, int], places: Sequence[Window], parts: Sequence[Example]) -> Example:
    """Lay examples side by side, at the resolution that they have.

    A part is cut to its place, which takes from the objects what it takes; a part that is smaller lies where the parts
    meet, and the rest of its place has the mean colour of all.

    Args:
        size: (h, w) of the picture.
        places: where each part goes; they cover the picture.
        parts: all with masks or none, all with proposals or none.
    """
    first = parts[0]
    image = blank(size, np.mean([mean_pixel(part.image) for part in parts], axis=0).astype(first.image.dtype))
    boxes, kept, masks, proposals = [], [], [], []
    for part, place in zip(parts, places, strict=True):
        height, width = min(place.height, part.size[0]), min(place.width, part.size[1])
        cut = cropped(part, Window(0, 0, height, width))
        # Towards the point where all meet: what is missing lies at the rim.
        row = place.row if place.row else place.row_end - height
        col = place.col if place.col else place.col_end - width
        target = Window(row, col, height, width)
        image[target.slices] = cut.image
        boxes.append(cut.boxes + np.array([col, row] * 2, np.float64))
        kept.append(cut)
        if cut.masks is not None:
            whole = np.zeros((len(cut.masks), *size), np.uint8)
            whole[(slice(None), *target.slices)] = cut.masks
            masks.append(whole)
        if cut.proposals is not None:
            proposals.append(cut.proposals + np.array([col, row] * 2, np.float64))
    return replace(
        first,
        image=image,
        boxes=np.concatenate(boxes),
        labels=np.concatenate([part.labels for part in kept]),
        ignore=np.concatenate([part.ignore for part in kept]),
        left=np.concatenate([part.left for part in kept]),
        masks=np.concatenate(masks) if masks else None,
        proposals=np.concatenate(proposals) if proposals else None,
    )
