"""How much of a gain on the photos that rules were tuned on would be there on others.

Shapes: K classes, I photos.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionapps.competition.postprocess import PostProcess
from visionapps.competition.tuning import Tuner
from visionapps.errors import ConfigError
from visionapps.metrics.competition import CompetitionMetric


@dataclass(frozen=True, eq=False)
class Judged:
    """The score of some photos, and of each class."""

    score: float
    classes: tuple[float, ...]  # (K,) NaN where a class is not scored

    @classmethod
    def of(cls, metric: CompetitionMetric, counts: NDArray[Any]) -> "Judged":
        """From what each photo brings, (I, ...)."""
        total = counts.sum(0)
        return cls(metric.score(total), tuple(float(value) for value in metric.per_class(total)))


@dataclass(frozen=True, eq=False)
class FoldGain:
    """One fold that rules were not tuned on."""

    fold: int
    photos: int
    before: float
    after: float  # with rules tuned on all other folds


@dataclass(frozen=True, eq=False)
class Tuned:
    """Rules, and what they are worth. All scores are measured on the labels that the rules draw.

    Attributes:
        process: the rules, tuned on all photos.
        before: without rules.
        after: with them, on the very photos that they were tuned on: too good.
        nested: each photo with rules tuned on the other folds only: what to expect of new photos.
        folds: the same by fold.
    """

    process: PostProcess
    before: Judged
    after: Judged
    nested: Judged
    folds: tuple[FoldGain, ...]

    @property
    def overfitting(self) -> float:
        """The part of the gain that is not there on photos that rules were not tuned on."""
        return self.after.score - self.nested.score

    def to_dict(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Plain data for JSON and cards."""

        def listed(judged: Judged) -> dict[str, Any]:
            classes = {n: None if v != v else round(v, 6) for n, v in zip(names, judged.classes, strict=True)}
            return {"score": round(judged.score, 6), "classes": classes}

        return {
            "before": listed(self.before),
            "after": listed(self.after),
            "nested": listed(self.nested),
            "overfitting": round(self.overfitting, 6),
            "folds": [
                {"fold": g.fold, "photos": g.photos, "before": round(g.before, 6), "after": round(g.after, 6)}
                for g in self.folds
            ],
        }


def tune_nested(tuner: Tuner) -> Tuned:
    """Tune on all photos, and judge by tuning without each fold in turn.

    Args:
        tuner: of a store with all its folds.

    Raises:
        ConfigError: there is one fold only.

    Source: Varma and Simon 2006, on why the score of what was selected is biased and the nested one is not.
    """
    folds = np.unique(tuner.folds)
    if len(folds) < 2:
        raise ConfigError("the store has one fold, but a nested estimate needs at least two; predict all folds")
    before = tuner.counts()
    held_out = np.zeros_like(before)
    gains = []
    for fold in folds.tolist():
        others = tuner.folds != fold
        own = tuner.counts(tuner.tune(others), ~others)
        held_out[~others] = own
        was, now = Judged.of(tuner.metric, before[~others]), Judged.of(tuner.metric, own)
        gains.append(FoldGain(fold, int((~others).sum()), was.score, now.score))
    process = tuner.tune(np.ones(len(before), np.bool_))
    after = tuner.counts(process)
    was, fitted, nested = (Judged.of(tuner.metric, counts) for counts in (before, after, held_out))
    return Tuned(process, was, fitted, nested, tuple(gains))
