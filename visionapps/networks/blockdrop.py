"""BlockDrop: a small policy network looks at the image once and says which residual blocks of a large one it needs.

Source: Wu, Nagarajan, Kumar, Rennie, Davis, Grauman and Feris, BlockDrop: Dynamic Inference Paths in Residual
    Networks, CVPR 2018.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from visionapps.errors import ConfigError
from visionapps.networks.base import Network
from visionapps.networks.cifar_resnet import cifar_resnet
from visionapps.networks.skipping import SkippingNetwork, Walk

_BOUND = 0.8  # alpha: probabilities stay in [1 - alpha, alpha], so that every block is tried


class Reinforced(NamedTuple):
    """What a training step of a policy gives."""

    loss: Tensor  # () to be minimised
    reward: float  # mean over the images of the drawn decisions
    kept: float  # share of the blocks that the policy's likeliest decision keeps
    right: float  # share of the images that are judged rightly by it


def blockdrop(num_classes: int = 10, bands: int = 3, *, depth: int = 110, policy_depth: int = 8) -> "BlockDrop":
    """A residual network for images of 32 px with a policy.

    Args:
        num_classes: K.
        bands: C.
        depth: of the network, 6 n + 2.
        policy_depth: of the policy network, 6 n + 2; 8 in the paper.

    Raises:
        ConfigError: no network has this depth.
    """
    return BlockDrop(cifar_resnet(depth, num_classes, bands), bands, policy_depth=policy_depth)


class BlockDrop(SkippingNetwork):
    """A residual network, usually trained before, and the policy over its blocks.

    Args:
        network: a residual network.
        bands: C.
        policy_depth: of the policy network.
    """

    trained_apart = (
        "its policy is drawn, and gets no gradient of the loss: train its residual network first (visionapps/resnet110 "
        "for blockdrop_110), then the policy with BlockDrop.reinforce (visionapps.networks.blockdrop) in your own loop"
    )

    def __init__(self, network: Network, bands: int = 3, *, policy_depth: int = 8) -> None:
        super().__init__(network)
        self.policy = cifar_resnet(policy_depth, self.blocks, bands)

    def pass_through(self, image: Tensor) -> Walk:
        """The likeliest decision: blocks of probability over a half are passed."""
        keep = (self.policy(image) > 0).to(image.dtype)
        return self.walk(image, lambda i, _: keep[:, i], dense=False)

    def probabilities(self, image: Tensor) -> Tensor:
        """(B, L) of keeping each block, kept away from 0 and 1 as in section 3.1."""
        sure: Tensor = self.policy(image).sigmoid()
        return _BOUND * sure + (1 - _BOUND) * (1 - sure)

    def reinforce(
        self,
        image: Tensor,
        labels: Tensor,
        *,
        free: int | None = None,
        wrong: float = 5.0,
        joint: bool = False,
        generator: torch.Generator | None = None,
    ) -> Reinforced:
        """One step of the policy gradient with a self-critical baseline (equations 2 to 6).

        The reward of a decision is 1 - (share kept)^2 where the image is judged rightly, and -wrong elsewhere; the
        baseline is the reward of the likeliest decision.

        Args:
            image: (B, C, H, W) normalised.
            labels: (B,) int64.
            free: the last so many blocks are the policy's, those before are always kept: the curriculum, 1 in the
                first epoch and one more in each (section 3.2). None: all.
            wrong: gamma, > 0: the greater, the more accuracy is worth.
            joint: let the classification loss of the drawn decision train network and policy together ("joint
                finetuning"); without it only the policy learns, and the network is looked at as it is in evaluation.
            generator: of the draw; None: torch's global stream.

        Raises:
            ConfigError: there are fewer blocks than are to be free.
        """
        free = self.blocks if free is None else free
        if not 1 <= free <= self.blocks:
            raise ConfigError(f"blockdrop: {free} free blocks of {self.blocks}; give 1 to {self.blocks}")
        chances = self.probabilities(image)
        fixed = torch.arange(self.blocks, device=image.device) < self.blocks - free
        drawn = torch.bernoulli(chances.detach(), generator=generator).masked_fill(fixed, 1)
        likely = (chances.detach() > 0.5).to(chances.dtype).masked_fill(fixed, 1)
        with torch.no_grad():
            baseline, right = self._reward(image, labels, likely, wrong)
        with torch.set_grad_enabled(joint):
            logits = self.walk(image, lambda i, _: drawn[:, i], dense=False).logits
        reward = _rewards(logits.detach(), labels, drawn, wrong)
        likelihood = torch.where(drawn > 0.5, chances, 1 - chances).log().masked_fill(fixed, 0).sum(1)
        loss = -((reward - baseline) * likelihood).mean()
        if joint:
            loss = loss + F.cross_entropy(logits, labels)
        return Reinforced(loss, float(reward.mean()), float(likely.mean()), float(right.float().mean()))

    def train(self, mode: bool = True) -> "BlockDrop":
        """Statistics of the network's normalisation stand still: skipped blocks would see another mix of images."""
        super().train(mode)
        self.features.eval()
        return self

    def _reward(self, image: Tensor, labels: Tensor, keep: Tensor, wrong: float) -> tuple[Tensor, Tensor]:
        logits = self.walk(image, lambda i, _: keep[:, i], dense=False).logits
        return _rewards(logits, labels, keep, wrong), logits.argmax(1) == labels


def _rewards(logits: Tensor, labels: Tensor, keep: Tensor, wrong: float) -> Tensor:
    """(B,) equation 2."""
    saved = 1 - keep.mean(1).square()
    return torch.where(logits.argmax(1) == labels, saved, torch.full_like(saved, -wrong))
