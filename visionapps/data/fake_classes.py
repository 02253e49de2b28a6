"""A classification dataset that needs no download: textures, shapes and colours that tell classes apart by what they
are, not by their mean colour alone."""

from pathlib import Path

import numpy as np
from PIL import Image

from visionapps.errors import ConfigError

KINDS = ("rows", "columns", "checks", "disks", "rings", "crosses", "slopes", "grains", "bands", "blobs")


def write_classes(
    folder: Path, per_class: int, *, side: int = 32, classes: int = 4, rng: np.random.Generator, mean: bool = True
) -> Path:
    """Write a folder of classes, ``folder/<class>/<n>.png``, learnable in a few dozen steps.

    Args:
        folder: made.
        per_class: photos of each class.
        side: in pixels.
        classes: K, at most 10: rows, columns, checks, disks, ...
        rng: decides everything.
        mean: let classes differ in their mean colour, too, which makes them easy; else only by pattern.

    Returns:
        The folder.

    Raises:
        ConfigError: nothing would be written.
    """
    if per_class < 1 or side < 8 or not 1 <= classes <= len(KINDS):
        raise ConfigError(
            f"fake classes: per_class {per_class} at least 1, side {side} at least 8, classes {classes} in "
            f"1..{len(KINDS)}"
        )
    for label, kind in enumerate(KINDS[:classes]):
        place = folder / kind
        place.mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            Image.fromarray(_photo(kind, label, side, rng, mean)).save(place / f"{number:04d}.png")
    return folder


def _photo(kind: str, label: int, side: int, rng: np.random.Generator, mean: bool) -> np.ndarray:
    amount = _pattern(kind, side, rng)[..., None]
    dark, bright = rng.integers(20, 90, 3), rng.integers(140, 240, 3)
    if mean:
        tint = 60 * np.array([np.cos(label), np.sin(label), np.cos(2.3 * label)])
        dark, bright = dark + tint, bright + tint
    image = dark * (1 - amount) + bright * amount + rng.normal(0, 8, (side, side, 3))
    result: np.ndarray = np.clip(image, 0, 255).astype(np.uint8)
    return result


def _pattern(kind: str, side: int, rng: np.random.Generator) -> np.ndarray:
    """(side, side) float in [0, 1]."""
    y, x = np.mgrid[:side, :side].astype(np.float64)
    period, phase = rng.uniform(5, 9), rng.uniform(0, 9)
    wave_x, wave_y = (0.5 + 0.5 * np.sign(np.sin(2 * np.pi * (axis + phase) / period)) for axis in (x, y))
    cx, cy = rng.uniform(0.35, 0.65, 2) * side
    radius = np.hypot(x - cx, y - cy) / side
    patterns = {
        "rows": wave_y,
        "columns": wave_x,
        "checks": np.abs(wave_x - wave_y),
        "disks": (radius < rng.uniform(0.2, 0.3)).astype(float),
        "rings": ((radius > 0.22) & (radius < 0.34)).astype(float),
        "crosses": (np.minimum(np.abs(x - cx), np.abs(y - cy)) < 0.08 * side).astype(float),
        "slopes": (x + y) / (2 * side),
        "grains": rng.random((side, side)).round(),
        "bands": 0.5 + 0.5 * np.sign(np.sin(2 * np.pi * (x + y + phase) / period)),
        "blobs": (np.sin(x / 3 + phase) + np.sin(y / 4 + phase) > 0.4).astype(float),
    }
    found: np.ndarray = patterns[kind]
    return found
