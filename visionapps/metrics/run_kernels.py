"""The compiled loop of ``run_areas``; importing it takes half a second, which few rows are not worth."""

import numpy as np
from numpy.typing import NDArray

from visionapps.compiled import compiled

Int64s = NDArray[np.int64]


@compiled
def shared_pixels(
    offsets: Int64s, starts: Int64s, ends: Int64s, other_offsets: Int64s, other_starts: Int64s, other_ends: Int64s
) -> Int64s:
    """(R,) pixels that each row shares with the same row of another table, see ``RunTable``, in one walk along both."""
    shared = np.zeros(len(offsets) - 1, np.int64)
    for row in range(len(shared)):
        i, j, found = offsets[row], other_offsets[row], 0
        while i < offsets[row + 1] and j < other_offsets[row + 1]:
            found += max(0, min(ends[i], other_ends[j]) - max(starts[i], other_starts[j]))
            if ends[i] < other_ends[j]:
                i += 1
            else:
                j += 1
        shared[row] = found
    return shared
