"""Claims that are counted: sizes, parameters, multiply-adds, depths, receptive fields."""

from collections.abc import Iterator
from functools import cache

import numpy as np
import timm
import torch
import torchvision
from claim import Check, Claim, above, close, equal
from torchvision.models.densenet import _DenseBlock

from visionapps.arithmetic import (
    Sliding,
    average_pool_matrix,
    convolution_multiply_adds,
    convolution_parameters,
    convolve,
    im2col,
    max_pool_matrix,
    output_size,
    receptive_field,
    unseen,
)
from visionapps.networks.anatomy import Anatomy, anatomy
from visionapps.networks.catalogue import own_network


@cache
def own(name: str, side: int = 224) -> Anatomy:
    """The anatomy of a network that is written here."""
    with torch.device("meta"):
        return anatomy(own_network(name), (3, side, side))


@cache
def torchvision_net(name: str, side: int = 224) -> Anatomy:
    """The anatomy of one of torchvision's."""
    more = {"aux_logits": False, "init_weights": False} if name.startswith("inception") else {}
    with torch.device("meta"):
        return anatomy(torchvision.models.get_model(name, weights=None, **more), (3, side, side))


@cache
def timm_net(name: str, side: int) -> Anatomy:
    """The anatomy of one of timm's."""
    with torch.device("meta"):
        return anatomy(timm.create_model(name), (3, side, side))


