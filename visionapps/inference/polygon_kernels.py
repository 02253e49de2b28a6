"""Compiled scan of a label map, row by row: runs are joined to regions, their boundaries to arcs.

The vertices between two rows of pixels matter only where a run begins in one of them; everything between is a straight
crack or none. So the cost follows the number of runs, not of pixels. Names are explained in polygon_state.
"""

from typing import Any

from visionapps.compiled import compiled
from visionapps.inference.polygon_arcs import close_loop, complete, mark_vertex, simplify_open, simplify_queue
from visionapps.inference.polygon_state import (
    CORNERS,
    DEAD,
    DRAIN_POINTS,
    DRAIN_REGIONS,
    DRAIN_ROWS,
    DUE,
    ENDS,
    FULL,
    NONE,
    PARITY,
    PENDING,
    POINTS,
    REGIONS,
    RINGS,
    ROW,
    RUNS,
    VOID,
    WINDOW,
    State,
    attach,
    drop,
    give,
    has_room,
    new_end,
    relink,
    root,
    take,
)

NO_CONFIDENCE = 255
_UP, _RIGHT, _DOWN, _LEFT = 1, 2, 4, 8  # the cracks of a vertex that are boundaries


@compiled
def advance(state: State, labels: Any, confidence: Any, areas: Any, begin: int) -> int:
    """Scan rows until they are finished, a pool is too small (FULL), or complete regions should be taken (DUE).

    Args:
        state: changed in place; FULL and DUE of its counters are set.
        labels: (h, W) uint8.
        confidence: (h, W) uint8, or (h, 0) for none.
        areas: (h,) float64, of a pixel of each row.
        begin: first row to scan.

    Returns:
        The first row that was not scanned.
    """
    counters = state.counters
    counters[FULL] = counters[DUE] = 0
    for i in range(begin, labels.shape[0]):
        lower = 1 - counters[PARITY]
        find_runs(state, labels[i], lower)
        runs = counters[RUNS + lower]
        vertices = runs + counters[RUNS + 1 - lower] + 2
        if not (
            has_room(state.corners, counters, CORNERS, vertices)
            and has_room(state.ends, counters, ENDS, 6 * vertices)
            and has_room(state.regions, counters, REGIONS, runs)
        ):
            counters[FULL] = 1
            return i
        join_runs(state, confidence[i], areas[i], lower)
        row = counters[ROW]
        state.bits[row % (2 * WINDOW)] = 0
        trace_row(state, lower)
        simplify_queue(state)
        if row % WINDOW == 0 and state.tolerance > 0:
            simplify_open(state, lower)
        complete_regions(state, lower)
        counters[ROW], counters[PARITY] = row + 1, lower
        if row % DRAIN_ROWS == 0 or counters[POINTS] >= DRAIN_POINTS or counters[PENDING] >= DRAIN_REGIONS:
            counters[DUE] = 1
            return i + 1
    return int(labels.shape[0])


@compiled
def find_runs(state: State, labels: Any, lower: int) -> None:
    """Cut a row into runs of equal labels; the labels of unwanted classes become VOID first."""
    start, label, classes = state.start[lower], state.label[lower], state.classes
    width = len(labels)
    runs = 0
    col = 0
    while col < width:
        raw = labels[col]
        wanted = classes[raw]
        if runs == 0 or wanted != label[runs - 1]:
            start[runs] = col
            label[runs] = wanted
            runs += 1
        col += 1
        while col < width and labels[col] == raw:
            col += 1
    start[runs] = width
    label[runs] = VOID
    state.region[lower, runs] = -1
    state.counters[RUNS + lower] = runs


@compiled
def join_runs(state: State, confidence: Any, area: float, lower: int) -> None:
    """Give each run of the lower row its region, joining regions of the upper row that it connects; count pixels."""
    upper = 1 - lower
    start, label, region = state.start[lower], state.label[lower], state.region[lower]
    above, regions, counters = 0, state.regions, state.counters
    for run in range(counters[RUNS + lower]):
        first, last = start[run], start[run + 1]
        while state.start[upper, above + 1] <= first:
            above += 1
        region[run] = -1
        if label[run] == VOID:
            continue
        own = -1
        touching = above
        while state.start[upper, touching] < last:
            if state.label[upper, touching] == label[run]:
                found = root(regions, int(state.region[upper, touching]))
                own = found if own < 0 else join(state, own, found)
            touching += 1
        if own < 0:
            own = new_region(state, label[run])
        regions[own].row = counters[ROW]
        regions[own].pixels += last - first
        regions[own].area += area * (last - first)
        for col in range(first, min(last, len(confidence))):
            if confidence[col] != NO_CONFIDENCE:
                regions[own].shares += confidence[col]
                regions[own].voters += 1
        region[run] = own
    for run in range(counters[RUNS + lower]):
        if region[run] >= 0:
            region[run] = root(regions, region[run])


@compiled
def new_region(state: State, label: int) -> int:
    """A region without pixels."""
    regions = state.regions
    region = int(take(regions, state.counters, REGIONS))
    regions[region].parent = region
    regions[region].label = label
    regions[region].head = regions[region].tail = -1
    regions[region].pixels = regions[region].shares = regions[region].voters = 0
    regions[region].area = 0.0
    return region


