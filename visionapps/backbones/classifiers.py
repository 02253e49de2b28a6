"""Classification networks with their heads, whoever wrote them, behind the one contract of visionapps.networks.base.

Names are those of ``pyramid``: timm's as they are called there, "torchvision/resnet50", "visionapps/vgg_c".
Shapes: B images, C bands, H x W pixels, K classes.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models import is_model, split_model_name_tag
from torch import Tensor
from torch.func import functional_call

from visionapps.backbones.hub import TORCHVISION
from visionapps.backbones.library_networks import timm_network, torchvision_network
from visionapps.backbones.packages import PACKAGES
from visionapps.backbones.weights import default_spec, flat_name, has_spec, match_state, read_state, weights_file
from visionapps.errors import ConfigError
from visionapps.networks.base import Network
from visionapps.networks.catalogue import PREFIX, own_network, unknown
from visionapps.structures import Frame, InputSpec

_ANEW = 0.01  # standard deviation of rows of classes that begin anew
_IMAGENET = 1000  # classes that published weights almost always have
_BODY = ("features.body.model.", "features.", "head.body.", "head.")  # what stands before a library's own names

log = logging.getLogger(__name__)


def network(
    name: str,
    *,
    num_classes: int,
    spec: InputSpec | None = None,
    weights: str | None = None,
    side: int | None = None,
) -> Network:
    """A classifier by name, with its own head.

    Args:
        name: of timm, "torchvision/" or "visionapps/" and a name there; ``visionapps models`` lists them.
        num_classes: K, at least 1.
        spec: its number of bands decides the first convolution; None: what belongs to the weights.
        weights: None or "random": drawn as the network's authors do; "package", "hub", "hub:<tag>" or a file: loaded
            at once, the rows of classes only if there are K of them (``load_weights`` can go by names).
        side: height and width of the images in pixels, for transformers that must know it; None: as published.

    Raises:
        ConfigError: there is no such network, or it cannot have so many bands or such images.
        WeightsError: the weights cannot be found, or do not fit.
    """
    if num_classes < 1:
        raise ConfigError(f"{name}: num_classes {num_classes} must be at least 1")
    weights = None if weights == "random" else weights
    bands = len((spec or classifier_spec(name, weights)).bands)
    if name.startswith(PREFIX):
        built = own_network(name, num_classes=num_classes, bands=bands)
    elif name.startswith(TORCHVISION):
        _require_torchvision(name)
        built = torchvision_network(name, num_classes=num_classes, bands=bands, side=side)
    else:
        built = timm_network(_known(name), num_classes=num_classes, bands=bands, side=side)
    if weights is not None:
        load_weights(built, Pretrained(name, weights), bands=bands)
    return built


@dataclass(frozen=True)
class Pretrained:
    """Weights that a network is to begin from.

    Attributes:
        name: of the network.
        weights: "package", "hub", "hub:<tag>" or a file.
    """

    name: str
    weights: str


def classifier_spec(name: str, weights: str | None = None, *, bands: Sequence[str] | None = None) -> InputSpec:
    """The input that belongs to a classifier's weights; see ``default_spec``, which knows no networks of our own."""
    if not name.startswith(PREFIX):
        return default_spec(name, weights, bands=bands)
    if weights is not None and weights_file(weights) is None:
        raise ConfigError(f"{name}: no weights are published for the networks written here; give a file, or random")
    return default_spec(name, weights if weights is not None and has_spec(weights) else None, bands=bands)


def published_frame(name: str, weights: str | None = None) -> Frame:
    """How whoever published a classifier cut photos when judging it.

    Args:
        name: as in ``network``.
        weights: where packages bring them, the way of their authors counts.
    """
    if name.startswith(PREFIX):
        with torch.device("meta"):
            return Frame(own_network(name, num_classes=2, bands=3).native)
    if weights == "package" or (name.startswith(TORCHVISION) and name in PACKAGES):
        return Frame()  # 224 of 256, all of them
    if name.startswith(TORCHVISION):
        from torchvision import models

        published = list(models.get_model_weights(name.removeprefix(TORCHVISION)))
        if not published:
            return Frame()
        crop = published[0].transforms()
        return Frame(crop.crop_size[0], min(1.0, crop.crop_size[0] / crop.resize_size[0]))
    card = timm.models.get_pretrained_cfg(_known(name), allow_unregistered=True)
    if card is None:
        return Frame()
    return Frame(int(card.input_size[-1]), float(card.crop_pct or 0.875))


def load_weights(built: Network, pretrained: Pretrained, names: Sequence[str] | None = None, *, bands: int) -> None:
    """Give a network the weights of a package, a hub or a file, in place.

    Everything but the rows of classes must fit. Those are kept when the file has K of them; else, if it has the
    thousand classes of ImageNet, by name; others begin anew, and the log says which.

    Args:
        built: by ``network``.
        pretrained: which network it is, and which weights.
        names: of the K classes; None: none of them is known.
        bands: that the network eats.

    Raises:
        WeightsError: the weights cannot be found, or do not fit.
    """
    path = weights_file(pretrained.weights)
    state = read_state(pretrained.name, pretrained.weights)
    keys = {_library_name(key, pretrained.name): key for key in built.state_dict()}
    wanted = {name: built.state_dict()[key] for name, key in keys.items()}
    rows = class_rows(pretrained.name, built, bands)
    source = str(path or f"weights {pretrained.weights!r}")
    body = {name: tensor for name, tensor in wanted.items() if keys[name] not in rows}
    match = match_state(state, body, name=pretrained.name, source=source, bands=bands)
    fitted = {keys[name]: tensor for name, tensor in match.fitted.items()}
    saved = {key: match.found.get(flat_name(_library_name(key, pretrained.name))) for key in rows}
    fitted |= _class_rows(saved, built.state_dict(), names, source)
    built.load_state_dict(fitted, strict=False)


