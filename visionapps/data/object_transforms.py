"""Augmentation of pictures with boxes: a preset for aerial images, and albumentations pipelines of your own.

Boxes, masks, proposals and the flags of every object move together. What a transform cuts off is remembered as the
share that is ``left``, so that the one rule of the loader (``View.keep``) decides what is still an object. All chance
comes from the generator that is given.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from visionapps.data.examples import Example, cropped, mean_pixel, padded, rescaled, turned
from visionapps.data.transforms import Augment, Light, albumentations
from visionapps.errors import ConfigError
from visionapps.windows import Window

if TYPE_CHECKING:
    from albumentations import BaseCompose, BasicTransform


class ObjectAugment:
    """The contract of an augmentation of pictures with boxes; a class of your own needs only this call."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Draw a variant of an example.

        Args:
            example: not to be changed; its arrays may be read-only.
            rng: the only source of chance.

        Returns:
            An example in the same dtype and bands; the size may differ.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Symmetry(ObjectAugment):
    """The eight symmetries of the square: photos from above have no upright. Boxes and pixels stay exact.

    Oblong pictures keep their shape: they are turned by half a turn or not at all.

    Args:
        turns: quarter turns, too; False: only flips left to right, for photos that have an upright.
    """

    turns: bool = True

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        quarter, mirror = int(rng.integers(4)), bool(rng.integers(2))
        if not self.turns:
            return turned(example, 0, mirror)
        height, width = example.size
        return turned(example, quarter if height == width else quarter // 2 * 2, mirror)


@dataclass(frozen=True)
class Zoom(ObjectAugment):
    """Now and then another resolution and another place in a picture of the same size, without any turn.

    Smaller pictures lie somewhere on their mean colour: mirrored surroundings would show objects that have no box.

    Args:
        probability: of doing anything, in [0, 1].
        scale: smallest and largest factor, drawn log-uniformly.
    """

    probability: float = 0.4
    scale: tuple[float, float] = (0.8, 1.25)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", tuple(self.scale))
        low, high = self.scale
        if not (0 <= self.probability <= 1 and 0 < low <= high):
            raise ConfigError(
                f"zoom: probability {self.probability} must be in [0, 1], scale {self.scale} positive and ascending"
            )

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        if rng.random() >= self.probability:
            return example
        factor = float(np.exp(rng.uniform(*np.log(self.scale))))
        height, width = example.size
        # Only what will be seen is scaled; whole pixels are taken, so that the rest is a plain shift.
        part = [min(length, int(np.ceil(length / factor))) for length in (height, width)]
        row, col = (
            int(rng.integers(own - seen, endpoint=True)) for own, seen in zip((height, width), part, strict=True)
        )
        scaled = rescaled(cropped(example, Window(row, col, *part)), factor)
        inside = Window(0, 0, min(height, scaled.size[0]), min(width, scaled.size[1]))
        scaled = cropped(scaled, inside)
        rest = height - inside.height, width - inside.width
        corner = int(rng.integers(rest[0], endpoint=True)), int(rng.integers(rest[1], endpoint=True))
        return padded(scaled, (height, width), corner, mean_pixel(example.image))


class Photometric(ObjectAugment):
    """An augmentation of pixels alone, such as ``visionapps.data.transforms.Light``.

    Args:
        augment: leaves every pixel in its place.
    """

    def __init__(self, augment: Augment) -> None:
        self._augment = augment

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        image, _ = self._augment(example.image, np.zeros(example.size, np.uint8), rng)
        return replace(example, image=image)


class InOrder(ObjectAugment):
    """One augmentation after another.

    Args:
        steps: in the order wanted.
    """

    def __init__(self, steps: Sequence[ObjectAugment]) -> None:
        self._steps = tuple(steps)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        for step in self._steps:
            example = step(example, rng)
        return example


def object_aerial(strength: float = 1.0) -> ObjectAugment:
    """A good preset for photos from above: turns and flips, zoom, light, colour, blur, noise and JPEG traces.

    Nothing is turned by odd angles, for the box around a turned box is larger than the object.

    Args:
        strength: 0 leaves turns and flips, 1 is the preset, up to 2 exaggerates.
    """
    if not 0 <= strength <= 2:
        raise ConfigError(f"object_aerial: strength {strength} must be in [0, 2]; 1 is the preset, 0 turns and flips")
    zoom = Zoom(min(1.0, 0.4 * strength), (1 / (1 + 0.25 * strength), 1 + 0.25 * strength))
    return InOrder([Symmetry(), zoom, Photometric(Light(strength))] if strength else [Symmetry()])


def object_flips() -> ObjectAugment:
    """Left and right may change places and nothing else, as in the papers of the R-CNN family: for upright photos."""
    return Symmetry(turns=False)


class ObjectPipeline(ObjectAugment):
    """Transforms of albumentations, in order; boxes are handled here, so bbox_params are not wanted.

    Boxes travel through the transforms unchecked and are cut to the final picture once, so nothing fails because a
    box touches the edge, and what a crop leaves of an object is known. A transform that turns by odd angles gives the
    box around the turned box, or around the turned mask where there are masks.

    Args:
        transforms: what to apply; in YAML each is a class_path such as albumentations.RandomGamma with init_args.

    Raises:
        ConfigError: a transform cannot move boxes, or handles them itself.
    """

    def __init__(self, transforms: "Sequence[BasicTransform | BaseCompose]") -> None:
        module = albumentations()
        for transform in _flat(transforms):
            _check_moves_boxes(transform, module)
        # strict: a misspelt argument is an error, not a warning. Seeded in every call, so this seed never matters.
        self._compose = module.Compose(list(transforms), seed=0, strict=True, is_check_shapes=False)
        self._compose.strict = False  # or it would insist on checking, clipping and dropping boxes itself

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        self._compose.set_random_state(rng, random.Random(int(rng.integers(1 << 63))))
        sides = np.array([example.size[1], example.size[0]] * 2, np.float64)
        proposals = np.zeros((0, 4)) if example.proposals is None else example.proposals
        boxes = np.concatenate([example.boxes, proposals]) / sides
        data: dict[str, Any] = {"image": example.image}
        if len(boxes):  # a last column tells which row is which, should a transform drop some
            data["bboxes"] = np.column_stack([boxes, np.arange(len(boxes))])
        if example.masks is not None and len(example.masks):
            data["masks"] = example.masks
        result = self._compose(**data)
        image = result["image"]
        _check_picture(example.image, image)
        return _aligned(example, image, result.get("bboxes"), result.get("masks"))


def _aligned(example: Example, image: np.ndarray, rows: np.ndarray | None, masks: np.ndarray | None) -> Example:
    """The example in its new picture, from the rows (box, number) and the masks that albumentations gave."""
    count = len(example.boxes)
    rows = np.zeros((0, 5)) if rows is None else np.asarray(rows, np.float64)
    number = rows[:, 4].astype(np.int64)
    sides = np.array([image.shape[1], image.shape[0]] * 2, np.float64)
    moved = rows[:, :4] * sides
    # Rounding of the division and multiplication must not count as a cut.
    moved = np.where(np.abs(moved - np.rint(moved)) < 1e-6, np.rint(moved), moved)
    own = number < count
    kept, boxes = example.take(number[own]), moved[own]
    if example.masks is not None:
        shown = np.zeros((0, *image.shape[:2]), np.uint8) if masks is None else np.asarray(masks)
        masks = (shown[number[own]] > 0).astype(np.uint8)
        boxes = _around(masks, boxes)
    positive = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))
    proposals = None if example.proposals is None else moved[~own]
    if proposals is not None:
        proposals = proposals[(proposals[:, 2:] > proposals[:, :2]).all(1)]
    masks = None if masks is None else masks[positive]
    return kept.take(positive).redrawn(image, boxes[positive], masks, proposals)


