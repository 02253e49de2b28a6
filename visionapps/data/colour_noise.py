"""Noise along the principal colours of a dataset: light of another colour and strength, as photos really vary."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from visionapps.data.class_dataset import ClassPhoto, as_bands
from visionapps.data.transforms import Augment, Pair
from visionapps.errors import ConfigError

_MOST = 2000  # photos that the colours are measured on: more changes their third digit


@dataclass(frozen=True)
class Colours:
    """The principal colours of a set of photos, values in units of the scale (0 to 1 for 8 bit).

    Attributes:
        variances: (C,) of the pixels along each colour, greatest first.
        directions: (C, C) unit vectors, one per column.
    """

    variances: tuple[float, ...]
    directions: tuple[tuple[float, ...], ...]


def principal_colours(photos: Sequence[ClassPhoto], *, bands: int, scale: float) -> Colours:
    """Measure the covariance of all pixels of the photos, at most 2000 of them, evenly chosen.

    Args:
        photos: at least one.
        bands: C.
        scale: raw value that means 1.

    Source: Krizhevsky, Sutskever and Hinton 2012, section 4.1: "PCA on the set of RGB pixel values throughout the
        training set".
    """
    count, total, squares = 0, np.zeros(bands), np.zeros((bands, bands))
    step = -(-len(photos) // _MOST)
    for photo in photos[::step]:
        pixels = as_bands(photo.image(), bands).reshape(-1, bands).astype(np.float64) / scale
        count += len(pixels)
        total += pixels.sum(0)
        squares += pixels.T @ pixels
    mean = total / count
    values, vectors = np.linalg.eigh(squares / count - np.outer(mean, mean))
    order = np.argsort(values)[::-1]
    return Colours(
        tuple(float(max(0.0, values[i])) for i in order), tuple(tuple(map(float, row)) for row in vectors[:, order])
    )


@dataclass(frozen=True)
class ColourNoise(Augment):
    """Add to every pixel of an image the same sum of principal colours p_i, by a_i times their variance each.

    The a_i are normal, drawn anew for every image.

    Args:
        colours: of the training photos.
        scale: raw value that means 1.
        sigma: standard deviation of the a_i; 0.1 in the paper.

    Source: Krizhevsky, Sutskever and Hinton 2012, section 4.1: [p1 p2 p3] [a1 l1, a2 l2, a3 l3]^T. The l_i are
        variances, so the noise depends on the unit of pixels; it is that of values from 0 to 1.
    """

    colours: Colours
    scale: float = 255.0
    sigma: float = 0.1

    def __post_init__(self) -> None:
        if self.sigma < 0:
            raise ConfigError(f"colour noise: sigma {self.sigma} must not be negative; 0.1 is usual")

    def __call__(self, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Pair:
        amounts = rng.normal(0, self.sigma, len(self.colours.variances)) * np.array(self.colours.variances)
        shift = np.array(self.colours.directions) @ amounts * self.scale
        moved = image + shift
        if not np.issubdtype(image.dtype, np.integer):
            return moved.astype(image.dtype), labels
        limits = np.iinfo(image.dtype)
        return np.rint(np.clip(moved, limits.min, limits.max)).astype(image.dtype), labels


@dataclass(frozen=True)
class Both(Augment):
    """One augmentation after another."""

    first: Augment
    second: Augment

    def __call__(self, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Pair:
        return self.second(*self.first(image, labels, rng), rng)
