"""A detector over images of any size: tiles are read ahead, batches cross tiles and images, one merge ends each image.

Memory grows with the width of an image and with the number of objects, not with its height.

Shapes: B tiles, N objects, h w tile, H W image.
"""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch

from visionapps.boxes import Detections
from visionapps.data.examples import cut_boxes
from visionapps.data.images import resize_labels
from visionapps.detection.base import Detector
from visionapps.errors import ConfigError, DataError
from visionapps.inference.convolution import one_kernel
from visionapps.inference.detecting_masks import placed
from visionapps.inference.detecting_reader import Ending, Glimpse, Load, Looking, Place, Propose, Reader
from visionapps.inference.engine import COMPUTE, MERGE, READ, WAIT_READ, Tally
from visionapps.inference.merging import Merging, merge_tiles
from visionapps.inference.network import Precision, choose_device, choose_precision, is_out_of_memory
from visionapps.inference.sources import Source
from visionapps.inference.threads import read_ahead
from visionapps.masks import CocoRle, coco_to_runs, decode
from visionapps.objects import Objects
from visionapps.structures import Rescale
from visionapps.windows import Window

_AHEAD = 2  # batches that wait for the network
_SEEN = 0.5  # share of a box that has to have data
log = logging.getLogger(__name__)


class Found(NamedTuple):
    """What an image holds, or why it cannot be read."""

    source: Source
    outcome: Objects | DataError


@dataclass
class _Scene:
    """An image whose tiles are on their way."""

    parts: list[tuple[Window, Objects]] = field(default_factory=list)
    tiles: int = 0  # computed so far
    ending: Ending | None = None

    @property
    def complete(self) -> bool:
        return self.ending is not None and self.tiles == self.ending.tiles


