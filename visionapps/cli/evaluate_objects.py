"""The half of `visionapps evaluate` that judges detections: options, where they come from, tables and pictures."""

import argparse
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionapps.cli.table import render
from visionapps.errors import ConfigError, DataError
from visionapps.files import refuse_existing, whole_output

if TYPE_CHECKING:
    import numpy as np

    from visionapps.data.annotations import AnnotationSet
    from visionapps.data.object_dataset import ObjectDataset, ObjectPhoto
    from visionapps.inference.bundle import Bundle
    from visionapps.inference.detecting import ObjectPredictor
    from visionapps.inference.object_evaluation import ObjectEvaluation
    from visionapps.inference.sources import Source
    from visionapps.objects import Objects

_WHOLE_TABLE = 12  # classes: more do not fit into the width of a terminal


@dataclass(frozen=True, eq=False)
class _Judged:
    """What is to be compared, image by image."""

    classes: tuple[str, ...]
    images: tuple[str, ...]
    truth: "list[Objects]"
    found: "list[Objects]"
    pixels: "list[Callable[[], np.ndarray]] | None"  # (H, W, C) of each image; None: there are no images
    seconds: float | None = None  # that detecting took


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options that only detections have."""
    from visionapps.cli.check_objects import add_reading

    group = parser.add_argument_group("objects (with --annotations instead of --masks)")
    group.add_argument("--annotations", type=Path, metavar="PATH", help="COCO file, or folder of VOC or YOLO, or CSV")
    add_reading(group)
    group.add_argument(
        "--pred-form", choices=("auto", "coco", "voc", "yolo", "csv"), default="auto", help="of --pred (auto)"
    )
    group.add_argument(
        "--engine",
        choices=("pycocotools", "faster"),
        default="pycocotools",
        help="faster: faster-coco-eval, once it agreed with pycocotools on a part of these images",
    )
    group.add_argument("--voc", action="store_true", help="PASCAL VOC's average precision, too")
    group.add_argument(
        "--score", type=float, metavar="S", help="least score in confusion matrix and pictures (best F1 of each class)"
    )
    group.add_argument("--report", type=Path, metavar="DIR", help="write curves, confusion matrix and pictures there")
    group.add_argument(
        "--worst", type=int, default=12, metavar="N", help="worst images in the report, and best ones (12)"
    )


def wanted(options: argparse.Namespace) -> bool:
    """Whether the options ask for detections to be judged: by annotations, or by a config whose dataset has some."""
    if options.annotations is not None:
        return True
    if options.config is None:
        return False
    from visionapps.cli.check import read_dataset
    from visionapps.data.object_dataset import ObjectDataset

    return isinstance(read_dataset(options.config), ObjectDataset)


def run(options: argparse.Namespace) -> int:
    """Evaluate, print, and write what was asked for."""
    _require_sources(options)
    for path in (options.json, options.report):
        if path is not None:
            refuse_existing(path, options.overwrite)
    judged = _of_files(options) if options.pred else _of_bundle(options)
    from visionapps.inference.object_evaluation import evaluate_objects

    found = evaluate_objects(
        judged.truth, judged.found, judged.classes, engine=options.engine, voc=options.voc, score=options.score
    )
    print("\n\n".join(_report(judged, found)))
    summary = found.to_dict() | {"thresholds": found.curves.to_dict(judged.classes)["thresholds"]}
    if judged.seconds:
        summary["images_per_second"] = len(judged.images) / judged.seconds
    if options.json is not None:
        with whole_output(options.json, options.overwrite) as path:
            path.write_text(json.dumps(summary, indent=1) + "\n")
    if options.report is not None:
        _write_report(judged, found, summary, options)
    return 0


def _require_sources(options: argparse.Namespace) -> None:
    from visionapps.cli.check_objects import READING, refuse_beside_config

    refuse_beside_config(options, ("images", "classes", "bands", "scale", "nodata", *READING))
    by_annotations = options.annotations is not None
    if options.masks is not None and by_annotations:
        raise ConfigError("evaluate: --masks and --annotations exclude each other; give the truth in one of both")
    if by_annotations == (options.config is not None):
        raise ConfigError("evaluate: give either --annotations PATH or --config YAML for the truth; see --help")
    if (options.bundle is None) == (options.pred is None):
        raise ConfigError("evaluate: give either a BUNDLE that detects, or --pred PATH with detections; see --help")
    if options.bundle is not None and by_annotations and options.images is None:
        raise ConfigError("evaluate BUNDLE --annotations: give the folder of --images, too")
    if options.score is not None and not 0 <= options.score <= 1:
        raise ConfigError(f"--score {options.score}: expected a number in [0, 1]")


def _of_files(options: argparse.Namespace) -> _Judged:
    """Detections from files."""
    from visionapps.inference.prediction_files import place_predictions, read_predictions

    predictions = read_predictions(options.pred, options.pred_form)
    pixels: list[Callable[[], np.ndarray]]
    if options.config is not None:
        truth, photos = _examined(options, pixels=False)
        pixels = [partial(_read_pixels, Path(photo.source)) for photo in photos]
    else:
        # Masks take long to read and are compared only where both sides have them.
        truth = _annotated(_dataset(options, None, masks=predictions.shapes is not None))
        folder = options.images
        pixels = [partial(_read_pixels, folder / image.name) for image in truth.images] if folder else []
    found = place_predictions(predictions, truth)
    names = tuple(image.name for image in truth.images)
    return _Judged(truth.labels.names, names, [i.objects for i in truth.images], found, pixels or None)


def _of_bundle(options: argparse.Namespace) -> _Judged:
    """Detections of a bundle."""
    from visionapps.runtime import keep_freed_memory

    keep_freed_memory()  # before the first tensor
    from visionapps.data.object_dataset import ObjectPhoto
    from visionapps.inference.bundle import load
    from visionapps.inference.evaluation import require_same_classes

    bundle = load(options.bundle)
    _ = bundle.detector  # refused here, before a dataset is read
    photos: tuple[ObjectPhoto, ...] = ()
    if options.config is not None:
        truth, photos = _examined(options, pixels=True)
    else:
        truth = _annotated(_dataset(options, bundle, masks=bundle.detector.gives_masks))
    require_same_classes(bundle.labels, truth.labels, str(options.bundle))
    sources = _of_photos(photos) if photos else _of_folder(truth, bundle, options)
    found, seconds = _detect(_predictor(bundle, photos, options), sources, len(truth.images))
    pixels: list[Callable[[], np.ndarray]] = (
        [partial(_stored_pixels, photo) for photo in photos]
        if photos
        else [partial(_read_pixels, options.images / image.name) for image in truth.images]
    )
    names = tuple(image.name for image in truth.images)
    return _Judged(truth.labels.names, names, [i.objects for i in truth.images], found, pixels, seconds)


def _examined(options: argparse.Namespace, *, pixels: bool) -> "tuple[AnnotationSet, tuple[ObjectPhoto, ...]]":
    """The photos of a split of a run."""
    from visionapps.cli.check import read_dataset
    from visionapps.data.annotations import AnnotatedImage, AnnotationSet
    from visionapps.data.object_dataset import ObjectDataset
    from visionapps.data.object_doctor import examine_objects

    dataset = read_dataset(options.config)
    if not isinstance(dataset, ObjectDataset):
        raise ConfigError(f"{options.config}: its dataset has masks and no objects; give --masks instead of detections")
    found = examine_objects(dataset, progress=True, pixels=pixels)
    found.raise_on_errors()
    photos = {"val": found.val, "train": found.train, "all": (*found.train, *found.val)}[options.split]
    if not photos:
        raise ConfigError(f"{options.config}: the split {options.split} has no photo; choose another --split")
    images = tuple(AnnotatedImage(p.name, p.image_id, p.size, p.objects) for p in photos)
    return AnnotationSet(images, found.labels, found.category_ids, form=found.form), photos  # type: ignore[arg-type]


def _dataset(options: argparse.Namespace, bundle: "Bundle | None", *, masks: bool) -> "ObjectDataset":
    """The annotations and what their classes are: of --classes, or the bundle's own, or all that the files have."""
    from visionapps.cli.check import read_yaml
    from visionapps.cli.check_objects import build, reading_settings

    settings: dict[str, Any] = {}
    if options.classes is not None:
        table = read_yaml(options.classes)
        settings |= table if isinstance(table, dict) else {"classes": table}
    elif bundle is not None:
        settings["classes"] = list(bundle.labels.names)
    settings |= reading_settings(options)
    settings["images"] = "" if options.images is None else str(options.images)
    if not masks:
        settings["masks"] = False
    return build(settings, str(options.classes or "options"))


