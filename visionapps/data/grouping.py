"""Grouping of segments, the most alike first, until the whole image is one region: the trees of selective search.

Shapes: H W image, C channels, R segments, M = 2 R - 1 regions (segments, then merged ones in the order of merging).

Source: Uijlings et al., Selective search for object recognition, IJCV 2013, section 3.
"""

import heapq
from typing import NamedTuple

import numpy as np

from visionapps.compiled import compiled

COLOR_BINS = 25  # per channel, as in the paper
TEXTURE_BINS = 10  # per direction and channel, as in the paper
DIRECTIONS = 8


class Regions(NamedTuple):
    """What similarities are computed from, for the segments of one segmentation."""

    boxes: np.ndarray  # (R, 4) int32 x0 y0 x1 y1, half-open
    sizes: np.ndarray  # (R,) int64 pixels
    colors: np.ndarray  # (R, C * COLOR_BINS) float32, sums to 1
    textures: np.ndarray  # (R, C * DIRECTIONS * TEXTURE_BINS) float32, sums to 1
    neighbors: np.ndarray  # (N, 2) int64 pairs of segments that touch, a < b
    pixels: int  # H * W


def describe(labels: np.ndarray, count: int, image: np.ndarray, textures: np.ndarray) -> Regions:
    """Measure the segments of an image.

    Args:
        labels: (H, W) int32 in [0, count).
        count: R.
        image: (H, W, C) uint8, the channels whose colours are compared.
        textures: (H, W, C, DIRECTIONS) uint8 bins below TEXTURE_BINS, see ``texture_bins``.
    """
    boxes, sizes, colors, texture = _measure(labels, count, image, textures)
    colors /= colors.sum(1, keepdims=True)
    texture /= texture.sum(1, keepdims=True)
    neighbors = np.stack(np.divmod(np.unique(_touching(labels, count)), count), 1)
    return Regions(boxes, sizes, colors, texture, neighbors, labels.size)


