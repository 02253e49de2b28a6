"""What competitions score by: a measure of each class in each image, and how the cells become one number.

A metric is plain data, ``{name: dice_per_image, empty: one, exclude: [0]}``. Its counts are added over images, in any
order and in any number of processes, before the score is taken.

Shapes: K classes, H x W pixels.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from visionapps.errors import ConfigError
from visionapps.metrics.measures import Measure, Overlap, Parts, share
from visionapps.metrics.object_precision import ObjectPrecision
from visionapps.metrics.surface import BoundaryIoU, SurfaceDice
from visionapps.structures import IGNORE

Counts = NDArray[Any]
Empty = Literal["one", "zero", "skip"]
CellMean = Literal["cells", "classes", "images"]
TotalMean = Literal["classes", "pooled"]


class CompetitionMetric(Protocol):
    """One number for a set of images: the higher, the better."""

    better: ClassVar[Literal["higher"]]

    @property
    def name(self) -> str:
        """As a config writes it."""
        ...

    @property
    def measure(self) -> Measure:
        """What is measured of each class in each image."""
        ...

    @property
    def classes(self) -> int:
        """K, the excluded ones among them."""
        ...

    @property
    def kept(self) -> tuple[int, ...]:
        """The classes that count."""
        ...

    def count(self, prediction: NDArray[Any], truth: NDArray[Any]) -> Counts:
        """What one image brings; arrays of one shape, to be added.

        Args:
            prediction: (H, W) labels in [0, K), 255 for none, or (K, H, W) bool, where classes may overlap.
            truth: (H, W) labels in [0, K), 255 for pixels that count nowhere, or (K, H, W) bool.

        Raises:
            DataError: the two differ in size, or hold labels that are no classes.
        """
        ...

    def of_parts(self, parts: Parts, there: NDArray[np.bool_] | None = None) -> Counts:
        """The same from the parts of the measure.

        Args:
            parts: (..., K, ...), of one image for each place in the leading axes, which the counts have, too.
            there: (..., K) cells that count; None: all.
        """
        ...

    def score(self, counts: Counts) -> float:
        """The score in [0, 1]; NaN when nothing was there to be scored."""
        ...

    def per_class(self, counts: Counts) -> NDArray[np.float64]:
        """(..., K) scores of each class alone; NaN where it is excluded or nothing was there."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Plain data, from which ``build_metric`` makes the metric again."""
        ...


@dataclass(frozen=True, kw_only=True)
class PerImage:
    """The mean of the values that every class has in every image.

    Counts are (K + 1, 2): sum and number of the values of each class, and, last, of the means of the images.

    Attributes:
        measure: gives one value for each (image, class).
        classes: K.
        exclude: labels that do not count, such as a background that has no rows.
        empty: what a class is worth in an image where neither side has it: 1, 0, or nothing ("skip" leaves it out of
            the mean). One that only one side has is worth 0.
        mean: over all (image, class) "cells", over "classes" of their means over images, or over "images" of their
            means over classes (Csurka et al. 2013). They differ only under "skip".
    """

    better: ClassVar[Literal["higher"]] = "higher"
    measure: Measure
    classes: int
    exclude: tuple[int, ...] = ()
    empty: Empty = "one"
    mean: CellMean = "cells"

    def __post_init__(self) -> None:
        _check_classes(self.name, self.classes, self.exclude)
        _check_choice(self.name, "empty", self.empty, get_args(Empty))
        _check_choice(self.name, "mean", self.mean, get_args(CellMean))

    @property
    def name(self) -> str:
        """Such as dice_per_image."""
        return f"{self.measure.name}_per_image"

    @property
    def kept(self) -> tuple[int, ...]:
        """The classes that count."""
        return tuple(k for k in range(self.classes) if k not in self.exclude)

    def count(self, prediction: NDArray[Any], truth: NDArray[Any]) -> Counts:
        """(K + 1, 2) float64; see ``CompetitionMetric``."""
        return self.of_parts(self.measure.parts(prediction, truth, self.classes))

    def values(self, parts: Parts) -> NDArray[np.float64]:
        """(..., K) what each class of an image is worth; NaN where it does not count."""
        values = self.measure.ratio(parts)
        if self.empty != "skip":
            values = np.where(np.isnan(values), float(self.empty == "one"), values)
        values[..., list(self.exclude)] = np.nan
        return values

    def of_parts(self, parts: Parts, there: NDArray[np.bool_] | None = None) -> Counts:
        """(..., K + 1, 2) float64; see ``CompetitionMetric``."""
        values = self.values(parts)
        if there is not None:
            values[~there] = np.nan
        counted = ~np.isnan(values)
        known = np.where(counted, values, 0.0)
        means = share(known.sum(-1), counted.sum(-1))
        sums = np.append(known, np.nan_to_num(means)[..., None], axis=-1)
        numbers = np.append(counted, ~np.isnan(means)[..., None], axis=-1)
        return np.stack([sums, numbers.astype(np.float64)], axis=-1)

    def score(self, counts: Counts) -> float:
        """See ``CompetitionMetric``."""
        if self.mean == "images":
            return float(share(counts[-1, 0], counts[-1, 1]))
        if self.mean == "cells":
            total = counts[:-1].sum(0)
            return float(share(total[0], total[1]))
        return _mean(self.per_class(counts))

    def per_class(self, counts: Counts) -> NDArray[np.float64]:
        """See ``CompetitionMetric``."""
        return share(counts[..., :-1, 0], counts[..., :-1, 1])

    def to_dict(self) -> dict[str, Any]:
        """See ``CompetitionMetric``; the number of classes is the label space's."""
        return _plain(self)


