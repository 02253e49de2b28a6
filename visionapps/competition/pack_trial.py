"""The trial of a package on a machine: a few images with one pass, and tiles of them with every pass."""

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from visionapps.competition.budget import Costs, Quality
from visionapps.competition.budget_measure import Opinions, held_bytes, middle_tile, peak, spread, try_passes
from visionapps.competition.pack import Package, duration, gib
from visionapps.competition.pack_images import Rules
from visionapps.competition.pack_painting import Painter, load_of
from visionapps.errors import OutputError
from visionapps.files import output_error
from visionapps.inference.archives import archive_form
from visionapps.inference.dialects import Dialect, Size
from visionapps.inference.file_dialects import FileDialect
from visionapps.inference.file_submission import refuse_foreign, verify_files, write_files
from visionapps.inference.submission import NamedMask, Report, read_masks, verify, write_submission
from visionapps.inference.survey import Sheet

_SHOWN = 3  # problems that a message lists


def try_package(
    package: Package,
    painter: Painter,
    full: Quality,
    images: Sequence[Sheet],
    *,
    folder: Path,
    base: int,
    late: Callable[[], bool],
) -> tuple[Costs, Opinions, str]:
    """Measure what everything takes.

    Args:
        package: what is drawn with.
        painter: of it.
        full: what is wanted.
        images: all of them, planned; the largest, the median and the smallest are tried.
        folder: for what is drawn here.
        base: bytes of the process before members were loaded.
        late: whether no more shall be tried: at least one image is.

    Returns:
        Costs, what the passes say of sampled pixels, and a line for people.

    Raises:
        DataError: none of them can be drawn.
    """
    began = time.perf_counter()
    weights = package.spec.weights
    heaviest = max(full.members, key=lambda member: weights[member])
    single = Quality((heaviest,), "none", (min(full.scales, key=lambda scale: abs(scale - 1)),))
    painter.begin(single, folder)
    places = spread([load_of(sheet).seen for sheet in images])
    inputs = [images[place].job.image for place in places]
    sheets, failures = painter.survey(inputs)
    if not sheets:
        raise failures[0].error
    painter.paint(sheets[-1:])  # compiles what has to be compiled
    beside, done = 0.0, list[Sheet]()
    for sheet in sheets:
        taken = painter.paint([sheet])
        if any(failure.job == sheet.job for failure in painter.failures):  # drawing all of them will tell
            continue
        beside += taken.seconds - taken.network
        done.append(sheet)
        if late():
            break
    if not done:
        raise painter.failures[0].error
    beside += _time_writing(package, [sheet.job.outputs[0] for sheet in done], folder)
    whole = peak()
    tiles = [_tile_of(sheet, painter, heaviest) for sheet in done]
    most = sum(sheet.plan.tiles for sheet in images)
    trial = try_passes(painter.bundles, weights, full, tiles, device=painter.device, most=most, late=late)
    held = tuple(held_bytes(painter.bundles[member]) for member in full.members)
    working = {scale: max(0, max(whole, most) - base - sum(held)) for scale, most in trial.working.items()}
    drawn = sum(load_of(sheet).drawn for sheet in done)
    costs = Costs(max(0.0, beside) / drawn, trial.seconds, base, held, working)
    seconds = time.perf_counter() - began
    return costs, trial.opinions, _told(package, full, costs, len(done), seconds)


def write_verified(
    masks: Iterable[NamedMask],
    path: Path,
    package: Package,
    *,
    sample: Path | None = None,
    sizes: Mapping[str, Size] | None = None,
) -> Report:
    """Write a submission, replace what is there, and verify it as a file from anywhere.

    Raises:
        DataError: masks, images and sample do not belong together.
        OutputError: it cannot be written, or is not valid.
    """
    rules = package.rules
    known: dict[str, Any] = {"classes": len(package.labels), "sample": sample, "sizes": sizes}
    own: dict[str, Any] = {"overwrite": True, "allow_empty": True}  # in masks of our models 255 is void for certain
    if isinstance(rules, Dialect):
        written = write_submission(masks, path, dialect=rules, **known, **own)
        found = verify(path, rules, **known)
    else:
        written = write_files(masks, path, dialect=rules, **known, **own)
        found = verify_files(path, rules, **known)
    if found.problems:
        raise OutputError(
            f"{path}: is written, but has {len(found.problems)} problems: {'; '.join(found.problems[:_SHOWN])}; hold "
            "dialect and sample against the competition's rules"
        )
    return written


def require_writable(path: Path, rules: Rules) -> None:
    """Refuse a place where a submission could not be written in the end.

    Raises:
        ConfigError: its suffix is not one of the dialect's.
        OutputError: a folder stands there that may not be replaced, or the disk refuses it.
    """
    if isinstance(rules, FileDialect) and archive_form(path) == "folder":
        if path.is_dir():
            refuse_foreign(path, rules)
    elif path.is_dir():
        raise OutputError(f"{path}: is a folder, but the result is a file; give a file name inside it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise output_error(path, error) from error


def _time_writing(package: Package, masks: Sequence[Path], folder: Path) -> float:
    """Seconds that masks take on their way into a submission that is verified."""
    path = folder / f"trial{'.csv' if isinstance(package.rules, Dialect) else '.zip'}"
    began = time.perf_counter()
    write_verified(read_masks(masks), path, package)
    return time.perf_counter() - began


def _tile_of(sheet: Sheet, painter: Painter, member: int) -> NDArray[np.generic]:
    source = painter.reading.open(sheet.job.image.name)
    try:
        return middle_tile(painter.reading.shown(source), sheet.plan, painter.bundles[member])
    finally:
        source.close()


def _told(package: Package, full: Quality, costs: Costs, images: int, seconds: float) -> str:
    single = ", ".join(
        f"{name} {1e6 * min(t for item, t in costs.passes.items() if item.member == m and item.flips == 'none'):.3f}"
        for m, name in zip(full.members, package.names, strict=True)
    )
    return (
        f"timed {images} image{'s'[: images != 1]} and {len(costs.passes)} kinds of passes on their tiles in "
        f"{duration(seconds)}; seconds per megapixel: {1e6 * costs.drawn:.3f} beside the network, in a single view "
        f"{single}; peak {gib(peak())}{on_device()}"
    )


def on_device() -> str:
    """What a GPU has held at the most, for people."""
    if not torch.cuda.is_available():
        return ""
    return f", {gib(torch.cuda.max_memory_allocated())} on the GPU"
