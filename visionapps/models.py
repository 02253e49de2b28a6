"""How parts become a model: one short function per kind, with plain arguments that a YAML file can hold.

Each returns a Segmentor that remembers in ``recipe`` how it was built, so that a bundle can build it again: build().
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

from visionapps.backbones import pyramid
from visionapps.backbones.base import Backbone
from visionapps.errors import ConfigError, WeightsError
from visionapps.segmentation.base import Decoder, Segmentor
from visionapps.segmentation.deconvnet import DeconvNet
from visionapps.segmentation.fcn import FCN
from visionapps.segmentation.smp import SmpDecoder, demand
from visionapps.segmentation.unet import UNet, Upsample
from visionapps.structures import InputSpec

P = ParamSpec("P")

STRIDES = (2, 4, 8, 16, 32)
MOST_CLASSES = 255  # labels are 8 bit, and one of their 256 values means "ignore"


def _remember(wire: Callable[P, Segmentor]) -> Callable[P, Segmentor]:
    """Let a wiring function put its name and arguments, as plain data, on the model it returns."""
    signature = inspect.signature(wire)

    @functools.wraps(wire)
    def wired(*args: P.args, **kwargs: P.kwargs) -> Segmentor:
        model = wire(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        # The spec that the weights brought, and no weights: whoever builds it again has trained ones to load.
        known = {"weights": None, "spec": model.spec.to_dict()}
        arguments = {name: _plain(name, known.get(name, value)) for name, value in bound.arguments.items()}
        model.recipe = {"model": wire.__name__, "arguments": arguments}
        return model

    return wired


@_remember
def fcn32s(
    backbone: str,
    num_classes: int,
    *,
    weights: str | None = None,
    spec: InputSpec | None = None,
    head_channels: int | None = None,
    dropout: float = 0.5,
) -> Segmentor:
    """FCN-32s: scores of the stride-32 map, upsampled by one learned deconvolution (Long et al., 2015).

    Args:
        backbone: a timm model; `visionapps models --backbones` lists them.
        num_classes: K, 1 to 255.
        weights: of the backbone: package, hub, a file, or random (None); loaded on request.
        spec: bands and normalisation of the input; None: those of the weights.
        head_channels: width of the paper's two head convolutions (4096 for VGG); None: no head.
        dropout: before the score, in [0, 1).
    """
    return _fcn(32, backbone, num_classes, weights=weights, spec=spec, head_channels=head_channels, dropout=dropout)


@_remember
def fcn16s(
    backbone: str,
    num_classes: int,
    *,
    weights: str | None = None,
    spec: InputSpec | None = None,
    head_channels: int | None = None,
    dropout: float = 0.5,
) -> Segmentor:
    """FCN-16s: FCN-32s joined by scores of the stride-16 map (Long et al., 2015).

    Args:
        backbone: a timm model; `visionapps models --backbones` lists them.
        num_classes: K, 1 to 255.
        weights: of the backbone: package, hub, a file, or random (None); loaded on request.
        spec: bands and normalisation of the input; None: those of the weights.
        head_channels: width of the paper's two head convolutions (4096 for VGG); None: no head.
        dropout: before the score, in [0, 1).
    """
    return _fcn(16, backbone, num_classes, weights=weights, spec=spec, head_channels=head_channels, dropout=dropout)


@_remember
def fcn8s(
    backbone: str,
    num_classes: int,
    *,
    weights: str | None = None,
    spec: InputSpec | None = None,
    head_channels: int | None = None,
    dropout: float = 0.5,
) -> Segmentor:
    """FCN-8s: FCN-16s joined by scores of the stride-8 map (Long et al., 2015).

    Args:
        backbone: a timm model; `visionapps models --backbones` lists them.
        num_classes: K, 1 to 255.
        weights: of the backbone: package, hub, a file, or random (None); loaded on request.
        spec: bands and normalisation of the input; None: those of the weights.
        head_channels: width of the paper's two head convolutions (4096 for VGG); None: no head.
        dropout: before the score, in [0, 1).
    """
    return _fcn(8, backbone, num_classes, weights=weights, spec=spec, head_channels=head_channels, dropout=dropout)


@_remember
def unet(
    backbone: str,
    num_classes: int,
    *,
    weights: str | None = None,
    spec: InputSpec | None = None,
    channels: Sequence[int] = (256, 128, 64, 32, 16),
    upsample: Upsample = "bilinear",
    finest_stride: int = 1,
) -> Segmentor:
    """U-Net on a backbone: skip connections at every stride (Ronneberger et al., 2015).

    Args:
        backbone: a timm model; `visionapps models --backbones` lists them.
        num_classes: K, 1 to 255.
        weights: of the backbone: package, hub, a file, or random (None); loaded on request.
        spec: bands and normalisation of the input; None: those of the weights.
        channels: width of each step, coarsest first.
        upsample: bilinear, nearest, or deconv (the paper's learned 2 x 2 up-convolution).
        finest_stride: input pixels per logit pixel before the last interpolation: 1, 2 or 4; greater is faster.
    """
    strides = tuple(stride for stride in STRIDES if stride >= finest_stride)
    body = _backbone(backbone, num_classes, weights=weights, spec=spec, strides=strides)
    head = UNet(body.levels, num_classes, channels=channels, upsample=upsample, finest_stride=finest_stride)
    return Segmentor(body, head, num_classes)


@_remember
def deconvnet(
    backbone: str,
    num_classes: int,
    *,
    weights: str | None = None,
    spec: InputSpec | None = None,
    channels: Sequence[int] = (256, 128, 64, 32, 16),
) -> Segmentor:
    """DeconvNet on a backbone: unpooling to the places of maxima, then deconvolution (Noh et al., 2015).

    Args:
        backbone: a timm model; `visionapps models --backbones` lists them.
        num_classes: K, 1 to 255.
        weights: of the backbone: package, hub, a file, or random (None); loaded on request.
        spec: bands and normalisation of the input; None: those of the weights.
        channels: width of each map, coarsest first.
    """
    body = _backbone(backbone, num_classes, weights=weights, spec=spec, strides=STRIDES)
    return Segmentor(body, DeconvNet(body.levels, num_classes, channels=channels), num_classes)


@_remember
def smp(
    decoder: str,
    backbone: str,
    num_classes: int,
    *,
    weights: str | None = None,
    spec: InputSpec | None = None,
    options: dict[str, Any] | None = None,
) -> Segmentor:
    """A decoder of segmentation_models_pytorch on a backbone.

    Args:
        decoder: Unet, UnetPlusPlus, MAnet, Linknet, FPN, PSPNet, PAN, DeepLabV3, DeepLabV3Plus, UPerNet or Segformer.
        backbone: a timm model; `visionapps models --backbones` lists them.
        num_classes: K, 1 to 255.
        weights: of the backbone: package, hub, a file, or random (None); loaded on request.
        spec: bands and normalisation of the input; None: those of the weights.
        options: the decoder's own, named as there: decoder_channels, encoder_depth, encoder_output_stride, ...
    """
    wanted = demand(decoder, options)
    body = _backbone(
        backbone, num_classes, weights=weights, spec=spec, strides=wanted.strides, output_stride=wanted.output_stride
    )
    return Segmentor(body, SmpDecoder(body.levels, num_classes, name=decoder, options=options), num_classes)


WIRINGS: dict[str, Callable[..., Segmentor]] = {f.__name__: f for f in (fcn32s, fcn16s, fcn8s, unet, deconvnet, smp)}


def build(recipe: Mapping[str, Any]) -> Segmentor:
    """Build the model that a recipe describes, with random weights.

    Only the functions in WIRINGS can be named: a recipe comes from a file, and must not choose what code runs.

    Args:
        recipe: {"model": name, "arguments": {...}} as in Segmentor.recipe.

    Raises:
        WeightsError: the recipe is malformed, or names a model or an argument that this version does not have.
        ConfigError: an argument has a value that the model cannot take.
    """
    name, arguments = recipe.get("model"), recipe.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise WeightsError('recipe: expected {"model": a name, "arguments": a mapping}; export the bundle again')
    if name not in WIRINGS:
        raise WeightsError(
            f"recipe: unknown model {name!r}, this version of visionapps has {', '.join(WIRINGS)}; "
            "use the version that wrote it"
        )
    chosen = dict(arguments)
    try:
        if isinstance(chosen.get("spec"), Mapping):
            chosen["spec"] = InputSpec.from_dict(chosen["spec"])
        return WIRINGS[name](**chosen)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"recipe: {name} cannot be built: {error}; use the version that wrote it") from error


def _fcn(
    finest_stride: int,
    backbone: str,
    num_classes: int,
    *,
    weights: str | None,
    spec: InputSpec | None,
    head_channels: int | None,
    dropout: float,
) -> Segmentor:
    strides = tuple(stride for stride in STRIDES if stride >= finest_stride)
    body = _backbone(backbone, num_classes, weights=weights, spec=spec, strides=strides)
    head: Decoder = FCN(
        body.levels, num_classes, finest_stride=finest_stride, head_channels=head_channels, dropout=dropout
    )
    return Segmentor(body, head, num_classes)


def _backbone(
    name: str,
    num_classes: int,
    *,
    weights: str | None,
    spec: InputSpec | None,
    strides: Sequence[int],
    output_stride: int = 32,
) -> Backbone:
    if not 1 <= num_classes <= MOST_CLASSES:
        raise ConfigError(f"num_classes is {num_classes}; choose 1 to {MOST_CLASSES}")
    return pyramid(name, spec=spec, weights=weights, strides=strides, output_stride=output_stride)


def _plain(name: str, value: Any) -> Any:
    """The value as JSON and YAML can hold it; tuples become lists."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    raise ConfigError(
        f"argument {name}: {type(value).__name__} cannot be kept in a bundle; give numbers, text, lists or mappings"
    )