def sizes() -> Iterator[Claim]:
    """Deck 001, strides and padding."""
    for stride, expected in ((1, 5), (2, 3), (3, 2)):
        got = output_size(7, Sliding(3, stride))
        yield equal(f"7 x 7, kernel 3, stride {stride}: pixels across", "001", expected, got)
    yield equal("stride 3 does not fit: columns left out", "001", 1, unseen(7, Sliding(3, 3)))
    yield equal("32 x 32, kernel 5, padding 2: pixels across", "001", 32, output_size(32, Sliding(5, 1, 2)))
    yield equal("ten 5 x 5 x 3 filters: parameters", "001", 760, convolution_parameters(3, 10, 5))
    yield equal("AlexNet's first map: (227 - 11) / 4 + 1", "001", 55, output_size(227, Sliding(11, 4)))
    yield equal("its weights, 'about 35K'", "001", 34_848, convolution_parameters(3, 96, 11, bias=False))
    yield equal("pooled: (55 - 3) / 2 + 1", "001", 27, output_size(55, Sliding(3, 2)))
    anchors = 9 * (600 // 16) * (1000 // 16)
    yield equal("anchors of Faster R-CNN on 600 x 1000 (about 20k)", "003, Ren et al. 2015", 20_646, anchors)
    weights = convolution_parameters(512, (4 + 2) * 9, 1, bias=False)
    yield equal("weights of its two output layers", "003, Ren et al. 2015", 27_648, weights)


def matrices() -> Iterator[Claim]:
    """Decks 001 and 002, layers as products."""
    image = np.array([[1, 1, 2, 4], [5, 6, 7, 8], [3, 2, 1, 0], [1, 2, 3, 4]])
    matrix = max_pool_matrix(image, 2)
    yield equal("max pooling as a matrix: its shape", "001", (4, 16), matrix.shape)
    yield equal("and its product", "001", [6, 8, 3, 4], [int(v) for v in matrix @ image.ravel()])
    means = average_pool_matrix((4, 4), 2)
    yield equal("average pooling: entries", "001", [0.0, 0.25], sorted({float(v) for v in means.ravel()}))
    numbered = np.arange(1, 49).reshape(3, 4, 4)
    columns = im2col(numbered, 2)
    yield equal("im2col of 4 x 4 x 3 under 2 x 2", "002", (12, 9), columns.shape)
    yield equal("its first row", "002", [1, 2, 3, 5, 6, 7, 9, 10, 11], columns[0].tolist())
    rng = np.random.default_rng(0)
    one, other, image = (rng.normal(size=(1, 1, s, s)) for s in (3, 3, 9))
    joined = np.zeros((1, 1, 5, 5))
    for (i, j), value in np.ndenumerate(one[0, 0]):
        joined[0, 0, i : i + 3, j : j + 3] += value * other[0, 0]
    gap = np.abs(convolve(convolve(image[0], one), other) - convolve(image[0], joined)).max()
    yield equal("two 3 x 3 convolutions are one 5 x 5 (without ReLU between)", "003", True, bool(gap < 1e-12))


def small_kernels() -> Iterator[Claim]:
    """Decks 000, 003 and 004, cheaper blocks."""
    for count, field in ((2, 5), (3, 7)):
        got = int(receptive_field([Sliding(3)] * count).size)
        yield equal(f"{count} kernels of 3 x 3 see", "003", field, got)
    three, seven = 3 * convolution_parameters(64, 64, 3, bias=False), convolution_parameters(64, 64, 7, bias=False)
    yield equal("their weights beside one 7 x 7, in squares of C", "003", (27, 49), (three // 64**2, seven // 64**2))
    wide = convolution_parameters(256, 256, 3, bias=False)
    narrow = sum(convolution_parameters(*layer, bias=False) for layer in ((256, 64, 1), (64, 64, 3), (64, 256, 1)))
    yield equal("3 x 3 on 256 channels beside a bottleneck of 64", "000", (589_824, 69_632), (wide, narrow))
    yield equal("bottleneck: c d + 9 d^2 + d c", "004", 256 * 64 + 9 * 64**2 + 64 * 256, narrow)
    basic = 2 * convolution_multiply_adds(64, 64, 3, 56)
    yield equal("basic block of 64 at 56 x 56: multiply-adds", "001", 231_211_008, basic)
    yield close("bottleneck of 256 'of similar complexity'", "001", basic, narrow * 56 * 56, within=0.06)
    for groups in (2, 32):
        grouped = convolution_parameters(256, 256, 3, groups=groups, bias=False)
        yield equal(f"{groups} groups divide the weights by", "004", groups, wide // grouped)
    separable = convolution_parameters(256, 256, 3, groups=256, bias=False) + convolution_parameters(
        256, 256, 1, bias=False
    )
    yield equal("depthwise separable: k^2 c + c^2", "004", 9 * 256 + 256**2, separable)
    yield close("EfficientNet: a b^2 g^2 is about 2", "003, Tan and Le 2019", 2.0, 1.2 * 1.1**2 * 1.15**2, within=0.05)


def vgg() -> Iterator[Claim]:
    """Decks 001 to 003."""
    counts = {"a": 132_863_336, "a_lrn": 132_863_336, "b": 133_047_848, "c": 133_638_952, "d": 138_357_544}
    depths = {"a": 11, "a_lrn": 11, "b": 13, "c": 16, "d": 16, "e": 19}
    for key, count in {**counts, "e": 143_667_240}.items():
        found = own(f"vgg_{key}")
        name = f"VGG {key.upper().replace('_', '-')}"
        yield equal(f"{name}: parameters, weight layers", "003", (count, depths[key]), (found.parameters, found.depth))
    found = own("vgg_d")
    outputs = [layer for layer in found.layers if layer.parameters or "pool" in layer.kind]
    numbers = 3 * 224 * 224 + sum(layer.memory for layer in outputs)
    yield equal("VGG-16: numbers of all rows (the deck: 24M)", "001", 15_237_608, numbers)
    connected = sum(layer.parameters - layer.output[0] for layer in found.layers if layer.kind == "Linear")
    weights = sum(layer.parameters - layer.output[0] for layer in outputs if layer.parameters)
    yield equal("its weights without biases (the deck: 128M)", "001", 138_344_128, weights)
    yield close("most parameters are in the connected layers: share", "001", 0.894, connected / weights)
    early = sum(layer.memory for layer in [each for each in outputs if each.parameters][:4])
    yield close("most memory is in the first four convolutions: share", "001", 0.63, early / numbers, within=0.01)


def inceptions() -> Iterator[Claim]:
    """Decks 000, 001 and 003."""
    found, alexnet = own("googlenet"), own("alexnet", 227)
    yield equal("GoogLeNet: parameters (the deck: 5 million)", "001", 6_998_552, found.parameters)
    depths = (found.depth, found.depth_with_pooling)
    yield equal("layers, and with pooling", "003", (22, 27), depths)
    ratio = alexnet.parameters / found.parameters
    yield close("times fewer parameters than AlexNet (the deck: 12)", "001", 8.711, ratio)
    yield close("times the compute ('2x')", "001", 2.185, found.multiply_adds / alexnet.multiply_adds)
    naive = sum(convolution_multiply_adds(192, outputs, kernel, 28) for outputs, kernel in ((64, 1), (128, 3), (32, 5)))
    reduced = sum(layer.multiply_adds for layer in found.layers if "inception3a" in layer.name)
    yield equal(
        "module 3a, naive and reduced: million multiply-adds", "000", (303, 128), (naive // 10**6, reduced // 10**6)
    )
    yield equal("Inception-v3: weight layers", "003", 48, torchvision_net("inception_v3", 299).depth)
    planned = 9 + 4 * 3 + 3 + 7 * 5 + 4 + 3 * 4 + 1
    yield equal("Inception-v4: the deck's sum and the classifier", "001", planned, timm_net("inception_v4", 299).depth)


def residuals() -> Iterator[Claim]:
    """Decks 000, 001, 003 and 004."""
    for depth, count in ((20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)):
        found = own(f"resnet{depth}", 32)
        yield equal(
            f"ResNet-{depth} of CIFAR: parameters, depth", "000", (count, depth), (found.parameters, found.depth)
        )
    plain, residual = own("plain56", 32), own("resnet56", 32)
    yield equal("its shortcuts (A) add parameters", "003", 0, residual.parameters - plain.parameters)
    for depth, count in ((18, 11_689_512), (34, 21_797_672), (50, 25_557_032)):
        found = torchvision_net(f"resnet{depth}")
        yield equal(f"ResNet-{depth}: parameters, depth", "001", (count, depth), (found.parameters, found.depth))
    deep = torchvision_net("resnet152").multiply_adds
    yield above("VGG-16 beside ResNet-152: times the multiply-adds", "001", 1.0, own("vgg_d").multiply_adds / deep)
    dense, other = torchvision_net("densenet201"), torchvision_net("resnet101")
    yield equal("DenseNet-201: parameters, depth", "000", (20_013_928, 201), (dense.parameters, dense.depth))
    yield above("ResNet-101 beside it: times the parameters", "000", 2.0, other.parameters / dense.parameters)
    block = _DenseBlock(5, num_input_features=4, bn_size=4, growth_rate=4, drop_rate=0.0)
    joined = sum(layer.conv1.in_channels // 4 for layer in block.values())  # maps of four channels that layers read
    yield equal("connections of a dense block of 5: L (L + 1) / 2", "000", 15, joined)
    separable, full = own("mobilenet_v1"), own("conv_mobilenet")
    yield equal("MobileNet: parameters", "004", 4_231_976, separable.parameters)
    yield close("its multiply-adds", "004", 569e6, separable.multiply_adds)
    yield close("Conv MobileNet: parameters", "004", 29.3e6, full.parameters)
    yield close("its multiply-adds", "004", 4866e6, full.multiply_adds)


def fields() -> Iterator[Claim]:
    """Receptive fields that fully convolutional networks have."""
    vgg_d = own("vgg_d")
    pooled = [layer for layer in vgg_d.layers if "pool" in layer.kind]
    yield equal("VGG-16 sees, at its last pooling", "Long et al. 2015, table 1", 212, pooled[-1].field[0])
    yield equal("FCN of VGG-16 sees", "Long et al. 2015, table 1", 404, vgg_d.layers[-1].field[0])
    yield equal("FCN of AlexNet sees", "Long et al. 2015, table 1", 355, own("alexnet", 227).layers[-1].field[0])
    yield equal("FCN of GoogLeNet sees", "Long et al. 2015, table 1", 907, own("googlenet").layers[-1].field[0])


def transfers() -> Iterator[Claim]:
    """Deck 004: its own differences."""
    table = ((84.3, 87.7, 88.4), (61.7, 79.7, 82.4), (18.8, 61.0, 70.4), (61.0, 45.0, 74.1), (59.2, 36.5, 79.8))
    probe = [round(fixed - before, 1) for before, fixed, _ in table]
    tuned = [round(after - before, 1) for before, _, after in table]
    yield equal("a classifier on fixed features gains", "004", [3.4, 18.0, 42.2, -16.0, -22.7], probe)
    yield equal("fine-tuning gains", "004", [4.1, 20.7, 51.6, 13.1, 20.6], tuned)


COUNTS: tuple[Check, ...] = (sizes, matrices, small_kernels, vgg, inceptions, residuals, fields, transfers)
