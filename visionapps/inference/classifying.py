"""Classifiers over photos: one or several bundles, batches, probabilities in the order of the photos.

Shapes: B batch, C bands, K classes.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from visionapps.backbones.classifiers import Pretrained, classifier_spec, imagenet_names, load_weights, published_frame
from visionapps.classification.base import Classifier
from visionapps.data.class_crops import middle_square
from visionapps.data.class_dataset import as_bands
from visionapps.data.images import read_image
from visionapps.errors import ConfigError, DataError, WeightsError
from visionapps.inference.bundle import Bundle
from visionapps.inference.convolution import one_kernel
from visionapps.inference.network import Precision, choose_device, choose_precision
from visionapps.metrics.topk import ClassScores, TopK
from visionapps.models import classifier
from visionapps.structures import Frame, LabelSpace


@dataclass
class ClassPredictor:
    """Applies classifiers to photos. It takes the models over: moves them to the device and to evaluation mode.

    Args:
        bundles: at least one; of several the probabilities are averaged, and all must have the same classes in the
            same order and the same bands.
        device: "auto" (CUDA if there is one), or a name for torch.device.
        precision: as for maps; see visionapps.inference.network.
        batch: photos at a time, at least 1.

    Raises:
        ConfigError: the device is not there, or the bundles do not belong together.
        WeightsError: a bundle holds another kind of model.
    """

    bundles: Sequence[Bundle]
    device: str = "auto"
    precision: Precision = "auto"
    batch: int = 32
    _models: list[tuple[Classifier, Frame]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.bundles or self.batch < 1:
            raise ConfigError(f"classifying: give at least one bundle, and batch {self.batch} of at least 1")
        self._device = choose_device(self.device)
        self._dtype = choose_precision(self.precision, self._device)
        self._models = [(bundle.classifier.to(self._device).eval(), frame_of(bundle)) for bundle in self.bundles]
        first = self.bundles[0]
        for other in self.bundles[1:]:
            _require_same(first, other)

    @property
    def labels(self) -> LabelSpace:
        """The classes."""
        return self.bundles[0].labels

    def probabilities(self, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Classify photos one after the other; no more than a batch of them is held.

        Args:
            images: (H, W, C) raw pixels of any size; grey ones are repeated over the bands.

        Yields:
            (K,) float32 that sum to 1, for each photo.
        """
        waiting = iter(images)
        while part := list(islice(waiting, self.batch)):
            total: Tensor | None = None
            for model, frame in self._models:
                squares = np.stack([self._square(image, model, frame) for image in part])
                scores = self.scores(model, torch.from_numpy(squares).permute(0, 3, 1, 2)).softmax(1)
                total = scores if total is None else total + scores
            assert total is not None
            yield from (total / len(self._models)).cpu().numpy()

    @torch.inference_mode()
    def scores(self, model: nn.Module, squares: Tensor) -> Tensor:
        """(B, C, h, w) raw squares to (B, K) float32 logits."""
        half = self._dtype != torch.float32
        mixed = torch.autocast(self._device.type, self._dtype) if half else nullcontext()
        with one_kernel(self._device, self._dtype), mixed:
            logits: Tensor = model(squares.to(self._device).contiguous(memory_format=torch.channels_last))
        return logits.float()

    def judge(self, images: Iterable[np.ndarray], labels: Sequence[int]) -> ClassScores:
        """Classify photos whose classes are known, and count what is right."""
        counts = TopK(len(self.labels))
        for found, label in zip(self.probabilities(images), labels, strict=True):
            counts.update(torch.from_numpy(found)[None], torch.tensor([label]))
        return counts.compute()

    def _square(self, image: np.ndarray, model: Classifier, frame: Frame) -> np.ndarray:
        bands = len(model.spec.bands)
        image = as_bands(image, bands)
        if image.shape[2] != bands:
            raise DataError(
                f"classifying: a photo has {image.shape[2]} bands, but the model takes {bands} "
                f"({', '.join(model.spec.bands)}); choose them with --bands"
            )
        return middle_square(image, frame)


def frame_of(bundle: Bundle) -> Frame:
    """How a bundle's classifier sees photos."""
    return bundle.frame or Frame(bundle.tile, 1.0)


def pretrained_bundle(network: str, weights: str = "package") -> Bundle:
    """A published classifier of the thousand classes of ImageNet as a bundle, cut and normalised as its authors do.

    Args:
        network: of timm or torchvision.
        weights: "package", "hub", "hub:<tag>" or a file.

    Raises:
        ConfigError: there is no such network, or no such weights for it.
        WeightsError: the weights cannot be found, or are not of ImageNet's thousand classes.
    """
    names = imagenet_names()
    model = classifier(network, len(names), spec=classifier_spec(network, weights))
    before = {key: tensor.clone() for key, tensor in model.network.head.state_dict().items()}
    load_weights(model.network, Pretrained(network, weights), names, bands=len(model.spec.bands))
    after = model.network.head.state_dict()
    if all(torch.equal(tensor, after[key]) for key, tensor in before.items()):
        raise WeightsError(
            f"{network}: weights {weights!r} are not of ImageNet's {len(names)} classes; train it instead"
        )
    frame = published_frame(network, weights)
    return Bundle(
        model.eval(), LabelSpace.named(names), frame.side, {"network": network, "weights": weights}, frame=frame
    )


def read_photos(paths: Iterable[Path], bands: Sequence[str | int] | None = None) -> Iterator[np.ndarray]:
    """Decode photos one after the other, as training does."""
    return (read_image(path, bands) for path in paths)


def _require_same(first: Bundle, other: Bundle) -> None:
    ours, theirs = first.labels.names, other.labels.names
    if ours != theirs:
        at = next(
            (k for k, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
        )
        told = " and ".join(repr(names[at]) if at < len(names) else "nothing" for names in (ours, theirs))
        raise ConfigError(
            f"averaging: the bundles have {len(ours)} and {len(theirs)} classes that differ from class {at} on "
            f"({told}); only bundles of the same classes in the same order can be averaged"
        )
    if first.spec.bands != other.spec.bands:
        raise ConfigError(
            f"averaging: the bundles take the bands {', '.join(first.spec.bands)} and {', '.join(other.spec.bands)}; "
            "only bundles of the same bands can be averaged"
        )
