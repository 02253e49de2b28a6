"""Draw a raster of any size with a model that sees one tile at a time: plan, read, compute, merge.

Memory grows with the width of the raster and the number of classes, not with its height.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from visionapps.data.images import resize_image, resize_labels
from visionapps.errors import ConfigError, DataError
from visionapps.inference.merge import StripMerger
from visionapps.inference.plan import Axis, plan
from visionapps.inference.rows import TileRow, tile_rows
from visionapps.inference.sources import INVALID, ArraySource, Source
from visionapps.runtime import cpu_has_bf16
from visionapps.segmentation.base import Segmentor
from visionapps.structures import InputSpec
from visionapps.windows import Window

Precision = Literal["auto", "fp32", "bf16"]
Progress = Callable[[int, int], None]  # tiles done, tiles in all
log = logging.getLogger(__name__)


class Predictor:
    """Applies one model to sources. It takes the model over: moves it to the device and to evaluation mode."""

    def __init__(
        self,
        model: Segmentor,
        *,
        tile: int = 512,
        overlap: int | None = None,
        device: str = "auto",
        batch: int = 4,
        precision: Precision = "auto",
        resize: tuple[int, int] | None = None,
    ) -> None:
        """
        Args:
            model: raw pixels to logits.
            tile: side of the squares that the model sees, in pixels; a multiple of its coarsest stride.
            overlap: pixels that neighbouring tiles share and blend, at most half a tile; None: a quarter of the tile.
            device: "auto" (CUDA if there is one), or a name for torch.device.
            batch: tiles per call of the model, >= 1.
            precision: "auto" is bf16 on CUDA and fp32 on the CPU; "bf16" halves the time on CPUs that have it.
            resize: (H, W) that the model's training photos were resized to: photos are, too, and their labels are
                drawn at the photo's own size. Georeferenced rasters keep their resolution.

        Raises:
            ConfigError: the device is not there, or a number is out of range.
        """
        if batch < 1:
            raise ConfigError(f"batch {batch}: must be at least 1 tile")
        self.device = choose_device(device)
        self.model = model.to(device=self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.batch = batch
        self._stride = model.levels[-1].stride
        self._tile = tile
        self._overlap = tile // 4 if overlap is None else overlap
        self._bf16 = _wants_bf16(precision, self.device)
        self._resize = resize
        plan((1, 1), tile=self._tile, overlap=self._overlap, multiple=self._stride)  # bad numbers fail here already

    def segment(self, source: Source, progress: Progress | None = None) -> Iterator[tuple[Window, np.ndarray]]:
        """Label a source from top to bottom.

        Args:
            source: as many bands as the model eats, raw values on the scale of its spec.
            progress: called after each batch.

        Yields:
            Full-width row bands in order, and their labels (h, W) uint8, INVALID where the source has no data. They
            tile the raster exactly.

        Raises:
            DataError: wrong number of bands, or not one valid pixel in the whole source.
        """
        spec = self.model.spec
        if len(source.bands) != len(spec.bands):
            raise DataError(
                f"{source.name}: {len(source.bands)} bands, but the model expects {len(spec.bands)} "
                f"({', '.join(spec.bands)}); choose them with --bands"
            )
        if self._resize not in (None, source.shape):
            if source.georef is None and source.control is None:
                yield self._segment_resized(source, self._resize, progress)
                return
            log.warning(
                "%s: drawn at its own resolution, but the model learned from photos resized to %s x %s pixels",
                source.name,
                *self._resize,
            )
        layout = plan(source.shape, tile=self._tile, overlap=self._overlap, multiple=self._stride)
        merger = StripMerger(layout, self.model.num_classes, device=self.device)
        done, seen = 0, False
        for index, row in enumerate(tile_rows(source, layout, fill=neutral_values(spec, source.dtype))):
            for logits in self._tile_logits(row, layout.cols):
                merger.add(logits)
                done += 1
                if progress and (done % self.batch == 0 or done == layout.tiles):
                    progress(done, layout.tiles)
            window = layout.band(index)
            valid = row.valid[: window.height, : window.width]
            seen = seen or bool(valid.any())
            labels = merger.finished_rows()[0].cpu().numpy()
            yield window, np.where(valid, labels, np.uint8(INVALID))
        if not seen:
            raise DataError(f"{source.name}: no valid pixel, all are nodata or masked; there is nothing to predict")

    def _segment_resized(
        self, source: Source, size: tuple[int, int], progress: Progress | None
    ) -> tuple[Window, np.ndarray]:
        """Label a photo at the size that the model knows; the labels come back at the photo's own."""
        whole = Window(0, 0, *source.shape)
        image = resize_image(np.moveaxis(source.read(whole), 0, -1), size)
        valid = resize_labels(source.valid(whole), size)
        small = ArraySource(np.moveaxis(image, -1, 0), valid=valid, bands=source.bands, name=source.name)
        labels = np.concatenate([rows for _, rows in self.segment(small, progress)])
        return whole, resize_labels(labels, source.shape)

    def _tile_logits(self, row: TileRow, cols: Axis) -> Iterator[Tensor | None]:
        """Logits (K, h, w) of every tile of a row in order, None where a tile has no valid pixel."""
        pending: list[int | None] = []  # columns not yet computed; None for a tile to skip
        for column in cols.starts:
            pending.append(column if row.valid[:, column : column + cols.tile].any() else None)
            if sum(c is not None for c in pending) == self.batch:
                yield from self._compute(row, pending, cols.tile)
                pending = []
        yield from self._compute(row, pending, cols.tile)

    def _compute(self, row: TileRow, columns: list[int | None], width: int) -> Iterator[Tensor | None]:
        tiles = [row.values[..., c : c + width] for c in columns if c is not None]
        if not tiles:
            yield from (None for _ in columns)
            return
        logits = iter(self._forward(torch.from_numpy(np.stack(tiles))))
        for column in columns:
            yield None if column is None else next(logits)

    @torch.inference_mode()
    def _forward(self, tiles: Tensor) -> Tensor:
        """(B, C, h, w) raw to (B, K, h, w) float32 logits, class planes contiguous."""
        # Raw values travel and change their layout: both are cheapest in 8 bits.
        images = tiles.to(self.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            logits: Tensor = self.model(images)
        return logits.float().contiguous()


def choose_device(name: str) -> torch.device:
    """The device of that name, "auto" meaning CUDA if there is one.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"device {name!r}: not usable here ({reason}); use cpu, cuda or auto") from error
    return device


def neutral_values(spec: InputSpec, dtype: np.dtype) -> np.ndarray:
    """Raw values (C,) that a model sees as zero: they stand in where a pixel has no data."""
    values = np.array(spec.mean) * spec.scale
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        values = values.round().clip(info.min, info.max)
    return np.asarray(values.astype(dtype))


def _wants_bf16(precision: Precision, device: torch.device) -> bool:
    if precision not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"precision {precision!r}: must be auto, fp32 or bf16")
    if precision == "bf16" and device.type == "cpu" and not cpu_has_bf16():
        log.warning("precision bf16: this processor has no bf16 arithmetic and will be slower than with fp32")
    return precision == "bf16" or (precision == "auto" and device.type == "cuda")
