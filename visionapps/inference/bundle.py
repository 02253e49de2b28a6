"""A trained model as a folder without pickle: model.yaml, weights.safetensors, card.json.

It is the only thing that crosses from training to the field.
"""

import json
import math
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from visionapps import __version__
from visionapps.classification.base import Classifier
from visionapps.data.seen import Seen
from visionapps.detection.base import Detector, Limits
from visionapps.errors import OutputError, VisionAppsError, WeightsError
from visionapps.files import whole_output
from visionapps.inference.packed import pack_state, unpack_state
from visionapps.inference.seen_files import SEEN, seen_of, stored_seen
from visionapps.models import CLASSIFIERS, DETECTORS, SEGMENTORS, build
from visionapps.segmentation.base import Segmentor
from visionapps.structures import Frame, InputSpec, LabelSpace, Rescale

FORMAT = 1  # raise it when an older reader would misread model.yaml
PACKED_FORMAT = 2  # the same with packed weights; older readers know only 1, and refuse it by its number
_RULED = 2  # added for rules, which readers of formats 1 and 2 would leave out without a word
_FORMATS = (FORMAT, PACKED_FORMAT, FORMAT + _RULED, PACKED_FORMAT + _RULED)
MODEL, WEIGHTS, CARD = "model.yaml", "weights.safetensors", "card.json"
CHECKPOINT_KEY = "visionapps"  # what a training checkpoint says about its model stands under this key
_PACKED = "packed"  # names of packed tensors, as JSON in the header of the weights
_PREFIX = "model."  # where a Lightning task keeps its model
Purpose = Literal["segmentation", "detection", "classification"]
_MODELS: Mapping[Purpose, Mapping[str, Any]] = {
    "segmentation": SEGMENTORS,
    "detection": DETECTORS,
    "classification": CLASSIFIERS,
}


@dataclass(frozen=True, eq=False)
class Bundle:
    """A model with everything needed to use it.

    Attributes:
        model: built by a function of visionapps.models, so that its recipe can build it again.
        labels: what its K outputs mean.
        tile: side in pixels of the square it was trained on.
        card: free plain data for people: metrics, date, version.
        resize: (H, W) that its training photos were resized to; None: they kept their size.
        gsd: metres on the ground per pixel that it was trained at, > 0; None: not known, rasters are taken as they are.
        rescale: of a detector: how its training photos were scaled; None: they kept their size.
        category_ids: of a detector: the number of each of the K classes in the annotations that it learnt from, for
            results in their terms; None: not known.
        frame: of a classifier: how photos become the squares that it judges; None: the whole photo, ``tile`` px.
        postprocess: of a segmentation model: rules that turn its probabilities into labels, as plain data, see
            visionapps.competition.postprocess; None: the argmax.
        packed: weights are written in as few bytes as they need, without loss; see visionapps.inference.packed.
        seen: of a segmentation model: the photos that trained it; None: not known.
    """

    model: Segmentor | Detector | Classifier
    labels: LabelSpace
    tile: int
    card: dict[str, Any] = field(default_factory=dict)
    resize: tuple[int, int] | None = None
    gsd: float | None = None
    rescale: Rescale | None = None
    category_ids: tuple[int, ...] | None = None
    frame: Frame | None = None
    packed: bool = False
    postprocess: Mapping[str, Any] | None = None
    seen: Seen | None = None

    def __post_init__(self) -> None:
        if self.model.num_classes != len(self.labels):
            raise WeightsError(
                f"bundle: the model has {self.model.num_classes} outputs, but the label space has {len(self.labels)} "
                "classes; they belong to different data sets"
            )
        if self.tile < 1:
            raise WeightsError(f"bundle: tile {self.tile} must be at least 1 pixel")
        if self.gsd is not None and not 0 < self.gsd < math.inf:
            raise WeightsError(f"bundle: gsd {self.gsd} must be positive, the metres of a pixel on the ground: 0.3")
        if self.category_ids is not None and len(set(self.category_ids)) != len(self.labels):
            raise WeightsError(
                f"bundle: category_ids {list(self.category_ids)} must be one number for each of the {len(self.labels)} "
                "classes, all different"
            )

    @property
    def spec(self) -> InputSpec:
        """What the model eats."""
        return self.model.spec

    @property
    def segmentor(self) -> Segmentor:
        """The model, where a segmentation model is needed.

        Raises:
            WeightsError: it is another kind of model.
        """
        if not isinstance(self.model, Segmentor):
            raise WeightsError(f"the bundle holds {self._kind} and no maps; give a bundle of a segmentation model")
        return self.model

    @property
    def detector(self) -> Detector:
        """The model, where a detector is needed.

        Raises:
            WeightsError: it is another kind of model.
        """
        if not isinstance(self.model, Detector):
            raise WeightsError(f"the bundle holds {self._kind} and no boxes; give a bundle of a detector")
        return self.model

    @property
    def classifier(self) -> Classifier:
        """The model, where a classifier is needed.

        Raises:
            WeightsError: it is another kind of model.
        """
        if not isinstance(self.model, Classifier):
            raise WeightsError(f"the bundle holds {self._kind} and names no classes; give a bundle of a classifier")
        return self.model

    @property
    def _kind(self) -> str:
        """What the model is, and what it does."""
        if isinstance(self.model, Segmentor):
            return "a segmentation model, which draws maps"
        return (
            "a detector, which draws boxes" if isinstance(self.model, Detector) else "a classifier, which names photos"
        )

    def save(self, folder: Path, overwrite: bool = False) -> None:
        """Write the folder whole or not at all.

        Raises:
            OutputError: the folder exists (and overwrite is off, or it holds something else than a bundle).
            WeightsError: the model has no recipe.
        """
        from safetensors.torch import save_file

        if self.model.recipe is None:
            raise WeightsError(
                f"{folder}: a model without a recipe cannot be bundled; build it with a function of visionapps.models"
            )
        if folder.is_dir() and any(folder.iterdir()) and not (folder / MODEL).exists():
            raise OutputError(f"{folder}: holds other files and no {MODEL}, so it is not replaced; choose a new folder")
        head = {
            "format": (PACKED_FORMAT if self.packed else FORMAT) + _RULED * (self.postprocess is not None),
            "recipe": self.model.recipe,
            "spec": self.spec.to_dict(),
            "labels": self.labels.to_dict(),
            "tile": self.tile,
            "resize": list(self.resize) if self.resize else None,
            "gsd": self.gsd,
            "rescale": [self.rescale.short, self.rescale.long] if self.rescale else None,
            "category_ids": list(self.category_ids) if self.category_ids is not None else None,
            "frame": asdict(self.frame) if self.frame is not None else None,
            "limits": asdict(self.model.limits) if isinstance(self.model, Detector) else None,
            "postprocess": None if self.postprocess is None else dict(self.postprocess),
        }
        card = {"visionapps": __version__, "created": datetime.now(UTC).isoformat(timespec="seconds"), **self.card}
        # Cloned: tensors that share memory are refused by the format.
        state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in self.model.state_dict().items()}
        packed = None
        if self.packed:
            state, names = pack_state(state)
            packed = {_PACKED: json.dumps(names)}
        with whole_output(folder, overwrite) as part:
            part.mkdir()
            (part / MODEL).write_text(yaml.safe_dump(head, sort_keys=False))
            (part / CARD).write_text(json.dumps(card, indent=2) + "\n")
            save_file(state, part / WEIGHTS, packed)
            if self.seen is not None:
                self.seen.save(part / SEEN)
            (part / WEIGHTS).chmod((part / MODEL).stat().st_mode)  # safetensors writes for the owner alone


