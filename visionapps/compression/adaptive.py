"""Classifiers that spend on each photo what it needs: exits with a budget, and gates before residual blocks.

Shapes: B photos of a batch, N photos, E exits, C bands, h x w pixels of the square that is judged.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from visionapps.classification.base import Classifier
from visionapps.compression.compress import changed_card
from visionapps.data.class_crops import middle_square
from visionapps.data.class_dataset import ClassPhoto, as_bands
from visionapps.errors import ConfigError
from visionapps.inference.bundle import Bundle
from visionapps.inference.classifying import frame_of
from visionapps.models import build
from visionapps.networks.convnet_aig import GatedNetwork
from visionapps.networks.exits import ExitNetwork, budget_shares, fit_thresholds, mean_cost

_BATCH = 64
_RESNET, _GATED = "visionapps/resnet", "visionapps/convnet_aig_"


def set_exit_budget(bundle: Bundle, photos: Sequence[ClassPhoto], share: float) -> Bundle:
    """Let photos leave at early exits, so that on average one costs the given share of the whole network.

    Thresholds are fitted to how sure the network is of these photos; their classes are not looked at. On these photos
    the budget is met; on others as far as they resemble them.

    Args:
        bundle: of a classifier whose network has exits (visionapps/msdnet).
        photos: as many as can be had that were not trained on.
        share: mean multiply-adds per photo over those of all exits, in (0, 1].

    Raises:
        ConfigError: the network has no exits, there are no photos, or the budget cannot be met.
    """
    network = bundle.classifier.network
    if not isinstance(network, ExitNetwork):
        raise ConfigError("exit budget: the network has one exit only; train visionapps/msdnet or msdnet_imagenet")
    if not 0 < share <= 1 or not photos:
        raise ConfigError(f"exit budget: {share:g} of the whole cost, on {len(photos)} photos; give a share in (0, 1]")
    costs = exit_costs(bundle)
    if share * costs[-1] < costs[0]:
        least = math.ceil(100 * costs[0] / costs[-1]) / 100
        raise ConfigError(
            f"exit budget: {share:g} of the whole cost cannot be met, the first exit takes more; give at least "
            f"{least:g}"
        )
    shares = budget_shares(costs, share * costs[-1])
    confidence = exit_confidence(bundle, photos)
    thresholds = fit_thresholds(confidence, shares)
    left = [next((e for e, t in enumerate(thresholds) if column[e] >= t), len(costs) - 1) for column in confidence.T]
    model = build(bundle.model.recipe or {})
    assert isinstance(model, Classifier)
    model.load_state_dict(bundle.model.state_dict())
    assert isinstance(model.network, ExitNetwork)
    model.network.thresholds.copy_(thresholds)
    spent = mean_cost(torch.tensor(left), costs) / costs[-1]
    said = f"exits at a budget of {share:.0%} ({spent:.1%} spent on {len(photos)} photos)"
    return replace(bundle, model=model.eval(), card=changed_card(bundle.card, [said]))


def with_gates(bundle: Bundle, target: float) -> Bundle:
    """A residual network for small images with a gate before each block, to be trained on: ConvNet-AIG.

    Args:
        bundle: of a classifier with the network visionapps/resnet20, 56 or 110.
        target: share of the photos that each block is to be computed for, in (0, 1].

    Raises:
        ConfigError: the bundle holds another network.
    """
    recipe = bundle.model.recipe or {}
    name = str(recipe.get("arguments", {}).get("network", recipe.get("model")))
    depth = name.removeprefix(_RESNET)
    if not name.startswith(_RESNET) or depth not in ("20", "56", "110"):
        raise ConfigError(f"gates: the bundle holds {name}; they are made for {_RESNET}20, {_RESNET}56, {_RESNET}110")
    model = build({**recipe, "arguments": {**recipe["arguments"], "network": _GATED + depth}})
    assert isinstance(model, Classifier)
    assert isinstance(model.network, GatedNetwork)
    found = model.load_state_dict(bundle.model.state_dict(), strict=False)
    assert not found.unexpected_keys
    assert all(key.startswith("network.gates.") for key in found.missing_keys)
    model.network.set_target(target)
    said = f"gates before blocks, trained to keep {target:.0%}"
    return replace(bundle, model=model, card=changed_card(bundle.card, [said]))


def exit_costs(bundle: Bundle) -> list[float]:
    """(E) multiply-adds of one photo that leaves at each exit, the exits that it passed included."""
    network, image = bundle.classifier.network, next(_squares(bundle, []))
    assert isinstance(network, ExitNetwork)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        return [counter.get_total_flops() / 2 for _ in network.anytime(image)]


@torch.inference_mode()
def exit_confidence(bundle: Bundle, photos: Sequence[ClassPhoto]) -> Tensor:
    """(E, N) probability of the best class at each exit."""
    network = bundle.classifier.network
    assert isinstance(network, ExitNetwork)
    parts = [
        torch.stack([logits.softmax(1).amax(1) for logits in network.anytime(bundle.classifier.normalize(squares))])
        for squares in _squares(bundle, photos)
    ]
    return torch.cat(parts, 1)


@torch.inference_mode()
def multiply_adds(bundle: Bundle, photos: Sequence[ClassPhoto], most: int = 256) -> float:
    """Mean multiply-adds per photo, counted while the model judges them."""
    chosen = photos[:: max(1, len(photos) // most)]
    with FlopCounterMode(display=False) as counter:
        for squares in _squares(bundle, chosen):
            bundle.classifier(squares)
    return float(counter.get_total_flops() / 2 / len(chosen))


def _squares(bundle: Bundle, photos: Sequence[ClassPhoto]) -> Iterator[Tensor]:
    """(B, C, h, w) raw squares of photos; one of zeros where there are none."""
    frame, bands = frame_of(bundle), len(bundle.spec.bands)
    if not photos:
        yield torch.zeros(1, bands, frame.side, frame.side)
    for begin in range(0, len(photos), _BATCH):
        part = photos[begin : begin + _BATCH]
        squares = np.stack([middle_square(as_bands(photo.image(), bands), frame) for photo in part])
        yield torch.from_numpy(squares).permute(0, 3, 1, 2)
