"""Classifiers of timm and torchvision behind the contract of visionapps.networks.base: features, then a head.

Shapes: B images, C bands, H x W pixels, D channels and h x w pixels of the last map, N tokens, K classes.
"""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import timm
import torch
from torch import Tensor, nn

from visionapps.backbones.hub import TORCHVISION
from visionapps.backbones.torchvision_pyramid import classifier_steps, take_bands
from visionapps.errors import ConfigError
from visionapps.networks.base import Network

_NATIVE = 224  # px; where a library does not say
_MAXVIT_UNIT = 224  # px; windows of 7 x 7 on a map of stride 32


def timm_network(architecture: str, *, num_classes: int, bands: int, side: int | None) -> Network:
    """A classifier of timm. Its ``features`` are one step, timm's ``forward_features``: transformers give tokens
    (B, N, D), some give (B, h, w, D); its ``head`` takes just that.

    Raises:
        ConfigError: timm cannot build it so.
    """
    options: dict[str, Any] = {"img_size": side} if side is not None and _is_sized(architecture) else {}
    try:
        model = timm.create_model(architecture, num_classes=num_classes, in_chans=bands, **options)
        heads = _head_parts(architecture, tuple(options.items()))
    except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError) as error:
        raise ConfigError(
            f"{architecture}: timm cannot build this classifier with {num_classes} classes, {bands} bands and images "
            f"of {side or 'its own'} px ({' '.join(str(error).split())}); choose another network"
        ) from error
    native = side or int(getattr(model, "pretrained_cfg", {}).get("input_size", (3, _NATIVE, _NATIVE))[-1])
    return LibraryNetwork(OrderedDict(body=_TimmFeatures(_part(model, heads, False))), _TimmHead(model, heads), native)


class LibraryNetwork(Network):
    """A network of a library, cut where its features end.

    Args:
        steps: of the features, by name.
        head: what follows.
        native: side in pixels of the images that it was published for.
    """

    def __init__(self, steps: "OrderedDict[str, nn.Module]", head: nn.Module, native: int) -> None:
        super().__init__()
        self.features = nn.Sequential(steps)
        self.head = head
        self.native = native


class _TimmFeatures(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        features: Tensor = self.model.forward_features(image)  # type: ignore[operator]
        return features


class _TimmHead(nn.Module):
    """timm's head: pooling, norms, dropout and the classifier."""

    def __init__(self, model: nn.Module, parts: frozenset[str]) -> None:
        super().__init__()
        self.body = _part(model, parts, True)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.body.forward_head(features)  # type: ignore[operator]
        return logits

    def pooled(self, features: Tensor) -> Tensor:
        """What the last layer sees: (B, D)."""
        vectors: Tensor = self.body.forward_head(features, pre_logits=True)  # type: ignore[operator]
        return vectors


def _part(model: nn.Module, heads: frozenset[str], wanted: bool) -> nn.Module:
    """The same network with the children of its head alone, or without them: neither part uses the other's."""
    part = copy.copy(model)
    part._modules = {n: child for n, child in model._modules.items() if (n in heads) == wanted}
    if wanted:  # class tokens and position embeddings belong to the features
        part._parameters, part._buffers = {}, {}
    return part


@lru_cache(maxsize=64)
def _is_sized(architecture: str) -> bool:
    """Whether a network of timm takes the size of its images as an argument."""
    with torch.device("meta"):
        try:
            timm.create_model(architecture, img_size=_NATIVE)
        except TypeError:
            return False
        except (ValueError, RuntimeError, AssertionError):  # it does, and not this one
            return True
    return True


@lru_cache(maxsize=64)
def _head_parts(architecture: str, options: tuple[tuple[str, Any], ...]) -> frozenset[str]:
    """The children that only ``forward_head`` calls, found by calling both without memory (on the meta device)."""
    with torch.device("meta"):
        model = timm.create_model(architecture, num_classes=2, **dict(options)).eval()
        called: set[str] = set()

        def noted(name: str) -> Any:
            return lambda *_: called.add(name)

        for child, part in model.named_children():
            for module in part.modules():
                module.register_forward_hook(noted(child))
        size = dict(options).get("img_size") or model.pretrained_cfg["input_size"][-1]
        features = model.forward_features(torch.zeros(2, 3, size, size))
        before = set(called)
        called.clear()
        model.forward_head(features)
    return frozenset(called - before)


# What follows the features of torchvision's families: children by name, or one of _PLAIN. Steps of the features are
# those of the pyramids; see torchvision_pyramid.
_HEADS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("alexnet", "vgg", "efficientnet", "mobilenetv3"), ("avgpool", "flatten", "classifier")),
    "convnext": ("avgpool", "classifier"),
    "densenet": ("relu", "mean", "classifier"),
    **dict.fromkeys(("mobilenetv2", "mnasnet"), ("mean", "classifier")),
    "shufflenetv2": ("mean", "fc"),
    **dict.fromkeys(("resnet", "regnet"), ("avgpool", "flatten", "fc")),
    **dict.fromkeys(("googlenet", "inception"), ("avgpool", "flatten", "dropout", "fc")),
    "squeezenet": ("classifier", "flatten"),
    "swin_transformer": ("norm", "permute", "avgpool", "flatten", "head"),
    "maxvit": ("classifier",),
    "vision_transformer": ("heads",),
}


