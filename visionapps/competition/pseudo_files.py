"""From predictions to a folder of pseudo-labels, by rows, so that rasters may be of any size.

Shapes: K classes, H W photo, h w window.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from visionapps.competition.predicting import to_levels
from visionapps.competition.pseudo import Rule, Tally, count_levels, unsure
from visionapps.data.images import image_size, read_mask
from visionapps.data.pseudo_table import INDEX, MASKS, PREDICTIONS, TEACHER, PseudoTable
from visionapps.errors import ConfigError, DataError, OutputError
from visionapps.files import refuse_existing, whole_output
from visionapps.inference.draw import file_hash, fingerprint
from visionapps.inference.drawing import Job
from visionapps.inference.geotiff import SCORES, MapOptions, read_tiff, tiff_file
from visionapps.inference.inputs import Input
from visionapps.inference.products import Band
from visionapps.inference.sinks import mask_file
from visionapps.inference.sources import INVALID, ArraySource, Source
from visionapps.inference.work import Computing, Reading
from visionapps.structures import LabelSpace
from visionapps.windows import Window

_ROWS = 512  # of the blocks of the files
_OPTIONS = MapOptions(overviews=False)


class Rows(NamedTuple):
    """Full-width rows of a prediction."""

    window: Window
    labels: np.ndarray  # (h, W) uint8, INVALID where there is no data
    planes: np.ndarray  # (1, h, W) uint8 confidence; of soft labels (1 + K, h, W), the probabilities after it


def prediction_rows(job: Job) -> Iterator[Rows]:
    """A prediction from top to bottom.

    Raises:
        DataError: a file of it is missing or damaged.
    """
    assert job.mask is not None
    assert job.scores is not None
    height, width = image_size(job.mask)
    # A photo's mask is a PNG, which has no windows; a photo was in memory before.
    whole = None if job.image.raster else read_mask(job.mask).values
    for top in range(0, height, _ROWS):
        window = Window(top, 0, min(_ROWS, height - top), width)
        labels = read_tiff(job.mask, window)[0] if whole is None else whole[window.slices]
        yield Rows(window, labels, read_tiff(job.scores, window))


def tally(jobs: Sequence[Job], names: Sequence[str], rule: Rule) -> Tally:
    """Count all predictions, and find what the rule keeps of each class."""
    counts: dict[str, np.ndarray] = {}
    pixels: dict[str, int] = {}
    for job in jobs:
        found = np.zeros((len(names), 255), np.int64)
        for rows in prediction_rows(job):
            found += count_levels(rows.labels, rows.planes[0], len(names))
            pixels[job.image.stem] = pixels.get(job.image.stem, 0) + rows.labels.size
        counts[job.image.stem] = found
    total = np.sum(list(counts.values()), axis=0)
    return Tally(tuple(names), counts, rule.least(total), pixels)


def write_labels(
    folder: Path,
    jobs: Sequence[Job],
    table: PseudoTable,
    found: Tally,
    *,
    labels: LabelSpace,
    reading: Reading,
    overwrite: bool = False,
) -> None:
    """Write the folder of pseudo-labels, whole or not at all.

    Args:
        folder: appears when all is written.
        jobs: the predictions.
        table: what the folder says about itself.
        found: what is kept.
        labels: names and colours of the classes.
        reading: how images are opened, which say where rasters lie.
        overwrite: replace other pseudo-labels.

    Raises:
        OutputError: the folder is there, or the disk refuses it.
        DataError: a prediction or a raster cannot be read.
    """
    with whole_output(folder, overwrite) as part:
        part.mkdir(parents=True)
        for job in jobs:
            with _source(job, reading) as source, _label_file(part, job, source, labels, soft=table.soft) as write:
                for rows in prediction_rows(job):
                    write(rows, unsure(rows.labels, rows.planes[0], found.least))
        table.save(part)


@contextmanager
def _source(job: Job, reading: Reading) -> Iterator[Source]:
    """Size and place of an image; of a photo without decoding it again."""
    if job.image.raster:
        source = reading.open(job.image.name)
        try:
            yield source
        finally:
            source.close()
        return
    assert job.mask is not None
    yield ArraySource(np.broadcast_to(np.uint8(0), (1, *image_size(job.mask))), name=job.image.name)


@contextmanager
def _label_file(
    folder: Path, job: Job, source: Source, labels: LabelSpace, *, soft: bool
) -> Iterator[Callable[[Rows, np.ndarray], None]]:
    """A function that takes rows from top to bottom, and (h, W) bool where they are void."""
    stem = folder / job.image.stem
    if soft:
        path = stem.with_name(f"{job.image.stem}.tif")
        with tiff_file(path, source, SCORES, bands=len(labels), options=_OPTIONS) as file:

            def write_soft(rows: Rows, void: np.ndarray) -> None:
                levels = to_levels(rows.planes[1:], rows.labels)
                levels[:, void] = 0
                file.write(levels)

            yield write_soft
        return
    path = stem.with_name(f"{job.image.stem}{'.tif' if job.image.raster else '.png'}")
    with mask_file(path, source, labels, options=_OPTIONS) as sink:
        yield lambda rows, void: sink.write(Band(rows.window, np.where(void, INVALID, rows.labels)[None]))


def require_own_pixels(inputs: Sequence[Input], reading: Reading) -> None:
    """Refuse rasters that would be labelled at another resolution than they have: a student reads them as they are.

    Raises:
        ConfigError: which, and both sizes.
        DataError: a raster cannot be read.
    """
    if reading.gsd is None:
        return
    at_gsd = replace(reading, area=None)
    for image in inputs:
        if not image.raster:  # photos lie nowhere
            continue
        own, read = _size(image, replace(at_gsd, gsd=None)), _size(image, at_gsd)
        if own != read:
            raise ConfigError(
                f"{image.name}: has {own[0]} x {own[1]} px (H x W), but would be read at {reading.gsd:g} m per pixel "
                f"and labelled on {read[0]} x {read[1]}, which is no mask of this image; label the rasters as they are "
                f"with --gsd 0, or resample them to {reading.gsd:g} m first"
            )


def _size(image: Input, reading: Reading) -> tuple[int, int]:
    """(H, W) of a raster as it is read."""
    source = reading.open(image.name)
    try:
        return source.shape
    finally:
        source.close()


def refuse_taken(out: Path, overwrite: bool) -> None:
    """Refuse a folder of pseudo-labels that nothing can be written to, whatever the predictions would be.

    Args:
        out: folder of labels and predictions; it need not be there.
        overwrite: replace labels that are done.

    Raises:
        OutputError: it is a file, holds other things, or labels that are done.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file, but labels and predictions go to a folder; choose another --out")
    masks = out / MASKS
    for folder, sign in ((masks, INDEX), (out / PREDICTIONS, TEACHER)):
        if folder.exists() and not (folder / sign).is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{folder}: holds other things than pseudo-labels, so nothing is done here; choose --out")
    refuse_existing(masks, overwrite)


