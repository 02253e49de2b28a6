"""Which layers of a model are compressed: those whose weights make up its size."""

import fnmatch
from collections.abc import Sequence

from torch import nn
from torch.nn.utils import parametrize

from visionapps.errors import ConfigError

KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)


def weight_layers(model: nn.Module, *, keep: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Convolutions and linear layers by name, in the model's order. Norms and biases, a few numbers each, are not.

    Args:
        model: any network.
        keep: patterns of names (``*objectness*``) of layers to leave as they are.

    Raises:
        ConfigError: a pattern matches no layer, or no layer is left.
    """
    found: dict[str, nn.Module] = {name: module for name, module in model.named_modules() if isinstance(module, KINDS)}
    for pattern in keep:
        if not fnmatch.filter(found, pattern):
            raise ConfigError(
                f"keep {pattern!r}: no layer has such a name; the model has {', '.join([*found][:3])} and "
                f"{max(0, len(found) - 3)} more"
            )
    chosen = {name: m for name, m in found.items() if not any(fnmatch.fnmatchcase(name, each) for each in keep)}
    if not chosen:
        raise ConfigError("compression: the model has no convolution or linear layer, or all of them are to be kept")
    return chosen


def inner_layers(model: nn.Module, *, keep: Sequence[str] = ()) -> dict[str, nn.Module]:
    """The same without the first and the last one, which stay exact where weights become one of two or three values.

    Source: Zhu, Han, Mao and Dally, Trained Ternary Quantization, 2017, section 5; Rastegari et al., XNOR-Net, 2016.
    """
    layers = weight_layers(model, keep=keep)
    names = list(weight_layers(model))
    inner = {name: module for name, module in layers.items() if name not in (names[0], names[-1])}
    if not inner:
        raise ConfigError(f"compression: {len(names)} layers with weights, and the first and the last one stay exact")
    return inner


def impose(module: nn.Module, rule: nn.Module) -> None:
    """Let a rule make a layer's weight from what is trained, until ``bake``.

    Args:
        module: a layer with ``weight``.
        rule: a tensor to one of its shape.
    """
    parametrize.register_parametrization(module, "weight", rule)


def bake(model: nn.Module) -> None:
    """Make the weights that rules give the weights themselves, and end the rules."""
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
            module.weight.requires_grad_(True)
