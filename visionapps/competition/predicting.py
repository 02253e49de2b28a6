"""Photos of a dataset through an engine into an out-of-fold store, and what the store says about the folds.

Shapes: K classes, H W photo.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from visionapps.competition.oof import FoldWriter, OofStore
from visionapps.data.footprints import georef_of
from visionapps.data.store import Photo
from visionapps.errors import ConfigError, DataError
from visionapps.inference.engine import Engine, Scene
from visionapps.inference.products import LEVELS
from visionapps.inference.sources import INVALID, ArraySource
from visionapps.inference.tiling import Tiling
from visionapps.metrics.confusion import Confusion, Scores, argmax_labels
from visionapps.windows import Window

# The engine's planes have 255 for no data and 254 for certainty, a store has 255 for certainty.
_TO_STORE = np.append(np.rint(np.arange(LEVELS + 1) * (255 / LEVELS)), 0).astype(np.uint8)
_ROWS = 512  # of the store's blocks


def predict_photos(
    engine: Engine,
    photos: Sequence[Photo],
    writer: FoldWriter,
    *,
    tiling: Tiling | None = None,
    truth: bool = True,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Write the probabilities of photos, tile by tile as a map is drawn; a band of rows at a time is in memory.

    Args:
        engine: of one model or an ensemble; its products must be the probabilities and nothing else.
        photos: items of a dataset, as training saw them (resized, cut into blocks).
        writer: of the fold that they belong to.
        tiling: how photos are cut; None: as predict and evaluate do.
        truth: store the true labels beside the scores.
        progress: told the name of each photo when it is written.

    Raises:
        ConfigError: the engine draws other products, or a photo belongs to another fold.
        DataError: a photo has other bands than the model expects.
    """
    if engine.products.extras != ("probabilities",):
        raise ConfigError("out-of-fold predictions: the engine must draw probabilities, and nothing else")
    scenes = _scenes(engine, photos, tiling or Tiling())
    for key, results in itertools.groupby(engine.run(scenes), key=lambda result: result.scene.key):
        photo = photos[key]
        whole = Window(0, 0, *photo.size)
        labels = photo.labels(whole) if truth else None
        writer.write(photo.name, _bands(results), shape=photo.size, truth=labels, georef=georef_of(photo))
        if progress is not None:
            progress(photo.name)


def _scenes(engine: Engine, photos: Sequence[Photo], tiling: Tiling) -> Iterator[Scene]:
    for key, photo in enumerate(photos):
        image = np.moveaxis(photo.image(Window(0, 0, *photo.size)), -1, 0)
        source = ArraySource(image, name=photo.name)
        plan = tiling.plan(source.shape, engine.network, dtype=image.dtype, products=engine.products)
        yield Scene(source, plan, range(len(plan.rows.starts)), key=key)


def _bands(results: Iterable[Any]) -> Iterator[np.ndarray]:
    for _, outcome in results:
        if isinstance(outcome, DataError):
            raise outcome
        yield to_levels(outcome.planes[1:], outcome.planes[0])


def to_levels(planes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probabilities as a store has them, of which the largest is that of the label.

    Where rounding to 8 bits made two classes equal, or turned them round, the label's plane is raised over the others:
    so what is judged out of fold is the very map that the model draws.

    Args:
        planes: (K, h, w) uint8 of the engine, round(254 * p), 255 where there is no data.
        labels: (h, w) uint8 that the engine draws, of scores that were not rounded.

    Returns:
        (K, h, w) uint8, round(255 * p) within two levels; 0 in all planes where there is no data.
    """
    return keep_labels(np.asarray(_TO_STORE[planes]), labels)


def keep_labels(levels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Raise the plane of the label over the others where rounding made another class as large; 255 is no label.

    Args:
        levels: (K, h, w) uint8, changed in place.
        labels: (h, w) uint8 of the scores before they were rounded.
    """
    first = argmax_labels(torch.from_numpy(levels)[None])[0].numpy()
    rows, cols = np.nonzero((first != labels) & (labels != INVALID))
    if len(rows):
        levels[labels[rows, cols], rows, cols] = levels[first[rows, cols], rows, cols] + 1
    return levels


@dataclass(frozen=True)
class CrossValidation:
    """What out-of-fold predictions are worth, judged against the true labels.

    Attributes:
        names: of the classes.
        folds: the scores over the photos of each fold, by its number.
        pooled: the scores over all photos together, as if one model had drawn them all.
    """

    names: tuple[str, ...]
    folds: Mapping[int, Scores]
    pooled: Scores

    def spread(self, values: Callable[[Scores], float]) -> tuple[float, float]:
        """Mean and standard deviation (n - 1) over the folds where a value is defined; NaN where it is not."""
        found = np.array([values(scores) for scores in self.folds.values()])
        found = found[~np.isnan(found)]
        mean = float(found.mean()) if len(found) else float("nan")
        return mean, float(found.std(ddof=1)) if len(found) > 1 else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, undefined values as None."""
        summary = {}
        for key in ("mean_dice", "mean_iou", "accuracy"):
            mean, deviation = self.spread(lambda scores, key=key: float(getattr(scores, key)))  # type: ignore[misc]
            summary[key] = {"mean": _defined(mean), "deviation": _defined(deviation)}
        return {
            "over_folds": summary,
            "pooled": self.pooled.to_dict(self.names),
            "folds": {str(fold): scores.to_dict(self.names) for fold, scores in self.folds.items()},
        }


def cross_validate(store: OofStore) -> CrossValidation:
    """Scores of the largest probability of each pixel (the lowest class where two are equal), by fold and pooled.

    Args:
        store: with true labels; folds that are missing are left out.

    Raises:
        DataError: the store is empty, or has no true labels.
    """
    classes, ignore = len(store.labels), store.labels.ignore
    counts = {fold: Confusion(classes, ignore=ignore) for fold in sorted(store.members)}
    if not counts:
        raise DataError(f"{store.folder}: no fold is predicted yet; train one with `visionapps folds`")
    pooled = Confusion(classes, ignore=ignore)
    for name in store.names:
        height, width = store.shape(name)
        for top in range(0, height, _ROWS):
            window = Window(top, 0, min(_ROWS, height - top), width)
            labels = argmax_labels(torch.from_numpy(store.scores(name, window))[None])
            truth = torch.from_numpy(store.truth(name, window))[None]
            for confusion in (counts[store.fold(name)], pooled):
                confusion.update(labels, truth)
    return CrossValidation(
        store.labels.names, {fold: confusion.compute() for fold, confusion in counts.items()}, pooled.compute()
    )


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else value