class ObjectPredictor:
    """Applies one detector to images. It takes the model over: moves it to the device and to evaluation mode.

    On the CPU the objects of an image do not depend, bit by bit, on the size of the batch, on the number of threads and
    on the other images.

    Attributes:
        threads: that decode pixels, at least 1.
        propose: the proposals of a tile, for detectors that do not make their own: ``search`` or ``known``.
        progress: told how many tiles more are done, after each batch.
        tally: what was done so far.
    """

    def __init__(
        self,
        model: Detector,
        *,
        tile: int | None = None,
        overlap: int | None = None,
        rescale: Rescale | None = None,
        device: str = "auto",
        batch: int | None = None,
        precision: Precision = "auto",
        merging: Merging | None = None,
    ) -> None:
        """
        Args:
            model: raw pixels to detections.
            tile: side of the tiles in pixels, rounded up to the network's coarsest stride; images up to twice as large
                are taken whole. None: all images are.
            overlap: pixels that neighbouring tiles share, at most half a tile: objects up to this size are always seen
                whole by one of them. None: a fifth of the tile.
            rescale: photos are taken whole, scaled like this. Georeferenced rasters keep their resolution.
            device: "auto" (CUDA if there is one), or a name for torch.device.
            batch: tiles per call of the model, at least 1; None: as many as keep the device busy.
            precision: what the network computes in. "auto": bf16 where the processor has it, fp16 on older CUDA
                devices, fp32 elsewhere; boxes are fp32 always.
            merging: how the objects of tiles become those of an image; None: NMS at IoU 0.5, cut objects joined.

        Raises:
            ConfigError: the device is not there, or a number is out of range.
        """
        self._looking = Looking(tile, overlap, rescale, batch)
        self._device = choose_device(device)
        self._dtype = choose_precision(precision, self._device)
        self._model: Detector = model.to(device=self._device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self._model.compute = self._dtype
        self._merging = merging or Merging()
        self._most: int | None = None  # tiles that fit into memory at once, known since more did not
        self.threads = 2
        self.propose: Propose | None = None
        self.progress: Callable[[int], None] | None = None
        self.tally = Tally()

    @property
    def arithmetic(self) -> str:
        """What decides the last digits of boxes and scores, in words."""
        return f"{self._device.type} {str(self._dtype).removeprefix('torch.')}"

    def detect(self, source: Source) -> Objects:
        """The objects of one image, best first, in its pixels.

        Raises:
            DataError: it cannot be read, or has another number of bands than the model eats.
        """
        return next(self.detect_all([source]))

    def detect_all(self, sources: Iterable[Source]) -> Iterator[Objects]:
        """The objects of many images, in order; batches go across images.

        Args:
            sources: taken in a thread of its own, as the reading comes to them.

        Raises:
            DataError: one of them cannot be read.
        """
        for _, outcome in self.run(sources):
            if isinstance(outcome, DataError):
                raise outcome
            yield outcome

    def run(self, sources: Iterable[Source]) -> Generator[Found, None, None]:
        """The same, where an image that cannot be read does not stop the others.

        Raises:
            ConfigError: the model needs proposals and nobody makes them, or not even one tile fits into memory.
        """
        if self._model.needs_proposals and self.propose is None:
            raise ConfigError(
                "this detector classifies proposals and makes none itself: set ObjectPredictor.propose to what finds "
                "them, visionapps.inference.detecting.search, or to known() with those of a file"
            )
        reader = Reader(
            self._looking, self._model.spec, self._model.levels[-1].stride, self._device, self.threads, self._proposals
        )
        loads = read_ahead(reader.loads(sources), depth=_AHEAD, clock=self.tally.clock, stage=READ, wait=WAIT_READ)
        scenes: dict[int, _Scene] = {}
        turn = 0  # the image whose objects are given next
        try:
            for item in loads:
                if isinstance(item, Ending):
                    scenes.setdefault(item.key, _Scene()).ending = item
                else:
                    self._compute(item, scenes)
                while turn in scenes and scenes[turn].complete:
                    yield self._finished(scenes.pop(turn))
                    turn += 1
        finally:
            loads.close()

    @property
    def _proposals(self) -> Propose | None:
        return self.propose if self._model.needs_proposals else None

    def _compute(self, load: Load, scenes: dict[int, _Scene]) -> None:
        """Detect in a batch and hand what was found to the scenes."""
        with self.tally.clock.time(COMPUTE):
            found = self._detections(load)
        with self.tally.clock.time(MERGE):
            for place, each in zip(load.places, found, strict=True):
                scene = scenes.setdefault(place.key, _Scene())
                scene.tiles += 1
                scene.parts.append((place.window, _objects(each, place)))
        self.tally.tiles += len(found)
        self.tally.computed += len(found) * load.images.shape[-1] * load.images.shape[-2]
        if self.progress:
            self.progress(len(found))

    @torch.inference_mode()
    def _detections(self, load: Load) -> list[Detections]:
        """Detections on the CPU. Where memory does not suffice for a batch, it is halved until it does."""
        done: list[Detections] = []
        while (begin := len(done)) < len(load.places):
            part = slice(begin, begin + (self._most or len(load.places)))
            images = load.images[part]
            proposals = None if load.proposals is None else load.proposals[part]
            try:
                with one_kernel(self._device, self._dtype):
                    done += _on_cpu(self._model.detect(images, load.sizes[part], proposals))
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            # Not in the handler: the error keeps the tensors of the failed call alive.
            self._halve(len(images), images.shape[-2:], reason)
        return done

    def _halve(self, tried: int, shape: tuple[int, ...], reason: str) -> None:
        height, width = shape
        if tried == 1:
            raise ConfigError(
                f"tile {height} x {width} px: {self._device} has not enough memory for a single one ({reason}); "
                "give a smaller --tile"
            )
        self._most = tried // 2
        log.warning(
            "%s has not enough memory for batches of %s tiles of %s x %s px: %s from now on",
            *(self._device, tried, height, width, self._most),
        )
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _finished(self, scene: _Scene) -> Found:
        """Merge the tiles of an image and bring its objects to the image's own size."""
        assert scene.ending is not None
        _, source, shape, factor, _, skipped, error = scene.ending
        self.tally.tiles += skipped
        self.tally.skipped += skipped
        if error is not None:
            return Found(source, error)
        self.tally.finished += source.shape[0] * source.shape[1]
        with self.tally.clock.time(MERGE):
            try:
                found = merge_tiles(scene.parts, shape, self._model.num_classes, self._merging)
            except DataError as wrong:
                return Found(source, DataError(f"{source.name}: {wrong}"))
            return Found(source, found if factor == 1.0 else resized(found, shape, source.shape, (factor, factor)))


def _on_cpu(found: list[Detections]) -> list[Detections]:
    """Detections of a batch in one transfer, but for masks."""
    if not found or found[0].boxes.device.type == "cpu":
        return found
    rows = [torch.cat([d.boxes, d.scores[:, None], d.labels[:, None].to(d.boxes.dtype)], 1) for d in found]
    parts = torch.split(torch.cat(rows).cpu(), [len(row) for row in rows])
    return [
        Detections(part[:, :4], part[:, 5].long(), part[:, 4], None if d.masks is None else d.masks.cpu())
        for part, d in zip(parts, found, strict=True)
    ]


def _objects(found: Detections, place: Place) -> Objects:
    """The objects of a tile in pixels of the image, without those that lie mostly where there is no data."""
    boxes = found.boxes.numpy().astype(np.float64)
    kept = np.flatnonzero(_seen(boxes, place.valid)) if place.valid is not None else np.arange(len(boxes))
    window = place.window
    masks, areas = None, np.zeros(0)
    if found.masks is not None:
        pictures = found.masks.numpy()
        masks = tuple(placed(pictures[i], window.row, window.col, place.shape) for i in kept)
        areas = pictures[kept].sum((1, 2), dtype=np.float64)
    moved = boxes[kept] + np.array([window.col, window.row, window.col, window.row], np.float64)
    return Objects(moved, found.labels.numpy()[kept], found.scores.numpy()[kept], areas=areas, masks=masks)


def _seen(boxes: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(N,) bool: whether at least half of the pixels of a box have data."""
    sums = np.zeros((valid.shape[0] + 1, valid.shape[1] + 1), np.int64)
    sums[1:, 1:] = valid.cumsum(0).cumsum(1)
    low = np.floor(boxes[:, :2]).astype(int).clip(0, valid.shape[::-1])
    high = np.ceil(boxes[:, 2:]).astype(int).clip(0, valid.shape[::-1])
    (x0, y0), (x1, y1) = low.T, high.T
    data = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    return np.asarray(data >= _SEEN * ((x1 - x0) * (y1 - y0)))


def search(glimpse: Glimpse) -> np.ndarray:
    """(P, 4) proposals of a tile by selective search."""
    from visionapps.data.selective_search import selective_search

    return selective_search(glimpse.pixels)


def known(proposals: Mapping[str, np.ndarray]) -> Propose:
    """Proposals that were made before, for whole images; each tile gets what it shows of them.

    Args:
        proposals: (P, 4) boxes by the names of images, in pixels of these.

    Returns:
        What ``ObjectPredictor.propose`` takes; it raises DataError for an image without proposals.
    """

    def propose(glimpse: Glimpse) -> np.ndarray:
        if glimpse.name not in proposals:
            raise DataError(f"{glimpse.name}: has no proposals; make them with `visionapps proposals`")
        window = glimpse.window
        corner = np.array([window.col, window.row] * 2, np.float64)
        inside = cut_boxes(proposals[glimpse.name] * glimpse.factor - corner, (window.height, window.width))
        return inside.boxes[inside.left > 0]

    return propose


def resized(
    found: Objects, shape: tuple[int, int], wanted: tuple[int, int], factor: tuple[float, float] | None = None
) -> Objects:
    """Objects of an image of one size (H, W) in the same image of another size.

    Args:
        found: in pixels of the first.
        shape: of the first.
        wanted: of the other.
        factor: pixels of the first per pixel of the other, down and right; None: the ratio of the sizes.
    """
    down, right = factor or (shape[0] / wanted[0], shape[1] / wanted[1])
    limits = np.array([wanted[1], wanted[0]] * 2, np.float64)
    boxes = np.minimum(found.boxes / [right, down, right, down], limits)
    if found.masks is None:
        return Objects(boxes, found.labels, found.scores)
    pictures = [resize_labels(decode(coco_to_runs(m), shape, order="column"), wanted) for m in found.masks]
    masks: tuple[CocoRle, ...] = tuple(placed(picture.astype(bool), 0, 0, wanted) for picture in pictures)
    areas = np.array([float(picture.sum()) for picture in pictures])
    return replace(found, boxes=boxes, masks=masks, areas=areas)
