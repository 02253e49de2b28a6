"""Convert annotations between COCO, VOC, YOLO and CSV, and count what the other form cannot express.

Annotations with problems are refused, see `visionapps check`; --policy says what to do about a kind of problem.
"""

import argparse
from pathlib import Path

from visionapps.errors import DataError
from visionapps.files import refuse_existing


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from visionapps.cli.check_objects import FORMS, add_reading

    parser.add_argument("--annotations", type=Path, required=True, metavar="PATH", help="what to convert")
    parser.add_argument("--to", choices=FORMS[1:], required=True, help="the form to write")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="PATH", help="file (COCO, CSV) or folder (VOC, YOLO)"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of photos; needed to read or write YOLO")
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="YAML",
        help="class table: names, or {name, ids, names, ignore}; or a mapping with classes, policies, origin, ...",
    )
    add_reading(parser.add_argument_group("reading"))
    writing = parser.add_argument_group("writing")
    writing.add_argument("--out-origin", type=float, metavar="N", help="number of the first pixel (1 in VOC, else 0)")
    writing.add_argument("--out-inclusive", choices=("true", "false"), help="write x1 y1 as the last pixels inside")
    parser.add_argument("--policy", nargs="+", default=[], metavar="KIND=WHAT", help="about problems: zero_area=drop")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def run(options: argparse.Namespace) -> int:
    """Read, refuse problems, write, and say what was lost."""
    from visionapps.cli.check import merged, problem_lines, read_settings, split_policies
    from visionapps.cli.check_objects import build, reading_settings
    from visionapps.data.annotations import IGNORED, read_annotations
    from visionapps.data.object_writers import write_annotations

    refuse_existing(options.out, options.overwrite)
    settings = read_settings(options.classes) | reading_settings(options) | {"images": str(options.images or "")}
    settings = merged(settings, "policies", split_policies(options.policy))
    found = read_annotations(build(settings, str(options.classes or "options")), spread=False)
    for line in problem_lines(found.problems, False):
        print(line)
    if found.errors:
        raise DataError(
            f"{options.annotations}: {len(found.errors)} problems forbid converting, the first: "
            f"{found.errors[0].message}; mend them, or say with --policy what to do about them"
        )
    inclusive = None if options.out_inclusive is None else options.out_inclusive == "true"
    lost = write_annotations(
        found, options.out, options.to, origin=options.out_origin, inclusive=inclusive, overwrite=options.overwrite
    )
    everywhere = sum(times for (kind, _, _), times in found.tally.items() if kind == IGNORED)
    if everywhere:
        lost["that objects are ignored whatever class is found there"] = everywhere
    objects = sum(len(image.objects) for image in found.images)
    print(f"{options.out}: {len(found.images)} images, {objects} objects, {len(found.labels)} classes")
    for what, times in lost.items():
        print(f"{options.to} cannot express: {what} ({times})")
    return 0
