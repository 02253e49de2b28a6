"""Which candidates a head learns from: few of many, with enough objects among them.

Shapes: ... images, M candidates.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from visionapps.detection.matching import BACKGROUND, OBJECT
from visionapps.errors import ConfigError


class Draw(NamedTuple):
    """Candidates drawn, in rows of fixed length, so that nothing has to wait for the device.

    Only the first counts[..., 0] entries of objects and the first counts[..., 1] of background mean anything.
    """

    objects: Tensor  # (..., P) int64
    background: Tensor  # (..., S) int64
    counts: Tensor  # (..., 2) int64


@dataclass(frozen=True)
class BalancedSampler:
    """Draws objects up to a fraction, and fills up with background.

    Args:
        size: candidates per image, S.
        fraction: greatest part of them that are objects, in (0, 1].

    Raises:
        ConfigError: no candidates, or a fraction that is none.

    Source: Girshick, Fast R-CNN, 2015, section 2.3; Ren et al., Faster R-CNN, 2015, section 3.1.3.
    """

    size: int
    fraction: float

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 < self.fraction <= 1:
            raise ConfigError(f"sampler: size {self.size} must be at least 1 and fraction {self.fraction} in (0, 1]")

    def draw(self, states: Tensor, generator: torch.Generator | None = None) -> Draw:
        """Draw at random, without replacement.

        Args:
            states: (..., M) of OBJECT, BACKGROUND and NEITHER.
            generator: on the device of states; None: torch's global stream.
        """
        candidates = states.shape[-1]
        objects, background = states == OBJECT, states == BACKGROUND
        key = torch.rand(states.shape, device=states.device, generator=generator)
        most = int(self.size * self.fraction)
        drawn = (key + objects.float()).topk(min(most, candidates)).indices
        rest = (key + background.float()).topk(min(self.size, candidates)).indices
        count = objects.sum(-1).clamp(max=most)
        fill = torch.minimum(background.sum(-1), self.size - count)
        return Draw(drawn, rest, torch.stack((count, fill), -1))
