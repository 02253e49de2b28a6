"""The training loop of the claims: SGD with momentum on pictures that fit in memory, the rate divided by ten twice."""

from typing import NamedTuple

import torch
from pictures import Pictures
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

_DROPS = (0.5, 0.75)  # of the steps: where the rate is divided by ten, as in He et al. 2016 (32k and 48k of 64k)


class Recipe(NamedTuple):
    """How a network is trained; the defaults are those of He et al. 2016, section 4.2."""

    steps: int
    batch: int = 64
    rate: float = 0.1
    momentum: float = 0.9
    decay: float = 1e-4
    warm: int = 0  # steps at a tenth of the rate before, which the paper takes for its 110 layers
    augment: bool = False  # moves by up to an eighth of the side and flips


class Result(NamedTuple):
    """What came of it; losses in nats."""

    losses: list[float]  # of each step
    train_loss: float  # at the end, as the network predicts
    train_error: float  # share of wrong labels
    test_loss: float
    test_error: float


def fit(network: nn.Module, pictures: Pictures, recipe: Recipe, *, seed: int, title: str) -> Result:
    """Train a network in place.

    Args:
        network: on the device of the pictures.
        pictures: to learn from and to be judged on.
        recipe: how.
        seed: of the order of the pictures, and of what the network draws.
        title: beside the progress bar.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(network.parameters(), recipe.rate, momentum=recipe.momentum, weight_decay=recipe.decay)
    losses: list[Tensor] = []
    network.train()
    bar = tqdm(range(recipe.steps), desc=title, leave=False, mininterval=1)
    order = torch.empty(0, dtype=torch.long)
    for step in bar:
        if len(order) < recipe.batch:
            order = torch.randperm(len(pictures.train), generator=generator)
        taken, order = order[: recipe.batch].to(pictures.train.device), order[recipe.batch :]
        rate = recipe.rate * 0.1 ** sum(step >= drop * recipe.steps for drop in _DROPS)
        optimizer.param_groups[0]["lr"] = 0.1 * rate if step < recipe.warm else rate
        images = pictures.train[taken]
        loss = F.cross_entropy(
            network(moved(images, generator) if recipe.augment else images), pictures.train_labels[taken]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    train = judge(network, pictures.train, pictures.train_labels)
    test = judge(network, pictures.test, pictures.test_labels) if len(pictures.test) else (float("nan"),) * 2
    return Result(torch.stack(losses).tolist(), *train, *test)


def moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """A batch after one random move and flip each: (B, 3, S, S) of the same size, zeros where nothing was."""
    pad, side = images.shape[-1] // 8, images.shape[-1]
    padded = F.pad(images, (pad,) * 4)
    rows, cols = torch.randint(2 * pad + 1, (2, len(images), 1, 1), generator=generator).to(images.device)
    line = torch.arange(side, device=images.device)
    flip = torch.rand(len(images), 1, 1, generator=generator).to(images.device) < 0.5
    cols = cols + torch.where(flip, side - 1 - line, line)
    picture = torch.arange(len(images), device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[picture, rows + line[:, None], cols].permute(0, 3, 1, 2)


@torch.no_grad()
def judge(network: nn.Module, images: Tensor, labels: Tensor, *, batch: int = 256) -> tuple[float, float]:
    """Mean cross entropy and share of wrong labels, as the network predicts; its mode is restored."""
    before = network.training
    network.eval()
    logits = torch.cat([network(part) for part in images.split(batch)])
    network.train(before)
    return float(F.cross_entropy(logits, labels)), float((logits.argmax(1) != labels).float().mean())
