"""What the polygoniser remembers between two rows: boundary chains, regions, and the pools they live in.

Cracks are the sides of pixels, lattice vertices (row, col) their ends: vertex (0, 0) is the upper left corner of the
raster. A *corner* is a vertex where one boundary turns. A *node* is a vertex where three or four cracks meet; it has an
*end* for each of them, in direction 0 up, 1 right, 2 down, 3 left. A chain of corners between two ends is an *arc*,
the boundary of two regions; a closed boundary without a node gets a node of two ends at its topmost, leftmost corner.
The end that an arc is walked from also stands for the side of the arc that is to the right of the walker.

Links between corners and ends are numbers of one kind: a corner k is k, an end t is ~t, nothing is NONE.
Everything is recycled, so memory follows the open boundary and not the raster.
"""

from typing import Any, NamedTuple

import numpy as np

from visionapps.compiled import compiled

NONE = -(2**31)
VOID = 255  # label of pixels that belong to no region
WINDOW = 512  # rows after which open chains are simplified; the lattice bitmap holds twice as many
# Complete regions are given out every so many rows, or when there are so many, or with so many vertices.
DRAIN_ROWS, DRAIN_REGIONS, DRAIN_POINTS = 64, 4096, 2**20

# Places in State.counters. Each pool has three: head of its list of free items, items ever used, items on that list.
ROW, PARITY, QUEUED, DEAD, PENDING, POINTS, RINGS, SERIAL, DUE, FULL = range(10)
CORNERS, ENDS, REGIONS = 10, 13, 16
RUNS = 19  # of the rows of parity 0 and 1
LAST = 21  # whether the current row of vertices is the lower border of the raster
_COUNTERS = 22

# In every pool the field "row" of a free item holds the next free one.
_CORNER = np.dtype([("row", "i4"), ("col", "i4"), ("a", "i4"), ("b", "i4"), ("kept", "i4")])
_END = np.dtype(
    [
        ("row", "i4"), ("col", "i4"),
        ("link", "i4"),  # first corner of the arc, or its other end
        ("mate", "i4"),  # the other end; -1 while the arc is open
        ("turn", "i4"),  # where a walker who arrives here goes on if he keeps to his pixel
        ("cross", "i4"),  # where he goes on if the pixel across the vertex is of his region too; -1 for none
        ("next", "i4"),  # in the list of the region on the right
        ("size", "i4"),  # vertices of the arc without the last
        ("done", "i4"),  # whether the region on the right needs the arc no more
        ("mark", "i4"),  # serial number of the region that is being written
    ]
)  # fmt: skip
_REGION = np.dtype(
    [
        ("row", "i4"),  # the last that has a pixel of it; NONE once it is complete
        ("parent", "i4"), ("label", "i4"), ("head", "i4"), ("tail", "i4"),
        ("pixels", "i8"), ("area", "f8"),
        ("shares", "i8"), ("voters", "i8"),  # sum of the confidences, and how many pixels had one
    ]
)  # fmt: skip


class State(NamedTuple):
    """All arrays of a polygoniser, W columns wide. Compiled functions change them in place."""

    corners: np.ndarray
    ends: np.ndarray
    regions: np.ndarray
    start: np.ndarray  # (2, W + 2) int32, first columns of the runs of two rows; a last run of label VOID begins at W
    label: np.ndarray  # (2, W + 2) uint8
    region: np.ndarray  # (2, W + 2) int32, -1 for VOID
    tip: np.ndarray  # (W + 2,) int32, last item of the chain that grows down column x; at W + 1 of the one to the right
    other: np.ndarray  # (W + 2,) int32, where that chain ends: a place in tip, or ~end
    queue: np.ndarray  # ends of arcs that this row completed
    dead: np.ndarray  # regions that this row joined to others
    pending: np.ndarray  # complete regions in the order of completion
    quad: np.ndarray  # (4,) int32, the region to the right of a walker who leaves the vertex in direction 0 to 3
    arms: np.ndarray  # (4,) int32, the ends of a node by direction
    bits: np.ndarray  # (2 * WINDOW, words) uint64, corners and nodes; row r stands at r % (2 * WINDOW)
    classes: np.ndarray  # (256,) uint8, what a label becomes: itself or VOID
    tolerance: np.ndarray  # () float64, pixels; 0 keeps every corner
    min_area: np.ndarray  # () float64
    counters: np.ndarray  # int64


