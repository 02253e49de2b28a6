"""Classification networks of torchvision as pyramids: their steps in order, and which of them end a level."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from visionapps.backbones.base import Backbone
from visionapps.backbones.hub import TORCHVISION
from visionapps.backbones.same_padding import same_padding
from visionapps.backbones.weights import fit_state, read_state, weights_file
from visionapps.errors import ConfigError
from visionapps.networks.catalogue import unknown
from visionapps.structures import InputSpec, Level

# How the networks of a module of torchvision compute: their children in the order of computation; ".*" stands for all
# children of one. What comes after (pooling, classifier, auxiliary heads) is left out.
_STEPS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("alexnet", "convnext", "densenet", "efficientnet", "mobilenetv2", "mobilenetv3"), ("features.*",)),
    **dict.fromkeys(("squeezenet", "swin_transformer", "vgg"), ("features.*",)),
    "mnasnet": ("layers.*",),
    "regnet": ("stem", "trunk_output.*"),
    "resnet": ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"),
    "shufflenetv2": ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"),
    "googlenet": (
        *("conv1", "maxpool1", "conv2", "conv3", "maxpool2", "inception3a", "inception3b", "maxpool3"),
        *("inception4a", "inception4b", "inception4c", "inception4d", "inception4e", "maxpool4"),
        *("inception5a", "inception5b"),
    ),
    "inception": (
        *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
        *("maxpool2", "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
        *("Mixed_7a", "Mixed_7b", "Mixed_7c"),
    ),
}
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": False, "transform_input": False},
    "inception_v3": {"aux_logits": False, "init_weights": False, "transform_input": False},
}
# Of networks that are no pyramid, but classify.
_CLASSIFIER_STEPS: Mapping[str, tuple[str, ...]] = {"maxvit": ("stem", "blocks.*")}
_CHANNELS_LAST = ("swin_transformer",)  # their maps are (B, H, W, C)
_RAW = ("convnext", "swin_transformer")  # families whose maps no layer normalises, see Backbone.raw
_PROBES = ((7, 7), (3, 4))  # sizes of the images, in multiples of 32


def plan_torchvision(
    name: str,
    *,
    bands: int = 3,
    strides: Sequence[int] = (2, 4, 8, 16, 32),
    output_stride: int = 32,
    taps: Sequence[str] | None = None,
) -> "Plan":
    """Plan a pyramid of one of torchvision's networks.

    Args:
        name: "torchvision/" and the name of a function of torchvision.models that builds a classifier.
        bands: of the image.
        strides: which levels to give, out of those that the network has; steps past the last one are removed.
        output_stride: 16 or 8 keep the deep stages of a ResNet at that stride, with dilated convolutions.
        taps: the names of the steps whose maps are the levels ("features.13"), whatever strides were wanted; two
            may then have the same. None: the last step of each stride.

    Raises:
        ConfigError: torchvision has no such network, or it has no pyramid of any size, or no such step.
    """
    plan = _plan(name, bands, output_stride)
    last: dict[int, tuple[str, Level]] = {}
    for step in plan:
        last[step[1].stride] = step
    if taps is not None:
        known = dict(plan)
        if lost := [tap for tap in taps if tap not in known]:
            raise ConfigError(f"{name}: has no step {', '.join(lost)}; it computes {', '.join(known)}")
        chosen = [(step, level) for step, level in plan if step in taps]
    else:
        chosen = [last[s] for s in sorted(set(strides)) if s in last]
    if not chosen:
        raise ConfigError(
            f"{name}: has maps of the strides {', '.join(map(str, last))}, but none of the wanted "
            f"{', '.join(map(str, strides))}; ask for one of its own"
        )
    return Plan(name, output_stride, tuple(step for step, _ in chosen), tuple(level for _, level in chosen))


@dataclass(frozen=True)
class Plan:
    """A network, and which of its steps end a level."""

    name: str
    output_stride: int
    taps: tuple[str, ...]
    levels: tuple[Level, ...]

    def steps(self, bands: int) -> "OrderedDict[str, nn.Module]":
        """The steps up to the last level, with random weights."""
        steps = _build(self.name, bands, self.output_stride, _padded(self.name, bands, self.output_stride))
        last = list(steps).index(self.taps[-1])
        return OrderedDict(list(steps.items())[: last + 1])


class TorchvisionPyramid(Backbone):
    """A network of torchvision, step by step. Its weights have torchvision's names, but for dots in that of a step.

    Attributes:
        name: with "torchvision/" before it.
        weights: the setting that ``load_pretrained`` follows.
        body: the steps.
    """

    def __init__(self, plan: Plan, *, spec: InputSpec, weights: str | None) -> None:
        super().__init__()
        self.name = plan.name
        self.levels = plan.levels
        self.spec = spec
        self.weights = weights
        self.taps = tuple(_key(tap) for tap in plan.taps)
        self.channels_last = _family(plan.name) in _CHANNELS_LAST
        self.raw = _family(plan.name) in _RAW
        self.body = nn.ModuleDict({_key(step): module for step, module in plan.steps(len(spec.bands)).items()})

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for step, module in self.body.items():
            image = module(image)
            if step in self.taps:
                maps.append(image.permute(0, 3, 1, 2).contiguous() if self.channels_last else image)
        return tuple(maps)

    def load_pretrained(self) -> None:
        if self.weights is None:
            return
        source = str(weights_file(self.weights) or f"weights {self.weights!r}")
        state = read_state(self.name, self.weights)
        fitted = fit_state(state, self.body.state_dict(), name=self.name, source=source, bands=len(self.spec.bands))
        self.body.load_state_dict(fitted)


def list_torchvision() -> list[str]:
    """Names of torchvision's networks that can serve as a pyramid, with "torchvision/" before each."""
    from torchvision import models

    names = [TORCHVISION + name for name in models.list_models(module=models)]
    return [name for name in names if _family(name) in _STEPS]