def begin_predictions(
    out: Path, jobs: Sequence[Job], teacher: Mapping[str, Any], digests: Mapping[str, str], *, overwrite: bool
) -> list[Job]:
    """Make the folder of predictions, or go on in it.

    Args:
        out: folder of the pseudo-labels; predictions go to a folder in it.
        jobs: what is wanted there.
        teacher: plain data that decide every pixel.
        digests: by name, the content of each photo.
        overwrite: replace labels that are done; predictions of the same teacher are used again.

    Returns:
        What is still to be predicted.

    Raises:
        OutputError: something else is there, labels that are done, or predictions of another teacher.
    """
    refuse_taken(out, overwrite)
    place = out / PREDICTIONS
    old = _read_teacher(place / TEACHER)
    other = "" if old is None else _difference(old["teacher"], teacher)
    if other:
        if not overwrite:
            raise OutputError(
                f"{place}: holds predictions of another teacher, or made in another way ({other}); "
                "choose another --out, or replace them with --overwrite"
            )
        shutil.rmtree(place)
        old = None
    before = old["photos"] if old is not None else {}
    for job in jobs:
        name = job.image.stem
        if name in before and before[name] != digests[name]:  # another photo under the name of one that is done
            for path in job.outputs:
                path.unlink(missing_ok=True)
    with whole_output(place / TEACHER, overwrite=True) as part:
        part.write_text(json.dumps({"teacher": teacher, "photos": {**before, **digests}}, indent=1) + "\n")
    return [rest for job in jobs if (rest := job.without_existing()).outputs]


def _read_teacher(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text())
        return {"teacher": dict(data["teacher"]), "photos": dict(data["photos"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error!r}); remove the folder, and predict anew") from error


def _difference(old: Mapping[str, Any], teacher: Mapping[str, Any]) -> str:
    """What differs, in words; a bundle may have moved."""
    names = [name for name in teacher if old.get(name) != teacher[name] and name != "bundles"]
    return f"other {', '.join(names)}" if names else ""


def teacher_of(computing: Computing, reading: Reading, arithmetic: str) -> dict[str, Any]:
    """Plain data that decide every pixel of the predictions."""
    found = {
        "bundles": [str(folder) for folder in computing.bundles],
        "model": fingerprint(computing.bundles),
        "weights": computing.weights,
        "views": asdict(computing.views),
        "tiling": {**asdict(computing.tiling), "batch": None, "exact": computing.exact},
        "products": computing.products.extras,
        "reading": {key: str(value) for key, value in asdict(reading).items() if key not in ("spec", "area")},
        "area": None if reading.area is None else file_hash(reading.area),
        "arithmetic": arithmetic,
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain
