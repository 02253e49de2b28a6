"""Everything that can go wrong with a run before its first epoch, found without running it."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from visionapps.data.dataset import Problem
from visionapps.data.doctor import Examination
from visionapps.errors import VisionAppsError
from visionapps.training.run import build
from visionapps.training.task import Task

if TYPE_CHECKING:
    from visionapps.data.class_doctor import ClassExamination
    from visionapps.data.object_doctor import ObjectExamination


def rehearse(config: Path, examination: "Examination | ObjectExamination | ClassExamination") -> list[Problem]:
    """Build a run, load its weights, and take one training step on two images; nothing is written.

    Detectors take the step on the two photos with the most objects, which need the most memory.

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
    if not isinstance(task, Task):
        return []
    problems = []
    for act in (_prepare, _take_step):
        try:
            act(task, data, examination)
        except VisionAppsError as error:
            problems.append(_problem(config, f"{config}: {error}"))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            text = " ".join(str(error).split())
            message = f"{config}: one training step on two images fails in model or loss: {text}; check their arguments"
            problems.append(_problem(config, message))
        if problems:
            break  # the step would fail for the same reason
    return problems


def _prepare(task: Task, data: Any, examination: Any) -> None:
    data.examination = examination
    task.prepare(data, pretrained=True)


def _take_step(task: Task, data: Any, examination: Any) -> None:
    batch = data.rehearsal_batch()
    task.train()
    task.loss_of(batch).backward()  # type: ignore[no-untyped-call]


def _problem(config: Path, message: str) -> Problem:
    return Problem("config", str(config), message, "error")