def texture_bins(image: np.ndarray) -> np.ndarray:
    """In which bin the derivative of every pixel lies, per channel and direction.

    Gaussian derivatives with a sigma of 1 px, as the paper has it; opposite directions are the two signs of one
    derivative. The bins divide what the strongest derivative of a channel spans.

    Args:
        image: (H, W, C) uint8.

    Returns:
        (H, W, C, DIRECTIONS) uint8 below TEXTURE_BINS.
    """
    import cv2

    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 1.0).reshape(image.shape)
    padded = np.pad(smooth, ((1, 1), (1, 1), (0, 0)), mode="edge")
    across = (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2
    down = (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2
    return _bin_directions(np.ascontiguousarray(across), np.ascontiguousarray(down))


def group(regions: Regions, *, color: bool, texture: bool, size: bool, fill: bool) -> np.ndarray:
    """Merge the two neighbours that are most alike, again and again.

    Args:
        regions: the segments.
        color: whether similar colours count; and so on: a similarity is the sum of those that count.
        texture: similar textures.
        size: small regions first.
        fill: regions that fill the gaps of each other.

    Returns:
        (M, 4) int32 boxes: of the segments, then of the merged regions; the last is the whole image.
    """
    wanted = np.array([color, texture, size, fill], np.bool_)
    boxes, merged = _merge(*regions, wanted)
    return boxes[:merged]


@compiled
def _bin_directions(across: np.ndarray, down: np.ndarray) -> np.ndarray:
    height, width, channels = across.shape
    bins = np.empty((height, width, channels, 8), np.uint8)
    half = np.float32(np.sqrt(0.5))
    most = np.full(channels, np.float32(1e-6))
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                dx, dy = across[y, x, c], down[y, x, c]
                diagonal = max(abs(dx + dy), abs(dx - dy)) * half
                most[c] = max(most[c], abs(dx), abs(dy), diagonal)
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                dx, dy = across[y, x, c], down[y, x, c]
                unit = np.float32(9.999) / most[c]
                derivatives = (dx, dy, (dx + dy) * half, (dx - dy) * half)
                for d in range(4):
                    bins[y, x, c, 2 * d] = np.uint8(max(derivatives[d], np.float32(0)) * unit)
                    bins[y, x, c, 2 * d + 1] = np.uint8(max(-derivatives[d], np.float32(0)) * unit)
    return bins


@compiled
def _measure(
    labels: np.ndarray, count: int, image: np.ndarray, textures: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    height, width, channels = image.shape
    boxes = np.zeros((count, 4), np.int32)
    boxes[:, 0], boxes[:, 1] = width, height
    sizes = np.zeros(count, np.int64)
    colors = np.zeros((count, channels * 25), np.float32)
    texture = np.zeros((count, channels * 80), np.float32)
    for y in range(height):
        for x in range(width):
            r = labels[y, x]
            sizes[r] += 1
            boxes[r, 0], boxes[r, 1] = min(boxes[r, 0], x), min(boxes[r, 1], y)
            boxes[r, 2], boxes[r, 3] = max(boxes[r, 2], x + 1), max(boxes[r, 3], y + 1)
            for c in range(channels):
                colors[r, c * 25 + image[y, x, c] * 25 // 256] += 1
                for d in range(8):
                    texture[r, (c * 8 + d) * 10 + textures[y, x, c, d]] += 1
    return boxes, sizes, colors, texture


@compiled
def _touching(labels: np.ndarray, count: int) -> np.ndarray:
    """Where pixels of two labels touch by a side or a corner: the lower label times count, plus the greater one."""
    height, width = labels.shape
    keys = np.empty(4 * labels.size, np.int64)
    found = 0
    for y in range(height):
        for x in range(width):
            one = np.int64(labels[y, x])
            for dy, dx in ((0, 1), (1, -1), (1, 0), (1, 1)):
                if 0 <= x + dx < width and y + dy < height:
                    other = np.int64(labels[y + dy, x + dx])
                    if one != other:
                        keys[found] = min(one, other) * count + max(one, other)
                        found += 1
    return keys[:found]


@compiled
def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    total = np.float32(0)
    for i in range(one.size):
        total += min(one[i], other[i])
    return float(total)


@compiled
def _likeness(
    a: int,
    b: int,
    boxes: np.ndarray,
    sizes: np.ndarray,
    colors: np.ndarray,
    textures: np.ndarray,
    pixels: int,
    wanted: np.ndarray,
) -> float:
    """The sum of the wanted similarities, each in [0, 1]."""
    total = 0.0
    both = sizes[a] + sizes[b]
    if wanted[0]:
        total += _overlap(colors[a], colors[b])
    if wanted[1]:
        total += _overlap(textures[a], textures[b])
    if wanted[2]:
        total += 1.0 - both / pixels
    if wanted[3]:
        width = max(boxes[a, 2], boxes[b, 2]) - min(boxes[a, 0], boxes[b, 0])
        height = max(boxes[a, 3], boxes[b, 3]) - min(boxes[a, 1], boxes[b, 1])
        total += 1.0 - (np.int64(width) * height - both) / pixels
    return total


@compiled
def _root(parents: np.ndarray, one: int) -> int:
    while parents[one] != one:
        parents[one] = parents[parents[one]]
        one = parents[one]
    return one


@compiled
def _grown(rows: np.ndarray, count: int) -> np.ndarray:
    """Room for the regions that are merged from the given ones."""
    grown = np.zeros((max(1, 2 * count - 1), rows.shape[1]), rows.dtype)
    grown[:count] = rows
    return grown


@compiled
def _linked(neighbors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The neighbours of every segment as a linked list: the first node of each, which node follows, who it names."""
    first = np.full(2 * count, -1, np.int32)
    following = np.empty(2 * len(neighbors), np.int32)
    named = np.empty(2 * len(neighbors), np.int32)
    for n in range(len(neighbors)):
        for side in range(2):
            node, owner = 2 * n + side, neighbors[n, side]
            named[node] = neighbors[n, 1 - side]
            following[node] = first[owner]
            first[owner] = node
    return first, following, named


@compiled
def _join(a: int, b: int, new: int, boxes: np.ndarray, sizes: np.ndarray, histograms: tuple[np.ndarray, ...]) -> None:
    """Measure the region that two others become: nothing is counted anew."""
    for side in range(2):
        boxes[new, side] = min(boxes[a, side], boxes[b, side])
        boxes[new, side + 2] = max(boxes[a, side + 2], boxes[b, side + 2])
    sizes[new] = sizes[a] + sizes[b]
    share = np.float32(sizes[a] / sizes[new])
    for rows in histograms:
        for i in range(rows.shape[1]):
            rows[new, i] = share * rows[a, i] + (np.float32(1) - share) * rows[b, i]


@compiled
def _merge(
    boxes: np.ndarray,
    sizes: np.ndarray,
    colors: np.ndarray,
    textures: np.ndarray,
    neighbors: np.ndarray,
    pixels: int,
    wanted: np.ndarray,
) -> tuple[np.ndarray, int]:
    count = len(boxes)
    boxes, colors, textures = _grown(boxes, count), _grown(colors, count), _grown(textures, count)
    sizes = _grown(sizes.reshape(-1, 1), count)[:, 0]
    parents = np.arange(len(boxes))
    seen = np.full(len(boxes), -1, np.int64)
    first, following, named = _linked(neighbors, count)
    heap: list[tuple[float, int, int]] = [(-9.0, 0, 0)]  # gives the list its type; the key of a pair is never below -4
    for n in range(len(neighbors)):
        a, b = int(neighbors[n, 0]), int(neighbors[n, 1])
        key = _likeness(a, b, boxes, sizes, colors, textures, pixels, wanted)
        heapq.heappush(heap, (-key, a, b))
    heapq.heappop(heap)
    new = count
    while len(heap) > 0:
        _, a, b = heapq.heappop(heap)
        if parents[a] != a or parents[b] != b:  # one of them has become part of another region since
            continue
        _join(a, b, new, boxes, sizes, (colors, textures))
        parents[a] = parents[b] = new
        kept = -1
        for one in (a, b):
            node = first[one]
            while node >= 0:
                after = following[node]
                other = _root(parents, named[node])
                if other != new and seen[other] != new:
                    seen[other] = new
                    named[node], following[node], kept = other, kept, node
                    key = _likeness(other, new, boxes, sizes, colors, textures, pixels, wanted)
                    heapq.heappush(heap, (-key, other, new))
                node = after
        first[new] = kept
        new += 1
    return boxes, new
