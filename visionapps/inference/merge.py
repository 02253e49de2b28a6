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

_NO_PRODUCTS = Products()


class StripMerger:
    """Turns the tiles of a plan, given row by row and left to right, into finished rows of a map."""

    def __init__(
        self,
        plan: Plan,
        num_classes: int,
        *,
        products: Products = _NO_PRODUCTS,
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
        self._compiled = self._device.type == "cpu"
        self._first = self._row = first
        self._col = 0
        self._down = torch.from_numpy(plan.rows.ramp()).to(device)
        self._across = torch.from_numpy(plan.cols.ramp()).to(device)
        self._right: Tensor | None = None
        self._spare: Tensor | None = None  # the right strip before that, to be filled again
        strip = (plan.rows.overlap, plan.cols.padded - plan.cols.origin)
        # Strips of the row above; a column that was skipped there holds zeros: its pixels have no data.
        self._below = torch.zeros(products.score_planes(num_classes), *strip, device=device)
        self._apart_below = torch.zeros(strip, device=device) if "overlap" in products.extras else None
        self._planes: Tensor | None = None

    @torch.inference_mode()  # scores born in inference mode may be changed in place only there
    def add(self, scores: Tensor | None) -> None:
        """Take the next tile.

        Args:
            scores: (S, h, w) float32, contiguous, which the merger may change in place; None for a tile without a
                valid pixel, whose planes are of no interest: they are 255.
        """
        if scores is None:
            self._skip()
        else:
            assert scores.is_contiguous(), "planes must be contiguous"
            assert scores.shape[0] == self._below.shape[0], f"{scores.shape[0]} planes, not {self._below.shape[0]}"
            self._draw(scores)
        self._col += 1

    def finished_rows(self) -> Tensor:
        """After the last tile of a row: (N, h', W) uint8, the rows that are finished; yours to keep."""
        assert self._col == len(self._plan.cols.starts), "the row of tiles is not complete"
        planes = self._rows()
        self._row, self._col, self._right, self._spare, self._planes = self._row + 1, 0, None, None, None
        return planes

    def _rows(self) -> Tensor:
        """The planes of the row of tiles under way."""
        if self._planes is None:
            window = self._plan.band(self._row)
            shape = (self._products.count(self._classes), window.height, window.width)
            self._planes = torch.empty(shape, dtype=torch.uint8, device=self._device)
        return self._planes

    def _skip(self) -> None:
        _, strip = self._columns()
        self._right = None
        self._below[..., strip] = 0
        if self._apart_below is not None:
            self._apart_below[..., strip] = 0
        left, right = self._plan.cols.finished(self._col)
        self._rows()[..., left:right] = INVALID

    def _columns(self) -> tuple[int, slice]:
        """Columns of the present tile that the tile to the right leaves alone, and where they stand in the strips."""
        cols = self._plan.cols
        begin, end = cols.extent(self._col)
        inner = end - begin - (0 if self._col == len(cols.starts) - 1 else cols.overlap)
        return inner, slice(begin - cols.origin, begin - cols.origin + inner)

    def _draw(self, scores: Tensor) -> None:
        """Blend a tile and draw those of its pixels that are complete in rows and columns."""
        rows, cols = _finished(self._plan.rows, self._row), _finished(self._plan.cols, self._col)
        left, right = self._plan.cols.finished(self._col)
        apart = None if self._apart_below is None else self._compare(scores, self._apart_below)[rows, cols]
        if self._compiled:
            self._blend_compiled(scores, rows, cols)
        else:
            self._blend(scores)
            self._rows()[0, :, left:right] = scores[: self._classes, rows, cols].argmax(0)
        if self._products.extras:
            done = scores[:, rows, cols]
            extras = extra_planes(self._products, done, self._form, num_classes=self._classes, apart=apart)
            self._rows()[1:, :, left:right] = extras

    def _compare(self, scores: Tensor, apart_below: Tensor) -> Tensor:
        """How far a tile is from what its neighbours left, and those above it from each other: (h, w)."""
        inner, strip = self._columns()
        apart = scores.new_zeros(scores.shape[1:])
        pairs = [(scores[..., : self._right.shape[-1]], self._right)] if self._right is not None else []
        if self._row > self._first:
            pairs.append((scores[:, : apart_below.shape[0], :inner], self._below[..., strip]))
            apart[: apart_below.shape[0], :inner] = apart_below[:, strip]
        for own, other in pairs:
            a, b = (probabilities(side[: self._classes], self._form) for side in (own, other))
            corner = apart[: a.shape[1], : a.shape[2]]
            torch.maximum(corner, distance(a, b), out=corner)
        apart_below[:, strip] = apart[apart.shape[0] - apart_below.shape[0] :, :inner]
        return apart

    def _blend(self, scores: Tensor) -> None:
        """Blend a tile in place with those to the left and above; keep what those to the right and below need."""
        inner, strip = self._columns()
        overlap = self._plan.rows.overlap
        if self._right is not None:
            _mix(scores[..., : self._right.shape[-1]], self._right, self._across)
        self._right = scores[..., inner:].clone() if inner < scores.shape[-1] else None
        if self._row > self._first:
            _mix(scores[:, :overlap, :inner], self._below[..., strip], self._down[:, None])
        if self._row < len(self._plan.rows.starts) - 1:
            self._below[..., strip] = scores[:, scores.shape[1] - overlap :, :inner]

    def _blend_compiled(self, scores: Tensor, rows: slice, cols: slice) -> None:
        """The same on the CPU, where one pass over the tile also labels what is complete."""
        from visionapps.inference.kernels import Place, Strips, blend_tile  # numba takes a while to import

        inner, strip = self._columns()
        planes, height, width = scores.shape
        left = scores.new_empty(planes, height, 0) if self._right is None else self._right
        right = self._spare
        if right is None or right.shape[-1] != width - inner:
            right = scores.new_empty(planes, height, width - inner)
        last = self._row == len(self._plan.rows.starts) - 1
        column = self._plan.cols.finished(self._col)[0]
        place = Place(
            begin=strip.start,
            above=self._row > self._first,
            keep=not last,
            top=rows.start,
            bottom=rows.stop,
            left=cols.start,
            right=cols.stop,
            column=column,
        )
        strips = Strips(left.numpy(), right.numpy(), self._below.numpy())
        blend_tile(
            scores.numpy(),
            strips,
            self._across.numpy(),
            self._down.numpy(),
            place,
            self._classes,
            self._rows()[0].numpy(),
        )
        self._right, self._spare = (right if inner < width else None), self._right


def _mix(later: Tensor, earlier: Tensor, rise: Tensor) -> None:
    """later = rise * later + (1 - rise) * earlier, in place."""
    later.mul_(rise).add_(earlier * (1 - rise))


def _finished(axis: Axis, index: int) -> slice:
    """The pixels of a tile that no later tile changes."""
    (begin, end), start = axis.finished(index), axis.extent(index)[0]
    return slice(begin - start, end - start)
