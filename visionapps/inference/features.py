"""What the last layer of a classifier sees, computed once for every photo and kept in a memory-mapped file.

Shapes: N photos, C bands, D features, K classes.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from visionapps.classification.base import Classifier
from visionapps.classification.dense import name_of
from visionapps.data.class_crops import ClassSample, MiddleSquares, collate_classes
from visionapps.data.class_dataset import ClassPhoto
from visionapps.errors import ConfigError, DataError
from visionapps.files import whole_output
from visionapps.inference.network import choose_device
from visionapps.structures import Frame

VERSION = 1  # of what features mean: raise it, and old files are no longer found
Digits = Literal["float16", "float32"]


@dataclass(frozen=True, eq=False)
class Features:
    """Features of photos.

    Attributes:
        values: (N, D), read from the disk as they are used.
        labels: (N,) of the photos.
        seconds: that computing them took; 0: they were there already.
        path: where they are kept.
    """

    values: np.ndarray
    labels: np.ndarray
    seconds: float
    path: Path


@torch.inference_mode()
def last_layer(classifier: Classifier) -> nn.Linear:
    """The linear layer whose output is the classifier's answer, found by looking at what it does.

    Args:
        classifier: put into evaluation mode.

    Raises:
        ConfigError: its answer is not that of one linear layer with biases.
    """
    network = classifier.network.eval()
    outputs: list[tuple[nn.Linear, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda layer, _, found: outputs.append((layer, found)))
        for layer in network.modules()
        if isinstance(layer, nn.Linear)
    ]
    reference = next(network.parameters())
    image = torch.randn(
        1, len(classifier.spec.bands), network.native, network.native, generator=torch.Generator().manual_seed(0)
    )
    try:
        answer = network(image.to(reference))
    finally:
        for hook in hooks:
            hook.remove()
    alike = (each for each, found in reversed(outputs) if found.shape == answer.shape and torch.equal(found, answer))
    layer = next(alike, None)
    if layer is None or layer.bias is None:
        raise ConfigError(
            f"{name_of(classifier)}: its answer is not that of one linear layer with biases, which a probe would "
            "replace (but of a convolution, several exits, or a rule of its own); probe a map of its pyramid: --stride"
        )
    return layer


class FeatureStore:
    """Computes features of photos, and keeps them for the next time.

    Args:
        folder: gets a file per network, weights, way of cutting and list of photos.
        digits: float16 takes half the room; float32 is for features beyond 65504.
        device: "auto" (CUDA if there is one), or a name for torch.device.
        batch: photos at a time.
        workers: processes that decode and cut photos.
    """

    def __init__(
        self, folder: Path, *, digits: Digits = "float16", device: str = "auto", batch: int = 64, workers: int = 0
    ) -> None:
        if digits not in ("float16", "float32") or batch < 1:
            raise ConfigError(f"features: digits {digits!r} must be float16 or float32, and batch {batch} at least 1")
        self.folder = folder
        self.digits = digits
        self.batch = batch
        self.workers = workers
        self._device = choose_device(device)

    def features(self, classifier: Classifier, frame: Frame, photos: Sequence[ClassPhoto], *, what: str) -> Features:
        """The features of photos, in order; those of the middle of each, as validation sees it.

        Args:
            classifier: computes them, up to its last layer; moved to the device.
            frame: how photos are cut.
            photos: at least one.
            what: names the photos in the bar and in the file's name: "train".

        Raises:
            ConfigError: the classifier has no last linear layer.
            DataError: there is no photo, or a feature is too large for 16 bits.
            OutputError: the disk is full or refuses.
        """
        if not photos:
            raise DataError(f"features: there is no photo of {what}; check the folders and the split")
        layer = last_layer(classifier)
        about = self._about(classifier, layer, frame, photos)
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
        path = self.folder / f"{what}-{key}.npy"
        labels = np.array([photo.label for photo in photos], np.int64)
        if path.is_file():
            return Features(np.load(path, mmap_mode="r"), labels, 0.0, path)
        start = time.perf_counter()
        with whole_output(path, overwrite=True) as part:
            shape = (len(photos), layer.in_features)
            values = np.lib.format.open_memmap(part, "w+", dtype=self.digits, shape=shape)
            done = 0
            for rows in self._computed(classifier, layer, frame, photos, what):
                values[done : done + len(rows)] = self._fitting(rows, what)
                done += len(rows)
            values.flush()
            del values
        return Features(np.load(path, mmap_mode="r"), labels, time.perf_counter() - start, path)

    @torch.inference_mode()
    def _computed(
        self, classifier: Classifier, layer: nn.Linear, frame: Frame, photos: Sequence[ClassPhoto], what: str
    ) -> Iterator[np.ndarray]:
        """(B, D) of every batch."""
        classifier.to(self._device).eval()
        squares = MiddleSquares(photos, frame=frame, bands=len(classifier.spec.bands))
        loader: DataLoader[ClassSample] = DataLoader(
            squares, self.batch, num_workers=self.workers, collate_fn=collate_classes
        )
        seen: list[Tensor] = []
        hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        bar = tqdm(total=len(photos), desc=f"features of {what} photos", unit="photo", disable=None, leave=False)
        try:
            with bar:
                for sample in loader:
                    classifier(sample.image.to(self._device).contiguous(memory_format=torch.channels_last))
                    bar.update(len(sample.image))
                    yield seen.pop().float().cpu().numpy()
        finally:
            hook.remove()

    def _fitting(self, rows: np.ndarray, what: str) -> np.ndarray:
        greatest = float(np.abs(rows).max())
        if not greatest <= float(np.finfo(self.digits).max):  # nor where it is no number
            raise DataError(
                f"features of {what} photos: one is {greatest:g}, which {self.digits} does not hold; "
                "choose float32, or check the weights"
            )
        return rows

    def _about(
        self, classifier: Classifier, layer: nn.Linear, frame: Frame, photos: Sequence[ClassPhoto]
    ) -> dict[str, Any]:
        """All that features depend on."""
        own = {id(parameter) for parameter in layer.parameters()}
        digest = hashlib.sha256()
        for name, tensor in sorted(classifier.state_dict(keep_vars=True).items()):
            if id(tensor) not in own:
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        recipe = dict((classifier.recipe or {}).get("arguments", {}))
        files = {file: Path(file).stat() for file in {p.store or p.source for p in photos} if Path(file).is_file()}
        return {
            "version": VERSION,
            "weights": digest.hexdigest(),
            "recipe": {name: value for name, value in recipe.items() if name not in ("num_classes", "weights")},
            "network": str(classifier.network) if not recipe else "",
            "spec": classifier.spec.to_dict(),
            "frame": asdict(frame),
            "digits": self.digits,
            "files": sorted((name, s.st_size, s.st_mtime_ns) for name, s in files.items()),
            "photos": [(p.name, p.source, p.store, p.offset, p.size, p.chosen) for p in photos],
        }
