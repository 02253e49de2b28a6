"""Compiled simplification of arcs, such that neighbours keep their common edges and nothing ever crosses.

Source: the rule of Douglas and Peucker (1973) chooses the corners; a chord is taken only if the area between it and the
corners that it replaces holds no corner or node of any other boundary and none of the rest of its own (the consistency
condition of de Berg, van Kreveld and Schirra, 1998). Such chords can be put in one by one, in any order, and the
drawing stays free of crossings: a foreign edge that crossed the chord would have to end inside that area. What remains
to be excluded is two chords between the same two vertices; see ``reduce_arc`` and ``pin_loop``. So every polygon stays
valid and the map a partition, whatever the tolerance, without looking at regions at all.

All decisions are taken at the end of a row of vertices and depend on rows above it only, hence not on how the rows
were cut into bands.
"""

from typing import Any

import numpy as np

from visionapps.compiled import compiled
from visionapps.inference.polygon_state import (
    CORNERS,
    LAST,
    NONE,
    QUEUED,
    ROW,
    RUNS,
    WINDOW,
    State,
    attach,
    beyond,
    give,
    new_end,
    relink,
)

_PIECE = 1024  # corners after which one is kept: bounds the square worst case of Douglas-Peucker


@compiled
def mark_vertex(state: State, row: int, col: int) -> None:
    """Note a corner or node in the lattice bitmap."""
    if state.bits.shape[1]:
        state.bits[row % (2 * WINDOW), col >> 6] |= np.uint64(1) << np.uint64(col & 63)


@compiled
def complete(state: State, one: int, two: int) -> None:
    """Make an arc of a chain that has arrived at ends on both sides."""
    state.ends[one].mate, state.ends[two].mate = two, one
    state.queue[state.counters[QUEUED]] = one
    state.counters[QUEUED] += 1


@compiled
def close_loop(state: State, last: int) -> None:
    """Make an arc of a closed chain: its topmost, leftmost corner becomes a node of two ends.

    Args:
        last: the corner that closed it, with the inside up to the left of it.
    """
    corners, ends, counters = state.corners, state.ends, state.counters
    first, before_first, after_first, twice_area = int(last), NONE, NONE, 0
    before, item = int(corners[last].b), int(last)
    while True:
        after = beyond(corners, item, before)
        twice_area += corners[item].col * corners[after].row - corners[after].col * corners[item].row
        down = corners[item].row - corners[first].row
        if down < 0 or (down == 0 and corners[item].col < corners[first].col):
            first, before_first, after_first = item, before, after
        before, item = item, after
        if item == last:
            break
    if twice_area < 0:
        before_first, after_first = after_first, before_first
    row, col = corners[first].row, corners[first].col
    outward, inward = new_end(state, row, col), new_end(state, row, col)
    ends[outward].turn, ends[outward].link = inward, after_first
    ends[inward].turn, ends[inward].link = outward, before_first
    relink(state, after_first, first, ~outward)
    relink(state, before_first, first, ~inward)
    give(corners, counters, CORNERS, first)
    attach(state, outward, int(state.quad[3]))
    attach(state, inward, int(state.quad[1]))
    complete(state, outward, inward)


@compiled
def simplify_queue(state: State) -> None:
    """Simplify the arcs that the current row of vertices completed."""
    ends, corners = state.ends, state.corners
    for i in range(state.counters[QUEUED]):
        end = int(state.queue[i])
        mate = int(ends[end].mate)
        count = 2
        before, item = ~end, int(ends[end].link)
        while item >= 0:
            count += 1
            before, item = item, beyond(corners, item, before)
        if count > 2 and state.tolerance > 0:
            count = reduce_arc(state, end, count)
        ends[end].size = ends[mate].size = count - 1
    state.counters[QUEUED] = 0


@compiled
def reduce_arc(state: State, end: int, count: int) -> int:
    """Simplify a complete arc of so many vertices; gives how many are left."""
    ends, corners = state.ends, state.corners
    items, places, kept = np.empty(count, np.int32), np.empty((count, 2), np.int64), np.zeros(count, np.bool_)
    before, item = NONE, ~end
    for i in range(count):
        items[i] = item
        if item < 0:
            places[i] = ends[~item].row, ends[~item].col
            kept[i] = True
            before, item = item, ends[~item].link
        else:
            places[i] = corners[item].row, corners[item].col
            kept[i] = corners[item].kept != 0
            before, item = item, beyond(corners, item, before)
    if places[0, 0] == places[-1, 0] and places[0, 1] == places[-1, 1]:
        pin_loop(places, kept)
    elif is_lens(state, end) or is_lens(state, int(ends[end].mate)):
        # The arc and another one enclose a region: if both became straight, it would vanish.
        kept[farthest(places, 0, count - 1)] = True
    return int(reduce_chain(state, items, places, kept))


