"""How much each member of an ensemble shall count, fitted to out-of-fold predictions on the competition's own metric.

Shapes: M members (stores), K classes, I photos, P pixels of a photo, N sampled pixels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from visionapps.competition.oof import OofStore
from visionapps.compiled import compiled
from visionapps.errors import ConfigError, DataError
from visionapps.metrics.competition import CompetitionMetric
from visionapps.runtime import total_memory
from visionapps.structures import IGNORE

Method = Literal["best", "equal", "likelihood", "greedy", "simplex"]
Weights = tuple[float, ...]
GRID = 840  # weights are whole parts of it: 2 to 8 members can be equal, and sums of parts and levels are exact
_ADDED = 20  # members that the greedy search adds at most
_TRIES = 40  # evaluations of the simplex search
_SAMPLED = 2000  # pixels of a photo that the likelihood looks at
_ROUNDS = 200  # of its expectation and maximisation, far more than it takes
_BLOCK = 1024  # pixels at a time: what is summed stays in the first cache


@dataclass(frozen=True)
class Fitted:
    """Weights, and what they are worth.

    Attributes:
        weights: (M,) that sum to 1; 0 for members that only harm.
        method: that found them.
        score: with them, on the photos that they were fitted to: too good.
        equal: with equal weights, on the same photos.
        alone: (M,) of each member by itself.
        scores: of every method that was tried.
        nested: each photo with weights fitted to the other folds only: what to expect of new photos. None: one fold.
        photos: that the search looked at.
    """

    weights: Weights
    method: str
    score: float
    equal: float
    alone: tuple[float, ...]
    scores: dict[str, float]
    nested: float | None
    photos: int

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain data for the file of the ensemble."""
        return {
            "method": self.method,
            "stores": dict(zip(names, self.weights, strict=True)),
            "score": self.score,
            "equal_weights": self.equal,
            "nested": self.nested,
            "photos": self.photos,
        }


def require_one_plan(stores: Sequence[OofStore], *, judged: bool = True) -> None:
    """Refuse stores whose photos were not predicted by the same folds.

    Args:
        stores: one at least.
        judged: true labels are needed, too.

    Raises:
        DataError: a fold is missing, truths are, or plans, classes or sizes differ; both stores are named.
    """
    if not stores:
        raise ConfigError("weights: no out-of-fold store; give one at least, two to have something to weigh")
    first = stores[0]
    for store in stores:
        store.require_whole()
        for what, own, expected in (
            ("the fold plan", store.plan, first.plan),
            ("classes", ", ".join(store.labels.names), ", ".join(first.labels.names)),
        ):
            if own != expected:
                raise DataError(
                    f"{store.folder}: was written for {what} {own}, but {first.folder} for {expected}; members are "
                    "weighed on predictions for the same folds: train both with the same --plan and classes"
                )
        for name in store.names:
            if store.shape(name) != first.shape(name):
                raise DataError(
                    f"{store.folder}: has {name} in {_size(store, name)} px, but {first.folder} in "
                    f"{_size(first, name)}; write both with the same --oof-size"
                )
        lacking = [name for name, photo in first.photos.items() if not photo.truth]
        if judged and lacking:
            raise DataError(f"{first.folder}: {lacking[0]} has no true labels, by which weights could be judged")


