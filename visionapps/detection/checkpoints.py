"""Whole detectors to begin from: bundles of ours, and files of torchvision's Faster R-CNN, Mask R-CNN and RetinaNet.

Everything but the rows of classes must fit. Of those rows, the ones whose class has the same name are kept, whatever
its number; the others begin anew. Shapes: K classes, A anchors per position.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from visionapps.backbones.hub import TorchvisionCard, cached_file, download
from visionapps.backbones.weights import fit_state, read_tensors
from visionapps.detection.base import Detector
from visionapps.errors import ConfigError, VisionAppsError, WeightsError
from visionapps.structures import InputSpec

State = dict[str, Tensor]

PUBLISHED = "torchvision:"  # before the name of a detector: the weights that torchvision publishes for it

# Files of a bundle; they are written by visionapps.inference.bundle.
MODEL, WEIGHTS = "model.yaml", "weights.safetensors"
_COCO_ROWS = 91  # of torchvision's files: background, and COCO's ids 1 to 90, ten of which no class has
_BODY = "backbone.body."
_EPS = 1e-5  # of torchvision's batch norms in necks and heads

# torchvision's names to ours, old and new forms of its files.
_RENAMES = tuple(
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"backbone\.fpn\.inner_blocks\.(\d+)\.(weight|bias)", r"neck.lateral.\1.0.\2"),
        (r"backbone\.fpn\.inner_blocks\.(\d+)\.([01])\.(\w+)", r"neck.lateral.\1.\2.\3"),
        (r"backbone\.fpn\.layer_blocks\.(\d+)\.(weight|bias)", r"neck.output.\1.0.\2"),
        (r"backbone\.fpn\.layer_blocks\.(\d+)\.([01])\.(\w+)", r"neck.output.\1.\2.\3"),
        (r"backbone\.fpn\.extra_blocks\.p6\.(\w+)", r"neck.sixth.\1"),
        (r"backbone\.fpn\.extra_blocks\.p7\.(\w+)", r"neck.seventh.\1"),
        (r"rpn\.head\.conv\.(weight|bias)", r"rpn.convs.0.\1"),
        (r"rpn\.head\.conv\.(\d+)\.0\.(\w+)", r"rpn.convs.\1.\2"),
        (r"rpn\.head\.cls_logits\.(\w+)", r"rpn.objectness.\1"),
        (r"rpn\.head\.bbox_pred\.(\w+)", r"rpn.deltas.\1"),
        (r"roi_heads\.box_head\.fc([67])\.(\w+)", r"roi_heads.head.fc\1.\2"),
        (r"roi_heads\.box_head\.([0-3])\.([01])\.(\w+)", r"roi_heads.head.convs.\1.\2.\3"),
        (r"roi_heads\.box_head\.5\.(\w+)", r"roi_heads.head.fc.\1"),
        (r"roi_heads\.box_predictor\.cls_score\.(\w+)", r"roi_heads.classes.\1"),
        (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", r"roi_heads.deltas.\1"),
        (r"roi_heads\.mask_head\.(\d+)\.([01])\.(\w+)", r"mask_head.convs.\1.\2.\3"),
        (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", r"mask_head.upsample.\1"),
        (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", r"mask_head.masks.\1"),
        (r"head\.classification_head\.cls_logits\.(\w+)", r"head.classes.\1"),
        (r"head\.regression_head\.bbox_reg\.(\w+)", r"head.deltas.\1"),
    )
)


class _Rows(NamedTuple):
    """How the rows of one of our tensors belong to classes: (outer, lead + K * each, ...)."""

    outer: int  # groups that each have all classes
    lead: int  # rows before the first class
    each: int  # rows per class


class _Saved(NamedTuple):
    """A detector as it was saved, under our names."""

    state: State
    names: tuple[str, ...] | None  # of its K classes; None: not known
    source: str


def spec_of(checkpoint: str) -> InputSpec | None:
    """The input that a checkpoint belongs to, from the head of a bundle; None where it does not say: torchvision's.

    Raises:
        WeightsError: a bundle whose head is missing or damaged.
    """
    folder = Path(checkpoint).expanduser()
    return InputSpec.from_dict(_head(folder)["spec"]) if folder.is_dir() else None


def load_checkpoint(model: Detector, checkpoint: str, names: Sequence[str]) -> None:
    """Load a whole detector into another of the same architecture, whose classes may be others.

    Args:
        model: with parts of the same shapes, but for the rows of classes.
        checkpoint: the folder of a bundle, a file of torchvision's detectors, or PUBLISHED and the name of one.
        names: of the model's K classes. Those that the checkpoint has as well (COCO's, in torchvision's files of 91
            rows) keep their rows; capitals, blanks, dashes and underscores make no difference.

    Raises:
        WeightsError: no such checkpoint, a damaged one, or one of another architecture.
        ConfigError: names do not fit the model.
    """
    if len(names) != model.num_classes:
        raise ConfigError(
            f"{checkpoint}: {len(names)} names for a model of {model.num_classes} classes; set num_classes to the "
            "number of classes of the dataset"
        )
    saved = _read(model, checkpoint)
    fresh = model.state_dict()
    fitted: State = {}
    for key, target in fresh.items():
        tensor = saved.state.get(key)
        if tensor is None and key.endswith("num_batches_tracked"):
            tensor = target  # a counter that frozen layers of torchvision do not save
        if tensor is None:
            continue
        rows = _rows(model, key)
        if rows is not None:
            tensor = _with_rows(tensor, target, rows, _places(saved.names, names))
        if tensor is not None and tensor.shape == target.shape:
            fitted[key] = tensor.to(target.dtype)
    _require_all(fitted, fresh, saved)
    model.load_state_dict(fitted)
    _report(saved, names)


def _require_all(fitted: State, fresh: State, saved: _Saved) -> None:
    lost = [key for key in fresh if key not in fitted]
    if not lost:
        return
    examples = ", ".join(
        f"{k} ({list(saved.state[k].shape)}, not {list(fresh[k].shape)})" if k in saved.state else f"{k} (missing)"
        for k in lost[:3]
    )
    raise WeightsError(
        f"{saved.source}: only {len(fitted)} of {len(fresh)} tensors fit this model; not matched: {examples}; it is "
        "of another architecture: build the detector that it belongs to, or begin from weights of the backbone"
    )


def _report(saved: _Saved, names: Sequence[str]) -> None:
    log = logging.getLogger(__name__)
    if saved.names is None:
        log.warning("%s: does not say which classes it has; the rows of all classes begin anew", saved.source)
        return
    places = _places(saved.names, names)
    kept = [name for name, place in zip(names, places, strict=True) if place is not None]
    new = [name for name, place in zip(names, places, strict=True) if place is None]
    text = "%s: of %d classes, %d keep their rows (%s) and %d begin anew (%s)"
    values = (saved.source, len(names), len(kept), ", ".join(kept) or "none", len(new), ", ".join(new) or "none")
    (log.info if kept else log.warning)(text, *values)


def _read(model: Detector, source: str) -> _Saved:
    if source.startswith(PUBLISHED):
        return _translated(model, _published(source.removeprefix(PUBLISHED)), source)
    checkpoint = Path(source).expanduser()
    if checkpoint.is_dir():
        labels = _head(checkpoint).get("labels")
        names = labels.get("names") if isinstance(labels, dict) else None
        return _Saved(read_tensors(checkpoint / WEIGHTS), tuple(map(str, names)) if names else None, str(checkpoint))
    state = read_tensors(checkpoint)
    if any(key.startswith("model.backbone.") for key in state):
        raise WeightsError(
            f"{checkpoint}: is a checkpoint of a training run; export it (`visionapps export`) and name the bundle"
        )
    parts = {key.split(".")[0] for key in state}
    if "backbone" not in parts or not parts & {"roi_heads", "head"}:
        raise WeightsError(
            f"{checkpoint}: holds no detector that is known here, but {', '.join(list(state)[:3])}, ...; expected a "
            "bundle of visionapps, or a file of torchvision's Faster R-CNN, Mask R-CNN or RetinaNet"
        )
    return _translated(model, state, str(checkpoint))


def _published(name: str) -> State:
    """The weights of one of torchvision's detectors, from the local cache or the network."""
    from torchvision.models import detection as published
    from torchvision.models import get_model_weights, list_models

    if name not in (names := list_models(published)):
        raise WeightsError(f"checkpoint {PUBLISHED}{name}: torchvision has no such detector; it has {', '.join(names)}")
    weights = next(iter(get_model_weights(name)))
    card = TorchvisionCard(name, weights.name, str(weights.url), (), ())
    if cached := cached_file(card):
        return read_tensors(cached)
    try:
        return download(card)
    except WeightsError as error:
        reason = str(error).partition(";")[0]
        raise WeightsError(
            f"{reason}; fetch {card.url} on a machine with internet and name the file: checkpoint: FILE"
        ) from error


