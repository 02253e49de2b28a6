"""LeNet-5 as it was in 1998, and as lectures draw it.

Source: LeCun, Bottou, Bengio and Haffner, Gradient-Based Learning Applied to Document Recognition, Proceedings of the
    IEEE 1998, section II.B and appendix A.
"""

import torch
from torch import Tensor, nn

from visionapps.errors import ConfigError
from visionapps.networks.base import ConnectedHead
from visionapps.networks.chain import Chain
from visionapps.networks.initial import lecun

# Table I: which maps of S2 each map of C3 sees, in groups that see equally many.
_SEEN = (
    ((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (4, 5, 0), (5, 0, 1)),
    (
        *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (3, 4, 5, 0), (4, 5, 0, 1), (5, 0, 1, 2)),
        *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    ),
    ((0, 1, 2, 3, 4, 5),),
)
# Bitmaps of 7 x 12 for the digits, as figure 3 has them for all printable characters; these are drawn anew.
_DIGITS = """
..###.. ...#... .#####. .#####. ....##. ####### ..####. ####### .#####. .#####.
.#...#. ..##... ##...## ##...## ...###. ##..... .##.... ##...## ##...## ##...##
##...## .###... .....## .....## ...###. ##..... ##..... .....## ##...## ##...##
##...## ...#... .....## .....## ..#.##. ##..... ##..... ....##. ##...## ##...##
##...## ...#... ....##. ....##. ..#.##. #####.. #####.. ....##. .#####. ##...##
##...## ...#... ...##.. ..###.. .#..##. ....##. ##..##. ...##.. .#####. .######
##...## ...#... ..##... ....##. .#..##. .....## ##...## ...##.. ##...## ..#####
##...## ...#... .##.... .....## ####### .....## ##...## ..##... ##...## .....##
##...## ...#... ##..... .....## ....##. .....## ##...## ..##... ##...## .....##
##...## ...#... ##..... .....## ....##. .....## ##...## .##.... ##...## .....##
.#...#. ...#... ##..... ##...## ....##. ##..##. .##.##. .##.... ##...## ...###.
..###.. .#####. ####### .#####. ....##. .####.. ..###.. .##.... .#####. .###...
"""
_CODE_LENGTH = 84  # 7 x 12, the width of F6


def lenet5(num_classes: int = 10, bands: int = 1) -> Chain:
    """LeNet-5 of 1998: 60,000 weights that are trained, 340,908 connections.

    Its logits are minus the squared distances of the paper's output units, so that cross entropy of them is its
    equation 9 without the constant that stands for "none of the classes".

    Args:
        num_classes: K.
        bands: C of the image, 1 in the paper.
    """
    steps: dict[str, nn.Module] = {
        "c1": nn.Conv2d(bands, 6, 5),
        "c1_squash": Squash(),
        "s2": Subsampling(6),
        "s2_squash": Squash(),
        "c3": PartialConnections(),
        "c3_squash": Squash(),
        "s4": Subsampling(16),
        "s4_squash": Squash(),
    }
    network = Chain("lenet5", steps, RadialHead(num_classes), native=32, least=16)
    lecun(network)
    return network


def lenet5_plain(num_classes: int = 10, bands: int = 1) -> Chain:
    """The form that lectures give: max pooling without weights, C3 sees all maps, hyperbolic tangents, linear output.

    Args:
        num_classes: K.
        bands: C of the image, 1 in the paper.
    """
    steps: dict[str, nn.Module] = {
        "c1": nn.Conv2d(bands, 6, 5),
        "s2": nn.MaxPool2d(2),
        "s2_tanh": nn.Tanh(),
        "c3": nn.Conv2d(6, 16, 5),
        "s4": nn.MaxPool2d(2),
        "s4_tanh": nn.Tanh(),
    }
    head = ConnectedHead((16, 5, 5), (120, 84), num_classes, activation=nn.Tanh)
    network = Chain("lenet5_plain", steps, head, native=32, least=16)
    lecun(network)
    return network


