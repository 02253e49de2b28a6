"""Make boxes that may hold objects, by selective search, for detectors that do not make their own; or judge a file.

Fast R-CNN and SPPnet take such a file as data.dataset.proposals. Where there are annotations, a report tells how many
of their objects the proposals cover: no such detector finds more. An interrupted run is continued by the same command.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from visionapps.cli.table import render
from visionapps.errors import ConfigError, DataError
from visionapps.files import refuse_existing, whole_output

if TYPE_CHECKING:
    from visionapps.data.annotations import AnnotationSet
    from visionapps.data.object_dataset import ObjectDataset
    from visionapps.data.proposal_recall import GroupRecall, RecallReport
    from visionapps.data.proposals import Proposals


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from visionapps.cli.check_objects import add_reading

    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", type=Path, metavar="YAML", help="the file of a run; its data.dataset is searched")
    what.add_argument("--images", type=Path, metavar="DIR", help="folder of photos, subfolders too")
    parser.add_argument("--annotations", type=Path, metavar="PATH", help="of the photos: which there are, and a report")
    parser.add_argument("--out", type=Path, metavar="FILE.npz", help="file to write (with --config: the one it names)")
    parser.add_argument("--judge", type=Path, metavar="FILE.npz", help="make none, report about these")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    search = parser.add_argument_group("search")
    search.add_argument("--mode", choices=("fast", "quality"), default="fast", help="8 or 80 trees of regions (fast)")
    search.add_argument("--most", type=int, default=2000, metavar="N", help="proposals per image (2000)")
    search.add_argument("--least-side", type=int, default=8, metavar="PX", help="smaller boxes are left out (8)")
    search.add_argument("--seed", type=int, default=0, metavar="N", help="of the ranking (0)")
    search.add_argument("--workers", type=int, metavar="N", help="images at a time (one per processor)")
    search.add_argument("--bands", nargs="+", metavar="BAND", help="three bands, or one, by 1-based number or name")
    report = parser.add_argument_group("report")
    report.add_argument("--json", type=Path, metavar="FILE", help="write the report there as well")
    report.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw its curves")
    add_reading(parser.add_argument_group("reading annotations"))


def run(options: argparse.Namespace) -> int:
    """Search or read, and print what the proposals cover."""
    from visionapps.data.proposals import read_proposals

    dataset = _dataset(options)
    if dataset is None and (options.json or options.picture):
        raise ConfigError("--json and --picture hold the report, which needs annotations; give --annotations")
    out = _out(options, dataset)
    for path in (out, options.json, options.picture):
        if path is not None:
            refuse_existing(path, options.overwrite)
    annotated = _annotated(dataset) if dataset is not None else None
    proposals = read_proposals(options.judge) if options.judge else _search(out, dataset, annotated, options)
    mean = len(proposals.boxes) / max(1, len(proposals))
    print(f"{proposals.source}: {len(proposals)} images, {mean:.0f} proposals per image, {proposals.method}")
    if annotated is None:
        return 0
    _report(proposals, annotated, options)
    return 0


def _dataset(options: argparse.Namespace) -> "ObjectDataset | None":
    """The dataset that was named; None: a folder without annotations."""
    from visionapps.cli.check import read_dataset
    from visionapps.cli.check_objects import READING, build, reading_settings, refuse_beside_config, require_annotations

    refuse_beside_config(options, ("bands", *READING))
    require_annotations(options)
    if options.config is None:
        if options.annotations is None:
            return None
        settings = reading_settings(options) | {"images": str(options.images)}
        return build(settings | ({"bands": _bands(options)} if options.bands else {}), "options")
    if options.annotations is not None:
        raise ConfigError(f"--annotations and --config: {options.config} names the annotations; leave one away")
    dataset = read_dataset(options.config)
    if not hasattr(dataset, "proposals"):
        raise ConfigError(f"{options.config}: its dataset has masks and no annotations; proposals are for detectors")
    return dataset  # type: ignore[return-value]


def _bands(options: argparse.Namespace) -> tuple[int | str, ...] | None:
    from visionapps.cli.check import listed_bands

    return tuple(listed_bands(options.bands)) if options.bands else None


def _out(options: argparse.Namespace, dataset: "ObjectDataset | None") -> Path | None:
    """The file to write; None: nothing is made."""
    if options.judge is not None:
        if options.out is not None or dataset is None:
            raise ConfigError("--judge reports about a file against annotations: give --annotations, and no --out")
        return None
    named = options.out or (Path(dataset.proposals) if dataset is not None and dataset.proposals else None)
    if named is None:
        raise ConfigError("no file to write; give --out FILE.npz, or name data.dataset.proposals in the config")
    if named.suffix != ".npz":
        raise ConfigError(f"--out {named}: proposals are kept in .npz files; choose a name that ends so")
    return named


def _annotated(dataset: "ObjectDataset") -> "AnnotationSet":
    from visionapps.data.annotations import read_annotations

    found = read_annotations(dataset)
    if not found.images:
        raise DataError(f"{dataset.annotations}: no usable image; run `visionapps check` on the dataset")
    return found


def _search(
    out: Path | None,
    dataset: "ObjectDataset | None",
    annotated: "AnnotationSet | None",
    options: argparse.Namespace,
) -> "Proposals":
    from tqdm import tqdm

    from visionapps.data.object_images import ImageFolder
    from visionapps.data.proposing import propose
    from visionapps.data.selective_search import SelectiveSearch

    assert out is not None
    root = Path(dataset.images) if dataset is not None else options.images
    names = [image.name for image in annotated.images] if annotated is not None else ImageFolder(root).names
    bands = dataset.bands if dataset is not None else _bands(options)
    search = SelectiveSearch(options.mode, options.most, options.least_side, options.seed)
    if options.workers is not None and options.workers < 1:
        raise ConfigError(f"--workers {options.workers}: at least 1")
    with tqdm(total=len(names), desc="searching", unit="image", disable=None) as bar:
        return propose(
            {name: root / name for name in names},
            out,
            search,
            workers=options.workers,
            bands=bands,
            overwrite=options.overwrite,
            progress=bar.update,
        )


def _report(proposals: "Proposals", annotated: "AnnotationSet", options: argparse.Namespace) -> None:
    from visionapps.cli.recall_picture import recall_svg
    from visionapps.data.proposal_recall import recall_report

    images = annotated.images
    proposals.require({image.name: image.size for image in images})
    found = recall_report(
        [image.objects for image in images], [proposals.of(image.name) for image in images], annotated.labels.names
    )
    if found.all.objects:
        print("\n" + "\n\n".join(_tables(found)))
    else:
        curve = f", and no curve for {options.picture}" if options.picture else ""
        print(f"\nNo image has an object that must be found, so there is no recall to report{curve}.")
    if options.json is not None:
        with whole_output(options.json, options.overwrite) as path:
            path.write_text(json.dumps(found.to_dict(), indent=1) + "\n")
    if options.picture is not None and found.all.objects:
        with whole_output(options.picture, options.overwrite) as path:
            path.write_text(recall_svg(found, f"{Path(proposals.source).name}: {proposals.method}"))


def _tables(found: "RecallReport") -> list[str]:
    shown = [found.ious.index(iou) for iou in (0.5, 0.7, 0.9)]
    rows = [
        (m, *(float(found.all.recall[i, j]) for j in shown), float(found.all.average[i]), float(found.all.overlap[i]))
        for i, m in enumerate(found.budgets)
    ]
    head = ("proposals", "recall at 0.50", "at 0.70", "at 0.90", "average recall", "mean best IoU")
    covered = f"{found.all.objects} objects of {found.images} images; recall at IoU 0.50 and average recall (0.50-0.95)"
    return [render(head, rows), covered, render(_group_head(found), _group_rows(found))]


def _group_head(found: "RecallReport") -> Sequence[str]:
    return ("objects of", "number", *(f"{what} {m}" for what in ("at 0.50,", "average,") for m in found.budgets))


def _group_rows(found: "RecallReport") -> list[tuple[object, ...]]:
    def cells(group: "GroupRecall") -> tuple[object, ...]:
        if not group.objects:
            return (group.name, 0, *(None for _ in range(2 * len(found.budgets))))
        return (group.name, group.objects, *group.recall[:, 0].tolist(), *group.average.tolist())

    return [cells(group) for group in (*found.sizes, *found.classes)]
