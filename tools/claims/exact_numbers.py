"""Claims about numbers that flow: variances, gradients, normalisation, dropout, expectations."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from claim import Check, Claim, above, below, close, equal
from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.metrics.confusion import Confusion
from visionapps.networks.cifar_resnet import cifar_resnet
from visionapps.networks.layers import response_norm
from visionapps.networks.residual import expected_depth


def initialisation() -> Iterator[Claim]:
    """Deck 004: the variance should stay. Second moments after 20 layers of 256 ReLUs, over 8 drawings."""
    kept = {name: _second_moment(variance) for name, variance in (("He", 2 / 256), ("Xavier", 1 / 256), ("N", 1e-4))}
    paper = "He et al. 2015, section 2.2"
    yield below("log2 of the second moment after 20 layers, He (variance 2 / n): off 0 by", paper, 2, abs(kept["He"]))
    yield close("Xavier, variance 1 / n: half is lost in every layer", paper, -20, kept["Xavier"], within=0.15)
    expected = 20 * math.log2(256 * 1e-4 / 2)
    yield close("N(0, 0.01): 20 log2(n / 20,000)", paper, expected, kept["N"], within=0.05)


def _second_moment(variance: float, layers: int = 20, drawings: int = 8) -> float:
    """log2 of what is left of it, averaged over drawings."""
    generator = torch.Generator().manual_seed(0)
    logs = []
    for _ in range(drawings):
        values = torch.randn(256, 16, generator=generator, dtype=torch.float64)
        begin = values.square().mean()  # of which the first ReLU halves what He expects to be halved
        for _layer in range(layers):
            weight = torch.randn(256, 256, generator=generator, dtype=torch.float64) * variance**0.5
            values = weight @ values.relu()
        logs.append(float((values.square().mean() / begin).log2()))
    return sum(logs) / drawings


def gradients() -> Iterator[Claim]:
    """Decks 000 and 003 say that gradients vanish in plain-56. At the start they explode; vanishing needs more."""
    norms = {
        (kind, depth): _stem_gradient(depth, shortcut)
        for kind, shortcut in (("plain", "none"), ("residual", "A"))
        for depth in (20, 56)
    }
    source = "000, 003 (corrected)"
    growth = norms["plain", 56] / norms["plain", 20]
    yield above("gradient of the first layer, plain-56 / plain-20 (both normalised)", source, 100, growth)
    yield below("the same of ResNets", source, 10, norms["residual", 56] / norms["residual", 20])
    plain, residual = (_unnormalised_gradient(56, skip) for skip in (False, True))
    yield below("56 layers without normalisation and of small gain: plain", "000", 1e-6, plain)
    yield above("the same with shortcuts", "000", 1e-3, residual)


def _stem_gradient(depth: int, shortcut: str) -> float:
    torch.manual_seed(0)
    network = cifar_resnet(depth, shortcut=shortcut).train()
    image = torch.randn(8, 3, 16, 16)
    F.cross_entropy(network(image), torch.arange(8)).backward()
    stem = next(p for p in network.parameters() if p.ndim == 4)
    return float(stem.grad.norm())


def _unnormalised_gradient(depth: int, skip: bool) -> float:
    """Gradient of the first of many 3 x 3 layers with PyTorch's own initialisation (gain 1/3), which shrinks maps."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(16, 16, 3, padding=1, dtype=torch.float64) for _ in range(depth)]
    values = torch.randn(4, 16, 8, 8, dtype=torch.float64)
    for layer in layers:
        values = values * skip + layer(values).relu()
    values.square().mean().sqrt().backward()
    return float(layers[0].weight.grad.norm())