def _annotated(dataset: "ObjectDataset") -> "AnnotationSet":
    from visionapps.data.annotations import read_annotations

    found = read_annotations(dataset)
    if found.errors:
        raise DataError(
            f"{found.errors[0].message} ({len(found.errors)} such in all; `visionapps check --images DIR "
            f"--annotations {dataset.annotations}` lists them; what to do about each kind is said by policies in the "
            "file of --classes or --config)"
        )
    if not found.images:
        raise DataError(f"{dataset.annotations}: no image in it; there is nothing to evaluate")
    return found


def _of_photos(photos: "Sequence[ObjectPhoto]") -> "Iterator[Source]":
    import numpy as np

    from visionapps.inference.sources import ArraySource

    for photo in photos:
        yield ArraySource(np.moveaxis(_stored_pixels(photo), -1, 0), name=photo.name)


def _of_folder(truth: "AnnotationSet", bundle: "Bundle", options: argparse.Namespace) -> "Iterator[Source]":
    from visionapps.cli.compute import listed
    from visionapps.inference.sources import open_source

    bands = listed(options.bands) or None
    for image in truth.images:
        path = options.images / image.name
        yield open_source(path, bundle.spec, bands=bands, scale=options.scale, nodata=options.nodata)


def _predictor(bundle: "Bundle", photos: "Sequence[ObjectPhoto]", options: argparse.Namespace) -> "ObjectPredictor":
    """Looks at photos as their dataset says: with its own proposals where it has some."""
    from visionapps.inference.detecting import ObjectPredictor, known, search

    predictor = ObjectPredictor(
        bundle.detector,
        tile=options.tile or bundle.tile,
        overlap=options.overlap,
        rescale=bundle.rescale,
        device=options.device,
        batch=options.batch,
        precision=options.precision,
    )
    stored = {photo.name: photo.proposals for photo in photos if photo.proposals is not None}
    predictor.propose = known(stored) if stored else search
    return predictor