def _class_rows(
    saved: Mapping[str, Tensor | None], fresh: Mapping[str, Tensor], names: Sequence[str] | None, source: str
) -> dict[str, Tensor]:
    """Those rows of classes that can be kept, in tensors of the network's own shapes."""
    shapes = {key: None if tensor is None else tensor.shape for key, tensor in saved.items()}
    if all(shapes[key] == fresh[key].shape for key in saved):
        # A file of as many classes is taken at its word; with other names a person would have to say so anyway.
        return {key: tensor for key, tensor in saved.items() if tensor is not None}
    wholly = all(t is not None and len(t) == _IMAGENET and t.shape[1:] == fresh[k].shape[1:] for k, t in saved.items())
    known = {_plain(name): row for row, name in enumerate(imagenet_names())} if wholly and names else {}
    places = {k: known[_plain(name)] for k, name in enumerate(names or ()) if _plain(name) in known}
    if not places:
        log.info("%s: the rows of the classes begin anew, the file has others", source)
        return {key: _anew(fresh[key]) for key in saved}
    kept = {}
    for key, tensor in saved.items():
        assert tensor is not None
        kept[key] = _anew(fresh[key])
        for row, place in places.items():
            kept[key][row] = tensor[place].to(kept[key].dtype)
    assert names is not None
    anew = [name for k, name in enumerate(names) if k not in places]
    log.info("%s: keeps the classes %s", source, ", ".join(names[k] for k in places))
    if anew:
        log.info("%s: begins anew with the classes %s", source, ", ".join(anew))
    return kept


def _anew(tensor: Tensor) -> Tensor:
    """Rows of classes to begin with on top of trained features: all classes nearly alike.

    What networks draw for themselves may grow as classes get fewer: with timm's +-1 / sqrt(K), EfficientNet begins with
    a loss of 4.5 for four classes instead of ln 4, and its gradient spoils the features.

    Source: the N(0, 0.01) of Krizhevsky et al. 2012.
    """
    drawn = torch.zeros_like(tensor)
    return drawn.normal_(std=_ANEW) if tensor.ndim > 1 else drawn


def class_rows(name: str, built: Network, bands: int) -> frozenset[str]:
    """The tensors of a network that have one row per class: those whose shape changes with the number of classes."""
    own = {key: tensor.shape for key, tensor in built.state_dict().items()}
    with torch.device("meta"):
        other = network(name, num_classes=_classes(own) + 1, spec=_any_spec(bands))
    return frozenset(k for k, tensor in other.state_dict().items() if k in own and tensor.shape != own[k])


def require_size(built: Network, side: int, bands: int, *, where: str) -> None:
    """Check that a network takes square images of a size, without computing anything.

    Raises:
        ConfigError: it does not, and why.
    """
    tensors = {**dict(built.named_parameters()), **dict(built.named_buffers())}
    meta = {key: tensor.detach().to("meta") for key, tensor in tensors.items()}
    was_training = built.training
    built.eval()
    try:
        functional_call(built, meta, (torch.zeros(2, bands, side, side, device="meta"),))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split()) or "it is made for another size"
        raise ConfigError(
            f"{where}: the network cannot take images of {side} x {side} px ({reason}); choose another size, "
            f"it was published for {built.native} px"
        ) from error
    finally:
        built.train(was_training)


def imagenet_names() -> tuple[str, ...]:
    """The thousand classes of ImageNet, in the order of published weights; all different.

    Two pairs share a name (crane, maillot); the second of each is told apart by its number in WordNet.
    """
    info: Any = timm.data.ImageNetInfo()
    found: list[str] = []
    for index in range(_IMAGENET):
        name = str(info.index_to_description(index)).split(",")[0].strip()
        found.append(f"{name} ({info.index_to_label_name(index)})" if name in found else name)
    return tuple(found)


def _classes(shapes: Mapping[str, Any]) -> int:
    """A number of classes that a network surely has not: more than any tensor has rows."""
    return max((int(shape[0]) for shape in shapes.values() if len(shape)), default=1)


def _any_spec(bands: int) -> InputSpec:
    return InputSpec(tuple(f"band{i}" for i in range(bands)), mean=(0.5,) * bands, std=(0.5,) * bands)


def _library_name(key: str, name: str) -> str:
    """The name of a tensor of a network in its library: without our features and head."""
    if name.startswith(PREFIX):
        return key
    prefix = next((p for p in _BODY if key.startswith(p)), "")
    return key.removeprefix(prefix)


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())


def _known(name: str) -> str:
    architecture = str(split_model_name_tag(name)[0])
    if not is_model(architecture):
        raise unknown(name, timm.list_models())
    return architecture


def _require_torchvision(name: str) -> None:
    from torchvision import models

    known = models.list_models(module=models)
    if name.removeprefix(TORCHVISION) not in known:
        raise unknown(name, (TORCHVISION + each for each in known))
