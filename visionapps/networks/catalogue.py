"""Every architecture that the zoo can build, by name: one line each.

Names of networks written here begin with "visionapps/"; those of libraries stand in visionapps.networks.others.
Numbers that can be measured (parameters, multiply-adds, strides) are not written here but measured: see facts().
"""

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.resources import files
from typing import Any

from visionapps.errors import ConfigError
from visionapps.networks import (
    alexnet,
    blockdrop,
    bn_inception,
    convnet_aig,
    enet,
    googlenet,
    lenet,
    mobilenet,
    msdnet,
    nin,
    overfeat,
    plain,
    published,
    vgg,
    vit,
    zfnet,
)
from visionapps.networks.base import Network
from visionapps.networks.cifar_densenet import cifar_densenet
from visionapps.networks.cifar_resnet import bottleneck_resnet, cifar_resnet, wide_resnet
from visionapps.networks.highway import highway
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
    """

    build: Callable[..., Network]
    year: int
    source: str
    title: str = ""
    note: str = ""


_RESNET = "He et al. 2016, Deep residual learning, section 4.2"
_IDENTITY = "He et al. 2016, Identity mappings, figure 4"
_STOCHASTIC = "Huang et al. 2016, Deep networks with stochastic depth"
_DENSENET = "Huang et al. 2017, DenseNet, table 2 (CIFAR)"
OWN: dict[str, Own] = {
    "inception_resnet_v2": Own(
        published.inception_resnet_v2,
        2017,
        "Szegedy et al. 2017, figure 15",
        "Inception-ResNet-v2",
        "5, 10 and 5 blocks",
    ),
    "resnet50": Own(published.resnet50, 2016, "He et al. 2016, table 1", "ResNet-50", "stride in the first 1x1 (v1)"),
    "resnet101": Own(
        published.resnet101, 2016, "He et al. 2016, table 1", "ResNet-101", "stride in the first 1x1 (v1)"
    ),
    "resnet152": Own(
        published.resnet152, 2016, "He et al. 2016, table 1", "ResNet-152", "stride in the first 1x1 (v1)"
    ),
    "resnet200": Own(
        published.resnet200, 2016, "He et al. 2016, Identity mappings, table 5", "ResNet-200, preactivated"
    ),
    "resnext101_2x64d": Own(published.resnext101_2x64d, 2017, "Xie et al. 2017, table 4", "ResNeXt-101 2x64d"),
    "resnet101_1x100d": Own(published.resnet101_1x100d, 2017, "Xie et al. 2017, table 4", "ResNet-101 1x100d"),
    "densenet264": Own(published.densenet264, 2017, "Huang et al. 2017, table 1", "DenseNet-264"),
    "enet": Own(enet.enet, 2016, "Paszke et al. 2016, table 1", "ENet", "the encoder; the model enet has the decoder"),
    "vit_p_1gf": Own(vit.vit_p_1gf, 2021, "Xiao et al. 2021, table 1", "ViT_P-1GF"),
    "vit_p_4gf": Own(vit.vit_p_4gf, 2021, "Xiao et al. 2021, table 1", "ViT_P-4GF"),
    "vit_p_18gf": Own(vit.vit_p_18gf, 2021, "Xiao et al. 2021, table 1", "ViT_P-18GF"),
    "vit_p_36gf": Own(vit.vit_p_36gf, 2021, "Xiao et al. 2021, table 1", "ViT_P-36GF"),
    "vit_c_1gf": Own(vit.vit_c_1gf, 2021, "Xiao et al. 2021, table 2", "ViT_C-1GF"),
    "vit_c_4gf": Own(vit.vit_c_4gf, 2021, "Xiao et al. 2021, table 2", "ViT_C-4GF"),
    "vit_c_18gf": Own(vit.vit_c_18gf, 2021, "Xiao et al. 2021, table 2", "ViT_C-18GF"),
    "vit_c_36gf": Own(vit.vit_c_36gf, 2021, "Xiao et al. 2021, table 2", "ViT_C-36GF"),
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
    "msdnet": Own(
        msdnet.msdnet,
        2018,
        "Huang et al. 2018, MSDNet, CIFAR, 7 exits",
        note="multiply-adds of the last exit alone; all seven exits together, as published tables count: 136.57 M",
    ),
    "msdnet_imagenet": Own(
        msdnet.msdnet_imagenet,
        2018,
        "Huang et al. 2018, MSDNet, ImageNet, k = 4",
        note="multiply-adds of the last exit alone; all five exits together: 1,360.53 M",
    ),
    "convnet_aig_20": Own(
        partial(convnet_aig.convnet_aig, depth=20), 2018, "Veit and Belongie 2018, ConvNet-AIG, n = 3"
    ),
    "convnet_aig_56": Own(
        partial(convnet_aig.convnet_aig, depth=56), 2018, "Veit and Belongie 2018, ConvNet-AIG, n = 9"
    ),
    "convnet_aig_110": Own(convnet_aig.convnet_aig, 2018, "Veit and Belongie 2018, ConvNet-AIG 110"),
    "blockdrop_110": Own(
        blockdrop.blockdrop,
        2018,
        "Wu et al. 2018, BlockDrop, ResNet-110 and a policy of 8 layers",
        note="fit refuses it: a policy is trained by BlockDrop.reinforce, on a residual network trained before",
    ),
    "plain20": Own(partial(cifar_resnet, 20, shortcut="none"), 2016, _RESNET, "plain-20 (CIFAR)"),
    "plain32": Own(partial(cifar_resnet, 32, shortcut="none"), 2016, _RESNET, "plain-32 (CIFAR)"),
    "plain44": Own(partial(cifar_resnet, 44, shortcut="none"), 2016, _RESNET, "plain-44 (CIFAR)"),
    "plain56": Own(partial(cifar_resnet, 56, shortcut="none"), 2016, _RESNET, "plain-56 (CIFAR)"),
    "plain110": Own(partial(cifar_resnet, 110, shortcut="none"), 2016, _RESNET, "plain-110 (CIFAR)"),
    "resnet20": Own(partial(cifar_resnet, 20), 2016, _RESNET, "ResNet-20 (CIFAR)"),
    "resnet32": Own(partial(cifar_resnet, 32), 2016, _RESNET, "ResNet-32 (CIFAR)"),
    "resnet44": Own(partial(cifar_resnet, 44), 2016, _RESNET, "ResNet-44 (CIFAR)"),
    "resnet56": Own(partial(cifar_resnet, 56), 2016, _RESNET, "ResNet-56 (CIFAR)"),
    "resnet110": Own(partial(cifar_resnet, 110), 2016, _RESNET, "ResNet-110 (CIFAR)"),
    "resnet1202": Own(partial(cifar_resnet, 1202), 2016, _RESNET, "ResNet-1202 (CIFAR)"),
    "resnet110_b": Own(partial(cifar_resnet, 110, shortcut="B"), 2016, _RESNET, "ResNet-110, shortcut B"),
    "resnet110_bn_after_add": Own(
        partial(cifar_resnet, 110, ordering="bn_after_add"), 2016, _IDENTITY, "ResNet-110 (b)"
    ),
    "resnet110_relu_before_add": Own(
        partial(cifar_resnet, 110, ordering="relu_before_add"), 2016, _IDENTITY, "ResNet-110 (c)"
    ),
    "resnet110_relu_preact": Own(partial(cifar_resnet, 110, ordering="relu_preact"), 2016, _IDENTITY, "ResNet-110 (d)"),
    "resnet110_full_preact": Own(partial(cifar_resnet, 110, ordering="full_preact"), 2016, _IDENTITY, "ResNet-110 (e)"),
    "resnet164_original": Own(partial(bottleneck_resnet, 164, ordering="original"), 2016, _IDENTITY, "ResNet-164 (a)"),
    "resnet164_bn_after_add": Own(
        partial(bottleneck_resnet, 164, ordering="bn_after_add"), 2016, _IDENTITY, "ResNet-164 (b)"
    ),
    "resnet164_relu_before_add": Own(
        partial(bottleneck_resnet, 164, ordering="relu_before_add"), 2016, _IDENTITY, "ResNet-164 (c)"
    ),
    "resnet164_relu_preact": Own(
        partial(bottleneck_resnet, 164, ordering="relu_preact"), 2016, _IDENTITY, "ResNet-164 (d)"
    ),
    "resnet164_full_preact": Own(
        partial(bottleneck_resnet, 164, ordering="full_preact"), 2016, _IDENTITY, "ResNet-164 (e)"
    ),
    "resnet1001": Own(partial(bottleneck_resnet, 1001, ordering="full_preact"), 2016, _IDENTITY, "ResNet-1001 (e)"),
    "resnet110_stochastic": Own(partial(cifar_resnet, 110, survival=0.5), 2016, _STOCHASTIC, "ResNet-110, stochastic"),
    "resnet1202_stochastic": Own(
        partial(cifar_resnet, 1202, survival=0.5), 2016, _STOCHASTIC, "ResNet-1202, stochastic"
    ),
    "highway19": Own(highway, 2015, "Srivastava et al. 2015, Training very deep networks", "Highway-19"),
    "densenet40_k12": Own(partial(cifar_densenet, 40, 12), 2017, _DENSENET, "DenseNet-40, k = 12"),
    "densenet100_k12": Own(partial(cifar_densenet, 100, 12), 2017, _DENSENET, "DenseNet-100, k = 12"),
    "densenet100_k24": Own(partial(cifar_densenet, 100, 24), 2017, _DENSENET, "DenseNet-100, k = 24"),
    "densenet_bc100_k12": Own(
        partial(cifar_densenet, 100, 12, bottleneck=True), 2017, _DENSENET, "DenseNet-BC-100, k = 12"
    ),
    "densenet_bc250_k24": Own(
        partial(cifar_densenet, 250, 24, bottleneck=True), 2017, _DENSENET, "DenseNet-BC-250, k = 24"
    ),
    "densenet_bc190_k40": Own(
        partial(cifar_densenet, 190, 40, bottleneck=True), 2017, _DENSENET, "DenseNet-BC-190, k = 40"
    ),
    "wide_resnet28_10": Own(
        partial(wide_resnet, 28, 10), 2016, "Zagoruyko and Komodakis 2016, Wide residual networks", "WRN-28-10"
    ),
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
