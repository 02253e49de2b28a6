"""What ``predict`` does with a classifier: one line per photo, with the first answers and their scores."""

import argparse
import csv
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionapps.cli.table import render
from visionapps.errors import ConfigError, DataError
from visionapps.files import whole_output

if TYPE_CHECKING:
    import numpy as np

    from visionapps.inference.inputs import Input

FILE = "classes.csv"
_ROWS = 40  # photos, and classes, listed in the summary


def add_class_options(parser: argparse.ArgumentParser) -> None:
    """Options of classifiers alone."""
    group = parser.add_argument_group(f"classifiers ({FILE} instead of maps)")
    group.add_argument("--top", type=int, default=5, metavar="N", help="answers per photo (5)")


def refuse_other_options(options: argparse.Namespace, parser: argparse.ArgumentParser, *, classifier: bool) -> None:
    """Raise ConfigError where an option makes no sense for this kind of model."""
    from visionapps.cli.predict_objects import BOXES_ONLY, MAPS_ONLY

    others = (*MAPS_ONLY, *BOXES_ONLY, "tile", "overlap", "aoi", "gsd", "scale", "nodata")
    wrong = [name for name in others if name != "member"] if classifier else ["top"]
    given = [name for name in wrong if getattr(options, name) != parser.get_default(name)]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        what, other = ("a classifier", "maps and boxes") if classifier else ("no classifier", "classifiers")
        raise ConfigError(f"{options.bundle}: holds {what}; leave out {names}, which {other} alone have")


def run(options: argparse.Namespace) -> int:
    """Classify every input; a bad file does not stop the others, but makes the exit code 1."""
    from visionapps.cli.compute import listed, photos_at_once
    from visionapps.inference.bundle import load
    from visionapps.inference.classifying import ClassPredictor
    from visionapps.inference.inputs import list_inputs

    if options.top < 1:
        raise ConfigError(f"--top {options.top}: must be at least 1")
    images = list_inputs(options.inputs)
    predictor = ClassPredictor(
        [load(folder) for folder in (options.bundle, *options.member)],
        device=options.device,
        precision=options.precision,
        batch=photos_at_once(options),
    )
    bands = [int(b) if b.isdigit() else b for b in listed(options.bands)] or None
    names = predictor.labels.names
    top = min(options.top, len(names))
    photos = _Photos(images, bands, len(predictor.bundles[0].spec.bands))
    began, answers = time.perf_counter(), []
    with whole_output(options.out / FILE, options.overwrite) as path:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            more = [word for i in range(2, top + 1) for word in (f"class_{i}", f"score_{i}")]
            writer.writerow(["image", "class", "score", *more])
            for at, found in enumerate(predictor.probabilities(photos.read())):
                order = sorted(range(len(names)), key=lambda k: -found[k])[:top]
                answers.append((photos.opened[at].name, names[order[0]], float(found[order[0]])))
                writer.writerow([answers[-1][0], *(w for k in order for w in (names[k], f"{found[k]:.6f}"))])
        if not answers:
            raise photos.failures[0][1]
    _print_summary(answers, options.out / FILE, time.perf_counter() - began)
    for image, error in photos.failures:
        print(f"error: {image.name}: {error}", file=sys.stderr)
    if photos.failures:
        print(f"{len(photos.failures)} of {len(images)} photos failed", file=sys.stderr)
    return 1 if photos.failures else 0


class _Photos:
    """Photos on their way through the classifier; those that cannot be read are left out and remembered."""

    def __init__(self, images: "Sequence[Input]", bands: Sequence[str | int] | None, wanted: int) -> None:
        self._images = images
        self._bands = bands
        self._wanted = wanted
        self.opened: list[Input] = []
        self.failures: list[tuple[Input, DataError]] = []

    def read(self) -> "Iterator[np.ndarray]":
        from tqdm import tqdm

        from visionapps.data.class_dataset import as_bands
        from visionapps.data.images import read_image

        bar: Any = tqdm(self._images, "photos", disable=None, unit="photo", leave=False)
        for image in bar:
            try:
                if image.path is None:
                    raise DataError(f"{image.name}: photos are classified from files on this machine; download it")
                pixels = as_bands(read_image(image.path, self._bands), self._wanted)
                if pixels.shape[2] != self._wanted:
                    raise DataError(
                        f"{image.name}: has {pixels.shape[2]} bands, the model takes {self._wanted}; choose --bands"
                    )
            except DataError as error:
                self.failures.append((image, error))
                continue
            self.opened.append(image)
            yield pixels


def _print_summary(answers: Sequence[tuple[str, str, float]], path: Path, seconds: float) -> None:
    if len(answers) <= _ROWS:
        print(render(("image", "class", "score"), answers))
    else:
        counts = Counter(name for _, name, _ in answers).most_common(_ROWS)
        print(render(("class", "photos"), counts))
    print(f"\n{len(answers)} photos in {seconds:.1f} s: {path}")
