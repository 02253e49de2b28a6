"""A trained bundle through steps of compression, to a smaller one."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from torch import nn

from visionapps.compression.layers import bake
from visionapps.errors import ConfigError
from visionapps.inference.bundle import Bundle


class Step(Protocol):
    """Imposes a rule on the weights of a model, under which it may be trained before the rule is baked in."""

    def install(self, model: nn.Module) -> None: ...


Retrain = Callable[[nn.Module], None]


def compress(bundle: Bundle, steps: Sequence[Step], *, retrain: Retrain | None = None) -> Bundle:
    """Apply steps one after the other; each finds the zeros and values of those before.

    Args:
        bundle: a trained model of any kind; it is left as it is.
        steps: such as Prune, then Share.
        retrain: trains the model in place, the rule of the step in force; None: no training.

    Returns:
        The bundle with a model of the same recipe, which ``save`` writes in few bytes. What was measured on the
        original is no longer true, so its card calls that ``metrics_before``.

    Raises:
        ConfigError: there is no step, or one does not fit the model.
    """
    if not steps:
        raise ConfigError("compress: nothing to do; give --prune, --share, --ternary or --xnor")
    model = copy.deepcopy(bundle.model)
    for step in steps:
        step.install(model)
        if retrain is not None:
            retrain(model)
        bake(model)
    return replace(bundle, model=model.eval(), card=changed_card(bundle.card, steps), packed=True)


def changed_card(card: Mapping[str, Any], steps: Sequence[object]) -> dict[str, Any]:
    """The card of a bundle after steps, which are added to its list; its metrics are those from before."""
    changed = {name: value for name, value in card.items() if name not in ("metrics", "created")}
    changed["metrics_before"] = card.get("metrics_before") or card.get("metrics") or {}
    changed["compression"] = [*(card.get("compression") or []), *map(str, steps)]
    return changed
