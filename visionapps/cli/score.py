"""The score of a submission CSV against the truth, by the competition's metric: what the leaderboard would show.

visionapps score submission.csv solution.csv --dialect hrud                        mean Dice over (image, class)
visionapps score submission.csv true_masks   --dialect hrud --empty skip --per-class
visionapps score submission.csv solution.csv --dialect kaggle --metric map_per_image --resize 256x256
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionapps.cli.table import render
from visionapps.errors import ConfigError
from visionapps.files import refuse_existing, whole_output

if TYPE_CHECKING:
    from visionapps.competition.scoring import SubmissionScore


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("submission", type=Path, metavar="SUBMISSION", help="the CSV to score")
    parser.add_argument(
        "truth", type=Path, metavar="TRUTH", help="solution CSV with the same rows, or a folder of true index masks"
    )
    parser.add_argument("--dialect", required=True, metavar="NAME", help="as for submit: hrud, kaggle, or a YAML file")
    parser.add_argument(
        "--resize", metavar="HxW", help="size of the masks, where neither dialect nor rows tell it (objects, outlines)"
    )
    parser.add_argument("--classes", type=int, metavar="N", help="classes of the model, the background included")
    parser.add_argument(
        "--labels", metavar="LIST", help="labels that have rows: 1-4,7; of true masks of 0 and 255 it is 255"
    )
    parser.add_argument(
        "--metric",
        default="dice_per_image",
        metavar="NAME",
        help="dice, iou, map, boundary_iou or surface_dice, each with _per_image or _global; or a YAML file whose key "
        "metric, or whose keys, say it (dice_per_image)",
    )
    parser.add_argument("--empty", choices=("one", "zero", "skip"), help="what a class is worth that neither side has")
    parser.add_argument("--mean", metavar="OVER", help="cells, classes or images; of _global: classes or pooled")
    parser.add_argument(
        "--exclude", metavar="LIST", help="labels, or names that the dialect has, that do not count: 0,5"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="set_options",
        metavar="KEY=VALUE",
        help="another option of the metric: tolerance_px=2, thresholds=[0.5,0.75], formula=f2; may be repeated",
    )
    parser.add_argument(
        "--usage",
        default="Usage",
        metavar="TITLE",
        help="column of TRUTH that divides it: Public, Private (Usage, if it is there)",
    )
    parser.add_argument("--per-class", action="store_true", help="one line for every class as well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there as well")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing FILE")


def run(options: argparse.Namespace) -> int:
    """Score, and print the leaderboards."""
    if options.json is not None:
        refuse_existing(options.json, options.overwrite)
    from dataclasses import replace

    from visionapps.competition.scoring import score_submission
    from visionapps.inference.dialects import Dialect
    from visionapps.inference.file_dialects import load_rules

    dialect = load_rules(options.dialect)
    if not isinstance(dialect, Dialect):
        raise ConfigError(
            f"score: {options.dialect} is a dialect of mask files, but rows are scored; write them with `visionapps "
            "submit MASKS --out FILE.csv` in a dialect of rows, such as kaggle, and give that here"
        )
    if options.resize is not None:
        dialect = replace(dialect, resize=_size(options.resize))
    if options.labels is not None:
        dialect = replace(dialect, labels=_labels(options.labels))
    found = score_submission(
        options.submission,
        options.truth,
        dialect=dialect,
        metric=_metric(options),
        classes=options.classes,
        usage=options.usage,
    )
    _show(found, per_class=options.per_class)
    if options.json is not None:
        with whole_output(options.json, options.overwrite) as path:
            path.write_text(json.dumps(found.to_dict(), indent=1) + "\n")
    return 0


def _metric(options: argparse.Namespace) -> dict[str, Any]:
    """The metric as plain data: a name or a file, and what the flags say of it."""
    spec: dict[str, Any] = {"name": options.metric}
    if Path(options.metric).suffix in (".yaml", ".yml"):
        from visionapps.cli.check import read_yaml

        told = read_yaml(Path(options.metric))
        told = told.get("metric", told) if isinstance(told, dict) else told
        if not isinstance(told, str | dict):
            raise ConfigError(f"{options.metric}: no metric in it; write metric: dice_per_image, or its options")
        spec = {"name": told} if isinstance(told, str) else dict(told)
    spec |= {key: getattr(options, key) for key in ("empty", "mean") if getattr(options, key) is not None}
    if options.exclude is not None:
        spec["exclude"] = [_class(text) for text in options.exclude.split(",")]
    for text in options.set_options:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: KEY=VALUE is expected, such as tolerance_px=2")
        import yaml

        try:
            spec[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {text}: the value is no YAML ({error})") from error
    return spec


def _class(text: str) -> int | str:
    return int(text) if text.strip().isdecimal() else text.strip()


def _labels(text: str) -> tuple[int, ...]:
    from visionapps.cli.submit import label_list

    try:
        return label_list(text)
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"--labels {text}: {error}") from error


def _size(text: str) -> tuple[int, int]:
    height, cross, width = text.partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise ConfigError(f"--resize {text!r} is no size; give height and width, such as 1024x1024")
    return int(height), int(width)


def _show(found: "SubmissionScore", *, per_class: bool) -> None:
    if per_class:
        headers = ["label", *(board.name for board in found.boards), "in the truth", "predicted"]
        print(
            render(
                headers,
                [
                    [
                        str(k),
                        *(_shown(float(board.per_class[k])) for board in found.boards),
                        int(found.true_images[k]),
                        int(found.predicted_images[k]),
                    ]
                    for k in found.labels
                ],
            )
        )
        print()
    rows = []
    for board in found.boards:
        low, high = board.interval
        between = f"{low:.5f} to {high:.5f}" if low == low else None
        rows.append([board.name, f"{board.score:.5f}", between, board.rows])
    print(render(["leaderboard", found.metric.name, "95 % of such sets", "rows"], rows))
    told = ", ".join(f"{key} {value}" for key, value in _rules(found).items())
    order = "" if found.same_order else "; rows stand in another order than in the truth and were matched by id"
    named = "; images that neither file names are not known and count nowhere" if found.only_named else ""
    print(f"\n{found.images} images, {len(found.labels)} classes; {told}{order}{named}")


def _rules(found: "SubmissionScore") -> dict[str, Any]:
    """The options that are easily forgotten, whether given or not."""
    plain = found.metric.to_dict()
    shown = {"empty": getattr(found.metric, "empty", None), "mean over": getattr(found.metric, "mean", None)}
    return shown | {key: value for key, value in plain.items() if key not in ("name", "empty", "mean", "exclude")}


def _shown(value: float) -> float | None:
    return None if value != value else value