@compiled
def join(state: State, kept: int, gone: int) -> int:
    """Make one region of two; gives the one that is kept."""
    if kept == gone:
        return kept
    regions, ends, counters = state.regions, state.ends, state.counters
    regions[gone].parent = kept
    regions[kept].pixels += regions[gone].pixels
    regions[kept].area += regions[gone].area
    regions[kept].shares += regions[gone].shares
    regions[kept].voters += regions[gone].voters
    if regions[gone].head >= 0:
        if regions[kept].head < 0:
            regions[kept].head = regions[gone].head
        else:
            ends[regions[kept].tail].next = regions[gone].head
        regions[kept].tail = regions[gone].tail
    state.dead[counters[DEAD]] = gone
    counters[DEAD] += 1
    return kept


@compiled
def trace_row(state: State, lower: int) -> None:
    """Continue, join, split and begin arcs at the vertices between the upper and the lower row."""
    upper = 1 - lower
    start, label, region, quad = state.start, state.label, state.region, state.quad
    width = start.shape[1] - 2
    above = below = 0
    up_left, low_left = VOID, VOID
    quad[:] = -1
    while True:
        col = int(min(start[upper, above], start[lower, below]))
        up_right, low_right = up_left, low_left
        quad[0], quad[1] = quad[3], quad[2]
        if start[upper, above] == col:
            up_right, quad[0] = label[upper, above], region[upper, above]
            above += 1
        if start[lower, below] == col:
            low_right, quad[1] = label[lower, below], region[lower, below]
            below += 1
        cracks = (up_left != up_right) * _UP + (low_left != low_right) * _DOWN
        cracks += (up_right != low_right) * _RIGHT + (up_left != low_left) * _LEFT
        if cracks not in (0, _UP | _DOWN):
            mark_vertex(state, state.counters[ROW], col)
            place_vertex(state, col, cracks)
        if col == width:
            break
        up_left, low_left = up_right, low_right
        quad[3], quad[2] = quad[0], quad[1]


@compiled
def place_vertex(state: State, col: int, cracks: int) -> None:
    """A corner, where the chain turns (or begins, or two meet), or a node."""
    tip, other, corners = state.tip, state.other, state.corners
    across = len(tip) - 1
    if cracks not in (_RIGHT | _DOWN, _LEFT | _DOWN, _UP | _RIGHT, _UP | _LEFT):
        place_node(state, col, cracks)
        return
    corner = take(corners, state.counters, CORNERS)
    corners[corner].row, corners[corner].col = state.counters[ROW], col
    corners[corner].a = corners[corner].b = NONE
    corners[corner].kept = 0
    if cracks == _RIGHT | _DOWN:
        tip[col] = tip[across] = corner
        other[col], other[across] = across, col
        return
    if cracks == _UP | _LEFT:
        meet(state, tip[col], corner)
        meet(state, tip[across], corner)
        one, two = other[col], other[across]
        if one == across:
            close_loop(state, corner)
        elif one < 0 and two < 0:
            complete(state, ~one, ~two)
        else:
            if one >= 0:
                other[one] = two
            if two >= 0:
                other[two] = one
        return
    here, there = (across, col) if cracks == _LEFT | _DOWN else (col, across)
    meet(state, tip[here], corner)
    tip[there], other[there] = corner, other[here]
    if other[here] >= 0:
        other[other[here]] = there


@compiled
def meet(state: State, tip: int, corner: int) -> None:
    """Let a new corner and the last item of a chain point to each other."""
    relink(state, tip, NONE, corner)
    relink(state, corner, NONE, tip)


@compiled
def place_node(state: State, col: int, cracks: int) -> None:
    """End the arcs that arrive from above and from the left, begin those that leave, and note how walkers go on."""
    tip, other, ends, arms = state.tip, state.other, state.ends, state.arms
    across = len(tip) - 1
    # Arrivals first: what leaves to the right takes the place of what came from the left.
    for direction in (0, 3, 1, 2):
        arms[direction] = -1
        if not cracks >> direction & 1:
            continue
        end = new_end(state, state.counters[ROW], col)
        arms[direction] = end
        place = col if direction in (0, 2) else across
        if direction in (1, 2):
            ends[end].link = NONE
            tip[place] = other[place] = ~end
            continue
        ends[end].link = tip[place]
        relink(state, tip[place], NONE, ~end)
        if other[place] >= 0:
            other[other[place]] = ~end
        else:
            complete(state, ~other[place], end)
    full = cracks == _UP | _RIGHT | _DOWN | _LEFT
    for direction in range(4):
        end = arms[direction]
        if end < 0:
            continue
        for turn in (3, 2, 1):  # to the right of one who arrives, straight on, to the left
            if arms[(direction + turn) % 4] >= 0:
                ends[end].turn = arms[(direction + turn) % 4]
                break
        ends[end].cross = arms[(direction + 1) % 4] if full else -1
        attach(state, end, state.quad[direction])


@compiled
def complete_regions(state: State, lower: int) -> None:
    """Put the regions that do not reach the lower row on the list, and drop those that are too small at once."""
    regions, ends, counters = state.regions, state.ends, state.counters
    upper = 1 - lower
    for run in range(counters[RUNS + upper]):
        if state.label[upper, run] == VOID:
            continue
        region = root(regions, state.region[upper, run])
        if regions[region].row == counters[ROW] or regions[region].row == NONE:
            continue
        regions[region].row = NONE
        if regions[region].area < state.min_area:
            drop(state, region)
            state.dead[counters[DEAD]] = region
            counters[DEAD] += 1
            continue
        end = regions[region].head
        while end >= 0:
            counters[POINTS] += ends[end].size + 1
            counters[RINGS] += 1
            end = ends[end].next
        state.pending[counters[PENDING]] = region
        counters[PENDING] += 1
    # Only now: until here runs of the upper row may still name them.
    for i in range(counters[DEAD]):
        give(regions, counters, REGIONS, state.dead[i])
    counters[DEAD] = 0
