"""visionapps: its engine from file to file, with the reader and the writer in threads of their own.

Everything that this benchmark knows of the engine stands here.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from visionapps.runtime import keep_freed_memory

keep_freed_memory()  # before the first tensor, as the command line does

from harness import STRIDE, Clocked, Job, Mapper, run  # noqa: E402
from torch import Tensor  # noqa: E402

from visionapps.backbones.base import Backbone  # noqa: E402
from visionapps.inference.engine import Engine, Result, Scene  # noqa: E402
from visionapps.inference.network import Network, Precision  # noqa: E402
from visionapps.inference.products import Band  # noqa: E402
from visionapps.inference.rasters import RasterSource  # noqa: E402
from visionapps.inference.sinks import MapOptions, mask_file  # noqa: E402
from visionapps.inference.sources import Source  # noqa: E402
from visionapps.inference.threads import WriteBehind  # noqa: E402
from visionapps.inference.tiling import Tiling  # noqa: E402
from visionapps.segmentation.base import Decoder, Segmentor  # noqa: E402
from visionapps.structures import InputSpec, LabelSpace, Level  # noqa: E402

SPEC = InputSpec(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # to [0, 1], as every peer gets it
Opening = Callable[[], Source]


class _Picture(Backbone):
    """Hands the normalised image on: the network stands in the decoder, unchanged."""

    levels = (Level(STRIDE, 3),)
    spec = SPEC

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return (image,)


class _Whole(Decoder):
    stride = 1

    def __init__(self, network: Clocked) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        logits: Tensor = self.network(features[0])
        return logits


def make_engine(model: Clocked, classes: int, tiling: Tiling, *, precision: Precision = "fp32") -> Engine:
    """The engine on one CPU thread around a network that takes floats in [0, 1]."""
    network = Network([Segmentor(_Picture(), _Whole(model), classes)], device="cpu", precision=precision)
    return Engine(network, batch=tiling.batch)


def draw_maps(engine: Engine, tiling: Tiling, maps: Iterable[tuple[Opening, Path]]) -> None:
    """Draw sources, opened as their turn comes, to GeoTIFFs of labels."""
    outputs: dict[int, Path] = {}
    labels = LabelSpace.named([f"class {i}" for i in range(engine.network.num_classes)])

    def scenes() -> Iterator[Scene]:
        for key, (opening, path) in enumerate(maps):
            source = opening()
            plan = tiling.plan(source.shape, engine.network, dtype=source.dtype)
            outputs[key] = path
            yield Scene(source, plan, range(len(plan.rows.starts)), key)

    with ExitStack() as last:
        file = last.enter_context(ExitStack())

        def write(result: Result) -> None:
            nonlocal sink
            scene, band = result
            assert isinstance(band, Band), band
            if band.window.row == 0:
                options = MapOptions(overwrite=True)
                sink = file.enter_context(mask_file(outputs.pop(scene.key), scene.source, labels, options=options))
            sink.write(band)
            if band.window.row_end == scene.plan.rows.length:
                file.close()
                scene.source.close()

        sink = None
        behind = WriteBehind(write, depth=2, clock=engine.tally.clock, stage="writing", wait="waiting for the disk")
        with behind:
            for result in engine.run(scenes()):
                behind.put(result)


def peer(model: Clocked, options: argparse.Namespace) -> Mapper:
    """--variant: any of default (the plan that the engine chooses itself) and bf16, separated by commas."""
    words = options.variant.split(",")
    tiling = Tiling() if "default" in words else Tiling(options.tile, options.overlap, options.batch)
    engine = make_engine(model, options.classes, tiling, precision="bf16" if "bf16" in words else "fp32")

    def draw(job: Job) -> None:
        draw_maps(engine, tiling, [(lambda: RasterSource(job.image, SPEC), job.output)])

    return draw


if __name__ == "__main__":
    run(peer, "visionapps")
