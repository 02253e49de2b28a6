"""Augmentation of crops: a preset for aerial images, and albumentations pipelines of your own.

An augmentation changes an image (h, w, C) and its label map (h, w) together, keeps size and dtype, and draws all
chance from the generator it is given, so a crop is the same whichever worker makes it. It never normalises: batches
travel in raw pixels and the model normalises on the device.
"""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from visionapps.errors import ConfigError
from visionapps.structures import IGNORE

if TYPE_CHECKING:
    from albumentations import BaseCompose, BasicTransform

Pair = tuple[np.ndarray, np.ndarray]
NORMAL_QUANTILES = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)])

# What OpenCV interpolates; every other dtype takes the way over float64, which holds 32-bit integers exactly.
CV_DTYPES = frozenset(map(np.dtype, (np.uint8, np.uint16, np.int16, np.float32, np.float64)))
CV_BANDS = 4  # some of OpenCV's functions take no more bands at once
QUARTER_TURNS = (cv2.ROTATE_90_COUNTERCLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_CLOCKWISE)


class Augment:
    """The contract of an augmentation; a class of your own needs only this call."""

    def __call__(self, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Pair:
        """Draw a variant of a crop.

        Args:
            image: (h, w, C) raw pixels of any dtype; may be a read-only view and is not changed.
            labels: (h, w) uint8, 255 counts nowhere; not changed either.
            rng: the only source of chance.

        Returns:
            Image and labels of the same sizes and dtypes.
        """
        raise NotImplementedError


def by_bands(image: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply an OpenCV function that knows few dtypes and at most four bands to an (h, w, C) image of any kind.

    Returns:
        (h', w', C) in the dtype of the image; integers are rounded.
    """
    known = image if image.dtype in CV_DTYPES else image.astype(np.float64)
    bands = known.shape[2]
    parts = [function(np.ascontiguousarray(known[..., i : i + CV_BANDS])) for i in range(0, bands, CV_BANDS)]
    result = np.concatenate([p[..., None] if p.ndim == 2 else p for p in parts], axis=2) if bands > 1 else parts[0]
    result = result.reshape(*result.shape[:2], bands)  # OpenCV drops the axis of a single band
    if result.dtype == image.dtype:
        return result
    return (np.rint(result) if np.issubdtype(image.dtype, np.integer) else result).astype(image.dtype)


@dataclass(frozen=True)
class Geometry(Augment):
    """The eight symmetries of the square, and now and then a mild affine: aerial photos have no upright.

    Where the affine looks past the crop, the image is reflected and the labels are 255: mirrored context does the
    network no harm, but mirrored buildings are no truth.

    Args:
        affine: probability of the affine; without it the result is an exact rearrangement of the pixels.
        scale: smallest and largest zoom, drawn log-uniformly.
        degrees: largest rotation either way, on top of the quarter turns.
        shear: largest shear either way, in degrees.
    """

    affine: float = 0.0
    scale: tuple[float, float] = (0.8, 1.25)
    degrees: float = 20.0
    shear: float = 5.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", tuple(self.scale))
        low, high = self.scale
        if not (0 <= self.affine <= 1 and 0 < low <= high and self.degrees >= 0 and 0 <= self.shear < 90):
            raise ConfigError(
                f"geometry: affine {self.affine} must be in [0, 1], scale {self.scale} positive and ascending, "
                f"degrees {self.degrees} not negative, shear {self.shear} in [0, 90)"
            )

    def __call__(self, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Pair:
        # A quarter turn of an oblong crop would change its size.
        square = image.shape[0] == image.shape[1]
        turn = int(rng.integers(4)) if square else 2 * int(rng.integers(2))
        mirror = bool(rng.integers(2))
        if rng.random() >= self.affine:
            return rearrange(image, turn, mirror), rearrange(labels, turn, mirror)
        matrix = self._matrix(image.shape[:2], turn, mirror, rng)
        size = labels.shape[::-1]

        smooth = {"flags": cv2.INTER_LINEAR, "borderMode": cv2.BORDER_REFLECT_101}
        warped = by_bands(image, lambda part: cv2.warpAffine(part, matrix, size, **smooth))
        moved = cv2.warpAffine(
            labels, matrix, size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=IGNORE
        )
        return warped, moved

    def _matrix(self, size: tuple[int, ...], turn: int, mirror: bool, rng: np.random.Generator) -> np.ndarray:
        """(2, 3) of a turn, a flip and a drawn affine about the centre of the crop, in one."""
        zoom = np.exp(rng.uniform(*np.log(self.scale)))
        angle = np.deg2rad(rng.uniform(-self.degrees, self.degrees)) + turn * np.pi / 2
        lean = np.tan(np.deg2rad(rng.uniform(-self.shear, self.shear)))
        cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
        linear = np.array([[cos, sin], [-sin, cos]]) @ np.array([[1, lean], [0, 1]]) @ np.diag([1 - 2 * mirror, 1])
        centre = (np.array(size[::-1]) - 1) / 2  # OpenCV's frame: pixel centres are whole numbers
        return np.column_stack([linear, centre - linear @ centre])


def rearrange(image: np.ndarray, turn: int, mirror: bool) -> np.ndarray:
    """Flip left to right if asked, then turn by quarters counter-clockwise: one of the eight symmetries.

    Args:
        image: (h, w) or (h, w, C) of any dtype.
        turn: quarter turns, 0 to 3.
        mirror: flip first.

    Returns:
        A contiguous array; h and w change places when the turn is odd.
    """
    bands = image.shape[2] if image.ndim == 3 else 1
    if image.dtype not in CV_DTYPES or bands > CV_BANDS:
        return np.ascontiguousarray(np.rot90(image[:, ::-1] if mirror else image, turn))
    # The same eight times faster: numpy copies turned images pixel by pixel.
    result = cv2.flip(image, 1) if mirror else image
    if turn:
        result = cv2.rotate(result, QUARTER_TURNS[turn - 1])
    return np.ascontiguousarray(result).reshape(*result.shape[:2], *image.shape[2:])


class Pipeline(Augment):
    """Transforms of albumentations, in order.

    Args:
        transforms: what to apply; in YAML each is a class_path such as albumentations.RandomGamma with init_args.

    Raises:
        ConfigError: a transform would invent labels, by interpolating them or by filling in class 0.
    """

    def __init__(self, transforms: "Sequence[BasicTransform | BaseCompose]") -> None:
        compose = albumentations().Compose
        for transform in _leaves(transforms):
            _check_labels_survive(transform)
        # strict: a misspelt argument is an error, not a warning. Seeded in every call, so this seed never matters.
        self._compose = compose(list(transforms), seed=0, strict=True)

    def __call__(self, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Pair:
        self._compose.set_random_state(rng, random.Random(int(rng.integers(1 << 63))))
        result = self._compose(image=image, mask=labels)
        changed, moved = result["image"], result["mask"]
        if changed.shape != image.shape or changed.dtype != image.dtype or moved.shape != labels.shape:
            raise ConfigError(
                f"augmentation: the pipeline turned {image.shape} {image.dtype} into {changed.shape} {changed.dtype}; "
                "leave out cropping, resizing and normalising (the loader crops, the model normalises on the device)"
            )
        return changed, moved


@dataclass(frozen=True)
class Gain(Augment):
    """Brighter or darker, all bands together and each a little on its own; for pixels that are not 8 bit.

    Args:
        common: largest relative change of all bands, e.g. 0.2 for factors 0.8 to 1.2.
        single: largest relative change of each band.
    """

    common: float = 0.2
    single: float = 0.05

    def __call__(self, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Pair:
        low, high = 1 - self.single, 1 + self.single
        factors = rng.uniform(1 - self.common, 1 + self.common) * rng.uniform(low, high, image.shape[2])
        if not np.issubdtype(image.dtype, np.integer):
            return (image * factors).astype(image.dtype), labels
        limits = np.iinfo(image.dtype)
        return np.rint(np.clip(image * factors, limits.min, limits.max)).astype(image.dtype), labels


@dataclass(frozen=True)
class Grain(Augment):
    """Sensor noise on 8-bit images: normal, the same in all bands of a pixel.

    Args:
        deviation: smallest and largest standard deviation, in grey values.
    """

    deviation: tuple[float, float] = (2.0, 8.0)

    def __call__(self, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Pair:
        # A random byte looks up its quantile: a tenth of the time of drawing normal numbers. Sums of bytes that stop at
        # 0 and 255, one for what is added and one for what is taken away, spare the way over wider numbers.
        table = np.rint(NORMAL_QUANTILES * rng.uniform(*self.deviation))
        chance = rng.integers(0, 256, image.shape[:2], dtype=np.uint8)
        more, less = (
            cv2.merge([cv2.LUT(chance, np.clip(side, 0, 255).astype(np.uint8))] * image.shape[2]).reshape(image.shape)
            for side in (table, -table)
        )
        return cv2.subtract(cv2.add(image, more), less).reshape(image.shape), labels


class Light(Augment):
    """The part of ``aerial`` that leaves every pixel in its place: what the bands and the dtype of an image allow.

    Args:
        strength: 0 leaves images as they are, 1 is the preset, up to 2 exaggerates.
    """

    def __init__(self, strength: float = 1.0) -> None:
        if not 0 <= strength <= 2:
            raise ConfigError(f"light: strength {strength} must be in [0, 2]; 1 is the preset, 0 changes nothing")
        s = strength
        self._gain = Gain(0.2 * s, 0.05 * s)
        self._grain = Grain((2 * s, 8 * s))
        self._noisy = min(1.0, 0.1 * s)
        self._color = Pipeline(_light(s, color=True)) if s else None
        self._bands = Pipeline(_light(s, color=False)) if s else None

    def __call__(self, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Pair:
        if image.dtype != np.uint8:
            return self._gain(image, labels, rng)
        pipeline = self._color if image.shape[2] == 3 else self._bands
        if pipeline:
            image, labels = pipeline(image, labels, rng)
        return self._grain(image, labels, rng) if rng.random() < self._noisy else (image, labels)


class Aerial(Augment):
    """The preset behind ``aerial``: geometry for every image, and of the rest what its bands and dtype allow."""

    def __init__(self, strength: float = 1.0) -> None:
        if not 0 <= strength <= 2:
            raise ConfigError(f"aerial: strength {strength} must be in [0, 2]; 1 is the preset, 0 only flips and turns")
        s = strength
        self._geometry = Geometry(affine=min(1.0, 0.4 * s), scale=(1 / (1 + 0.25 * s), 1 + 0.25 * s))
        self._light = Light(s)

    def __call__(self, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Pair:
        image, labels = self._geometry(image, labels, rng)
        return self._light(image, labels, rng)


def aerial(strength: float = 1.0) -> Augment:
    """A good preset for photos from above: turns and flips, zoom, light, colour, blur, noise and JPEG traces.

    Hue, saturation and JPEG act on 3-band 8-bit images, light, blur and noise on 8 bit with any bands, and other
    dtypes get geometry and gain only, as nothing is known about the range of their values.

    Args:
        strength: 0 leaves turns and flips, 1 is the preset, up to 2 exaggerates.
    """
    return Aerial(strength)


def geometric() -> Augment:
    """Turns by quarters and flips only: every pixel stays as it was taken."""
    return Geometry()


def albumentations() -> Any:
    """The module albumentations, imported when it is first needed (seconds) and without its look for updates."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as module

    return module


def _light(s: float, *, color: bool) -> list[Any]:
    """The part of the preset that leaves every pixel in its place, for 8-bit images.

    The probabilities are also a budget: a 512 px crop has 2 ms for geometry and all of this. Noise is not here,
    as albumentations takes 5 ms to draw it.
    """
    a = albumentations()
    rare: list[Any] = [
        a.GaussianBlur(blur_limit=0, sigma_limit=(0.3, 0.3 + 0.9 * s), p=1.0),
    ]
    if color:
        rare.append(a.ImageCompression(quality_range=(max(5, round(90 - 40 * s)), 95), p=1.0))
    tint = 0.06 * s
    steps = [
        a.RandomBrightnessContrast(brightness_limit=min(0.9, 0.2 * s), contrast_limit=min(0.9, 0.2 * s), p=0.7),
        a.RandomGamma(gamma_limit=(100 / (1 + 0.25 * s), 100 * (1 + 0.25 * s)), p=0.3),
        # Another sun and another camera: the balance of the bands.
        a.MultiplicativeNoise(multiplier=(1 - tint, 1 + tint), per_channel=True, p=0.3),
        a.OneOf(rare, p=min(1.0, 0.15 * s)),
    ]
    if color:
        hue, saturation = round(8 * s), round(25 * s)
        steps.insert(2, a.HueSaturationValue(hue, saturation, val_shift_limit=0, p=0.3))
    return steps


def _leaves(transforms: "Sequence[BasicTransform | BaseCompose]") -> Iterator[Any]:
    """The single transforms inside OneOf, Sequential and the like."""
    for transform in transforms:
        inner = getattr(transform, "transforms", None)
        if inner is None:
            yield transform
        else:
            yield from _leaves(inner)


def _check_labels_survive(transform: Any) -> None:
    """Albumentations fills masks with 0 unless told otherwise, and 0 is a class."""
    name = type(transform).__name__
    if getattr(transform, "mask_interpolation", cv2.INTER_NEAREST) not in (cv2.INTER_NEAREST, cv2.INTER_NEAREST_EXACT):
        raise ConfigError(f"augmentation: {name} interpolates labels; leave mask_interpolation at 0 (nearest)")
    fill = getattr(transform, "fill_mask", None)
    constant = getattr(transform, "border_mode", cv2.BORDER_CONSTANT) == cv2.BORDER_CONSTANT
    if fill is not None and constant and fill != IGNORE:
        raise ConfigError(
            f"augmentation: {name} fills labels with {fill}, which is a class; "
            f"give it fill_mask: {IGNORE} so that invented pixels count nowhere"
        )
