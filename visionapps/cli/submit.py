"""Write a folder of index masks as a competition wants them, run lengths in a CSV or files, or verify such a result."""

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from visionapps.cli.table import render
from visionapps.errors import ConfigError

if TYPE_CHECKING:
    from visionapps.inference.dialects import Dialect
    from visionapps.inference.file_dialects import FileDialect
    from visionapps.inference.submission import Report

_SHOWN = 20  # problems that are listed


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "examples:\n"
        "  visionapps submit predicted --out submission.csv --dialect hrud --sample sample_submission.csv\n"
        "  visionapps submit --verify submission.csv --dialect hrud\n"
        "  visionapps submit --verify submission.csv --dialect hrud --images test_images\n"
        "  visionapps submit predicted --out submission.tar.gz --dialect png --images test_images\n\n"
        "A dialect of your own is a YAML file with the keys order, base, relative, encoding, header, row_id,\n"
        "image_id, labels, names, instances, absent, overlap, empty, resize and nearest; only order is needed.\n"
        "One of mask files has file, foreground, image_id, labels, values, void, resize, nearest; only file is needed."
    )
    parser.add_argument(
        "masks", nargs="?", type=Path, metavar="MASKS", help="folder of index masks; with --verify: to compare with"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="FILE", help="what to write; it is read back and compared")
    what.add_argument("--verify", type=Path, metavar="FILE", help="an existing file or folder to decode and check")
    named = "hrud, kaggle, siim, severstal, dsb2018; png, png-binary; or a YAML file"
    parser.add_argument("--dialect", required=True, metavar="NAME", help=named)
    parser.add_argument("--classes", type=int, metavar="N", help="classes of the model, the background included")
    parser.add_argument(
        "--sample", type=Path, metavar="FILE", help="sample_submission.csv: all its ids, in its order, no others"
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="the test images: they and no others are submitted, and masks are of their size",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what is there, but no foreign file of a folder"
    )
    parser.add_argument(
        "--allow-empty", action="store_true", help="255 is void in the masks, even if none of them holds any object"
    )
    _declare_rules(parser)


def _declare_rules(parser: argparse.ArgumentParser) -> None:
    rules = parser.add_argument_group("rules of the dialect, one by one")
    rules.add_argument("--order", choices=("row", "column"), help="read pixels by row or by column")
    rules.add_argument("--base", type=int, choices=(0, 1), help="number of the first pixel")
    rules.add_argument(
        "--relative", action=argparse.BooleanOptionalAction, help="starts count from the end of the run before"
    )
    rules.add_argument("--encoding", choices=("pairs", "coco", "coco_zlib"), help="how runs are written")
    rules.add_argument("--header", type=_titles, metavar="ID,MASK", help="titles of the columns")
    rules.add_argument(
        "--row-id", metavar="TEXT", help='"{id}" for binary rows, such as "{id}_{class}" or "{id},{class}" for classes'
    )
    rules.add_argument("--image-id", metavar="REGEX", help="its one group is the {id} in a mask's file name")
    rules.add_argument("--labels", type=label_list, metavar="LIST", help="labels that are written: 1-4,7")
    rules.add_argument("--names", type=_titles, metavar="LIST", help="what stands for each of the labels in {class}")
    rules.add_argument(
        "--instances", type=int, choices=(0, 4, 8), help="4 or 8: a row for every piece whose pixels touch, by 4 or 8"
    )
    rules.add_argument("--absent", choices=("row", "skip"), help="whether what does not occur has a row")
    rules.add_argument(
        "--overlap", action=argparse.BooleanOptionalAction, help="rows of an image may share pixels (verification)"
    )
    rules.add_argument("--empty", metavar="TEXT", help="text of a row without pixels")
    rules.add_argument("--resize", type=_size, metavar="HxW", help="bring masks to this size first, nearest neighbour")
    rules.add_argument("--nearest", choices=("pillow", "opencv"), help="whose nearest neighbour")

    files = parser.add_argument_group("rules of a dialect of mask files")
    files.add_argument("--file", metavar="TEXT", help='its name: "{id}.png", or "{id}_{class}.png" for each class')
    files.add_argument("--foreground", type=int, metavar="N", help="value of foreground in binary files")
    files.add_argument("--void", type=int, metavar="N", help="what index masks hold where nothing is predicted")


def run(options: argparse.Namespace) -> int:
    """Write or verify. Returns 1 when a verified file has problems."""
    dialect = _dialect(options)
    return _verify(options, dialect) if options.verify else _write(options, dialect)


