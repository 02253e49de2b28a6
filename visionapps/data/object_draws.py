"""Where training looks: which photo, which object of it, which window around that.

Everything is drawn from the generator that is given. Shapes: N objects, K classes, H W photo.
"""

from collections.abc import Sequence

import numpy as np

from visionapps.data.examples import Photo
from visionapps.windows import Window


class ObjectIndex:
    """Draws objects of many photos, those that count: neither crowd nor difficult. Microseconds per draw."""

    def __init__(self, photos: Sequence[Photo]) -> None:
        counts = [np.flatnonzero(~photo.objects.ignored) for photo in photos]
        numbers = [np.full(len(own), number, np.int32) for number, own in enumerate(counts)]
        labels = [photo.objects.labels[own] for photo, own in zip(photos, counts, strict=True)]
        empty = [np.zeros(0, np.int64)]
        order = np.argsort(all_labels := np.concatenate(labels + empty), kind="stable")
        self._photo = np.concatenate(numbers + empty)[order]
        self._object = np.concatenate(counts + empty)[order]
        self._ends = np.cumsum(np.unique(all_labels, return_counts=True)[1])  # of the classes that occur

    def __len__(self) -> int:
        return len(self._photo)

    def draw(self, rng: np.random.Generator, balance: float) -> tuple[int, int]:
        """A photo and one of its objects; there must be one.

        Args:
            rng: the source of chance.
            balance: probability of drawing the class first, every class alike; else every object alike.
        """
        begin, end = 0, len(self._photo)
        if rng.random() < balance:
            drawn = int(rng.integers(len(self._ends)))
            begin, end = int(self._ends[drawn - 1]) if drawn else 0, int(self._ends[drawn])
        at = int(rng.integers(begin, end))
        return int(self._photo[at]), int(self._object[at])


class PhotoOrder:
    """Every photo once, in a random order, then every photo once in another: draw i is known without those before it.

    Args:
        count: number of photos.
        seed: another seed, other orders.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count = count
        self._seed = seed
        self._round = -1
        self._order = np.zeros(0, np.int64)

    def __getitem__(self, index: int) -> int:
        turn, place = divmod(index, self._count)
        if turn != self._round:  # a loader asks for one round after another
            self._order = np.random.default_rng((self._seed, 1 << 33, turn)).permutation(self._count)
            self._round = turn
        return int(self._order[place])


def draw_window(
    rng: np.random.Generator, size: tuple[int, int], extent: tuple[int, int], box: np.ndarray | None
) -> Window:
    """A window inside a photo, as large as the photo allows.

    Args:
        rng: the source of chance.
        size: (H, W) of the photo.
        extent: (h, w) wanted; a photo with less gives all of it.
        box: (4,) an object that shall be in it, whole where it fits, else a part of it; None: any place.
    """
    spans = []
    for axis in (0, 1):
        side = min(extent[axis], size[axis])
        low, high = 0, size[axis] - side
        if box is not None:
            near, far = int(np.floor(box[1 - axis])), int(np.ceil(box[3 - axis]))
            # An object longer than the window: the window lies inside it instead.
            first, last = sorted((far - side, near))
            low, high = max(low, min(first, high)), min(high, max(last, low))
        spans.append((int(rng.integers(low, high, endpoint=True)), side))
    (row, height), (col, width) = spans
    return Window(row, col, height, width)
