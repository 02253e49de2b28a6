"""Everything that can go wrong with a run before its first epoch, found without running it."""

from pathlib import Path
from tempfile import TemporaryDirectory

from visionapps.data.crops import collate
from visionapps.data.dataset import Problem
from visionapps.data.doctor import Examination
from visionapps.errors import VisionAppsError
from visionapps.training.data import SegmentationData
from visionapps.training.run import build
from visionapps.training.segmentation import SegmentationTask


def rehearse(config: Path, examination: Examination) -> list[Problem]:
    """Build a run, load its weights, and take one training step on two crops; nothing is written.

    Args:
        config: the run's YAML file.
        examination: of its dataset, so that it is not examined again.

    Returns:
        What forbids training, beyond the problems of the dataset.
    """
    try:
        with TemporaryDirectory() as out:
            _, task, data, _ = build(config, Path(out), ["--trainer.logger", "false"])
    except VisionAppsError as error:
        return [_problem(config, str(error))]
    if not isinstance(task, SegmentationTask) or not isinstance(data, SegmentationData):
        return []
    data.examination = examination
    problems = []
    for act in (_prepare, _take_step):
        try:
            act(task, data)
        except VisionAppsError as error:
            problems.append(_problem(config, f"{config}: {error}"))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            text = " ".join(str(error).split())
            message = f"{config}: one training step on two crops fails in model or loss: {text}; check their arguments"
            problems.append(_problem(config, message))
        if problems:
            break  # the step would fail for the same reason
    return problems


def _prepare(task: SegmentationTask, data: SegmentationData) -> None:
    task.prepare(data, pretrained=True)


def _take_step(task: SegmentationTask, data: SegmentationData) -> None:
    crops = data.random_crops()
    batch = collate([crops[0], crops[1]])
    task.loss(task.model.train()(batch.image), batch.labels).backward()


def _problem(config: Path, message: str) -> Problem:
    return Problem("config", str(config), message, "error")
