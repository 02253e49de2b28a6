"""What a person looks at after a run of a classifier: scores, curves, confusion, and its worst mistakes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from visionapps.data.class_crops import middle_square
from visionapps.data.class_dataset import ClassPhoto
from visionapps.inference.bundle import Bundle, from_checkpoint
from visionapps.inference.classifying import ClassPredictor, frame_of
from visionapps.metrics.topk import ClassScores, TopK
from visionapps.structures import LabelSpace
from visionapps.training.class_data import ClassificationData
from visionapps.training.pictures import displayable, draw_confusion, draw_curves
from visionapps.training.run import Finished, log_files

_DRAWN = 60  # classes up to which a confusion matrix can be read
_SHOWN = 24  # photos on a sheet
_PER_ROW, _SIDE, _LINE = 6, 160, 16  # px of a photo on it, and of a line of text


class Answer(NamedTuple):
    """What the model said about a photo."""

    photo: ClassPhoto
    answer: int
    score: float  # of the answer
    truth: float  # score of the true class


def write_class_report(finished: Finished, out: Path) -> tuple[LabelSpace, ClassScores]:
    """Score the best checkpoint on the validation photos and draw ``out/report``.

    Args:
        finished: the run, of a ClassificationTask.
        out: the run's folder.

    Returns:
        The classes, and the scores; ``report/scores.json`` holds them too.
    """
    data = finished.data
    assert isinstance(data, ClassificationData)
    folder = out / "report"
    folder.mkdir(parents=True, exist_ok=True)
    bundle = from_checkpoint(finished.checkpoint)
    scores, answers = judge_photos([bundle], data.val_photos)
    summary = scores.to_dict(bundle.labels.names) | {"training_seconds": round(finished.seconds, 1)}
    (folder / "scores.json").write_text(json.dumps(summary, indent=2) + "\n")
    draw_curves(log_files(out), folder / "curves.png")
    draw_class_evaluation(scores, answers, bundle, folder)
    return bundle.labels, scores


def judge_photos(
    bundles: Sequence[Bundle], photos: Sequence[ClassPhoto], *, predictor: ClassPredictor | None = None
) -> tuple[ClassScores, list[Answer]]:
    """Scores of bundles, averaged, on photos of a dataset, and every answer."""
    predictor = predictor or ClassPredictor(bundles, precision="fp32")  # as in training: both tell the same numbers
    bar = tqdm(photos, desc="validation photos", unit="photo", leave=False, disable=None)
    counts = TopK(len(predictor.labels))
    answers = []
    for photo, found in zip(photos, predictor.probabilities(photo.image() for photo in bar), strict=True):
        counts.update(torch.from_numpy(found)[None], torch.tensor([photo.label]))
        first = int(found.argmax())
        answers.append(Answer(photo, first, float(found[first]), float(found[photo.label])))
    return counts.compute(), answers


def draw_class_evaluation(scores: ClassScores, answers: Sequence[Answer], bundle: Bundle, folder: Path) -> None:
    """Draw the confusion matrix, and sheets of the photos that the model is most sure and wrong, or right and least
    sure about.

    Args:
        scores: of all photos.
        answers: to all photos.
        bundle: gives classes, and how photos are cut.
        folder: exists; gets ``confusion.png`` (up to 60 classes), ``worst.jpg`` and ``hardest.jpg``.
    """
    names = bundle.labels.names
    if scores.matrix is not None and len(names) <= _DRAWN:
        draw_confusion(np.array(scores.matrix), names, folder / "confusion.png", what="photos")
    wrong = sorted((a for a in answers if a.answer != a.photo.label), key=lambda a: a.truth - a.score)
    right = sorted((a for a in answers if a.answer == a.photo.label), key=lambda a: a.score)
    for title, chosen in (("worst", wrong), ("hardest", right)):
        path = folder / f"{title}.jpg"
        path.unlink(missing_ok=True)  # of an earlier run in the same folder
        if chosen:
            _sheet(chosen[:_SHOWN], bundle, path)


def _sheet(answers: Sequence[Answer], bundle: Bundle, picture: Path) -> None:
    """Photos as the model sees them, under each what it said and what is true."""
    names, frame, gap = bundle.labels.names, frame_of(bundle), 6
    rows = -(-len(answers) // _PER_ROW)
    cell = (_SIDE + gap, _SIDE + 2 * _LINE + gap)
    sheet = Image.new("RGB", (min(_PER_ROW, len(answers)) * cell[0], rows * cell[1]), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for place, answer in enumerate(answers):
        x, y = place % _PER_ROW * cell[0], place // _PER_ROW * cell[1]
        shown = Image.fromarray(displayable(middle_square(answer.photo.image(), frame)))
        sheet.paste(shown.resize((_SIDE, _SIDE)), (x, y))
        right = answer.answer == answer.photo.label
        said = f"{names[answer.answer][:18]} {answer.score:.2f}"
        draw.text((x + 2, y + _SIDE), said, "darkgreen" if right else "darkred", font)
        if not right:
            draw.text(
                (x + 2, y + _SIDE + _LINE), f"is {names[answer.photo.label][:15]} {answer.truth:.2f}", "black", font
            )
    sheet.save(picture, quality=90)
