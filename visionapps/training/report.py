"""What a person looks at after a run: a table of scores, curves, the confusion matrix, the worst and best photos."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from tqdm import tqdm

from visionapps.data.drawn import DrawnTable
from visionapps.data.store import Photo
from visionapps.inference.bundle import Bundle, from_checkpoint
from visionapps.inference.evaluation import count_photo, label_photo
from visionapps.inference.predictor import Predictor
from visionapps.losses import weights_in
from visionapps.metrics.confusion import Confusion, Scores
from visionapps.structures import LabelSpace
from visionapps.training.pictures import draw_confusion, draw_curves, draw_panel
from visionapps.training.run import Finished, drawn_file, log_files
from visionapps.training.segmentation import SegmentationTask
from visionapps.training.share_picture import draw_shares
from visionapps.windows import Window

_SHOWN = 4  # photos at either end: few enough to look at each


@dataclass(frozen=True)
class _Judged:
    photo: Photo
    scores: Scores
    prediction: np.ndarray  # (H, W) uint8


def write_report(finished: Finished, out: Path) -> tuple[LabelSpace, Scores]:
    """Score the best checkpoint on the whole validation photos and draw ``out/report``.

    The photos are drawn tile by tile as `predict` does, so these are the numbers that a map will have.

    Args:
        finished: the run.
        out: the run's folder.

    Returns:
        The classes, and the scores over all validation pixels; ``report/scores.json`` holds them too.
    """
    folder = out / "report"
    folder.mkdir(parents=True, exist_ok=True)
    bundle = from_checkpoint(finished.checkpoint)
    judged, total = _judge(bundle, cast(tuple[Photo, ...], finished.val))
    scores = total.compute()
    summary = scores.to_dict(bundle.labels.names) | {"training_seconds": round(finished.seconds, 1)}
    if isinstance(finished.task, SegmentationTask):
        summary["class_weights"] = weights_in(finished.task.loss)
    (folder / "scores.json").write_text(json.dumps(summary, indent=2) + "\n")
    draw_confusion(np.array(scores.matrix), bundle.labels.names, folder / "confusion.png")
    draw_curves(log_files(out), folder / "curves.png")
    if drawn_file(out).is_file():
        draw_shares(DrawnTable.read(drawn_file(out)), folder / "drawn.png")
    judged = [item for item in judged if not np.isnan(item.scores.mean_dice)]
    judged.sort(key=lambda item: item.scores.mean_dice)
    for picture in (*folder.glob("worst_*.jpg"), *folder.glob("best_*.jpg")):
        picture.unlink()  # of an earlier run in the same folder
    half = min(_SHOWN, len(judged) // 2) or len(judged)
    for rank, item in enumerate(judged[:half], 1):
        _draw(item, bundle, folder / f"worst_{rank}.jpg")
    for rank, item in enumerate(reversed(judged[half:][-half:]), 1):
        _draw(item, bundle, folder / f"best_{rank}.jpg")
    return bundle.labels, scores


def _judge(bundle: Bundle, photos: tuple[Photo, ...]) -> tuple[list[_Judged], Confusion]:
    predictor = Predictor(bundle.segmentor, precision="fp32")  # as in training, so that both tell the same numbers
    total = Confusion(len(bundle.labels), ignore=bundle.labels.ignore)
    judged = []
    for photo in tqdm(photos, desc="validation photos", unit="photo", leave=False):
        prediction = label_photo(predictor, photo)
        one = Confusion(len(bundle.labels), ignore=bundle.labels.ignore)
        for confusion in (one, total):
            count_photo(prediction, photo, confusion)
        judged.append(_Judged(photo, one.compute(), prediction))
    return judged, total


def _draw(item: _Judged, bundle: Bundle, picture: Path) -> None:
    whole = Window(0, 0, *item.photo.size)
    truth = item.photo.labels(whole)
    wrong = np.where((truth != item.prediction) & (truth != bundle.labels.ignore), item.prediction, 255)
    maps = {"truth": truth, "prediction": item.prediction, "where it is wrong": wrong.astype(np.uint8)}
    title = f"{item.photo.name}: mean Dice {item.scores.mean_dice:.3f}, accuracy {item.scores.accuracy:.3f}"
    draw_panel(item.photo.image(whole), maps, bundle.labels, picture, title)
