"""A map of a feature pyramid, pooled, with one linear layer: any backbone as a classifier, at any depth.

Shapes: B images, C bands, H x W pixels, D channels and h x w positions of a map, N bins, K classes.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.backbones.base import Backbone, pad_to_multiple
from visionapps.classification.base import Classifier
from visionapps.errors import ConfigError
from visionapps.networks.base import Network

Pooling = Literal["average", "max"]
_NATIVE = 224  # px; any size will do


class BinnedHead(nn.Module):
    """Bins of a map, and one linear layer.

    Bin i of n covers rows floor(i * h / n) to ceil((i + 1) * h / n), and columns likewise. One bin is global pooling;
    (1, 2, 3, 6) and max the spatial pyramid pooling of He et al. 2014, section 2.2.

    Args:
        channels: D.
        num_classes: K.
        bins: along a side, of each level of the pyramid.
        pooling: what becomes of the values in a bin.

    Raises:
        ConfigError: there are no bins, or another pooling.
    """

    def __init__(
        self, channels: int, num_classes: int, bins: Sequence[int] = (1,), pooling: Pooling = "average"
    ) -> None:
        super().__init__()
        if not bins or min(bins) < 1:
            raise ConfigError(f"bins {list(bins)}: give whole numbers of at least 1, such as 1, or 1 2 3 6")
        if pooling not in ("average", "max"):
            raise ConfigError(f"pooling {pooling!r} is no choice; write average or max")
        self.bins = tuple(bins)
        self.pooling = pooling
        self.linear = nn.Linear(channels * sum(n * n for n in bins), num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """(B, D, h, w) to (B, K)."""
        pool = F.adaptive_avg_pool2d if self.pooling == "average" else F.adaptive_max_pool2d
        vectors = torch.cat([pool(image, n).flatten(1) for n in self.bins], 1)
        logits: Tensor = self.linear(vectors)
        return logits


class LevelNetwork(Network):
    """The deepest level of a pyramid with a head; images are padded to whole cells by repeating their edges.

    Args:
        backbone: its last level is used.
        head: of that level's channels.
    """

    def __init__(self, backbone: Backbone, head: BinnedHead) -> None:
        super().__init__()
        self.features = nn.Sequential(OrderedDict(level=_Level(backbone)))
        self.head = head
        self.native = _NATIVE


class _Level(nn.Module):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> Tensor:
        return self.backbone(pad_to_multiple(image, self.backbone.levels[-1].stride))[-1]  # type: ignore[no-any-return]


class LevelClassifier(Classifier):
    """A classifier on a level of a pyramid, which loads the pyramid's weights.

    Args:
        network: whose backbone knows its weights and what it eats.
        num_classes: K.
    """

    def __init__(self, network: LevelNetwork, num_classes: int) -> None:
        level = network.features.get_submodule("level")
        assert isinstance(level, _Level)
        super().__init__(network, level.backbone.spec, num_classes)

    def load_pretrained(self, names: Sequence[str] | None = None) -> None:
        """Load the weights that were named at construction; the head begins anew.

        Raises:
            WeightsError: the weights cannot be found, or do not fit.
        """
        level = self.network.features.get_submodule("level")
        assert isinstance(level, _Level)
        level.backbone.load_pretrained()
