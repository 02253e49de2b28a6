"""Rules searched on the competition's own metric, from out-of-fold predictions alone.

Coordinate descent over classes: all rules of one class are tried while those of the others stand. What a class loses
falls to its rival, so every candidate is judged exactly, for all classes that it touches, from tables of counts.

Shapes: K classes, I photos, T candidates, R photos in which a class takes part.
"""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from visionapps.competition.calibration import Calibration, Kind, fit_calibration, histograms
from visionapps.competition.components import EVEN, Contest, contest
from visionapps.competition.objective import Objective
from visionapps.competition.pieces import Asked, level_units, piece_units
from visionapps.competition.postprocess import PostProcess, Rule, to_share
from visionapps.competition.regions import cells_of, filled, hole_table, label_overlap, overlap_of, regions_of
from visionapps.competition.search import Choice, ClassSearch, ClassTable, Ledger, class_table
from visionapps.competition.tables import UnitList, hole_units
from visionapps.errors import ConfigError, DataError
from visionapps.metrics.competition import CompetitionMetric
from visionapps.metrics.measures import check_pair
from visionapps.structures import LabelSpace

RULES = ("threshold", "triplet", "min_area", "min_present", "keep", "holes")
_IN_MEMORY = 2**31  # bytes of contests; of more, they lie in a temporary file
_STEP = {True: 16, False: 12}  # levels between thresholds whose components are counted: with, without a background
_LOWEST, _HIGHEST = 32, 250
_GROWTH, _LARGEST = 1.5, 8  # areas tried: each so many times the last, up to the photo's by so many
_SWEEPS = 4
Bar = Callable[[Sequence[str], str], Iterable[str]]


class Predictions(Protocol):
    """Out-of-fold predictions; see OofStore."""

    @property
    def labels(self) -> LabelSpace: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    def fold(self, name: str) -> int: ...
    def scores(self, name: str) -> NDArray[np.uint8]: ...
    def truth(self, name: str) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class Tuning:
    """What is searched.

    Attributes:
        rules: any of RULES.
        calibration: fitted before the search, for each class; None: scores are probabilities.
        background: its label; None: classes compete with the runner-up.
        seed: of the order in which classes are searched.
    """

    rules: tuple[str, ...] = ("threshold", "min_area", "holes")
    calibration: Kind | None = None
    background: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [rule for rule in self.rules if rule not in RULES]
        if unknown:
            raise ConfigError(f"rules: {', '.join(unknown)} unknown; choose from {', '.join(RULES)}")
        if not self.rules and self.calibration is None:
            raise ConfigError(f"rules: nothing to tune; choose from {', '.join(RULES)}, or a calibration")
        if self.seed < 0:
            raise ConfigError(f"seed {self.seed}: must be a whole number from 0 on")
        if self.seed < 0:
            raise ConfigError(f"seed {self.seed}: must be a whole number from 0 on")

    @property
    def bottoms(self) -> tuple[int, ...]:
        """Levels whose components are counted; fixed beforehand, so that a nested estimate is honest."""
        if not {"triplet", "min_area", "keep"} & set(self.rules):
            return ()
        if not {"threshold", "triplet"} & set(self.rules):
            return (EVEN,)
        lowest = _LOWEST if self.background is not None else EVEN
        return tuple(range(lowest, _HIGHEST, _STEP[self.background is not None]))


@dataclass(eq=False)
class Contests:
    """Who wins each pixel of each photo, and the truth; all that tuning reads of the scores."""

    names: tuple[str, ...]
    won: list[Contest] = field(default_factory=list)
    truth: list[NDArray[np.uint8]] = field(default_factory=list)

    @classmethod
    def read(cls, store: Predictions, tables: NDArray[np.float32], background: int | None, bar: Bar) -> "Contests":
        """One pass over the scores.

        Raises:
            DataError: scores and truth of a photo differ in size, or the truth has no labelled pixel at all.
        """
        found = cls(store.names)
        held = 0
        for name in bar(store.names, "reading scores"):
            won, truth = contest(store.scores(name), tables, background), store.truth(name)
            if truth.shape != won.level.shape:
                raise DataError(f"{name}: scores of {won.level.shape} px, but true labels of {truth.shape} (H, W)")
            check_pair(won.winner, truth, len(tables))
            held += 4 * truth.size
            planes = [_put_away(plane) if held > _IN_MEMORY else plane for plane in (*won, truth)]
            found.won.append(Contest(*planes[:3]))
            found.truth.append(planes[3])
        return found


