"""What ``predict`` does with a detector: boxes of every image, in annotation forms and as vectors on the map."""

import argparse
import json
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionapps.cli.table import render
from visionapps.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np

    from visionapps.inference.bundle import Bundle
    from visionapps.inference.detecting import ObjectPredictor
    from visionapps.inference.object_sinks import Entry, ObjectFiles, ObjectWriter
    from visionapps.inference.sources import Source
    from visionapps.inference.work import Reading
    from visionapps.objects import Objects

FORMS = ("coco", "yolo", "voc", "csv", "gpkg", "geojson", "fgb")
_ROWS = 40  # images listed in the summary
_TOP = 4  # classes named of each
# What makes no sense for boxes, and what it is for.
MAPS_ONLY = (
    "kind", "skip_existing", "dry_run", "vectors", "vector_classes", "simplify", "min_area", "scores", "compress",
    "cog", "overviews", "workers", "devices", "ray", "tta", "scales", "member", "weights", "exact", "compile",
)  # fmt: skip
BOXES_ONLY = ("form", "score", "score_per_class", "nms", "merge", "overlay", "ids")


def add_object_options(parser: argparse.ArgumentParser) -> None:
    """Options of detectors alone."""
    group = parser.add_argument_group("detectors (boxes instead of maps)")
    group.add_argument(
        "--form", action="append", metavar="F,F,...", help=f"of {', '.join(FORMS)} (gpkg for rasters, else coco)"
    )
    group.add_argument("--score", type=float, metavar="S", help="least score of an object (what the bundle says)")
    group.add_argument(
        "--score-per-class", type=Path, metavar="FILE", help="JSON with one per class, as evaluate writes it"
    )
    group.add_argument("--nms", type=float, metavar="IOU", help="boxes of a class that overlap by more are one object")
    group.add_argument("--merge", choices=("nms", "wbf"), help="of boxes from several tiles: the best, or their mean")
    group.add_argument("--overlay", action="store_true", help="draw the boxes on pictures, too: NAME_overlay.png")
    group.add_argument("--ids", type=Path, metavar="FILE", help="COCO file whose numbers of images are used")


def refuse_other_options(options: argparse.Namespace, parser: argparse.ArgumentParser, *, detector: bool) -> None:
    """Raise ConfigError where an option makes no sense for this kind of model."""
    wrong = MAPS_ONLY if detector else BOXES_ONLY
    given = [name for name in wrong if getattr(options, name) != parser.get_default(name)]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        what, other = ("a detector, which finds boxes", "maps") if detector else ("no detector", "boxes")
        raise ConfigError(f"{options.bundle}: holds {what}; leave out {names}, which {other} alone have")


@dataclass
class _Run:
    """Images on their way through the detector."""

    entries: "Sequence[Entry]"
    reading: "Reading"
    opened: "list[tuple[Entry, Source, tuple[int, int]]]" = field(default_factory=list)  # in order; closed when done
    failures: "list[tuple[Entry, DataError]]" = field(default_factory=list)
    outside: int = 0  # of the area of interest

    def sources(self) -> "Generator[Source, None, None]":
        """Open one image after the other; called by the thread that reads."""
        from visionapps.inference.aoi import OutsideError

        for entry in self.entries:
            try:
                source = self.reading.open(entry.image.name)
                try:
                    size = self._file_size(entry, source)
                except DataError:
                    source.close()
                    raise
            except OutsideError:
                self.outside += 1
                continue
            except DataError as error:
                self.failures.append((entry, error))
                continue
            self.opened.append((entry, source, size))
            yield source

    def _file_size(self, entry: "Entry", source: "Source") -> tuple[int, int]:
        """(H, W) of the file, which the source may show at another ground resolution."""
        if self.reading.gsd is None or source.georef is None:
            return source.shape
        own = replace(self.reading, gsd=None, area=None).open(entry.image.name)
        try:
            return own.shape
        finally:
            own.close()


