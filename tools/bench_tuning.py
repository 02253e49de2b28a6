"""How long tuning takes: rules of many classes on many out-of-fold photos, with the nested estimate.

    python tools/bench_tuning.py                      25 classes, 1,000 photos of 256 px, made up
    python tools/bench_tuning.py --store runs/x/oof   a store as `visionapps folds` writes it

Prints CPU seconds of one thread for each step, and beside them what the usual way costs: drawing all photos once per
candidate, measured on a few of them.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from visionapps.competition.nested import tune_nested
from visionapps.competition.oof import OofStore
from visionapps.competition.postprocess import PostProcess, Rule
from visionapps.competition.tuning import Predictions, Tuner, Tuning
from visionapps.metrics.competition import build_metric
from visionapps.runtime import peak_memory
from visionapps.structures import LabelSpace

_DISTINCT = 24  # photos that are made up; the others are turned and mirrored ones with other classes


class MadeUp:
    """Scores of blocks of a few classes with smooth noise, made from few photos while they are read."""

    def __init__(self, photos: int, classes: int, side: int, folds: int) -> None:
        self.labels = LabelSpace.named([f"class {k}" for k in range(classes)])
        self.names = tuple(f"photo {i:05}" for i in range(photos))
        self._folds = folds
        self.spent = 0.0
        rng = np.random.default_rng(0)
        self._photos = [self._made(rng, classes, side) for _ in range(min(photos, _DISTINCT))]

    @staticmethod
    def _made(rng: np.random.Generator, classes: int, side: int) -> tuple[np.ndarray, np.ndarray]:
        cells = -(-side // 32)
        truth = np.kron(
            rng.choice(rng.choice(classes, min(5, classes), replace=False), (cells, cells)), np.ones((32, 32), int)
        )
        truth = truth[:side, :side]
        coarse = rng.normal(size=(classes, side // 4 + 1, side // 4 + 1)).astype(np.float32)
        logits = 1.6 * np.kron(coarse, np.ones((4, 4), np.float32))[:, :side, :side]
        logits += 4 * (truth == np.arange(classes)[:, None, None])
        p = np.exp(logits - logits.max(0))
        return np.rint(255 * p / p.sum(0)).astype(np.uint8), truth.astype(np.uint8)

    def _turned(self, name: str, which: int) -> np.ndarray:
        began = time.process_time()
        number = int(name.split()[1])
        plane = self._photos[number % len(self._photos)][which]
        turn = number // len(self._photos)
        found = np.rot90(plane, turn % 4, (-2, -1))
        found = np.roll(found, turn, 0) if which == 0 else (found + turn) % len(self.labels)
        self.spent += time.process_time() - began
        return np.ascontiguousarray(found)

    def fold(self, name: str) -> int:
        """Of a photo."""
        return int(name.split()[1]) % self._folds

    def scores(self, name: str) -> np.ndarray:
        """(K, H, W) uint8."""
        return self._turned(name, 0)

    def truth(self, name: str) -> np.ndarray:
        """(H, W) uint8."""
        return self._turned(name, 1).astype(np.uint8)


def measure(store: Predictions, tuning: Tuning, metric_name: str) -> None:
    """Tune and print."""
    metric = build_metric(metric_name, len(store.labels))
    tuner = Tuner(store, metric, tuning)
    made = getattr(store, "spent", 0.0)
    began = time.process_time()
    tuned = tune_nested(tuner)
    seconds = time.process_time() - began - (getattr(store, "spent", 0.0) - made)
    scores = f"{tuned.before.score:.4f} -> {tuned.after.score:.4f}, nested {tuned.nested.score:.4f}"
    what = f"{','.join(tuning.rules):<45} background {tuning.background!s:<5}"
    print(f"  {what} {seconds:7.1f} s   {scores}   peak {peak_memory() / 2**20:,.0f} MB", flush=True)


def naive(store: Predictions, metric_name: str, photos: int) -> float:
    """CPU seconds for one candidate of one class over all photos, drawn and counted, from a few of them."""
    metric = build_metric(metric_name, len(store.labels))
    process = PostProcess((Rule(threshold=0.4, min_area=20),) * len(store.labels))
    some = [(store.scores(name), store.truth(name)) for name in store.names[:photos]]
    process.apply(some[0][0])
    began = time.process_time()
    for scores, truth in some:
        metric.count(process.apply(scores), truth)
    return (time.process_time() - began) / len(some) * len(store.names)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=25)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--metric", default="dice_per_image")
    parser.add_argument("--store", type=Path, help="out-of-fold predictions to tune on instead")
    options = parser.parse_args()
    measure(MadeUp(4, 3, 64, 2), Tuning(("triplet", "min_area", "min_present", "keep", "holes")), "dice_per_image")
    store: Predictions = (
        OofStore.open(options.store)
        if options.store
        else MadeUp(options.photos, options.classes, options.side, options.folds)
    )
    print(f"{len(store.labels)} classes, {len(store.names)} photos; the line above only compiled the loops")
    for background in (0, None):
        for rules in (("threshold",), ("threshold", "min_area", "holes"), ("triplet", "min_area", "min_present")):
            measure(store, Tuning(rules, background=background), options.metric)
    once = naive(store, options.metric, min(20, len(store.names)))
    print(f"drawing all photos for one candidate: {once:.1f} s; one class has 255 thresholds, before any area")


if __name__ == "__main__":
    main()