def _detect(predictor: "ObjectPredictor", sources: "Iterable[Source]", count: int) -> "tuple[list[Objects], float]":
    """What a detector finds, tiles merged, and the seconds that it took."""
    import time

    from tqdm import tqdm

    start = time.perf_counter()
    found = list(tqdm(predictor.detect_all(sources), total=count, disable=None, unit="image"))
    return found, time.perf_counter() - start


def _stored_pixels(photo: "ObjectPhoto") -> "np.ndarray":
    from visionapps.windows import Window

    return photo.image(Window(0, 0, *photo.size))


def _read_pixels(path: Path) -> "np.ndarray":
    from visionapps.data.images import read_image

    return read_image(path)


def _report(judged: _Judged, found: "ObjectEvaluation") -> Iterator[str]:
    objects, images = int(found.table.true_counts.sum()), len(judged.images)
    head = f"{images:,} images, {objects:,} objects, {len(found.table.found):,} detections, by {found.box.engine}"
    yield head + (f"; {images / judged.seconds:.2f} images/s" if judged.seconds else "")
    yield _coco_table(found)
    yield _class_table(found)
    if not found.curves.shares:
        scores = found.table.found.scores
        yield (
            f"scores lie between {scores.min():g} and {scores.max():g} and not in [0, 1], so no calibration and no "
            "thresholds are given: divide percent by 100, write probabilities instead of logits"
        )
    if found.box.absent_found:
        yield (
            f"{found.box.absent_found:,} detections are of classes that the truth does not have: they are false, but "
            "no AP counts them, as COCO averages over the classes of the truth"
        )
    yield _confusion_table(found)
    yield _error_table(found)


