"""A segmentation model: raw pixels in, class logits of the same size out."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.backbones.base import Backbone, Normalize, pad_to_multiple
from visionapps.structures import InputSpec, Level


class Decoder(nn.Module):
    """Turns a pyramid into class logits.

    Attributes:
        stride: input pixels per logit pixel; Segmentor upsamples bilinearly by this factor (1: nothing to do).
    """

    stride: int

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """
        Args:
            features: one (B, channels, H / stride_l, W / stride_l) map per level of the backbone, finest first.

        Returns:
            (B, K, H / stride, W / stride) logits.
        """
        raise NotImplementedError


class Segmentor(nn.Module):
    """Backbone and decoder behind one door: normalises, pads to the backbone's stride, and crops back.

    Attributes:
        spec: what the model eats.
        num_classes: K.
        recipe: how to build the same model again, as plain data; set by the functions in visionapps.models.
    """

    def __init__(self, backbone: Backbone, decoder: Decoder, num_classes: int) -> None:
        super().__init__()
        self.normalize = Normalize(backbone.spec)
        self.backbone = backbone
        self.decoder = decoder
        self.num_classes = num_classes
        self.recipe: dict[str, Any] | None = None

    @property
    def spec(self) -> InputSpec:
        return self.backbone.spec

    @property
    def levels(self) -> tuple[Level, ...]:
        return self.backbone.levels

    def load_pretrained(self) -> None:
        """Load the backbone's named weights; see Backbone.load_pretrained."""
        self.backbone.load_pretrained()

    def forward(self, image: Tensor) -> Tensor:
        """
        Args:
            image: (B, C, H, W) raw values of any dtype, any H and W >= 1.

        Returns:
            (B, K, H, W) float logits.
        """
        height, width = image.shape[-2:]
        multiple = self.backbone.levels[-1].stride
        padded = pad_to_multiple(self.normalize(image), multiple)
        logits: Tensor = self.decoder(self.backbone(padded))
        if self.decoder.stride > 1:
            logits = F.interpolate(logits, size=padded.shape[-2:], mode="bilinear", align_corners=False)
        return logits[..., :height, :width]
