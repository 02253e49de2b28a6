"""Which candidate boxes (anchors, proposals) are objects, which are background, and which are neither.

Shapes: M candidates, N objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visionapps.boxes import iof, iou
from visionapps.errors import ConfigError

OBJECT, BACKGROUND, NEITHER = 1, 0, -1

# Pairs of a candidate and an object that are compared at once: on the CPU they and what is computed from them stay in
# the cache (3.5 times faster than the whole matrix), on a GPU they take half a gigabyte. The whole matrix of 10,000
# objects and 270,000 anchors would take 10.
_PAIRS = {"cpu": 2**18, "cuda": 2**25}
_LEAST_PIECE = 4096  # candidates; fewer at once would only make more pieces


@dataclass(frozen=True)
class Matcher:
    """Judges candidates by their greatest IoU with an object.

    Args:
        positive: from this IoU on a candidate is the object that it overlaps most.
        negative: [low, high): a candidate whose greatest IoU lies in there is background. Girshick 2015 takes
            [0.1, 0.5). Where an image has no objects at all, everything is background, whatever low: the paper's images
            all had some, and low is there to find hard ones near them.
        keep_best: the candidates that overlap an object most are it, too, however little (Ren et al. 2015); otherwise
            an object that no anchor fits would never be learned.
        ignore: background of which at least this part lies inside one ignored box is neither. A candidate that fits
            an object stays that object, even inside a crowd.

    Raises:
        ConfigError: thresholds that contradict each other.
    """

    positive: float = 0.5
    negative: tuple[float, float] = (0.0, 0.5)
    keep_best: bool = False
    ignore: float = 0.5

    def __post_init__(self) -> None:
        low, high = self.negative
        object.__setattr__(self, "negative", (low, high))
        if not (0 <= low < high <= self.positive <= 1 and 0 < self.ignore <= 1):
            raise ConfigError(
                f"matcher: negative {self.negative} must be a range below positive {self.positive}, all in [0, 1], and "
                f"ignore {self.ignore} in (0, 1]"
            )

    def states(self, candidates: Tensor, objects: Tensor, ignored: Tensor) -> Tensor:
        """What each candidate is.

        Args:
            candidates: (M, 4).
            objects: (N, 4), N may be 0.
            ignored: (I, 4) boxes that are neither objects nor background, I may be 0.

        Returns:
            (M,) int8 of OBJECT, BACKGROUND and NEITHER.
        """
        columns = candidates.detach().float().t().contiguous().t()  # each coordinate in one piece, for speed
        best, chosen = _overlaps(columns, objects, self.keep_best)
        low, high = self.negative if len(objects) else (0.0, self.negative[1])
        background = (best >= low) & (best < high)
        if len(ignored):
            background &= _greatest(columns, ignored) < self.ignore
        found = best >= self.positive
        if chosen is not None:
            found |= chosen
        state = torch.full_like(best, NEITHER, dtype=torch.int8).masked_fill_(background, BACKGROUND)
        return state.masked_fill_(found, OBJECT)


def nearest(candidates: Tensor, objects: Tensor) -> Tensor:
    """Which object each candidate overlaps most, of equals the first: (M, 4) and (N, 4), N >= 1, to (M,) int64."""
    step = max(1, _pairs(objects) // len(objects))
    return torch.cat([iou(piece, objects).argmax(1) for piece in torch.split(candidates, step)])


def _greatest(columns: Tensor, boxes: Tensor) -> Tensor:
    """(M,) how much of each candidate lies in that of the boxes, at least one, that holds most of it."""
    pieces, blocks = _pieces(columns, boxes)
    return torch.cat([torch.stack([iof(piece, block).amax(1) for block in blocks]).amax(0) for piece in pieces])


def _overlaps(columns: Tensor, objects: Tensor, keep_best: bool) -> tuple[Tensor, Tensor | None]:
    """(M,) greatest IoU of each candidate, and (M,) whether it is the best of all for some object, if that is asked."""
    if not len(objects) or not len(columns):
        return columns.new_zeros(len(columns)), None
    pieces, blocks = _pieces(columns, objects)
    matrix = columns.new_zeros(0)
    per_candidate, per_object = [], []
    for piece in pieces:
        found, tops = [], []
        for block in blocks:
            matrix = iou(block, piece)
            found.append(matrix.amax(0))
            tops += [matrix.amax(1)] if keep_best else []
        per_candidate.append(torch.stack(found).amax(0))
        per_object += [torch.cat(tops)] if keep_best else []
    best = torch.cat(per_candidate)
    if not keep_best:
        return best, None
    top = torch.stack(per_object).amax(0)
    if len(pieces) == len(blocks) == 1:
        return best, _reaches(matrix, top)
    # Only the pieces in which an object has its best are looked at again, with these objects alone.
    there = ((torch.stack(per_object) == top) & (top > 0)).cpu()
    chosen = [_chosen(*each, objects, top) for each in zip(pieces, there, strict=True)]
    return best, torch.cat(chosen)


def _chosen(piece: Tensor, there: Tensor, objects: Tensor, top: Tensor) -> Tensor:
    """(m,) bool: which candidates of a piece reach the top of an object that has it there."""
    reaching = torch.zeros(len(piece), dtype=torch.bool, device=piece.device)
    for rows in torch.split(there.nonzero()[:, 0].to(piece.device), _rows(piece)):
        if len(rows):
            reaching |= _reaches(iou(objects[rows], piece), top[rows])
    return reaching


def _reaches(matrix: Tensor, top: Tensor) -> Tensor:
    """(M,) whether a column of the (N, M) matrix holds the top of its row; objects that nothing overlaps have none."""
    return matrix.sub_(top.masked_fill(top <= 0, 2)[:, None]).amax(0) >= 0


def _pieces(columns: Tensor, boxes: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Candidates and boxes in portions, each pair of which makes a matrix of the right size."""
    pieces = torch.split(columns, max(_LEAST_PIECE, _pairs(columns) // len(boxes)))
    return pieces, torch.split(boxes, _rows(pieces[0]))


def _rows(piece: Tensor) -> int:
    return max(1, _pairs(piece) // max(1, len(piece)))


def _pairs(boxes: Tensor) -> int:
    return _PAIRS.get(boxes.device.type, _PAIRS["cuda"])
