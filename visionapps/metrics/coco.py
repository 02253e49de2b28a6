"""COCO's scores of detections: average precision and recall over ten IoU thresholds, by size and by class.

Source: Lin et al. 2014 (Microsoft COCO) and the program that is its definition, pycocotools. What that program does
with inputs it was not made for (ids that begin at 0, no detections, caps other than 100, images given twice) is settled
before it sees them. Shapes: T IoU thresholds, R recall levels, K classes, A area ranges, M caps.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from visionapps.errors import ConfigError
from visionapps.metrics.coco_engine import AREAS, CocoArrays, EngineName, run_faster, run_pycocotools
from visionapps.metrics.object_table import Kind, ObjectTable, make_table
from visionapps.objects import Objects

CAPS = (1, 10, 100)
TOLERANCE = 1e-6  # more than the engines' rounding, less than one object of a million
_TRIAL_DETECTIONS = 8_000  # pycocotools takes about a second for them
_log = logging.getLogger(__name__)
_agreed: set[Kind] = set()  # what the faster engine was found right for in this process
_distrusted: set[Kind] = set()


@dataclass(frozen=True)
class TwelveNumbers:
    """The summary of COCO. All in [0, 1]; NaN where the truth has no such object."""

    ap: float  # mean over IoU 0.50, 0.55, ..., 0.95
    ap50: float
    ap75: float
    ap_small: float  # objects up to 32^2 px
    ap_medium: float  # up to 96^2 px
    ap_large: float
    ar1: float  # recall with 1 detection per class and image, mean over the IoUs
    ar10: float
    ar100: float  # with as many as the cap allows, 100 in COCO
    ar_small: float
    ar_medium: float
    ar_large: float

    def to_dict(self) -> dict[str, float | None]:
        """By name, undefined ones as None."""
        return {name: _plain(value) for name, value in asdict(self).items()}


@dataclass(frozen=True, eq=False)
class CocoScores:
    """COCO's scores of a set of images.

    Attributes:
        kind: whether boxes or masks were compared.
        numbers: the twelve, over all detections, or over ``most`` of each class and image.
        standard: the twelve with COCO's cap of 100; the same object where no class has more in an image.
        most: the cap of ``numbers``.
        per_class: (K,) AP; NaN where a class has nothing to be found.
        per_class_50: (K,) the same at IoU 0.50.
        true_counts: (K,) objects to be found.
        ignored_counts: (K,) crowds and difficult ones.
        found_counts: (K,) detections.
        images: how many were compared.
        engine: what computed it.
    """

    kind: Kind
    numbers: TwelveNumbers
    standard: TwelveNumbers
    most: int
    per_class: np.ndarray
    per_class_50: np.ndarray
    true_counts: np.ndarray
    ignored_counts: np.ndarray
    found_counts: np.ndarray
    images: int
    engine: EngineName

    @property
    def ap(self) -> float:
        """Mean over classes and IoU 0.50 to 0.95."""
        return self.numbers.ap

    @property
    def ap50(self) -> float:
        """Mean over classes at IoU 0.50."""
        return self.numbers.ap50

    @property
    def ap75(self) -> float:
        """Mean over classes at IoU 0.75."""
        return self.numbers.ap75

    @property
    def absent_found(self) -> int:
        """Detections of classes that the truth does not have: false, but no AP counts them, as no recall exists."""
        return int(self.found_counts[(self.true_counts == 0) & (self.ignored_counts == 0)].sum())

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain data for JSON, undefined values as None; one entry per class under ``classes``."""
        return {
            "kind": self.kind,
            **self.numbers.to_dict(),
            "detections_per_class_and_image": self.most,
            "with_100_detections": self.standard.to_dict(),
            "images": self.images,
            "detections_of_absent_classes": self.absent_found,
            "engine": self.engine,
            "classes": [
                {
                    "name": name,
                    "ap": _plain(float(self.per_class[k])),
                    "ap50": _plain(float(self.per_class_50[k])),
                    "objects": int(self.true_counts[k]),
                    "ignored": int(self.ignored_counts[k]),
                    "detections": int(self.found_counts[k]),
                }
                for k, name in enumerate(names)
            ],
        }


def coco_scores(
    truth: Sequence[Objects],
    found: Sequence[Objects],
    num_classes: int,
    *,
    kind: Kind = "box",
    engine: EngineName = "pycocotools",
    most: int | None = None,
) -> CocoScores:
    """Score the detections of a set of images.

    Args:
        truth: annotated objects of each image; crowds and difficult ones count neither way.
        found: detections of each image, in the same order; an empty entry where there are none.
        num_classes: K.
        kind: compare boxes, or masks.
        engine: pycocotools, or the faster one, which is used once it gave the same numbers on the first evaluation of
            this process (on a part of it where that is large).
        most: detections of a class in an image that count, best first, >= 1; None: all of them.

    Raises:
        DataError: truth and detections do not fit each other or the classes.
        ConfigError: most is out of range, or the engine is not installed.
    """
    return score_table(make_table(truth, found, num_classes, kind=kind), engine=engine, most=most)