def load(folder: Path) -> Bundle:
    """Read a bundle; nothing in it is executed, and the model is built by visionapps.models only.

    Returns:
        The bundle, its model in evaluation mode on the CPU.

    Raises:
        WeightsError: a file is missing, damaged, of another version, or does not fit the model.
    """
    head = _read_head(folder)
    card = _mapping(folder / CARD, json.loads, json.JSONDecodeError)
    packed = head["format"] in (PACKED_FORMAT, PACKED_FORMAT + _RULED)
    more = {"packed": packed, "seen": seen_of(folder)}
    return _assemble({**head, **more}, _weights(folder / WEIGHTS, packed=packed), card, where=folder / MODEL)


def purpose_of(folder: Path) -> Purpose:
    """What a bundle is for, without reading its weights.

    Raises:
        WeightsError: a file is missing, damaged or of another version, or a model that is not known here.
    """
    recipe = _read_head(folder).get("recipe")
    name = recipe.get("model") if isinstance(recipe, Mapping) else None
    for purpose, models in _MODELS.items():
        if name in models:
            return purpose
    raise WeightsError(
        f"{folder / MODEL}: this version of visionapps has no model {name!r}; use the version that wrote the bundle"
    )


def description_of(folder: Path) -> Mapping[str, Any]:
    """What a bundle says about its model in model.yaml, as plain data, without reading its weights.

    Raises:
        WeightsError: a file is missing, damaged or of another version.
    """
    return _read_head(folder)


def _read_head(folder: Path) -> dict[str, Any]:
    """model.yaml of a bundle whose files are all there."""
    if not folder.is_dir():
        raise WeightsError(f"{folder}: no such bundle; expected a folder that `visionapps export` wrote")
    missing = [name for name in (MODEL, WEIGHTS, CARD) if not (folder / name).is_file()]
    if missing:
        raise WeightsError(f"{folder}: {' and '.join(missing)} missing; a bundle is a folder that export wrote, whole")
    head = _mapping(folder / MODEL, yaml.safe_load, yaml.YAMLError)
    if head.get("format") not in _FORMATS:
        raise WeightsError(
            f"{folder / MODEL}: bundle format {head.get('format')!r}, but visionapps {__version__} reads "
            f"{', '.join(map(str, _FORMATS))}; export the checkpoint again with this version, or install the one that "
            "wrote the bundle"
        )
    return head


