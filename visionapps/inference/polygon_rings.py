"""Compiled assembly of complete regions: arcs are walked with the region on the right and written as rings.

At a vertex where two pixels of a region touch by their corners, and nothing else connects them there, the walker stays
with his pixel if the other one belongs to another region. If it is his own region, connected elsewhere, one of the two
other pixels is enclosed: he crosses over, which makes a hole that touches the outline in a point, as the OGC standard
wants it, and not one ring that touches itself.
"""

from typing import Any, NamedTuple

import numpy as np

from visionapps.compiled import compiled
from visionapps.inference.polygon_state import (
    PENDING,
    POINTS,
    REGIONS,
    RINGS,
    SERIAL,
    State,
    beyond,
    drop,
    give,
)


class Rings(NamedTuple):
    """P complete regions as R rings of V vertices; the outline of a region comes before its holes.

    Outlines run clockwise on the screen, holes the other way; every ring ends with its first vertex.
    """

    points: np.ndarray  # (V, 2) float64, col and row
    rings: np.ndarray  # (R + 1,) int64, where each ring begins in points
    parts: np.ndarray  # (P + 1,) int64, where each region begins in rings
    labels: np.ndarray  # (P,) uint8
    pixels: np.ndarray  # (P,) int64
    areas: np.ndarray  # (P,) float64
    confidences: np.ndarray  # (P,) float64, mean over the pixels that have one, in [0, 254]; NaN without any


def take_rings(state: State) -> Rings:
    """The complete regions, in the order of completion; they leave the state."""
    count = int(state.counters[PENDING])
    rings = Rings(
        points=np.empty((int(state.counters[POINTS]), 2), np.float64),
        rings=np.zeros(int(state.counters[RINGS]) + 1, np.int64),
        parts=np.zeros(count + 1, np.int64),
        labels=np.empty(count, np.uint8),
        pixels=np.empty(count, np.int64),
        areas=np.empty(count, np.float64),
        confidences=np.full(count, np.nan),
    )
    points, used = write_regions(state, rings)
    return rings._replace(points=rings.points[:points], rings=rings.rings[: used + 1])


@compiled
def write_regions(state: State, out: Rings) -> Any:
    """Write all pending regions and free them; gives the numbers of vertices and rings written."""
    regions, counters = state.regions, state.counters
    points, rings = 0, 0
    for i in range(counters[PENDING]):
        region = int(state.pending[i])
        out.labels[i], out.pixels[i] = regions[region].label, regions[region].pixels
        out.areas[i] = regions[region].area
        if regions[region].voters > 0:
            out.confidences[i] = regions[region].shares / regions[region].voters
        points, rings = write_region(state, out, region, points, rings)
        out.parts[i + 1] = rings
        drop(state, region)
        give(regions, counters, REGIONS, region)
    counters[PENDING] = counters[POINTS] = counters[RINGS] = 0
    return points, rings


@compiled
def write_region(state: State, out: Rings, region: int, points: int, rings: int) -> Any:
    """Write the rings of a region behind those already there; gives the new numbers of vertices and rings."""
    ends, regions = state.ends, state.regions
    state.counters[SERIAL] += 1
    end = int(regions[region].head)
    while end >= 0:
        ends[end].mark = state.counters[SERIAL]
        end = ends[end].next
    first_ring, first_point = rings, points
    end = int(regions[region].head)
    while end >= 0:
        if ends[end].mark == state.counters[SERIAL]:
            begin = points
            points = write_ring(state, out.points, end, points)
            rings += 1
            out.rings[rings] = points
            if is_clockwise(out.points, begin, points) and rings > first_ring + 1:
                bring_forward(out, first_ring, rings, first_point, begin)
        end = ends[end].next
    return points, rings


@compiled
def write_ring(state: State, points: Any, start: int, count: int) -> int:
    """Write the ring that begins with an arc, and take the marks off its arcs; gives the new number of vertices."""
    ends, corners = state.ends, state.corners
    end, first = start, count
    while True:
        # Negative: walked already, but still known to be of this region.
        ends[end].mark = -state.counters[SERIAL]
        points[count, 0], points[count, 1] = ends[end].col, ends[end].row
        count += 1
        before, item = ~end, ends[end].link
        while item >= 0:
            points[count, 0], points[count, 1] = corners[item].col, corners[item].row
            count += 1
            before, item = item, beyond(corners, item, before)
        mate = ends[end].mate
        end = ends[mate].turn
        across = ends[mate].cross
        # The number of an arc that was freed may stand for another one by now: at another place.
        if (
            across >= 0
            and abs(ends[across].mark) == state.counters[SERIAL]
            and ends[across].row == ends[mate].row
            and ends[across].col == ends[mate].col
        ):
            end = across
        if end == start:
            break
    points[count, 0], points[count, 1] = points[first, 0], points[first, 1]
    return count + 1


@compiled
def is_clockwise(points: Any, begin: int, end: int) -> bool:
    """Whether the ring of the points [begin, end) runs clockwise on the screen."""
    twice_area = 0.0
    for i in range(begin, end - 1):
        twice_area += points[i, 0] * points[i + 1, 1] - points[i + 1, 0] * points[i, 1]
    return twice_area > 0


@compiled
def reverse(points: Any, begin: int, end: int) -> None:
    """Turn the order of the points [begin, end) round."""
    end -= 1
    while begin < end:
        for axis in range(2):
            points[begin, axis], points[end, axis] = points[end, axis], points[begin, axis]
        begin += 1
        end -= 1


@compiled
def bring_forward(out: Rings, first_ring: int, rings: int, first_point: int, begin: int) -> None:
    """Move the last ring of a region, which is its outline, before the others."""
    end = out.rings[rings]
    size = end - begin
    reverse(out.points, first_point, end)
    reverse(out.points, first_point, first_point + size)
    reverse(out.points, first_point + size, end)
    for ring in range(rings - 1, first_ring, -1):
        out.rings[ring] = out.rings[ring - 1] + size
    out.rings[first_ring + 1] = first_point + size
