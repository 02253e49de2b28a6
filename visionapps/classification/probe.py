"""A linear classifier on fixed features: multinomial logistic regression, fitted in seconds.

Shapes: N images, D features of each, K classes.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visionapps.errors import ConfigError, DataError

GRID = tuple(10.0**power for power in range(1, -7, -1))  # of L2, from strong to weak
_CHUNK = 16 << 20  # values of a chunk of features that is computed with at once
_GRADIENT = 1e-5  # greatest entry of the gradient at which the search ends; losses are about 1
_HISTORY = 20  # steps that the search remembers
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """What a fit found, for features as they are.

    Attributes:
        weight: (K, D) float32.
        bias: (K,) float32.
        l2: the penalty that it was fitted with.
        loss: mean cross entropy of the images that it was fitted to, without the penalty.
        steps: of the search.
        converged: whether the gradient became small enough; more steps would change little otherwise as well.
    """

    weight: Tensor
    bias: Tensor
    l2: float
    loss: float
    steps: int
    converged: bool

    def logits(self, features: np.ndarray) -> Tensor:
        """(N, D) to (N, K)."""
        return torch.cat([part @ self.weight.T + self.bias for part, _ in _chunks(features, None)])


@dataclass(frozen=True)
class Tried:
    """One penalty of a grid: share of right first answers, and mean cross entropy, on images kept apart."""

    l2: float
    top1: float
    loss: float


def fit_probe(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    l2: float,
    rows: np.ndarray | None = None,
    most_steps: int = 300,
    start: LinearProbe | None = None,
) -> LinearProbe:
    """Minimise mean cross entropy + l2 / 2 * |weights|^2 by L-BFGS; the minimum is the only one.

    The penalty is on weights of features that are brought to mean 0 and deviation 1 first, so that one grid suits any
    network; biases are free. Features may be a memory map of 16 or 32 bits: they are read a chunk at a time.

    Args:
        features: (N, D).
        labels: (N,) in [0, K).
        num_classes: K.
        l2: at least 0; at 0, separable classes have no minimum, and the search ends after ``most_steps``.
        rows: of the features and labels to use; None: all.
        most_steps: of the search.
        start: where it begins; None: at zero.

    Raises:
        ConfigError: l2 is negative.
        DataError: features and labels do not belong together, or a feature is no number.

    Source: Liu and Nocedal 1989 (L-BFGS).
    """
    _check(features, labels, num_classes, l2, rows)
    mean, std = _moments(features, rows)
    targets = torch.from_numpy(np.asarray(labels if rows is None else labels[rows], np.int64))
    width = features.shape[1]
    theta = torch.zeros(num_classes, width + 1, dtype=torch.float64)
    if start is not None:
        theta[:, :width] = start.weight * std
        theta[:, width] = start.bias + start.weight.double() @ mean
    objective = _Objective(features, rows, targets, mean, std, l2)
    steps = _minimise(objective, theta, most_steps)
    loss, gradient = objective.loss(theta), objective.gradient
    weight = theta[:, :width] / std
    bias = theta[:, width] - weight @ mean
    return LinearProbe(weight.float(), bias.float(), l2, loss, steps, gradient <= 10 * _GRADIENT)


def choose_l2(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    held: np.ndarray,
    *,
    grid: Sequence[float] = GRID,
    most_steps: int = 300,
) -> tuple[float, tuple[Tried, ...]]:
    """The penalty with the most right first answers on images kept apart; of equal ones that of the least loss there.

    Args:
        features: (N, D).
        labels: (N,) in [0, K).
        num_classes: K.
        held: (N,) bool, images that are kept apart; some, not all.
        grid: penalties, tried from the strongest on, each search beginning where the last one ended.
        most_steps: of each search.

    Returns:
        The penalty, and what was found for all of them, in the order of trial.

    Raises:
        ConfigError: the grid is empty, or all or no images are kept apart.
    """
    if not len(grid) or held.all() or not held.any():
        raise ConfigError(
            f"probe: {int(held.sum())} of {len(held)} images kept apart and a grid of {len(grid)} penalties do not "
            "choose anything; give more images, or one l2"
        )
    fitted, apart = np.flatnonzero(~held), np.flatnonzero(held)
    truth = torch.from_numpy(np.asarray(labels[apart], np.int64))
    probe: LinearProbe | None = None
    tried = []
    for l2 in sorted(grid, reverse=True):
        probe = fit_probe(features, labels, num_classes, l2=l2, rows=fitted, most_steps=most_steps, start=probe)
        logits = probe.logits(np.asarray(features[apart]))
        loss = float(torch.nn.functional.cross_entropy(logits, truth))
        tried.append(Tried(l2, float((logits.argmax(1) == truth).double().mean()), loss))
    best = min(tried, key=lambda each: (-each.top1, each.loss))
    if len(grid) > 1 and best.l2 in (min(grid), max(grid)):
        log.info("probe: the best l2, %g, is at an end of the grid; a wider one may have a better", best.l2)
    return best.l2, tuple(tried)


def hold_out(labels: np.ndarray, share: float = 0.2, *, seed: int = 0) -> np.ndarray:
    """(N,) bool: the same share of every class, drawn; a class of one image is not kept apart."""
    generator = np.random.default_rng(seed)
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        own = generator.permutation(np.flatnonzero(labels == label))
        held[own[: min(max(1, round(share * len(own))), len(own) - 1)]] = True
    return held


@dataclass
class _Objective:
    """What a fit minimises, as a function of theta (K, D + 1): weights of features of deviation 1, then biases.

    Attributes:
        gradient: greatest entry of the gradient, where it was asked last.
    """

    features: np.ndarray
    rows: np.ndarray | None
    targets: Tensor
    mean: Tensor
    std: Tensor
    l2: float
    gradient: float = 0.0

    def __call__(self, theta: Tensor) -> tuple[float, Tensor]:
        """The value, and its gradient (K, D + 1)."""
        loss, gradient = _loss(theta, self.features, self.rows, self.targets, self.mean, self.std)
        weights = theta[:, :-1]
        gradient /= len(self.targets)
        gradient[:, :-1] += self.l2 * weights
        self.gradient = float(gradient.abs().max())
        return loss / len(self.targets) + self.l2 / 2 * float((weights**2).sum()), gradient

    def loss(self, theta: Tensor) -> float:
        """Mean cross entropy alone."""
        return self(theta)[0] - self.l2 / 2 * float((theta[:, :-1] ** 2).sum())


def _minimise(objective: _Objective, theta: Tensor, most_steps: int) -> int:
    """Move theta, in place, to where the objective is least. Returns the steps that it took."""
    theta.requires_grad_()
    search = torch.optim.LBFGS(
        [theta],
        max_iter=most_steps,
        max_eval=2 * most_steps,
        tolerance_grad=_GRADIENT,
        tolerance_change=1e-10,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        value, theta.grad = objective(theta.detach())
        return value

    search.step(closure)  # type: ignore[no-untyped-call]
    theta.requires_grad_(False)
    return int(search.state[theta]["n_iter"])


def _check(features: np.ndarray, labels: np.ndarray, num_classes: int, l2: float, rows: np.ndarray | None) -> None:
    if l2 < 0:
        raise ConfigError(f"probe: l2 {l2} must not be negative; 0.001 is usual")
    if features.ndim != 2 or len(features) != len(labels) or not len(labels if rows is None else rows):
        raise DataError(
            f"probe: features of shape {features.shape} for {len(labels)} labels; expected a row of features per label"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(f"probe: labels from {labels.min()} to {labels.max()}, but there are {num_classes} classes")


def _moments(features: np.ndarray, rows: np.ndarray | None) -> tuple[Tensor, Tensor]:
    """(D,) mean and deviation in 64 bits; features that never change get 1, so that they stay 0."""
    count, total, square = 0, torch.zeros(()), torch.zeros(())
    shift: Tensor | None = None
    for part, _ in _chunks(features, rows):
        shift = part[0].double() if shift is None else shift  # far means would cost all digits of the squares
        moved = part.double() - shift
        total, square, count = total + moved.sum(0), square + (moved**2).sum(0), count + len(part)
    assert shift is not None
    if not bool(torch.isfinite(square).all()):
        raise DataError("probe: some features are no numbers or too large; compute them in 32 bits")
    mean = total / count
    std = (square / count - mean**2).clamp(min=0).sqrt()
    return mean + shift, torch.where(std > 1e-6 * std.max(), std, torch.ones_like(std))


def _loss(
    theta: Tensor, features: np.ndarray, rows: np.ndarray | None, targets: Tensor, mean: Tensor, std: Tensor
) -> tuple[float, Tensor]:
    """Sum of the cross entropies, and its gradient (K, D + 1)."""
    weight, bias = theta[:, :-1].float(), theta[:, -1].float()
    centre, scale = mean.float(), (1 / std).float()
    loss, gradient = 0.0, torch.zeros_like(theta)
    for part, span in _chunks(features, rows):
        values = (part - centre) * scale
        truth = targets[span]
        logs = torch.log_softmax(torch.addmm(bias, values, weight.T), 1)
        loss -= float(logs.gather(1, truth[:, None]).double().sum())
        error = logs.exp_()
        error[torch.arange(len(truth)), truth] -= 1
        gradient[:, :-1] += error.T @ values
        gradient[:, -1] += error.double().sum(0)
    return loss, gradient


def _chunks(features: np.ndarray, rows: np.ndarray | None) -> Iterator[tuple[Tensor, slice]]:
    """Rows of features in 32 bits, and which of all the chosen rows they are."""
    count = len(features) if rows is None else len(rows)
    step = max(1, _CHUNK // features.shape[1])
    for start in range(0, count, step):
        span = slice(start, min(start + step, count))
        part = features[span] if rows is None else features[rows[span]]
        yield torch.from_numpy(np.array(part, np.float32)), span  # a copy: memory maps cannot be written