def new_state(width: int, *, classes: np.ndarray, tolerance: float, min_area: float) -> State:
    """The state before the first row."""
    words = (width + 64) // 64 if tolerance > 0 else 0
    counters = np.zeros(_COUNTERS, np.int64)
    counters[[CORNERS, ENDS, REGIONS]] = NONE
    state = State(
        corners=np.zeros(4096, _CORNER),
        ends=np.zeros(4096, _END),
        regions=np.zeros(4096, _REGION),
        start=np.zeros((2, width + 2), np.int32),
        label=np.full((2, width + 2), VOID, np.uint8),
        region=np.full((2, width + 2), -1, np.int32),
        tip=np.full(width + 2, NONE, np.int32),
        other=np.full(width + 2, NONE, np.int32),
        queue=np.zeros(4 * width + 8, np.int32),
        dead=np.zeros(2 * width + 2, np.int32),
        pending=np.zeros(DRAIN_REGIONS + width, np.int32),
        quad=np.full(4, -1, np.int32),
        arms=np.full(4, -1, np.int32),
        bits=np.zeros((2 * WINDOW, words), np.uint64),
        classes=classes,
        tolerance=np.array(tolerance, np.float64),
        min_area=np.array(min_area, np.float64),
        counters=counters,
    )
    state.start[0, :2] = 0, width  # above the raster there is one run of nothing
    counters[RUNS] = 1
    return state


def grown(state: State) -> State:
    """The same state with room for at least one more row."""
    vertices = 2 * state.start.shape[1]  # where runs of the upper or of the lower row begin
    pools = {}
    for name, at, share in (("corners", CORNERS, 1), ("ends", ENDS, 6), ("regions", REGIONS, 1)):
        pool = getattr(state, name)
        used, free = int(state.counters[at + 1]), int(state.counters[at + 2])
        if len(pool) - used + free < share * vertices:
            larger = np.zeros(max(len(pool) * 3 // 2, used + share * vertices), pool.dtype)
            larger[: len(pool)] = pool
            pools[name] = larger
    return state._replace(**pools)


@compiled
def has_room(pool: Any, counters: Any, at: int, wanted: int) -> bool:
    """Whether a pool has so many free items."""
    return bool(len(pool) - counters[at + 1] + counters[at + 2] >= wanted)


@compiled
def take(pool: Any, counters: Any, at: int) -> int:
    """An item of a pool, with whatever it held before."""
    head = int(counters[at])
    if head >= 0:
        counters[at] = pool[head].row
        counters[at + 2] -= 1
        return head
    counters[at + 1] += 1
    return int(counters[at + 1]) - 1


@compiled
def give(pool: Any, counters: Any, at: int, item: int) -> None:
    """Return an item to its pool."""
    pool[item].row = counters[at]
    counters[at] = item
    counters[at + 2] += 1


@compiled
def new_end(state: State, row: int, col: int) -> int:
    """An end at a vertex, of an arc that is not complete."""
    ends = state.ends
    end = int(take(ends, state.counters, ENDS))
    ends[end].row, ends[end].col, ends[end].link = row, col, NONE
    ends[end].mate = ends[end].cross = ends[end].next = -1
    ends[end].done = ends[end].mark = 0
    return end


@compiled
def root(regions: Any, region: int) -> int:
    """The region that this one has become part of."""
    while regions[region].parent != region:
        regions[region].parent = regions[regions[region].parent].parent
        region = int(regions[region].parent)
    return region


@compiled
def relink(state: State, item: int, old: int, new: int) -> None:
    """Let an item point to another one where it pointed to old (NONE: where it pointed to nothing yet)."""
    if item < 0:
        state.ends[~item].link = new
    elif state.corners[item].a == old:
        state.corners[item].a = new
    else:
        state.corners[item].b = new


@compiled
def beyond(corners: Any, item: int, before: int) -> int:
    """The neighbour of a corner that is not ``before``."""
    return int(corners[item].b if corners[item].a == before else corners[item].a)


@compiled
def release(state: State, end: int) -> None:
    """Say that the region to the right of an arc needs it no more; free it when neither side does."""
    ends, corners, counters = state.ends, state.corners, state.counters
    ends[end].done = 1
    mate = ends[end].mate
    if ends[mate].done == 0:
        return
    before, item = ~end, ends[end].link
    while item >= 0:
        after = beyond(corners, item, before)
        give(corners, counters, CORNERS, item)
        before, item = item, after
    ends[end].col = ends[mate].col = -1
    give(ends, counters, ENDS, end)
    give(ends, counters, ENDS, mate)


@compiled
def attach(state: State, end: int, region: int) -> None:
    """Put the right side of an arc on the list of its region; outside all regions nobody needs it."""
    if region < 0:
        state.ends[end].done = 1
        return
    regions = state.regions
    region = root(regions, region)
    if regions[region].head < 0:
        regions[region].head = end
    else:
        state.ends[regions[region].tail].next = end
    regions[region].tail = end


@compiled
def drop(state: State, region: int) -> None:
    """Release all arcs of a complete region."""
    end = state.regions[region].head
    while end >= 0:
        following = state.ends[end].next
        release(state, end)
        end = following
