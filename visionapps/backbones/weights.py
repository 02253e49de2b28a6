"""Where a backbone's weights come from, which normalisation belongs to them, and how they are fitted and checked."""

import itertools
import json
import logging
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import timm
import torch
from timm.models import adapt_input_conv, is_model, model_entrypoint, split_model_name_tag
from torch import Tensor

from visionapps.backbones.hub import cached_file, download, pretrained_card
from visionapps.backbones.packages import PACKAGES, PackagedWeights, State, rename_torchvision_mobilenetv2
from visionapps.errors import ConfigError, WeightsError
from visionapps.networks.catalogue import PREFIX as OWN_PREFIX
from visionapps.structures import InputSpec

FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
SPEC_KEY = "input_spec"  # of a safetensors header: the InputSpec as JSON

_WRAPPERS = (
    "module",
    "model",
    "encoder",
    "backbone",
    "body",
    "net",
    "network",
)  # what trainers and heads put before a name
_NESTS = ("state_dict", "model", "model_state_dict")  # where training checkpoints keep the tensors

logger = logging.getLogger(__name__)


def default_spec(name: str, weights: str | None = None, *, bands: Sequence[str] | None = None) -> InputSpec:
    """The input that belongs to a network's weights. Reads at most the header of a local safetensors file.

    Args:
        name: as in ``pyramid``.
        weights: None, "package", "hub", "hub:<tag>", or a file; see ``read_state``.
        bands: names of the bands to feed. Mean and std of the weights' own bands are repeated in turn, just
            as the first convolution repeats its filters.

    Raises:
        ConfigError: ``weights`` is none of the known forms, or cannot be had for this network.
    """
    known = _spec_of_weights(name, weights)
    if bands is None or tuple(bands) == known.bands:
        return known
    turns = [i % len(known.bands) for i in range(len(bands))]
    return InputSpec(
        bands=tuple(bands),
        scale=known.scale,
        mean=tuple(known.mean[i] for i in turns),
        std=tuple(known.std[i] for i in turns),
    )


def has_spec(weights: str) -> bool:
    """Whether a file of weights says which input belongs to it."""
    path = weights_file(weights)
    return (
        path is not None and path.suffix == ".safetensors" and path.is_file() and SPEC_KEY in _safetensors_header(path)
    )


def _spec_of_weights(name: str, weights: str | None) -> InputSpec:
    if weights is None:
        return InputSpec()
    if weights == "package":
        return _packaged(name).spec
    path = weights_file(weights)
    if path is not None and path.suffix == ".safetensors" and path.is_file():
        header = _safetensors_header(path)
        if SPEC_KEY in header:
            try:
                return InputSpec.from_dict(json.loads(header[SPEC_KEY]))
            except (TypeError, ValueError, ConfigError) as error:
                raise WeightsError(
                    f"{path}: the {SPEC_KEY} in its header is malformed ({error}); give a spec, or save it again"
                ) from error
    if name.startswith(OWN_PREFIX):
        return InputSpec()  # nobody publishes weights of networks written here: a file has the usual statistics
    card = pretrained_card(name, _hub_tag(weights))
    return InputSpec(mean=tuple(card.mean), std=tuple(card.std))


def weights_file(weights: str) -> Path | None:
    """The path in a weights setting, or None when it names the hub or a package.

    Raises:
        ConfigError: it is none of the known forms.
    """
    if weights == "package" or weights == "hub" or weights.startswith("hub:"):
        return None
    path = Path(weights).expanduser()
    if path.suffix not in FILE_SUFFIXES:
        raise ConfigError(
            f"weights {weights!r}: expected 'package', 'hub', 'hub:<tag>' or a file that ends in "
            f"{' '.join(FILE_SUFFIXES)}; 'random' for none"
        )
    return path


def read_state(name: str, weights: str) -> State:
    """Read or fetch the tensors that a weights setting names, under the names of whoever saved them.

    Args:
        name: as in ``pyramid``.
        weights: "package" (installed with pip), "hub" (timm's default weights), "hub:<tag>", or a file.

    Raises:
        WeightsError: they are not there, cannot be read, or cannot be fetched.
        ConfigError: ``weights`` is none of the known forms, or cannot be had for this network.
    """
    if weights == "package":
        packaged = _packaged(name)
        return packaged.rename(read_tensors(packaged.verified()))
    path = weights_file(weights)
    if path is not None:
        return read_tensors(path)
    card = pretrained_card(name, _hub_tag(weights))
    cached = cached_file(card)
    return read_tensors(cached) if cached else download(card)