def _head(folder: Path) -> dict[str, Any]:
    """model.yaml of a bundle."""
    path = folder / MODEL
    try:
        head = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise WeightsError(
            f"{path}: cannot be read ({str(error).splitlines()[0]}); a checkpoint is a bundle that `visionapps export` "
            "wrote, or a file of torchvision's detectors"
        ) from error
    if not isinstance(head, dict) or not isinstance(head.get("spec"), dict):
        raise WeightsError(f"{path}: does not describe a model; export the bundle anew")
    return head


def _translated(model: Detector, state: State, source: str) -> _Saved:
    """A state of torchvision under our names and in our layout: no rows of background where we have none."""
    own_body = model.backbone.get_submodule("body").state_dict()
    body = {key.removeprefix(_BODY): tensor for key, tensor in state.items() if key.startswith(_BODY)}
    if all(key[0].isdigit() for key in body):  # of MobileNets it takes the features alone
        body = {f"features.{key}": tensor for key, tensor in body.items()}
    try:
        name = str(getattr(model.backbone, "name", "the backbone"))
        fitted = fit_state(body, own_body, name=name, source=source, bands=len(model.spec.bands))
    except VisionAppsError as error:
        raise WeightsError(f"{error}; build the detector that the file belongs to") from error
    ours = {_BODY + key: tensor for key, tensor in fitted.items()}
    ours |= dict(_renamed(state))
    _fold_norms(ours)
    rows = ours.get("roi_heads.classes.bias")
    count = _retina_classes(ours) if rows is None else len(rows)
    _drop_background(ours, count)
    return _Saved(ours, _coco_names() if count == _COCO_ROWS else None, source)