def run(options: argparse.Namespace) -> int:
    """Detect in every input; a bad file does not stop the others, but makes the exit code 1."""
    from visionapps.inference.bundle import load
    from visionapps.inference.inputs import list_inputs
    from visionapps.inference.object_sinks import Entry, ObjectWriter, image_names, image_numbers

    inputs = list_inputs(options.inputs)
    files = _files(options, all(image.raster for image in inputs))
    files.refuse_existing(inputs)
    names = image_names(inputs)
    numbers = image_numbers(names, options.ids)
    bundle = load(options.bundle)
    least = _least_scores(options, bundle)
    predictor = _predictor(options, bundle, least)
    writer = ObjectWriter(files, bundle.labels, bundle.spec, bundle.category_ids, names)
    began = time.perf_counter()
    work = _Run([Entry(*each) for each in zip(inputs, names, numbers, strict=True)], _reading(options, bundle))
    _detect(work, predictor, writer, least)
    if work.failures and len(inputs) == 1:
        raise work.failures[0][1]
    if work.outside == len(inputs):
        raise ConfigError(f"{options.aoi}: meets none of the images; check the file and its reference system")
    writer.finish()
    _print_found(writer, predictor, time.perf_counter() - began)
    if work.outside:
        print(f"{work.outside} of {len(inputs)} images lie outside of {options.aoi}", file=sys.stderr)
    for entry, error in work.failures:
        text = " ".join(str(error).split())
        print(f"failed: {text if entry.image.name in text else f'{entry.image.name}: {text}'}", file=sys.stderr)
    if work.failures:
        print(f"{len(work.failures)} of {len(inputs)} files failed", file=sys.stderr)
    return 1 if work.failures else 0


def _detect(work: _Run, predictor: "ObjectPredictor", writer: "ObjectWriter", least: "np.ndarray") -> None:
    from tqdm import tqdm

    try:
        with closing(predictor.run(work.sources())) as results, _bar(len(work.entries), tqdm) as bar:
            predictor.progress = lambda tiles: bar.set_postfix(tiles=predictor.tally.tiles, refresh=False)
            for source, outcome in results:
                entry, opened, size = work.opened.pop(0)
                assert opened is source, "results come in the order of the images"
                try:
                    if isinstance(outcome, DataError):
                        raise outcome
                    writer.take(entry, _sure(outcome, least), source, size=size)
                except DataError as error:  # this image's own fault; a full disk stops everything
                    work.failures.append((entry, error))
                finally:
                    source.close()
                bar.update()
    finally:
        for _, source, _ in work.opened:
            source.close()


def _bar(count: int, tqdm: Any) -> Any:
    return tqdm(total=count, disable=None, desc="detecting", unit="image", smoothing=0)


def _sure(found: "Objects", least: "np.ndarray") -> "Objects":
    assert found.scores is not None
    return found.take(found.scores >= least[found.labels])


def _files(options: argparse.Namespace, rasters: bool) -> "ObjectFiles":
    from visionapps.cli.compute import listed
    from visionapps.inference.object_sinks import ObjectFiles

    forms = [form for text in options.form or () for form in listed(text)] or ["gpkg" if rasters else "coco"]
    unknown = [form for form in forms if form not in FORMS]
    if unknown:
        raise ConfigError(f"--form {unknown[0]}: not known; use {', '.join(FORMS)}")
    if options.ids and "coco" not in forms:
        raise ConfigError("--ids: only COCO files have numbers of images; add --form coco")
    return ObjectFiles(options.out, tuple(dict.fromkeys(forms)), options.overlay, options.overwrite)  # type: ignore[arg-type]


def _reading(options: argparse.Namespace, bundle: "Bundle") -> "Reading":
    from visionapps.cli.compute import make_reading

    return make_reading(bundle, options)


def _least_scores(options: argparse.Namespace, bundle: "Bundle") -> "np.ndarray":
    """(K,) score that an object of each class needs."""
    import numpy as np

    usual = bundle.detector.limits.score if options.score is None else options.score
    if not 0 <= usual < 1:
        raise ConfigError(f"--score {usual}: must be in [0, 1)")
    least = np.full(len(bundle.labels), float(usual))
    if options.score_per_class is not None:
        given = _read_scores(options.score_per_class)
        unknown = [name for name in given if name not in bundle.labels.names]
        if unknown:
            classes = ", ".join(bundle.labels.names)
            raise ConfigError(f"{options.score_per_class}: no class {unknown[0]!r}; the model knows {classes}")
        for name, score in given.items():
            least[bundle.labels.names.index(name)] = score
    return least


