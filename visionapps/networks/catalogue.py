"""Every architecture that the zoo can build, by name: one line each.

Names of networks written here begin with "visionapps/". Numbers that can be measured (parameters, multiply-adds,
strides) are not written here but measured.
"""

from collections.abc import Callable
from dataclasses import dataclass

from visionapps.networks.base import Network


@dataclass(frozen=True)
class Own:
    """A network that is written here.

    Attributes:
        build: (num_classes=..., bands=...) to the network, with random weights.
        year: of publication.
        source: paper and place in it.
    """

    build: Callable[..., Network]
    year: int
    source: str


OWN: dict[str, Own] = {}
