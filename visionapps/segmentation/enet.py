"""ENet's decoder on any pyramid: few thin bottlenecks, and unpooling to the places that the encoder pooled from.

Source: Paszke, Chaurasia, Kim and Culurciello, ENet: A Deep Neural Network Architecture for Real-Time Semantic
    Segmentation, 2016, section 3 and table 1.
"""

import itertools
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.errors import ConfigError
from visionapps.networks.enet import Bottleneck, activate
from visionapps.segmentation.base import Decoder
from visionapps.structures import Level

_DROPOUT = 0.1
_REDUCTION = 4  # channels of the coarse map per channel inside the upsampling
_WINDOW = (2, 2)  # pixels of a pooling


class ENetDecoder(Decoder):
    """Upsampling from level to level, and one deconvolution to half of the finest stride.

    The switches are found again: ENet's encoder pools just the maps that are the levels of its pyramid, so the places
    of their maxima are those of its own poolings. On another backbone they are what such a pooling would have kept.

    Args:
        levels: the backbone's, strides from 2 on that double from one to the next.
        num_classes: K.

    Raises:
        ConfigError: the strides do not double, or the finest is odd.
    """

    def __init__(self, levels: Sequence[Level], num_classes: int) -> None:
        super().__init__()
        strides = [level.stride for level in levels]
        if len(levels) < 2 or strides[0] % 2 or any(b != 2 * a for a, b in itertools.pairwise(strides)):
            raise ConfigError(
                f"ENet: cannot unpool between strides {strides}; choose a backbone with two or more levels whose "
                "strides begin with an even one and double"
            )
        self.stride = strides[0] // 2
        self.steps = nn.ModuleList()
        self.refine = nn.ModuleList()
        fine_to_coarse = list(itertools.pairwise(levels))
        for place, (fine, coarse) in enumerate(reversed(fine_to_coarse), start=1):
            self.steps.append(Upsampling(coarse.channels, fine.channels))
            count = 1 if place == len(fine_to_coarse) else 2  # stages 5 and 4 of table 1
            bottlenecks = (Bottleneck(fine.channels, dropout=_DROPOUT, activation=nn.ReLU) for _ in range(count))
            self.refine.append(nn.Sequential(*bottlenecks))
        self.score = nn.ConvTranspose2d(levels[0].channels, num_classes, 2, stride=2)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Maps of all levels, finest first, to (B, K, H / stride, W / stride) logits."""
        x = features[-1]
        for step, refine, fine in zip(self.steps, self.refine, reversed(features[:-1]), strict=True):
            x = refine(step(x, fine))
        logits: Tensor = self.score(x)
        return logits


class Upsampling(nn.Module):
    """A bottleneck of stride 1 / 2: beside the branch, the map is projected and unpooled.

    Args:
        channels: of the coarse map.
        outputs: channels of the finer map that gives the switches, and of the result.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        inner = max(1, channels // _REDUCTION)
        self.project = nn.Sequential(nn.Conv2d(channels, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.branch = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            *activate(inner, nn.ReLU),
            nn.ConvTranspose2d(inner, inner, 3, stride=2, padding=1, output_padding=1, bias=False),
            *activate(inner, nn.ReLU),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.Dropout2d(_DROPOUT),
        )

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """(B, channels, h, w) and (B, outputs, 2 h, 2 w) to (B, outputs, 2 h, 2 w)."""
        switches = F.max_pool2d(fine, _WINDOW, return_indices=True)[1]
        unpooled = F.max_unpool2d(self.project(coarse), switches, _WINDOW)
        return F.relu(unpooled + self.branch(coarse))