def score_table(table: ObjectTable, *, engine: EngineName = "pycocotools", most: int | None = None) -> CocoScores:
    """The same of a table that is made already; for the arguments see ``coco_scores``."""
    if most is not None and most < 1:
        raise ConfigError(f"most {most}: at least 1 detection per class and image must count, or none for all")
    largest = int(table.places.max(initial=0)) + 1
    cap = max(CAPS[-1], largest) if most is None else most
    caps = sorted({*CAPS, cap})
    used = _trusted(engine, table, caps)
    arrays = _ENGINES[used](table, caps)
    standard = summarize(arrays, caps, CAPS[-1])
    precision = arrays.precision[:, :, :, 0, caps.index(cap)]
    # A class is NaN at all thresholds and recalls, or at none.
    return CocoScores(
        kind=table.kind,
        numbers=standard if cap == CAPS[-1] else summarize(arrays, caps, cap),
        standard=standard,
        most=cap,
        per_class=precision.mean((0, 1)),
        per_class_50=precision[0].mean(0),
        true_counts=table.true_counts,
        ignored_counts=np.bincount(table.truth.labels[table.truth.ignored], minlength=table.num_classes),
        found_counts=table.found_counts,
        images=table.images,
        engine=used,
    )


def summarize(arrays: CocoArrays, caps: Sequence[int], cap: int) -> TwelveNumbers:
    """The twelve numbers with one of the caps in place of COCO's 100.

    pycocotools' own summary answers -1 for AP whenever the last cap is not 100.
    """
    m = list(caps).index(cap)
    first, second = (caps.index(min(few, cap)) for few in CAPS[:2])
    precision, recall = arrays.precision[..., m], arrays.recall[..., m]
    sizes = range(1, len(AREAS))
    values = [_mean(precision[..., 0]), _mean(precision[0, ..., 0]), _mean(precision[5, ..., 0])]
    values += [_mean(precision[..., a]) for a in sizes]
    values += [_mean(arrays.recall[:, :, 0, first]), _mean(arrays.recall[:, :, 0, second]), _mean(recall[..., 0])]
    values += [_mean(recall[..., a]) for a in sizes]
    return TwelveNumbers(*values)


def _trusted(engine: EngineName, table: ObjectTable, caps: Sequence[int]) -> EngineName:
    """The faster engine where it was found right, else the reference."""
    if engine not in _ENGINES:
        raise ConfigError(f"engine {engine!r}: expected {' or '.join(_ENGINES)}")
    if engine == "pycocotools" or table.kind in _distrusted:
        return "pycocotools"
    if table.kind not in _agreed:
        trial = _part(table)
        objection = _objection(trial, caps)
        if objection:
            _distrusted.add(table.kind)
            _log.warning(
                "faster-coco-eval %s on %d images of this evaluation (%s), so pycocotools is used; another release of "
                "faster-coco-eval may agree",
                *(objection, trial.images, table.kind),
            )
            return "pycocotools"
        _agreed.add(table.kind)
    return "faster"


def _objection(trial: ObjectTable, caps: Sequence[int]) -> str:
    """What speaks against the faster engine; empty: nothing."""
    reference = run_pycocotools(trial, caps)
    try:
        worst = _difference(reference, _ENGINES["faster"](trial, caps), caps)
    except ConfigError:
        raise  # not installed
    except Exception as error:  # another release may fail in any way, and the reference is at hand
        return f"fails ({type(error).__name__}: {error})"
    return f"differs from pycocotools by {worst:.2g}" if not worst <= TOLERANCE else ""


def _part(table: ObjectTable) -> ObjectTable:
    """Images throughout the table with about as many detections as a trial needs."""
    share = max(1, -(-len(table.found) // _TRIAL_DETECTIONS))
    return table if share == 1 else table.take(np.arange(0, table.images, share))


def _difference(first: CocoArrays, second: CocoArrays, caps: Sequence[int]) -> float:
    """The greatest between any of the twelve numbers and any AP of a class; NaN if only one of them is defined."""
    a, b = (
        np.array([*asdict(summarize(x, caps, caps[-1])).values(), *x.precision[:, :, :, 0, -1].mean((0, 1))])
        for x in (first, second)
    )
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return math.nan
    return float(np.nanmax(np.abs(a - b), initial=0.0))


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else math.nan


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


_ENGINES = {"pycocotools": run_pycocotools, "faster": run_faster}
