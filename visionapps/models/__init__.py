"""How parts become a model: one short function per kind, with plain arguments that a YAML file can hold.

Each returns a model that remembers in ``recipe`` how it was built, so that a bundle can build it again: build().
"""

from collections.abc import Callable, Mapping
from typing import Any

from visionapps.detection.base import Detector
from visionapps.models.recipes import rebuild
from visionapps.models.segmentation import deconvnet, fcn8s, fcn16s, fcn32s, smp, unet
from visionapps.segmentation.base import Segmentor

SEGMENTORS: dict[str, Callable[..., Segmentor]] = {f.__name__: f for f in (fcn32s, fcn16s, fcn8s, unet, deconvnet, smp)}
DETECTORS: dict[str, Callable[..., Detector]] = {}
WIRINGS: dict[str, Callable[..., Segmentor | Detector]] = {**SEGMENTORS, **DETECTORS}

__all__ = ["DETECTORS", "SEGMENTORS", "WIRINGS", "build", "deconvnet", "fcn8s", "fcn16s", "fcn32s", "smp", "unet"]


def build(recipe: Mapping[str, Any]) -> Segmentor | Detector:
    """Build the model that a recipe describes, with random weights; see ``rebuild``."""
    return rebuild(recipe, WIRINGS)
