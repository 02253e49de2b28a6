"""Losses of segmentation: (B, K, H, W) logits and (B, H, W) labels to a scalar; ignored pixels count nowhere.

Labels arrive as the data layer stores them (uint8) or as int64, on the logits' device. Every label is in [0, K) or is
the ignore label: the data layer guarantees it, because looking at each step would make the GPU wait for the CPU.
A batch in which every pixel is ignored gives 0, with zero gradients, and never NaN.
"""

from visionapps.losses.entropy import CrossEntropy, Focal, HardPixels, MeanSquaredError
from visionapps.losses.overlap import Dice, Lovasz
from visionapps.losses.pixels import Weighted, meet, weights_in
from visionapps.losses.sums import DiceCrossEntropy, WeightedSum

__all__ = [
    "CrossEntropy",
    "Dice",
    "DiceCrossEntropy",
    "Focal",
    "HardPixels",
    "Lovasz",
    "MeanSquaredError",
    "Weighted",
    "WeightedSum",
    "meet",
    "weights_in",
]
