"""How scenes are cut into tiles for a network: what a person fixes, and what is chosen where nothing is said."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from visionapps.errors import ConfigError
from visionapps.inference.network import Network
from visionapps.inference.plan import TILE, Footprint, Plan, choose, default_overlap, plan
from visionapps.inference.products import Products
from visionapps.runtime import total_memory

# Pixels per call of the network. A CPU is as fast with one tile of 512 px as with more, and needs less memory; a GPU
# wants enough work per launch.
_CPU_PIXELS, _GPU_PIXELS = 2**18, 2**24
_BUDGET = 600_000_000  # several times what 25 classes at 12,000 px width take


@dataclass(frozen=True)
class Tiling:
    """
    Attributes:
        tile: side of the squares in pixels, a multiple of the network's stride; None: chosen per scene, within
            the memory budget and so that little is computed twice: see choose.
        overlap: pixels that neighbours share and blend, at most half a tile; None: a sixteenth of the tile.
        batch: tiles per call of the network; None: chosen by the device.
        halo: exact mode: every pixel is drawn by a tile that sees this many pixels around it, so that the map is that
            of the whole scene at once; None: tiles are blended.
        budget: bytes that rows of pixels, strips, scores and bands of a scene may take in all; None: a sixteenth of
            the machine's memory, but 600 MB at least.
    """

    tile: int | None = None
    overlap: int | None = None
    batch: int | None = None
    halo: int | None = None
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"batch {self.batch}: must be at least 1 tile")
        if self.halo is not None and self.overlap is not None:
            raise ConfigError("exact mode: the overlap follows from the model's receptive field; leave out --overlap")

    def plan(
        self,
        shape: tuple[int, int],
        network: Network,
        *,
        dtype: np.dtype[Any] | None = None,
        products: Products | None = None,
    ) -> Plan:
        """The plan of a scene.

        Args:
            shape: (H, W).
            network: gives stride, bands and classes.
            dtype: of the raw values; None: 8 bit.
            products: what is drawn; None: labels only.

        Raises:
            ConfigError: tile and overlap do not go together, or not with the network's stride.
        """
        if self.tile is not None and self.halo is None:
            overlap = default_overlap(self.tile, network.stride) if self.overlap is None else self.overlap
            return plan(shape, tile=self.tile, overlap=overlap, multiple=network.stride)
        footprint = self.footprint(network, dtype=dtype, products=products)
        return choose(
            shape,
            footprint,
            tile=self.tile,
            overlap=self.overlap,
            halo=self.halo,
            multiple=network.stride,
            budget=max(_BUDGET, total_memory() // 16) if self.budget is None else self.budget,
        )

    def footprint(
        self, network: Network, *, dtype: np.dtype[Any] | None = None, products: Products | None = None
    ) -> Footprint:
        """What a pixel weighs on its way through the pipeline."""
        return Footprint(
            bands=len(network.spec.bands),
            itemsize=np.dtype(dtype or np.uint8).itemsize,
            scores=network.num_classes,
            products=(products or Products()).count(network.num_classes),
            batch=self.batch or tiles_per_call(network, (self.tile or TILE) ** 2),
        )


def tiles_per_call(network: Network, pixels: int) -> int:
    """How many tiles of so many pixels keep the network's device busy, where nobody says."""
    return max(1, (_GPU_PIXELS if network.device.type == "cuda" else _CPU_PIXELS) // max(1, pixels))
