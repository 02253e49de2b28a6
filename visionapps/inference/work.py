"""What has to be known to draw scenes, as plain data that another process or machine can take up.

A band is drawn from its own tile row and the one above: a piece of work needs nothing that another one leaves.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from visionapps.errors import ConfigError, DataError, WeightsError
from visionapps.inference.bundle import Bundle, load
from visionapps.inference.engine import Engine
from visionapps.inference.field import halo
from visionapps.inference.network import Network, Precision
from visionapps.inference.photos import at_training_size
from visionapps.inference.plan import Plan
from visionapps.inference.products import Band, Products
from visionapps.inference.sources import Source, open_source
from visionapps.inference.tiling import Tiling
from visionapps.inference.views import ONE_VIEW, Views
from visionapps.structures import InputSpec


@dataclass(frozen=True)
class Reading:
    """How images are opened.

    Attributes:
        spec: bands and scale that the model expects.
        bands: 1-based numbers or descriptions to read; None: found by name or colour.
        scale: the raw value that means 1.0, where it differs from the spec's.
        nodata: the raw value that means "no data", where files do not say so.
        gsd: metres per pixel that the model was trained at; rasters are resampled to it. None: as they are.
        resize: (H, W) of the training photos; None: they kept their size.
        area: vector file; nothing is drawn outside its polygons.
    """

    spec: InputSpec
    bands: tuple[str, ...] | None = None
    scale: float | None = None
    nodata: float | None = None
    gsd: float | None = None
    resize: tuple[int, int] | None = None
    area: Path | None = None

    def open(self, image: str) -> Source:
        """The image as its owner sees it, to be closed after use.

        Raises:
            DataError: missing, damaged, without the bands wanted, or on another scale.
        """
        return open_source(
            image, self.spec, bands=self.bands, scale=self.scale, nodata=self.nodata, gsd=self.gsd, area=self.area
        )

    def shown(self, source: Source) -> Source:
        """An open image as the network sees it: a photo may be resized."""
        return at_training_size(source, self.resize)


@dataclass(frozen=True)
class Computing:
    """How a network is set up. Another process builds the same one from it.

    Attributes:
        bundles: members of the ensemble, one or more.
        weights: of the members; None: equal.
        views: at test time.
        tiling: how scenes are cut.
        exact: draw what the network would draw of the whole scene at once.
        products: what is drawn beside labels.
        device: see choose_device.
        precision: see Network.
        compiled: whether torch.compile prepares the network.
        threads: that decode pixels.
    """

    bundles: tuple[Path, ...]
    weights: tuple[float, ...] | None = None
    views: Views = ONE_VIEW
    tiling: Tiling = field(default_factory=Tiling)
    exact: bool = False
    products: Products = field(default_factory=Products)
    device: str = "auto"
    precision: Precision = "auto"
    compiled: bool = False
    threads: int = 2

    def load(self) -> tuple[Bundle, ...]:
        """The bundles of the ensemble.

        Raises:
            WeightsError: one is missing or damaged, or they do not mean the same by every label.
        """
        if not self.bundles:
            raise ConfigError("no bundle to draw with; name at least one")
        bundles = tuple(load(folder) for folder in self.bundles)
        for folder, bundle in zip(self.bundles, bundles, strict=True):
            if bundle.labels.names != bundles[0].labels.names:
                raise WeightsError(
                    f"{folder}: was trained on the classes {', '.join(bundle.labels.names)}, but {self.bundles[0]} on "
                    f"{', '.join(bundles[0].labels.names)}; members of an ensemble need the same classes"
                )
            for what in ("bands", "scale", "gsd", "resize"):
                own, first = (getattr(b.spec if what in ("bands", "scale") else b, what) for b in (bundle, bundles[0]))
                if own != first:
                    raise WeightsError(
                        f"{folder}: was trained with {what} {own}, but {self.bundles[0]} with {first}; members of an "
                        "ensemble see the same pixels, so train or export them alike"
                    )
        return bundles

    def engine(self, bundles: Sequence[Bundle] | None = None) -> Engine:
        """A fresh engine; None: the bundles are loaded."""
        return Engine(self.network(bundles), batch=self.tiling.batch, products=self.products, threads=self.threads)

    def network(self, bundles: Sequence[Bundle] | None = None) -> Network:
        """A fresh network of all members; None: the bundles are loaded."""
        return Network(
            [bundle.segmentor for bundle in (self.load() if bundles is None else bundles)],
            weights=self.weights,
            views=self.views,
            device=self.device,
            precision=self.precision,
            compiled=self.compiled,
            disagreement="disagreement" in self.products.extras,
        )

    def settled(self, bundles: Sequence[Bundle]) -> Tiling:
        """The tiling with the halo that exact mode needs for these models.

        Raises:
            ConfigError: exact mode is asked of models that cannot be exact.
        """
        if not self.exact:
            return self.tiling
        if self.views != ONE_VIEW:
            raise ConfigError(
                "exact mode: views move the lattice on which the model computes, so that tiles and the whole scene "
                "differ; leave out --tta and --scales, or --exact"
            )
        return replace(self.tiling, halo=max(halo(bundle.segmentor) for bundle in bundles))


class Part(NamedTuple):
    """Some tile rows of one scene."""

    image: str
    key: int  # the driver's, to know the scene again
    plan: Plan
    rows: range


class Task(NamedTuple):
    """One piece of work: a run of tile rows of a large scene, or several small scenes."""

    parts: tuple[Part, ...]


class Answer(NamedTuple):
    """A finished band of a part, or why its image cannot be read."""

    part: Part
    outcome: Band | DataError
