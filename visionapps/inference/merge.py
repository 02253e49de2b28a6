"""Blend overlapping tiles of scores while they stream by, without an accumulator of the raster's size.

Shapes: K classes, S score planes, N product planes, h w tile, o overlap, W raster width, W' width of all tiles.

Ramps across each overlap sum to 1 (a partition of unity), so there is no weight map and no division. Tiles come row
by row; of each tile only the part that later tiles still change is kept: its right strip (S, h, o) for the next tile
and its bottom strip (S, o, W') for the next row. Memory is therefore S x o x W', whatever the height.
"""

import torch
from torch import Tensor

from visionapps.inference.plan import Axis, Plan
from visionapps.inference.products import Form, Products, distance, extra_planes, probabilities
from visionapps.inference.sources import INVALID
from visionapps.metrics.confusion import argmax_labels


def ramp(overlap: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Weights that rise across an overlap, at pixel centres: (o,) float32 in (0, 1); 1 - ramp belongs to the other."""
    return (torch.arange(overlap, dtype=torch.float32, device=device) + 0.5) / max(1, overlap)


class StripMerger:
    """Turns the tiles of a plan, given row by row and left to right, into finished rows of a map."""

    def __init__(
        self,
        plan: Plan,
        num_classes: int,
        *,
        products: Products = Products(),  # noqa: B008  (frozen)
        form: Form = "logits",
        device: torch.device | str = "cpu",
        first: int = 0,
    ) -> None:
        """
        Args:
            plan: the lattice.
            num_classes: K.
            products: what is drawn beside the labels.
            form: what the first K planes of the scores are.
            device: where scores come from and merging happens; only uint8 leaves it.
            first: tile row to begin with; it is not blended with the row above it.
        """
        self._plan, self._classes, self._products, self._form = plan, num_classes, products, form
        self._device = torch.device(device)
        self._first = self._row = first
        self._col = 0
        self._down = ramp(plan.rows.overlap, device=device)[:, None]
        self._across = ramp(plan.cols.overlap, device=device)
        self._right: Tensor | None = None
        self._origin, end = _extent(plan.cols, 0)[0], _extent(plan.cols, len(plan.cols.starts) - 1)[1]
        strip = (plan.rows.overlap, end - self._origin)
        # Strips of the row above; a column that was skipped there holds zeros: its pixels have no data.
        self._below = torch.zeros(products.score_planes(num_classes), *strip, device=device)
        self._apart_below = torch.zeros(strip, device=device) if "overlap" in products.extras else None
        self._planes: Tensor | None = None

    @torch.inference_mode()  # scores born in inference mode may be changed in place only there
    def add(self, scores: Tensor | None) -> None:
        """Take the next tile.

        Args:
            scores: (S, h, w) float32, which the merger may change in place; None for a tile without a valid pixel,
                whose planes are of no interest.
        """
        if scores is None:
            self._skip()
        else:
            apart = None if self._apart_below is None else scores.new_zeros(scores.shape[1:])
            self._blend(scores, apart)
            self._draw(scores, apart)
        self._col += 1

    def finished_rows(self) -> Tensor:
        """After the last tile of a row: (N, h', W) uint8, the rows that are finished; yours to keep."""
        assert self._col == len(self._plan.cols.starts), "the row of tiles is not complete"
        planes = self._rows()
        self._row, self._col, self._right, self._planes = self._row + 1, 0, None, None
        return planes

    def _rows(self) -> Tensor:
        """The planes of the row of tiles under way."""
        if self._planes is None:
            window = self._plan.band(self._row)
            shape = (self._products.count(self._classes), window.height, window.width)
            self._planes = torch.empty(shape, dtype=torch.uint8, device=self._device)
        return self._planes

    def _skip(self) -> None:
        self._right = None
        begin, width = self._slab()
        self._below[..., begin : begin + width] = 0
        if self._apart_below is not None:
            self._apart_below[..., begin : begin + width] = 0
        left, right = self._plan.cols.finished(self._col)
        self._rows()[..., left:right] = INVALID

    def _slab(self) -> tuple[int, int]:
        """Where the columns that the present tile completes stand in the strips below, and how many they are."""
        begin, end = _extent(self._plan.cols, self._col)
        last = self._col == len(self._plan.cols.starts) - 1
        return begin - self._origin, end - begin - (0 if last else self._plan.cols.overlap)

    def _blend(self, scores: Tensor, apart: Tensor | None) -> None:
        """Blend a tile in place with those to the left and above; keep what those to the right and below need."""
        rows, cols = self._plan.rows, self._plan.cols
        begin, width = self._slab()
        if self._right is not None and cols.overlap:
            self._mix(scores[..., : cols.overlap], self._right, self._across, apart)
        self._right = scores[..., width:].clone() if width < scores.shape[-1] else None
        strip = slice(begin, begin + width)
        if self._row > self._first and rows.overlap:
            above = apart[:, :width] if apart is not None else None
            self._mix(scores[:, : rows.overlap, :width], self._below[..., strip], self._down, above)
            if above is not None and self._apart_below is not None:
                torch.maximum(above[: rows.overlap], self._apart_below[:, strip], out=above[: rows.overlap])
        if self._row < len(rows.starts) - 1 and rows.overlap:
            self._below[..., strip] = scores[:, -rows.overlap :, :width]
            if apart is not None and self._apart_below is not None:
                self._apart_below[:, strip] = apart[-rows.overlap :, :width]

    def _mix(self, later: Tensor, earlier: Tensor, rise: Tensor, apart: Tensor | None) -> None:
        """later = rise * later + (1 - rise) * earlier, in place; how far apart they were goes to its corner."""
        if apart is not None:
            k = self._classes
            gap = distance(probabilities(later[:k], self._form), probabilities(earlier[:k], self._form))
            corner = apart[: gap.shape[0], : gap.shape[1]]
            torch.maximum(corner, gap, out=corner)
        later.mul_(rise).add_(earlier * (1 - rise))

    def _draw(self, scores: Tensor, apart: Tensor | None) -> None:
        """Planes of the pixels that are complete in rows and columns."""
        (top, bottom), above = self._plan.rows.finished(self._row), _extent(self._plan.rows, self._row)[0]
        (left, right), before = self._plan.cols.finished(self._col), _extent(self._plan.cols, self._col)[0]
        inside = (slice(top - above, bottom - above), slice(left - before, right - before))
        done, planes = scores[:, *inside], self._rows()[..., left:right]
        planes[0] = argmax_labels(done[None, : self._classes])[0]
        if self._products.extras:
            gap = None if apart is None else apart[inside]
            planes[1:] = extra_planes(self._products, done, self._form, num_classes=self._classes, apart=gap)


def _extent(axis: Axis, index: int) -> tuple[int, int]:
    return axis.starts[index], axis.starts[index] + axis.tile
