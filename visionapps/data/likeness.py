"""Near-duplicates between two sets of photos: the same scene again, shifted a little, turned or mirrored."""

import cv2
import numpy as np

SIDE = 16
# Correlation of gradients above which two photos show the same scene. Of 608 drone frames in ten flights the closest
# pair from different flights has 0.54 and of 100 photos of unlike things 0.40; 90 % of the frames reach it with a
# neighbour of their own flight.
THRESHOLD = 0.75
_FLAT = 1.0  # standard deviation, in units of an 8-bit grey value, below which there is no scene to compare


def thumbnail(image: np.ndarray) -> np.ndarray:
    """(H, W, C) image of any dtype to a (SIDE, SIDE) float32 grey picture, scaled to 0..255 by its dtype's range."""
    grey = image[:, :, :3]
    if grey.dtype not in (np.uint8, np.uint16, np.int16, np.float32):
        grey = grey.astype(np.float32)
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).reshape(SIDE, SIDE, -1)
    mean: np.ndarray = np.nan_to_num(small.astype(np.float32)).mean(2)
    if image.dtype != np.uint8:  # 12 bits in 16, reflectances, floats: only the spread is known
        low, high = float(mean.min()), float(mean.max())
        mean = (mean - low) * (255 / (high - low) if high > low else 0.0)
    return mean


def near_duplicates(left: np.ndarray, right: np.ndarray, same: np.ndarray) -> list[tuple[int, int, float]]:
    """The closest partner in right of each picture in left, where it is close enough.

    Args:
        left: (N, SIDE, SIDE) thumbnails.
        right: (M, SIDE, SIDE) thumbnails.
        same: (N, M) bool, pairs that are one photo and not to be compared.

    Returns:
        (index in left, index in right, correlation in -1..1) for those above THRESHOLD.
    """
    if not len(left) or not len(right):
        return []
    ours = _features(left)
    best, partner = np.full(len(left), -1.0, np.float32), np.zeros(len(left), np.intp)
    for mirrored in (right, right.transpose(0, 2, 1)):
        for turns in range(4):
            alike = ours @ _features(np.rot90(mirrored, turns, (1, 2))).T
            alike[same] = -1
            column = alike.argmax(1)
            value = alike[np.arange(len(left)), column]
            partner = np.where(value > best, column, partner)
            best = np.maximum(value, best)
    return [(int(i), int(partner[i]), float(best[i])) for i in np.flatnonzero(best >= THRESHOLD)]


def _features(pictures: np.ndarray) -> np.ndarray:
    """(N, F) unit vectors of the gradients, which ignore light and haze; zero for pictures without a scene."""
    across = np.diff(pictures, axis=2)[:, :-1]
    down = np.diff(pictures, axis=1)[:, :, :-1]
    flat = pictures.std((1, 2)) < _FLAT
    vectors = np.concatenate([across.reshape(len(pictures), -1), down.reshape(len(pictures), -1)], 1)
    vectors = vectors - vectors.mean(1, keepdims=True)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    vectors[flat] = 0
    result: np.ndarray = vectors.astype(np.float32)
    return result
