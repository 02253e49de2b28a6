"""The best rule of one class while all others stand, judged from tables of counts.

Shapes: K classes, I photos, R photos in which the class takes part, Q pairs of photo and rival, T candidates, S sums of
the objective.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionapps.competition.components import EVEN
from visionapps.competition.objective import Objective, counted, worth
from visionapps.competition.tables import Index, Standing, Units, stand
from visionapps.compiled import compiled

Numbers = NDArray[np.float64]
_GAIN = 1e-9  # a score must rise by more than this for a rule to change
_KEPT = (1, 2, 3, 5, 8)  # components tried as the most in a photo
_LEVELS = 256
_EVERY = np.iinfo(np.int32).max  # more components than any photo has


@dataclass(frozen=True)
class Choice:
    """A rule of a class, with thresholds as levels."""

    top: int = EVEN
    bottom: int = EVEN
    min_area: int = 0
    min_present: int = 0
    keep: int = 0
    holes: int = 0


class Ledger:
    """Pixels that each class has in each photo, and the score that follows; kept true while classes change rules."""

    def __init__(
        self,
        objective: Objective,
        both: NDArray[np.int64],
        predicted: NDArray[np.int64],
        true: NDArray[np.int64],
        chosen: NDArray[np.bool_],
    ) -> None:
        """
        Args:
            objective: the score.
            both: (I, K) pixels of each class in prediction and truth.
            predicted: (I, K) in the prediction.
            true: (I, K) in the truth.
            chosen: (I,) photos that count.
        """
        self.objective = objective
        self.both, self.predicted = both.astype(np.float64), predicted.astype(np.float64)
        self.true, self._chosen = true.astype(np.float64), chosen
        areas = (self.both[chosen], self.predicted[chosen], self.true[chosen])
        self._sums = np.ascontiguousarray(np.moveaxis(objective.sums(*areas), 1, 0))  # (K, S)

    @property
    def score(self) -> float:
        """Of all photos that count, as things stand."""
        return float(self.objective.score(self._sums))

    def trial(self, k: int, now: Standing, candidates: Standing, *, least: int = 0) -> Numbers:
        """(T,) the score under each candidate of class k.

        Args:
            k: the class.
            now: what it keeps now, T = 1.
            candidates: what it would keep; of the same index.
            least: a photo must have so many pixels of the class for any to be kept.
        """
        return np.asarray(self.objective.score(self._moved(k, now, candidates, least)))

    def commit(self, k: int, now: Standing, new: Standing) -> None:
        """Let class k keep something else from now on."""
        self._sums = np.ascontiguousarray(self._moved(k, now, new, 0)[..., 0])
        rows, pairs = now.places
        self.predicted[rows, k] += (new.pixels - now.pixels)[:, 0]
        self.both[rows, k] += (new.hits - now.hits)[:, 0]
        # One after the other: counts of 16 bits have no negative differences.
        for sign, stands in ((1, now), (-1, new)):
            self.predicted[rows[pairs[:, 0]], pairs[:, 1]] += sign * stands.held[:, 0].astype(np.float64)
            self.both[rows[pairs[:, 0]], pairs[:, 1]] += sign * stands.held_hits[:, 0].astype(np.float64)

    def _moved(self, k: int, now: Standing, new: Standing, least: int) -> Numbers:
        """(K, S, T) sums under each candidate."""
        sums = np.repeat(self._sums[..., None], new.pixels.shape[1], axis=2)
        _move(sums, k, (self.both, self.predicted, self.true, self._chosen), now, new, least, self.objective.kind)
        return sums


@compiled
def _move(sums: Any, k: Any, state: Any, now: Any, new: Any, least: Any, kind: Any) -> None:
    """Add to sums what changes if class k no longer keeps what it keeps now, and its rivals get what they then get."""
    both, predicted, true, chosen = state
    rows, pairs = new.places
    for r in range(len(rows)):
        i = rows[r]
        if chosen[i]:
            old = both[i, k], predicted[i, k], true[i, k]
            without = both[i, k] - now.hits[r, 0], predicted[i, k] - now.pixels[r, 0]
            _change(sums[k], old, without, (new.hits[r], new.pixels[r], new.area[r]), 1, least, kind)
    for q in range(len(pairs)):
        r, rival = pairs[q, 0], pairs[q, 1]
        i = rows[r]
        if chosen[i]:
            old = both[i, rival], predicted[i, rival], true[i, rival]
            without = both[i, rival] + now.held_hits[q, 0], predicted[i, rival] + now.held[q, 0]
            _change(sums[rival], old, without, (new.held_hits[q], new.held[q], new.area[r]), -1, least, kind)


@compiled
def _change(sums: Any, old: Any, without: Any, kept: Any, sign: Any, least: Any, kind: Any) -> None:
    """The change of one class in one photo under all candidates.

    Args:
        sums: (S, T), to which it is added.
        old: its pixels in prediction and truth, in the prediction, and in the truth.
        without: the first two, if nothing was kept of what the candidates are about.
        kept: (T,) each: what they keep of both, of the prediction, and the area that this is of.
        sign: 1 for the class that keeps it, -1 for the rival that does not get it.
        least: area from which on anything is kept.
        kind: of the objective.
    """
    both, predicted, true = old
    hits, count, area = kept
    value, there = worth(both, predicted, true, kind), counted(predicted, true, kind)
    for t in range(len(count)):
        stays = sign if area[t] >= least else 0
        own, right = without[1] + stays * count[t], without[0] + stays * hits[t]
        if kind.by_photo:
            sums[0, t] += worth(right, own, true, kind) - value
            sums[1, t] += counted(own, true, kind) - there
        else:
            sums[0, t] += right - both
            sums[1, t] += own - predicted


@dataclass(frozen=True, eq=False)
class ClassTable:
    """All that is tried of one class: what it keeps under each pair of thresholds and smallest area.

    Attributes:
        standing: of all candidates; the first is no rule at all.
        tops: (T,) level of the threshold.
        bottoms: (T,) level of the lower one.
        areas: (T,) smallest area.
        blocks: candidates that are compared with each other.
        pieces: components by lower threshold, where their number matters.
    """

    standing: Standing
    tops: NDArray[np.int64]
    bottoms: NDArray[np.int64]
    areas: NDArray[np.int64]
    blocks: tuple[slice, ...]
    pieces: Mapping[int, Units]


def class_table(
    levels: Units, pieces: Mapping[int, Units], *, rules: Sequence[str], areas: Sequence[int], lowest: int
) -> ClassTable:
    """The table of a class.

    Args:
        levels: its units of one level each.
        pieces: its components, by lower threshold.
        rules: that are searched; see Tuning.
        areas: pixels that are tried as the smallest area, rising from 0.
        lowest: threshold that is tried.
    """
    index = Index.of(levels)
    wanted: list[tuple[Units, list[int], int | None, tuple[int, ...]]] = [(levels, [EVEN], EVEN, (0,))]
    if "threshold" in rules and "keep" not in rules:
        wanted.append((levels, list(range(lowest, _LEVELS)), None, (0,)))
    for bottom, units in pieces.items():
        tops = [top for top in pieces if top >= bottom] if "triplet" in rules else [bottom]
        wanted.append((units, tops, bottom, tuple(areas) if "min_area" in rules else (0,)))
    parts: list[Standing] = []
    places: list[tuple[int, int, int]] = []
    ends = [0]
    for units, tops, low, sizes in wanted:
        parts.append(stand(units, index, tops=tops, sizes=sizes, size_of=units.sizes))
        places += [(top, top if low is None else low, size) for top in tops for size in sizes]
        ends.append(len(places))
    blocks = tuple(slice(a, b) for a, b in pairwise(ends[1:]))
    highs, lows, smallest = np.array(places).T
    return ClassTable(Standing.joined(parts), highs, lows, smallest, blocks, pieces if "keep" in rules else {})


@dataclass(eq=False)
class ClassSearch:
    """Tries the rules of one class.

    Attributes:
        rules: that are searched; see Tuning.
        areas: pixels that are tried for minimum presence and holes, rising from 0.
    """

    rules: Sequence[str]
    areas: Sequence[int]
    _now: dict[int, Standing] = field(default_factory=dict)  # what each class keeps
    _columns: dict[int, int] = field(default_factory=dict)  # of its table, before presence and number are looked at

    def best(self, ledger: Ledger, k: int, choice: Choice, table: ClassTable) -> Choice:
        """The rule of class k that gives the ledger the highest score; the ledger takes it over.

        Args:
            ledger: with the class as its present rule has it.
            k: the class.
            choice: its present rule.
            table: of the class.
        """
        if not len(table.standing.places.rows):
            return choice
        self._now.setdefault(k, table.standing.pick(0))
        choice = self._thresholds(ledger, k, choice, table)
        if "min_present" in self.rules:
            least = np.array(self.areas)
            standing = self._unfiltered(k, choice, table).present(least)
            options = [replace(choice, min_present=int(n)) for n in least]
            choice = self._take(ledger, k, choice, standing, options.__getitem__)
        if "keep" in self.rules and choice.bottom in table.pieces:
            most = sorted(_KEPT, reverse=True)
            standing = _largest(choice, table, most).present(np.array([choice.min_present]))
            options = [replace(choice, keep=n) for n in most]
            choice = self._take(ledger, k, choice, standing, options.__getitem__)
        return choice

    def fill(self, ledger: Ledger, k: int, choice: Choice, units: Units) -> Choice:
        """The largest hole of class k to be filled; ``units`` are its holes."""
        index = Index.of(units)
        if not len(index.rows):
            return choice
        sizes = [-area for area in reversed(self.areas)]
        standing = stand(units, index, tops=[0], sizes=sizes, size_of=-units.sizes)
        now = standing.pick(len(sizes) - 1)  # holes of no pixel: none
        scores = ledger.trial(k, now, standing)
        number = int(_best(scores)[-1])  # of equal ones the smallest
        if not scores[number] > ledger.score + _GAIN:  # also where either is NaN
            return choice
        ledger.commit(k, now, standing.pick(number))
        return replace(choice, holes=-sizes[number])

    def _thresholds(self, ledger: Ledger, k: int, choice: Choice, table: ClassTable) -> Choice:
        """Thresholds alone, all of them, and then with components, one lower threshold after the other."""
        least = choice.min_present
        scores = ledger.trial(k, self._now[k], table.standing, least=least)
        score, picked = ledger.score, None
        for block in table.blocks:
            number = block.start + _middle(scores[block], table.areas[block])
            if scores[number] > score + _GAIN:
                score, picked = float(scores[number]), number
        if picked is None:
            return choice
        self._columns[k] = picked
        self._commit(ledger, k, table.standing.pick(picked).present(np.array([least])))
        return Choice(int(table.tops[picked]), int(table.bottoms[picked]), int(table.areas[picked]), least)

    def _take(
        self, ledger: Ledger, k: int, choice: Choice, standing: Standing, option: Callable[[int], Choice]
    ) -> Choice:
        """The best of candidates that have the same smallest area, or the present choice."""
        scores = ledger.trial(k, self._now[k], standing)
        number = _middle(scores, np.zeros(len(scores)))
        if not scores[number] > ledger.score + _GAIN:  # also where either is NaN
            return choice
        self._commit(ledger, k, standing.pick(number))
        return option(number)

    def _commit(self, ledger: Ledger, k: int, new: Standing) -> None:
        ledger.commit(k, self._now[k], new)
        self._now[k] = new

    def _unfiltered(self, k: int, choice: Choice, table: ClassTable) -> Standing:
        """What a choice keeps, presence left aside; T = 1."""
        if choice.keep:
            return _largest(choice, table, [choice.keep])
        return table.standing.pick(self._columns.get(k, 0))


def _largest(choice: Choice, table: ClassTable, most: Sequence[int]) -> Standing:
    """What a choice keeps if at most so many components of a photo stay, for each number; falling."""
    units = table.pieces[choice.bottom]
    sizes = [1 - n for n in most]
    return stand(units, table.standing.places, tops=[choice.top], sizes=sizes, size_of=-_ranks(units, choice))


def _ranks(units: Units, choice: Choice) -> NDArray[np.int64]:
    """(N,) how many larger components stay in the photo of each; those that do not stay come after all."""
    stays = (units.tops >= choice.top) & (units.sizes >= choice.min_area)
    order = np.lexsort((-units.sizes, ~stays, units.images))
    image = units.images[order]
    first = np.searchsorted(image, image, "left")
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order)) - first
    return np.where(stays, ranks, _EVERY)


def _best(scores: Numbers) -> NDArray[np.intp]:
    """Places of the highest scores; NaN, where nothing is left that could be scored, is below all others."""
    known = np.where(np.isnan(scores), -np.inf, scores)
    return np.flatnonzero(known >= known.max() - _GAIN)


def _middle(scores: Numbers, areas: NDArray[Any]) -> int:
    """Of the candidates that are best, the simplest, and of these the one in the middle: far from both edges."""
    tied = _best(scores)
    simple = tied[areas[tied] == areas[tied].min()]
    return int(simple[len(simple) // 2])
