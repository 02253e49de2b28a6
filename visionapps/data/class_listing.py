"""Which photos a classification dataset holds: folders of classes, CSV lists, and CIFAR archives."""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from visionapps.data.cifar_files import CIFAR, Cifar, find_cifar, read_batches, read_names
from visionapps.data.class_dataset import ClassDataset, ClassForm
from visionapps.data.dataset import Problem
from visionapps.errors import DataError
from visionapps.files import IMAGE_SUFFIXES

_LISTS = (".csv", ".tsv")
_IMAGE = ("image", "filename", "file_name", "image_path", "path", "file", "img", "image_name", "id")
# Names of splits, which are no classes where they hold nothing but folders.
_SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")
_CLASS = ("class", "label", "class_name", "category", "target", "name", "breed", "species")


class Listed(NamedTuple):
    """A photo before anything is decoded."""

    name: str  # below its split, without suffix
    kind: str  # name of its class
    path: Path
    pixels: np.ndarray | None = None  # (H, W, C) where the file holds many photos


@dataclass
class Listing:
    """What a dataset names.

    Attributes:
        train: photos to train on; before they are divided where there is no val.
        val: photos to validate on; None: to be cut off from train.
        kinds: classes that exist though they may have no photo, in order; None: those of the photos.
        problems: what went wrong so far.
    """

    train: list[Listed]
    val: list[Listed] | None
    kinds: tuple[str, ...] | None
    problems: list[Problem] = field(default_factory=list)


def list_photos(dataset: ClassDataset) -> Listing:
    """Find all photos of a dataset, without decoding them.

    Raises:
        DataError: a folder or a list is missing, empty, or of no form that is known; or no photo is there at all.
    """
    path = Path(dataset.train)
    form = _form(path, dataset.form)
    if form in CIFAR:
        return _of_cifar(dataset, CIFAR[form])
    listing = Listing([], None, None)
    kinds: list[str] = []
    for side in ("train", "val"):
        place = getattr(dataset, side)
        if place is None:
            continue
        folder = Path(place)
        found, names = _of_list(dataset, folder, listing) if form == "list" else _of_folders(dataset, folder, listing)
        if side == "train":
            listing.train = found
            kinds = names
        else:
            listing.val = found
    listing.kinds = tuple(kinds)
    if not listing.train and not listing.val:
        raise DataError(_nothing(path, form, listing))
    return listing


def _nothing(path: Path, form: str, listing: Listing) -> str:
    """Why a dataset has no photo, in words of its form."""
    if form != "list":
        return f"{path}: holds no photo; expected folders of classes with photos in them"
    missing = [problem.message for problem in listing.problems if problem.kind == "missing_image"]
    return f"{path}: none of the {len(missing)} photos that it names is there; the first: {missing[0]}"


def _form(path: Path, form: ClassForm) -> str:
    if form != "auto":
        return form
    if not path.exists():
        raise DataError(f"{path}: no such folder or list; check the path (relative to {Path.cwd()})")
    if path.suffix.lower() in _LISTS:
        return "list"
    cifar = find_cifar(path)
    return cifar or "folders"


