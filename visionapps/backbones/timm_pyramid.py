"""Any network of timm that has a feature pyramid, as a Backbone: strides and channels are probed, never typed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import timm
import torch
from timm.layers import Format
from timm.models import is_model, model_entrypoint, split_model_name_tag
from torch import Tensor, nn

from visionapps.backbones.base import Backbone
from visionapps.backbones.same_padding import same_padding
from visionapps.backbones.simple_pyramid import SimplePyramid, simple_levels
from visionapps.backbones.weights import default_spec, fit_state, read_state, weights_file
from visionapps.errors import ConfigError
from visionapps.networks.catalogue import unknown
from visionapps.structures import InputSpec, Level

# What must be said to networks of a fixed image size so that they take any; tried in this order.
_FREE_SIZE: tuple[dict[str, bool], ...] = ({}, {"strict_img_size": False}, {"dynamic_img_size": True})
_RAW = ("convnext", "resnetv2", "swin_transformer")  # families whose maps no layer normalises, see Backbone.raw
_OCTAVES = tuple(2**i for i in range(8))  # every stride that could be wanted


def timm_pyramid(
    name: str, *, spec: InputSpec | None, weights: str | None, strides: Sequence[int], output_stride: int
) -> Backbone:
    """A classification network of timm as a feature pyramid; see ``visionapps.backbones.pyramid``."""
    architecture = _known(name)
    spec = spec or default_spec(name, weights)
    plan = _plan(architecture, len(spec.bands), tuple(sorted(set(strides))), output_stride)
    return TimmPyramid(name, plan, spec=spec, weights=weights)


def timm_levels(name: str, *, bands: int, strides: Sequence[int], output_stride: int) -> tuple[Level, ...]:
    """The levels that ``timm_pyramid`` would give, without building anything."""
    return _plan(_known(name), bands, tuple(sorted(set(strides))), output_stride).levels


@dataclass(frozen=True)
class _Plan:
    """How to build a pyramid, found by building it once without memory (on the meta device)."""

    architecture: str
    levels: tuple[Level, ...]
    indices: tuple[int, ...]  # timm's out_indices
    options: tuple[tuple[str, Any], ...]  # more arguments of timm's constructor
    superfluous: tuple[str, ...]  # parameters that no level depends on
    removable: bool  # whether the maps survive the removal of stages that hold nothing else
    padded: bool  # whether its layers must be given padding
    single: Level | None  # the only map of a network without a pyramid, from which a simple one is made

    def build(self, bands: int) -> nn.Module:
        body: nn.Module = timm.create_model(
            self.architecture, features_only=True, in_chans=bands, out_indices=self.indices, **dict(self.options)
        )
        if self.padded:
            same_padding(body)
        if self.removable:
            _cut(body, self.superfluous)
        for name, parameter in body.named_parameters():
            if name in self.superfluous:
                parameter.requires_grad_(False)
        return body


class TimmPyramid(Backbone):
    """See ``pyramid``, which builds it.

    Attributes:
        name: timm name.
        weights: the setting that ``load_pretrained`` follows.
        body: timm's network.
        simple: makes the pyramid where the network has one map only; else None.
    """

    def __init__(self, name: str, plan: _Plan, *, spec: InputSpec, weights: str | None) -> None:
        super().__init__()
        self.name = name
        self.levels = plan.levels
        self.spec = spec
        self.weights = weights
        self.body = plan.build(len(spec.bands))
        self.simple = SimplePyramid(plan.single, plan.levels) if plan.single else None
        self.fresh = (self.simple.scales,) if self.simple is not None else ()
        self.raw = model_entrypoint(plan.architecture).__module__.rsplit(".", 1)[-1] in _RAW
        self._channels_last = _is_channels_last(self.body)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self.body(image)
        if self.simple is not None:
            single: tuple[Tensor, ...] = self.simple(maps[-1])
            return single
        if self._channels_last:
            return tuple(m.permute(0, 3, 1, 2).contiguous() for m in maps)
        return tuple(maps)

    def load_pretrained(self) -> None:
        if self.weights is None:
            return
        source = str(weights_file(self.weights) or f"weights {self.weights!r}")
        state = read_state(self.name, self.weights)
        fitted = fit_state(state, self.body.state_dict(), name=self.name, source=source, bands=len(self.spec.bands))
        self.body.load_state_dict(fitted)


def _known(name: str) -> str:
    """The architecture in a timm name, which may carry a tag of weights after a dot."""
    architecture = str(split_model_name_tag(name)[0])
    if is_model(architecture):
        return architecture
    raise unknown(name, timm.list_models(), "backbone", "`visionapps models --backbones PATTERN` lists them")


@lru_cache(maxsize=64)
def _plan(architecture: str, bands: int, strides: tuple[int, ...], output_stride: int) -> _Plan:
    """Choose and check the levels of a network."""
    dilation = {} if output_stride == 32 else {"output_stride": output_stride}
    complaint = ""
    for free, padded in (*((options, False) for options in _FREE_SIZE), ({}, True)):
        options = {**dilation, **free}
        try:
            body = _sketch(architecture, bands, options, padded)
        except (TypeError, AssertionError, ValueError, NotImplementedError, RuntimeError) as error:
            complaint = complaint or _why_not_built(architecture, output_stride, error)
            continue
        indices, own, single = _choose(architecture, body.feature_info.info, strides)
        levels = simple_levels(single, strides) if single else own
        if indices != tuple(body.feature_info.out_indices):
            body = _sketch(architecture, bands, {**options, "out_indices": indices}, padded)
        unit = levels[-1].stride
        wrong = _probe(body, own, bands, unit)
        if wrong is None:
            superfluous = _superfluous(body, bands, unit)
            _cut(body, superfluous)
            removable = _probe(body, own, bands, unit) is None
            return _Plan(architecture, levels, indices, tuple(options.items()), superfluous, removable, padded, single)
        coarsest = int(body.feature_info.info[-1]["reduction"])
        if coarsest > unit and _probe(body, own, bands, coarsest) is None:
            wrong = f"its maps fit images in multiples of {coarsest} only; add that to the strides {strides}"
        complaint = complaint or f"{architecture}: {wrong}"
    raise ConfigError(
        f"{complaint}; choose another backbone, for instance of the families resnet, efficientnet, convnext, swin"
    )


def _sketch(architecture: str, bands: int, options: dict[str, Any], padded: bool) -> Any:
    """The network with shapes but without numbers: no memory, no initialisation."""
    with torch.device("meta"):
        body = timm.create_model(architecture, features_only=True, in_chans=bands, **options).eval()
    if padded:
        same_padding(body)
    return body


def _why_not_built(architecture: str, output_stride: int, error: Exception) -> str:
    if output_stride != 32:
        return f"{architecture}: it cannot be dilated to output_stride {output_stride}; leave that at 32"
    return f"{architecture}: timm offers no feature pyramid of it ({str(error) or type(error).__name__})"


def _choose(
    architecture: str, maps: Sequence[dict[str, Any]], strides: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[Level, ...], Level | None]:
    """Of timm's maps, the deepest one at each of the wanted strides: their indices and levels.

    A network all of whose maps have one stride gives its last; that is then the third value, too.
    """
    # An entry without a module is a placeholder for a stride that the network passes through in silence.
    deepest = {int(m["reduction"]): (i, int(m["num_chs"])) for i, m in enumerate(maps) if m["module"]}
    single = next(Level(s, c) for s, (_, c) in deepest.items()) if len(deepest) == 1 else None
    if single:
        kept, offered = [single.stride], [level.stride for level in simple_levels(single, _OCTAVES)]
        possible = bool(simple_levels(single, strides))
    else:
        kept, offered = [s for s in strides if s in deepest], sorted(deepest)
        possible = bool(kept)
    if not possible:
        raise ConfigError(
            f"{architecture}: has maps of the strides {', '.join(map(str, offered))}, but none of the wanted "
            f"{', '.join(map(str, strides))}; ask for one of its own"
        )
    return tuple(deepest[s][0] for s in kept), tuple(Level(s, deepest[s][1]) for s in kept), single


def _probe(body: nn.Module, levels: tuple[Level, ...], bands: int, unit: int) -> str | None:
    """What is wrong with the sizes of the maps, at two image sizes in multiples of unit; None when all is right."""
    for height, width in ((7 * unit, 7 * unit), (3 * unit, 4 * unit)):
        try:
            maps = _maps(body, bands, height, width)
        except (AssertionError, RuntimeError, ValueError, IndexError) as error:
            size = f"images of {height}x{width} with {bands} bands"
            return f"it does not take {size}, only the size and bands it was made for ({str(error) or 'it asserts so'})"
        for got, level in zip(maps, levels, strict=True):
            expected = (level.channels, height // level.stride, width // level.stride)
            if tuple(got.shape[1:]) != expected:
                return (
                    f"its map of stride {level.stride} has (C, H, W) = {tuple(got.shape[1:])} for an image of "
                    f"{height}x{width}, not {expected}: layers without padding, or windows, shift it off the pixels"
                )
    return None


def _maps(body: nn.Module, bands: int, height: int, width: int) -> list[Tensor]:
    image = torch.zeros(1, bands, height, width, device="meta")
    maps: list[Tensor] = list(body(image))
    return [m.permute(0, 3, 1, 2) for m in maps] if _is_channels_last(body) else maps


def _is_channels_last(body: nn.Module) -> bool:
    # A FeatureGetterNet turns its maps to NCHW itself, and says so here.
    return bool(getattr(body, "output_fmt", None) == Format.NHWC)


def _superfluous(body: nn.Module, bands: int, unit: int) -> tuple[str, ...]:
    """Names of the parameters that no map depends on: timm keeps the unused stages of some families."""
    named = dict(body.named_parameters())
    with torch.enable_grad():  # the caller may build under no_grad
        total = torch.stack([m.sum() for m in _maps(body, bands, 3 * unit, 4 * unit)]).sum()
        gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return tuple(name for name, g in zip(named, gradients, strict=True) if g is None)


def _cut(body: nn.Module, superfluous: Sequence[str]) -> None:
    """Remove the trailing stages that only hold superfluous parameters."""
    unused = set(superfluous)
    for name, parent in list(body.named_modules()):
        while isinstance(parent, nn.Sequential) and len(parent) > 0:
            last = f"{name}.{next(reversed(parent._modules))}"
            parameters = [f"{last}.{p}" for p, _ in parent[-1].named_parameters()]
            if not parameters or not unused.issuperset(parameters):
                break
            del parent[-1]
