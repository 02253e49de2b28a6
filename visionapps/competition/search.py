"""The best rule of one class while all others stand, judged from tables of counts.

Shapes: K classes, I photos, R photos in which the class takes part, T candidates, S sums of the objective.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionapps.competition.components import EVEN
from visionapps.competition.objective import Objective
from visionapps.competition.tables import Units

Numbers = NDArray[np.float64]
Rows = NDArray[np.int64]
_GAIN = 1e-9  # a score must rise by more than this for a rule to change
_KEPT = (1, 2, 3, 5, 8)  # components tried as the most in a photo
_LEVELS = 256
_EVERY = np.iinfo(np.int64).max  # more components than any photo has


@dataclass(frozen=True)
class Choice:
    """A rule of a class, with thresholds as levels."""

    top: int = EVEN
    bottom: int = EVEN
    min_area: int = 0
    min_present: int = 0
    keep: int = 0
    holes: int = 0


@dataclass(frozen=True, eq=False)
class Standing:
    """What a class keeps under each of T candidates."""

    count: Numbers  # (R, T) labelled pixels
    hits: Numbers  # (R, T) of these, whose truth is the class
    area: Numbers  # (R, T) pixels
    held: Mapping[int, tuple[Numbers, Numbers]]  # by rival: pixels kept from it, and those whose truth is the rival

    def pick(self, number: int) -> "Standing":
        """One of the candidates."""
        chosen = slice(number, number + 1)
        held = {rival: (a[:, chosen], b[:, chosen]) for rival, (a, b) in self.held.items()}
        return Standing(self.count[:, chosen], self.hits[:, chosen], self.area[:, chosen], held)

    def present(self, least: int) -> "Standing":
        """Nothing is kept of a photo that has fewer pixels of the class."""
        return self.where(self.area >= least) if least else self

    def where(self, stays: NDArray[np.bool_]) -> "Standing":
        """Nothing is kept where (R, T) is false."""
        held = {rival: (a * stays, b * stays) for rival, (a, b) in self.held.items()}
        return Standing(self.count * stays, self.hits * stays, self.area * stays, held)


def stand(units: Units, rows: Rows, *, tops: Sequence[int], sizes: Sequence[int], size_of: Rows) -> Standing:
    """What a class keeps if its units need a top of at least t and a size of at least s, for all pairs of them.

    Args:
        units: of the class.
        rows: (R,) photos, all that the units lie in among them; rising.
        tops: thresholds, rising.
        sizes: rising.
        size_of: (N,) size of each unit.

    Returns:
        Candidates in the order of pairs, sizes changing fastest.
    """
    shape = len(rows), len(tops) + 1, len(sizes) + 1
    # A unit passes the first so many thresholds; summed from the end, a place has all that pass the one before it.
    passed = np.searchsorted(tops, units.tops, "right"), np.searchsorted(sizes, size_of, "right")
    place = np.ravel_multi_index((np.searchsorted(rows, units.images), *passed), shape)

    def added(places: Rows, weights: NDArray[Any]) -> Numbers:
        table = np.bincount(places, weights, int(np.prod(shape))).reshape(shape)
        kept = table[:, ::-1, ::-1].cumsum(1).cumsum(2)[:, ::-1, ::-1]
        return np.asarray(kept[:, 1:, 1:].reshape(len(rows), -1))

    held = {}
    for rival in np.unique(units.rivals).tolist():
        own = units.rivals == rival
        places = place[units.cell_units[own]]
        held[rival] = added(places, units.falls[own]), added(places, units.fall_hits[own])
    return Standing(added(place, units.count), added(place, units.hits), added(place, units.areas), held)


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
        self.true = true.astype(np.float64)
        areas = (self.both[chosen], self.predicted[chosen], self.true[chosen])
        self._sums = np.moveaxis(objective.sums(*areas), 1, 0)  # (K, S)

    @property
    def score(self) -> float:
        """Of all photos that count, as things stand."""
        return float(self.objective.score(self._sums))

    def trial(self, k: int, rows: Rows, now: Standing, candidates: Standing) -> Numbers:
        """(T,) the score under each candidate of class k.

        Args:
            k: the class.
            rows: (R,) photos in which it takes part.
            now: what it keeps now, T = 1.
            candidates: what it would keep.
        """
        return np.asarray(self.objective.score(self._moved(k, rows, now, candidates)))

    def commit(self, k: int, rows: Rows, now: Standing, new: Standing) -> None:
        """Let class k keep something else from now on."""
        self._sums = self._moved(k, rows, now, new)[..., 0]
        for label, predicted, both in _changes(k, now, new):
            self.predicted[rows, label] += predicted[:, 0]
            self.both[rows, label] += both[:, 0]

    def _moved(self, k: int, rows: Rows, now: Standing, new: Standing) -> Numbers:
        sums = np.repeat(self._sums[..., None], new.count.shape[1], axis=2)
        for label, predicted, both in _changes(k, now, new):
            old = self.both[rows, label], self.predicted[rows, label], self.true[rows, label]
            before = self.objective.sums(*old)
            after = self.objective.sums(old[0][:, None] + both, old[1][:, None] + predicted, old[2][:, None])
            sums[label] += after - before[:, None]
        return sums


def _changes(k: int, now: Standing, new: Standing) -> list[tuple[int, Numbers, Numbers]]:
    """What each class that is touched gains: pixels of its prediction (R, T), and of these the right ones."""
    found = [(k, new.count - now.count, new.hits - now.hits)]
    nothing = np.zeros((len(now.count), 1)), np.zeros((len(now.count), 1))
    for rival in now.held.keys() | new.held.keys():
        had, has = now.held.get(rival, nothing), new.held.get(rival, nothing)
        found.append((rival, had[0] - has[0], had[1] - has[1]))
    return found


class ClassSearch:
    """Tries the rules of one class."""

    def __init__(self, rules: Sequence[str], *, areas: Sequence[int], lowest: int) -> None:
        """
        Args:
            rules: that are searched; see Tuning.
            areas: pixels that are tried for minimum areas and holes, rising from 0.
            lowest: threshold that is tried.
        """
        self._rules, self._areas, self._lowest = frozenset(rules), tuple(areas), lowest
        self._known: dict[tuple[int, int], Standing] = {}  # by class and lower threshold; the same in every round

    def best(self, ledger: Ledger, k: int, choice: Choice, levels: Units, pieces: Mapping[int, Units]) -> Choice:
        """The rule of class k that gives the ledger the highest score; the ledger takes it over.

        Args:
            ledger: with the class as its present rule has it.
            k: the class.
            choice: its present rule.
            levels: its units of one level each.
            pieces: its components, by lower threshold.
        """
        rows = np.unique(levels.images)
        if not len(rows):
            return choice
        now = self._standing(choice, rows, levels, pieces)
        for block in (*self._thresholds(k, pieces), self._presence, self._most):
            score = ledger.score
            options, standing = block(choice, rows, levels, pieces)
            if not options:
                continue
            scores = ledger.trial(k, rows, now, standing)
            number = _middle(scores, options)
            if scores[number] > score + _GAIN:
                new = standing.pick(number)
                ledger.commit(k, rows, now, new)
                choice, now = options[number], new
        return choice

    def fill(self, ledger: Ledger, k: int, choice: Choice, units: Units) -> Choice:
        """The largest hole of class k to be filled; ``units`` are its holes."""
        rows = np.unique(units.images)
        if not len(rows):
            return choice
        sizes = [-area for area in reversed(self._areas)]
        standing = stand(units, rows, tops=[0], sizes=sizes, size_of=-units.sizes)
        now = standing.pick(len(sizes) - 1)  # holes of no pixel: none
        scores = ledger.trial(k, rows, now, standing)
        options = [replace(choice, holes=-size) for size in sizes]
        number = int(np.flatnonzero(scores >= scores.max() - _GAIN)[-1])  # of equal ones the smallest
        if scores[number] <= ledger.score + _GAIN:
            return choice
        ledger.commit(k, rows, now, standing.pick(number))
        return options[number]

    def _standing(self, choice: Choice, rows: Rows, levels: Units, pieces: Mapping[int, Units]) -> Standing:
        """What a choice keeps; T = 1."""
        kept = self._unfiltered(choice, rows, levels, pieces)
        return kept.where(kept.area >= choice.min_present)

    def _unfiltered(self, choice: Choice, rows: Rows, levels: Units, pieces: Mapping[int, Units]) -> Standing:
        units = pieces.get(choice.bottom, levels) if _needs_pieces(choice) else levels
        if not choice.keep:
            area = units.sizes if _needs_pieces(choice) else np.zeros_like(units.sizes)
            return stand(units, rows, tops=[choice.top], sizes=[choice.min_area], size_of=area)
        ranks = _ranks(units, choice)
        return stand(units, rows, tops=[choice.top], sizes=[1 - choice.keep], size_of=-ranks)

    def _thresholds(self, k: int, pieces: Mapping[int, Units]) -> list[Any]:
        """Blocks of candidates: thresholds alone, all of them; and with components, one block per lower threshold."""
        blocks: list[Any] = []
        if "threshold" in self._rules and "keep" not in self._rules:
            blocks.append(partial(self._levels, k))
        return blocks + [partial(self._pieces, k, bottom) for bottom in pieces]

    def _levels(
        self, k: int, choice: Choice, rows: Rows, levels: Units, pieces: Mapping[int, Units]
    ) -> tuple[list[Choice], Standing]:
        tops = range(self._lowest, _LEVELS)
        standing = self._known.get((k, -1))
        if standing is None:
            standing = self._known[k, -1] = stand(levels, rows, tops=tops, sizes=[0], size_of=levels.sizes)
        options = [Choice(top, top, 0, choice.min_present) for top in tops]
        return options, standing.present(choice.min_present)

    def _pieces(
        self, k: int, bottom: int, choice: Choice, rows: Rows, levels: Units, pieces: Mapping[int, Units]
    ) -> tuple[list[Choice], Standing]:
        units = pieces[bottom]
        tops = [top for top in pieces if top >= bottom] if "triplet" in self._rules else [bottom]
        sizes = self._areas if "min_area" in self._rules else (0,)
        standing = self._known.get((k, bottom))
        if standing is None:
            standing = self._known[k, bottom] = stand(units, rows, tops=tops, sizes=sizes, size_of=units.sizes)
        options = [Choice(top, bottom, size, choice.min_present) for top in tops for size in sizes]
        return options, standing.present(choice.min_present)

    def _presence(
        self, choice: Choice, rows: Rows, levels: Units, pieces: Mapping[int, Units]
    ) -> tuple[list[Choice], Standing]:
        kept = self._unfiltered(choice, rows, levels, pieces)
        if "min_present" not in self._rules:
            return [], kept
        least = np.array(self._areas)
        every = kept.where(np.ones((1, len(least)), np.bool_))  # broadcast to all candidates
        return [replace(choice, min_present=int(n)) for n in least], every.where(kept.area >= least)

    def _most(
        self, choice: Choice, rows: Rows, levels: Units, pieces: Mapping[int, Units]
    ) -> tuple[list[Choice], Standing]:
        if "keep" not in self._rules or choice.bottom not in pieces:
            return [], self._unfiltered(choice, rows, levels, pieces)
        units = pieces[choice.bottom]
        most = sorted(_KEPT, reverse=True)
        sizes = [1 - n for n in most]
        standing = stand(units, rows, tops=[choice.top], sizes=sizes, size_of=-_ranks(units, choice))
        options = [replace(choice, keep=n) for n in most]
        return options, standing.present(choice.min_present)


def _needs_pieces(choice: Choice) -> bool:
    return choice.bottom < choice.top or choice.min_area > 0 or choice.keep > 0


def _ranks(units: Units, choice: Choice) -> Rows:
    """(N,) how many larger components stay in the photo of each; those that do not stay come after all."""
    stays = (units.tops >= choice.top) & (units.sizes >= choice.min_area)
    order = np.lexsort((-units.sizes, ~stays, units.images))
    image = units.images[order]
    first = np.searchsorted(image, image, "left")
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order)) - first
    return np.where(stays, ranks, _EVERY)


def _middle(scores: Numbers, options: Sequence[Choice]) -> int:
    """Of the candidates that are best, the simplest, and of these the one in the middle: far from both edges."""
    tied = np.flatnonzero(scores >= scores.max() - _GAIN).tolist()
    least = min(options[i].min_area for i in tied)
    simple = [i for i in tied if options[i].min_area == least]
    return simple[len(simple) // 2]