def _weights(path: Path, *, packed: bool) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            names = json.loads((file.metadata() or {})[_PACKED]) if packed else []
        return unpack_state(state, tuple(map(str, names)))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: damaged ({error}); copy the bundle again or export it anew") from error


def from_checkpoint(path: Path) -> Bundle:
    """A bundle of a training checkpoint. Where weights were averaged in training, it holds the averaged ones.

    Args:
        path: a Lightning .ckpt that training with visionapps wrote; read without executing anything in it.

    Raises:
        WeightsError: missing, damaged, not ours, or its weights do not fit its own recipe.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such checkpoint; expected a .ckpt file that `visionapps fit` wrote")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"{path}: cannot be read as a checkpoint of plain data and tensors ({reason}); it is damaged or "
            "holds foreign objects: use one that `visionapps fit` wrote"
        ) from error
    head = checkpoint.get(CHECKPOINT_KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(head, Mapping) or "state_dict" not in checkpoint:
        raise WeightsError(f"{path}: is no checkpoint of `visionapps fit` (no key {CHECKPOINT_KEY!r} in it)")
    weights = {k.removeprefix(_PREFIX): v for k, v in checkpoint["state_dict"].items() if k.startswith(_PREFIX)}
    training = {name: checkpoint[name] for name in ("epoch", "global_step") if name in checkpoint}
    card = {"checkpoint": path.name, **training, "metrics": dict(head.get("metrics") or {})}
    return _assemble({**head, "seen": stored_seen(head.get("seen"), str(path))}, weights, card, where=path)


def _assemble(head: Mapping[str, Any], state: Mapping[str, Tensor], card: dict[str, Any], *, where: Path) -> Bundle:
    missing = [key for key in ("recipe", "spec", "labels", "tile") if key not in head]
    if missing:
        raise WeightsError(f"{where}: says nothing about {', '.join(missing)}; export the model anew")
    try:
        spec, labels, tile = InputSpec.from_dict(head["spec"]), LabelSpace.from_dict(head["labels"]), int(head["tile"])
        resize = (int(head["resize"][0]), int(head["resize"][1])) if head.get("resize") else None
        gsd = None if head.get("gsd") is None else float(head["gsd"])
        rescale = Rescale(*map(int, head["rescale"])) if head.get("rescale") else None
        frame = Frame(**head["frame"]) if head.get("frame") else None
        category_ids = None if head.get("category_ids") is None else tuple(map(int, head["category_ids"]))
        model = build(head["recipe"])
        if isinstance(model, Detector) and head.get("limits"):
            model.limits = Limits(**head["limits"])
    except (VisionAppsError, TypeError, ValueError, LookupError) as error:
        raise WeightsError(f"{where}: does not describe a model that can be built: {error}") from error
    if model.spec != spec:
        raise WeightsError(f"{where}: the recipe builds a model for {model.spec}, but its weights belong to {spec}")
    _fit(model, state, where)
    try:
        return Bundle(
            model=model.eval(),
            labels=labels,
            tile=tile,
            card=card,
            resize=resize,
            gsd=gsd,
            rescale=rescale,
            category_ids=category_ids,
            frame=frame,
            packed=bool(head.get("packed")),
            postprocess=head.get("postprocess"),
            seen=head.get("seen"),
        )
    except WeightsError as error:
        raise WeightsError(f"{where}: {error}") from error


def _fit(model: Segmentor | Detector | Classifier, state: Mapping[str, Tensor], where: Path) -> None:
    """Load weights that must be exactly those of the model."""
    expected = model.state_dict()
    problems = [
        ("missing", [name for name in expected if name not in state]),
        ("unknown", [name for name in state if name not in expected]),
        ("of another shape", [n for n, t in expected.items() if n in state and state[n].shape != t.shape]),
    ]
    found = "; ".join(
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in problems
        if names
    )
    if found:
        raise WeightsError(
            f"{where}: the weights do not fit the model's {len(expected)} tensors: {found}; they belong to another "
            "model or label space"
        )
    model.load_state_dict(dict(state))


def _mapping(path: Path, parse: Any, parse_error: type[Exception]) -> dict[str, Any]:
    try:
        data = parse(path.read_text())
    except (parse_error, OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: damaged ({str(error).splitlines()[0]}); export the bundle anew") from error
    if not isinstance(data, dict):
        raise WeightsError(f"{path}: holds {type(data).__name__}, expected a mapping; export the bundle anew")
    return data
