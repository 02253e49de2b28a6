"""From scores to labels by rules for each class: thresholds, sizes of components, holes, calibration.

Without rules the labels are the argmax. A class competes with the background, or with the runner-up where there is
none, and what it loses by a rule falls to that rival and is not judged again. So the classes' rules can be judged one
by one, which is what makes tuning them exact and fast.

Shapes: K classes, H W photo.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from visionapps.competition.calibration import Calibration, plain_table
from visionapps.competition.components import EVEN, NOBODY, Components, Contest, components, contest
from visionapps.competition.regions import fill_holes
from visionapps.errors import ConfigError, DataError
from visionapps.structures import IGNORE

Resolve = Literal["argmax", "priority"]
_SCALE = 255


@dataclass(frozen=True)
class Rule:
    """What a class must show to keep the pixels that it wins.

    Attributes:
        threshold: share in [0, 1] of the winner in what it and its rival have together; 0.5 is the argmax. With two
            classes it is the probability.
        bottom: with it, ``threshold`` is that of a seed: pixels from ``bottom`` on are kept if their component has a
            pixel from ``threshold`` on (hysteresis, Canny 1986). None: the same as ``threshold``.
        min_area: pixels of a component (corners touch); smaller ones go.
        min_present: pixels of the class in the whole photo; with fewer it is not in the photo at all.
        keep: how many components stay in a photo, the largest first; 0: all.
        holes: pixels of the largest region inside the class (corners do not touch) that is filled; 0: none.
        calibration: what its scores mean, before it competes; None: they are probabilities.
    """

    threshold: float = 0.5
    bottom: float | None = None
    min_area: int = 0
    min_present: int = 0
    keep: int = 0
    holes: int = 0
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        for name in ("threshold", "bottom"):
            value = getattr(self, name)
            absent = value is None and name == "bottom"
            if not absent and not (_is_number(value) and 0 <= value <= 1):
                raise ConfigError(f"rule: {name} {value!r} must be a share in [0, 1]")
        if self.bottom is not None and self.bottom > self.threshold:
            raise ConfigError(f"rule: bottom {self.bottom} must not be above threshold {self.threshold}")
        for name in ("min_area", "min_present", "keep", "holes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ConfigError(f"rule: {name} {value!r} must be a whole number from 0 on")

    @property
    def top_level(self) -> int:
        """The threshold as a level of 8 bits."""
        return to_level(self.threshold)

    @property
    def bottom_level(self) -> int:
        """The lower threshold as a level of 8 bits."""
        return self.top_level if self.bottom is None else to_level(self.bottom)

    @property
    def needs_components(self) -> bool:
        """Whether it looks at whole components."""
        return self.bottom_level < self.top_level or self.min_area > 1 or self.keep > 0

    @property
    def needs_photo(self) -> bool:
        """Whether it needs the whole photo, and not only the pixel."""
        return self.needs_components or self.min_present > 1 or self.holes > 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what is not as it would be without a rule."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return plain | ({"calibration": self.calibration.to_dict()} if self.calibration else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Rule":
        """A rule from plain data.

        Raises:
            ConfigError: a key or a value is none of a rule.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"rule: {data!r} is no mapping; expected such as {{threshold: 0.4, min_area: 9}}")
        known = [f.name for f in fields(cls)]
        for key in data:
            if key not in known:
                raise ConfigError(f"rule: unknown key {key!r}; known are {', '.join(known)}")
        given = dict(data)
        if given.get("calibration") is not None:
            given["calibration"] = Calibration.from_dict(given["calibration"])
        return cls(**given)


