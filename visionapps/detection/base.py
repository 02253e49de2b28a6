"""A detector: raw pixels in, losses or detections out. Two doors, never a mode."""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.backbones.base import Backbone, Normalize
from visionapps.boxes import Batch, Detections
from visionapps.errors import ConfigError, DataError
from visionapps.structures import InputSpec, Level

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Which candidates become detections.

    Args:
        score: least score of a detection, in [0, 1).
        nms: two detections of one class whose IoU is greater than this are one object, in (0, 1].
        most: detections per image; None: all. Training sets it from the data; a warning tells when it is reached.
    """

    score: float = 0.05
    nms: float = 0.5
    most: int | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.score < 1 and 0 < self.nms <= 1 and (self.most is None or self.most >= 1)):
            raise ConfigError(
                f"limits: score {self.score} must be in [0, 1), nms {self.nms} in (0, 1] and most {self.most} at "
                "least 1, or none"
            )


class Detector(nn.Module):
    """What all detectors have in common. Shapes: B batch, C bands, H W padded batch, P proposals, N objects.

    Nothing is resized inside: detections lie in the pixels of the images that were given.

    Attributes:
        backbone: the feature pyramid.
        normalize: raw pixel values to what it was trained on.
        num_classes: K, background not counted.
        limits: which candidates become detections; replace it at will.
        compute: what backbone, neck and heads compute in while detecting (torch.float32, torch.bfloat16,
            torch.float16); boxes, their coding, pooling, suppression and losses are always float32. float32 leaves an
            autocast that the caller has entered as it is, which is how training chooses.
        needs_proposals: whether ``losses`` and ``detect`` want proposals from outside.
        gives_masks: whether detections have masks, and targets need them.
        checkpoint: a whole detector that ``load_pretrained`` loads in place of the backbone's weights; None: none.
        recipe: how to build the same model again, as plain data; set by the functions in visionapps.models.
    """

    backbone: Backbone
    num_classes: int
    limits: Limits
    compute: torch.dtype = torch.float32
    needs_proposals: bool = False
    gives_masks: bool = False
    checkpoint: str | None = None
    recipe: dict[str, Any] | None = None

    def __init__(self, backbone: Backbone, num_classes: int, limits: Limits | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.normalize = Normalize(backbone.spec)
        self.num_classes = num_classes
        self.limits = limits or Limits()
        self._told = False

    @property
    def spec(self) -> InputSpec:
        return self.backbone.spec

    @property
    def levels(self) -> tuple[Level, ...]:
        return self.backbone.levels

    def load_pretrained(self, names: tuple[str, ...]) -> None:
        """Load the weights that were named at construction: of the backbone, or of a whole detector.

        Args:
            names: the K classes; of a detector trained on others, the rows of classes with the same name are kept.

        Raises:
            WeightsError: the weights cannot be found, or do not fit.
        """
        if self.checkpoint is None:
            self.backbone.load_pretrained()
            return
        from visionapps.detection.checkpoints import load_checkpoint  # it knows the class above

        load_checkpoint(self, self.checkpoint, names)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Loss terms by name, each a scalar mean that is to be summed; finite for images without objects, too.

        Where a part samples at random it takes torch's global stream of random numbers, as dropout does.
        """
        raise NotImplementedError

    def detect(
        self, image: Tensor, sizes: tuple[tuple[int, int], ...], proposals: tuple[Tensor, ...] | None = None
    ) -> list[Detections]:
        """Objects of each image, best first; call it in evaluation mode and without gradients.

        On the CPU the detections of an image do not depend, bit by bit, on what else is in the batch, as long as
        convolutions do not (see visionapps.inference.convolution) and the padded size is the same.

        Args:
            image: (B, C, H, W) raw values of any dtype; image b fills [0, h) x [0, w).
            sizes: (h, w) of each image, each at least 1.
            proposals: (P, 4) of each image, where the detector needs them.
        """
        raise NotImplementedError

    def judge(self, batch: Batch) -> tuple[dict[str, Tensor], list[Detections]]:
        """Losses and detections from one computation of the features, in evaluation mode: for validation."""
        raise NotImplementedError

    def forward(self, image: Tensor, sizes: tuple[tuple[int, int], ...]) -> list[Detections]:
        """The same as ``detect``."""
        return self.detect(image, sizes)

    def computing(self, device: torch.device) -> AbstractContextManager[object]:
        """While it is entered, convolutions and linear layers compute in ``compute``."""
        chosen = self.compute != torch.float32
        return torch.autocast(device.type, dtype=self.compute) if chosen else nullcontext()

    def network_input(self, image: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Raw pixels to what the backbone eats: normalised, 0 beyond each image, padded to the coarsest stride.

        Args:
            image: (B, C, H, W) raw values of any dtype.
            sizes: (h, w) of each image.

        Raises:
            DataError: sizes that do not belong to the image.
        """
        height, width = image.shape[-2:]
        fits = len(sizes) == len(image) and all(1 <= h <= height and 1 <= w <= width for h, w in sizes)
        if not fits or image.shape[1] != len(self.spec.bands):
            raise DataError(
                f"batch of shape {tuple(image.shape)} with sizes {tuple(sizes)}: expected {len(self.spec.bands)} bands "
                "and one (h, w) per image, each at least 1 and within the batch"
            )
        values: Tensor = self.normalize(image)
        for each, (h, w) in zip(values, sizes, strict=True):
            each[:, h:] = 0
            each[:, :, w:] = 0
        multiple = self.levels[-1].stride
        bottom, right = -height % multiple, -width % multiple
        return F.pad(values, (0, right, 0, bottom)) if bottom or right else values

    def at_most(self, found: Detections) -> Detections:
        """The best of them, as limits.most says; whoever reaches it is told once."""
        most = self.limits.most
        if most is None or len(found.scores) <= most:
            return found
        if not self._told:
            _log.warning(
                "an image has %d detections, of which the %d best are kept: set limits.most higher if images hold so "
                "many objects, or limits.score higher if they do not",
                len(found.scores),
                most,
            )
            self._told = True
        masks = None if found.masks is None else found.masks[:most]
        return Detections(found.boxes[:most], found.labels[:most], found.scores[:most], masks)


def in_full(like: Tensor) -> AbstractContextManager[object]:
    """While it is entered, nothing on the device of ``like`` is computed in less than float32 by an autocast."""
    return torch.autocast(like.device.type, enabled=False)
