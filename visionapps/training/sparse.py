"""Pruning while a run goes on: prune a little, train on, prune again."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from visionapps.compression.layers import weight_layers
from visionapps.compression.pruning import Scope, magnitude_masks, require_sparsity
from visionapps.errors import ConfigError


class Sparsify(Callback):
    """Zero the smallest weights, more of them in every epoch, and keep them zero.

    The share grows as s (1 - (1 - t)^3), t running from 0 to 1 over the epochs: quickly while many weights are of no
    use, slowly at last. After its last step ``compress --prune`` with the same share changes nothing.

    Args:
        sparsity: share of zeros at the end, in (0, 1).
        begin: first epoch that prunes, from 0.
        end: epoch that reaches the share; the later ones train what is left.
        scope: "global" or "layer"; see visionapps.compression.pruning.
        keep: patterns of names of layers to leave as they are.

    Source: Han et al. 2015, section 3.4 (iterative pruning); Zhu and Gupta, To Prune or Not to Prune, 2017, equation 1.
    """

    def __init__(
        self, sparsity: float, begin: int = 0, *, end: int = 10, scope: Scope = "global", keep: tuple[str, ...] = ()
    ) -> None:
        require_sparsity(sparsity)
        if not 0 <= begin <= end:
            raise ConfigError(f"Sparsify: begin {begin} and end {end} must be epochs from 0 on, begin not after end")
        self.sparsity = sparsity
        self.begin, self.end = begin, end
        self.scope: Scope = scope
        self.keep = tuple(keep)
        self._masks: list[tuple[Tensor, Tensor]] = []

    def share(self, epoch: int) -> float:
        """Zeros wanted in an epoch, 0 before the first."""
        if epoch < self.begin:
            return 0.0
        done = (epoch - self.begin + 1) / (self.end - self.begin + 1)
        return self.sparsity * (1 - (1 - min(done, 1.0)) ** 3)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if any(isinstance(each, WeightAveraging) for each in trainer.callbacks):  # type: ignore[attr-defined]
            raise ConfigError("Sparsify: averages of weights remember what was before the zeros; leave one of both out")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        share = self.share(trainer.current_epoch)
        if not share:
            return
        layers = weight_layers(pl_module.model, keep=self.keep)  # type: ignore[arg-type]
        masks = magnitude_masks(pl_module.model, share, scope=self.scope, keep=self.keep)  # type: ignore[arg-type]
        self._masks = [(layers[name].weight, mask) for name, mask in masks.items()]  # type: ignore[misc]
        self._hold()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        self._hold()

    @torch.no_grad()
    def _hold(self) -> None:
        # After the step, as momentum and weight decay move weights that have no gradient.
        for weight, mask in self._masks:
            weight.masked_fill_(~mask, 0)  # a product makes -0.0 of negative weights, which no file can leave out
