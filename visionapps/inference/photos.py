"""Photos of a model that learned from resized ones: drawn at the size it knows, given back at their own."""

import logging
from collections.abc import Iterable

import numpy as np

from visionapps.data.examples import resample
from visionapps.data.images import resize_image, resize_labels
from visionapps.inference.products import Band
from visionapps.inference.sources import ArraySource, Source
from visionapps.windows import Window

log = logging.getLogger(__name__)


def at_training_size(source: Source, size: tuple[int, int] | None) -> Source:
    """The photo resized as training photos were.

    Args:
        source: a photo or a raster.
        size: (H, W) of the training photos; None: they were not resized.

    Returns:
        The source itself where there is nothing to resize. Georeferenced rasters keep their resolution, with a warning.
    """
    if size is None or size == source.shape:
        return source
    if source.georef is not None or source.control is not None:
        log.warning(
            "%s: drawn at its own resolution, but the model learned from photos resized to %s x %s pixels",
            source.name,
            *size,
        )
        return source
    pixels = source.read(Window(0, 0, *source.shape))
    image = resize_image(np.moveaxis(pixels.values, 0, -1), size)
    valid = resize_labels(pixels.valid, size)
    return ArraySource(np.moveaxis(image, -1, 0), valid=valid, bands=source.bands, name=source.name)


def at_scale(source: Source, factor: float) -> Source:
    """The photo by exactly this factor larger or smaller, as detectors see it in training; valid as its nearest pixels.

    Args:
        source: a photo.
        factor: new pixels per old pixel, > 0.
    """
    if factor == 1.0:
        return source
    pixels = source.read(Window(0, 0, *source.shape))
    image = resample(np.ascontiguousarray(np.moveaxis(pixels.values, 0, -1)), factor)
    valid = resize_labels(pixels.valid, (image.shape[0], image.shape[1]))
    return ArraySource(np.moveaxis(image, -1, 0), valid=valid, bands=source.bands, name=source.name)


def restored(bands: Iterable[Band], shape: tuple[int, int]) -> Band:
    """All bands of a resized photo as one band of its own size (H, W): each pixel takes the nearest one's values."""
    planes = np.concatenate([band.planes for band in bands], axis=1)
    return Band(Window(0, 0, *shape), np.stack([resize_labels(plane, shape) for plane in planes]))
