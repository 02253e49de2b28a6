"""Which pixels of a map are sure enough to teach: one confidence for all classes, or the surest share of each class.

Confidences are compared as maps have them, in 254 steps. Shapes: K classes, L = 255 levels of confidence.

Source: keeping a share per class is the class-balanced self-training of Zou et al. 2018; one confidence for all keeps
next to nothing of classes that a model is never sure of, which are the rare ones.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from visionapps.errors import ConfigError
from visionapps.inference.products import LEVELS
from visionapps.structures import IGNORE

CONFIDENCE = 0.9  # of hard labels, where nothing is said


@dataclass(frozen=True)
class Rule:
    """What is kept; the rest becomes void. Without either number everything is.

    Attributes:
        confidence: least probability of the label, in (0, 1].
        keep: share of the pixels of each class that are kept, the surest ones, in (0, 1].
    """

    confidence: float | None = None
    keep: float | None = None

    def __post_init__(self) -> None:
        if self.confidence is not None and self.keep is not None:
            raise ConfigError("pseudo-labels: --confidence and --keep are two ways to choose; give one")
        for name, value in (("confidence", self.confidence), ("keep", self.keep)):
            if value is not None and not 0 < value <= 1:
                raise ConfigError(f"pseudo-labels: --{name} {value:g} must be above 0 and at most 1, such as 0.9")

    def least(self, counts: np.ndarray) -> np.ndarray:
        """The least level that is kept of each class.

        Args:
            counts: (K, L) pixels by label and level of confidence.

        Returns:
            (K,) in 0..LEVELS. With ``keep``, the highest level at which no less than the share is kept: pixels of one
            level stay or go together.
        """
        if self.confidence is not None:
            return np.full(len(counts), math.ceil(LEVELS * self.confidence - 1e-9))
        if self.keep is None:
            return np.zeros(len(counts), np.int64)
        above = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]  # pixels of this level or more
        enough = above >= np.ceil(self.keep * above[:, :1] - 1e-9)
        return np.asarray(np.where(above[:, 0] > 0, LEVELS - np.argmax(enough[:, ::-1], axis=1), LEVELS))

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"confidence": self.confidence, "keep": self.keep}


def count_levels(labels: np.ndarray, confidence: np.ndarray, classes: int) -> np.ndarray:
    """(K, L) pixels by label and level of confidence of (h, w) uint8 maps; pixels without data are left out."""
    valid = labels != IGNORE
    index = labels[valid].astype(np.int64) * (LEVELS + 1) + np.minimum(confidence[valid], LEVELS)
    return np.bincount(index, minlength=classes * (LEVELS + 1)).reshape(classes, LEVELS + 1)


def unsure(labels: np.ndarray, confidence: np.ndarray, least: np.ndarray) -> np.ndarray:
    """(h, w) bool: where nothing is kept of (h, w) uint8 labels, for want of confidence or of data."""
    table = np.full(256, IGNORE, np.int64)
    table[: len(least)] = least
    return np.asarray((confidence < table[labels]) | (labels == IGNORE))


@dataclass(frozen=True, eq=False)
class Tally:
    """What there was to choose from, and what was chosen.

    Attributes:
        names: of the K classes.
        counts: by photo, (K, L) pixels by label and level.
        least: (K,) the least level that is kept.
        pixels: by photo, all of them, without data or not.
    """

    names: tuple[str, ...]
    counts: Mapping[str, np.ndarray]
    least: np.ndarray
    pixels: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> np.ndarray:
        """(K, L) over all photos."""
        return np.asarray(sum(self.counts.values(), np.zeros((len(self.names), LEVELS + 1), np.int64)))

    def kept(self, counts: np.ndarray) -> np.ndarray:
        """(K,) pixels of (K, L) that are kept."""
        return np.asarray((counts * (np.arange(LEVELS + 1) >= self.least[:, None])).sum(1))

    def require_any(self, rule: Rule) -> None:
        """Refuse labels that teach nothing.

        Raises:
            ConfigError: the rule keeps no pixel of any photo; which confidence the surest one has.
        """
        total = self.total
        if self.kept(total).any() or rule.confidence is None:
            return
        surest = np.flatnonzero(total.sum(0))
        said = f"the surest has {surest[-1] / LEVELS:.3f}" if len(surest) else "all are without data"
        raise ConfigError(
            f"pseudo-labels: no pixel of {len(self.counts)} photos has a confidence of {rule.confidence:g}, {said}, so "
            "nothing would be taught and no labels are written; give less with --confidence, or a share of each class "
            "with --keep; what is predicted is kept"
        )

    @property
    def empty(self) -> tuple[str, ...]:
        """Photos of which nothing is kept."""
        return tuple(name for name, counts in self.counts.items() if not self.kept(counts).any())

    def rows(self) -> list[dict[str, Any]]:
        """Per class: pixels, share that is kept, mean confidence of all and of those kept, least confidence."""
        total = self.total
        kept, levels = self.kept(total), np.arange(LEVELS + 1) / LEVELS
        chosen = total * (np.arange(LEVELS + 1) >= self.least[:, None])
        found = []
        for k, name in enumerate(self.names):
            pixels = int(total[k].sum())
            found.append(
                {
                    "class": name,
                    "pixels": pixels,
                    "kept": int(kept[k]),
                    "share_kept": int(kept[k]) / pixels if pixels else None,
                    "confidence": float(total[k] @ levels) / pixels if pixels else None,
                    "confidence_kept": float(chosen[k] @ levels) / int(kept[k]) if kept[k] else None,
                    "least": int(self.least[k]) / LEVELS if pixels else None,
                }
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        total = self.total
        pixels, kept = int(total.sum()), int(self.kept(total).sum())
        return {
            "photos": len(self.counts),
            "pixels": pixels,
            "kept": kept,
            "share_kept": kept / pixels if pixels else None,
            "classes": self.rows(),
            "photos_without_any": list(self.empty),
        }


def named(names: Sequence[str], most: int = 3) -> str:
    """Some names for a message."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
