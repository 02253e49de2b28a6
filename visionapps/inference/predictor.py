"""One model, one source at a time: the engine for a program's own loop, and for judging photos.

Memory grows with the width of the source and the number of classes, not with its height.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from visionapps.errors import DataError
from visionapps.inference.engine import Engine, Scene
from visionapps.inference.finish import Finish, finished
from visionapps.inference.network import Network, Precision
from visionapps.inference.photos import at_training_size
from visionapps.inference.products import Band
from visionapps.inference.sources import INVALID, Source
from visionapps.inference.tiling import Tiling
from visionapps.segmentation.base import Segmentor
from visionapps.windows import Window

Progress = Callable[[int, int], None]  # tiles done, tiles in all


class Predictor:
    """Applies one model to sources. It takes the model over: moves it to the device and to evaluation mode."""

    def __init__(
        self,
        model: Segmentor | Network,
        *,
        tile: int | None = None,
        overlap: int | None = None,
        device: str = "auto",
        batch: int | None = None,
        precision: Precision = "auto",
        resize: tuple[int, int] | None = None,
        finish: Finish | None = None,
    ) -> None:
        """
        Args:
            model: raw pixels to logits; or a network, an ensemble perhaps, which knows its device and precision.
            tile: side of the squares that the model sees, in pixels; see Tiling.
            overlap: pixels that neighbouring tiles share and blend; see Tiling.
            device: "auto" (CUDA if there is one), or a name for torch.device.
            batch: tiles per call of the model, >= 1; None: as many as keep the device busy.
            precision: see Network.
            resize: (H, W) that the model's training photos were resized to: photos are, too, and their labels are
                drawn at the photo's own size. Georeferenced rasters keep their resolution.
            finish: changes labels by rules; None: they are as the scores say.

        Raises:
            ConfigError: the device is not there, or a number is out of range.
        """
        network = model if isinstance(model, Network) else Network([model], device=device, precision=precision)
        self._tiling = Tiling(tile, overlap, batch)
        self._resize = resize
        self._finish = finish
        self._engine = Engine(network, batch=batch, products=finish.computed if finish else None)
        self._tiling.plan((1, 1), network)  # bad numbers fail here already

    def segment(self, source: Source, progress: Progress | None = None) -> Iterator[tuple[Window, np.ndarray]]:
        """Label a source from top to bottom.

        Args:
            source: as many bands as the model eats, raw values on the scale of its spec.
            progress: called after each batch.

        Yields:
            Full-width row bands in order, and their labels (h, W) uint8, INVALID where the source has no data. They
            tile the source exactly.

        Raises:
            DataError: wrong number of bands, or not one valid pixel in the whole source.
        """
        shown = at_training_size(source, self._resize)
        bands: Iterable[Band] = self._bands(shown, progress)
        if self._finish is not None:
            self._finish.require_room(source.name, shown.shape)
        if shown is not source or (self._finish is not None and self._finish.whole):
            bands = [finished(bands, source.shape, self._finish)]
        elif self._finish is not None:
            bands = map(self._finish, bands)
        for band in bands:
            yield band.window, band.planes[0]

    def _bands(self, source: Source, progress: Progress | None) -> Iterator[Band]:
        engine = self._engine
        plan = self._tiling.plan(source.shape, engine.network)
        scene = Scene(source, plan, range(len(plan.rows.starts)))
        engine.progress = _counted(progress, plan.tiles) if progress else None
        seen = False
        for _, outcome in engine.run([scene]):
            if isinstance(outcome, DataError):
                raise outcome
            seen = seen or bool((outcome.planes[0] != INVALID).any())
            yield outcome
        if not seen:
            raise DataError(f"{source.name}: no valid pixel, all are nodata or masked; there is nothing to predict")


def _counted(progress: Progress, total: int) -> Callable[[int], None]:
    done = 0

    def more(tiles: int) -> None:
        nonlocal done
        done += tiles
        progress(done, total)

    return more
