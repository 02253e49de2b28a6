"""How the loss looks around trained networks with and without skip connections, along two random directions.

    python tools/claims/loss_surface.py --out surface.png            # about two CPU minutes
    python tools/claims/loss_surface.py --out surface.png --full CIFAR_DIR --device cuda --depth 56 --steps 64000 \
        --batch 128 --grid 51 --shown 1000

The claim (Li et al., Visualizing the Loss Landscape of Neural Nets, 2018, figure 1): without skip connections the
surface of a deep network is rough and steep, with them smooth and nearly convex. Directions are normalised by filter:
each filter of a direction has the norm of that filter of the network (section 4), so that rescaled weights do not look
sharper; biases and normalisations stay as they are. Both pictures have the same axes and colours.
"""

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pictures
import torch
from small_training import Recipe, fit, judge
from torch import Tensor, nn
from tqdm import tqdm

from visionapps.cli.table import render
from visionapps.networks.cifar_resnet import cifar_resnet

_BENT = 0.1  # second difference over the loss from which a point counts as bent down


class Surface(NamedTuple):
    """The loss on a square of the plane through a trained network."""

    title: str
    train_error: float
    loss: np.ndarray  # (G, G): row by the first direction, column by the second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pictures.add_arguments(parser, count=512, test_count=0)
    parser.add_argument("--out", type=Path, required=True, help="a PNG with both surfaces")
    parser.add_argument("--depth", type=int, default=20, metavar="N", help="layers (20)")
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="of training (300)")
    parser.add_argument("--batch", type=int, default=64, metavar="B", help="pictures per step (64)")
    parser.add_argument("--grid", type=int, default=15, metavar="G", help="points per side, odd (15)")
    parser.add_argument("--reach", type=float, default=1.0, help="how far, in norms of the weights (1.0)")
    parser.add_argument("--shown", type=int, default=256, metavar="N", help="pictures whose loss is shown (256)")
    options = parser.parse_args()
    if options.grid % 2 == 0 or options.grid < 5:
        parser.error("--grid must be odd and at least 5, so that the network stands in the middle")
    surfaces, rows = [], []
    for seed in options.seeds:
        data = pictures.pictures_of(options, seed)
        for shortcut, kind in (("A", "ResNet"), ("none", "plain")):
            began = time.process_time()
            surface = surface_of(f"{kind}-{options.depth}", shortcut, data, options, seed)
            surfaces.append(surface)
            rows.append((surface.title, seed, *numbers(surface, options.reach), round(time.process_time() - began)))
    heads = ("network", "seed", "training error", "loss", "at half reach", "at full reach", "bent down", "CPU s")
    print(render(heads, rows))
    print(
        f"loss: in the middle and as median on circles around it; full reach is {options.reach}; bent down: share of "
        f"inner points whose neighbours along a direction lie lower on average by {_BENT / 2:.0%} of the loss or more"
    )
    draw(surfaces, options.reach, options.out)
    print(options.out)


def surface_of(title: str, shortcut: str, data: pictures.Pictures, options: argparse.Namespace, seed: int) -> Surface:
    """Train one network and look around it."""
    torch.manual_seed(seed)
    network = cifar_resnet(options.depth, shortcut=shortcut).to(options.device)
    recipe = Recipe(options.steps, options.batch, decay=5e-4, augment=bool(options.full))
    result = fit(network, data, recipe, seed=seed, title=f"{title}, seed {seed}")
    generator = torch.Generator().manual_seed(seed)
    directions = [direction(network, generator) for _ in range(2)]
    shown = data.train[: options.shown], data.train_labels[: options.shown]
    loss = look_around(network, directions, shown, grid=options.grid, reach=options.reach, title=title)
    return Surface(title, result.train_error, loss)


def direction(network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """A random direction in the weights of convolutions and linear layers, each filter as long as the network's."""
    drawn = {}
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            step = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            lengths = [x.detach().flatten(1).norm(dim=1) for x in (parameter, step)]
            drawn[name] = step * (lengths[0] / lengths[1]).reshape(-1, *[1] * (parameter.ndim - 1))
    return drawn


@torch.no_grad()
def look_around(
    network: nn.Module,
    directions: list[dict[str, Tensor]],
    shown: tuple[Tensor, Tensor],
    *,
    grid: int,
    reach: float,
    title: str,
) -> np.ndarray:
    """(grid, grid) losses; the network has its own weights again afterwards."""
    network.eval()
    trained = {name: p.detach().clone() for name, p in network.named_parameters() if name in directions[0]}
    parameters = dict(network.named_parameters())
    ways = torch.linspace(-reach, reach, grid).tolist()
    loss = np.empty((grid, grid))
    for row in tqdm(range(grid), desc=f"{title}: surface", leave=False):
        for col in range(grid):
            for name, weight in trained.items():
                step = ways[row] * directions[0][name] + ways[col] * directions[1][name]
                parameters[name].copy_(weight + step)
            loss[row, col] = judge(network, *shown)[0]
    for name, weight in trained.items():
        parameters[name].copy_(weight)
    return loss


def numbers(surface: Surface, reach: float) -> tuple[str, str, str, str, str]:
    """Training error, loss in the middle and on two circles, and how much of the surface bends down."""
    grid = len(surface.loss)
    way = np.linspace(-reach, reach, grid)
    radius = np.hypot(*np.meshgrid(way, way))
    spacing = way[1] - way[0]
    rings = [np.median(surface.loss[np.abs(radius - r) <= spacing / 2]) for r in (reach / 2, reach)]
    bends = np.stack([np.diff(surface.loss, 2, axis=0)[:, 1:-1], np.diff(surface.loss, 2, axis=1)[1:-1]])
    down = (bends.min(0) < -_BENT * surface.loss[1:-1, 1:-1]).mean()
    middle = surface.loss[grid // 2, grid // 2]
    return (f"{surface.train_error:.1%}", *(f"{v:.3g}" for v in (middle, *rings)), f"{down:.0%}")


def draw(surfaces: list[Surface], reach: float, path: Path) -> None:
    """All surfaces side by side, as contours of the logarithm of the loss."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [np.log10(np.maximum(surface.loss, 1e-6)) for surface in surfaces]
    levels = np.linspace(min(map(np.min, heights)), max(map(np.max, heights)) + 1e-9, 25)
    figure = Figure(figsize=(4.6 * len(surfaces), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    way = np.linspace(-reach, reach, len(heights[0]))
    for i, (surface, height) in enumerate(zip(surfaces, heights, strict=True)):
        axes = figure.add_subplot(1, len(surfaces), i + 1)
        filled = axes.contourf(way, way, height, levels, cmap="viridis")
        axes.contour(way, way, height, levels, colors="black", linewidths=0.3)
        axes.set(title=surface.title, xlabel="second direction", ylabel="first direction", aspect="equal")
    figure.colorbar(filled, ax=figure.axes, label="log10 of the training loss")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
