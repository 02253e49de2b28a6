"""The contract checks accept what ships here and refuse parts that break their contract."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from visionapps import losses, testing
from visionapps.data.transforms import Augment, aerial, geometric
from visionapps.inference.sources import ArraySource
from visionapps.structures import Level


@pytest.mark.parametrize(
    "loss",
    [
        losses.CrossEntropy(),
        losses.CrossEntropy(class_weights=[1.0, 2.0, 0.5], label_smoothing=0.1),
        losses.Dice(),
        losses.Focal(),
        losses.MeanSquaredError(),
        losses.DiceCrossEntropy(),
        losses.WeightedSum([losses.Dice(), losses.Focal()], [1.0, 2.0]),
        losses.HardPixels(0.25, at_least=10),
        losses.HardPixels(threshold=0.3, at_least=10),
        losses.Lovasz(),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_every_loss_keeps_its_contract(loss: nn.Module):
    testing.check_loss(loss)


def test_a_loss_that_counts_ignored_pixels_is_refused():
    class Careless(nn.Module):
        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            return logits.square().mean()

    with pytest.raises(AssertionError, match="ignored pixels must have no gradient"):
        testing.check_loss(Careless())


@pytest.mark.parametrize("augment", [aerial(), geometric()], ids=["aerial", "geometric"])
def test_every_preset_keeps_its_contract(augment: Augment):
    testing.check_augment(augment)


def test_an_augmentation_that_invents_labels_is_refused():
    class Blur(Augment):
        def __call__(self, image, labels, rng):
            return image, labels // 2

    with pytest.raises(AssertionError, match="were not in the mask"):
        testing.check_augment(Blur())


def test_an_augmentation_with_a_generator_of_its_own_is_refused():
    own = np.random.default_rng()

    class Noise(Augment):
        def __call__(self, image, labels, rng):
            return own.integers(0, 256, image.shape, dtype=np.uint8), labels

    with pytest.raises(AssertionError, match="same generator"):
        testing.check_augment(Noise())


def test_an_array_is_a_source_and_one_of_the_wrong_type_is_not():
    source = ArraySource(np.zeros((3, 20, 30), np.uint16))
    testing.check_source(source)
    source.dtype = np.dtype(np.uint8)
    with pytest.raises(AssertionError, match="but the source says uint8"):
        testing.check_source(source)


def test_the_tiny_backbone_keeps_the_contract_and_a_lying_one_does_not():
    backbone = testing.TinyBackbone()
    testing.check_backbone(backbone)
    backbone.levels = (*backbone.levels[:-1], Level(32, 99))
    with pytest.raises(AssertionError, match="level of stride 32"):
        testing.check_backbone(backbone)
    backbone.levels = (Level(2, 4), Level(2, 4))
    with pytest.raises(AssertionError, match="strides must ascend"):
        testing.check_backbone(backbone)


def test_a_model_with_a_dead_parameter_is_refused():
    from visionapps.models import unet

    model = unet("test_resnet", 3, channels=(8, 8, 8, 8, 8))
    testing.check_segmentor(model)
    model.unused = nn.Parameter(torch.zeros(1))
    with pytest.raises(AssertionError, match="parameters without gradient: unused"):
        testing.check_segmentor(model)
