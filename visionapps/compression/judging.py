"""What a step of compression changed: bytes, zeros, seconds and the metric, before and after."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from visionapps.compression.adaptive import multiply_adds
from visionapps.compression.layers import weight_layers
from visionapps.data.class_dataset import ClassDataset, ClassPhoto
from visionapps.data.class_doctor import examine_classes
from visionapps.data.dataset import Dataset
from visionapps.data.doctor import examine
from visionapps.data.object_dataset import ObjectDataset, ObjectPhoto
from visionapps.data.object_doctor import examine_objects
from visionapps.data.store import Photo
from visionapps.detection.base import Detector
from visionapps.errors import ConfigError
from visionapps.inference.bundle import WEIGHTS, Bundle, load
from visionapps.inference.classifying import ClassPredictor
from visionapps.inference.detecting import ObjectPredictor, known, search
from visionapps.inference.evaluation import evaluate_photos, require_same_classes
from visionapps.inference.object_evaluation import evaluate_objects
from visionapps.inference.packed import Ledger, ledger
from visionapps.inference.predictor import Predictor
from visionapps.inference.sources import ArraySource
from visionapps.structures import LabelSpace
from visionapps.windows import Window

Split = Literal["val", "train", "all"]


class Score(NamedTuple):
    """One number that says how good a model is; more is better."""

    name: str
    value: float
    seconds: float  # per photo, on the photos that were judged
    multiply_adds: float | None = None  # per photo; of classifiers, some of which spend less on easy photos


@dataclass(frozen=True)
class Weighed:
    """A bundle on disk, as a user has it.

    Attributes:
        file_bytes: of its weights on disk.
        stages: what each stage of Deep Compression would need for them.
        parameters: numbers of all layers.
        zeros: share of zeros among the weights of convolutions and linear layers.
        values: greatest number of different values, zero not counted, in a compressed layer.
        score: None where it was not measured.
    """

    file_bytes: int
    stages: Ledger
    parameters: int
    zeros: float
    values: int
    score: Score | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        score = self.score._asdict() if self.score else None
        return {**asdict(self), "stages": self.stages._asdict(), "score": score}


Judge = Callable[[Bundle], Score]


def weigh(folder: Path, *, judge: Judge | None = None) -> Weighed:
    """Look at a bundle that lies on disk.

    Args:
        folder: of the bundle.
        judge: measures its score; None: it is left out.
    """
    bundle = load(folder)
    layers = [module.weight.detach() for module in weight_layers(bundle.model).values()]  # type: ignore[operator]
    state = bundle.model.state_dict()
    stages = sum((ledger(tensor) for tensor in state.values()), Ledger(0, 0, 0, 0))
    return Weighed(
        file_bytes=(folder / WEIGHTS).stat().st_size,
        stages=stages,
        parameters=sum(p.numel() for p in bundle.model.parameters()),
        zeros=sum(int((w == 0).sum()) for w in layers) / sum(w.numel() for w in layers),
        values=max(len(w[w != 0].unique()) for w in layers),
        score=judge(bundle) if judge else None,  # last: predictors take the model over
    )


def seconds_per_tile(bundles: Sequence[Bundle], *, rounds: int = 15) -> list[float]:
    """The least time that each model takes for one tile of noise on the CPU; they take turns, as machines have moods.

    NaN for a detector that needs proposals: their search is the greater part, and not the model's.
    """
    images = [
        torch.rand(1, len(b.spec.bands), b.tile, b.tile, generator=torch.Generator().manual_seed(0)) * b.spec.scale
        for b in bundles
    ]
    best = [float("inf")] * len(bundles)
    with torch.inference_mode():
        for _ in range(rounds):
            for place, (bundle, image) in enumerate(zip(bundles, images, strict=True)):
                began = time.perf_counter()
                if not isinstance(bundle.model, Detector):
                    bundle.model(image)
                elif not bundle.model.needs_proposals:
                    bundle.model.detect(image, ((bundle.tile, bundle.tile),))
                else:
                    began = float("nan")
                best[place] = min(time.perf_counter() - began, best[place])
    return best


def make_judge(dataset: Dataset | ObjectDataset | ClassDataset, split: Split, *, device: str = "auto") -> Judge:
    """A function that measures bundles on the photos of a run: mean Dice of maps, COCO's AP at IoU 0.5 of detections,
    the share of right first answers of classifiers.

    The dataset is examined once.

    Raises:
        ConfigError: the split has no photo.
        DataError: the dataset has errors.
    """
    if isinstance(dataset, ClassDataset):
        classes = examine_classes(dataset, progress=True)
        classes.raise_on_errors()
        squares = _chosen({"val": classes.val, "train": classes.train}, split)

        def judge_classes(bundle: Bundle) -> Score:
            require_same_classes(bundle.labels, classes.labels, "compress")
            return _answers(bundle, squares, device)

        return judge_classes
    if isinstance(dataset, ObjectDataset):
        objects = examine_objects(dataset, progress=True)
        objects.raise_on_errors()
        photos = _chosen({"val": objects.val, "train": objects.train}, split)

        def judge_objects(bundle: Bundle) -> Score:
            require_same_classes(bundle.labels, objects.labels, "compress")
            return _detections(bundle, photos)

        return judge_objects
    found = examine(dataset, progress=True)
    found.raise_on_errors()
    shown = _chosen({"val": found.val, "train": found.train}, split)

    def judge_maps(bundle: Bundle) -> Score:
        require_same_classes(bundle.labels, found.coding.labels, "compress")
        return _maps(bundle, shown, found.coding.labels, device)

    return judge_maps


def _chosen(parts: dict[str, Any], split: Split) -> tuple[Any, ...]:
    photos = (*parts["train"], *parts["val"]) if split == "all" else parts[split]
    if not photos:
        raise ConfigError(f"compress: the split {split} has no photo; choose another --split")
    return tuple(photos)


def _maps(bundle: Bundle, photos: Sequence[Photo], labels: LabelSpace, device: str) -> Score:
    # Photos of a dataset are resized already.
    predictor = Predictor(bundle.segmentor, tile=bundle.tile, device=device)
    began = time.perf_counter()
    dice = evaluate_photos(predictor, photos, labels).mean_dice
    return Score("mean Dice", dice, (time.perf_counter() - began) / len(photos))


def _answers(bundle: Bundle, photos: Sequence[ClassPhoto], device: str) -> Score:
    costs = multiply_adds(bundle, photos)
    predictor = ClassPredictor([bundle], device=device)
    began = time.perf_counter()
    top1 = predictor.judge((photo.image() for photo in photos), [photo.label for photo in photos]).top1
    return Score("top-1", top1, (time.perf_counter() - began) / len(photos), costs)


def _detections(bundle: Bundle, photos: Sequence[ObjectPhoto]) -> Score:
    predictor = ObjectPredictor(bundle.detector, tile=bundle.tile, rescale=bundle.rescale)
    stored = {photo.name: photo.proposals for photo in photos if photo.proposals is not None}
    predictor.propose = known(stored) if stored else search
    sources = (
        ArraySource(np.moveaxis(photo.image(Window(0, 0, *photo.size)), -1, 0), name=photo.name) for photo in photos
    )
    began = time.perf_counter()
    found = list(predictor.detect_all(sources))
    seconds = (time.perf_counter() - began) / len(photos)
    truth = [photo.objects for photo in photos]
    return Score("AP50", float(evaluate_objects(truth, found, bundle.labels.names).box.ap50), seconds)