@compiled
def is_lens(state: State, end: int) -> bool:
    """Whether what lies to the right of a complete arc is bounded by it and one other complete arc."""
    ends = state.ends
    mate = ends[end].mate
    back = ends[mate].turn
    if ends[back].row != ends[mate].row or ends[back].col != ends[mate].col or ends[back].mate < 0:
        return False  # freed already, or still open: then the other arc sees this one when it is complete
    home = ends[back].mate
    return bool(ends[home].row == ends[end].row and ends[home].col == ends[end].col and ends[home].turn == end)


@compiled
def pin_loop(places: Any, kept: Any) -> None:
    """Keep the topmost, rightmost, lowest and leftmost corner of a closed arc, so that it never collapses.

    Among equals the first one clockwise counts: the four corners of a rectangle.
    """
    count = len(places)
    top, right, low, left = 0, 0, 0, 0
    for i in range(1, count - 1):
        down, right_of = places[i, 0] - places[top, 0], places[i, 1] - places[top, 1]
        if down < 0 or (down == 0 and right_of < 0):
            top = i
        down, right_of = places[i, 0] - places[right, 0], places[i, 1] - places[right, 1]
        if right_of > 0 or (right_of == 0 and down < 0):
            right = i
        down, right_of = places[i, 0] - places[low, 0], places[i, 1] - places[low, 1]
        if down > 0 or (down == 0 and right_of > 0):
            low = i
        down, right_of = places[i, 0] - places[left, 0], places[i, 1] - places[left, 1]
        if right_of < 0 or (right_of == 0 and down > 0):
            left = i
    kept[top] = kept[right] = kept[low] = kept[left] = True
    distinct = 0
    other = 0
    for i in range(1, count - 1):
        if kept[i]:
            distinct += 1
            other = i
    if distinct == 1:  # two vertices enclose nothing
        one, two = farthest(places, 0, other), farthest(places, other, count - 1)
        kept[one if one > 0 else two] = True


@compiled
def simplify_open(state: State, lower: int) -> None:
    """Simplify the chains that go on below the current row, up to their last corner, which stays for good."""
    start, label, corners = state.start[lower], state.label[lower], state.corners
    left = -1
    for run in range(state.counters[RUNS + lower] + 1):
        here = -1 if label[run] == 255 else int(label[run])
        if here == left:
            continue
        left = here
        tip = int(state.tip[start[run]])
        if tip < 0 or corners[tip].kept:
            continue
        count = 1
        before, item = NONE, tip
        while item >= 0 and not (count > 1 and corners[item].kept):
            after = beyond(corners, item, before)
            if after == NONE:
                break
            count += 1
            before, item = item, after
        items, places, kept = np.empty(count, np.int32), np.empty((count, 2), np.int64), np.zeros(count, np.bool_)
        before, item = NONE, tip
        for i in range(count):
            items[i] = item
            if item < 0:
                places[i] = state.ends[~item].row, state.ends[~item].col
                break
            places[i] = corners[item].row, corners[item].col
            before, item = item, beyond(corners, item, before)
        kept[0] = kept[-1] = True
        reduce_chain(state, items, places, kept)


@compiled
def reduce_chain(state: State, items: Any, places: Any, kept: Any) -> int:
    """Take the corners out of a chain that are not needed within the tolerance; gives how many vertices are left.

    Args:
        items: (n,) corners and ends in order.
        places: (n, 2) int64 row and col.
        kept: (n,) bool, those that must stay; the first and the last among them.
    """
    count = len(items)
    current, width = state.counters[ROW], state.start.shape[1] - 2
    oldest = current - 2 * WINDOW + 1  # the bitmap knows nothing above this row
    for i in range(count):
        if places[i, 1] in (0, width) and (places[i, 0] == 0 or (places[i, 0] == current and state.counters[LAST])):
            kept[i] = True  # a corner of the raster
        if places[i, 0] < oldest:
            kept[max(i - 1, 0)] = kept[i] = kept[min(i + 1, count - 1)] = True
    first = 0
    for i in range(1, count):
        kept[i] |= i % _PIECE == 0
        if kept[i]:
            if i > first + 1:
                split(state, places, kept, first, i)
            first = i
    left, last = 0, 0
    for i in range(count):
        item = int(items[i])
        if not kept[i]:
            give(state.corners, state.counters, CORNERS, item)
            continue
        left += 1
        if item >= 0:
            state.corners[item].kept = 1
        if i > last + 1:
            relink(state, int(items[last]), int(items[last + 1]), item)
            relink(state, item, int(items[i - 1]), int(items[last]))
        last = i
    return left


