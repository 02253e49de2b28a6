"""Every classification network that can serve as a pyramid, by name: timm's as they are called there, torchvision's as
"torchvision/resnet50", those written here as "visionapps/vgg_c"."""

import fnmatch
from collections.abc import Sequence

import timm
from timm.models import model_entrypoint

from visionapps.backbones.base import Backbone
from visionapps.backbones.hub import TORCHVISION
from visionapps.backbones.own_pyramid import list_own, own_pyramid, plan_own
from visionapps.backbones.timm_pyramid import timm_levels, timm_pyramid
from visionapps.backbones.torchvision_pyramid import TorchvisionPyramid, list_torchvision, plan_torchvision
from visionapps.backbones.weights import default_spec
from visionapps.errors import ConfigError
from visionapps.networks.catalogue import PREFIX
from visionapps.structures import InputSpec, Level

# Families of timm without a pyramid for images of any size: they have a fixed one, or want multiples of more than 32.
# Found by building all 1371 networks of timm 1.0.31; ``pyramid`` itself never asks this.
_WITHOUT_PYRAMID = frozenset(
    """
    beit cait coat convit crossvit efficientformer efficientformer_v2 efficientvim efficientvit_msra gcvit gemma4_vit
    hiera levit maxxvit mlp_mixer nest pit sequencer shvit tnt visformer vision_transformer_relpos volo
    """.split()  # noqa: SIM905
)
# The same in families that are fine otherwise: attention over the whole map, or patches that do not divide it.
_EXCEPTIONS = ("bat_resnext*", "*botne*", "*halo*", "lambda_resnet26rpt*", "mobilevitv2*")


def pyramid(
    name: str,
    *,
    spec: InputSpec | None = None,
    weights: str | None = None,
    strides: Sequence[int] = (2, 4, 8, 16, 32),
    output_stride: int = 32,
) -> Backbone:
    """A classification network as a feature pyramid. Nothing is read from disk or network but a file's header.

    Networks whose layers do not pad (Inception, Xception, NASNet) are given padding; those with one map only (plain
    transformers) a simple pyramid, which may have other strides than the wanted: see ``simple_levels``.

    Args:
        name: of timm, or "torchvision/" and a name there, or "visionapps/" and one written here; ``visionapps models
            --backbones`` lists them.
        spec: what the network eats; its number of bands decides the first convolution. None: what belongs to the
            weights, see ``default_spec``.
        weights: None or "random", "package", "hub", "hub:<tag>" or a file; they are recorded here and loaded by
            ``load_pretrained``.
        strides: which levels to give, out of those that the network has; stages past the last one are removed.
        output_stride: 16 or 8 keep the deep stages at that stride, with dilated convolutions. Of the maps that then
            share a stride, only the deepest becomes a level.

    Raises:
        ConfigError: there is no such network, or it has no pyramid, a fixed image size, or no dilation.
    """
    # A word for none at all: on the command line, null does not reach an argument this deep in a config.
    weights = None if weights == "random" else weights
    _check_output_stride(name, output_stride)
    if name.startswith(PREFIX):
        return own_pyramid(name, spec=spec, weights=weights, strides=strides, output_stride=output_stride)
    if name.startswith(TORCHVISION):
        bands = len(spec.bands) if spec else 3
        plan = plan_torchvision(name, bands=bands, strides=strides, output_stride=output_stride)
        return TorchvisionPyramid(plan, spec=spec or default_spec(name, weights), weights=weights)
    return timm_pyramid(name, spec=spec, weights=weights, strides=strides, output_stride=output_stride)


def levels_of(
    name: str,
    *,
    spec: InputSpec | None = None,
    strides: Sequence[int] = (2, 4, 8, 16, 32),
    output_stride: int = 32,
) -> tuple[Level, ...]:
    """The levels that ``pyramid`` would give for the same arguments, without building it.

    Raises:
        ConfigError: as ``pyramid``.
    """
    _check_output_stride(name, output_stride)
    bands = len(spec.bands) if spec else 3
    if name.startswith(PREFIX):
        return plan_own(name, bands=bands, strides=strides, output_stride=output_stride).levels
    if name.startswith(TORCHVISION):
        return plan_torchvision(name, bands=bands, strides=strides, output_stride=output_stride).levels
    return timm_levels(name, bands=bands, strides=strides, output_stride=output_stride)


def _check_output_stride(name: str, output_stride: int) -> None:
    if output_stride not in (8, 16, 32):
        raise ConfigError(f"{name}: output_stride {output_stride} is not possible; choose 8, 16 or 32")


def list_pyramids(pattern: str = "*") -> list[str]:
    """Names of the networks that can serve as a pyramid: those written here, timm's in its order, torchvision's.

    Judged by family and name, without building any of them: in a later timm than 1.0.31 a new name may be listed
    that ``pyramid`` has to refuse.

    Args:
        pattern: shell-style wildcards, e.g. ``resnet*``.
    """
    theirs = [name for name in timm.list_models() if _may_be_pyramid(name)]
    return fnmatch.filter([*list_own(), *theirs, *list_torchvision()], pattern)


def _may_be_pyramid(name: str) -> bool:
    family = model_entrypoint(name).__module__.rsplit(".", 1)[-1]
    return family not in _WITHOUT_PYRAMID and not any(fnmatch.fnmatch(name, glob) for glob in _EXCEPTIONS)
