"""Networks with several exits: easy images leave early, and those that left cost nothing more.

Shapes: B images, K classes, E exits, N images of a calibration set.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from visionapps.errors import ConfigError
from visionapps.networks.base import Network, Outputs

NEVER = 2.0  # a threshold that no probability reaches


class Routed(NamedTuple):
    """Answers, and where each image left."""

    logits: Tensor  # (B, K)
    exits: Tensor  # (B,) int64 in [0, E)


class ExitNetwork(Network):
    """A network whose every step ends in an exit.

    Unlike other networks, what flows between ``features`` is a tuple of maps, all of the same images; the last map is
    what the step's exit reads.

    Args:
        features: E steps; the first takes the (B, C, H, W) image.
        heads: E modules, the last map of a step to (B, K).
        native: side in pixels of the images that it was published for.
        smallest: least side in pixels that every exit can judge.

    Attributes:
        thresholds: (E - 1,) least probability of the best class with which an image leaves at an exit; NEVER, as a new
            network has them, lets every image go to the end. They are part of the weights.
    """

    thresholds: Tensor

    def __init__(self, features: nn.Sequential, heads: Sequence[nn.Module], *, native: int, smallest: int) -> None:
        super().__init__()
        self.features = features
        self.heads = nn.ModuleList(heads)
        self.native = native
        self.smallest = smallest
        self.auxiliary = (1.0,) * (len(heads) - 1)
        self.register_buffer("thresholds", torch.full((len(heads) - 1,), NEVER))

    @property
    def head(self) -> nn.Module:  # type: ignore[override]
        """That of the last exit."""
        return self.heads[-1]

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) normalised to (B, K): of the last exit in training, else of the exit where each image leaves."""
        if self.training or self.thresholds.is_meta or not bool((self.thresholds < NEVER).any()):
            for state in self._states(image):
                last = state[-1]
            logits: Tensor = self.heads[-1](last)
            return logits
        return self.route(image).logits

    def outputs(self, image: Tensor) -> Outputs:
        """The logits of the last exit, then those of the earlier ones, the first first."""
        *early, last = self.anytime(image)
        return Outputs((last, *early), last.new_zeros(()))

    def anytime(self, image: Tensor) -> Iterator[Tensor]:
        """(B, K) logits of exit after exit; whoever stops asking stops the computation.

        Raises:
            ConfigError: the image is too small.
        """
        for state, head in zip(self._states(image), self.heads, strict=True):
            yield head(state[-1])

    @torch.no_grad()
    def route(self, image: Tensor, thresholds: Tensor | None = None) -> Routed:
        """Let every image leave at the first exit that is sure enough; the batch shrinks.

        Args:
            image: (B, C, H, W) normalised.
            thresholds: (E - 1,); None: the network's own.

        Source: Huang et al., Multi-Scale Dense Networks for Resource Efficient Image Classification, 2018, section 4.2:
            confidence is the probability of the best class.
        """
        self._require_size(image)
        limits = self.thresholds if thresholds is None else thresholds
        waiting = torch.arange(len(image), device=image.device)
        left = torch.full_like(waiting, len(self.heads) - 1)
        answers: Tensor | None = None
        state: Any = image
        for exit_, (step, head) in enumerate(zip(self.features, self.heads, strict=True)):
            state = step(state)
            logits = head(state[-1])
            if answers is None:
                answers = logits.new_empty(len(image), logits.shape[1])
            if exit_ + 1 == len(self.heads):
                answers[waiting] = logits
                break
            leaving = logits.float().softmax(1).amax(1) >= limits[exit_]
            answers[waiting[leaving]] = logits[leaving]
            left[waiting[leaving]] = exit_
            waiting = waiting[~leaving]
            if not len(waiting):
                break
            state = tuple(each[~leaving] for each in state)
        assert answers is not None, "a network has an exit"
        return Routed(answers, left)

    def _states(self, image: Tensor) -> Iterator[tuple[Tensor, ...]]:
        self._require_size(image)
        state: Any = image
        for step in self.features:
            state = step(state)
            yield state

    def _require_size(self, image: Tensor) -> None:
        if min(image.shape[-2:]) < self.smallest:
            raise ConfigError(
                f"image of {image.shape[-2]} x {image.shape[-1]} px (H x W): the smallest legal size is {self.smallest}"
                f" x {self.smallest}; enlarge it"
            )


def budget_shares(costs: Sequence[float], budget: float) -> tuple[float, ...]:
    """Which share of the images may leave at each exit, so that the mean cost is the budget.

    Shares are a geometric series, z q^k at exit k: the form of the paper, whose q = 1 - (chance to leave) is below 1;
    above 1 it favours late exits, which large budgets need.

    Args:
        costs: of an image that leaves at each exit, ascending, in any unit.
        budget: mean cost per image, in the same unit.

    Returns:
        E shares, sum 1.

    Raises:
        ConfigError: the budget is below the cost of the first exit, or costs do not ascend.

    Source: Huang et al. 2018, section 4.2, "dynamic evaluation".
    """
    if len(costs) < 1 or any(b <= a for a, b in itertools.pairwise(costs)):
        raise ConfigError(f"exits: costs {list(costs)} must ascend; give the cost of reaching each exit")
    if not budget >= costs[0]:
        raise ConfigError(
            f"exits: a budget of {budget:g} per image cannot be met, the first exit costs {costs[0]:g}; give more"
        )
    if budget >= costs[-1]:
        return (*(0.0,) * (len(costs) - 1), 1.0)

    def shares(log_q: float) -> Tensor:
        return torch.softmax(torch.arange(len(costs), dtype=torch.float64) * log_q, 0)

    cost = torch.tensor(costs, dtype=torch.float64)
    low, high = -60.0, 60.0
    for _ in range(100):  # the mean cost ascends with q
        middle = (low + high) / 2
        low, high = (middle, high) if float(shares(middle) @ cost) <= budget else (low, middle)
    return tuple(shares(low).tolist())


def fit_thresholds(confidence: Tensor, shares: Sequence[float]) -> Tensor:
    """Thresholds with which at least the given shares of a calibration set have left by each exit.

    Args:
        confidence: (E, N) probability of the best class at each exit.
        shares: E, sum 1: as ``budget_shares`` gives.

    Returns:
        (E - 1,) float32; where nothing is to leave, NEVER.
    """
    exits, count = confidence.shape
    waiting = torch.ones(count, dtype=torch.bool)
    thresholds = torch.full((exits - 1,), NEVER)
    by_now = 0.0
    for exit_ in range(exits - 1):
        by_now += shares[exit_]
        wanted = _ceil(by_now * count) - int((~waiting).sum())
        if wanted <= 0:
            continue
        sure = confidence[exit_][waiting].float().sort(descending=True).values
        thresholds[exit_] = sure[wanted - 1]
        waiting &= confidence[exit_].float() < thresholds[exit_]
        if not waiting.any():
            thresholds[exit_ + 1 :] = 0.0  # an image less sure than all of these leaves at the next exit
            break
    return thresholds


def _ceil(value: float) -> int:
    # Sums of shares come out a rounding error too large: 0.1 + 0.2 of ten images are three.
    return -int(-(value - 1e-9) // 1)


def mean_cost(exits: Tensor, costs: Sequence[float]) -> float:
    """Mean cost per image.

    Args:
        exits: (N,) where each image left.
        costs: of an image that leaves at each exit.
    """
    return float(torch.tensor(costs, dtype=torch.float64)[exits.cpu()].mean())
