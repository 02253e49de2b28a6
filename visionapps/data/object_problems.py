"""What is wrong with the objects of a table, and what the policies make of it.

Everything is looked for in whole columns, so that 100,000 sound objects cost no more than a few passes over arrays.
Shapes: I images, N objects, C categories, K classes.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from visionapps.data.dataset import Action, Problem
from visionapps.data.object_classes import ANY, BACKGROUND, LEFT_OUT, UNKNOWN, Matching
from visionapps.data.object_dataset import ObjectDataset, ObjectPolicies
from visionapps.data.object_table import ObjectTable

DECIMALS = 6  # of a pixel: what shares of an image's size and sums of x and width keep of a written number
_COMMON = 5  # objects that reach out by the same amount before it looks like a way to count
_TINY_PX = 2.0  # a side below it is less than one cell of the finest feature map of any detector here


@dataclass
class Sheet:
    """The objects of a table while they are judged.

    Attributes:
        table: as read.
        policies: what to do.
        names: of the images.
        classes: names of the K classes.
        boxes: (N, 4) half-open pixels.
        label: (N,) int64 in [0, K), or a constant of object_classes.
        difficult: (N,) bool.
        ids: (N,) int64.
        keep: (N,) bool, still in the set.
        problems: found so far.
        tally: how many objects met which fate, by kind, action and class.
    """

    table: ObjectTable
    policies: ObjectPolicies
    names: Sequence[str]
    classes: Sequence[str]
    boxes: np.ndarray
    label: np.ndarray
    difficult: np.ndarray
    ids: np.ndarray
    keep: np.ndarray
    problems: list[Problem] = field(default_factory=list)
    tally: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def report(self, kind: str, bad: np.ndarray, say: Callable[[int], str], *, default: str = "") -> np.ndarray:
        """Report the objects of a mask that are still in the set; refused and dropped ones leave it.

        Args:
            kind: a field of the policies.
            bad: (N,) bool.
            say: what is wrong with an object, and what to do.
            default: action where the policies have none for the kind.

        Returns:
            (M,) rows that the policy asks to mend.
        """
        rows = np.flatnonzero(bad & self.keep)
        action = default or self.policies.action(kind)
        for row in rows.tolist():
            text = f"{self.table.place(row)}: {say(row)}"
            self.problems.append(Problem(kind, self.table.files[int(self.table.file[row])], text, action))  # type: ignore[arg-type]
        self.count(kind, rows, action)
        if action in ("error", "dropped"):
            self.keep[rows] = False
        return rows if action == "fixed" else rows[:0]

    def count(self, kind: str, rows: np.ndarray, action: str) -> None:
        """Add objects to the tally."""
        for category, count in Counter(self.label[rows].tolist()).items():
            self.tally[kind, action, self.classes[category] if category >= 0 else "-"] += count

    def box(self, row: int) -> str:
        """A box in words."""
        return f"box {' '.join(f'{value:.6g}' for value in self.boxes[row])} (x0 y0 x1 y1)"

    def image(self, row: int) -> str:
        """The name of an object's image."""
        return self.names[int(self.table.image[row])]


def judge(
    table: ObjectTable, dataset: ObjectDataset, matching: Matching, names: Sequence[str], sizes: np.ndarray
) -> Sheet:
    """Bring boxes into pixels and labels into the label space, and find what is wrong.

    Args:
        table: as read.
        dataset: origin and policies.
        matching: what categories mean.
        names: (I,) of the images; "": the image cannot be used, and its objects leave with it.
        sizes: (I, 2) H and W.

    Returns:
        What is left, with all problems.
    """
    count = len(table)
    named = np.array([bool(name) for name in names], bool)
    label = np.append(matching.label, UNKNOWN)[table.category] if count else np.zeros(0, np.int64)
    ignored = np.append(matching.ignored, False)[table.category] if count else np.zeros(0, bool)
    sheet = Sheet(
        table,
        dataset.policies,
        names,
        matching.labels.names,
        _in_pixels(table, dataset, sizes),
        label,
        table.flags["difficult"] | ignored,
        table.ids.copy(),
        np.ones(count, bool),
    )
    if not count:
        return sheet
    sheet.report("unknown_image", table.image < 0, lambda row: "belongs to an image that the file does not list")
    gone = sheet.keep & ~np.append(named, False)[table.image]
    sheet.count("unusable_image", np.flatnonzero(gone), "dropped")
    sheet.keep &= ~gone
    _judge_classes(sheet, table)
    _judge_boxes(sheet, dataset, sizes)
    _judge_repeats(sheet)
    return sheet