def read_tensors(path: Path) -> State:
    """All tensors of a .safetensors file or a torch checkpoint, which is read without running any code in it.

    Raises:
        WeightsError: the file is missing, damaged, or holds anything but tensors and plain data.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file; check the path (relative to {Path.cwd()})")
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: holds Python objects, or is damaged; only tensors are read, because the rest could run code; "
            "save its state_dict alone, best as .safetensors"
        ) from error
    except (safetensors.SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise WeightsError(f"{path}: cannot be read as weights ({error}); copy or download it again") from error
    while isinstance(content, Mapping):
        inner = next((content[k] for k in _NESTS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        content = inner
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise WeightsError(f"{path}: holds no named tensors; expected the state_dict of a network")
    return tensors


class Match(NamedTuple):
    """Weights that fit, and the reading of the file in which they do."""

    fitted: State  # under the names that were wanted
    found: State  # all tensors of the file, by flat names of the network: see ``flat_name``


def fit_state(state: State, wanted: State, *, name: str, source: str, bands: int) -> State:
    """The tensors of ``match_state`` alone."""
    return match_state(state, wanted, name=name, source=source, bands=bands).fitted


def match_state(state: State, wanted: State, *, name: str, source: str, bands: int) -> Match:
    """Bring weights under the names and into the shapes of a pyramid, all of them or none.

    Names may be those of timm's classification network or of its pyramid, of torchvision where timm agrees, or
    of the original authors where timm translates them; wrappers like ``module.`` and tensors that the pyramid
    does not have (the classifier) are left out. A first convolution for three bands is adapted: summed for one
    band, else repeated in turn and scaled by 3 / bands.

    Args:
        state: tensors as they were saved.
        wanted: the pyramid's own state.
        name: as in ``pyramid``.
        source: for messages, where the state came from.
        bands: bands that the pyramid eats.

    Returns:
        One tensor for each of ``wanted``, and everything that was found beside them.

    Raises:
        WeightsError: some tensor of the pyramid has no counterpart.
    """
    targets = _plain_names(wanted)
    best: State = {}
    closest: State = {}
    for candidate in _readings(state, name):
        found = {flat_name(k): v for k, v in candidate.items()}
        fitted = {}
        for flat, key in targets.items():
            tensor = _fit_tensor(found.get(flat), wanted[key], bands)
            if tensor is None and key.endswith("num_batches_tracked"):  # files from before torch 0.4.1 lack them
                tensor = wanted[key]
            if tensor is not None:
                fitted[key] = tensor
        if len(fitted) == len(wanted):
            return Match(fitted, found)
        if len(fitted) >= len(best):
            best, closest = fitted, found
    lost = [(k, closest.get(f)) for f, k in targets.items() if k not in best][:3]
    examples = ", ".join(
        f"{k} (missing)" if got is None else f"{k} ({list(got.shape)}, not {list(wanted[k].shape)})" for k, got in lost
    )
    raise WeightsError(
        f"{source}: only {len(best)} of {len(wanted)} tensors fit {name} with {bands} bands; not matched: {examples}; "
        f"give weights of {name}, or name the backbone that they belong to"
    )


def _fit_tensor(tensor: Tensor | None, target: Tensor, bands: int) -> Tensor | None:
    if tensor is None or tensor.shape == target.shape:
        return tensor
    adaptable = tensor.ndim == target.ndim == 4 and tensor.shape[1] == 3 and target.shape[1] == bands
    if adaptable and tensor.shape[0] == target.shape[0] and tensor.shape[2:] == target.shape[2:]:
        adapted: Tensor = adapt_input_conv(bands, tensor)
        return adapted
    return None


def _readings(state: State, name: str) -> Iterator[State]:
    """The state under every naming that we understand, the likeliest first."""
    unwrapped = [_without_prefix(state, prefix) for prefix in _prefixes(state)]
    yield from unwrapped
    architecture = split_model_name_tag(name)[0]
    for candidate in unwrapped:
        if architecture == "mobilenetv2_100" and "features.18.0.weight" in candidate:
            yield rename_torchvision_mobilenetv2(candidate)
        yield from _translated_by_timm(candidate, architecture)


def _translated_by_timm(state: State, architecture: str) -> Iterator[State]:
    """The state under the names that timm's own loader would give it: each family brings a function for that."""
    if not is_model(architecture):
        return  # one of torchvision's, whose files have its own names
    family = sys.modules[model_entrypoint(architecture).__module__]
    functions = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")
    translate = next((getattr(family, f) for f in functions if hasattr(family, f)), None)
    if translate is None:
        return
    with torch.device("meta"):
        model = timm.create_model(architecture)
    try:
        try:
            yield dict(translate(dict(state), model))
        except TypeError:  # the older ones look at the state alone
            yield dict(translate(dict(state)))
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        # They expect one foreign format, and this is another; the caller reports what does not fit.
        logger.debug("%s: timm does not translate this state: %s", architecture, error)


def _prefixes(state: State) -> list[str]:
    """Every chain of wrappers that stands before a name, the empty one first."""
    chains = {""}
    for key in state:
        parts = list(itertools.takewhile(lambda part: part in _WRAPPERS, key.split(".")))
        chains.update("".join(f"{p}." for p in parts[: i + 1]) for i in range(len(parts)))
    return sorted(chains, key=len)


def _without_prefix(state: State, prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)} if prefix else state


def _plain_names(wanted: State) -> dict[str, str]:
    """Flat names without timm's own wrapper, to the pyramid's names."""
    wrapper = next((w for w in ("model.", "body.") if all(k.startswith(w) for k in wanted)), "")
    return {flat_name(k.removeprefix(wrapper)): k for k in wanted}


def flat_name(key: str) -> str:
    """The name of a tensor without dots, by which names are compared."""
    # timm's pyramids lift children of a Sequential one level: stages.0 becomes stages_0.
    return key.replace(".", "_")


def _packaged(name: str) -> PackagedWeights:
    packaged = PACKAGES.get(split_model_name_tag(name)[0])
    if packaged is None:
        raise ConfigError(
            f"weights 'package': no package brings weights for {name}; it exists for {', '.join(PACKAGES)}; "
            "else give weights 'hub' or a file"
        )
    return packaged


def _hub_tag(weights: str) -> str:
    return weights.removeprefix("hub:") if weights.startswith("hub:") else ""


def _safetensors_header(path: Path) -> Mapping[str, str]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: cannot be read as weights ({error}); copy or download it again") from error
