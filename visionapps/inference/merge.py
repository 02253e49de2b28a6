"""Blend overlapping tiles of logits while they stream by, without an accumulator of the raster's size.

Shapes: K classes, h w tile, o overlap, W padded raster width.

Linear ramps across each overlap sum to 1 (a partition of unity), so there is no weight map and no division. Tiles
come row by row; of each tile only the part that later tiles still change is kept: its right strip (K, h, o) for the
next tile and its bottom strip (K, o, W) for the next row. Memory is therefore K x o x W, whatever the height.
"""

import torch
from torch import Tensor

from visionapps.inference.plan import Axis, Plan
from visionapps.metrics.confusion import argmax_labels


def ramp(overlap: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Weights that rise across an overlap, at pixel centres: (o,) float32 in (0, 1); 1 - ramp belongs to the other."""
    return (torch.arange(overlap, dtype=torch.float32, device=device) + 0.5) / max(1, overlap)


class StripMerger:
    """Turns the tiles of a plan, given row by row and left to right, into finished rows of labels."""

    def __init__(self, plan: Plan, num_classes: int, *, device: torch.device | str = "cpu") -> None:
        self._plan = plan
        self._row = 0
        self._col = 0
        self._rise_down = ramp(plan.rows.overlap, device=device)[:, None]
        self._rise_right = ramp(plan.cols.overlap, device=device)
        self._right: Tensor | None = None
        # Strips of the row above; a column that was skipped there holds zeros.
        self._below = torch.zeros(num_classes, plan.rows.overlap, plan.cols.padded, device=device)
        self._labels = torch.zeros(plan.rows.tile, plan.cols.padded, dtype=torch.uint8, device=device)

    @torch.inference_mode()  # logits born in inference mode may be changed in place only there
    def add(self, logits: Tensor | None) -> None:
        """Take the next tile.

        Args:
            logits: (K, h, w) float32, which the merger may change in place; None for a tile without a valid pixel,
                whose labels are of no interest.
        """
        begin, width = self._extent(self._plan.cols, self._col)
        columns = slice(begin, begin + width)
        if logits is None:
            self._right = None
            self._below[..., columns] = 0
            self._labels[:, columns] = 0
        else:
            self._finish(self._blend_right(logits, width), columns)
        self._col += 1

    def finished_rows(self) -> Tensor:
        """After the last tile of a row: (h', W') uint8 labels of the rows and columns that are finished.

        The tensor is used again by the next row; copy what must stay.
        """
        assert self._col == len(self._plan.cols.starts), "the row of tiles is not complete"
        window = self._plan.band(self._row)
        self._row, self._col, self._right = self._row + 1, 0, None
        return self._labels[: window.height, : window.width]

    def _blend_right(self, logits: Tensor, width: int) -> Tensor:
        """Blend with the tile to the left and keep what the tile to the right still changes: (K, h, width)."""
        overlap = self._plan.cols.overlap
        if overlap and self._col > 0:
            logits[..., :overlap] *= self._rise_right
            if self._right is not None:
                logits[..., :overlap] += self._right
        self._right = logits[..., width:] * (1 - self._rise_right) if width < logits.shape[-1] else None
        return logits[..., :width]

    def _finish(self, slab: Tensor, columns: slice) -> None:
        """Blend a slab, complete in its columns, with the row above; label what is complete in rows, too."""
        overlap = self._plan.rows.overlap
        _, height = self._extent(self._plan.rows, self._row)
        if overlap and self._row > 0:
            slab[:, :overlap] *= self._rise_down
            slab[:, :overlap] += self._below[..., columns]
        if height < slab.shape[1]:
            torch.mul(slab[:, height:], 1 - self._rise_down, out=self._below[..., columns])
        self._labels[:height, columns] = argmax_labels(slab[None, :, :height])[0]

    @staticmethod
    def _extent(axis: Axis, index: int) -> tuple[int, int]:
        """Begin of a tile, and how many of its pixels are complete when it comes (padding included)."""
        last = index == len(axis.starts) - 1
        return axis.starts[index], axis.tile if last else axis.tile - axis.overlap
