"""What the lecture decks print that is not so, what is true, and how that was checked here."""

import math
from typing import NamedTuple

import torch
from exact_counts import own, timm_net, torchvision_net
from torchvision.models.detection.rpn import RPNHead

from visionapps.arithmetic import Sliding, convolution_multiply_adds, convolution_parameters, output_size
from visionapps.networks.anatomy import Anatomy
from visionapps.networks.catalogue import own_network
from visionapps.networks.cifar_resnet import cifar_resnet
from visionapps.networks.residual import expected_depth

CORRECTED = ("deck", "what it prints", "what is true", "computed here", "holds")
_PAPER = "the paper says so; nothing to compute"


class Correction(NamedTuple):
    """One error of a deck."""

    deck: str
    prints: str
    true: str
    got: str
    holds: bool | None = None  # None: nothing to compute


def corrections() -> list[Correction]:
    """All of them, in the order in which they were found."""
    return [*_arithmetic(), *_networks(), *_recipes(), *_results()]


def _arithmetic() -> list[Correction]:
    wide, window = 32, Sliding(5, 1, 2)
    printed = (wide - 2 * window.padding - window.kernel) // window.stride + 1
    right = output_size(wide, window)
    kept = [output_size(16, Sliding(1, 1, padding)) for padding in (0, 1)]
    small = [convolution_parameters(c, c, 3, bias=False) * 3 for c in (1, 2)]
    return [
        Correction(
            "001",
            "w' = (w - 2P - f) / S + 1",
            "+ 2P: its own example of 32 pixels keeps them",
            f"{right} with + 2P, {printed} as printed",
            (right, printed) == (32, 24),
        ),
        Correction(
            "001",
            "common: f = 1, S = 1, P = 1",
            "P = 0 keeps the size",
            f"16 become {kept[0]} and {kept[1]}",
            kept == [16, 18],
        ),
        Correction(
            "003",
            "three 3 x 3: 27 C weights against 49 C",
            "27 C^2 against 49 C^2",
            f"of one and two channels: {small[0]} and {small[1]}",
            small == [27, 27 * 4],
        ),
    ]


def _networks() -> list[Correction]:
    vgg, google, alex = own("vgg_d"), own("googlenet"), own("alexnet", 227)
    single = own("alexnet_one_tower", 227)
    numbers = vgg.memory - sum(layer.memory for layer in vgg.layers if "ReLU" in layer.kind)
    weights = vgg.parameters - sum(layer.output[0] for layer in vgg.layers if layer.parameters)
    stem = convolution_multiply_adds(3, 64, 7, 112)
    weighs = {key: sum(w.numel() for w in _module_weights(key)) for key in ("4c", "5a")}
    adds = sum(layer.multiply_adds for layer in google.layers if "inception5a" in layer.name)
    shipped = timm_net("inception_resnet_v2", 299)
    times = alex.parameters / google.parameters
    return [
        Correction(
            "001",
            "VGG-16: 24M numbers, 93 MB; 128 million parameters",
            "its rows sum to 15,237,608 numbers (61.0 MB) and 138,344,128 weights",
            f"{numbers:,} numbers, {weights:,} weights",
            (numbers, weights) == (15_237_608, 138_344_128),
        ),
        Correction(
            "001",
            "GoogLeNet: only 5 million parameters, 12 times fewer than AlexNet",
            "6,998,552 and 8.7 times",
            f"{google.parameters:,} and {times:.2f}",
            google.parameters == 6_998_552 and round(times, 1) == 8.7,
        ),
        Correction(
            "001",
            "its stem: 2.7K weights, 34M operations",
            "9,408 and 118M",
            f"{convolution_parameters(3, 64, 7, bias=False):,} and {stem:,}",
            stem == 118_013_952,
        ),
        Correction(
            "001",
            "its modules: 4c 463K weights; 5a 1072K weights and 54M operations",
            "4c 509K; 5a 1,042K and 51.1M",
            f"4c {weighs['4c']:,}; 5a {weighs['5a']:,} and {adds / 1e6:.1f}M",
            (weighs["4c"], weighs["5a"], round(adds / 1e6, 1)) == (509_440, 1_042_432, 51.1),
        ),
        Correction(
            "001, 002",
            "one tower of AlexNet, and 60 million parameters",
            "two networks: 62,378,344 in one tower, 60,965,224 in two",
            f"{single.parameters:,} and {alex.parameters:,}",
            (single.parameters, alex.parameters) == (62_378_344, 60_965_224),
        ),
        Correction(
            "001",
            "AlexNet normalises after pooling",
            "before it (Krizhevsky et al. 2012, section 3.5)",
            "LRN stands before pooling in alexnet",
            _norm_before_pool(alex),
        ),
        Correction(
            "001",
            "Inception-ResNet-v2 of 5, 10 and 5 blocks",
            "so it was published; what libraries ship has 10, 20 and 10 (176 layers, 55,843,464 parameters)",
            f"timm's: {shipped.depth} layers, {shipped.parameters:,}",
            (shipped.depth, shipped.parameters) == (176, 55_843_464),
        ),
        Correction(
            "003",
            "EfficientNet-B0 has phi = 1",
            "phi = 0; a, b and g are searched at 1, which gives B1",
            _PAPER,
        ),
        Correction(
            "003",
            "Faster R-CNN has k (2 + 4) outputs per place",
            "as published; torchvision has one score per anchor",
            f"{_rpn_outputs()} outputs of torchvision for k = 9",
            _rpn_outputs() == 45,
        ),
    ]


