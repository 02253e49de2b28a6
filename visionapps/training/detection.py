"""The detection task: what happens to a batch, and how a validation is scored: whole photos, tiles merged."""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from visionapps.boxes import Batch
from visionapps.detection.base import Detector
from visionapps.errors import ConfigError, DataError
from visionapps.inference.merging import Merging
from visionapps.metrics.coco import CocoScores, coco_scores
from visionapps.structures import LabelSpace
from visionapps.training.found import Found
from visionapps.training.object_data import DetectionData
from visionapps.training.optim import Curve, LayerRates
from visionapps.training.task import Task, round_up

FEWEST = 100  # detections per image that are never cut off: COCO's own cap
_SPARE = 2  # room for wrong detections beside as many objects as any photo has


class DetectionTask(Task):
    """Trains a detector; validates with COCO's AP on whole photos, whose tiles are merged before they are scored.

    Losses and detections of a validation come from one computation. Where ``limits.most`` of the model is left open, it
    is set from the data: twice the objects of the fullest photo, at least 100.

    Args:
        model: a detector built by a function of visionapps.models; its named weights are loaded when training starts.
        optimizer: any optimizer of torch.optim.
        scheduler: any scheduler of torch.optim.lr_scheduler, stepped once per epoch (ReduceLROnPlateau: after each
            validation, on the AP); or leave it out and give a curve.
        curve: a learning-rate curve over the whole run (visionapps.training.optim.Cosine, Poly, Curve), stepped with
            every optimizer step.
        layer_rates: how learning rate and weight decay differ between layers, and the batch that rates are meant for.
        merging: how detections of overlapping tiles become objects of a photo.
        engine: what computes AP: pycocotools, or the faster one once it agreed with that on the first validation.
    """

    SCORE = "val/ap"
    DATA = DetectionData
    model: Detector

    def __init__(
        self,
        model: Detector,
        optimizer: OptimizerCallable,
        *,
        scheduler: LRSchedulerCallable | None = None,
        curve: Curve | None = None,
        layer_rates: LayerRates = LayerRates(),  # noqa: B008 - frozen
        merging: Merging = Merging(),  # noqa: B008 - frozen
        engine: Literal["pycocotools", "faster"] = "pycocotools",
    ) -> None:
        super().__init__(model, optimizer, scheduler=scheduler, curve=curve, layer_rates=layer_rates)
        self.merging = merging
        self.engine = engine
        self.scores: CocoScores | None = None
        self.mask_scores: CocoScores | None = None
        self._terms = {"train": TermMeans(), "val": TermMeans()}
        self._bad = 0  # readings in a row that were not finite: one may be a step that a gradient scaler skips
        self._found = Found()

    def meet(self, data: DetectionData) -> None:
        data.masks = self.model.gives_masks
        require_learnable(self.model, data)
        if self.model.limits.most is None:
            most = max(FEWEST, _SPARE * data.most_objects)
            self.model.limits = replace(self.model.limits, most=most)

    def load_pretrained(self, labels: LabelSpace) -> None:
        self.model.load_pretrained(labels.names)

    def loss_of(self, batch: Batch) -> Tensor:
        return torch.stack(list(self.model.losses(batch).values())).sum()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        terms = self.model.losses(_channels_last(batch))
        total = self._terms["train"].add(terms)
        # Reading numbers back waits for the device: so every N steps, all terms at once.
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (self.trainer.global_step + 1) % every == 0:
            self._log_terms("train")
        return total

    def on_validation_epoch_start(self) -> None:
        self._terms["val"] = TermMeans()
        self._found = Found()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        terms, found = self.model.judge(_channels_last(batch))
        self._terms["val"].add(terms)
        sizes = [photo.size for photo in self.trainer.datamodule.val_photos]  # type: ignore[attr-defined]
        self._found.add(batch, found, sizes)

    def on_validation_epoch_end(self) -> None:
        assert self.labels is not None
        self._found.gather(self.trainer.world_size)
        if self.trainer.is_global_zero:
            self.scores, self.mask_scores = self._score()
        self.scores, self.mask_scores = self.trainer.strategy.broadcast((self.scores, self.mask_scores))
        scores = self.scores
        assert scores is not None
        summary = {self.SCORE: scores.ap, "val/ap50": scores.ap50, "val/ap75": scores.ap75}
        summary["val/ar"] = scores.numbers.ar100
        if self.mask_scores is not None:
            summary |= {"val/mask_ap": self.mask_scores.ap, "val/mask_ap50": self.mask_scores.ap50}
        # Every process logs the same numbers: nothing is left to be averaged.
        self.log_dict(summary, prog_bar=True, sync_dist=False)
        per_class = zip(self.labels.names, scores.per_class, strict=True)
        self.log_dict({f"{self.SCORE}/{name}": float(ap) for name, ap in per_class}, sync_dist=False)
        self._log_terms("val")
        self._found = Found()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down, as plain data, all that is needed to rebuild the model without the config."""
        assert self.labels is not None
        data: DetectionData = self.trainer.datamodule  # type: ignore[attr-defined]
        rescale = data.view.rescale
        checkpoint["visionapps"] = {
            "recipe": self.model.recipe,
            "spec": self.model.spec.to_dict(),
            "labels": self.labels.to_dict(),
            "tile": round_up(seen_side(data), self.model.levels[-1].stride),
            "rescale": [rescale.short, rescale.long] if rescale else None,
            "limits": asdict(self.model.limits),
            "category_ids": list(data.category_ids),
            "metrics": self._metrics(),
        }

    def _metrics(self) -> dict[str, Any]:
        assert self.labels is not None
        if self.scores is None:
            return {}
        masks = {} if self.mask_scores is None else {"masks": self.mask_scores.to_dict(self.labels.names)}
        return self.scores.to_dict(self.labels.names) | masks

    def _score(self) -> tuple[CocoScores, CocoScores | None]:
        assert self.labels is not None
        classes = len(self.labels)
        photos = self.trainer.datamodule.val_photos  # type: ignore[attr-defined]
        merged = self._found.merged(photos, classes, self.merging)
        # Where Lightning was told to validate on fewer batches, the photos that were left out do not count.
        truth, found = [photos[key].objects for key in merged], list(merged.values())
        boxes = coco_scores(truth, found, classes, engine=self.engine)
        if not self.model.gives_masks:
            return boxes, None
        return boxes, coco_scores(truth, found, classes, kind="mask", engine=self.engine)

    def _log_terms(self, split: str) -> None:
        means = self._terms[split].read()
        total = sum(means.values())
        self._bad = 0 if math.isfinite(total) else self._bad + 1
        if split == "train" and self._bad >= 2:
            listed = ", ".join(f"{name} {value:g}" for name, value in means.items())
            raise ConfigError(
                f"training: the loss is no number any more at step {self.trainer.global_step} ({listed}); lower the "
                "optimizer's lr, give the curve a warm-up, or set trainer.gradient_clip_val"
            )
        self.log(f"{split}/loss", total, prog_bar=True, batch_size=1, sync_dist=split == "val")
        self.log_dict({f"{split}/loss/{n}": v for n, v in means.items()}, batch_size=1, sync_dist=split == "val")


class TermMeans:
    """Means of named loss terms that stay on their device until they are read."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._sums: Tensor | None = None
        self._count = 0

    def add(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Count the terms of a batch, always the same names. Returns their sum, with gradient."""
        self._names = tuple(terms)
        values = torch.stack([value.float() for value in terms.values()])
        kept = values.detach()
        self._sums = kept if self._sums is None else self._sums + kept
        self._count += 1
        return values.sum()

    def read(self) -> dict[str, float]:
        """The means since the last reading; starts anew."""
        sums: list[float] = [] if self._sums is None else self._sums.tolist()
        means = {name: value / self._count for name, value in zip(self._names, sums, strict=True)}
        self._sums, self._count = None, 0
        return means


def require_learnable(model: Detector, data: DetectionData) -> None:
    """Check that the data holds what a detector learns from and is scored by.

    Raises:
        DataError: there is no object on a side, or there are no masks where the detector draws them.
        ConfigError: the detector needs proposals, and the dataset names none, or the view makes objects without any.
    """
    photos = data.train_photos
    where = data.dataset.annotations
    for side, seen, purpose in (("training", photos, "learn from"), ("validation", data.val_photos, "be scored by")):
        if seen and not any((~photo.objects.ignored).any() for photo in seen):
            raise DataError(
                f"{where}: none of the {len(seen)} {side} photos has an object to {purpose}; check classes, split and "
                "policies of the dataset (`visionapps check` lists what became of every annotation)"
            )
    if model.gives_masks and not all(photo.objects.masks is not None for photo in photos if len(photo.objects)):
        raise DataError(
            f"{where}: the model draws masks, but the annotations hold boxes only; give annotations with polygons or "
            "run lengths and dataset.masks: true, or choose a model without masks"
        )
    if model.needs_proposals and data.dataset.proposals is None:
        raise ConfigError(
            "data: the model looks at proposals that it does not make itself; write them with `visionapps proposals` "
            "and name the file in data.init_args.dataset.proposals"
        )
    if model.needs_proposals and data.view.copy_paste:
        raise ConfigError(
            "view: copy_paste adds objects that no proposal of the file is about, so the model would learn of them "
            "from perfect boxes only; set view.copy_paste: 0 for a model that looks at proposals"
        )


def seen_side(data: DetectionData) -> int:
    """The longer side in pixels of what the network sees in training."""
    if data.view.tile is not None:
        return data.view.tile
    if data.view.rescale is not None:
        return data.view.rescale.long
    return max(max(photo.size) for photo in data.train_photos)


def _channels_last(batch: Batch) -> Batch:
    return batch._replace(image=batch.image.contiguous(memory_format=torch.channels_last))