def _coco_table(found: "ObjectEvaluation") -> str:
    headers = ("", "AP", "AP50", "AP75", "AP s", "AP m", "AP l", "AR1", "AR10", "AR100", "AR s", "AR m", "AR l")
    rows: list[tuple[object, ...]] = []
    for scores in (found.box, found.mask):
        if scores is None:
            continue
        capped = scores.most > 100
        if capped:
            rows.append((f"{scores.kind}, all {scores.most}", *scores.numbers.to_dict().values()))
        name = f"{scores.kind}, COCO's 100" if capped else scores.kind
        rows.append((name, *scores.standard.to_dict().values()))
    lines = [render(headers, rows)]
    if not math.isnan(found.interval.low):
        low, high = found.interval
        lines.append(f"AP50 of the boxes lies between {low:.3f} and {high:.3f} in 95 of 100 sets of as many images")
    for voc in found.voc:
        kind = "11 points" if voc.points == "eleven" else "area"
        lines.append(f"PASCAL VOC mAP at IoU {voc.iou:g}, {kind}: {voc.mean:.3f}")
    return "\n".join(lines)


def _class_table(found: "ObjectEvaluation") -> str:
    """Classes with objects or detections; of others there is nothing to say."""
    rows: list[tuple[object, ...]] = []
    for k, name in enumerate(found.names):
        true, detected = int(found.box.true_counts[k]), int(found.box.found_counts[k])
        if not true and not detected:
            continue
        best = found.curves.told(k)
        error = found.curves.classes[k].calibration_error if found.curves.shares else math.nan
        values = [found.box.per_class[k], found.box.per_class_50[k]]
        values += [found.mask.per_class[k]] if found.mask is not None else []
        values += [voc.per_class[k] for voc in found.voc]
        values += [best.f1, best.threshold, best.precision, best.recall, error]
        rows.append((name, true, detected, *(None if math.isnan(v) else float(v) for v in values)))
    extra = (*(["mask AP"] if found.mask is not None else []), *(f"VOC {voc.points}" for voc in found.voc))
    columns = ("best F1", "from score", "precision", "recall", "calibration")
    return render(("class", "objects", "detections", "AP", "AP50", *extra, *columns), rows)


def _confusion_table(found: "ObjectEvaluation") -> str:
    matrix, names = found.confusion.matrix, [*found.names, "background"]
    places = [k for k in range(len(names)) if matrix[k].any() or matrix[:, k].any() or k == len(names) - 1]
    if len(places) <= _WHOLE_TABLE + 1:
        rows = [(names[k], *(int(matrix[k, j]) for j in places)) for k in places]
        return render(("true \\ detected", *(names[k] for k in places)), rows)
    pairs = [(int(matrix[i, j]), i, j) for i in places for j in places if i != j and matrix[i, j]]
    pairs.sort(key=lambda pair: -pair[0])
    worst = [(count, names[i], names[j]) for count, i, j in pairs[:_WHOLE_TABLE]]
    return render(("count", "true", "detected as"), worst)


def _error_table(found: "ObjectEvaluation") -> str:
    errors = found.errors
    rows: list[tuple[object, ...]] = [
        (cause, errors.counts[cause], None if math.isnan(errors.costs[cause]) else errors.costs[cause])
        for cause in errors.counts
    ]
    costs = (("all false detections", errors.false_positive_cost), ("all missed objects", errors.false_negative_cost))
    rows += [(name, None, None if math.isnan(cost) else cost) for name, cost in costs]
    return render((f"error (AP50 {errors.ap:.3f})", "count", "costs AP50"), rows)


def _write_report(
    judged: _Judged, found: "ObjectEvaluation", summary: dict[str, Any], options: argparse.Namespace
) -> None:
    from visionapps.training.object_report import draw_evaluation

    pixels = judged.pixels
    with whole_output(options.report, options.overwrite) as folder:
        folder.mkdir()
        (folder / "scores.json").write_text(json.dumps(summary, indent=1) + "\n")
        image_of = None if pixels is None else lambda image: (judged.images[image], pixels[image]())
        draw_evaluation(found, image_of, folder, shown=options.worst)
