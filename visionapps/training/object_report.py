"""What a person looks at after a run of a detector: scores, curves, confusion, and photos with what was found."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from visionapps.boxes import Batch
from visionapps.data.crops import init_worker
from visionapps.data.object_crops import EvalObjects, collate_objects
from visionapps.detection.base import Detector
from visionapps.inference.bundle import from_checkpoint
from visionapps.inference.network import choose_device
from visionapps.inference.object_evaluation import ObjectEvaluation, evaluate_objects, rank_images
from visionapps.training.detection import DetectionTask
from visionapps.training.found import Found
from visionapps.training.object_data import DetectionData
from visionapps.training.object_pictures import (
    IGNORED,
    MISSED,
    RIGHT,
    WRONG,
    BoxLayer,
    draw_boxes,
    draw_object_confusion,
    draw_precision_recall,
)
from visionapps.training.pictures import draw_curves
from visionapps.training.run import Finished, log_files
from visionapps.windows import Window

_SHOWN = 4  # photos at either end: few enough to look at each
PhotoImage = Callable[[int], tuple[str, np.ndarray]]  # name and (H, W, C) pixels of an image of an evaluation


def write_object_report(finished: Finished, out: Path) -> ObjectEvaluation:
    """Score the best checkpoint on the whole validation photos and draw ``out/report``.

    Photos are seen as in validation, tiles merged: the AP is that by which the checkpoint was chosen.

    Args:
        finished: the run, of a DetectionTask.
        out: the run's folder.

    Returns:
        All that is known about the detections; ``report/scores.json`` holds it, too.
    """
    task, data = finished.task, finished.data
    assert isinstance(task, DetectionTask)
    assert isinstance(data, DetectionData)
    folder = out / "report"
    folder.mkdir(parents=True, exist_ok=True)
    bundle = from_checkpoint(finished.checkpoint)
    photos = data.val_photos
    device = choose_device("auto")
    bar = tqdm(_batches(data), desc="validation photos", unit="batch", leave=False)
    found = _detect(bundle.detector.to(device), bar, [photo.size for photo in photos], device)
    merged = found.merged(photos, len(bundle.labels), task.merging)
    keys = list(merged)
    evaluation = evaluate_objects(
        [photos[key].objects for key in keys], list(merged.values()), bundle.labels.names, engine=task.engine
    )
    summary = evaluation.to_dict() | {"training_seconds": round(finished.seconds, 1)}
    (folder / "scores.json").write_text(json.dumps(summary, indent=2) + "\n")
    draw_curves(log_files(out), folder / "curves.png")

    def image_of(place: int) -> tuple[str, np.ndarray]:
        photo = photos[keys[place]]
        return photo.name, photo.image(Window(0, 0, *photo.size))

    draw_evaluation(evaluation, image_of, folder)
    return evaluation


def draw_evaluation(
    evaluation: ObjectEvaluation, image_of: PhotoImage | None, folder: Path, *, shown: int = _SHOWN
) -> None:
    """Draw precision over recall, the confusion matrix, and the worst and best images with what was found in them.

    Args:
        evaluation: of all images.
        image_of: name and pixels of the image with a number; None: there are no images to draw on.
        folder: exists; gets ``precision_recall.png``, ``confusion.png``, ``worst_1.jpg``, ``best_1.jpg`` and so on, and
            loses those of an earlier report.
        shown: images at either end.
    """
    draw_precision_recall(evaluation.curves, evaluation.names, folder / "precision_recall.png")
    draw_object_confusion(evaluation.confusion.matrix, evaluation.names, folder / "confusion.png")
    for picture in (*folder.glob("worst_*.jpg"), *folder.glob("best_*.jpg")):
        picture.unlink()
    if image_of is None:
        return
    ranked = rank_images(evaluation)
    half = min(shown, -(-len(ranked) // 2))
    objects = np.bincount(evaluation.table.truth.image, minlength=evaluation.table.images)
    rest = ranked[half:]
    # An empty image in which nothing was found is perfect, and shows nothing.
    best = [one for one in reversed(rest) if objects[one[0]]][:half]
    for title, chosen in (("worst", ranked[:half]), ("best", best)):
        for rank, (place, f1, errors) in enumerate(chosen, 1):
            name, image = image_of(place)
            line = f"{name}: F1 {f1:.3f}, {errors} error{'' if errors == 1 else 's'}"
            draw_boxes(image, layers_of(evaluation, place), folder / f"{title}_{rank}.jpg", line)


def layers_of(evaluation: ObjectEvaluation, place: int) -> Sequence[BoxLayer]:
    """What is drawn over an image: ignored objects, overlooked ones, detections that are wrong and right."""
    table, confusion, names = evaluation.table, evaluation.confusion, evaluation.names
    found, truth = table.found, table.truth

    def detections(title: str, color: tuple[int, int, int], which: np.ndarray) -> BoxLayer:
        rows = np.flatnonzero(which & (found.image == place))
        texts = [f"{names[found.labels[row]]} {found.scores[row]:.2f}" for row in rows]
        return BoxLayer(title, color, found.boxes[rows], texts)

    missed = np.flatnonzero(confusion.missed & (truth.image == place))
    return (
        BoxLayer("need not be found", IGNORED, truth.boxes[truth.ignored & (truth.image == place)]),
        BoxLayer("overlooked", MISSED, truth.boxes[missed], [names[truth.labels[row]] for row in missed]),
        detections("wrong", WRONG, confusion.wrong),
        detections("right", RIGHT, confusion.right),
    )


def _batches(data: DetectionData) -> DataLoader[Batch]:
    """All of the validation, of which the data module gives each of several processes a share."""
    return DataLoader(
        EvalObjects(data.val_photos, view=data.view),
        batch_size=data.batch_size,
        num_workers=data.workers,
        collate_fn=collate_objects,
        worker_init_fn=init_worker,
    )


@torch.inference_mode()
def _detect(model: Detector, batches: Iterable[Batch], sizes: list[tuple[int, int]], device: torch.device) -> Found:
    model.to(memory_format=torch.channels_last).eval()
    found = Found()
    for batch in batches:
        image = batch.image.to(device, memory_format=torch.channels_last)
        given: Any = None if batch.proposals is None else tuple(each.to(device) for each in batch.proposals)
        found.add(batch, model.detect(image, batch.sizes, given), sizes)
    return found
