"""What every part of an ensemble takes on this machine, and what leaving it out would change, measured with the engine.

Shapes: B tiles, C bands, K classes, P sampled pixels, h w tile.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visionapps.competition.budget import LEVELS, Pass, Quality
from visionapps.errors import DataError
from visionapps.inference.bundle import Bundle
from visionapps.inference.network import Network, Precision, neutral_values
from visionapps.inference.plan import Plan
from visionapps.inference.products import probabilities
from visionapps.inference.sources import Source
from visionapps.inference.tiling import tiles_per_call
from visionapps.inference.views import Views
from visionapps.runtime import peak_memory
from visionapps.windows import Window

_STEP = 4  # every fourth pixel of a tile, both ways, speaks for its neighbours


@dataclass(frozen=True, eq=False)
class Opinions:
    """Probabilities of sampled pixels by every pass that may be drawn with: what any lower quality would say of them.

    Attributes:
        found: (P, K) float16 of each pass, the mean over its flips.
        weights: of the members.
    """

    found: Mapping[Pass, NDArray[np.float16]]
    weights: tuple[float, ...]

    def mean(self, quality: Quality) -> NDArray[np.float32]:
        """(P, K): what a quality says."""
        total = sum(self.weights[m] for m in quality.members) * len(quality.scales)
        shares = ((self.weights[item.member] / total, self.found[item]) for item in quality.passes)
        mean = np.zeros(self.found[quality.passes[0]].shape, np.float32)
        for share, scores in shares:
            mean += np.float32(share) * scores
        return mean

    def moved(self, full: Quality, below: Quality) -> float:
        """How far probabilities move from one quality to another: mean total variation distance, in [0, 1]."""
        return float(np.abs(self.mean(full) - self.mean(below)).sum(1).mean()) / 2

    def changed(self, full: Quality, below: Quality) -> float:
        """Share of the pixels that have another label, before any rules."""
        return float((self.mean(full).argmax(1) != self.mean(below).argmax(1)).mean())


@dataclass(frozen=True, eq=False)
class Trial:
    """What passes take.

    Attributes:
        seconds: per pixel that the network sees at scale 1.
        working: bytes at the peak, at each scale.
        opinions: what the passes say.
    """

    seconds: Mapping[Pass, float]
    working: Mapping[float, int]
    opinions: Opinions


def try_passes(
    bundles: Mapping[int, Bundle],
    weights: Sequence[float],
    full: Quality,
    tiles: Sequence[NDArray[np.generic]],
    *,
    device: str = "auto",
    precision: Precision = "auto",
    most: int = 2**30,
    late: Callable[[], bool] = lambda: False,
) -> Trial:
    """Run every member at every scale with every kind of flips that is not more than wanted.

    Args:
        bundles: of the members.
        weights: how much each counts.
        full: what is wanted.
        tiles: one at least, each (C, h, w) raw values as the engine would cut them.
        device: see choose_device.
        precision: see Network.
        most: tiles that there are in all: batches are never larger.
        late: asked after each tile: whether no more shall be tried.
    """
    levels = LEVELS[: LEVELS.index(full.flips) + 1]
    took: dict[Pass, list[float]] = {}
    said: dict[Pass, list[NDArray[np.float16]]] = {}
    working: dict[float, int] = {}
    for number, tile in enumerate(tiles):
        # Small scales first: the system tells the highest peak so far.
        for scale in sorted(full.scales):
            for member in full.members:
                model = bundles[member].segmentor
                for flips in levels:
                    network = Network([model], views=Views(flips, (scale,)), device=device, precision=precision)
                    warm = number == 0 and flips == "none"  # the first call prepares kernels and takes longer
                    seconds, scores = _run(network, tile, most, twice=warm)
                    item = Pass(member, scale, flips)
                    took.setdefault(item, []).append(seconds)
                    said.setdefault(item, []).append(scores)
            working[scale] = peak()
        if late():
            break
    means = {item: float(np.mean(values)) for item, values in took.items()}
    opinions = Opinions({item: np.concatenate(scores) for item, scores in said.items()}, tuple(weights))
    return Trial(means, working, opinions)


def _run(network: Network, tile: NDArray[np.generic], most: int, *, twice: bool) -> tuple[float, NDArray[np.float16]]:
    """Seconds per pixel of the tile in a batch as the engine makes it, and (P, K) probabilities of sampled pixels."""
    count = min(most, tiles_per_call(network, tile.shape[-2] * tile.shape[-1]))
    batch = np.repeat(tile[None], count, axis=0)
    for _ in range(1 + twice):
        began = time.perf_counter()
        # Copying the sample waits for the device.
        scores = network(batch, full=count)[0, :, ::_STEP, ::_STEP].cpu()
        seconds = time.perf_counter() - began
    sample = probabilities(scores, network.form).flatten(1).T.half().numpy()
    return seconds / (count * tile.shape[-2] * tile.shape[-1]), sample


def middle_tile(source: Source, layout: Plan, bundle: Bundle) -> NDArray[np.generic]:
    """The tile in the middle of an image, of the size that its plan has.

    Args:
        source: the image as the network sees it.
        layout: its plan.
        bundle: what it is read for.

    Returns:
        (C, h, w) raw values; what lies beyond the image has the model's neutral values.
    """
    height, width = (min(axis.tile, axis.padded - axis.origin) for axis in (layout.rows, layout.cols))
    rows, cols = min(height, source.shape[0]), min(width, source.shape[1])
    top, left = (source.shape[0] - rows) // 2, (source.shape[1] - cols) // 2
    pixels = source.read(Window(top, left, rows, cols))
    if len(pixels.values) != len(bundle.spec.bands):
        raise DataError(
            f"{source.name}: {len(pixels.values)} bands, but the models expect {len(bundle.spec.bands)} "
            f"({', '.join(bundle.spec.bands)}); these are not the competition's images"
        )
    fill = neutral_values(bundle.spec, source.dtype)
    tile = np.empty((len(fill), height, width), source.dtype)
    tile[:] = fill[:, None, None]
    tile[:, :rows, :cols] = np.where(pixels.valid, pixels.values, fill[:, None, None])
    return tile


def held_bytes(bundle: Bundle) -> int:
    """What the numbers of a model take."""
    state = bundle.segmentor.state_dict().values()
    return sum(tensor.numel() * tensor.element_size() for tensor in state)


def peak() -> int:
    """The most bytes of memory that this program has held so far.

    Where Linux says so, those of the program alone: what getrusage tells counts the parent's, too, which may be a
    notebook with much in it.
    """
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return 1024 * int(found[1]) if found else peak_memory()


def spread(sizes: Sequence[int]) -> tuple[int, ...]:
    """Places of the largest, the median and the smallest, each once."""
    order = sorted(range(len(sizes)), key=lambda place: (-sizes[place], place))
    return tuple(dict.fromkeys((order[0], order[len(order) // 2], order[-1])))
