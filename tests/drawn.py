"""Photos in memory whose objects are drawn rectangles, for tests of whatever moves pictures and boxes together."""

from dataclasses import dataclass

import numpy as np

from visionapps.data.examples import read_example
from visionapps.masks import encode, runs_to_coco
from visionapps.objects import Objects
from visionapps.windows import Window


@dataclass(frozen=True, eq=False)
class MemoryPhoto:
    """A photo without a store."""

    pixels: np.ndarray
    objects: Objects
    proposals: np.ndarray | None = None
    name: str = "photo.png"

    @property
    def size(self):
        return self.pixels.shape[:2]

    def image(self, window):
        assert window.intersect(Window(0, 0, *self.size)) == window
        return self.pixels[window.slices].copy()


def rectangles(size, boxes, labels=None, **fields):
    """A photo in which object k is a rectangle of grey 50 + k, with exact masks, on black."""
    pixels = np.zeros((*size, 3), np.uint8)
    masks = []
    for k, (x0, y0, x1, y1) in enumerate(boxes):
        pixels[y0:y1, x0:x1] = 50 + k
        mask = np.zeros(size, bool)
        mask[y0:y1, x0:x1] = True
        masks.append(runs_to_coco(encode(mask, order="column"), size))
    labels = np.arange(len(boxes)) if labels is None else labels
    return MemoryPhoto(pixels, Objects(np.array(boxes, float).reshape(-1, 4), labels, masks=tuple(masks), **fields))


def bounds(plane):
    """x0 y0 x1 y1 of what is not 0."""
    rows, cols = np.flatnonzero(plane.any(1)), np.flatnonzero(plane.any(0))
    return [cols[0], rows[0], cols[-1] + 1, rows[-1] + 1]


def whole(photo, masks=True):
    return read_example(photo, Window(0, 0, *photo.size), 1.0, masks=masks)
