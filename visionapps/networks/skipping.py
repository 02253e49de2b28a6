"""Residual networks that skip blocks, image by image: a block that an image does not need costs it nothing.

Shapes: B images, L residual blocks, D channels, h x w pixels of a map.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from visionapps.errors import ConfigError
from visionapps.networks.base import Network
from visionapps.networks.residual import Residual, residual_blocks

Decide = Callable[[int, Tensor], Tensor]  # number of a block, its input (B, D, h, w), to (B,) keep: 0 or 1


class Walk(NamedTuple):
    """What comes of a walk through a network's blocks."""

    logits: Tensor  # (B, K)
    kept: Tensor  # (B, L) float, 0 or 1; carries gradients where the decisions do


class SkippingNetwork(Network):
    """A residual network and something that decides which of its blocks an image passes.

    Args:
        network: of residual blocks, which are always computed in it: ``features`` and ``head`` are taken over.

    Attributes:
        blocks: L.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.features, self.head, self.native = network.features, network.head, network.native
        found = list(residual_blocks(self.features))
        self.blocks = len(found)
        if not found or any(block.shortcut is None or block.survival.probability < 1 for block in found):
            raise ConfigError("skipping blocks: needs a residual network with shortcuts and without stochastic depth")
        self.least = int(getattr(network, "least", 1))

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) normalised to (B, K)."""
        return self.pass_through(image).logits

    def pass_through(self, image: Tensor) -> Walk:
        """The logits and which blocks were passed."""
        raise NotImplementedError

    def walk(self, image: Tensor, decide: Decide, *, dense: bool) -> Walk:
        """Pass the blocks that a decision names.

        Args:
            image: (B, C, H, W) normalised.
            decide: told a block's number and input.
            dense: compute all blocks of all images and multiply by the decision, through which gradients then flow;
                False: compute what is kept, only.

        Raises:
            ConfigError: the image is too small.
        """
        if min(image.shape[-2:]) < self.least:
            raise ConfigError(
                f"image of {image.shape[-2]} x {image.shape[-1]} px (H x W): the smallest legal size is {self.least} x "
                f"{self.least}; enlarge it"
            )
        kept: list[Tensor] = []
        for step in _steps(self.features):
            if isinstance(step, Residual):
                kept.append(decide(len(kept), image))
                image = gated(step, image, kept[-1], dense=dense or image.is_meta)
            else:
                image = step(image)
        logits: Tensor = self.head(image)
        return Walk(logits, torch.stack(kept, 1))


def _steps(features: nn.Sequential) -> Iterator[nn.Module]:
    for step in features:
        if isinstance(step, nn.Sequential) and any(isinstance(each, Residual) for each in step):
            yield from _steps(step)
        else:
            yield step


def gated(block: Residual, image: Tensor, keep: Tensor, *, dense: bool) -> Tensor:
    """A block whose body only some images pass: after(shortcut(x) + keep * body(x)).

    Args:
        block: with a shortcut.
        image: (B, D, h, w).
        keep: (B,) 0 or 1.
        dense: see ``SkippingNetwork.walk``.
    """
    assert block.shortcut is not None, "checked when the network was made"
    image = block.before(image)
    total = block.shortcut(image)
    if dense:
        total = total + keep[:, None, None, None] * block.body(image)
    else:
        chosen = keep > 0.5
        if chosen.all():
            total = total + block.body(image)
        elif chosen.any():
            total = total.index_add(0, chosen.nonzero()[:, 0], block.body(image[chosen]))
    out: Tensor = block.after(total)
    return out


def kept_share(network: SkippingNetwork, image: Tensor) -> Tensor:
    """(L,) share of the images that pass each block, in evaluation."""
    was_training = network.training
    network.eval()
    with torch.no_grad():
        kept = network.pass_through(image).kept.mean(0)
    network.train(was_training)
    return kept