def _family(name: str) -> str:
    from torchvision import models

    builder = models.get_model_builder(name.removeprefix(TORCHVISION))
    return str(builder.__module__).rsplit(".", 1)[-1]


def _key(step: str) -> str:
    return step.replace(".", "_")  # a name in a ModuleDict has no dots


def _known(name: str) -> None:
    from torchvision import models

    own = name.removeprefix(TORCHVISION)
    names = models.list_models(module=models)
    if own not in names:
        theirs = [TORCHVISION + each for each in names]
        raise unknown(name, theirs, "backbone", "`visionapps models --backbones torchvision/` lists torchvision's")
    if _family(name) not in _STEPS:
        raise ConfigError(
            f"{name}: is made for images of one size, so it is no pyramid; choose a network of timm in its place, for "
            "instance vit_base_patch16_224"
        )


@lru_cache(maxsize=64)
def _plan(name: str, bands: int, output_stride: int) -> tuple[tuple[str, Level], ...]:
    """Every step with its true stride and channels."""
    _known(name)
    return _probe(name, bands, output_stride, _padded(name, bands, output_stride))


@lru_cache(maxsize=64)
def _padded(name: str, bands: int, output_stride: int) -> bool:
    """Whether the network must be given padding, because some of its maps are not a whole part of the image."""
    try:
        _probe(name, bands, output_stride, False)
    except ConfigError:
        return True
    return False


def _probe(name: str, bands: int, output_stride: int, padded: bool) -> tuple[tuple[str, Level], ...]:
    with torch.device("meta"):
        steps = _build(name, bands, output_stride, padded)
    found: dict[str, Level] = {}
    for multiples in _PROBES:
        height, width = (32 * m for m in multiples)
        image = torch.zeros(1, bands, height, width, device="meta")
        for step, module in steps.items():
            image = module.eval()(image)
            channels, rows, cols = image.shape[1:]
            if _family(name) in _CHANNELS_LAST:
                rows, cols, channels = image.shape[1:]
            level = Level(height // rows, channels)
            if (rows * level.stride, cols * level.stride) != (height, width) or found.get(step, level) != level:
                raise ConfigError(
                    f"{name}: its map {step} has (C, H, W) = {(channels, rows, cols)} for an image of "
                    f"{height}x{width}: layers without padding shift it off the pixels; choose another backbone"
                )
            found[step] = level
    return tuple(found.items())


def _build(name: str, bands: int, output_stride: int, padded: bool) -> "OrderedDict[str, nn.Module]":
    """The steps of a network by their names in it, in the order of computation."""
    from torchvision import models

    own, family = name.removeprefix(TORCHVISION), _family(name)
    options = dict(_OPTIONS.get(own, {}))
    if output_stride != 32:
        if family != "resnet" or own in ("resnet18", "resnet34"):
            raise ConfigError(f"{name}: it cannot be dilated to output_stride {output_stride}; leave that at 32")
        options["replace_stride_with_dilation"] = [False, output_stride == 8, True]
    if family == "regnet":  # it computes its widths with tensors, which must have values
        device = torch.get_default_device()
        with torch.device("cpu"):
            network = models.get_model(own, weights=None, **options)
        network = network.to(device)
    else:
        network = models.get_model(own, weights=None, **options)
    if padded:
        same_padding(network)
    steps = chain_of(network, _STEPS[family])
    take_bands(steps, bands)
    return steps


def chain_of(network: nn.Module, names: Sequence[str]) -> "OrderedDict[str, nn.Module]":
    """Parts of a network by their names in it; "features.*" stands for all children of that one."""
    steps: OrderedDict[str, nn.Module] = OrderedDict()
    for step in names:
        if step.endswith(".*"):
            parent = step.removesuffix(".*")
            steps.update((f"{parent}.{n}", child) for n, child in network.get_submodule(parent).named_children())
        else:
            steps[step] = network.get_submodule(step)
    return steps


def classifier_steps(network: nn.Module, family: str) -> "OrderedDict[str, nn.Module]":
    """The steps of a network of torchvision before its head; a key is the name of a step without dots."""
    names = _STEPS.get(family) or _CLASSIFIER_STEPS[family]
    return OrderedDict((_key(step), part) for step, part in chain_of(network, names).items())


def take_bands(steps: "OrderedDict[str, nn.Module]", bands: int) -> None:
    """Let the first convolution eat another number of bands than three."""
    if bands == 3:
        return
    for name, step in steps.items():
        for path, layer in step.named_modules():
            if not isinstance(layer, nn.Conv2d):
                continue
            first = nn.Conv2d(
                bands,
                layer.out_channels,
                (layer.kernel_size[0], layer.kernel_size[1]),
                stride=(layer.stride[0], layer.stride[1]),
                padding=layer.padding if isinstance(layer.padding, str) else (layer.padding[0], layer.padding[1]),
                bias=layer.bias is not None,
            )
            if path:
                step.set_submodule(path, first)
            else:
                steps[name] = first
            return