@dataclass(frozen=True, kw_only=True)
class Global:
    """The measure of each class over all images together, as if they were one.

    Counts are the parts of the measure, (K, ...).

    Attributes:
        measure: its parts are added over images.
        classes: K.
        exclude: labels that do not count.
        empty: what a class is worth that occurs nowhere: nothing ("skip"), 1 or 0.
        mean: over "classes", or of the parts of all classes "pooled" into one.
    """

    better: ClassVar[Literal["higher"]] = "higher"
    measure: Measure
    classes: int
    exclude: tuple[int, ...] = ()
    empty: Empty = "skip"
    mean: TotalMean = "classes"

    def __post_init__(self) -> None:
        _check_classes(self.name, self.classes, self.exclude)
        _check_choice(self.name, "empty", self.empty, get_args(Empty))
        _check_choice(self.name, "mean", self.mean, get_args(TotalMean))

    @property
    def name(self) -> str:
        """Such as dice_global."""
        return f"{self.measure.name}_global"

    @property
    def kept(self) -> tuple[int, ...]:
        """The classes that count."""
        return tuple(k for k in range(self.classes) if k not in self.exclude)

    def count(self, prediction: NDArray[Any], truth: NDArray[Any]) -> Counts:
        """The parts of one image; see ``CompetitionMetric``."""
        return self.of_parts(self.measure.parts(prediction, truth, self.classes))

    def of_parts(self, parts: Parts, there: NDArray[np.bool_] | None = None) -> Counts:
        """The parts themselves; see ``CompetitionMetric``."""
        if there is None:
            return parts
        return parts * there.reshape(there.shape + (1,) * (parts.ndim - there.ndim))

    def score(self, counts: Counts) -> float:
        """See ``CompetitionMetric``."""
        if self.mean == "pooled":
            return float(self._filled(self.measure.ratio(counts[list(self.kept)].sum(0)[None]))[0])
        return _mean(self.per_class(counts))

    def per_class(self, counts: Counts) -> NDArray[np.float64]:
        """See ``CompetitionMetric``."""
        values = self._filled(self.measure.ratio(counts))
        values[..., list(self.exclude)] = np.nan
        return values

    def _filled(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values if self.empty == "skip" else np.where(np.isnan(values), float(self.empty == "one"), values)

    def to_dict(self) -> dict[str, Any]:
        """See ``CompetitionMetric``; the number of classes is the label space's."""
        return _plain(self)


_MEASURES: dict[str, Callable[..., Measure]] = {
    "dice": lambda: Overlap("dice"),
    "iou": lambda: Overlap("iou"),
    "map": ObjectPrecision,
    "boundary_iou": BoundaryIoU,
    "surface_dice": SurfaceDice,
}
_POOLINGS: dict[str, type[PerImage] | type[Global]] = {"per_image": PerImage, "global": Global}
METRICS: tuple[str, ...] = tuple(f"{measure}_{pooling}" for measure in _MEASURES for pooling in _POOLINGS)


def build_metric(spec: str | Mapping[str, Any], labels: int | Sequence[str]) -> CompetitionMetric:
    """A metric from its name, or from plain data with its options.

    Args:
        spec: "dice_per_image", or {"name": "dice_per_image", "empty": "one", "exclude": [0]}. Options of all are
            exclude (labels or names of classes), empty and mean; of map thresholds, formula, connectivity
            and objects; of boundary_iou distance, of surface_dice tolerance_px.
        labels: the names of the K classes, or K.

    Raises:
        ConfigError: a name or an option is unknown, or a value cannot work.
    """
    options = {"name": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, Mapping) else {}
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in METRICS:
        near = difflib.get_close_matches(str(name), METRICS, 1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(METRICS)}"
        raise ConfigError(f"metric {name!r} is unknown; {hint}")
    measure, pooling = next((m, p) for m in _MEASURES for p in _POOLINGS if name == f"{m}_{p}")
    own = {key for key in _options_of(measure) if key in options}
    known = ["exclude", "empty", "mean", *_options_of(measure)]
    for key in options:
        if key not in known:
            raise ConfigError(f"metric {name}: unknown option {key!r}; known are {', '.join(known)}")
    names = None if isinstance(labels, int) else tuple(labels)
    exclude = _excluded(name, options.pop("exclude", ()), names)
    built = _MEASURES[measure](**{key: _frozen(options.pop(key)) for key in own})
    count = labels if isinstance(labels, int) else len(labels)
    return _POOLINGS[pooling](measure=built, classes=count, exclude=exclude, **options)


def _options_of(measure: str) -> tuple[str, ...]:
    kind = _MEASURES[measure]
    return tuple(field.name for field in fields(kind)) if isinstance(kind, type) else ()


def _excluded(metric: str, exclude: Any, names: Sequence[str] | None) -> tuple[int, ...]:
    labels: list[int] = []
    for one in exclude if isinstance(exclude, Sequence) and not isinstance(exclude, str) else (exclude,):
        if isinstance(one, str) and one in (names or ()):
            labels.append((names or ()).index(one))
        elif isinstance(one, int) and not isinstance(one, bool):
            labels.append(one)
        else:
            raise ConfigError(
                f"metric {metric}: exclude {one!r} is no class; "
                f"{'give labels' if names is None else 'known are ' + ', '.join(names)}"
            )
    return tuple(sorted(set(labels)))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _plain(metric: PerImage | Global) -> dict[str, Any]:
    """Name and options; those that are as they would be without a word are left out."""
    found: dict[str, Any] = {"name": metric.name}
    parts: list[Any] = [metric]
    if _options_of(metric.measure.name):
        parts.append(metric.measure)
    for part in parts:
        for field in fields(part):
            value = getattr(part, field.name)
            if field.name not in ("measure", "classes") and (field.default is MISSING or value != field.default):
                found[field.name] = list(value) if isinstance(value, tuple) else value
    return found


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _check_classes(name: str, classes: int, exclude: Sequence[int]) -> None:
    if not 1 <= classes <= IGNORE:
        raise ConfigError(f"metric {name}: {classes} classes; 1 to {IGNORE} are possible")
    strange = [k for k in exclude if not 0 <= k < classes]
    if strange:
        raise ConfigError(f"metric {name}: excludes label {strange[0]}, but the {classes} labels begin with 0")
    if len(set(exclude)) == classes:
        raise ConfigError(f"metric {name}: all {classes} classes are excluded; leave at least one")


def _check_choice(name: str, option: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"metric {name}: {option} {value!r} is unknown; give {' or '.join(choices)}")
