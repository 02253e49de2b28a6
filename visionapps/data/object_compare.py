"""Do two sets of annotations of the same images say the same? If not: are they shifted, and which setting mends it?

Shapes: N, M objects of an image, P pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from visionapps.data.annotations import AnnotatedImage, AnnotationSet
from visionapps.data.object_dataset import ObjectDataset
from visionapps.data.object_problems import edges

EQUAL_PX = 1e-3  # numbers written with six decimals of an image's size differ by less up to 1000 px
_SYSTEMATIC_PX = 0.05  # pairs that deviate from the common shift by less follow it
_MOST = 0.75  # share of pairs that must follow it; clipped boxes do not
_NEAR = 0.34  # corners further apart than this share of the box, and _NEAR_PX, are of different objects
_NEAR_PX = 3.0


@dataclass(frozen=True)
class Comparison:
    """How two sets differ.

    Attributes:
        images: that both have.
        only: images that only the first or only the second set has.
        pairs: objects that both have.
        equal: of those, with boxes equal to EQUAL_PX.
        other_class: of those, with different class names.
        alone: objects that only the first or only the second set has, in images of both.
        shift: (x0, y0, x1, y1) px that the second set's boxes lie further right and down, if nearly all agree on it.
        settings: of a dataset with the second set's files, under which it equals the first; empty: none does.
        settings_first: the same for the first set, should the second be right.
        outside: boxes of the first and of the second set that reach out of their images.
    """

    images: int
    only: tuple[int, int]
    pairs: int
    equal: int
    other_class: int
    alone: tuple[int, int]
    shift: tuple[float, float, float, float] | None
    settings: dict[str, Any]
    settings_first: dict[str, Any]
    outside: tuple[int, int]

    @property
    def same(self) -> bool:
        """Whether both sets say the same."""
        return not any((*self.only, *self.alone, self.other_class)) and self.equal == self.pairs

    @property
    def shifted(self) -> bool:
        """Whether nearly all boxes are moved in the same way."""
        return self.shift is not None and max(map(abs, self.shift)) > EQUAL_PX


def compare(first: AnnotationSet, second: AnnotationSet, settings: tuple[ObjectDataset, ObjectDataset]) -> Comparison:
    """Pair the objects of two sets and see how they differ.

    Args:
        first: the reference.
        second: what is compared with it.
        settings: the datasets that they were read with.
    """
    ours, theirs = _by_stem(first), _by_stem(second)
    both = sorted(ours.keys() & theirs.keys())
    offsets: list[np.ndarray] = []
    other_class, alone = 0, [0, 0]
    for stem in both:
        a, b = ours[stem].objects, theirs[stem].objects
        pairs = _paired(a.boxes, b.boxes)
        offsets.append(b.boxes[pairs[:, 1]] - a.boxes[pairs[:, 0]])
        names = (
            np.array(first.labels.names)[a.labels[pairs[:, 0]]],
            np.array(second.labels.names)[b.labels[pairs[:, 1]]],
        )
        other_class += int((names[0] != names[1]).sum())
        alone = [alone[0] + len(a) - len(pairs), alone[1] + len(b) - len(pairs)]
    moved = np.concatenate([np.zeros((0, 4)), *offsets])
    shift = _common(moved)
    return Comparison(
        len(both),
        (len(ours.keys() - theirs.keys()), len(theirs.keys() - ours.keys())),
        len(moved),
        int((np.abs(moved) < EQUAL_PX).all(1).sum()),
        other_class,
        (alone[0], alone[1]),
        shift,
        _mending(shift, second.form, settings[1], 1.0),
        _mending(shift, first.form, settings[0], -1.0),
        (_outside(first), _outside(second)),
    )


def _by_stem(annotations: AnnotationSet) -> dict[str, AnnotatedImage]:
    return {str(PurePosixPath(image.name).with_suffix("")): image for image in annotations.images}


def _paired(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(P, 2) indices of boxes that are each other's nearest and near: (N, 4) and (M, 4)."""
    if not len(a) or not len(b):
        return np.zeros((0, 2), np.int64)
    far = np.abs(a[:, None] - b[None]).max(2)  # (N, M)
    size = np.maximum(a[:, 2:] - a[:, :2], 0).min(1)
    partner = far.argmin(1)
    mutual = far.argmin(0)[partner] == np.arange(len(a))
    near = far[np.arange(len(a)), partner] <= np.maximum(_NEAR_PX, _NEAR * size)
    rows = np.flatnonzero(mutual & near)
    return np.stack([rows, partner[rows]], 1)


def _common(moved: np.ndarray) -> tuple[float, float, float, float] | None:
    """The shift of each side that most pairs share: (P, 4)."""
    if not len(moved):
        return None
    middle = np.median(moved, axis=0)
    if ((np.abs(moved - middle) < _SYSTEMATIC_PX).mean(0) < _MOST).any():
        return None
    x0, y0, x1, y1 = (np.round(middle, 2) + 0.0).tolist()
    return x0, y0, x1, y1


def _mending(shift: tuple[float, ...] | None, form: str, dataset: ObjectDataset, sign: float) -> dict[str, Any]:
    """The settings that take a shift away: origin and inclusive can if both axes are moved alike."""
    if shift is None or not any(shift) or shift[0] != shift[1] or shift[2] != shift[3]:
        return {}
    first, last = edges(form, dataset.origin, dataset.inclusive)
    first, last = round(first + sign * shift[0], 2), round(last + sign * shift[2], 2)
    if first - last not in (0, 1):
        return {}
    origin = int(first) if first.is_integer() else first
    usual = form == "voc" and first == 1
    inclusive = first - last == 1
    return {"origin": origin} | ({} if inclusive == usual else {"inclusive": inclusive})


def _outside(annotations: AnnotationSet) -> int:
    return sum(n for (kind, _, _), n in annotations.tally.items() if kind in ("overhanging_box", "outside_box"))


def in_words(found: Comparison, names: Sequence[str]) -> list[str]:
    """A comparison as lines for people.

    Args:
        found: the comparison.
        names: of the first and of the second set.
    """
    first, second = names
    lines = [
        f"{first} and {second}: {found.images} common images, {found.pairs} common objects, of which {found.equal} "
        "have equal boxes"
    ]
    for what, counts in (("images", found.only), ("objects in common images", found.alone)):
        lines += [f"{n} {what} only in {name}" for n, name in zip(counts, names, strict=True) if n]
    if found.other_class:
        lines.append(f"{found.other_class} common objects have different classes; give both the same class table")
    if found.shifted:
        assert found.shift is not None
        told = ", ".join(
            f"{side} {value:+g}" for side, value in zip(("x0", "y0", "x1", "y1"), found.shift, strict=True)
        )
        lines.append(f"the boxes of {second} are systematically shifted by {told} px")
        lines += [
            f"  if {right} is right, set for {wrong}: {', '.join(f'{k}: {str(v).lower()}' for k, v in how.items())}"
            for right, wrong, how in ((first, second, found.settings), (second, first, found.settings_first))
            if how
        ]
        if not found.settings and not found.settings_first:
            lines.append("  no origin takes that away: one of them was made for images of another size, or by mistake")
        lines += [
            f"  {n} boxes of {name} reach out of their images, which speaks against it"
            for n, name in zip(found.outside, names, strict=True)
            if n
        ]
    elif found.same:
        lines.append("both say the same")
    return lines
