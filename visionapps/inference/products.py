"""What a map holds beside its labels, and how quantities become planes of 8 bits.

Shapes: K classes, S score planes, N product planes, H W raster, h w window.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from visionapps.errors import ConfigError
from visionapps.structures import LabelSpace
from visionapps.windows import Window

Extra = Literal["confidence", "entropy", "disagreement", "overlap", "probabilities"]
Form = Literal["logits", "probabilities"]
ORDER: tuple[Extra, ...] = get_args(Extra)
_ROWS = 32  # rows at a time on the CPU, so that what lies between scores and planes stays in the cache
_NOTHING = -100.0  # a logit so far below the largest has a probability of 0 in fp32
LEVELS = 254  # a quantity q in [0, 1] is stored as round(254 * q); 255 means no data


class Band(NamedTuple):
    """Finished full-width rows of a map."""

    window: Window
    planes: np.ndarray  # (N, h, W) uint8: labels first, then the extras; 255 where there is no data


@dataclass(frozen=True)
class Products:
    """Which quantities are drawn beside the labels; asking for them changes no label.

    Attributes:
        extras: any of, kept in this order whatever the order given:
            "confidence": the probability of the label;
            "entropy": -sum p log p / log K, 0 where one class is certain and 1 where all are equal;
            "disagreement": how far the members and views of an ensemble are from their mean, see Network;
            "overlap": how far two tiles that see a pixel are apart, the total variation distance of their
                probabilities (the larger one where four tiles meet); 0 where only one tile sees it;
            "probabilities": of every class, a plane each.
    """

    extras: tuple[Extra, ...] = ()

    def __post_init__(self) -> None:
        unknown = [str(extra) for extra in self.extras if extra not in ORDER]
        if unknown:
            raise ConfigError(f"products: {', '.join(unknown)} unknown; choose from {', '.join(ORDER)}")
        object.__setattr__(self, "extras", tuple(extra for extra in ORDER if extra in self.extras))

    def names(self, labels: LabelSpace) -> tuple[str, ...]:
        """Of the N planes, "label" first."""
        single = tuple(extra for extra in self.extras if extra != "probabilities")
        every = tuple(f"probability {name}" for name in labels.names) if "probabilities" in self.extras else ()
        return ("label", *single, *every)

    def count(self, num_classes: int) -> int:
        """N, the planes of a map of so many classes."""
        return 1 + len(self.extras) + (num_classes - 1 if "probabilities" in self.extras else 0)

    def score_planes(self, num_classes: int) -> int:
        """S, the planes that a network must give: one per class, and one of disagreement if that is drawn."""
        return num_classes + ("disagreement" in self.extras)


def probabilities(scores: Tensor, form: Form) -> Tensor:
    """Scores (K, h, w) of one form as probabilities that sum to 1 over K."""
    return scores.softmax(0) if form == "logits" else scores


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Total variation distance of probabilities (K, h, w): (h, w) in [0, 1]."""
    return (a - b).abs().sum(0).mul_(0.5)


def quantise(quantity: Tensor) -> Tensor:
    """A quantity in [0, 1] as uint8: round(254 * q)."""
    return (quantity * LEVELS).round_().clamp_(0, LEVELS).to(torch.uint8)


def extra_planes(products: Products, scores: Tensor, form: Form, *, num_classes: int, apart: Tensor | None) -> Tensor:
    """The planes beside the labels.

    Args:
        products: what is drawn.
        scores: (S, h, w) blended scores.
        form: what the first K of them are.
        num_classes: K.
        apart: (h, w) distance between overlapping tiles; None unless it is drawn.

    Returns:
        (N - 1, h, w) uint8 on the device of the scores.
    """
    height = scores.shape[1]
    rows = _ROWS if scores.device.type == "cpu" else height
    planes = []
    for top in range(0, height, rows):
        part = scores[:, top : top + rows]
        quantities = _quantities(products, part[:num_classes], form)
        if "disagreement" in products.extras:
            quantities["disagreement"] = part[num_classes:]
        if apart is not None:
            quantities["overlap"] = apart[None, top : top + rows]
        planes.append(quantise(torch.cat([quantities[extra] for extra in products.extras])))
    return planes[0] if len(planes) == 1 else torch.cat(planes, 1)


def _quantities(products: Products, scores: Tensor, form: Form) -> dict[Extra, Tensor]:
    """What follows from the scores of the classes (K, h, w), those that are drawn: (planes, h, w) in [0, 1]."""
    found: dict[Extra, Tensor] = {}
    wanted = {"confidence", "entropy", "probabilities"} & set(products.extras)
    if not wanted:
        return found
    nats = math.log(max(2, len(scores)))  # of K classes that are all equal; one class alone has no entropy
    if form == "probabilities":
        if "entropy" in wanted:
            found["entropy"] = torch.special.entr(scores.clamp_min(0)).sum(0, keepdim=True) / nats
        return found | {"confidence": scores.amax(0, keepdim=True), "probabilities": scores}
    # One exponential serves all: with z = logit - max, p = exp(z) / s and the entropy is log s - sum z exp(z) / s.
    z = (scores - scores.amax(0, keepdim=True)).clamp_min_(_NOTHING)
    exponentials = z.exp()
    total = exponentials.sum(0, keepdim=True)
    if "entropy" in wanted:
        found["entropy"] = (total.log() - z.mul_(exponentials).sum(0, keepdim=True) / total) / nats
    if "probabilities" in wanted:
        found["probabilities"] = exponentials / total
    return found | {"confidence": 1 / total}
