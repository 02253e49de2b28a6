"""The score of a submission against the truth: what the leaderboard would show, class by class, and how sure that is.

Shapes: N images, K labels.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionapps.competition.scoring_rows import (
    USAGE,
    Cell,
    RowSet,
    Size,
    match_rows,
    pieces,
    read_folder,
    read_rows,
    usage_of,
)
from visionapps.errors import ConfigError, DataError
from visionapps.inference.dialects import Dialect
from visionapps.masks import decode
from visionapps.metrics.bootstrap import DRAWS, Interval
from visionapps.metrics.competition import CompetitionMetric, Counts, build_metric
from visionapps.metrics.measures import Overlap, Parts
from visionapps.metrics.object_precision import ObjectPrecision
from visionapps.metrics.run_areas import RunTable, object_run_pairs, run_areas, union

ALL = "all"
IGNORED = "Ignored"  # rows that Kaggle takes for no leaderboard


@dataclass(frozen=True)
class Board:
    """One leaderboard.

    Attributes:
        name: "all", or what the column of the solution file says: Public, Private.
        score: in [0, 1].
        interval: where the score would lie in 95 of 100 sets of as many images.
        rows: (image, class) pairs that count.
        per_class: (K,) NaN where a class does not count.
    """

    name: str
    score: float
    interval: Interval
    rows: int
    per_class: NDArray[np.float64]

    def to_dict(self, labels: Sequence[int]) -> dict[str, Any]:
        """Plain data for JSON; undefined values as None."""
        return {
            "name": self.name,
            "score": _plain(self.score),
            "interval": [_plain(end) for end in self.interval],
            "rows": self.rows,
            "per_class": {str(k): _plain(float(self.per_class[k])) for k in labels},
        }


@dataclass(frozen=True)
class SubmissionScore:
    """What a submission is worth.

    Attributes:
        metric: with its options.
        labels: that have rows.
        boards: of all rows first; of parts of them after it, if the truth is divided.
        images: N.
        true_images: (K,) images that have the class.
        predicted_images: (K,) images in which it is predicted.
        same_order: whether the rows that both have stand in the order of the truth.
        only_named: whether images without any row are unknown, as the dialect leaves out what is empty.
    """

    metric: CompetitionMetric
    labels: tuple[int, ...]
    boards: tuple[Board, ...]
    images: int
    true_images: NDArray[np.int64]
    predicted_images: NDArray[np.int64]
    same_order: bool
    only_named: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "metric": self.metric.to_dict(),
            "images": self.images,
            "boards": [board.to_dict(self.labels) for board in self.boards],
            "true_images": {str(k): int(self.true_images[k]) for k in self.labels},
            "predicted_images": {str(k): int(self.predicted_images[k]) for k in self.labels},
        }


def score_submission(
    submission: Path,
    truth: Path,
    *,
    dialect: Dialect,
    metric: str | Mapping[str, Any],
    classes: int | None = None,
    usage: str = USAGE,
) -> SubmissionScore:
    """Score a CSV against the truth, after the checks that ``verify`` makes.

    Overlaps and objects are counted on the run lengths; only outlines need pixels.

    Args:
        submission: the CSV.
        truth: a CSV of the same rows, which may have other columns, or a folder of index masks.
        dialect: the rules of both.
        metric: see ``build_metric``; labels without rows never count.
        classes: labels of the model, the background included, where the dialect names no labels.
        usage: the column of the truth that divides its rows into leaderboards; it must be there unless it is Usage.

    Raises:
        DataError: a file is malformed, or rows are missing, superfluous or overlap.
        ConfigError: the metric cannot work, or needs the size of the masks, which nobody tells.
    """
    if truth.is_dir() and usage != USAGE:
        raise DataError(f"{truth}: has no column {usage!r}; it is a folder, so give a solution file that has it")
    true = read_folder(truth, dialect, classes=classes) if truth.is_dir() else read_rows(truth, dialect, usage=usage)
    predicted = read_rows(submission, dialect, sizes=true.sizes)
    same_order = match_rows(predicted, true, dialect)
    cells = list(dict.fromkeys([*true.runs, *predicted.runs]))
    labels = _labels(cells, dialect, classes, true)
    if dialect.absent == "skip":  # what has no row is empty
        cells = [(image, label) for image in dict.fromkeys(image for image, _ in cells) for label in labels]
    built = _metric(metric, labels, dialect, classes)
    parts = _parts(built, cells, predicted, true, dialect)
    images = list(dict.fromkeys(image for image, _ in cells))
    at = (_numbers(cells, images), np.array([label for _, label in cells], np.int64))
    table = np.zeros((len(images), built.classes, *parts.shape[1:]), parts.dtype)
    table[at] = parts
    boards = []
    for name, chosen in _groups(cells, usage_of(cells, true)):
        there = np.zeros((len(images), built.classes), bool)
        there[at[0][chosen], at[1][chosen]] = True
        boards.append(_board(name, built, table, there))
    return SubmissionScore(
        metric=built,
        labels=built.kept,
        boards=tuple(boards),
        images=len(images),
        true_images=_occurrences(cells, true, built.classes),
        predicted_images=_occurrences(cells, predicted, built.classes),
        same_order=same_order,
        only_named=dialect.absent == "skip" and not truth.is_dir(),
    )


def _labels(cells: Iterable[Cell], dialect: Dialect, classes: int | None, true: RowSet) -> tuple[int, ...]:
    """The labels that have rows; where nobody says, those that the truth has."""
    found = sorted({label for _, label in cells})
    if not dialect.per_class:
        return (1,)
    if classes is None and dialect.labels is None:
        return tuple(found)
    written = dialect.written(classes)
    strange = sorted(set(found) - set(written))
    if strange:
        raise DataError(
            f"{true.source}: label {strange[0]} has no rows in this dialect; give the right dialect or --classes"
        )
    return written


def _metric(
    spec: str | Mapping[str, Any], labels: Sequence[int], dialect: Dialect, classes: int | None
) -> CompetitionMetric:
    """The metric over the labels 0 to the last one that has rows; those between that have none are excluded."""
    count = max(labels, default=0) + 1
    named: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    asked = named.get("exclude", ())
    names = {"background": 0, **dict(zip(dialect.names or (), dialect.labels or (), strict=False))}
    asked = [_label(k, names, named.get("name")) for k in (asked if isinstance(asked, list | tuple) else [asked])]
    without = [k for k in range(max(count, classes or 0)) if k not in labels]  # they count for nothing anyway
    named["exclude"] = [k for k in without if k < count] + [k for k in asked if k not in without]
    return build_metric(named, count)


def _label(excluded: object, names: Mapping[str, int], metric: object) -> object:
    """The label of a class that is excluded by its name."""
    if not isinstance(excluded, str):
        return excluded
    if excluded not in names:
        near = difflib.get_close_matches(excluded, names, 1)
        hint = f"did you mean {near[0]}?" if near else "give labels, or names in the dialect"
        raise ConfigError(f"metric {metric}: exclude {excluded!r} is no class; known are {', '.join(names)}; {hint}")
    return names[excluded]


def _parts(
    metric: CompetitionMetric, cells: Sequence[Cell], predicted: RowSet, true: RowSet, dialect: Dialect
) -> Parts:
    """(C, ...) the parts of the measure in each cell."""
    measure = metric.measure
    sides = [[rows.runs.get(cell, []) for cell in cells] for rows in (predicted, true)]
    if isinstance(measure, Overlap):
        tables = [
            RunTable.of([own[0] if len(own) == 1 else union(own) for own in side], base=dialect.base) for side in sides
        ]
        return run_areas(*tables).parts()
    sizes = {**predicted.sizes, **true.sizes}
    none = measure.parts(np.zeros((1, 1), np.uint8), np.full((1, 1), 255, np.uint8), 1)[0]  # of an empty pair
    parts = np.stack([none] * len(cells))
    for i, ((image, _), ours, theirs) in enumerate(zip(cells, *sides, strict=True)):
        if not ours and not theirs:
            continue
        if isinstance(measure, ObjectPrecision) and measure.objects == "whole":
            ours, theirs = ([union(own)] if own else [] for own in (ours, theirs))
            parts[i] = measure.of_pairs(object_run_pairs(ours, theirs))
            continue
        if isinstance(measure, ObjectPrecision) and dialect.instances:
            parts[i] = measure.of_pairs(object_run_pairs(ours, theirs))
            continue
        size = _size(image, sizes, dialect)
        if isinstance(measure, ObjectPrecision):
            cut = [pieces(union(own), size, dialect, measure.connectivity) for own in (ours, theirs)]
            parts[i] = measure.of_pairs(object_run_pairs(*cut))
        else:
            masks = [decode(union(own), size, order=dialect.order, base=dialect.base)[None] for own in (ours, theirs)]
            parts[i] = measure.parts(masks[0], masks[1], 1)[0]
    return parts


def _size(image: str, sizes: Mapping[str, Size], dialect: Dialect) -> Size:
    size = dialect.resize or sizes.get(image)
    if size is None:
        raise ConfigError(
            f"image {image}: objects and outlines need the size of the masks; give --resize HxW, or a folder of true "
            "masks"
        )
    return size


def _groups(cells: Sequence[Cell], usage: Mapping[Cell, str]) -> list[tuple[str, NDArray[np.bool_]]]:
    """The leaderboards by name, with the cells that count for each; what is ignored counts for none."""
    kinds = np.array([usage.get(cell, "") for cell in cells])
    names = [name for name in dict.fromkeys(kinds.tolist()) if name and name != IGNORED]
    whole = [(ALL, kinds != IGNORED)]
    return whole + [(name, kinds == name) for name in sorted(names, reverse=True)]  # Public before Private


def _board(name: str, metric: CompetitionMetric, table: Parts, there: NDArray[np.bool_]) -> Board:
    kept = there[:, list(metric.kept)]
    counts = metric.of_parts(table, there)[kept.any(1)]
    total = counts.sum(0)
    return Board(name, metric.score(total), _interval(metric, counts), int(kept.sum()), metric.per_class(total))


def _interval(metric: CompetitionMetric, counts: Counts) -> Interval:
    """The score of as many images, drawn again with replacement. Source: Efron 1979, the bootstrap by percentiles."""
    images = len(counts)
    if images < 2:
        return Interval(float("nan"), float("nan"))
    rng = np.random.default_rng(0)
    times = rng.multinomial(images, np.full(images, 1 / images), DRAWS)
    drawn = np.tensordot(times, counts, 1)
    scores = np.array([metric.score(one) for one in drawn])
    scores = scores[~np.isnan(scores)]
    if not len(scores):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(scores, (0.025, 0.975))
    return Interval(float(low), float(high))


def _numbers(cells: Sequence[Cell], images: Sequence[str]) -> NDArray[np.int64]:
    number = {image: i for i, image in enumerate(images)}
    return np.array([number[image] for image, _ in cells], np.int64)


def _occurrences(cells: Sequence[Cell], rows: RowSet, classes: int) -> NDArray[np.int64]:
    return np.bincount([label for image, label in cells if rows.runs.get((image, label))], minlength=classes)


def _plain(value: float) -> float | None:
    return None if value != value else float(value)
