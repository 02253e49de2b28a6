"""How a box is written relative to another one: what regressors learn."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from visionapps.errors import ConfigError

FARTHEST = math.log(1000 / 16)  # greatest log scale that is decoded: beyond it, exp would run away early in training


@dataclass(frozen=True)
class BoxCoding:
    """Shift of the centre in units of the reference, and log of the ratio of sides, each times a weight.

    Computed in float32 whatever comes in and under any autocast.

    Args:
        weights: of x, y, width and height; 10 10 5 5, one over the usual deviations, let all four be about 1 in RoI
            heads.

    Source: Girshick et al., Rich feature hierarchies, 2014, appendix C; weights as in Girshick, Fast R-CNN, 2015.
    """

    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(self.weights))
        if len(self.weights) != 4 or not all(weight > 0 for weight in self.weights):
            raise ConfigError(f"box coding: weights {self.weights} must be four positive numbers: x, y, width, height")

    def encode(self, boxes: Tensor, references: Tensor) -> Tensor:
        """Codes of boxes as seen from references.

        Args:
            boxes: (..., 4) with an area.
            references: (..., 4) with an area.

        Returns:
            (..., 4) float32.
        """
        centre, side = _centre_and_side(boxes)
        origin, unit = _centre_and_side(references)
        shift = (centre - origin) / unit
        scale = (side / unit).log()
        wx, wy, ww, wh = self.weights
        columns = (shift[..., 0] * wx, shift[..., 1] * wy, scale[..., 0] * ww, scale[..., 1] * wh)
        return torch.stack(columns, -1)

    def decode(self, codes: Tensor, references: Tensor) -> Tensor:
        """Boxes that codes stand for: the inverse of encode, up to 62 times the reference's side.

        Args:
            codes: (..., 4).
            references: (..., 4), broadcast against codes.

        Returns:
            (..., 4) float32.
        """
        codes = codes.float()
        origin, unit = _centre_and_side(references)
        wx, wy, ww, wh = self.weights
        width = (codes[..., 2] / ww).clamp(max=FARTHEST).exp() * unit[..., 0]
        height = (codes[..., 3] / wh).clamp(max=FARTHEST).exp() * unit[..., 1]
        x = codes[..., 0] / wx * unit[..., 0] + origin[..., 0]
        y = codes[..., 1] / wy * unit[..., 1] + origin[..., 1]
        half_width, half_height = width / 2, height / 2
        return torch.stack((x - half_width, y - half_height, x + half_width, y + half_height), -1)


def _centre_and_side(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 2) each, x before y."""
    boxes = boxes.float()
    side = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + side / 2, side
