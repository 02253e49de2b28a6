"""What can be said about the parts of a detector, in groups that a YAML file and a recipe can hold."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from visionapps.backbones.norms import Norms
from visionapps.detection.anchors import RATIOS
from visionapps.detection.base import Limits
from visionapps.detection.fpn import Extra
from visionapps.detection.retinanet import BoxLoss
from visionapps.detection.rpn import ProposalLimits
from visionapps.detection.sppnet import BINS
from visionapps.errors import ConfigError


def numbers(name: str, value: object, *, count: int | None = None) -> tuple[Any, ...]:
    """A list of numbers from Python or YAML as a tuple.

    Args:
        name: in messages.
        value: what the user gave.
        count: how many are wanted; None: one or more.

    Raises:
        ConfigError: it is something else.
    """
    listed = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else ()
    fine = all(isinstance(each, int | float) and not isinstance(each, bool) for each in listed)
    if not listed or not fine or count not in (None, len(listed)):
        wanted = "a list of numbers" if count is None else f"{count} numbers"
        raise ConfigError(f"{name}: {value!r} must be {wanted}, such as {name}: [{'0.1, 0.5' if count else '8, 16'}]")
    return listed


@dataclass(frozen=True)
class Features:
    """From the backbone to the maps that heads see.

    Args:
        layout: "fpn", a feature pyramid; "single", one map of the backbone (C4).
        strides: which maps of the backbone are used; None: 4, 8, 16 and 32 of a pyramid (RetinaNet: 8, 16 and 32), 16
            alone. A backbone gives those that it has.
        channels: width of a pyramid's maps.
        norms: "frozen": batch norms that come with pretrained weights stay as they are, right for a few images per
            step; without pretrained weights there is nothing to keep, and they learn. "trained": they learn.
        batch_norm: normalise inside the pyramid, too; for steps of many images.
    """

    layout: Literal["fpn", "single"] = "fpn"
    strides: tuple[int, ...] | None = None
    channels: int = 256
    norms: Norms = "frozen"
    batch_norm: bool = False

    def __post_init__(self) -> None:
        if self.strides is not None:
            object.__setattr__(self, "strides", numbers("features.strides", self.strides))  # YAML brings lists
        if self.layout not in ("fpn", "single") or self.norms not in ("frozen", "trained"):
            raise ConfigError(
                f"features: layout {self.layout!r} must be fpn or single, norms {self.norms!r} frozen or trained"
            )


@dataclass(frozen=True)
class Proposing:
    """How a region proposal network looks for objects.

    Args:
        sizes: of the anchors, in pixels: square roots of their areas, one list per map; None: 8 strides of each map of
            a pyramid, 32 to 512 on a single one. visionapps.detection.anchor_fit finds sizes for a dataset.
        ratios: height / width of the anchors.
        offset: where in its cell an anchor stands, 0 to 1; None: 0, and 0.5 for plain transformers.
        convs: 3 x 3 convolutions before the outputs.
        hidden: their width; None: that of the maps.
        sampled: anchors per image that count in a step.
        limits: which anchors become proposals.
    """

    sizes: tuple[tuple[float, ...], ...] | None = None
    ratios: tuple[float, ...] = RATIOS
    offset: float | None = None
    convs: int = 1
    hidden: int | None = None
    sampled: int = 256
    limits: ProposalLimits = field(default_factory=ProposalLimits)

    def __post_init__(self) -> None:
        if self.sizes is not None:
            if not isinstance(self.sizes, Sequence) or not all(isinstance(level, Sequence) for level in self.sizes):
                raise ConfigError(
                    f"proposing.sizes: {self.sizes!r} must be one list of anchor sizes per map: [[32], [64], [128]]"
                )
            sizes = tuple(tuple(map(float, numbers("proposing.sizes", level))) for level in self.sizes)
            object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "ratios", numbers("proposing.ratios", self.ratios))


@dataclass(frozen=True)
class Regions:
    """What happens to a proposal.

    Args:
        pool: "align" (He et al. 2017) or "max" (Girshick 2015).
        size: bins along a side of what is pooled.
        head: "linear": two wide layers; "conv": four convolutions and one such layer.
        hidden: width of these layers.
        sampled: proposals per image that count in a step.
        objects: greatest part of them that are objects.
        background: [low, high): the IoU with the nearest object at which a proposal is background.
        limits: which regions become detections.
    """

    pool: Literal["align", "max"] = "align"
    size: int = 7
    head: Literal["linear", "conv"] = "linear"
    hidden: int = 1024
    sampled: int = 512
    objects: float = 0.25
    background: tuple[float, float] = (0.0, 0.5)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        object.__setattr__(self, "background", numbers("regions.background", self.background, count=2))
        if self.head not in ("linear", "conv") or min(self.size, self.hidden) < 1:
            raise ConfigError(
                f"regions: head {self.head!r} must be linear or conv, size {self.size} and hidden {self.hidden} at "
                "least 1"
            )


@dataclass(frozen=True)
class Pyramids:
    """Spatial pyramid pooling and what follows it.

    Args:
        bins: along a side, of each level of the pyramid.
        scales: shorter sides in pixels that features are computed at; None: the image as it is.
        hidden: width of the two layers.
        dropout: in both, in [0, 1).
    """

    bins: tuple[int, ...] = BINS
    scales: tuple[int, ...] | None = None
    hidden: int = 1024
    dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "bins", numbers("pyramids.bins", self.bins))
        if self.scales is not None:
            object.__setattr__(self, "scales", numbers("pyramids.scales", self.scales))


@dataclass(frozen=True)
class RetinaOptions:
    """RetinaNet's head.

    Args:
        extra: how the two coarsest maps are made: "convs_of_input" (the paper), "convs", "pool" (one map) or "none".
        per_stride: the smallest anchor of a map, in its strides: 4 gives 32 px on stride 8.
        convs: convolutions in each of the two towers.
        group_norm: normalise after each of them.
        box_loss: "l1" or "giou".
    """

    extra: Extra = "convs_of_input"
    per_stride: float = 4.0
    convs: int = 4
    group_norm: bool = False
    box_loss: BoxLoss = "l1"