def edges(form: str, origin: float | None, inclusive: bool | None) -> tuple[float, float]:
    """What to subtract from x0 y0 and from x1 y1 of a file, to have half-open pixels; see ObjectDataset."""
    first = (1.0 if form == "voc" else 0.0) if origin is None else float(origin)
    last = (form == "voc" and first == 1) if inclusive is None else inclusive
    return first, first - last


def _in_pixels(table: ObjectTable, dataset: ObjectDataset, sizes: np.ndarray) -> np.ndarray:
    """(N, 4) half-open pixels, rounded so that equal numbers written in different forms are equal again."""
    boxes = table.boxes.copy()
    if table.relative and len(boxes):
        sides = np.append(sizes, [[0, 0]], axis=0)[table.image][:, [1, 0, 1, 0]]
        boxes *= sides
    first, last = edges(table.form, dataset.origin, dataset.inclusive)
    with np.errstate(over="ignore", invalid="ignore"):  # infinities, which are reported later
        return np.asarray(np.round(boxes - [first, first, last, last], DECIMALS) + 0.0)  # no negative zeros


def _judge_classes(sheet: Sheet, table: ObjectTable) -> None:
    def called(row: int) -> str:
        place = int(table.category[row])
        if place < 0:
            return f"number {table.unknown.get(row, '?')}"
        category = table.categories[place]
        return f"number {category.id}" if category.name is None else repr(category.name)

    sheet.report(
        "unknown_category",
        sheet.label == UNKNOWN,
        lambda row: f"its class {called(row)} is not in the class table; add it to classes, or name it in leave_out",
    )
    sheet.report(
        "background_category",
        sheet.label == BACKGROUND,
        lambda row: f"its class is called {called(row)}, but background is what no box covers; name it otherwise",
    )
    out = np.flatnonzero((sheet.label == LEFT_OUT) & sheet.keep)
    for place, count in Counter(table.category[out].tolist()).items():
        name = str(table.categories[place])
        text = f"class {name}: {count} objects are left out on purpose (leave_out)"
        sheet.problems.append(Problem("left_out", "", text, "dropped"))
        sheet.tally["left_out", "dropped", name] += count
    sheet.keep[out] = False


def _judge_boxes(sheet: Sheet, dataset: ObjectDataset, sizes: np.ndarray) -> None:
    boxes, table = sheet.boxes, sheet.table
    finite = np.isfinite(boxes).all(1)
    sheet.report("not_finite", ~finite, lambda row: f"{sheet.box(row)} is not finite; write four numbers")
    mend = "correct it, or set policies.{} to {}"
    with np.errstate(invalid="ignore"):
        inverted = (boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1])
        _judge_origin(sheet, dataset, inverted, sizes)
        how = mend.format("inverted_box", "fix (swaps them) or drop")
        rows = sheet.report("inverted_box", inverted, lambda row: f"{sheet.box(row)} is inverted; {how}")
        boxes[rows] = np.concatenate(
            [np.minimum(boxes[rows, :2], boxes[rows, 2:]), np.maximum(boxes[rows, :2], boxes[rows, 2:])], 1
        )
        side = np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
        how = mend.format("zero_area", "drop")
        sheet.report("zero_area", side == 0, lambda row: f"{sheet.box(row)} has no area; {how}")
        limit = np.append(sizes, [[0, 0]], axis=0)[table.image][:, [1, 0, 1, 0]].astype(np.float64)
        limit[limit[:, 0] == 0] = np.inf  # nobody knows the size
        beside = (boxes[:, 2] <= 0) | (boxes[:, 3] <= 0) | (boxes[:, 0] >= limit[:, 2]) | (boxes[:, 1] >= limit[:, 3])

        def frame(row: int) -> str:
            h, w = limit[row, [3, 2]].astype(np.int64).tolist()
            return f"its image {sheet.image(row)} of {h} x {w} px (H x W)"

        how = mend.format("outside_box", "drop")
        sheet.report("outside_box", beside, lambda row: f"{sheet.box(row)} lies beside {frame(row)}; {how}")
        over = (boxes[:, :2] < 0).any(1) | (boxes[:, 2:] > limit[:, 2:]).any(1)
        how = mend.format("overhanging_box", "fix (clips it) or drop")
        rows = sheet.report("overhanging_box", over, lambda row: f"{sheet.box(row)} reaches out of {frame(row)}; {how}")
        boxes[rows] = np.minimum(np.maximum(boxes[rows], 0), limit[rows])
        side = np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
        small = f"has a side below {_TINY_PX:g} px"
        sheet.report("tiny_box", side < _TINY_PX, lambda row: f"{sheet.box(row)} {small}; see that it is meant")
        full = (boxes[:, :2] <= 0).all(1) & (boxes[:, 2:] >= limit[:, 2:]).all(1)
        sheet.report("full_box", full, lambda row: f"{sheet.box(row)} covers the whole of {frame(row)}; is it meant?")