def _read_scores(path: Path) -> dict[str, float]:
    """Scores by class: a mapping, under the key ``thresholds`` or in the curves of a report if there is one."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error}); give what evaluate wrote") from error
    for key in ("curves", "thresholds"):
        data = data.get(key, data) if isinstance(data, Mapping) else data
    sound = isinstance(data, Mapping) and data
    if not sound or not all(isinstance(v, int | float) and 0 <= v <= 1 for v in data.values()):
        raise ConfigError(f'{path}: expected a score in [0, 1] for each class, such as {{"car": 0.45, "bus": 0.6}}')
    return {str(name): float(score) for name, score in data.items()}


def _predictor(options: argparse.Namespace, bundle: "Bundle", least: "np.ndarray") -> "ObjectPredictor":
    from visionapps.inference.detecting import ObjectPredictor, search
    from visionapps.inference.merging import Merging

    model = bundle.detector
    limits = replace(model.limits, score=min(float(least.min()), 0.999))
    model.limits = limits if options.nms is None else replace(limits, nms=options.nms)
    merging = Merging(options.merge or "nms", Merging.iou if options.nms is None else options.nms)
    tile = bundle.tile if options.tile is None else options.tile
    predictor = ObjectPredictor(
        model,
        tile=tile,
        overlap=_overlap(bundle, tile) if options.overlap is None else options.overlap,
        rescale=None if options.tile else bundle.rescale,
        device=options.device,
        batch=options.batch,
        precision=options.precision,
        merging=merging,
    )
    if options.threads < 1:
        raise ConfigError(f"threads {options.threads}: at least 1 must decode pixels")
    predictor.threads = options.threads
    predictor.propose = search
    return predictor


def _overlap(bundle: "Bundle", tile: int) -> int | None:
    """As much as the objects that the model learned from are large, so that some tile sees each of them whole."""
    size = bundle.card.get("object_px")
    return min(max(int(size) + 8, tile // 16), tile // 2) if isinstance(size, int | float) and size > 0 else None


def _print_found(writer: "ObjectWriter", predictor: "ObjectPredictor", seconds: float) -> None:
    import numpy as np

    names = writer.labels.names
    rows = []
    for image in writer.taken[:_ROWS]:
        counts = np.bincount(image.objects.labels, minlength=len(names))
        most = [(names[i], counts[i]) for i in np.argsort(-counts, kind="stable")[:_TOP] if counts[i]]
        size = f"{image.size[0]} x {image.size[1]}"
        rows.append((image.name, size, str(len(image.objects)), ", ".join(f"{name} {n}" for name, n in most)))
    print(render(("file", "height x width", "objects", "most of them"), rows))
    if len(writer.taken) > _ROWS:
        print(f"... and {len(writer.taken) - _ROWS} more")
    objects = sum(len(image.objects) for image in writer.taken)
    images = f"{len(writer.taken)} image{'s'[: len(writer.taken) != 1]}"
    print(f"{objects:,} objects in {images}: {', '.join(map(str, _written(writer)))}")
    for what, times in writer.lost.items():
        print(f"{what} ({times} objects)", file=sys.stderr)
    tally = predictor.tally
    skipped = f", {tally.skipped:,} of them without data" if tally.skipped else ""
    print(
        f"{tally.finished / 1e6:,.1f} megapixels in {seconds:.1f} s: {tally.tiles:,} tiles{skipped}, "
        f"{len(writer.taken) / max(seconds, 1e-9):.2f} images a second ({predictor.arithmetic})",
        file=sys.stderr,
    )


def _written(writer: "ObjectWriter") -> Iterator[Path]:
    yield from writer.files.together.values()
    forms = [form for form in writer.files.forms if form not in writer.files.together]
    yield from (writer.files.folder / f"*.{form}" for form in forms)
    if writer.files.overlay:
        yield writer.files.folder / "*_overlay.png"
