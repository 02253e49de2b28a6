"""A linear probe of a run's data: features computed once, a linear layer fitted in seconds, and a bundle of both."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from visionapps.classification.base import Classifier
from visionapps.classification.probe import LinearProbe, Tried, choose_l2, fit_probe, hold_out
from visionapps.data.class_dataset import ClassPhoto
from visionapps.data.dataset import Split
from visionapps.data.splits import Weight, divide
from visionapps.errors import ConfigError, DataError
from visionapps.inference.bundle import Bundle
from visionapps.inference.features import FeatureStore, last_layer
from visionapps.metrics.topk import ClassScores, TopK
from visionapps.structures import Frame, LabelSpace

_HELD = 0.2  # share of the training photos that the penalty is chosen on
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Probed:
    """What a probe found.

    Attributes:
        bundle: the classifier with the fitted layer.
        probe: the fit.
        tried: penalties that were tried, on a part of the training photos; empty: one was given.
        scores: on the photos that validate; None: there are none.
        width: D, features of a photo.
        feature_seconds: computing features; 0: they were there already.
        fit_seconds: choosing the penalty and fitting.
    """

    bundle: Bundle
    probe: LinearProbe
    tried: tuple[Tried, ...]
    scores: ClassScores | None
    width: int
    feature_seconds: float
    fit_seconds: float


def probe_photos(
    classifier: Classifier,
    labels: LabelSpace,
    frame: Frame,
    *,
    train: Sequence[ClassPhoto],
    val: Sequence[ClassPhoto],
    store: FeatureStore,
    l2: float | None = None,
    seed: int = 0,
) -> Probed:
    """Fit the last layer of a classifier to photos, all other weights as they are.

    Args:
        classifier: of as many classes as there are labels; its last layer is replaced.
        labels: the classes.
        frame: how photos are cut.
        train: photos to fit to.
        val: photos to judge by; none of them has a say in the fit.
        store: keeps the features.
        l2: the penalty; None: the best of a grid on a fifth of the training photos, whole groups of them where the
            split has groups.
        seed: of that fifth.

    Raises:
        ConfigError: the classifier has other classes, or no last linear layer.
        DataError: there are no photos.
    """
    if classifier.num_classes != len(labels):
        raise ConfigError(
            f"probe: the model has {classifier.num_classes} classes, but the data has {len(labels)}; set num_classes"
        )
    layer = last_layer(classifier)
    known = store.features(classifier, frame, train, what="train")
    start = time.perf_counter()
    tried: tuple[Tried, ...] = ()
    if l2 is None:
        l2, tried = choose_l2(known.values, known.labels, len(labels), held_photos(train, len(labels), seed))
    probe = fit_probe(known.values, known.labels, len(labels), l2=l2)
    seconds = time.perf_counter() - start
    if not probe.converged:
        log.warning("probe: the search ended after %d steps before its minimum; give a stronger l2", probe.steps)
    with torch.no_grad():
        layer.weight.copy_(probe.weight)
        layer.bias.copy_(probe.bias)
    judged = store.features(classifier, frame, val, what="val") if val else None
    scores = None
    if judged is not None:
        counts = TopK(len(labels))
        counts.update(probe.logits(judged.values), torch.from_numpy(judged.labels))
        scores = counts.compute()
    card = {"probe": {"l2": l2, "photos": len(train), "loss": probe.loss}}
    if scores is not None:
        card["metrics"] = scores.to_dict(labels.names)
    bundle = Bundle(classifier.eval(), labels, frame.side, card, frame=frame)
    spent = known.seconds + (judged.seconds if judged is not None else 0.0)
    return Probed(bundle, probe, tried, scores, known.values.shape[1], spent, seconds)


def held_photos(photos: Sequence[ClassPhoto], classes: int, seed: int) -> np.ndarray:
    """(N,) bool: about a fifth of the photos, whole groups where several photos share one."""
    labels = np.array([photo.label for photo in photos], np.int64)
    groups: dict[str, Weight] = {}
    for photo in photos:
        weight = Weight(1, tuple(int(k == photo.label) for k in range(classes)))
        groups[photo.group] = groups[photo.group] + weight if photo.group in groups else weight
    if len(groups) == len(photos):
        return hold_out(labels, _HELD, seed=seed)
    try:
        chosen = divide(Split(val_fraction=_HELD, seed=seed), groups)
    except DataError:  # one group
        return hold_out(labels, _HELD, seed=seed)
    return np.array([photo.group in chosen for photo in photos])