def _renamed(state: State) -> Iterator[tuple[str, Tensor]]:
    normed = any("_head.conv.0.1." in key for key in state)  # towers of RetinaNet: convolution, norm, activation
    for key, tensor in state.items():
        fcn = re.fullmatch(r"roi_heads\.mask_head\.mask_fcn(\d+)\.(\w+)", key)
        tower = re.fullmatch(r"head\.(classification|regression)_head\.conv\.(\d+)\.(?:([01])\.)?(\w+)", key)
        if fcn:
            yield f"mask_head.convs.{int(fcn[1]) - 1}.0.{fcn[2]}", tensor
        elif tower:
            part = {"classification": "class_tower", "regression": "box_tower"}[tower[1]]
            # Old files number activations, too; new ones have a block per convolution.
            place = int(tower[2]) if tower[3] is None else int(tower[2]) * (3 if normed else 2) + int(tower[3])
            yield f"head.{part}.{place}.{tower[4]}", tensor
        else:
            for pattern, ours in _RENAMES:
                if pattern.fullmatch(key):
                    yield pattern.sub(ours, key), tensor
                    break


def _fold_norms(state: State) -> None:
    """Batch norms of torchvision's second mask head become part of its convolutions; ours has none."""
    for key in [key for key in state if re.fullmatch(r"mask_head\.convs\.\d+\.0\.weight", key)]:
        conv = key.removesuffix(".0.weight")
        weight, bias = state.pop(key), state.pop(f"{conv}.0.bias", None)
        scale = state.pop(f"{conv}.1.weight", None)
        if scale is not None:
            scale = scale / (state.pop(f"{conv}.1.running_var") + _EPS).sqrt()
            shift = state.pop(f"{conv}.1.bias") - state.pop(f"{conv}.1.running_mean") * scale
            bias = shift if bias is None else shift + bias * scale
            weight = weight * scale[:, None, None, None]
        state.pop(f"{conv}.1.num_batches_tracked", None)
        state[f"{conv}.weight"] = weight
        if bias is not None:
            state[f"{conv}.bias"] = bias


def _retina_classes(state: State) -> int:
    """Rows per anchor of torchvision's RetinaNet: four numbers say where a box is, whatever the number of anchors."""
    if "head.classes.bias" not in state or "head.deltas.bias" not in state:
        return 0
    return len(state["head.classes.bias"]) * 4 // len(state["head.deltas.bias"])


def _drop_background(state: State, count: int) -> None:
    for leaf in ("weight", "bias"):
        for key, each in ((f"roi_heads.deltas.{leaf}", 4), (f"mask_head.masks.{leaf}", 1)):
            if key in state:
                state[key] = state[key][each:]
        key = f"head.classes.{leaf}"
        if key in state and count:
            state[key] = state[key].reshape(-1, count, *state[key].shape[1:])[:, 1:].flatten(0, 1)


def _coco_names() -> tuple[str, ...]:
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    return tuple(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:])


def _rows(model: Detector, key: str) -> _Rows | None:
    """How the rows of a tensor belong to classes; None: they do not."""
    layer = key.rpartition(".")[0]
    if layer == "head.classes":
        return _Rows(len(model.state_dict()[key]) // model.num_classes, 0, 1)
    return {
        "roi_heads.classes": _Rows(1, 1, 1),
        "roi_heads.deltas": _Rows(1, 0, 4),
        "mask_head.masks": _Rows(1, 0, 1),
    }.get(layer)


def _places(saved: Sequence[str] | None, names: Sequence[str]) -> list[int | None]:
    """For each name, where the checkpoint has the class of that name."""
    if saved is not None and tuple(saved) == tuple(names):
        return list(range(len(names)))
    where = {_plain(name): place for place, name in enumerate(saved or ()) if name != "N/A"}
    return [where.get(_plain(name)) for name in names]


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _with_rows(saved: Tensor, fresh: Tensor, rows: _Rows, places: Sequence[int | None]) -> Tensor | None:
    """The fresh tensor with the rows of the classes that the saved one has; None where the rest does not fit."""
    outer, lead, each = rows
    if saved.shape[1:] != fresh.shape[1:] or len(saved) % outer or (len(saved) // outer - lead) % each:
        return None
    old, new = (t.reshape(outer, -1, *t.shape[1:]) for t in (saved, fresh.clone()))
    new[:, :lead] = old[:, :lead]
    for row, place in enumerate(places):
        if place is not None and lead + (place + 1) * each <= old.shape[1]:
            to, begin = lead + row * each, lead + place * each
            new[:, to : to + each] = old[:, begin : begin + each]
    return torch.flatten(new, 0, 1)
