"""How parts become a model: one short function per kind, with plain arguments that a YAML file can hold.

Each returns a model that remembers in ``recipe`` how it was built, so that a bundle can build it again: build().
"""

from collections.abc import Callable, Mapping
from typing import Any

from visionapps.classification.base import Classifier
from visionapps.detection.base import Detector
from visionapps.models.classification import classifier
from visionapps.models.detection import fast_rcnn, faster_rcnn, mask_rcnn, retinanet, sppnet
from visionapps.models.levels import level_classifier
from visionapps.models.papers import fast_rcnn_2015, faster_rcnn_2015, sppnet_2014
from visionapps.models.published import torchvision_detector
from visionapps.models.published_maps import deconvnet_2015, fcn8s_2015, fcn16s_2015, fcn32s_2015, unet_2015
from visionapps.models.recipes import rebuild
from visionapps.models.segmentation import deconvnet, enet, fcn8s, fcn16s, fcn32s, smp, unet
from visionapps.segmentation.base import Segmentor

SEGMENTORS: dict[str, Callable[..., Segmentor]] = {
    f.__name__: f
    for f in (
        *(fcn32s, fcn16s, fcn8s, unet, deconvnet, enet, smp),
        *(fcn32s_2015, fcn16s_2015, fcn8s_2015, deconvnet_2015, unet_2015),
    )
}
DETECTORS: dict[str, Callable[..., Detector]] = {
    f.__name__: f
    for f in (
        *(faster_rcnn, mask_rcnn, fast_rcnn, sppnet, retinanet, torchvision_detector),
        *(faster_rcnn_2015, fast_rcnn_2015, sppnet_2014),
    )
}
CLASSIFIERS: dict[str, Callable[..., Classifier]] = {f.__name__: f for f in (classifier, level_classifier)}
WIRINGS: dict[str, Callable[..., Segmentor | Detector | Classifier]] = {**SEGMENTORS, **DETECTORS, **CLASSIFIERS}

__all__ = [
    "CLASSIFIERS",
    "DETECTORS",
    "SEGMENTORS",
    "WIRINGS",
    "build",
    "classifier",
    "deconvnet",
    "deconvnet_2015",
    "enet",
    "fast_rcnn",
    "fast_rcnn_2015",
    "faster_rcnn",
    "faster_rcnn_2015",
    "fcn8s",
    "fcn8s_2015",
    "fcn16s",
    "fcn16s_2015",
    "fcn32s",
    "fcn32s_2015",
    "level_classifier",
    "mask_rcnn",
    "retinanet",
    "smp",
    "sppnet",
    "sppnet_2014",
    "torchvision_detector",
    "unet",
    "unet_2015",
]


def build(recipe: Mapping[str, Any]) -> Segmentor | Detector | Classifier:
    """Build the model that a recipe describes, with random weights; see ``rebuild``."""
    return rebuild(recipe, WIRINGS)
