"""Bundles of small networks that disagree, for tests of ensembles."""

import torch

from visionapps.inference.bundle import Bundle
from visionapps.models import unet
from visionapps.structures import LabelSpace

COLORS = ((200, 0, 0), (0, 100, 0), (0, 0, 50))


def tiny(labels: LabelSpace, seed: int) -> Bundle:
    """A U-Net on ResNet-10t for three classes, tile 64."""
    torch.manual_seed(seed)
    model = unet("resnet10t", 3, channels=(8, 8, 8, 8, 8)).eval()
    with torch.no_grad():  # a random head says nothing: members shall disagree
        for parameter in model.decoder.parameters():
            parameter.mul_(3)
    return Bundle(model, labels, 64)