def fit_weights(
    stores: Sequence[OofStore],
    metric: CompetitionMetric,
    *,
    method: Method = "best",
    most: int | None = None,
    memory: int | None = None,
    seed: int = 0,
) -> Fitted:
    """Weights with which the mean of the stores' probabilities scores best.

    "likelihood" maximises the mean log-probability of the true class, all classes alike (a convex problem, solved by
    expectation and maximisation); "greedy" adds members one by one, with replacement, each time the one that the
    metric likes best; "simplex" goes on from the best of these by a simplex search on the metric. "best" takes
    whichever of all these, or equal weights, scores highest.

    Args:
        stores: whole, of one plan, see require_one_plan.
        metric: the higher, the better.
        method: see above.
        most: photos that are looked at; None: as many as fit into memory. They are drawn evenly from the folds.
        memory: bytes for their scores; None: an eighth of the machine's.
        seed: of that draw, and of the pixels that the likelihood looks at.

    Raises:
        ConfigError: there is no such method, or not even a photo per fold fits.
        DataError: a store is damaged.

    Source: Caruana et al. 2004 (greedy); Yao et al. 2018 (stacking by the likelihood); Nelder and Mead 1965.
    """
    if method not in get_args(Method):
        raise ConfigError(f"weights: method {method!r} is unknown; choose from {', '.join(get_args(Method))}")
    if most is not None and most < 1:
        raise ConfigError(f"weights: {most} photos; at least 1 is needed")
    if seed < 0:
        raise ConfigError(f"weights: seed {seed}: must be a whole number from 0 on")
    if seed < 0:
        raise ConfigError(f"weights: seed {seed}: must be a whole number from 0 on")
    names = _chosen(stores, most, total_memory() // 8 if memory is None else memory, seed)
    judge = _Judge(stores, names, metric, seed)
    every = np.ones(len(names), bool)
    tried = judge.search(every, method)
    best = max(tried, key=lambda name: tried[name][1])  # the first of equals: simpler ones stand first
    if method != "best":
        best = method
    weights, score = tried[best]
    units = np.eye(len(stores))
    return Fitted(
        weights=weights,
        method=best,
        score=score,
        equal=tried["equal"][1],
        alone=tuple(judge.score(every, tuple(unit)) for unit in units),
        scores={name: value for name, (_, value) in tried.items()},
        nested=_nested(judge, method) if len(set(judge.folds)) > 1 else None,
        photos=len(names),
    )


def _nested(judge: "_Judge", method: Method) -> float:
    """The score when every fold is drawn with weights that were fitted to the others."""
    total: Any = 0
    for fold in np.unique(judge.folds):
        own = judge.folds == fold
        tried = judge.search(~own, method)
        name = max(tried, key=lambda name: tried[name][1]) if method == "best" else method
        total = total + judge.counts(tried[name][0])[own].sum(0)
    return judge.metric.score(total)


class _Judge:
    """Scores of weights on any of the photos; what a photo brings is counted once for each weights."""

    def __init__(self, stores: Sequence[OofStore], names: Sequence[str], metric: CompetitionMetric, seed: int) -> None:
        self.metric = metric
        self.members = len(stores)
        self.folds = np.array([stores[0].fold(name) for name in names])
        self._stacks = [np.stack([store.scores(name) for store in stores]) for name in names]  # (M, K, H, W)
        self._truths = [stores[0].truth(name) for name in names]
        rng = np.random.default_rng(seed)
        self._sampled = [_true_scores(s, t, rng) for s, t in zip(self._stacks, self._truths, strict=True)]
        self._known: dict[Weights, NDArray[Any]] = {}

    def counts(self, weights: Sequence[float]) -> NDArray[Any]:
        """(I, ...) counts of every photo."""
        key = on_grid(weights)
        if key not in self._known:
            pairs, parts = zip(self._stacks, self._truths, strict=True), [round(weight * GRID) for weight in key]
            self._known[key] = np.stack([self.metric.count(mixed(stack, parts), truth) for stack, truth in pairs])
        return self._known[key]

    def score(self, photos: NDArray[np.bool_], weights: Sequence[float]) -> float:
        """On some of the photos (I,); the worst there is where the metric is not defined."""
        value = self.metric.score(self.counts(weights)[photos].sum(0))
        return -math.inf if math.isnan(value) else float(value)

    def search(self, photos: NDArray[np.bool_], method: Method) -> dict[str, tuple[Weights, float]]:
        """Weights and score of every method that is asked for, equal weights among them."""

        def rate(weights: Sequence[float]) -> float:
            return self.score(photos, weights)

        tried: dict[str, Weights] = {"equal": on_grid([1.0] * self.members)}
        if self.members > 1:
            if method in ("likelihood", "best", "simplex"):
                tried["likelihood"] = on_grid(self._likely(photos))
            if method in ("greedy", "best", "simplex"):
                tried["greedy"] = on_grid(greedy(self.members, rate))
            if method in ("simplex", "best"):
                tried["simplex"] = descend(max(tried.values(), key=rate), rate)
        elif method != "best":
            tried[method] = tried["equal"]
        return {name: (weights, rate(weights)) for name, weights in tried.items()}

    def _likely(self, photos: NDArray[np.bool_]) -> Weights:
        chosen = [sampled for sampled, own in zip(self._sampled, photos, strict=True) if own]
        p = np.concatenate([scores for scores, _ in chosen], axis=1)
        return likeliest(p, np.concatenate([truth for _, truth in chosen]))


def mixed(stack: NDArray[np.uint8], weights: Sequence[float]) -> NDArray[np.uint8]:
    """Labels of the weighted mean of scores; the lowest one wins a tie.

    Args:
        stack: (M, K, H, W).
        weights: (M,) >= 0.

    Returns:
        (H, W).
    """
    members, classes, *shape = stack.shape
    labels = np.empty(math.prod(shape), np.uint8)
    _mix(stack.reshape(members, classes, -1), np.asarray(weights, np.float32), labels)
    return labels.reshape(shape)


@compiled
def _mix(stack: Any, weights: Any, labels: Any) -> None:
    members, classes, pixels = stack.shape
    total, best = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    for begin in range(0, pixels, _BLOCK):
        count = min(_BLOCK, pixels - begin)
        for k in range(classes):
            total[:count] = 0
            for m in range(members):
                if weights[m] > 0:
                    for i in range(count):
                        total[i] += weights[m] * np.float32(stack[m, k, begin + i])
            for i in range(count):
                if k == 0 or total[i] > best[i]:
                    best[i] = total[i]
                    labels[begin + i] = k


def greedy(members: int, rate: Callable[[Sequence[float]], float], most: int = _ADDED) -> Weights:
    """Add members with replacement, each time the one with which the mean is best; the best mean on the way counts.

    Source: Caruana et al. 2004, Ensemble selection from libraries of models.
    """
    taken = np.zeros(members)
    best, found = -math.inf, np.ones(members)
    for _ in range(most):
        scores = [rate(tuple(taken + unit)) for unit in np.eye(members)]
        taken[int(np.argmax(scores))] += 1
        if max(scores) > best:
            best, found = max(scores), taken.copy()
    return tuple(found / found.sum())


def likeliest(p: NDArray[np.floating[Any]], truth: NDArray[np.integer[Any]]) -> Weights:
    """Weights of the mixture that gives the true classes the greatest likelihood, every class counted alike.

    Args:
        p: (M, N) probability that each member gave to the true class, > 0.
        truth: (N,) the true classes.

    Source: the EM algorithm for the proportions of a mixture, Dempster, Laird and Rubin 1977; every round raises the
    likelihood, which is concave in the weights.
    """
    counts = np.bincount(truth)
    importance = 1.0 / counts[truth] / np.count_nonzero(counts)  # sums to 1
    weights = np.full(len(p), 1 / len(p))
    for _ in range(_ROUNDS):
        blame = weights[:, None] * p
        new = (blame / blame.sum(0)) @ importance
        done = np.abs(new - weights).max() < 1e-7
        weights = new
        if done:
            break
    return tuple(weights / weights.sum())


def descend(start: Sequence[float], rate: Callable[[Sequence[float]], float]) -> Weights:
    """The best weights that a simplex search from ``start`` meets; never worse than these."""
    from scipy.optimize import minimize

    best: dict[Weights, float] = {on_grid(start): rate(start)}

    def loss(x: NDArray[np.float64]) -> float:
        if not np.abs(x).sum():
            return math.inf
        weights = on_grid(np.abs(x))
        best[weights] = rate(weights)
        return -best[weights]

    middle = np.asarray(start, float)
    corners = np.vstack([middle, 0.5 * middle + 0.5 * np.eye(len(middle))])
    minimize(loss, middle, method="Nelder-Mead", options={"initial_simplex": corners, "maxfev": _TRIES})
    return max(best, key=lambda weights: best[weights])


def on_grid(weights: Sequence[float] | NDArray[np.floating[Any]]) -> Weights:
    """Weights that sum to 1, in whole parts of the grid: the largest remainders get what rounding down leaves."""
    exact = np.asarray(weights, float) / np.sum(weights) * GRID
    parts = np.floor(exact + 1e-9)
    order = np.argsort(parts - exact, kind="stable")
    parts[order[: round(GRID - parts.sum())]] += 1
    return tuple(float(part) / GRID for part in parts)


def _true_scores(
    stack: NDArray[np.uint8], truth: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(M, N) probability of the true class at sampled pixels, and (N,) these classes."""
    flat = truth.ravel()
    places = np.flatnonzero(flat != IGNORE)
    if len(places) > _SAMPLED:
        places = np.sort(rng.choice(places, _SAMPLED, replace=False))
    labels = flat[places].astype(np.int64)
    scores = stack.reshape(*stack.shape[:2], -1)[:, labels, places]
    return (scores + 0.5) / 256, labels  # the middle of what a level stands for: never 0


def _chosen(stores: Sequence[OofStore], most: int | None, memory: int, seed: int) -> tuple[str, ...]:
    """Photos to look at, evenly from the folds where not all fit."""
    first = stores[0]
    rng = np.random.default_rng(seed)
    queues = {fold: [n for n in first.names if first.fold(n) == fold] for fold in sorted(first.members)}
    for queue in queues.values():
        rng.shuffle(queue)
    turns = [name for turn in range(len(first.names)) for q in queues.values() for name in q[turn : turn + 1]]
    chosen: list[str] = []
    for name in turns:
        height, width = first.shape(name)
        memory -= height * width * (len(stores) * len(first.labels) + 1)
        if memory < 0 or (most is not None and len(chosen) >= most):
            break
        chosen.append(name)
    if not chosen:
        raise ConfigError(
            f"weights: the scores of {turns[0] if turns else 'no photo'} do not fit into memory; write the stores in a "
            "smaller --oof-size"
        )
    return tuple(sorted(chosen))


def _size(store: OofStore, name: str) -> str:
    return " x ".join(map(str, store.shape(name)))
