"""Selective search: boxes of regions that grow from many segmentations of one image. It learns nothing.

Shapes: H W image, C channels, P boxes.

Source: Uijlings et al., Selective search for object recognition, IJCV 2013.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from visionapps.errors import ConfigError, DataError

# Colour spaces, scales k of the first segments, and which similarities are summed: table 5 of the paper, where "fast"
# and "quality" stand for these. C colour, T texture, S size, F fill.
_MODES: dict[str, tuple[tuple[str, ...], tuple[int, ...], tuple[str, ...]]] = {
    "fast": (("hsv", "lab"), (50, 100), ("CTSF", "TSF")),
    "quality": (("hsv", "lab", "rgi", "hue", "grey"), (50, 100, 150, 300), ("CTSF", "TSF", "F", "S")),
}
_SIGMA = 0.8  # px; of the smoothing before the first segments, as in both papers
_PACK = 16  # bits of a coordinate while boxes are compared; larger images take the slower way


@dataclass(frozen=True)
class SelectiveSearch:
    """What is searched for.

    Args:
        mode: "fast": 8 trees of 2 colour spaces; "quality": 80 trees of 5, for a few more objects at ten times the
            cost.
        most: boxes per image, the best ranked; None: all.
        least_side: px; boxes that are narrower or lower are left out.
        seed: of the random part of the ranking. The boxes of an image depend on it and on the image alone.
    """

    mode: Literal["fast", "quality"] = "fast"
    most: int | None = 2000
    least_side: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise ConfigError(f"selective search: mode {self.mode!r} is unknown; choose {' or '.join(_MODES)}")
        if self.least_side < 1 or (self.most is not None and self.most < 1) or self.seed < 0:
            raise ConfigError(
                f"selective search: least_side {self.least_side} and most {self.most} must be at least 1, and seed "
                f"{self.seed} at least 0"
            )

    @property
    def method(self) -> str:
        """In words, for the file of proposals."""
        most = "all" if self.most is None else f"the best {self.most}"
        return f"selective search, {self.mode}, {most}, least side {self.least_side} px, seed {self.seed}"


def selective_search(image: np.ndarray, search: SelectiveSearch | None = None) -> np.ndarray:
    """Boxes that may hold an object.

    Args:
        image: (H, W, C) of any dtype with 1, 3 or more channels; the first three count, red green blue.
        search: mode and limits; None: the defaults.

    Returns:
        (P, 4) float32 x0 y0 x1 y1, half-open, all different, best first: boxes of large regions tend to come first,
        by chance where trees disagree (section 3.4 of the paper). An image smaller than least_side gives none.

    Raises:
        DataError: the image is empty or has two channels.
    """
    search = search or SelectiveSearch()
    colors = as_rgb8(image)
    boxes, ranks = [], []
    random = np.random.default_rng(search.seed)
    for tree in _trees(colors, search.mode):
        place = np.arange(len(tree), 0, -1)  # 1: the whole image, which was merged last
        boxes.append(tree)
        ranks.append(place * random.random(len(tree)))
    return _ranked(np.concatenate(boxes), np.concatenate(ranks), search)


def as_rgb8(image: np.ndarray) -> np.ndarray:
    """Three channels of 8 bits that show what the image shows.

    Other dtypes than uint8 are stretched from their 1st to their 99th percentile, all channels alike; one channel is
    taken as grey, of more than three the first three are taken.

    Raises:
        DataError: the image is empty or has two channels.
    """
    if image.ndim != 3 or not image.size or image.shape[2] == 2:
        raise DataError(
            f"selective search: an image of shape {image.shape}, but (H, W, C) with 1, 3 or more channels is expected; "
            "choose bands"
        )
    shown = np.repeat(image, 3, 2) if image.shape[2] == 1 else image[:, :, :3]
    if shown.dtype != np.uint8:
        values = np.nan_to_num(shown.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        low, high = np.percentile(values, (1, 99))
        shown = np.clip((values - low) * (255 / max(float(high - low), 1e-6)), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(shown)


def _trees(colors: np.ndarray, mode: str) -> Iterator[np.ndarray]:
    """(M, 4) int32 boxes of every tree, leaves first."""
    import cv2

    from visionapps.data.grouping import describe, group, texture_bins
    from visionapps.data.segments import pixel_graph, segments

    spaces, scales, sums = _MODES[mode]
    for space in spaces:
        image = _converted(colors, space)
        smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), _SIGMA).reshape(image.shape)
        graph = pixel_graph(smooth)
        textures = texture_bins(image)
        for scale in scales:
            labels, count = segments(graph, scale, scale)  # the paper's code has the scale as the least size, too
            regions = describe(labels, count, image, textures)
            for letters in sums:
                yield group(
                    regions, color="C" in letters, texture="T" in letters, size="S" in letters, fill="F" in letters
                )


def _converted(rgb: np.ndarray, space: str) -> np.ndarray:
    """(H, W, C) uint8 in another colour space, every channel over the whole range."""
    import cv2

    if space == "lab":
        return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB))
    if space == "grey":
        return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))[:, :, None]
    if space == "rgi":  # normalised red and green, and intensity
        total = rgb.sum(2, dtype=np.float32)
        shares = rgb[:, :, :2] * (255 / np.maximum(total, 1))[:, :, None]
        return np.concatenate([shares, total[:, :, None] / 3], 2).round().astype(np.uint8)
    hsv = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV_FULL))
    return hsv if space == "hsv" else np.ascontiguousarray(hsv[:, :, :1])


def _ranked(boxes: np.ndarray, ranks: np.ndarray, search: SelectiveSearch) -> np.ndarray:
    """Different boxes of sufficient size, by the best rank of each."""
    sides = boxes[:, 2:] - boxes[:, :2]
    large = (sides >= search.least_side).all(1)
    boxes, ranks = boxes[large], ranks[large]
    order = np.argsort(ranks, kind="stable")
    boxes = boxes[order]
    if len(boxes) and boxes.max() < 1 << _PACK:
        wide = boxes.astype(np.int64)
        packed = wide[:, 0] << 3 * _PACK | wide[:, 1] << 2 * _PACK | wide[:, 2] << _PACK | wide[:, 3]
        _, first = np.unique(packed, return_index=True)
    else:
        _, first = np.unique(boxes, axis=0, return_index=True)
    best: np.ndarray = boxes[np.sort(first)][: search.most].astype(np.float32)
    return best