class Squash(nn.Module):
    """1.7159 tanh(2 a / 3): -1 and 1 are mapped to themselves, where its curvature is greatest (appendix A)."""

    def forward(self, activation: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(activation * (2 / 3))


class Subsampling(nn.Module):
    """Sums of 2 x 2 pixels, times a coefficient of the map, plus a bias of the map; both are trained.

    Args:
        channels: maps.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.sum = nn.AvgPool2d(2, divisor_override=1)
        bound = 2.4 / 4  # the paper's rule: four connections enter a unit
        self.coefficient = nn.Parameter(torch.empty(channels, 1, 1).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """(B, D, h, w) to (B, D, h // 2, w // 2)."""
        sums: Tensor = self.sum(image)
        return sums * self.coefficient + self.bias


class PartialConnections(nn.Module):
    """C3: 16 maps of which only the last sees all six that enter, so that they cannot become alike (table I)."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(len(group) * len(group[0]), len(group), 5, groups=len(group)) for group in _SEEN
        )

    def forward(self, image: Tensor) -> Tensor:
        """(B, 6, h, w) to (B, 16, h - 4, w - 4)."""
        pairs = zip(self.convs, _SEEN, strict=True)
        return torch.cat([conv(image[:, [i for seen in group for i in seen]]) for conv, group in pairs], 1)


class RadialHead(nn.Module):
    """C5, F6 and one output unit per class, which measures how far F6 is from the picture of that class.

    The pictures are not trained. For ten classes they are bitmaps of the digits; for any other number their pixels are
    drawn, -1 or 1 with equal probability, which the paper names as possible too.

    Args:
        num_classes: K.
    """

    codes: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(16, 120, 5), Squash(), nn.Conv2d(120, _CODE_LENGTH, 1), Squash())
        self.register_buffer("codes", _digit_codes() if num_classes == 10 else _random_codes(num_classes))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 16, 5, 5) to (B, K) negative squared distances.

        Raises:
            ConfigError: the map has another size.
        """
        if image.shape[1:] != (16, 5, 5):
            raise ConfigError(
                f"lenet5: the layer C5 is made for maps of 16x5x5 (DxHxW), got {'x'.join(map(str, image.shape[1:]))}; "
                "give images of 32x32 pixels, or evaluate densely"
            )
        return self._score(image).flatten(1)

    def dense(self) -> nn.Module:
        """The head at every position: (B, 16, h, w) to (B, K, h - 4, w - 4), sharing weights."""
        return _DenseRadial(self)

    def _score(self, image: Tensor) -> Tensor:
        seen: Tensor = self.layers(image)
        # |x - c|^2 = |x|^2 - 2 x c + |c|^2, so that no array of all differences is made.
        products = torch.nn.functional.conv2d(seen, self.codes[..., None, None])
        return 2 * products - seen.square().sum(1, keepdim=True) - _CODE_LENGTH


class _DenseRadial(nn.Module):
    def __init__(self, head: RadialHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, image: Tensor) -> Tensor:
        return self.head._score(image)


def _digit_codes() -> Tensor:
    """(10, 84) of -1 and 1, pixels row by row."""
    rows = [line.split() for line in _DIGITS.split("\n") if line]
    pictures = ["".join(row[digit] for row in rows) for digit in range(10)]
    return torch.tensor([[1.0 if pixel == "#" else -1.0 for pixel in picture] for picture in pictures])


def _random_codes(num_classes: int) -> Tensor:
    """(K, 84) of -1 and 1, the same at every call: they are no weights, and must not depend on the seed of a run."""
    generator = torch.Generator().manual_seed(1998)
    drawn = torch.randint(0, 2, (num_classes, _CODE_LENGTH), generator=generator, device="cpu")
    return (2 * drawn - 1).to(torch.get_default_device(), torch.float32)
