"""One model out of several checkpoints of a run: the mean of their weights, which costs one forward pass, not several.

The mean of weights is a model where the checkpoints lie in one valley of the loss: the best epochs of a run, its last
ones, or runs that were fine-tuned from the same weights. Statistics of batch normalisation belong to weights and have
to be taken again: see ``recompute_statistics``.

Sources: Izmailov et al. 2018 (SWA); Wortsman et al. 2022 (model soups, and the greedy one); Wu and Johnson 2021
(statistics of a population instead of a running mean).
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from visionapps.data.seen import Seen, joined
from visionapps.errors import ConfigError, WeightsError
from visionapps.inference.bundle import Bundle, from_checkpoint, load


def read_model(path: Path) -> Bundle:
    """A bundle, or what a checkpoint of a run would be as one."""
    return load(path) if path.is_dir() else from_checkpoint(path)


def average(paths: Sequence[Path], weights: Sequence[float] | None = None) -> Bundle:
    """The model with the mean of the weights; one of the checkpoints at a time is in memory beside it.

    Args:
        paths: checkpoints of ``visionapps fit`` or bundles, of one recipe, classes and input.
        weights: how much each counts, >= 0; None: all alike.

    Returns:
        A bundle that says on its card what it is the mean of. Its running statistics of batch normalisation are means,
        too, and its scores unknown.

    Raises:
        ConfigError: weights do not fit the checkpoints, or one is there twice.
        WeightsError: a checkpoint cannot be read, or is of another model than the first; both are named.
    """
    shares = _shares(paths, weights)
    first: Bundle | None = None
    seen: list[Seen | None] = []
    sums: dict[str, Tensor] = {}
    for path, share in zip(paths, shares, strict=True):
        bundle = read_model(path)
        if first is None:
            first = bundle
        _require_same(first, bundle, paths[0], path)
        seen.append(bundle.seen)
        for name, tensor in bundle.model.state_dict().items():
            if not tensor.is_floating_point():  # counters: how many batches the statistics have seen
                sums[name] = torch.maximum(sums[name], tensor) if name in sums else tensor.clone()
            elif name in sums:
                sums[name].add_(tensor.double(), alpha=share)
            else:
                sums[name] = tensor.double() * share
    assert first is not None, "checked with the weights"
    state = first.model.state_dict()
    first.model.load_state_dict({name: tensor.to(state[name].dtype) for name, tensor in sums.items()})
    made = {"averaged": [{"from": str(path), "share": share} for path, share in zip(paths, shares, strict=True)]}
    return replace(first, card=made, seen=joined(seen))


class Soup(NamedTuple):
    """What the greedy search leaves."""

    bundle: Bundle
    used: tuple[Path, ...]  # best one first
    score: float  # of the mean
    alone: tuple[tuple[Path, float], ...]  # each checkpoint by itself, best one first


def greedy_soup(
    paths: Sequence[Path], score: Callable[[Bundle], float], finish: Callable[[Bundle], Bundle] = lambda bundle: bundle
) -> Soup:
    """Add checkpoints to the mean, best one first, and keep those that do not make it worse.

    Args:
        paths: as for ``average``; each is read some times.
        score: how good a bundle is, the higher the better, on photos that none of them was trained on.
        finish: applied to every mean of several before it is judged, such as new statistics.

    Source: Wortsman et al. 2022, recipe 1.
    """
    _shares(paths, None)
    alone = sorted(((path, score(read_model(path))) for path in paths), key=lambda item: -item[1])
    used: tuple[Path, ...] = (alone[0][0],)
    best = alone[0][1]
    for path, _ in alone[1:]:
        found = score(finish(average((*used, path))))
        if found >= best:
            used, best = (*used, path), found
    bundle = average(used)
    return Soup(finish(bundle) if len(used) > 1 else bundle, used, best, tuple(alone))


def normalisations(model: nn.Module) -> list[_BatchNorm]:
    """The batch normalisations whose statistics move in training; those that a model keeps fixed are not among them."""
    modes = {module: module.training for module in model.modules()}
    model.train()
    found = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for module, training in modes.items():
        module.training = training
    return found


@torch.no_grad()
def recompute_statistics(model: nn.Module, images: Iterable[Tensor]) -> int:
    """Give batch normalisation the mean and variance of what its inputs are with these weights.

    Every layer is normalised by its batch, as in training, and everything else (dropout, skipped depth) rests, as in
    use. Mean and variance are those of all values of all batches together: a mean of the batches' variances would leave
    out how their means differ, and be too small.

    Args:
        model: takes (B, C, h, w); changed in place, and left in evaluation mode.
        images: batches like those of training, the augmentation included; they are brought to the model's device.

    Returns:
        Images that were looked at; 0 where the model has no such layer: then none is taken.

    Raises:
        ConfigError: there was no batch.
    """
    layers = normalisations(model)
    if not layers:
        return 0
    seen = {layer: _Moments(layer.num_features) for layer in layers}
    hooks = [layer.register_forward_pre_hook(seen[layer].look) for layer in layers]
    device = next(model.parameters()).device
    model.eval()
    count = 0
    kept = [(layer, {n: b.clone() for n, b in layer.named_buffers(recurse=False)}) for layer in layers]
    try:
        for layer in layers:
            layer.training = True
        for batch in images:
            model(batch.to(device))
            count += len(batch)
    finally:
        model.eval()
        for hook in hooks:
            hook.remove()
        for layer, buffers in kept:  # what the batches left there
            for name, value in buffers.items():
                layer.get_buffer(name).copy_(value)
    if not count:
        raise ConfigError("statistics of batch normalisation: no image to take them from; give one batch at least")
    for layer, moments in seen.items():
        if moments.count:  # a layer that is not run in evaluation mode keeps what it had
            layer.running_mean.copy_(moments.mean)  # type: ignore[union-attr]
            layer.running_var.copy_(moments.variance)  # type: ignore[union-attr]
    return count


class _Moments:
    """Mean and variance of each channel over batches, as they come. Source: Chan, Golub and LeVeque 1983."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)  # summed squared distances from the mean

    def look(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        values: Tensor = inputs[0].detach().float()
        axes = [axis for axis in range(values.ndim) if axis != 1]
        count = values.numel() // values.shape[1]
        variance, mean = (moment.double().cpu() for moment in torch.var_mean(values, axes, correction=0))
        squares = variance * count
        apart = mean - self.mean
        total = self.count + count
        self._squares += squares + apart.square() * (self.count * count / total)
        self.mean += apart * (count / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        """Unbiased, as running statistics are."""
        return self._squares / max(1, self.count - 1)


def _shares(paths: Sequence[Path], weights: Sequence[float] | None) -> tuple[float, ...]:
    if not paths:
        raise ConfigError("average: no checkpoint; give two or more")
    places = [os.path.abspath(path) for path in paths]
    for i, path in enumerate(paths):
        if places[i] in places[:i]:
            raise ConfigError(f"average: {path} is there twice; give it once, with a larger weight")
    given = [1.0] * len(paths) if weights is None else [float(weight) for weight in weights]
    if len(given) != len(paths):
        raise ConfigError(f"average: {len(given)} weights for {len(paths)} checkpoints; give one for each")
    if not all(0 <= weight < float("inf") for weight in given) or not sum(given):
        raise ConfigError(f"average: weights {given}; they must be finite and not negative, and not all 0")
    return tuple(weight / sum(given) for weight in given)


def _require_same(first: Bundle, other: Bundle, its: Path, path: Path) -> None:
    own, expected = _said(other), _said(first)
    for what in sorted(own.keys() | expected.keys()):
        if own.get(what) != expected.get(what):
            raise WeightsError(
                f"{path}: has {what} {own.get(what)}, but {its} has {expected.get(what)}; only weights of one model "
                "can be averaged: of different ones make an ensemble (`visionapps ensemble make`)"
            )


def _said(bundle: Bundle) -> dict[str, Any]:
    """What must agree, name by name."""
    recipe = bundle.model.recipe or {}
    facts = {"model": recipe.get("model"), "classes": ", ".join(bundle.labels.names), "tile": bundle.tile}
    facts |= {"resize": bundle.resize, "gsd": bundle.gsd, **bundle.spec.to_dict()}
    return facts | dict(recipe.get("arguments") or {})
