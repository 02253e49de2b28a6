"""The objects of one image, as every part outside of a network sees them: annotated ones and detected ones alike.

Shapes: N objects, H W image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from visionapps.errors import DataError
from visionapps.masks import CocoRle


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of one image.

    Arrays that are left out hold the usual: no crowd, nothing difficult, the area of the box.

    Attributes:
        boxes: (N, 4) float64, x0 y0 x1 y1 in pixels of the image, half-open; the image covers [0, W) x [0, H).
        labels: (N,) int64 in [0, K): background has no label.
        scores: (N,) float64 in [0, 1]; None for annotations.
        crowd: (N,) bool, a region of many: what is detected inside counts neither way, however often.
        difficult: (N,) bool, one object (or what a tile's edge has left of it) that need not be found: whoever finds
            it neither gains nor loses.
        areas: (N,) float64 pixels; of the mask where there is one, else of the box.
        ids: (N,) int64, of the annotations in their file; -1 where it has none.
        masks: one run-length mask of the whole image per object; None: boxes only.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None
    crowd: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    difficult: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    areas: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float64))
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    masks: tuple[CocoRle, ...] | None = None

    def __post_init__(self) -> None:
        boxes = np.asarray(self.boxes, np.float64).reshape(-1, 4)
        count = len(boxes)
        area = np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)
        usual = {"crowd": np.zeros(count, bool), "difficult": np.zeros(count, bool), "areas": area}
        usual["ids"] = np.full(count, -1, np.int64)
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "labels", np.asarray(self.labels, np.int64).reshape(-1))
        if self.scores is not None:
            object.__setattr__(self, "scores", np.asarray(self.scores, np.float64).reshape(-1))
        for name, default in usual.items():
            given = np.asarray(getattr(self, name), default.dtype)
            object.__setattr__(self, name, default if count and not len(given) else given)
        lengths = {name: len(part) for name, part in self._parts().items()}
        if set(lengths.values()) - {count}:
            raise DataError(f"objects: {count} boxes, but {lengths}; give one entry per box")

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def none(cls, *, scored: bool = False) -> "Objects":
        """No objects at all."""
        return cls(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0) if scored else None)

    @property
    def ignored(self) -> np.ndarray:
        """(N,) bool: crowds and difficult ones, which nobody is asked to find."""
        return np.asarray(self.crowd | self.difficult)

    def take(self, which: np.ndarray) -> "Objects":
        """Some of them: (M,) indices in the order wanted, or an (N,) bool mask."""
        index = np.flatnonzero(which) if which.dtype == bool else which
        parts: dict[str, Any] = {
            name: tuple(part[i] for i in index) if isinstance(part, tuple) else part[index]
            for name, part in self._parts().items()
        }
        return replace(self, **parts)

    def shift(self, rows: float, cols: float) -> "Objects":
        """The same in the frame of an image that begins ``rows`` above and ``cols`` to the left; without masks."""
        moved = self.boxes + np.array([cols, rows, cols, rows], np.float64)
        return replace(self, boxes=moved, masks=None)

    def _parts(self) -> dict[str, Any]:
        names = ("labels", "scores", "crowd", "difficult", "areas", "ids", "masks")
        parts = {name: getattr(self, name) for name in names}
        return {"boxes": self.boxes} | {name: part for name, part in parts.items() if part is not None}


def joined(parts: Sequence[Objects]) -> Objects:
    """The objects of several sets as one, in order; masks only if all have them.

    Raises:
        DataError: some have scores and others do not.
    """
    if not parts:
        return Objects.none()
    if len({part.scores is None for part in parts}) > 1:
        raise DataError("objects: annotations and detections cannot be joined; only detections have scores")
    scored = parts[0].scores is not None
    masks = [part.masks for part in parts]
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("boxes", "labels", "crowd", "difficult", "areas", "ids", *(("scores",) if scored else ()))
    }
    whole = None if any(m is None for m in masks) else tuple(rle for m in masks if m is not None for rle in m)
    return Objects(**arrays, masks=whole)
