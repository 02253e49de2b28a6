"""From one source to the files a person asked for: an index mask, an overlay, or both."""

from collections.abc import Sequence
from pathlib import Path

from visionapps.errors import ConfigError, DataError
from visionapps.files import list_files
from visionapps.inference.drawing import Drawing, Drawn, Job
from visionapps.inference.geotiff import MapOptions
from visionapps.inference.predictor import Predictor, Progress
from visionapps.inference.products import Band
from visionapps.inference.sources import Source, is_raster
from visionapps.structures import InputSpec, LabelSpace


def plan_jobs(inputs: Sequence[Path], folder: Path, *, masks: bool = True, overlays: bool = False) -> list[Job]:
    """Which file becomes which.

    Args:
        inputs: photos, rasters, and folders of them.
        folder: where the maps go: NAME.tif or NAME.png, NAME_overlay.tif or NAME_overlay.jpg.
        masks: draw index masks.
        overlays: draw overlays.

    Raises:
        ConfigError: two inputs would be drawn to one file, or an input would be overwritten.
        DataError: an input is missing, or a folder has no images.
    """
    for path in inputs:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder; check the path (relative to {Path.cwd()})")
    images = [image for path in inputs for image in ([path] if path.is_file() else list_files(path))]
    jobs = []
    for image in images:
        raster = is_raster(image)
        mask = folder / f"{image.stem}{'.tif' if raster else '.png'}"
        overlay = folder / f"{image.stem}_overlay{'.tif' if raster else '.jpg'}"
        jobs.append(Job(image, mask if masks else None, overlay if overlays else None))
    originals = {image.resolve() for image in images}
    takers: dict[Path, Path] = {}
    for job in jobs:
        for output in job.outputs:
            if output.resolve() in originals:
                raise ConfigError(f"{output}: is an input itself and would be overwritten; choose another --out")
            if output in takers:
                raise ConfigError(
                    f"{output}: both {takers[output]} and {job.image} would be drawn to it; predict them separately"
                )
            takers[output] = job.image
    return jobs


def draw(
    predictor: Predictor,
    source: Source,
    job: Job,
    *,
    labels: LabelSpace,
    spec: InputSpec,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Drawn:
    """Predict a source and write the job's maps, all of them or none.

    Raises:
        DataError: the source cannot be read, or has no valid pixel.
        OutputError: a map exists already, or the disk refuses it.
    """
    with Drawing(job, source, labels=labels, spec=spec, options=MapOptions(overwrite=overwrite)) as drawing:
        for window, values in predictor.segment(source, progress):
            drawing.add(Band(window, values[None]))
        return drawing.finish()
