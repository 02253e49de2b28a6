"""Small pictures of ten classes for the claims that need training: drawn by a seed, or CIFAR-10 where a person has it.

    python tools/claims/pictures.py --out pictures.png

A drawn picture is one figure (disc, ring, square, frame, plus, saltire, triangle, half disc, two discs, bar) of any
colour, place, size and a little turned, on a background of another colour with a gradient, under noise. A class is its
shape alone, so no pixel and no colour gives it away.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NAMES = ("disc", "ring", "square", "frame", "plus", "saltire", "triangle", "half disc", "two discs", "bar")
_CIFAR_RECORD = 1 + 3 * 32 * 32  # bytes: label, then three planes
_Figure = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Pictures(NamedTuple):
    """Pictures to learn from and to be judged on."""

    train: Tensor  # (N, 3, S, S) float32, mean 0 and standard deviation 1 per band over train
    train_labels: Tensor  # (N,) int64
    test: Tensor  # (M, 3, S, S), normalised as train is
    test_labels: Tensor  # (M,)

    def to(self, device: str) -> "Pictures":
        return Pictures(*(part.to(device) for part in self))


def draw_pictures(count: int, test_count: int = 0, *, side: int = 16, seed: int = 0, noise: float = 0.1) -> Pictures:
    """Pictures of the ten figures in equal shares.

    Args:
        count: N.
        test_count: M.
        side: S in pixels.
        seed: of everything that is drawn.
        noise: standard deviation of what is added to each value of [0, 1].
    """
    generator = np.random.default_rng(seed)
    labels = np.arange(count + test_count) % len(NAMES)
    generator.shuffle(labels[:count])
    generator.shuffle(labels[count:])
    images = np.stack([draw_one(int(label), side, generator, noise) for label in labels])
    return normalised(images, labels, count)


def draw_one(label: int, side: int, generator: np.random.Generator, noise: float = 0.1) -> np.ndarray:
    """(3, side, side) float32 of one figure."""
    turn, radius = generator.uniform(-0.3, 0.3), generator.uniform(0.3, 0.45) * side
    centre = generator.uniform(radius, side - radius, size=2) if 2 * radius < side else np.full(2, side / 2)
    rows, cols = np.mgrid[:side, :side] + 0.5
    dy, dx = (rows - centre[0]) / radius, (cols - centre[1]) / radius
    inside = _FIGURES[label](dx * np.cos(turn) - dy * np.sin(turn), dx * np.sin(turn) + dy * np.cos(turn))
    ground, ink = generator.uniform(0, 1, 3), generator.uniform(0, 1, 3)
    while np.abs(ground - ink).max() < 0.5:  # told apart in one band at least
        ink = generator.uniform(0, 1, 3)
    slope = generator.uniform(-0.2, 0.2, (2, 1, 1)) * np.stack((rows, cols)) / side
    image = np.where(inside, ink[:, None, None], ground[:, None, None] + slope.sum(0))
    return (image + generator.normal(0, noise, image.shape)).astype(np.float32)


def read_cifar(folder: Path) -> Pictures:
    """CIFAR-10 from the binary form of its archive: data_batch_1.bin to data_batch_5.bin and test_batch.bin."""
    files = [*(folder / f"data_batch_{i}.bin" for i in range(1, 6)), folder / "test_batch.bin"]
    if missing := [file.name for file in files if not file.is_file()]:
        sys.exit(f"{folder}: no {', '.join(missing)}; give the unpacked folder of CIFAR-10's binary version")
    batches = [np.fromfile(file, np.uint8).reshape(-1, _CIFAR_RECORD) for file in files]
    records = np.concatenate(batches)
    images = records[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32) / 255
    return normalised(images, records[:, 0], len(records) - len(batches[-1]))


def normalised(images: np.ndarray, labels: np.ndarray, count: int) -> Pictures:
    """Split after ``count`` and normalise each band by what the first part has."""
    mean, std = (getattr(images[:count], f)(axis=(0, 2, 3), keepdims=True) for f in ("mean", "std"))
    pixels, classes = torch.from_numpy((images - mean) / std), torch.from_numpy(labels.astype(np.int64))
    return Pictures(pixels[:count], classes[:count], pixels[count:], classes[count:])


def add_arguments(parser: argparse.ArgumentParser, *, count: int, test_count: int) -> None:
    """What every claim asks about its pictures."""
    parser.add_argument("--count", type=int, default=count, metavar="N", help=f"pictures to learn from ({count})")
    parser.add_argument("--test", type=int, default=test_count, metavar="M", help=f"pictures to test ({test_count})")
    parser.add_argument("--side", type=int, default=16, metavar="PX", help="of a picture (16)")
    parser.add_argument("--full", type=Path, metavar="DIR", help="CIFAR-10 (binary version) in place of all these")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="one run each (0)")


def pictures_of(options: argparse.Namespace, seed: int) -> Pictures:
    """The pictures that add_arguments describes, on their device."""
    if options.full:
        return read_cifar(options.full).to(options.device)
    return draw_pictures(options.count, options.test, side=options.side, seed=seed).to(options.device)


def _disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x**2 + y**2 < 1


def _square(x: np.ndarray, y: np.ndarray, half: float = 0.85) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) < half


def _plus(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.minimum(np.abs(x), np.abs(y)) < 0.3) & _square(x, y, 1)


_FIGURES: tuple[_Figure, ...] = (
    _disc,
    lambda x, y: _disc(x, y) & ~_disc(1.8 * x, 1.8 * y),
    _square,
    lambda x, y: _square(x, y) & ~_square(x, y, 0.45),
    _plus,
    lambda x, y: _plus((x + y) / np.sqrt(2), (x - y) / np.sqrt(2)),
    lambda x, y: (y < 0.8) & (y > 2 * np.abs(x) - 0.9),
    lambda x, y: _disc(x, y) & (y < 0),
    lambda x, y: _disc(2 * x - 1, 2 * y) | _disc(2 * x + 1, 2 * y),
    lambda x, y: (np.abs(x) < 1) & (np.abs(y) < 0.3),
)


def main() -> None:
    from PIL import Image

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a PNG: one row per class")
    parser.add_argument("--side", type=int, default=16, metavar="PX", help="of a picture (16)")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing (0)")
    options = parser.parse_args()
    generator = np.random.default_rng(options.seed)
    rows = [
        np.concatenate([draw_one(label, options.side, generator) for _ in range(12)], axis=2)
        for label in range(len(NAMES))
    ]
    sheet = (np.concatenate(rows, axis=1).clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    Image.fromarray(sheet).resize((sheet.shape[1] * 3, sheet.shape[0] * 3), Image.Resampling.NEAREST).save(options.out)


if __name__ == "__main__":
    main()