def _judge_origin(sheet: Sheet, dataset: ObjectDataset, inverted: np.ndarray, sizes: np.ndarray) -> None:
    """Say once if boxes reach out to the left or above by one and the same amount, and nowhere to the right or below.

    That is no carelessness of people but another way to count: a VOC file with a 0 shows it by one object.
    """
    first, last = edges(sheet.table.form, dataset.origin, dataset.inclusive)
    boxes, sound = sheet.boxes, sheet.keep & ~inverted
    limit = np.append(sizes, [[0, 0]], axis=0)[sheet.table.image][:, ::-1].astype(np.float64)
    limit[limit == 0] = np.inf
    low = np.minimum(boxes[:, :2], 0)
    early = sound & (low < 0).any(1)
    amounts = np.unique(np.round(-low[early][low[early] < 0], 3))
    strict = sheet.table.form == "voc" and first == 1
    if len(amounts) != 1 or not 0.5 <= amounts[0] <= 1 or int(early.sum()) < (1 if strict else _COMMON):
        return
    if (boxes[sound, 2:] > limit[sound]).any():
        return
    touches = bool((sound & (np.abs(boxes[:, 2:] + last - limit) < 0.5).any(1)).any())
    row = int(np.flatnonzero(early)[0])
    lowest = first - amounts[0]
    text = (
        f"{sheet.table.place(row)}: has the coordinate {lowest:g}, and so have {int(early.sum())} objects, but origin "
        f"{first:g} says that the image begins at {first:g}; set origin: {lowest:g}, or mend the files and set "
        "policies.origin: warn"
    )
    if strict and not touches:
        text += " (and inclusive: true if x1 y1 are the last pixels inside: no box touches the right or lower edge)"
    action: Action = sheet.policies.action("origin")
    sheet.problems.append(Problem("origin", sheet.table.files[int(sheet.table.file[row])], text, action))
    sheet.count("origin", np.flatnonzero(early), action)


def _judge_repeats(sheet: Sheet) -> None:
    table = sheet.table
    known = sheet.keep & (sheet.ids >= 0)
    again = _repeats([sheet.ids], known)
    rows = sheet.report(
        "duplicate_id",
        again,
        lambda row: f"number {int(sheet.ids[row])} is given twice; number objects apart, or set policies.duplicate_id",
    )
    sheet.ids[rows] = -1
    place = [table.image, *sheet.boxes.T]
    sheet.report(
        "duplicate_box",
        _repeats([*place, sheet.label], sheet.keep.copy()),
        lambda row: f"{sheet.box(row)} stands twice in {sheet.image(row)} with the same class; remove one",
    )
    sheet.report(
        "contested_box",
        _repeats(place, sheet.keep.copy()),
        lambda row: f"{sheet.box(row)} stands twice in {sheet.image(row)} with different classes; which is right?",
    )


def _repeats(keys: Sequence[np.ndarray], among: np.ndarray) -> np.ndarray:
    """(N,) bool: rows whose keys all equal those of an earlier row, both among those asked for."""
    rows = np.flatnonzero(among)
    order = rows[np.lexsort([key[rows] for key in reversed(keys)])]  # stable: the first of equal rows comes first
    same = np.ones(max(0, len(order) - 1), bool)
    for key in keys:
        same &= key[order[1:]] == key[order[:-1]]
    found = np.zeros(len(among), bool)
    found[order[1:][same]] = True
    return found


def everywhere(sheet: Sheet) -> np.ndarray:
    """(N,) bool: objects that need not be found whatever class is found there."""
    return np.asarray(sheet.keep & (sheet.label == ANY))
