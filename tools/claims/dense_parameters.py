"""Do dense connections need fewer parameters? Counts of DenseNets beside the residual networks of equal error.

    python tools/claims/dense_parameters.py

The claim (Huang et al. 2017): DenseNet-BC-100 (k = 12) has the error of the pre-activated ResNet-1001 on CIFAR-10
with a thirteenth of its parameters, and DenseNet-201 that of ResNet-101 on ImageNet with less than half. Parameters and
multiply-adds are counted here, on no memory; errors are the papers' (C10+ with augmentation; ImageNet top-1, one crop).
"""

import argparse
from collections.abc import Callable

import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from visionapps.cli.table import render
from visionapps.networks.catalogue import own_network

# What is built, the side of its image, and the error that its paper prints.
_ROWS: tuple[tuple[str, Callable[[], nn.Module], int, str], ...] = (
    ("ResNet-110", lambda: own_network("resnet110"), 32, "6.61"),
    ("ResNet-164 (pre-activated)", lambda: own_network("resnet164_full_preact"), 32, "5.46"),
    ("ResNet-1001 (pre-activated)", lambda: own_network("resnet1001"), 32, "4.62"),
    ("WRN-28-10", lambda: own_network("wide_resnet28_10"), 32, "4.17"),
    ("DenseNet-40, k = 12", lambda: own_network("densenet40_k12"), 32, "5.24"),
    ("DenseNet-BC-100, k = 12", lambda: own_network("densenet_bc100_k12"), 32, "4.51"),
    ("DenseNet-BC-250, k = 24", lambda: own_network("densenet_bc250_k24"), 32, "3.62"),
    ("DenseNet-BC-190, k = 40", lambda: own_network("densenet_bc190_k40"), 32, "3.46"),
    ("ResNet-50 (torchvision)", torchvision.models.resnet50, 224, "24.0"),
    ("ResNet-101 (torchvision)", torchvision.models.resnet101, 224, "22.4"),
    ("DenseNet-121 (torchvision)", torchvision.models.densenet121, 224, "25.0"),
    ("DenseNet-201 (torchvision)", torchvision.models.densenet201, 224, "22.6"),
)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    counts: dict[str, tuple[int, float]] = {name: count(build, side) for name, build, side, _ in _ROWS}
    rows = [(name, side, f"{counts[name][0]:,}", f"{counts[name][1]:.3f}", error) for name, _, side, error in _ROWS]
    print(render(("network", "px", "parameters", "billion multiply-adds", "error % (papers)"), rows))
    for less, more in (
        ("DenseNet-BC-100, k = 12", "ResNet-1001 (pre-activated)"),
        ("DenseNet-201 (torchvision)", "ResNet-101 (torchvision)"),
    ):
        print(f"{more} has {counts[more][0] / counts[less][0]:.1f} times the parameters of {less}")


def count(build: Callable[[], nn.Module], side: int) -> tuple[int, float]:
    """Parameters, and billions of multiply-adds for one image."""
    with torch.device("meta"):
        network, image = build().eval(), torch.zeros(1, 3, side, side)
    with FlopCounterMode(display=False) as counter:
        network(image)
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops() / 2e9


if __name__ == "__main__":
    main()