def jacobians() -> Iterator[Claim]:
    """Decks 000 and 004: d(g(z) + z)/dz = dg/dz + I."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()
    point = torch.randn(6, dtype=torch.float64)
    inner = torch.autograd.functional.jacobian(layer, point)
    whole = torch.autograd.functional.jacobian(lambda z: layer(z) + z, point)
    yield below("Jacobian of a residual block less dg/dz and I", "000, 004", 1e-12, _gap(whole, inner + torch.eye(6)))


def dropout() -> Iterator[Claim]:
    """Deck 000: expectation in training, for a probability p of dropping."""
    torch.manual_seed(0)
    values = torch.rand(1000)
    for p in (0.5, 0.2):
        kept = (torch.rand(4000, 1000) >= p) * values
        got = float(kept.sum(1).mean() / values.sum())
        yield close(f"mean in training over mean at test, p = {p} dropped: 1 - p", "000", 1 - p, got, within=0.01)
    ours = F.dropout(values.expand(4000, 1000), 0.2).sum(1).mean() / values.sum()
    yield close("PyTorch's, which rescales in training", "000", 1.0, float(ours), within=0.01)


def normalisation() -> Iterator[Claim]:
    """Decks 001, 002, 004."""
    torch.manual_seed(0)
    image = torch.rand(2, 96, 5, 5, dtype=torch.float64) * 50
    squares = F.pad(image.square(), (0, 0, 0, 0, 2, 2)).unfold(1, 5, 1).sum(-1)
    expected = image / (2 + 1e-4 * squares) ** 0.75
    source = "002, Krizhevsky et al. 2012, section 3.3"
    yield below(
        "response normalisation less its formula, relative", source, 1e-12, _gap(response_norm()(image), expected) / 50
    )
    half = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0)(image)
    yield above("PyTorch's with the paper's alpha, which it divides by n", source, 1e-2, _gap(half, expected) / 50)
    norm = nn.BatchNorm2d(8, dtype=torch.float64)
    nn.init.uniform_(norm.weight)
    batch = torch.randn(16, 8, 4, 4, dtype=torch.float64) * 3 + 1
    mean, variance = batch.mean((0, 2, 3), keepdim=True), batch.var((0, 2, 3), correction=0, keepdim=True)
    hand = (batch - mean) / (variance + norm.eps).sqrt() * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
    paper = "004, Ioffe and Szegedy 2015"
    yield below("batch normalisation less algorithm 1", paper, 1e-12, _gap(norm(batch), hand))
    stored = 0.9 + 0.1 * variance.flatten() * 256 / 255
    yield below("its stored variance less m / (m - 1) of the batch's", paper, 1e-12, _gap(norm.running_var, stored))
    conv = nn.Conv2d(4, 8, 3, dtype=torch.float64)
    folded = torch.nn.utils.fuse_conv_bn_eval(conv.eval(), norm.eval())
    image = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    yield below(
        "convolution and normalisation less one folded convolution",
        paper,
        1e-12,
        _gap(folded(image), norm(conv(image))),
    )
    values = torch.randn(4, 6, 5, 5, dtype=torch.float64)
    groups = {"layer": (1, (1, 2, 3)), "instance": (6, (2, 3))}
    for name, (count, axes) in groups.items():
        spread = (values.var(axes, correction=0, keepdim=True) + 1e-5).sqrt()
        apart = _gap(F.group_norm(values, count), (values - values.mean(axes, keepdim=True)) / spread)
        yield below(f"group normalisation of {count} less {name} normalisation", "004", 1e-12, apart)


def scores() -> Iterator[Claim]:
    """Deck 003: Dice without 'per class' is pixel accuracy."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, (64, 64))
    drawn = np.where(rng.random((64, 64)) < 0.7, truth, rng.integers(0, 4, (64, 64)) // 2)
    confusion = Confusion(4)
    confusion.update(torch.from_numpy(drawn), torch.from_numpy(truth))
    matches = sum(int(((drawn == k) & (truth == k)).sum()) for k in range(4))
    spread = sum(int((drawn == k).sum() + (truth == k).sum()) for k in range(4))
    accuracy = float((drawn == truth).mean())
    yield close(
        "Dice of sums over classes is pixel accuracy", "003 (corrected)", accuracy, 2 * matches / spread, within=1e-12
    )
    apart = abs(confusion.compute().mean_dice - accuracy)
    yield above("mean Dice of classes is not: how far off", "003 (corrected)", 1e-3, apart)


def expectations() -> Iterator[Claim]:
    """Decks 000, 002 and 004."""
    with torch.device("meta"):
        depth = expected_depth(cifar_resnet(110, survival=0.5))
    source = "000, Huang et al. 2016"
    yield close("stochastic depth: expected blocks of 54, (3 L - 1) / 4", source, 40.25, float(depth), within=1e-12)
    bits = (round(count * math.log2(1000) / 1e6, 2) for count in (1_500_000, 1_281_167))
    yield equal("label bits of 1.5M images, and of the true 1.28M: Mbit", "002", (14.95, 12.77), tuple(bits))
    weights, centroids = 16 * 32, 4 * 32 + 16 * math.log2(4)
    yield equal("16 weights shared among 4: times smaller", "004, Han et al. 2016, figure 3", 3.2, weights / centroids)


def _gap(one: Tensor, other: Tensor) -> float:
    return float((one - other).detach().abs().max())


NUMBERS: tuple[Check, ...] = (initialisation, gradients, jacobians, dropout, normalisation, scores, expectations)
