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
from visionapps.networks import (
    alexnet,
    bn_inception,
    googlenet,
    lenet,
    mobilenet,
    msdnet,
    nin,
    overfeat,
    plain,
    vgg,
    zfnet,
)
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
    "lenet5": Own(lenet.lenet5, 1998, "LeCun et al. 1998, section II.B", "LeNet-5"),
    "lenet5_plain": Own(lenet.lenet5_plain, 1998, "LeCun et al. 1998, as lectures draw it", "LeNet-5, plain"),
    "alexnet": Own(alexnet.alexnet, 2012, "Krizhevsky et al. 2012, figure 2", "AlexNet, two towers"),
    "alexnet_one_tower": Own(
        alexnet.alexnet_one_tower, 2012, "Krizhevsky et al. 2012, ungrouped", "AlexNet, one tower"
    ),
    "zfnet": Own(zfnet.zfnet, 2014, "Zeiler and Fergus 2014, figure 3", "ZFNet"),
    "overfeat_fast": Own(overfeat.overfeat_fast, 2014, "Sermanet et al. 2014, table 1", "OverFeat, fast"),
    "overfeat_accurate": Own(overfeat.overfeat_accurate, 2014, "Sermanet et al. 2014, table 3", "OverFeat, accurate"),
    "nin": Own(nin.nin, 2014, "Lin et al. 2014, the network for ImageNet", "NIN"),
    "vgg_a": Own(vgg.vgg_a, 2015, "Simonyan and Zisserman 2015, table 1, A", "VGG-A"),
    "vgg_a_lrn": Own(vgg.vgg_a_lrn, 2015, "Simonyan and Zisserman 2015, table 1, A-LRN", "VGG-A-LRN"),
    "vgg_b": Own(vgg.vgg_b, 2015, "Simonyan and Zisserman 2015, table 1, B", "VGG-B"),
    "vgg_c": Own(vgg.vgg_c, 2015, "Simonyan and Zisserman 2015, table 1, C", "VGG-C"),
    "vgg_d": Own(vgg.vgg_d, 2015, "Simonyan and Zisserman 2015, table 1, D", "VGG-D"),
    "vgg_e": Own(vgg.vgg_e, 2015, "Simonyan and Zisserman 2015, table 1, E", "VGG-E"),
    "googlenet": Own(googlenet.googlenet, 2015, "Szegedy et al. 2015, table 1", "GoogLeNet"),
    "googlenet_auxiliary": Own(
        googlenet.googlenet_auxiliary,
        2015,
        "Szegedy et al. 2015, section 5",
        "GoogLeNet, in training",
        "with the two classifiers that are dropped after training; crops of 224 px",
    ),
    "googlenet_naive": Own(
        googlenet.googlenet_naive,
        2015,
        "Szegedy et al. 2015, figure 2a",
        "GoogLeNet of naive modules",
        "shows what the 1 x 1 reductions save",
    ),
    "bn_inception": Own(bn_inception.bn_inception, 2015, "Ioffe and Szegedy 2015, figure 5", "BN-Inception"),
    "plain18": Own(plain.plain18, 2016, "He et al. 2016, table 1 without shortcuts"),
    "plain34": Own(plain.plain34, 2016, "He et al. 2016, figure 3 (middle)"),
    "mobilenet_v1": Own(mobilenet.mobilenet_v1, 2017, "Howard et al. 2017, table 1", "MobileNet v1"),
    "conv_mobilenet": Own(mobilenet.conv_mobilenet, 2017, "Howard et al. 2017, table 4", "Conv MobileNet"),
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