@compiled
def split(state: State, places: Any, kept: Any, first: int, last: int) -> None:
    """Mark the vertices that stay between two that do (Douglas and Peucker, with a stack)."""
    waiting = [(first, last)]
    while len(waiting) > 0:
        first, last = waiting.pop()
        middle = farthest(places, first, last)
        if distance(places, first, last, middle) > state.tolerance or is_blocked(state, places, first, last):
            kept[middle] = True
            if middle > first + 1:
                waiting.append((first, middle))
            if last > middle + 1:
                waiting.append((middle, last))


@compiled
def farthest(places: Any, first: int, last: int) -> int:
    """The vertex between two others that is farthest from their chord; ``first`` if there is none off it."""
    best, found = 0.0, first
    for i in range(first + 1, last):
        away = distance(places, first, last, i)
        if away > best:
            best, found = away, i
    return found


@compiled
def distance(places: Any, first: int, last: int, i: int) -> float:
    """From a vertex to the chord of two others, in pixels."""
    down, right = places[last, 0] - places[first, 0], places[last, 1] - places[first, 1]
    row, col = places[i, 0] - places[first, 0], places[i, 1] - places[first, 1]
    squared = down * down + right * right
    along = row * down + col * right
    if along <= 0 or squared == 0:
        return float(np.hypot(row, col))
    if along >= squared:
        return float(np.hypot(row - down, col - right))
    return float(abs(row * right - col * down) / np.sqrt(squared))


@compiled
def is_blocked(state: State, places: Any, first: int, last: int) -> bool:
    """Whether a foreign corner or node lies on a chord, or between it and the corners that it would replace.

    The corners are within the tolerance of the chord, so only a strip along it is looked at.
    """
    bits = state.bits
    top, low, leftmost, rightmost = places[first, 0], places[first, 0], places[first, 1], places[first, 1]
    for i in range(first, last + 1):
        top, low = min(top, places[i, 0]), max(low, places[i, 0])
        leftmost, rightmost = min(leftmost, places[i, 1]), max(rightmost, places[i, 1])
        bits[places[i, 0] % (2 * WINDOW), places[i, 1] >> 6] &= ~(np.uint64(1) << np.uint64(places[i, 1] & 63))
    down, right = places[last, 0] - places[first, 0], places[last, 1] - places[first, 1]
    found = False
    for row in range(top, low + 1):
        left, end = leftmost, rightmost
        if down != 0:
            middle = places[first, 1] + (row - places[first, 0]) * right / down
            reach = state.tolerance * np.hypot(down, right) / abs(down) + 1e-6
            left, end = max(left, int(np.floor(middle - reach))), min(end, int(np.ceil(middle + reach)))
        for word in range(left >> 6, (end >> 6) + 1):
            rest = bits[row % (2 * WINDOW), word]
            col = word << 6
            while rest != 0 and not found:
                if rest & np.uint64(1) and left <= col <= end:
                    found = is_swept(places, first, last, row, col)
                rest >>= np.uint64(1)
                col += 1
        if found:
            break
    for i in range(first, last + 1):
        mark_vertex(state, places[i, 0], places[i, 1])
    return found


@compiled
def is_swept(places: Any, first: int, last: int, row: int, col: int) -> bool:
    """Whether a vertex that is not on a chain lies on its chord or, by even and odd, between chain and chord."""
    down, right = places[last, 0] - places[first, 0], places[last, 1] - places[first, 1]
    side = right * (row - places[first, 0]) - down * (col - places[first, 1])
    along = right * (col - places[first, 1]) + down * (row - places[first, 0])
    if side == 0 and 0 <= along <= right * right + down * down:
        return True
    inside = False
    for i in range(first, last):
        high, low = places[i, 0], places[i + 1, 0]
        if (high <= row) != (low <= row) and places[i, 1] > col:  # cracks upright and to the right of it
            inside = not inside
    if (places[first, 0] <= row) != (places[last, 0] <= row) and (side > 0) == (down > 0):
        inside = not inside
    return inside