def _dialect(options: argparse.Namespace) -> "Dialect | FileDialect":
    from dataclasses import fields, replace

    from visionapps.inference.dialects import Dialect
    from visionapps.inference.file_dialects import FileDialect, load_rules

    dialect = load_rules(options.dialect)
    own = {rule.name for rule in fields(dialect)}
    rules = own | {rule.name for rule in (*fields(Dialect), *fields(FileDialect))}
    given = {name: value for name in rules if (value := getattr(options, name, None)) is not None}
    foreign = sorted(given.keys() - own)
    if foreign:
        what = "mask files" if isinstance(dialect, FileDialect) else "rows"
        flags = ", ".join("--" + name.replace("_", "-") for name in foreign)
        raise ConfigError(f"submit: {flags} has no meaning for {options.dialect}, a dialect of {what}; leave it out")
    return replace(dialect, **given)


def _write(options: argparse.Namespace, dialect: "Dialect | FileDialect") -> int:
    from tqdm import tqdm

    from visionapps.files import refuse_existing, refuse_sources
    from visionapps.inference.dialects import Dialect
    from visionapps.inference.submission import image_sizes, mask_files, match_images, read_masks, write_submission

    if options.masks is None:
        raise ConfigError("submit: a folder of masks is needed to write a submission; name it before --out")
    refuse_existing(options.out, options.overwrite)
    files = mask_files(options.masks)
    refuse_sources(options.out, [options.masks, *files, options.images, options.sample])
    names = [path.stem for path in files]
    # By names first: decoding a hundred masks only to hear that one is missing would be a waste.
    if options.sample:
        _match_sample(names, options, dialect)
    sizes = image_sizes(options.images, dialect.image_id) if options.images else None
    if sizes is not None:
        match_images([dialect.image_of(name) for name in names], sizes, where=options.masks)
    masks = read_masks(tqdm(files, unit="mask", disable=None))
    known = {"classes": options.classes, "sample": options.sample, "sizes": sizes, "overwrite": options.overwrite}
    known["allow_empty"] = options.allow_empty
    if isinstance(dialect, Dialect):
        report = write_submission(masks, options.out, dialect=dialect, **known)
    else:
        from visionapps.inference.file_submission import write_files

        report = write_files(masks, options.out, dialect=dialect, **known)
    _show(options.out, report)
    return 0


def _match_sample(names: list[str], options: argparse.Namespace, dialect: "Dialect | FileDialect") -> None:
    from visionapps.inference.dialects import Dialect
    from visionapps.inference.file_submission import match_sample_files
    from visionapps.inference.submission import match_sample

    if isinstance(dialect, Dialect):
        match_sample(names, dialect, sample=options.sample, classes=options.classes)
    else:
        match_sample_files(names, dialect, sample=options.sample, classes=options.classes)


def _verify(options: argparse.Namespace, dialect: "Dialect | FileDialect") -> int:
    from visionapps.inference.dialects import Dialect
    from visionapps.inference.submission import image_sizes, mask_files, read_masks, verify

    sizes = image_sizes(options.images, dialect.image_id) if options.images else None
    masks = read_masks(mask_files(options.masks)) if options.masks else ()
    known = {"classes": options.classes, "sample": options.sample, "sizes": sizes, "masks": masks}
    known["allow_empty"] = options.allow_empty
    if isinstance(dialect, Dialect):
        report = verify(options.verify, dialect, **known)
    else:
        from visionapps.inference.file_submission import verify_files

        report = verify_files(options.verify, dialect, **known)
    _show(options.verify, report)
    for problem in report.problems[:_SHOWN]:
        print(f"problem: {problem}")
    if len(report.problems) > _SHOWN:
        print(f"... and {len(report.problems) - _SHOWN} more problems")
    return 1 if report.problems else 0


def _show(path: Path, report: "Report") -> None:
    if report.problems:
        verdict = f"{len(report.problems)} problem{'s' if len(report.problems) > 1 else ''}"
    else:
        verdict = f"every pixel of {report.compared} images" if report.compared else "ids and runs"
    headers = ["submission", "rows", "images", "classes", "non-empty rows", "verified"]
    print(render(headers, [[path, report.rows, report.images, report.labels, report.filled, verdict]]))
    if report.left_out:
        print(f"{report.left_out} masks were left out: the sample does not ask for them", file=sys.stderr)
    if report.void_only:
        print(
            f"warning: {report.void_only} of {report.compared} masks hold only background and 255, which means void "
            "and is written as no object; if it means one there, map it to its label first",
            file=sys.stderr,
        )


def _titles(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def label_list(text: str) -> tuple[int, ...]:
    """The labels that a list such as 1-4,7 means."""
    labels: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if not found:
            raise argparse.ArgumentTypeError(f"{part!r} is neither a label nor a range such as 1-4")
        labels += range(int(found[1]), int(found[2] or found[1]) + 1)
    return tuple(labels)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)[x×](\d+)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give height and width, such as 1024x1024")
    return int(found[1]), int(found[2])
