"""How often classes occur, and the weights in a loss that follow from it.

Every rule gives rare classes more, and they differ in how much. All are scaled to a mean of 1 over the classes that
occur; a class that occurs nowhere weighs 0. K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from visionapps.errors import ConfigError

Rule = Literal["inverse", "median_frequency", "effective"]
RULES: tuple[Rule, ...] = ("inverse", "median_frequency", "effective")
BETA = 0.999
SAMPLE = 64 * 64  # px that count as one sample of the effective number


@dataclass(frozen=True)
class ClassCounts:
    """How often classes occur in the photos that train.

    Attributes:
        names: K names.
        pixels: (K,) labelled pixels of each class.
        around: (K,) labelled pixels, of whatever class, of the photos in which the class occurs.
    """

    names: tuple[str, ...]
    pixels: tuple[int, ...]
    around: tuple[int, ...]

    @classmethod
    def of_photos(cls, names: Sequence[str], class_pixels: Sequence[Sequence[int]]) -> "ClassCounts":
        """Sum up photos.

        Args:
            names: K names.
            class_pixels: one (K,) row of labelled pixels per photo.
        """
        table = np.asarray(class_pixels, np.int64).reshape(len(class_pixels), len(names))
        around = ((table > 0) * table.sum(axis=1, keepdims=True)).sum(axis=0)
        return cls(tuple(names), tuple(table.sum(axis=0).tolist()), tuple(around.tolist()))


@dataclass(frozen=True)
class ClassWeights:
    """A rule that makes weights of counts.

    Args:
        rule: "inverse": one over the pixels of the class. "median_frequency": one over its share of the pixels in
            those photos where it occurs, so that a class which is rare because few photos show it is raised less.
            "effective": one over the effective number of samples, (1 - beta ** n) / (1 - beta), which stops growing
            with n.
        beta: of "effective" only, in [0, 1): 0 weighs all classes alike, 1 would be "inverse"; 0.999 means that about
            1,000 samples tell all there is to know of a class. None: 0.999.

    The paper counts photos or boxes. Neighbouring pixels tell almost the same, so 64 x 64 of them count as one sample
    here: with single pixels every usual beta would give the same weight to all classes.

    Raises:
        ConfigError: no such rule, or beta is out of range or without effect.

    Source: Eigen and Fergus, ICCV 2015 (median frequency); Cui et al., Class-Balanced Loss Based on Effective Number of
    Samples, CVPR 2019, equation 2.
    """

    rule: Rule
    beta: float | None = None

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ConfigError(f"class weights: there is no rule {self.rule!r}; choose {', '.join(RULES)}, or a list")
        if self.beta is not None and self.rule != "effective":
            raise ConfigError(f"class weights: beta belongs to the rule effective, not to {self.rule}; leave it out")
        if self.beta is not None and not 0 <= self.beta < 1:
            raise ConfigError(f"class weights: beta is {self.beta}; choose a value in [0, 1), such as {BETA}")

    def of(self, counts: ClassCounts) -> tuple[float, ...]:
        """(K,) weights with a mean of 1 over the classes that occur, and 0 for those that do not.

        Raises:
            ConfigError: no class occurs.
        """
        pixels, around = np.array(counts.pixels, np.float64), np.array(counts.around, np.float64)
        occurs = pixels > 0
        if not occurs.any():
            raise ConfigError(
                "class weights: no class occurs in the training photos, so nothing can be weighed; check the masks"
            )
        rarity = np.zeros(len(pixels))
        rarity[occurs] = 1 / self._frequency(pixels[occurs], around[occurs])
        return tuple((rarity / rarity[occurs].mean()).tolist())

    def _frequency(self, pixels: np.ndarray, around: np.ndarray) -> np.ndarray:
        """What the weights are one over, up to a common factor."""
        if self.rule == "inverse":
            return pixels
        if self.rule == "median_frequency":  # the median itself is such a factor
            share: np.ndarray = pixels / around
            return share
        beta = BETA if self.beta is None else self.beta
        if beta == 0:
            return np.ones_like(pixels)
        number: np.ndarray = -np.expm1(pixels / SAMPLE * np.log(beta))
        return number
