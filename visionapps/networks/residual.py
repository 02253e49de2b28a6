"""The residual block in all its forms: five orderings of its layers, three shortcuts or none, two bodies, random depth.

Shapes: B images, D channels coming in, W channels of the body, E channels going out, h x w pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.errors import ConfigError

Ordering = Literal["original", "bn_after_add", "relu_before_add", "relu_preact", "full_preact"]
Shortcut = Literal["A", "B", "C", "none"]
_PREACTIVATED = ("relu_preact", "full_preact")


@dataclass(frozen=True)
class Design:
    """What all blocks of a network have in common.

    Args:
        ordering: where normalisation and ReLU stand, named as in figure 4 of He et al. 2016b: (a) "original", (b)
            "bn_after_add", (c) "relu_before_add", (d) "relu_preact", (e) "full_preact".
        shortcut: "A" is the identity, with zeros for new channels; "B" a projection (1 x 1 convolution) where the shape
            changes and the identity elsewhere; "C" a projection everywhere; "none" makes the plain network.
        bottleneck: 1 x 1, 3 x 3, 1 x 1 with four times the channels going out, in place of two 3 x 3.
        dropout: of the map before the last 3 x 3 convolution of each body, in [0, 1).
        strided: which convolution of a bottleneck carries the stride: "3x3", as in libraries of today, or the first
            "1x1", as in the code of He et al., which computes a little less.

    Raises:
        ConfigError: there is no such ordering, shortcut or probability.

    Source: He et al., Deep Residual Learning for Image Recognition, 2016 (shortcuts: section 4.1); He et al., Identity
        Mappings in Deep Residual Networks, 2016; Zagoruyko and Komodakis, Wide Residual Networks, 2016 (dropout).
    """

    ordering: Ordering = "original"
    shortcut: Shortcut = "A"
    bottleneck: bool = False
    dropout: float = 0.0
    strided: Literal["3x3", "1x1"] = "3x3"

    def __post_init__(self) -> None:
        for what, value, known in (
            ("ordering", self.ordering, get_args(Ordering)),
            ("shortcut", self.shortcut, get_args(Shortcut)),
            ("strided", self.strided, ("3x3", "1x1")),
        ):
            if value not in known:
                raise ConfigError(f"residual block: {what} {value!r} is unknown; choose one of {', '.join(known)}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"residual block: dropout {self.dropout} is no probability in [0, 1)")

    @property
    def expansion(self) -> int:
        """Channels going out per channel of the body."""
        return 4 if self.bottleneck else 1

    @property
    def preactivated(self) -> bool:
        """Whether bodies begin with an activation, so that the last sum of a network still needs one."""
        return self.ordering in _PREACTIVATED


@dataclass(frozen=True)
class Survival:
    """How likely a block is computed in a training step.

    Args:
        probability: in (0, 1].
        rescale: when the expectation is restored: "evaluation" multiplies the body's output by the probability then,
            as in the paper; "training" divides by it, so that evaluation is the plain network (timm's and
            torchvision's way).

    Raises:
        ConfigError: the probability is none, or rescale is unknown.

    Source: Huang et al., Deep Networks with Stochastic Depth, 2016, equations 2 and 5.
    """

    probability: float = 1.0
    rescale: Literal["evaluation", "training"] = "evaluation"

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise ConfigError(f"stochastic depth: survival {self.probability} is no probability in (0, 1]")
        if self.rescale not in ("evaluation", "training"):
            raise ConfigError(f"stochastic depth: rescale {self.rescale!r} is unknown; choose evaluation or training")

    def scale(self, training: bool) -> float:
        """What the output of a body that is computed is multiplied by."""
        if training:
            return 1 / self.probability if self.rescale == "training" else 1.0
        return self.probability if self.rescale == "evaluation" else 1.0


class Residual(nn.Module):
    """One block: ``after(shortcut(x) + body(x))`` with ``x = before(image)``.

    A block that does not survive a training step is not computed at all, neither forward nor backward: one draw from
    torch's global stream on the CPU for the whole batch, so nothing waits for the device. The parameters of a skipped
    body then have no gradient, which optimisers pass over (no weight decay and no momentum in that step either).
    Training in several processes needs ``find_unused_parameters``.

    Where a pre-activated block has a projection, the first activation stands before both ways, as in the code of He
    et al. 2016b and of wide residual networks; an identity shortcut carries the raw map, so its Jacobian holds I.

    Args:
        channels: D.
        width: W; E is W times the design's expansion.
        stride: of the first 3 x 3 convolution, or as the design says, and of the shortcut.
        design: shared by the network.
        activated: the map that comes in has been through BN and ReLU, so a pre-activated body leaves out its first.
        survival: of this block while training.

    Attributes:
        before: the activation that both ways share, or the identity.
        body: the convolutions.
        shortcut: None in a plain network.
        after: what follows the sum.
    """

    shortcut: nn.Module | None

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        stride: int = 1,
        design: Design | None = None,
        activated: bool = False,
        survival: Survival | None = None,
    ) -> None:
        super().__init__()
        self.design = design or Design()
        self.survival = survival or Survival()
        if self.design.shortcut == "none" and self.survival.probability < 1:
            raise ConfigError(
                "stochastic depth: a plain network has no shortcut to go on by when a block is skipped; choose "
                "shortcut A, B or C, or survival 1"
            )
        out = width * self.design.expansion
        self.shortcut = _shortcut(channels, out, stride, self.design)
        shared = self.design.preactivated and isinstance(self.shortcut, nn.Sequential)
        self.before = _activation(channels, self.design) if shared and not activated else nn.Identity()
        self.body = _body(channels, width, stride, self.design, activated or shared)
        after: dict[Ordering, nn.Module] = {
            "original": nn.ReLU(),
            "bn_after_add": nn.Sequential(nn.BatchNorm2d(out), nn.ReLU()),
        }
        self.after = after.get(self.design.ordering, nn.Identity())

    def forward(self, image: Tensor) -> Tensor:
        """(B, D, h, w) to (B, E, ceil(h / stride), ceil(w / stride))."""
        image = self.before(image)
        if self.shortcut is None:
            total = self.body(image)
        else:
            total = self.shortcut(image)
            if self.survives():
                scale = self.survival.scale(self.training)
                body = self.body(image)
                total = total + (body if scale == 1 else scale * body)
        out: Tensor = self.after(total)
        return out

    def survives(self) -> bool:
        """Whether the body is computed this time: always but in training."""
        probability = self.survival.probability
        return not self.training or probability == 1 or torch.rand((), device="cpu").item() < probability


class ZeroPadded(nn.Module):
    """Shortcut A: every stride-th pixel, and zeros for new channels; it has no parameters.

    Args:
        channels: D.
        out_channels: E, at least D.
        stride: of the block.
    """

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        if out_channels < channels:
            raise ConfigError(
                f"residual block: shortcut A cannot lead {channels} channels into {out_channels}; choose shortcut B"
            )
        self.stride = stride
        self.more = out_channels - channels

    def forward(self, image: Tensor) -> Tensor:
        """(B, D, h, w) to (B, E, ceil(h / stride), ceil(w / stride))."""
        return F.pad(image[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))

    def extra_repr(self) -> str:
        return f"{self.more} channels of zeros, stride={self.stride}"


def residual_blocks(network: nn.Module) -> Iterator[Residual]:
    """The residual blocks of a network in order."""
    return (block for block in network.modules() if isinstance(block, Residual))


def expected_depth(network: nn.Module) -> float:
    """How many blocks a training step computes on average: with linear decay to 0.5, (3 L - 1) / 4 of L.

    Source: Huang et al. 2016, section 3.
    """
    return sum(block.survival.probability for block in residual_blocks(network))


def linear_decay(blocks: int, last: float) -> list[float]:
    """Survival of each block: from nearly 1 at the first to ``last``, 1 - l / L (1 - last).

    Args:
        blocks: L.
        last: survival of the last block, in (0, 1].

    Source: Huang et al. 2016, equation 4.
    """
    return [1 - (i + 1) / blocks * (1 - last) for i in range(blocks)]


def _shortcut(channels: int, out: int, stride: int, design: Design) -> nn.Module | None:
    same = channels == out and stride == 1
    if design.shortcut == "none":
        return None
    if same and design.shortcut != "C":
        return nn.Identity()
    if design.shortcut == "A":
        return ZeroPadded(channels, out, stride)
    projection = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False))
    if design.ordering != "full_preact":  # there the sum stays raw; the others normalise what is added
        projection.append(nn.BatchNorm2d(out))
    return projection


def _activation(channels: int, design: Design) -> nn.Sequential:
    """What stands before a convolution of a pre-activated body."""
    return nn.Sequential(*([nn.BatchNorm2d(channels)] if design.ordering == "full_preact" else []), nn.ReLU())


def _body(channels: int, width: int, stride: int, design: Design, activated: bool) -> nn.Sequential:
    """The convolutions with what belongs between them."""
    if design.bottleneck:
        first, middle = (stride, 1) if design.strided == "1x1" else (1, stride)
        shapes = [(channels, width, 1, first), (width, width, 3, middle), (width, 4 * width, 1, 1)]
    else:
        shapes = [(channels, width, 3, stride), (width, width, 3, 1)]
    layers: list[nn.Module] = []
    for i, (into, out, kernel, step) in enumerate(shapes):
        last = i == len(shapes) - 1
        if design.preactivated and not (i == 0 and activated):
            layers.extend(_activation(into, design))
        if i == 1 and design.dropout:  # before the only 3 x 3 of a bottleneck, the second of a basic body
            layers.append(nn.Dropout(design.dropout))
        layers.append(nn.Conv2d(into, out, kernel, step, padding=kernel // 2, bias=False))
        if design.ordering != "full_preact" and not (last and design.ordering == "bn_after_add"):
            layers.append(nn.BatchNorm2d(out))
        if not design.preactivated and (not last or design.ordering == "relu_before_add"):
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)
