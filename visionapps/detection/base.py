"""A detector: raw pixels in, losses or detections out. Two doors, never a mode."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from visionapps.backbones.base import Backbone
from visionapps.boxes import Batch, Detections
from visionapps.errors import ConfigError
from visionapps.structures import InputSpec, Level


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
        num_classes: K, background not counted.
        limits: which candidates become detections; replace it at will.
        compute: what backbone, neck and heads compute in (torch.float32, torch.bfloat16, torch.float16); boxes, their
            coding, pooling and suppression are always float32.
        needs_proposals: whether ``losses`` and ``detect`` want proposals from outside.
        gives_masks: whether detections have masks, and targets need them.
        recipe: how to build the same model again, as plain data; set by the functions in visionapps.models.
    """

    backbone: Backbone
    num_classes: int
    limits: Limits
    needs_proposals: bool = False
    gives_masks: bool = False
    recipe: dict[str, Any] | None = None

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
        raise NotImplementedError

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