@dataclass(frozen=True)
class PostProcess:
    """Rules of all classes; a value, like the model's weights.

    Attributes:
        rules: (K,) of the classes, by label.
        resolve: "argmax": see the module. "priority": classes are asked in their ``order``; the first that has the
            pixel by its own rule, with its own score as the level, keeps it.
        background: the label that competes with the best of all others, has no rule of its own, and takes what nobody
            claims; None: the runner-up does.
        order: of "priority": labels, the first wins; empty: by label.
    """

    rules: tuple[Rule, ...]
    resolve: Resolve = "argmax"
    background: int | None = None
    order: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(self.rules))
        object.__setattr__(self, "order", tuple(self.order))
        classes = len(self.rules)
        if not 2 <= classes < NOBODY:
            raise ConfigError(f"post-processing: {classes} rules; give one for each of 2 to {NOBODY - 1} classes")
        if self.resolve not in get_args(Resolve):
            raise ConfigError(f"post-processing: resolve {self.resolve!r} is unknown; give argmax or priority")
        if self.background is not None:
            if not 0 <= self.background < classes:
                raise ConfigError(f"post-processing: background {self.background} is none of {classes} labels")
            own = {**self.rules[self.background].to_dict(), "calibration": None}
            if own != {"calibration": None}:
                raise ConfigError(f"post-processing: the background (label {self.background}) can have no rule")
        if self.resolve == "priority" and self.background is None:
            raise ConfigError("post-processing: resolve priority needs a background, for pixels that nobody claims")
        claiming = [k for k in range(classes) if k != self.background]
        if self.order and (self.resolve != "priority" or sorted(self.order) != claiming):
            raise ConfigError(f"post-processing: order {list(self.order)} must name every label of {claiming} once")

    @classmethod
    def none(cls, classes: int, background: int | None = None) -> "PostProcess":
        """No rule at all: the argmax."""
        return cls((Rule(),) * classes, background=background)

    @property
    def needs_photo(self) -> bool:
        """Whether labels depend on more than their own pixel."""
        return any(rule.needs_photo for rule in self.rules)

    @cached_property
    def tables(self) -> NDArray[np.float32]:
        """(K, 256) what each score of each class counts for."""
        plain = plain_table()
        return np.stack([rule.calibration.table() if rule.calibration else plain for rule in self.rules])

    def apply(self, scores: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
        """The labels of a photo.

        Args:
            scores: (K, H, W) probabilities: uint8 = round(255 * p), or float in [0, 1].
            valid: (H, W) where the photo has data; None: everywhere.

        Returns:
            (H, W) uint8 labels, 255 where there is no data.

        Raises:
            DataError: not as many planes as rules, or of another type.
        """
        levels = self._checked(scores)
        if self.resolve == "argmax":
            labels = self.labels(contest(levels, self.tables, self.background), valid)
        else:
            labels = self._priority(levels, valid)
        if valid is not None:
            labels[~valid] = IGNORE
        return labels

    def _checked(self, scores: NDArray[Any]) -> NDArray[np.uint8]:
        if scores.ndim != 3 or len(scores) != len(self.rules):
            raise DataError(
                f"scores of shape {scores.shape}: ({len(self.rules)}, H, W) expected, a plane for each rule; the rules "
                "belong to other classes"
            )
        if scores.dtype == np.uint8:
            return scores
        if scores.dtype.kind != "f":
            raise DataError(f"scores of {scores.dtype}: uint8 (255 means 1) or float probabilities expected")
        return np.asarray(np.rint(np.clip(scores, 0, 1) * _SCALE), np.uint8)

    def labels(self, won: Contest, valid: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
        """(H, W) uint8 labels of a photo whose winners are known; where it has no data, they mean nothing."""
        if valid is not None:
            won = Contest(np.where(valid, won.winner, np.uint8(NOBODY)), won.rival, won.level)
        labels = np.where(self.kept(won), won.winner, won.rival)
        fill_holes(labels, [rule.holes for rule in self.rules])
        return labels

    def _priority(self, scores: NDArray[np.uint8], valid: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
        assert self.background is not None
        labels = np.full(scores.shape[1:], self.background, np.uint8)
        claiming = self.order or tuple(k for k in range(len(self.rules)) if k != self.background)
        for k in reversed(claiming):
            level = np.rint(self.tables[k] * _SCALE).astype(np.uint8)[scores[k]]
            winner = np.full(labels.shape, k, np.uint8)
            if valid is not None:
                winner[~valid] = NOBODY
            labels[self.kept(Contest(winner, labels, level))] = k
        fill_holes(labels, [rule.holes for rule in self.rules])
        return labels

    def kept(self, won: Contest) -> NDArray[np.bool_]:
        """(H, W) bool: pixels that their winner keeps under its rule; a winner of NOBODY keeps nothing."""
        bottoms = np.full(256, NOBODY + 1, np.uint16)
        bottoms[: len(self.rules)] = [rule.bottom_level for rule in self.rules]
        kept = won.level >= bottoms[won.winner]
        if any(rule.needs_components for rule in self.rules):
            found = components(np.where(kept, won.winner, np.uint8(NOBODY)), won.level)
            stays = np.append(self.staying(found), False)  # the last is for -1
            kept = stays[found.ids]
        least = np.array([rule.min_present for rule in self.rules])
        if least.max() > 1:
            present = np.bincount(won.winner[kept], minlength=256)[: len(least)] >= least
            kept &= np.append(present, np.zeros(256 - len(least), np.bool_))[won.winner]
        return kept

    def staying(self, found: Components) -> NDArray[np.bool_]:
        """(N,) bool: components of one photo that their classes keep."""
        tops = np.array([rule.top_level for rule in self.rules])
        areas = np.array([rule.min_area for rule in self.rules])
        stays: NDArray[np.bool_] = (found.tops >= tops[found.keys]) & (found.areas >= areas[found.keys])
        for k, rule in enumerate(self.rules):
            if rule.keep:
                own = np.flatnonzero(stays & (found.keys == k))
                # Stable: of equal ones the first in reading order stays.
                stays[own[np.argsort(-found.areas[own], kind="stable")[rule.keep :]]] = False
        return stays

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain data, with classes by name; those without a rule are left out."""
        plain: dict[str, Any] = {"resolve": self.resolve}
        plain["background"] = None if self.background is None else names[self.background]
        if self.order:
            plain["order"] = [names[k] for k in self.order]
        rules = {names[k]: rule.to_dict() for k, rule in enumerate(self.rules) if rule != Rule()}
        return {**plain, "rules": rules}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], names: Sequence[str]) -> "PostProcess":
        """Rules from plain data, for a label space.

        Raises:
            ConfigError: a key, a value or a class is unknown.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("rules", {}), Mapping):
            raise ConfigError("post-processing: a mapping with rules by class expected, {rules: {roof: {min_area: 9}}}")
        for key in data:
            if key not in ("resolve", "background", "order", "rules"):
                raise ConfigError(f"post-processing: unknown key {key!r}; known are resolve, background, order, rules")

        def label(name: Any) -> int:
            if name not in names:
                raise ConfigError(f"post-processing: no class {name!r}; there are {', '.join(names)}")
            return list(names).index(name)

        rules = [Rule()] * len(names)
        for name, rule in data.get("rules", {}).items():
            place = label(name)
            try:
                rules[place] = Rule.from_dict(rule)
            except ConfigError as error:
                raise ConfigError(f"post-processing of {name}: {error}") from error
        background, order = data.get("background"), data.get("order") or []
        if not isinstance(order, list):
            raise ConfigError(f"post-processing: order {order!r} is no list; expected classes, the first wins: [a, b]")
        return cls(
            tuple(rules),
            data.get("resolve", "argmax"),
            None if background is None else label(background),
            tuple(label(name) for name in order),
        )


def to_level(share: float) -> int:
    """A share in [0, 1] as a level of 8 bits; 0.5 is the first at which a winner is ahead."""
    return int(share * _SCALE + 0.5)


def to_share(level: int) -> float:
    """The shortest share that means this level."""
    return 0.5 if level == EVEN else round(level / _SCALE, 3)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
