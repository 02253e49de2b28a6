"""The values that every part agrees on: what a model eats, what labels mean, where pixels lie on the ground."""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from visionapps.errors import ConfigError

RGB = ("red", "green", "blue")
IGNORE = 255  # label of pixels that count nowhere: void in a mask, no data in a map; no class ever has it
MOST_CLASSES = 255  # of label maps, which have 8 bits and one value for "ignore"; boxes may have more classes
Color = tuple[int, int, int]


class Level(NamedTuple):
    """One feature map of a pyramid."""

    stride: int  # input pixels per feature pixel
    channels: int


@dataclass(frozen=True)
class InputSpec:
    """What a model was trained to eat; travels with weights, checkpoint and bundle.

    A raw pixel value v of band i enters the network as (v / scale - mean[i]) / std[i].
    """

    bands: tuple[str, ...] = RGB
    scale: float = 255.0  # the raw value that means 1.0: 255 for 8 bit, 10000 for Sentinel-2 reflectance
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # ImageNet, in units of scale
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        for name in ("bands", "mean", "std"):  # YAML brings lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not len(self.bands) == len(self.mean) == len(self.std) >= 1:
            raise ConfigError(
                f"input spec: {len(self.bands)} bands, {len(self.mean)} means and {len(self.std)} deviations; "
                "give one mean and one std per band"
            )
        if self.scale <= 0 or min(self.std) <= 0:
            raise ConfigError(f"input spec: scale {self.scale} and std {self.std} must be positive")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for YAML and JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "InputSpec":
        return cls(**data)


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a model. A label is an index into names: 0-based, no gaps; file ids are mapped in data/."""

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    ignore: int = IGNORE

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "colors", tuple((int(r), int(g), int(b)) for r, g, b in self.colors))
        if not self.names or len(self.names) != len(self.colors):
            raise ConfigError(
                f"label space: {len(self.names)} names and {len(self.colors)} colours; give one colour per class"
            )
        if len(set(self.names)) != len(self.names):
            twice = sorted({n for n in self.names if self.names.count(n) > 1})
            raise ConfigError(f"label space: class names must differ, but {', '.join(twice)} occur more than once")
        if len(self.names) <= MOST_CLASSES and self.ignore < len(self.names):
            raise ConfigError(
                f"label space: {len(self.names)} classes with ignore label {self.ignore}; the ignore label must be "
                "above all classes"
            )

    def __len__(self) -> int:
        return len(self.names)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for YAML and JSON."""
        return {"names": list(self.names), "colors": [list(c) for c in self.colors], "ignore": self.ignore}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "LabelSpace":
        return cls(**data)

    @classmethod
    def named(cls, names: Sequence[str]) -> "LabelSpace":
        """A label space with distinct default colours."""
        return cls(tuple(names), distinct_colors(len(names)))


@dataclass(frozen=True)
class GeoRef:
    """Where a raster lies: CRS as WKT (None when unknown) and the affine (a, b, c, d, e, f) of pixel to map:
    x = a * col + b * row + c, y = d * col + e * row + f, at the upper left corner of a pixel."""

    crs: str | None
    transform: tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Rescale:
    """How photos are scaled before a detector sees them: visible, and stored with the model.

    The shorter side becomes ``short`` pixels, unless the longer one would then exceed ``long``.
    """

    short: int  # 600 in Ren et al. 2015, 800 in torchvision's models
    long: int  # 1000 and 1333

    def __post_init__(self) -> None:
        if not 1 <= self.short <= self.long:
            raise ConfigError(f"rescale: short {self.short} must be at least 1 and at most long {self.long}")

    def factor(self, height: int, width: int) -> float:
        """Pixels of the scaled photo per pixel of the photo."""
        return min(self.short / min(height, width), self.long / max(height, width))

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the scaled photo, each at least 1."""
        factor = self.factor(height, width)
        return max(1, round(height * factor)), max(1, round(width * factor))


@dataclass(frozen=True)
class Frame:
    """How a photo becomes the square that a classifier sees when it is judged; stored with the model.

    The shorter side becomes ``side / share`` pixels, and the middle ``side`` x ``side`` of that is cut out.
    """

    side: int = 224
    share: float = 0.875  # of the shorter side that is seen: 224 of 256 in Krizhevsky et al. 2012; 1: all of it

    def __post_init__(self) -> None:
        if self.side < 1 or not 0 < self.share <= 1:
            raise ConfigError(f"frame: side {self.side} must be at least 1 pixel and share {self.share} in (0, 1]")

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the scaled photo, from which the middle is cut; neither is below ``side``."""
        short = max(self.side, round(self.side / self.share))
        factor = short / min(height, width)
        return max(self.side, round(height * factor)), max(self.side, round(width * factor))


def distinct_colors(count: int) -> tuple[Color, ...]:
    """RGB colours that stay apart for any count: hues by the golden ratio, two brightnesses in turn."""
    golden = 0.618033988749895
    rgb = (colorsys.hsv_to_rgb((0.08 + i * golden) % 1.0, 0.75, (0.95, 0.65)[i % 2]) for i in range(count))
    return tuple((round(r * 255), round(g * 255), round(b * 255)) for r, g, b in rgb)