def _of_folders(dataset: ClassDataset, folder: Path, listing: Listing) -> tuple[list[Listed], list[str]]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one with a folder of photos per class")
    # "img2" before "img10", so that classes called by numbers keep their order.
    parts = sorted(
        (p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")), key=lambda p: _natural(p.name)
    )
    if not parts:
        raise DataError(f"{folder}: holds no folders; expected one folder of photos per class, or give a list (.csv)")
    _refuse_splits(folder, parts)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            text = f"{path}: lies beside the folders of classes, so it has no class; move it into one, or away"
            listing.problems.append(Problem("stray", str(path), text, dataset.policies.action("stray")))
    found = []
    for part in parts:
        for path in sorted(part.rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not path.name.startswith("."):
                found.append(Listed(path.relative_to(folder).with_suffix("").as_posix(), part.name, path))
    return found, [part.name for part in parts]


def _refuse_splits(folder: Path, parts: Sequence[Path]) -> None:
    """Raise DataError where folders are the splits of a dataset, each with folders of classes, not classes."""

    def divided(part: Path) -> bool:
        inside = list(part.iterdir())
        photos = any(path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() for path in inside)
        return part.name.lower() in _SPLITS and not photos and any(path.is_dir() for path in inside)

    splits = [part for part in parts if divided(part)]
    if len(splits) < min(2, len(parts)):
        return
    train = next((part for part in splits if part.name.lower().startswith("train")), folder / "train")
    others = [part for part in splits if part != train]
    val = next((part for part in others if part.name.lower().startswith("val")), (*others, folder / "val")[0])
    raise DataError(
        f"{folder}: holds the splits {', '.join(part.name for part in splits)}, not classes; set train: {train}, "
        f"val: {val} (to judge one split, name its folder)"
    )


def _of_list(dataset: ClassDataset, path: Path, listing: Listing) -> tuple[list[Listed], list[str]]:
    rows = list(_rows(path))
    folder = Path(dataset.images) if dataset.images is not None else path.parent
    found: list[Listed] = []
    seen: dict[Path, dict[str, Path]] = {}
    for number, name, kind in rows:
        file = _named(folder / name, seen)
        if file is None:
            where = str(folder / name)
            text = f"{path}: line {number}: {where} does not exist; correct the name, or set images to its folder"
            listing.problems.append(Problem("missing_image", where, text, dataset.policies.action("missing_image")))
            continue
        found.append(Listed(_stem(name), kind, file))
    return found, sorted({kind for _, _, kind in rows}, key=_natural)


def _named(file: Path, seen: dict[Path, dict[str, Path]]) -> Path | None:
    """The photo that a list names, whether with its suffix or, as lists of competitions do, without.

    Args:
        file: folder and name; the name may have dots.
        seen: what folders hold, by name without suffix; added to.
    """
    if file.is_file():
        return file
    if file.parent not in seen:
        there = sorted(file.parent.iterdir()) if file.parent.is_dir() else []
        seen[file.parent] = {p.stem: p for p in there if p.suffix.lower() in IMAGE_SUFFIXES}
    return seen[file.parent].get(file.name)


def _stem(name: str) -> str:
    """A name without the suffix of an image; other dots belong to the name."""
    path = Path(name)
    return (path.with_suffix("") if path.suffix.lower() in IMAGE_SUFFIXES else path).as_posix()


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, image, class) of a list."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such list; check the path (relative to {Path.cwd()})") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a list ({error}); save it as CSV in UTF-8") from error
    lines = list(csv.reader(text.splitlines(), delimiter=max(",;\t", key=text.partition("\n")[0].count)))
    if len(lines) < 2:
        raise DataError(f"{path}: the list is empty; the first line names the columns, such as image,class")
    header = [word.strip().lower() for word in lines[0]]
    image, kind = (next((header.index(n) for n in names if n in header), None) for names in (_IMAGE, _CLASS))
    if image is None or kind is None or image == kind:
        raise DataError(
            f"{path}: has the columns {', '.join(header)}, but an image and a class are needed; name them image and "
            "class in the first line"
        )
    for number, words in enumerate(lines[1:], 2):
        if not any(word.strip() for word in words):
            continue
        if len(words) <= max(image, kind) or not words[image].strip() or not words[kind].strip():
            raise DataError(f"{path}: line {number} has no image or no class; complete it, or remove it")
        yield number, words[image].strip(), words[kind].strip()


def _of_cifar(dataset: ClassDataset, kind: Cifar) -> Listing:
    path = Path(dataset.train)
    train = _cifar_photos(path, kind, "train")
    val = _cifar_photos(Path(dataset.val or dataset.train), kind, "test")
    return Listing(train, val, read_names(path, kind))


def _cifar_photos(path: Path, kind: Cifar, side: str) -> list[Listed]:
    images, labels, names, source = read_batches(path, kind, side)
    return [
        Listed(f"{side}_{i:05d}", names[label], source, image)
        for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True))
    ]


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sorts "img2" before "img10", so that classes called by numbers keep their order."""
    return [(not word.isdigit(), int(word) if word.isdigit() else 0, word) for word in re.findall(r"\d+|\D+", name)]
