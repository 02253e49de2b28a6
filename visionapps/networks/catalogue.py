"""Every architecture that the zoo can build, by name: one line each.

Names of networks written here begin with "visionapps/"; those of libraries stand in visionapps.networks.others.
Numbers that can be measured (parameters, multiply-adds, strides) are not written here but measured: see facts().
"""

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from visionapps.errors import ConfigError
from visionapps.networks import msdnet
from visionapps.networks.base import Network
from visionapps.networks.others import OTHERS, UNDEFINED, Entry

PREFIX = "visionapps/"


@dataclass(frozen=True)
class Own:
    """A network that is written here.

    Attributes:
        build: (num_classes=..., bands=...) to the network, with random weights.
        year: of publication.
        source: paper and place in it.
        title: as people call it; empty: the key.
        note: what a user should know before choosing it.
        single: its steps are a stem and then maps of one stride (transformers): only the last map counts, and other
            strides are made from it.
    """

    build: Callable[..., Network]
    year: int
    source: str
    title: str = ""
    note: str = ""
    single: bool = False


OWN: dict[str, Own] = {
    "msdnet": Own(msdnet.msdnet, 2018, "Huang et al. 2018, MSDNet, CIFAR, 7 exits"),
    "msdnet_imagenet": Own(msdnet.msdnet_imagenet, 2018, "Huang et al. 2018, MSDNet, ImageNet, k = 4"),
}


def own_network(name: str, **arguments: Any) -> Network:
    """Build a network that is written here.

    Args:
        name: with or without "visionapps/" before it.
        arguments: num_classes, bands, and what else the network takes.

    Raises:
        ConfigError: there is no such network, or an argument is impossible.
    """
    key = name.removeprefix(PREFIX)
    if key not in OWN:
        raise unknown(name, (PREFIX + each for each in OWN))
    return OWN[key].build(**arguments)


def entries() -> dict[str, Entry]:
    """Every line of the catalogue by the name that a user types: own networks first, then those of libraries."""
    own = (
        Entry(PREFIX + key, each.title or key.replace("_", "-"), each.year, each.source, note=each.note)
        for key, each in OWN.items()
    )
    return {each.name: each for each in (*own, *OTHERS)}


def facts() -> Mapping[str, Mapping[str, Any]]:
    """What was measured of each line of the catalogue, by name, as tools/make_zoo.py last wrote it."""
    return _read_facts()


@lru_cache(maxsize=1)
def _read_facts() -> dict[str, dict[str, Any]]:
    path = files("visionapps.networks") / "facts.json"
    if not path.is_file():
        return {}
    read: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return read


def unknown(name: str, names: Iterable[str], what: str = "network", hint: str = "") -> ConfigError:
    """The error for a name that nobody has: why there is no such network, or the nearest names of all providers.

    Args:
        name: as the user typed it.
        names: what else could have been meant; those of the catalogue are added.
        what: is being chosen.
        hint: how to see all names; empty: the list of the catalogue.
    """
    plain = _plain(name)
    for term, reason in UNDEFINED.items():
        if _plain(term) == plain:
            return ConfigError(f"{what} {name!r}: {reason}")
    close = nearest(name, {*names, *entries()})
    meant = f"; did you mean {', '.join(close)}?" if close else ";"
    return ConfigError(f"{what} {name!r}: there is no such network{meant} {hint or '`visionapps models` lists them'}")


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The names that are most like a word, whoever provides them: prefix, case and separators do not count."""
    by_plain: dict[str, list[str]] = {}
    provider = _provider(name)
    for each in sorted(names, key=lambda n: (_provider(n) != provider, not n.startswith(PREFIX), n)):
        by_plain.setdefault(_plain(each), []).append(each)
    close = difflib.get_close_matches(_plain(name), by_plain, n=count, cutoff=0.5)
    # Taken in turns: first the nearest of every spelling, so that two providers of one name do not hide the next one.
    found = [by_plain[each][0] for each in close] + [other for each in close for other in by_plain[each][1:]]
    return found[:count]


def _provider(name: str) -> str:
    return name.rpartition("/")[0]


def _plain(name: str) -> str:
    own = name.rsplit("/", 1)[-1].partition(".")[0]
    return "".join(c for c in own.lower() if c.isalnum())
