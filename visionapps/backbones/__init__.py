"""Classification networks as feature pyramids."""

from visionapps.backbones.base import Backbone
from visionapps.backbones.packages import PACKAGES
from visionapps.backbones.weights import default_spec
from visionapps.backbones.zoo import levels_of, list_pyramids, pyramid

__all__ = ["PACKAGES", "Backbone", "default_spec", "levels_of", "list_pyramids", "pyramid"]
