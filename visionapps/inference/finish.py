"""What may be done to the bands of a scene before they are drawn; rules of a competition, for instance."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from visionapps.inference.photos import restored
from visionapps.inference.products import Band, Products
from visionapps.windows import Window


class Finish(Protocol):
    """Changes labels by what the other planes say."""

    @property
    def whole(self) -> bool:
        """Whether it needs all rows of a scene at once."""
        ...

    @property
    def computed(self) -> Products:
        """What the bands must hold."""
        ...

    @property
    def drawn(self) -> Products:
        """What is left in the bands."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """Plain data that decide what it does."""
        ...

    def require_room(self, name: str, shape: tuple[int, int]) -> None:
        """Raise DataError where a scene of (H, W) is too large for it."""
        ...

    def __call__(self, band: Band) -> Band:
        """The band as it is drawn."""
        ...


def finished(bands: Iterable[Band], shape: tuple[int, int], finish: Finish | None) -> Band:
    """All bands of a scene as one, finished where its scores were computed, at its own size (H, W)."""
    together = list(bands)
    if finish is None:
        return restored(together, shape)
    planes = np.concatenate([band.planes for band in together], axis=1)
    whole = finish(Band(Window(0, 0, *planes.shape[1:]), planes))
    return whole if planes.shape[1:] == shape else restored([whole], shape)