def _module_weights(key: str) -> list[torch.Tensor]:
    with torch.device("meta"):
        named = dict(own_network("googlenet").named_parameters())
    return [weight for name, weight in named.items() if f"inception{key}" in name and weight.ndim == 4]


def _norm_before_pool(network: Anatomy) -> bool:
    kinds = [layer.kind for layer in network.layers]
    norms = [i for i, kind in enumerate(kinds) if "ResponseNorm" in kind]
    return bool(norms) and all("pool" in kinds[i + 1] for i in norms)


def _rpn_outputs() -> int:
    with torch.device("meta"):
        head = RPNHead(8, 9)
    return int(head.cls_logits.out_channels + head.bbox_pred.out_channels)


def _recipes() -> list[Correction]:
    bits = [count * math.log2(1000) / 1e6 for count in (1_500_000, 1_281_167)]
    return [
        Correction("001", "ResNet: weight decay 1e-5", "1e-4 (He et al. 2016, section 3.4)", _PAPER),
        Correction(
            "000",
            "p keeps a neuron; at test multiply by 1 - p",
            "p drops it; the two agree at 0.5 only",
            "see the claims on dropout",
        ),
        Correction(
            "002",
            "1.5M annotations",
            "1,281,167 training images",
            f"{bits[1]:.2f} Mbit of labels instead of {bits[0]:.2f}",
            [round(b, 2) for b in bits] == [14.95, 12.77],
        ),
        Correction(
            "002", "momentum is equivalent to L1 or L2 regularisation", "it is not: it changes no minimum", _PAPER
        ),
        Correction("002", "VGG: scales of training 256 to 384", "256 to 512 (table 3)", _PAPER),
        Correction(
            "002", "crops are taken from the convolutional output", "from the image: 50 at each of 3 scales", _PAPER
        ),
        Correction(
            "003", "Faster R-CNN [Girshick 2016]; Long CVPR 2014; SDG", "Ren et al. 2015; CVPR 2015; SGD", _PAPER
        ),
    ]


def _results() -> list[Correction]:
    with torch.device("meta"):
        blocks = expected_depth(cifar_resnet(110, survival=0.5))
    plain, other = torchvision_net("resnet18").parameters, own("plain18").parameters
    return [
        Correction(
            "002",
            "VGG's multi-scale table: rows named A, B, ...",
            "shifted by one from the second on: 27.7 / 9.2 is C",
            _PAPER,
        ),
        Correction("003", "VGG16 has 7.3 % error", "seven networks together have; one has 7.5 (multi-scale)", _PAPER),
        Correction(
            "003",
            "figure 4: 7.84, 6.71, 6.37 and 6.14, 5.91, 5.46",
            "the former are ResNet-110, the latter ResNet-164; two rows lack",
            _PAPER,
        ),
        Correction(
            "003",
            "ResNets of ImageNet have no extra parameter beside plain nets",
            "with shortcut A; those of libraries project (B)",
            f"ResNet-18 has {plain - other:,} more",
            plain - other == 173_824,
        ),
        Correction(
            "003", "Dice", "summed over classes it is pixel accuracy; average it per class", "see the claims on Dice"
        ),
        Correction(
            "000, 003",
            "plain-56 fails because its gradients vanish",
            "with batch normalisation they explode at the start",
            "see the claims on gradients",
        ),
        Correction(
            "003",
            "deeper than 1000 layers is better",
            "ResNet-1202 has 7.93 % where ResNet-110 has 6.43; stochastic depth mends it (4.91)",
            f"{blocks:g} of 54 blocks of ResNet-110 are computed on average",
            round(blocks, 9) == 40.25,
        ),
    ]
