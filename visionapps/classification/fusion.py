"""How a photo is looked at when a classifier is tested, and how the answers become one.

Shapes: K classes.
"""

from dataclasses import dataclass
from typing import ClassVar

from visionapps.classification.crops import Crops
from visionapps.errors import ConfigError
from visionapps.structures import Frame


@dataclass(frozen=True)
class TestPlan:
    """How a photo is looked at. The answer is a mean of probabilities: over mirrored looks, squares and scales, then
    over dense evaluation and squares where there are both, then over models.

    Args:
        dense: the whole photo at every scale, the head at every position; scores are averaged over positions before
            they become probabilities.
        crops: squares per scale: 1, 10 or 50, see ``places``; None: no squares, where the evaluation is dense.
        scales: shorter sides in pixels that the photo is brought to; empty: the one of the model's frame.
        flips: mirrored looks as well; None: all but the single middle square, as the papers do.

    Source: Simonyan and Zisserman 2015, sections 3.2, 4.1, 4.2 (scales), 4.3 and 4.4 (fusion: the mean of both).
    """

    __test__: ClassVar[bool] = False  # pytest would take the name for that of a test

    dense: bool = False
    crops: Crops | None = 1
    scales: tuple[int, ...] = ()
    flips: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))  # YAML brings lists
        if self.crops not in (None, 1, 10, 50):
            raise ConfigError(f"test plan: {self.crops} crops is no choice; write 1, 10 or 50, or none at all")
        if not self.dense and self.crops is None:
            raise ConfigError("test plan: neither dense nor crops, so nothing would be looked at; choose one or both")
        if len(set(self.scales)) != len(self.scales) or min(self.scales, default=1) < 1:
            raise ConfigError(
                f"test plan: scales {', '.join(map(str, self.scales))} must be shorter sides in pixels, all different"
            )

    @property
    def mirrors(self) -> tuple[bool, bool]:
        """Whether the dense evaluation, and whether the squares, look at mirrored photos as well."""
        if self.flips is not None:
            return self.flips, self.flips
        return True, (self.crops or 1) > 1

    def sizes(self, frame: Frame, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """(h, w) that a photo is resized to, one per scale.

        Args:
            frame: of the model.
            height: of the photo in pixels.
            width: likewise.
        """
        if not self.scales:
            return (frame.size(height, width),)
        return tuple(Frame(scale, 1.0).size(height, width) for scale in self.scales)

    def describe(self) -> str:
        """In a few words, for tables."""
        mirrored = self.mirrors
        parts = ["dense" + " + mirrored" * mirrored[0]] if self.dense else []
        if self.crops == 1:
            parts.append("1 crop" + " + mirrored" * mirrored[1])
        elif self.crops is not None:
            parts.append(f"{self.crops if mirrored[1] else self.crops // 2} crops")
        scales = f" at {', '.join(map(str, self.scales))} px" if self.scales else ""
        return " and ".join(parts) + scales


def scales_after(trained: int | tuple[int, int]) -> tuple[int, int, int]:
    """The scales that VGG nets are tested at: {S - 32, S, S + 32}, or both ends and the middle of a range.

    Args:
        trained: S, the shorter side of training photos in pixels, or the range that it was drawn from.

    Source: Simonyan and Zisserman 2015, section 4.2: (224, 256, 288), (352, 384, 416), and (256, 384, 512) after
        training with scales of [256; 512].
    """
    if isinstance(trained, int):
        return trained - 32, trained, trained + 32
    low, high = trained
    return low, (low + high) // 2, high
