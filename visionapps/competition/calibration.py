"""Scores as probabilities: what share of the pixels with a score really are of the class.

Everything is fitted to histograms of 8-bit scores against the truth, so that no pixel is looked at twice.
Shapes: K classes, 256 levels of a score.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from visionapps.errors import ConfigError

Kind = Literal["temperature", "platt", "isotonic"]
LEVELS = 256
_STEPS = 60  # of Newton's method, which needs about six
_SCALE = 255.0
_NEAR = 1e-9  # a step shorter than this is the end


@dataclass(frozen=True)
class Calibration:
    """What a score of 8 bits is worth as a probability.

    Attributes:
        kind: "temperature": sigmoid(logit(p) / T); "platt": sigmoid(a logit(p) + b); "isotonic": a rising staircase,
            linear between its knots.
        numbers: T; a and b; or level and probability of one knot after the other, levels rising.
    """

    kind: Kind
    numbers: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", tuple(float(n) for n in self.numbers))
        wanted = {"temperature": 1, "platt": 2}.get(self.kind, len(self.numbers) // 2 * 2)
        if self.kind not in get_args(Kind) or len(self.numbers) != max(1, wanted):
            raise ConfigError(
                f"calibration {self.kind} with {len(self.numbers)} numbers: temperature has 1, platt 2, and isotonic "
                "pairs of level and probability"
            )
        if not all(map(math.isfinite, self.numbers)):
            raise ConfigError(f"calibration {self.kind}: {self.numbers} must be finite numbers")
        if self.kind != "isotonic" and self.numbers[0] <= 0:
            raise ConfigError(
                f"calibration {self.kind}: {self.numbers[0]} must be positive, or a higher score would mean less"
            )
        if self.kind == "isotonic":
            levels, values = self.numbers[::2], self.numbers[1::2]
            falls = any(a >= b for a, b in pairwise(levels)) or list(values) != sorted(values)
            if falls or min(values) < 0 or max(values) > 1:
                raise ConfigError("calibration isotonic: levels and probabilities in [0, 1] must both rise")

    def table(self) -> NDArray[np.float32]:
        """(256,) float32 probability of each level."""
        if self.kind == "isotonic":
            knots = np.array(self.numbers)
            return np.asarray(np.interp(np.arange(LEVELS), knots[::2], knots[1::2]), np.float32)
        slope, shift = (1 / self.numbers[0], 0.0) if self.kind == "temperature" else self.numbers
        return np.asarray(_sigmoid(slope * _logits() + shift), np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"kind": self.kind, "numbers": list(self.numbers)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Calibration":
        """A calibration from plain data.

        Raises:
            ConfigError: a key is missing or unknown, or a value is none of a calibration.
        """
        if not isinstance(data, Mapping) or set(data) != {"kind", "numbers"}:
            raise ConfigError(f"calibration {data!r}: expected kind and numbers, {{kind: platt, numbers: [1, 0]}}")
        kind, numbers = data["kind"], data["numbers"]
        if kind not in get_args(Kind):
            raise ConfigError(f"calibration {kind!r} is unknown; give temperature, platt or isotonic")
        if not isinstance(numbers, list) or any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
            raise ConfigError(f"calibration {kind}: numbers {numbers!r} must be a list of numbers")
        return cls(kind, tuple(numbers))


def histograms(scores: NDArray[np.uint8], truth: NDArray[np.uint8], *, ignore: int = 255) -> NDArray[np.int64]:
    """How often each class has each score where it is true, and where it is not.

    Args:
        scores: (K, H, W) uint8.
        truth: (H, W) labels.
        ignore: label of pixels that do not count.

    Returns:
        (K, 2, 256): of pixels that are not, and that are of the class. Those of several photos may be added.
    """
    labelled = truth != ignore
    found = np.zeros((len(scores), 2, LEVELS), np.int64)
    for k, plane in enumerate(scores):
        own = np.bincount(plane[truth == k], minlength=LEVELS)
        found[k, 1] = own
        found[k, 0] = np.bincount(plane[labelled], minlength=LEVELS) - own
    return found


def fit_calibration(kind: Kind, histogram: NDArray[np.int64]) -> Calibration | None:
    """The calibration of one class with the least cross-entropy.

    Args:
        kind: of the calibration.
        histogram: (2, 256) pixels without and with the class.

    Returns:
        The calibration, or None where the class never or always occurs: there is nothing to learn from.

    Raises:
        ConfigError: there is no such kind.

    Source: Guo et al. 2017 (temperature); Platt 1999; Zadrozny and Elkan 2002 (isotonic).
    """
    fits: dict[str, Callable[[NDArray[np.int64]], Calibration]] = {
        "temperature": _fit_temperature,
        "platt": _fit_platt,
        "isotonic": _fit_isotonic,
    }
    if kind not in fits:
        raise ConfigError(f"calibration {kind!r} is unknown; give temperature, platt or isotonic")
    return None if not histogram.sum(1).all() else fits[kind](histogram)


def plain_table() -> NDArray[np.float32]:
    """(256,) what scores mean as they are."""
    return (np.arange(LEVELS) / _SCALE).astype(np.float32)


def _logits() -> NDArray[np.float64]:
    """Of the levels; a level of 0 or 255 may be anything within half a level."""
    p = np.clip(np.arange(LEVELS) / _SCALE, 0.25 / _SCALE, 1 - 0.25 / _SCALE)
    return np.log(p / (1 - p))


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-np.clip(x, -60, 60)))


def _fit_temperature(histogram: NDArray[np.int64]) -> Calibration:
    weights = _newton(histogram, np.stack([_logits()], axis=1), np.ones(1))
    return Calibration("temperature", (round(1 / max(weights[0], 1e-3), 6),))


def _fit_platt(histogram: NDArray[np.int64]) -> Calibration:
    x = _logits()
    weights = _newton(histogram, np.stack([x, np.ones_like(x)], axis=1), np.array([1.0, 0.0]))
    return Calibration("platt", (round(max(weights[0], 1e-3), 6), round(weights[1], 6)))


def _newton(histogram: NDArray[np.int64], inputs: NDArray[np.float64], start: NDArray[np.float64]) -> list[float]:
    """Logistic regression on (256, D) inputs, with steps that are halved until they help."""
    count, hits = histogram.sum(0).astype(np.float64), histogram[1].astype(np.float64)
    weights, total = start, count.sum()

    def loss(w: NDArray[np.float64]) -> float:
        z = inputs @ w
        return float((count * np.logaddexp(0, z) - hits * z).sum() / total)

    now = loss(weights)
    for _ in range(_STEPS):
        p = _sigmoid(inputs @ weights)
        slope = inputs.T @ (count * p - hits) / total
        curve = (inputs * (count * p * (1 - p))[:, None]).T @ inputs / total + 1e-12 * np.eye(len(weights))
        step = np.linalg.solve(curve, slope)
        size = 1.0
        while size > _NEAR and loss(weights - size * step) > now:
            size /= 2
        if size <= _NEAR or np.abs(size * step).max() < _NEAR:
            break
        weights = weights - size * step
        now = loss(weights)
    return [float(w) for w in weights]


def _fit_isotonic(histogram: NDArray[np.int64]) -> Calibration:
    """The rising function of least squares, and of least cross-entropy: neighbours that violate the order are pooled.

    Source: Ayer et al. 1955.
    """
    levels = np.flatnonzero(histogram.sum(0))
    blocks: list[tuple[float, float, int, int]] = []  # hits, count, first level, last level
    for level in levels.tolist():
        hits, count, first = float(histogram[1, level]), float(histogram[:, level].sum()), level
        while blocks and blocks[-1][0] * count >= hits * blocks[-1][1]:
            before = blocks.pop()
            hits, count, first = hits + before[0], count + before[1], before[2]
        blocks.append((hits, count, first, level))
    numbers: list[float] = []
    for hits, count, first, last in blocks:
        for level in sorted({first, last}):
            numbers += [float(level), round(hits / count, 6)]
    return Calibration("isotonic", tuple(numbers))
