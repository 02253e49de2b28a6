"""What a validation has found, gathered by photo over batches, tiles and processes."""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from visionapps.boxes import Batch, Detections
from visionapps.data.object_dataset import ObjectPhoto
from visionapps.inference.detecting_masks import placed
from visionapps.inference.merging import Merging, merge_tiles
from visionapps.masks import CocoRle
from visionapps.objects import Objects
from visionapps.windows import Window

Size = tuple[int, int]


class Found:
    """Detections in pixels of their photos. What is seen twice, as padded shares of processes are, counts once."""

    def __init__(self) -> None:
        self._parts: dict[int, dict[Window, Objects]] = defaultdict(dict)

    def add(self, batch: Batch, found: Sequence[Detections], sizes: Sequence[Size]) -> None:
        """Take the detections of a batch.

        Args:
            batch: says where each image lies in which photo.
            found: detections of each image, in its own pixels.
            sizes: (H, W) of the photos that ``batch.keys`` number.
        """
        counts = [len(detections.scores) for detections in found]
        boxes, scores, labels = (
            _split(torch.cat([getattr(d, name) for d in found]), counts) for name in ("boxes", "scores", "labels")
        )
        for i, key in enumerate(batch.keys):
            window = _place(batch, i, sizes[key])
            row, col = batch.origins[i]
            moved = boxes[i].astype(np.float64) / batch.factors[i] + np.array([col, row, col, row], np.float64)
            moved[:, 0::2] = moved[:, 0::2].clip(window.col, window.col_end)
            moved[:, 1::2] = moved[:, 1::2].clip(window.row, window.row_end)
            drawn = found[i].masks
            if drawn is None:
                self._parts[key][window] = Objects(moved, labels[i], scores[i])
                continue
            masks, areas = _masks_in_photo(drawn, window, sizes[key])
            self._parts[key][window] = Objects(moved, labels[i], scores[i], areas=areas, masks=masks)

    def gather(self, world: int) -> None:
        """Take over what the other processes have found."""
        if world == 1:
            return
        everyone: list[dict[int, dict[Window, Objects]]] = [{} for _ in range(world)]
        torch.distributed.all_gather_object(everyone, dict(self._parts))
        for others in everyone:
            for key, parts in others.items():
                self._parts[key] |= parts

    def merged(self, photos: Sequence[ObjectPhoto], num_classes: int, merging: Merging) -> dict[int, Objects]:
        """The objects of each photo that was looked at, by its number, in ascending order."""
        return {key: self._whole(photos[key].size, key, num_classes, merging) for key in sorted(self._parts)}

    def _whole(self, size: Size, key: int, num_classes: int, merging: Merging) -> Objects:
        parts = self._parts[key]
        alone = parts.get(Window(0, 0, *size))
        if alone is not None and len(parts) == 1:  # seen whole: nothing is to be merged
            return alone
        return merge_tiles(list(parts.items()), size, num_classes, merging)


def _split(values: Tensor, counts: list[int]) -> list[np.ndarray]:
    """One transfer from the device for all images."""
    whole = values.detach().float() if values.is_floating_point() else values.detach()
    return [part.numpy() for part in torch.split(whole.cpu(), counts)]


def _place(batch: Batch, i: int, size: Size) -> Window:
    """Where image i lies in its photo, in whole pixels of the photo."""
    (row, col), (height, width), factor = batch.origins[i], batch.sizes[i], batch.factors[i]
    window = Window(row, col, max(1, round(height / factor)), max(1, round(width / factor)))
    # Sides of a scaled photo are rounded to whole pixels of the scaled one.
    rounding = math.ceil(max(1.0, 0.5 / factor))
    near = row == col == 0 and max(abs(window.height - size[0]), abs(window.width - size[1])) <= rounding
    return Window(0, 0, *size) if near else window


def _masks_in_photo(masks: Tensor, window: Window, size: Size) -> tuple[tuple[CocoRle, ...], np.ndarray]:
    """(N, h, w) bool of an image as run lengths of the photo that it is of, or was cut from; (N,) pixels of each."""
    if masks.shape[1:] != (window.height, window.width):
        scaled = [F.interpolate(m[None, None].float(), (window.height, window.width), mode="bilinear") for m in masks]
        masks = torch.cat([each[:, 0] >= 0.5 for each in scaled]) if scaled else masks
    pictures = masks.cpu().numpy()
    return tuple(placed(mask, window.row, window.col, size) for mask in pictures), pictures.sum((1, 2)).astype(float)