def _put_away(plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
    with tempfile.TemporaryFile() as file:  # the map keeps it alive
        kept: NDArray[np.uint8] = np.memmap(file, np.uint8, "w+", shape=plane.shape)
    kept[:] = plane
    return kept


class Counted(NamedTuple):
    """The tables of all photos."""

    tables: list[ClassTable]  # by class
    both: NDArray[np.int64]  # (I, K) of the argmax
    predicted: NDArray[np.int64]
    true: NDArray[np.int64]


class Tuner:
    """Finds rules for photos of a store, and applies them to others."""

    def __init__(
        self, store: Predictions, metric: CompetitionMetric, tuning: Tuning, *, bar: Bar = lambda names, text: names
    ) -> None:
        """
        Args:
            store: the predictions; every fold must be there.
            metric: what the competition scores by.
            tuning: what is searched.
            bar: shows progress.

        Raises:
            ConfigError: the metric cannot be tuned on, or does not belong to these classes.
            DataError: a photo has no truth.
        """
        classes = len(store.labels)
        if metric.classes != classes:
            raise ConfigError(f"metric {metric.name} of {metric.classes} classes, but the predictions have {classes}")
        if not store.names:
            raise DataError("the store holds no photo; predict at least one fold")
        self.store, self.metric, self.tuning = store, metric, tuning
        self.objective = Objective(metric)
        self.folds = np.array([store.fold(name) for name in store.names])
        self._bar = bar
        self._plain = PostProcess.none(classes, tuning.background)
        self._histograms: NDArray[np.int64] | None = None
        self._contests: tuple[tuple[Calibration | None, ...], Contests] | None = None
        self._counted: Counted | None = None

    def tune(self, chosen: NDArray[np.bool_]) -> PostProcess:
        """The rules that suit some photos best.

        Args:
            chosen: (I,) photos that may be looked at.
        """
        calibrations = self.calibrations(chosen)
        contests = self.contests(calibrations)
        if calibrations is not None or self._counted is None:
            self._counted = self._count(contests)
        counted = self._counted
        search = ClassSearch(self.tuning.rules, _areas(contests))
        ledger = Ledger(self.objective, counted.both, counted.predicted, counted.true, chosen)
        choices = self._descend(search, ledger, counted.tables)
        found = self._process(choices, calibrations)
        if "holes" not in self.tuning.rules:
            return found
        return self._process(self._filled(search, ledger, contests, found, choices, chosen), calibrations)

    @property
    def _lowest(self) -> int:
        """The lowest threshold that means anything: a runner-up never has more than the winner."""
        return 1 if self.tuning.background is not None else EVEN

    def calibrations(self, chosen: NDArray[np.bool_]) -> list[Calibration | None] | None:
        """Of each class, fitted to the chosen photos; None where none is wanted."""
        kind = self.tuning.calibration
        if kind is None:
            return None
        if self._histograms is None:
            names = self._bar(self.store.names, "calibrating")
            self._histograms = np.stack([histograms(self.store.scores(n), self.store.truth(n)) for n in names])
        return [fit_calibration(kind, own) for own in self._histograms[chosen].sum(0)]

    def contests(self, calibrations: Sequence[Calibration | None] | None) -> Contests:
        """Of all photos; the last ones are kept."""
        calibrations = tuple(calibrations or ())
        key = calibrations if any(calibrations) else ()
        if self._contests is None or self._contests[0] != key:
            tables = self._process([Choice()] * len(self.store.labels), key).tables
            self._contests = key, Contests.read(self.store, tables, self.tuning.background, self._bar)
        return self._contests[1]

    def counts(
        self, process: PostProcess | None = None, chosen: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float64]:
        """What photos bring to the metric, as these rules draw them.

        Args:
            process: the rules; None: none, the argmax.
            chosen: (I,) photos that are wanted; None: all.

        Returns:
            (photos, ...) counts of the metric.
        """
        process = process or self._plain
        contests = self.contests([rule.calibration for rule in process.rules])
        wanted = range(len(contests.names)) if chosen is None else np.flatnonzero(chosen).tolist()
        classes = len(self.store.labels)
        drawn = (label_overlap(process.labels(contests.won[i]), contests.truth[i], classes) for i in wanted)
        return np.asarray(self.metric.of_parts(np.stack(list(drawn))))

    def _count(self, contests: Contests) -> Counted:
        tuning, classes = self.tuning, len(self.store.labels)
        bottoms, areas = tuning.bottoms, _areas(contests)
        grid = np.array(bottoms, np.int64)
        asked = Asked(grid, grid, np.array(areas), "keep" not in tuning.rules, classes)
        levels, pieces = UnitList(classes), UnitList(classes, len(bottoms))
        overlaps = np.zeros((len(contests.names), classes, 3), np.int64)
        for i, _ in enumerate(self._bar(contests.names, "counting")):
            won, truth = contests.won[i], contests.truth[i]
            levels.add(i, level_units(won, truth, classes))
            if bottoms:
                pieces.add(i, piece_units(won, truth, asked))
            overlaps[i] = label_overlap(self._plain.labels(won), truth, classes)
        by_bottom = dict(zip(bottoms, pieces.by_class(), strict=True))
        tables = [
            class_table(
                own, {b: its[k] for b, its in by_bottom.items()}, rules=tuning.rules, areas=areas, lowest=self._lowest
            )
            for k, own in enumerate(levels.by_class()[0])
        ]
        return Counted(tables, *np.moveaxis(overlaps, -1, 0))

    def _descend(self, search: ClassSearch, ledger: Ledger, tables: Sequence[ClassTable]) -> list[Choice]:
        """Class after class until no class has anything to gain."""
        classes = len(self.store.labels)
        random = np.random.default_rng(self.tuning.seed)
        choices = [Choice()] * classes
        searchable = [k for k in range(classes) if k != self.tuning.background]
        for _ in range(_SWEEPS):
            before = list(choices)
            for k in random.permutation(searchable).tolist():
                choices[k] = search.best(ledger, k, choices[k], tables[k])
            if choices == before:
                break
        return choices

    def _filled(
        self,
        search: ClassSearch,
        ledger: Ledger,
        contests: Contests,
        process: PostProcess,
        choices: list[Choice],
        chosen: NDArray[np.bool_],
    ) -> list[Choice]:
        """The choices with holes, of the labels that the other rules leave; without, where they raise no score."""
        classes = len(choices)
        units, drawn = UnitList(classes), []
        for i in np.flatnonzero(chosen).tolist():
            regions, ids = regions_of(process.labels(contests.won[i]))
            cells = cells_of(ids, contests.truth[i])
            drawn.append((regions, cells))
            units.add(i, hole_units(hole_table(regions, cells, classes, self.tuning.background)))
        found = [search.fill(ledger, k, choices[k], own) for k, own in enumerate(units.by_class()[0])]
        # One class's filling may open or close a hole of another, which tables do not show: so both are drawn.
        largest = [choice.holes for choice in found]
        before, after = (
            np.stack([overlap_of(owners(regions), cells, classes) for regions, cells in drawn])
            for owners in (lambda regions: regions.owners, lambda regions: filled(regions, largest))
        )
        was, now = (self.metric.score(self.metric.of_parts(parts).sum(0)) for parts in (before, after))
        return found if now > was else choices

    def _process(self, choices: Sequence[Choice], calibrations: Sequence[Calibration | None] | None) -> PostProcess:
        rules = [
            Rule(
                threshold=to_share(choice.top),
                bottom=to_share(choice.bottom) if choice.bottom < choice.top else None,
                min_area=choice.min_area,
                min_present=choice.min_present,
                keep=choice.keep,
                holes=choice.holes,
                calibration=calibrations[k] if calibrations else None,
            )
            for k, choice in enumerate(choices)
        ]
        return PostProcess(tuple(rules), background=self.tuning.background)


def _areas(contests: Contests) -> tuple[int, ...]:
    """Pixels that are tried as the smallest of a component: 0, 4, 6, 9, ... up to a part of the median photo."""
    largest = int(np.median([truth.size for truth in contests.truth])) // _LARGEST
    found, area = [0], 4.0
    while area <= largest:
        found.append(round(area))
        area *= _GROWTH
    return tuple(found)
