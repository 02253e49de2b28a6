"""Photos through classifiers as papers test them: densely, by squares, at several scales, by several models.

Shapes: N photos, H x W pixels, C bands, K classes, n squares of s x s pixels.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from visionapps.classification.base import Classifier
from visionapps.classification.crops import cut
from visionapps.classification.dense import DenseClassifier
from visionapps.classification.fusion import TestPlan
from visionapps.data.class_dataset import as_bands
from visionapps.data.images import resize_image
from visionapps.errors import DataError
from visionapps.inference.bundle import Bundle
from visionapps.inference.classifying import ClassPredictor
from visionapps.structures import Frame


@dataclass
class Cost:
    """What testing took so far.

    Attributes:
        photos: that were answered.
        forwards: images that went through networks: squares and mirrored looks count one each.
        pixels: of these images.
        seconds: in resizing, cutting and computing; reading files is not among them.
    """

    photos: int = 0
    forwards: int = 0
    pixels: int = 0
    seconds: float = 0.0


@dataclass
class PhotoTester(ClassPredictor):
    """Answers photos by a plan, and counts what that costs. It holds a few photos at a time, however many there are.

    Attributes:
        cost: so far.

    Args:
        bundles: as in ClassPredictor, and likewise device, precision and batch: squares of the size of the model's
            frame that go through a network at once; of larger photos fewer do, by their pixels.
        plan: how photos are looked at.

    Raises:
        ConfigError: as ClassPredictor; or a network cannot be evaluated densely, and why.
    """

    plan: TestPlan = field(default_factory=TestPlan)
    cost: Cost = field(default_factory=Cost, init=False)
    _dense: list[DenseClassifier | None] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._dense = [DenseClassifier(model, frame.side) if self.plan.dense else None for model, frame in self._models]

    def probabilities(self, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Classify photos one after the other; squares of several photos share a batch.

        Args:
            images: (H, W, C) raw pixels of any size; grey ones are repeated over the bands.

        Yields:
            (K,) float32 that sum to 1, for each photo.
        """
        views = (self.plan.crops or 1) * max(1, len(self.plan.scales))
        waiting = iter(images)
        while group := tuple(islice(waiting, max(1, self.batch // views))):
            start = time.perf_counter()
            answers = [self._answers(member, group) for member in range(len(self._models))]
            mean = torch.stack(answers).mean(0).cpu().numpy()
            self.cost.seconds += time.perf_counter() - start
            self.cost.photos += len(group)
            yield from mean

    def _answers(self, member: int, group: Sequence[np.ndarray]) -> Tensor:
        """(N, K) probabilities by one member."""
        model, frame = self._models[member]
        looks = [self._looks(image, len(model.spec.bands), frame) for image in group]
        dense = self._dense[member]
        ways = []
        if dense is not None:
            ways.append(self._densely(dense, looks, frame))
        if self.plan.crops is not None:
            side, crops, flips = frame.side, self.plan.crops, self.plan.mirrors[1]
            squares = torch.cat([cut(look, side, crops, flips=flips) for scales in looks for look in scales])
            ways.append(self._softmax(model, squares, frame).reshape(len(group), -1, model.num_classes).mean(1))
        return torch.stack(ways).mean(0)

    def _looks(self, image: np.ndarray, bands: int, frame: Frame) -> list[Tensor]:
        """(C, h, w) of a photo at every scale."""
        image = as_bands(image, bands)
        if image.shape[2] != bands:
            raise DataError(f"testing: a photo has {image.shape[2]} bands, but the model takes {bands}; choose them")
        scaled = (resize_image(image, size) for size in self.plan.sizes(frame, *image.shape[:2]))
        return [torch.from_numpy(np.ascontiguousarray(each.transpose(2, 0, 1))) for each in scaled]

    def _densely(self, dense: DenseClassifier, looks: Sequence[Sequence[Tensor]], frame: Frame) -> Tensor:
        """(N, K): photos of one size go together, with their mirrored looks."""
        mirrored = self.plan.mirrors[0]
        shapes: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
        for number, scales in enumerate(looks):
            for look in scales:
                shapes.setdefault(tuple(look.shape), []).append((number, look))
        rows: list[list[Tensor]] = [[] for _ in looks]
        for alike in shapes.values():
            images = torch.stack([look for _, look in alike])
            views = torch.cat((images, images.flip(3))) if mirrored else images
            found = self._softmax(dense, views, frame)
            found = found.reshape(-1, len(alike), found.shape[1]).mean(0)
            for (number, _), row in zip(alike, found, strict=True):
                rows[number].append(row)
        return torch.stack([torch.stack(each).mean(0) for each in rows])

    def _softmax(self, model: Classifier | DenseClassifier, images: Tensor, frame: Frame) -> Tensor:
        """(n, C, h, w) raw to (n, K), a batch at a time."""
        pixels = images.shape[2] * images.shape[3]
        self.cost.forwards += len(images)
        self.cost.pixels += len(images) * pixels
        at_once = max(1, self.batch * frame.side**2 // pixels)
        return torch.cat([self.scores(model, part).softmax(1) for part in torch.split(images, at_once)])


def predictions(bundle: Bundle, image: np.ndarray, plan: TestPlan, *, device: str = "cpu") -> np.ndarray:
    """The probabilities of one photo's classes; for many photos, see PhotoTester.

    Args:
        bundle: of a classifier, which is moved to the device.
        image: (H, W, C) raw pixels.
        plan: how it is looked at.
        device: where it is computed, in full precision.

    Returns:
        (K,) float32, with the sum 1.
    """
    return next(PhotoTester([bundle], device, "fp32", plan=plan).probabilities([image]))
