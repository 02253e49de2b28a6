"""The images of a table of annotations: which file each is, its size, and what is wrong with the list.

Shapes: I images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visionapps.data.dataset import Problem
from visionapps.data.images import Header, MissingBand
from visionapps.data.object_dataset import ObjectDataset
from visionapps.data.object_images import ImageFolder, clean_name, read_headers
from visionapps.data.object_table import ImageRow, ObjectTable
from visionapps.errors import DataError


@dataclass(frozen=True, eq=False)
class Listing:
    """The images of a set.

    Attributes:
        names: (I,) paths below the folder of images; "": not to be used.
        numbers: (I,) of the images; unique.
        sizes: (I, 2) int64 H and W; 0: nobody says.
        index: place in names that the objects of each image row of the table go to.
        headers: by name; empty if there is no folder.
        problems: found.
    """

    names: list[str]
    numbers: list[int]
    sizes: np.ndarray
    index: np.ndarray
    headers: Mapping[str, Header]
    problems: tuple[Problem, ...]


def list_images(table: ObjectTable, dataset: ObjectDataset) -> Listing:
    """Find the image of each row, compare sizes, and add images that nobody lists if the policy says so.

    Raises:
        DataError: the folder is missing or empty, no row has an image, or sizes are needed that nobody knows.
    """
    folder = ImageFolder(Path(dataset.images)) if dataset.images else None
    problems: list[Problem] = []
    names, index = _names(table, folder, dataset, problems)
    rows = list(table.images)
    if folder is not None:
        if table.images and not any(names):
            raise DataError(_nothing_matches(table.images, folder, dataset))
        known = {name for name in names if name}
        for name in _unlisted(folder, known, dataset, problems):
            names.append(name)
            rows.append(ImageRow(name, -1, (0, 0), name))
    sizes = np.array([row.size for row in rows], np.int64).reshape(-1, 2)
    headers: dict[str, Header] = {}
    if folder is not None:
        wanted = [name for name in names if name]
        headers = _headers(folder, wanted, names, rows, sizes, dataset=dataset, problems=problems)
    elif (table.relative or table.shapes is not None) and (sizes == 0).any():
        raise DataError(
            f"{dataset.annotations}: the sizes of the images are needed, and the files do not say them; give images"
        )
    return Listing(names, _numbers(rows, names), sizes, np.array(index, np.int64), headers, tuple(problems))


def _names(
    table: ObjectTable, folder: ImageFolder | None, dataset: ObjectDataset, problems: list[Problem]
) -> tuple[list[str], list[int]]:
    """The name of each row, "" for those that leave, and the row that its objects go to."""
    policies = dataset.policies
    names: list[str] = []
    first: dict[str, int] = {}
    index: list[int] = []

    def report(kind: str, row: ImageRow, text: str) -> None:
        problems.append(Problem(kind, row.place, f"{row.place}: {text}", policies.action(kind)))

    for i, row in enumerate(table.images):
        name: str | None = ""
        try:
            name = folder.find(row) if folder is not None else _bare_name(row)
        except DataError as error:
            report("path", row, str(error))
        if name is None:
            report("missing_image", row, f"{_absent(row, dataset)}; add it, or set policies.missing_image: drop")
        names.append(name or "")
        index.append(i)
        if not name:
            continue
        if name in first:
            advice = "list it once, or set policies.duplicate_image to fix (all objects together) or drop"
            report("duplicate_image", row, f"is {name}, which {table.images[first[name]].place} is already; {advice}")
            names[-1] = ""
            index[-1] = first[name] if policies.duplicate_image == "fix" else i
        first.setdefault(name, i)
    return names, index


def _bare_name(row: ImageRow) -> str:
    """A name where there is no folder to look into: VOC files say their suffix, YOLO files do not."""
    name = clean_name(row.name)
    last = row.hint.replace("\\", "/").rpartition("/")[2]
    if row.number < 0 and last and Path(last).stem == Path(name).name:
        return f"{name}{Path(last).suffix}"
    return name


def _absent(row: ImageRow, dataset: ObjectDataset) -> str:
    last = row.hint.replace("\\", "/").rpartition("/")[2] if row.number < 0 else ""
    also = f" and no {last}" if last and Path(last).stem != Path(row.name).name else ""
    return f"there is no image {row.name}{also} in {dataset.images}, or several could be meant"


def _unlisted(folder: ImageFolder, known: set[str], dataset: ObjectDataset, problems: list[Problem]) -> list[str]:
    unlisted = [name for name in folder.names if name not in known]
    action = dataset.policies.action("unlisted_image")
    for name in unlisted:
        path = str(folder.root / name)
        text = (
            f"{path}: no annotation mentions this image; list it, or set policies.unlisted_image to fix (an image "
            "without objects) or drop"
        )
        problems.append(Problem("unlisted_image", path, text, action))
    return unlisted if action == "fixed" else []


def _headers(
    folder: ImageFolder,
    wanted: list[str],
    names: list[str],
    rows: list[ImageRow],
    sizes: np.ndarray,
    *,
    dataset: ObjectDataset,
    problems: list[Problem],
) -> dict[str, Header]:
    """Read headers; sizes and names are mended in place."""
    read = read_headers(folder.root, wanted, dataset.bands)
    found: dict[str, Header] = {}
    for i, name in enumerate(names):
        if not name:
            continue
        header, path = read[name], str(folder.root / name)
        if isinstance(header, DataError):
            kind = "bands" if isinstance(header, MissingBand) else "corrupt"
            problems.append(Problem(kind, path, str(header), dataset.policies.action(kind)))
            names[i] = ""
            continue
        kind, text = _frame_problem(header, rows[i], path)
        if kind:
            action = dataset.policies.action(kind)
            problems.append(Problem(kind, path if kind == "rotated" else rows[i].place, text, action))
            if action in ("error", "dropped"):
                names[i] = ""
                continue
        sizes[i] = header.height, header.width
        found[name] = header
    return found


def _frame_problem(header: Header, row: ImageRow, path: str) -> tuple[str, str]:
    """Kind and text of what is wrong with the frame that boxes are drawn in; kind "": nothing."""
    there = (header.height, header.width)
    turned = header.orientation not in (0, 1)
    exif = f"EXIF says that viewers turn it (orientation {header.orientation}), but pixels are read as stored"
    if 0 not in row.size and row.size != there:
        text = f"{row.place}: the annotation is for {row.size[0]} x {row.size[1]} px (H x W), but {path} has "
        text += f"{there[0]} x {there[1]}"
        if row.size == there[::-1] and turned:
            return "size_mismatch", f"{text}: {exif}; turn the image for good and save it without the tag"
        return (
            "size_mismatch",
            f"{text}; replace one of them, or set policies.size_mismatch to fix (the image is right)",
        )
    if turned:
        return "rotated", f"{path}: {exif}; see that boxes were drawn on the stored ones, else turn it for good"
    return "", ""


def _numbers(rows: list[ImageRow], names: list[str]) -> list[int]:
    """The numbers of the file if they are unique; else places by name, from 1."""
    given = [row.number for row, name in zip(rows, names, strict=True) if name]
    if all(number >= 0 for number in given) and len(set(given)) == len(given):
        return [row.number for row in rows]
    listed = any(number >= 0 for number in given) and len({n for n in given if n >= 0}) == sum(n >= 0 for n in given)
    numbers = [row.number if listed else -1 for row in rows]
    following = max(numbers, default=-1) + 1 if listed else 1
    for i in sorted(range(len(names)), key=lambda i: names[i]):
        if names[i] and numbers[i] < 0:
            numbers[i] = following
            following += 1
    return numbers


def _nothing_matches(rows: list[ImageRow], folder: ImageFolder, dataset: ObjectDataset) -> str:
    return (
        f"{dataset.annotations}: none of its {len(rows)} images (such as {rows[0].name}) is in {dataset.images}, which "
        f"holds {len(folder.names)} others (such as {folder.names[0]}); give the folder that they belong to"
    )
