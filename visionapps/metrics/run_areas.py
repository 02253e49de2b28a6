"""Areas of run-length masks without their pixels: of thousands of rows at once, by where runs begin and end.

Shapes: R rows, N runs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from visionapps.masks import Runs
from visionapps.metrics.measures import Areas
from visionapps.metrics.object_precision import ObjectPairs, sparse_pairs

Int64s = NDArray[np.int64]
_MANY = 1 << 20  # runs from which on a compiled walk along both tables is worth the import


class RunTable(NamedTuple):
    """The runs of many rows, one row after the other; within a row they ascend and are apart."""

    offsets: Int64s  # (R + 1,) the runs of row i are offsets[i] to offsets[i + 1]
    starts: Int64s  # (N,) 0-based
    ends: Int64s  # (N,) of the pixel after each run

    @classmethod
    def of(cls, rows: Sequence[Runs], *, base: int) -> "RunTable":
        """The table of (n, 2) runs of start and length; ``base`` is the number of the first pixel."""
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        together = np.concatenate([np.zeros((0, 2), np.int64), *rows])
        starts = together[:, 0] - base
        return cls(offsets, starts, starts + together[:, 1])

    @property
    def rows(self) -> Int64s:
        """(N,) the row of each run."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def pixels(self) -> Int64s:
        """(R,) pixels of each row."""
        return _sums(self.ends - self.starts, self.offsets)

    def malformed(self, pixels: int | None = None) -> int | None:
        """The first row whose runs do not ascend, overlap, are empty or leave an image of so many pixels."""
        # Where the size is not known: all rows have to fit on one line of pixels, see ``run_areas``.
        limit = np.iinfo(np.int64).max // len(self.offsets) if pixels is None else pixels
        wrong = (self.starts < 0) | (self.ends <= self.starts) | (self.ends > limit)
        later = np.ones(max(0, len(self.starts) - 1), bool)
        later[self.offsets[(self.offsets > 0) & (self.offsets < len(self.starts))] - 1] = False  # between two rows
        wrong[1:] |= later & (self.starts[1:] < self.ends[:-1])
        return int(self.rows[np.argmax(wrong)]) if wrong.any() else None

    def overlapping(self, images: Int64s) -> int | None:
        """The first image, by the (R,) image of each row, that has a pixel in two of its rows."""
        image = np.asarray(images, np.int64)[self.rows]
        stride = int(self.ends.max(initial=0)) + 1
        order = np.argsort(
            image * stride + self.starts, kind="stable"
        )  # nearly sorted already: rows of an image adjoin
        image, starts, ends = image[order], self.starts[order], self.ends[order]
        twice = (image[1:] == image[:-1]) & (starts[1:] < ends[:-1])
        return int(image[np.argmax(twice)]) if twice.any() else None


def run_areas(prediction: RunTable, truth: RunTable) -> Areas:
    """Pixels of each row in both tables, in the prediction and in the truth; (R,) each.

    The intersection of a run with a row is the difference of how much of the row lies before its end and before its
    start. All rows are laid one after the other on one line of pixels, so that two binary searches serve all of them.
    """
    if len(prediction.starts) + len(truth.starts) >= _MANY:
        from visionapps.metrics.run_kernels import shared_pixels

        return Areas(shared_pixels(*prediction, *truth), prediction.pixels(), truth.pixels())
    both = np.zeros(len(prediction.starts), np.int64)
    if len(truth.starts) and len(prediction.starts):
        stride = int(max(truth.ends.max(), prediction.ends.max()))
        shift = prediction.rows * stride
        line = truth.starts + truth.rows * stride
        lengths = truth.ends - truth.starts
        before = np.append(0, np.cumsum(lengths))
        both = _covered(prediction.ends + shift, line, lengths, before)
        both -= _covered(prediction.starts + shift, line, lengths, before)
    return Areas(_sums(both, prediction.offsets), prediction.pixels(), truth.pixels())


def _covered(places: Int64s, starts: Int64s, lengths: Int64s, before: Int64s) -> Int64s:
    """How many pixels of the runs lie before each place."""
    last = np.searchsorted(starts, places)  # runs that begin before it; the last one may end behind it
    i = np.maximum(last - 1, 0)
    beyond = np.maximum(starts[i] + lengths[i] - places, 0) * (last > 0)
    covered: Int64s = before[last] - beyond
    return covered


def _sums(values: Int64s, offsets: Int64s) -> Int64s:
    running = np.append(np.int64(0), np.cumsum(values))
    sums: Int64s = running[offsets[1:]] - running[offsets[:-1]]
    return sums


def union(rows: Sequence[Runs]) -> Runs:
    """The runs of all rows as one row: sorted, and joined where they touch or overlap."""
    together = np.concatenate([np.zeros((0, 2), np.int64), *rows])
    together = together[np.argsort(together[:, 0], kind="stable")]
    reach = np.maximum.accumulate(together.sum(1))
    first = np.append(True, together[1:, 0] > reach[:-1])[: len(together)]
    last = np.append(first[1:], True)[: len(together)]
    starts = together[first, 0]
    return np.stack([starts, reach[last] - starts], axis=1)


def object_run_pairs(prediction: Sequence[Runs], truth: Sequence[Runs]) -> ObjectPairs:
    """The same as ``object_pairs`` of objects that are rows of their own; they may overlap others of their side."""
    ours, theirs = RunTable.of(prediction, base=0), RunTable.of(truth, base=0)
    sizes = ours.pixels(), theirs.pixels()
    if theirs.overlapping(np.zeros(len(truth), np.int64)) is None:
        found = [_meetings(ours, theirs, np.argsort(theirs.starts, kind="stable"))]
    else:  # one object at a time: the runs of each are apart
        found = [_meetings(ours, theirs, np.arange(*theirs.offsets[j : j + 2])) for j in range(len(truth))]
    predicted, true, pixels = (np.concatenate(column) for column in zip(*found, strict=True))
    return ObjectPairs(*sparse_pairs(predicted, true, len(truth), pixels), *sizes)


def _meetings(ours: RunTable, theirs: RunTable, chosen: Int64s) -> tuple[Int64s, Int64s, Int64s]:
    """Rows of two runs that meet, and how many pixels they share; the chosen ones of theirs ascend and are apart."""
    starts, ends = theirs.starts[chosen], theirs.ends[chosen]
    first = np.searchsorted(ends, ours.starts, side="right")
    counts = np.maximum(np.searchsorted(starts, ours.ends) - first, 0)
    run = np.repeat(np.arange(len(counts)), counts)
    other = np.arange(len(run)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    shared = np.minimum(ours.ends[run], ends[other]) - np.maximum(ours.starts[run], starts[other])
    return ours.rows[run], theirs.rows[chosen][other], shared
