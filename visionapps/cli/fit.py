"""Train a model from one YAML file; leave checkpoints, logs, scores and pictures in a folder."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from visionapps.cli.table import class_table, render, score_table
from visionapps.errors import ConfigError
from visionapps.files import refuse_existing

if TYPE_CHECKING:
    from visionapps.inference.object_evaluation import ObjectEvaluation
    from visionapps.training.run import Finished


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the run; see configs/")
    parser.add_argument("--out", type=Path, help="folder of the run (default: runs/<name of the config>)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the folder")
    parser.add_argument("--overwrite", action="store_true", help="start anew in a folder that holds a run already")
    parser.add_argument("--no-report", action="store_true", help="leave out the pictures after the run")
    parser.epilog = "Any key of the file can be replaced: --trainer.max_epochs 5, --data.init_args.batch_size=4"
    parser.set_defaults(settings=[])


def run(options: argparse.Namespace) -> int:
    if not options.config.is_file():
        raise ConfigError(f"{options.config}: no such file; give the YAML file of a run, see configs/")
    out: Path = options.out or Path("runs") / options.config.stem
    if not options.resume:
        refuse_existing(out, options.overwrite)

    from visionapps.training.run import fit

    finished = fit(options.config, out, options.settings, resume=options.resume)
    if not finished.first:
        return 0
    if not options.no_report:
        table = _report(finished, out)
        print(f"\nBest checkpoint on the {len(finished.val)} validation photos:\n\n{table}")
        print(f"\npictures         {out / 'report'}")
    for name, photos in _extra_sources(finished):
        print(f"extra photos     {photos} of {name}")
    print(f"trained for      {finished.seconds:.0f} s")
    print(f"best checkpoint  {finished.checkpoint}")
    print(f"next             visionapps export {finished.checkpoint} --out {out / 'bundle'}")
    return 0


def _extra_sources(finished: "Finished") -> list[tuple[str, int]]:
    """Sources of further training photos, where the data have some, and how many photos each gave."""
    examination = getattr(finished.data, "examination", None)
    sources: dict[str, tuple[object, ...]] = getattr(examination, "sources", dict)()
    return [(name, len(photos)) for name, photos in sources.items()]


def _report(finished: "Finished", out: Path) -> str:
    """Write the report of a run; returns its table."""
    from visionapps.training.detection import DetectionTask

    if isinstance(finished.task, DetectionTask):
        from visionapps.training.object_report import write_object_report

        return _object_table(write_object_report(finished, out))
    from visionapps.training.classification import ClassificationTask

    if isinstance(finished.task, ClassificationTask):
        from visionapps.training.class_report import write_class_report

        return class_table(*write_class_report(finished, out))
    from visionapps.training.report import write_report

    labels, scores = write_report(finished, out)
    return f"{score_table(labels.names, scores)}\n{_drawn_table(out)}".rstrip()


def _drawn_table(out: Path) -> str:
    """What training saw of each class beside what the photos hold, and how the first and last epoch differ."""
    from visionapps.data.drawn import DrawnTable
    from visionapps.training.run import drawn_file

    if not drawn_file(out).is_file():
        return ""
    table = DrawnTable.read(drawn_file(out))
    total, first, last = table.total, table.epochs[min(table.epochs)], table.epochs[max(table.epochs)]
    columns = (
        table.photos.share_of_pixels,
        total.share_of_pixels,
        table.photos.share_of_crops,
        total.share_of_crops,
        first.share_of_crops,
        last.share_of_crops,
    )
    rows = [(name, *(f"{c[k]:8.2%}" for c in columns)) for k, name in enumerate(table.names)]
    heads = ("of photos", "of crops", "photos with it", "crops with it", "in the first epoch", "in the last")
    return f"\nWhat training drew, {total.crops} crops:\n\n{render(('class', *heads), rows)}\n"


def _object_table(evaluation: "ObjectEvaluation") -> str:
    """One line per class, and one with the means; a dash where a value is not defined."""
    boxes, curves = evaluation.box, evaluation.curves.classes
    rows: list[tuple[object, ...]] = []
    for k, name in enumerate(evaluation.names):
        best = curves[k].best
        values = (boxes.per_class[k], boxes.per_class_50[k], best.f1, best.threshold, best.precision, best.recall)
        rows.append((name, *(_defined(float(v)) for v in values), int(boxes.true_counts[k])))
    means = (_defined(boxes.ap), _defined(boxes.ap50), None, None, None, None, int(boxes.true_counts.sum()))
    rows.append(("mean", *means))
    if evaluation.mask is not None:
        mask = evaluation.mask
        rows.append(("masks", _defined(mask.ap), _defined(mask.ap50), None, None, None, None, None))
    return render(("class", "AP", "AP50", "best F1", "from score", "precision", "recall", "objects"), rows)


def _defined(value: float) -> float | None:
    return None if value != value else value  # NaN