def _around(masks: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Boxes that are no larger than their masks need; a side beyond the picture stays where the mask is cut there."""
    result = boxes.copy()
    height, width = masks.shape[1:]
    for i, mask in enumerate(masks):
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            continue
        tight = np.array([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1])
        rim = np.array([0, 0, width, height])
        cut = (tight == rim) & (np.array([-1, -1, 1, 1]) * (boxes[i] - rim) > 0)
        # A pixel of tolerance: masks are made of whole pixels, and boxes may be finer.
        result[i] = np.where(~cut & (np.abs(tight - boxes[i]) > 1), tight, boxes[i])
    return result


def _check_picture(before: np.ndarray, after: np.ndarray) -> None:
    if after.ndim != 3 or after.shape[2] != before.shape[2] or after.dtype != before.dtype or not after.size:
        raise ConfigError(
            f"augmentation: the pipeline turned {before.shape} {before.dtype} into {after.shape} {after.dtype}; leave "
            "out normalising and conversion to tensors (the model normalises on the device)"
        )


def _flat(transforms: "Sequence[BasicTransform | BaseCompose]") -> list[Any]:
    """The transforms and what is inside OneOf, Sequential and the like, groups too."""
    found: list[Any] = []
    for transform in transforms:
        found += [transform, *_flat(getattr(transform, "transforms", ()))]
    return found


def _check_moves_boxes(transform: Any, module: Any) -> None:
    name = type(transform).__name__
    if getattr(transform, "processors", None):
        raise ConfigError(f"augmentation: {name} has bbox_params; leave them out, boxes are handled by ObjectPipeline")
    if isinstance(transform, module.DualTransform) and "bboxes" not in transform.available_keys:
        raise ConfigError(f"augmentation: {name} moves pixels but cannot move boxes; choose another transform")
    nearest = (None, cv2.INTER_NEAREST, cv2.INTER_NEAREST_EXACT)  # None: a group leaves it to what is inside
    if getattr(transform, "mask_interpolation", None) not in nearest:
        raise ConfigError(f"augmentation: {name} interpolates masks; leave mask_interpolation at 0 (nearest)")
