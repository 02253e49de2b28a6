"""What stochastic depth saves: blocks on average, exactly and as drawn, and the time of a training step.

    python tools/claims/stochastic_depth.py                  # under a CPU minute
    python tools/claims/stochastic_depth.py --full CIFAR_DIR --device cuda --train 64000 --batch 128

The claims (Huang et al. 2016): with survival falling from 1 to 0.5 over the 54 blocks of ResNet-110, 40.25 are computed
on average, so that a step takes about a quarter less time; the training loss is higher and the test error lower (5.25
against 6.41 % on CIFAR-10, after 500 epochs). Times are of networks in one process, in turns, so that a busy machine
slows all alike. "masked" computes every body and multiplies it by 0 or 1, as libraries do: it saves nothing.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import pictures
import torch
from small_training import Recipe, fit
from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.cli.table import render
from visionapps.networks.cifar_resnet import cifar_resnet
from visionapps.networks.residual import expected_depth, residual_blocks


class Masked(nn.Module):
    """A body whose output is dropped for whole batches after it was computed."""

    def __init__(self, body: nn.Module, probability: float) -> None:
        super().__init__()
        self.body = body
        self.probability = probability

    def forward(self, image: Tensor) -> Tensor:
        drawn = torch.rand((), device=image.device) < self.probability
        return self.body(image) * drawn if self.training else self.probability * self.body(image)


def masked(depth: int, survival: float) -> nn.Module:
    """The network with masks in place of skipping."""
    network = cifar_resnet(depth)
    chances = [block.survival.probability for block in residual_blocks(cifar_resnet(depth, survival=survival))]
    for block, chance in zip(residual_blocks(network), chances, strict=True):
        block.body = Masked(block.body, chance)
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pictures.add_arguments(parser, count=1024, test_count=512)
    parser.add_argument("--depth", type=int, default=110, metavar="N", help="layers (110)")
    parser.add_argument("--survival", type=float, default=0.5, help="of the last block (0.5)")
    parser.add_argument("--batch", type=int, default=32, metavar="B", help="pictures per step (32)")
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="timed steps of each network (40)")
    parser.add_argument("--train", type=int, default=0, metavar="STEPS", help="train both too, and compare errors (0)")
    options = parser.parse_args()
    depths(options.depth, options.survival)
    for seed in options.seeds:
        times(options, seed)
    if options.train:
        errors(options)


def depths(depth: int, survival: float) -> None:
    """Print the expected number of blocks beside the mean of many draws."""
    network = cifar_resnet(depth, survival=survival).train()
    blocks = list(residual_blocks(network))
    torch.manual_seed(0)
    drawn = [sum(block.survives() for block in blocks) for _ in range(2000)]
    print(
        f"ResNet-{depth}: {expected_depth(network):.4f} of {len(blocks)} blocks expected ((3 L - 1) / 4 = "
        f"{(3 * len(blocks) - 1) / 4} for survival 0.5); {statistics.fmean(drawn):.2f} +- "
        f"{statistics.stdev(drawn) / len(drawn) ** 0.5:.2f} in {len(drawn)} draws, from {min(drawn)} to {max(drawn)}"
    )


def times(options: argparse.Namespace, seed: int) -> None:
    """Print what a step takes with constant depth, with skipping and with masks."""
    torch.manual_seed(seed)
    images = torch.randn(options.batch, 3, options.side, options.side, device=options.device)
    labels = torch.randint(10, (options.batch,), device=options.device)
    networks = {
        "constant depth": cifar_resnet(options.depth),
        "skipped": cifar_resnet(options.depth, survival=options.survival),
        "masked": masked(options.depth, options.survival),
    }
    steps = {name: step_of(network.to(options.device), images, labels) for name, network in networks.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()  # memory is fetched
    for _ in range(options.rounds):
        for name, step in steps.items():
            seconds[name].append(step())
    constant = statistics.fmean(seconds["constant depth"])
    rows = [
        (
            name,
            seed,
            f"{statistics.fmean(taken):.3f}",
            f"{statistics.fmean(taken) / constant:.3f}",
            f"{statistics.stdev(taken) / len(taken) ** 0.5 / constant:.3f}",
        )
        for name, taken in seconds.items()
    ]
    print(render(("training step", "seed", "seconds", "of constant depth", "standard error"), rows))


def step_of(network: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], float]:
    """One training step that says what it took: CPU seconds, or seconds of the accelerator."""
    optimizer = torch.optim.SGD(network.train().parameters(), 0.01, momentum=0.9)

    def now() -> float:
        if images.is_cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def step() -> float:
        began = now()
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        return now() - began

    return step


def errors(options: argparse.Namespace) -> None:
    """Train with constant and with stochastic depth and print losses and errors."""
    recipe = Recipe(options.train, options.batch, warm=options.train // 50, augment=bool(options.full))
    rows = []
    for seed in options.seeds:
        data = pictures.pictures_of(options, seed)
        for name, survival in (("constant", 1.0), ("stochastic", options.survival)):
            torch.manual_seed(seed)
            network = cifar_resnet(options.depth, survival=survival).to(options.device)
            result = fit(network, data, recipe, seed=seed, title=f"{name}, seed {seed}")
            loss = statistics.fmean(result.losses[-20:])
            rows.append((name, seed, f"{loss:.3f}", f"{result.train_error:.1%}", f"{result.test_error:.1%}"))
    print(render(("depth", "seed", "training loss", "training error", "test error"), rows))


if __name__ == "__main__":
    main()
