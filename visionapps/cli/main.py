"""The command line: a table of verbs, each imported only when it is called, so that --help answers in a blink."""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from visionapps import __version__
from visionapps.errors import VisionAppsError

VERBS = {
    "demo": "the whole road in a few minutes on generated data: train, map, evaluate, submit",
    "check": "examine a dataset and a config before any training, and report everything at once",
    "convert": "annotations of objects between COCO, VOC, YOLO and CSV, with a count of what is lost",
    "proposals": "boxes that may hold objects, by selective search, and how many objects they cover",
    "fit": "train a model from one YAML file",
    "folds": "train k folds, predict every photo with the model that never saw it, cross-validated scores",
    "probe": "fit the last layer of a classifier alone, to features computed once, in seconds",
    "export": "turn a checkpoint into a bundle: YAML, safetensors and a card",
    "compress": "make a bundle smaller: pruning, shared, ternary or binary weights, with a table of what it costs",
    "predict": "draw maps, or find objects, in photos, folders and georeferenced rasters",
    "ensemble": "several models as one: their file, weights fitted out of fold, or the mean of checkpoints",
    "seams": "how much a map changes where tiles meet, measured on two lattices",
    "evaluate": "Dice and IoU of maps; COCO and VOC scores of detections; right answers of classifiers",
    "tune": "rules after the network (thresholds, areas, holes), tuned on out-of-fold predictions by the metric",
    "pseudo": "label photos with a model that never saw them, for a student to learn from",
    "submit": "write a run-length CSV for Kaggle, or verify one",
    "pack": "one folder for a notebook without internet: bundles, wheels, a run that keeps to time and memory",
    "score": "score a submission CSV against the truth by the competition's metric",
    "models": "list the models and backbones that can be built",
}


def build_parser() -> argparse.ArgumentParser:
    """The top-level parser: it knows the verbs by name and imports none of them."""
    width = max(map(len, VERBS))
    parser = argparse.ArgumentParser(
        prog="visionapps",
        description="Classification, detection, segmentation: photos and annotations in; classes, boxes, maps out.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="verbs:\n"
        + "\n".join(f"  {name:<{width}}  {text}" for name, text in VERBS.items())
        + "\n\nvisionapps VERB --help shows the options of a verb.",
    )
    parser.add_argument("--version", action="version", version=f"visionapps {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error arose (for reports)")
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help="what to do; see the list below")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit code: 0 done, 1 a user's error, 2 wrong arguments, 130 interrupted."""
    args = build_parser().parse_args(argv)
    verb = importlib.import_module(f"visionapps.cli.{args.verb}")
    parser = argparse.ArgumentParser(prog=f"visionapps {args.verb}", description=verb.__doc__, allow_abbrev=False)
    verb.configure(parser)
    options, unknown = parser.parse_known_args(args.rest)
    if hasattr(options, "settings"):  # a verb whose other options are keys of its YAML file
        options.settings = unknown
    elif unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        with _warned_once():
            return int(verb.run(options))
    except VisionAppsError as error:
        if args.traceback:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


@contextmanager
def _warned_once() -> Iterator[None]:
    """Say every warning once: an image may be opened to plan and again to draw."""
    said: set[str] = set()

    def fresh(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not (text in said or said.add(text))  # type: ignore[func-returns-value]

    handler = logging.lastResort
    if handler is None:
        yield
        return
    handler.addFilter(fresh)
    try:
        yield
    finally:
        handler.removeFilter(fresh)


if __name__ == "__main__":
    sys.exit(main())
