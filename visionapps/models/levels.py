"""How a level of a feature pyramid becomes a classifier."""

from visionapps.backbones.zoo import levels_of, pyramid
from visionapps.classification.levels import BinnedHead, LevelClassifier, LevelNetwork, Pooling
from visionapps.errors import ConfigError
from visionapps.models.recipes import remember
from visionapps.structures import InputSpec


@remember
def level_classifier(
    backbone: str,
    num_classes: int,
    *,
    stride: int = 32,
    bins: tuple[int, ...] = (1,),
    pooling: Pooling = "average",
    weights: str | None = None,
    spec: InputSpec | None = None,
) -> LevelClassifier:
    """A classifier on one level of any backbone that is a pyramid: the map of a stride, pooled, and a linear layer.

    Args:
        backbone: its name; `visionapps models --backbones` lists them.
        num_classes: K, at least 1.
        stride: of the map, in pixels; what comes after it is left out.
        bins: along a side, that the map is pooled to: (1,) is global pooling, (1, 2, 3, 6) a spatial pyramid.
        pooling: average or max.
        weights: package, hub, hub:TAG, a file, or random (None); loaded on request.
        spec: bands and normalisation of the input; None: those of the weights.

    Raises:
        ConfigError: the backbone has no such map.
    """
    if num_classes < 1:
        raise ConfigError(f"{backbone}: num_classes {num_classes} must be at least 1")
    strides = [level.stride for level in levels_of(backbone, spec=spec)]
    if stride not in strides:
        raise ConfigError(f"{backbone}: has no map of stride {stride}; choose one of {', '.join(map(str, strides))}")
    body = pyramid(backbone, spec=spec, weights=weights, strides=(stride,))
    head = BinnedHead(body.levels[-1].channels, num_classes, tuple(bins), pooling)
    return LevelClassifier(LevelNetwork(body, head), num_classes)