class _Mean(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.mean((2, 3))


_PLAIN: Mapping[str, type[nn.Module]] = {"flatten": nn.Flatten, "mean": _Mean, "relu": nn.ReLU}


class _Tokens(nn.Module):
    """torchvision's transformer up to its class token: (B, C, H, W) to (B, D)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = _part(model, frozenset({"heads"}), False)

    def forward(self, image: Tensor) -> Tensor:
        model: Any = self.model
        patches: Tensor = model._process_input(image)
        tokens = torch.cat((model.class_token.expand(len(patches), -1, -1), patches), 1)
        first: Tensor = model.encoder(tokens)[:, 0]
        return first


def torchvision_network(name: str, *, num_classes: int, bands: int, side: int | None) -> Network:
    """A classifier of torchvision, step by step.

    Raises:
        ConfigError: there is no such classifier, or not for such images.
    """
    from torchvision import models

    own = name.removeprefix(TORCHVISION)
    family = str(models.get_model_builder(own).__module__).rsplit(".", 1)[-1]
    options: dict[str, Any] = {"num_classes": num_classes}
    if side is not None and family == "vision_transformer":
        options["image_size"] = side
    if side is not None and family == "maxvit":
        options["input_size"] = (side, side)
    if family in ("googlenet", "inception"):
        options |= {"aux_logits": False, "init_weights": True, "transform_input": False}
    model = _built(name, family, options, bands=bands, side=side)
    if family == "vision_transformer":
        steps = OrderedDict[str, nn.Module](body=_Tokens(model))
    else:
        steps = classifier_steps(model, family)
    take_bands(steps, bands)
    head = OrderedDict(
        (part, _PLAIN[part]() if part in _PLAIN else model.get_submodule(part)) for part in _HEADS[family]
    )
    published = list(models.get_model_weights(own))
    native = side or (int(published[0].transforms().crop_size[0]) if published else _NATIVE)
    return LibraryNetwork(steps, nn.Sequential(head), native)


def _built(name: str, family: str, options: dict[str, Any], *, bands: int, side: int | None) -> nn.Module:
    from torchvision import models

    own = name.removeprefix(TORCHVISION)
    device = torch.get_default_device()
    try:
        # It computes widths with tensors, which must have values.
        with torch.device("cpu" if family == "regnet" else device):
            model: nn.Module = models.get_model(own, weights=None, **options)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        advice = "choose another network"
        if side is not None and family in ("vision_transformer", "maxvit"):
            unit = _MAXVIT_UNIT if family == "maxvit" else int(own.rpartition("_")[-1])
            advice = f"the nearest legal size is {max(unit, (side + unit // 2) // unit * unit)} px"
        raise ConfigError(
            f"{name}: torchvision cannot build this classifier with {options['num_classes']} classes, {bands} bands "
            f"and images of {side or 'its own'} px ({' '.join(str(error).split())}); {advice}"
        ) from error
    return model.to(device) if family == "regnet" else model
