"""Folders with a file per image: which file an image gets, and what may be replaced when they are written again."""

import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from visionapps.data.object_dataset import Form
from visionapps.data.object_images import clean_name
from visionapps.data.yolo_files import class_names
from visionapps.errors import DataError, OutputError

FOLDERS: dict[Form, str] = {"voc": ".xml", "yolo": ".txt"}  # the forms that are folders, and the suffix of their files
CLASSES = "classes.txt"  # names of classes in YOLO folders
_TABLE = "data.yaml"  # may stand there, too, written by people


def label_files(names: Iterable[str], form: Form) -> Iterator[str]:
    """The file of each image below the folder, as the names come.

    Raises:
        DataError: two images would share a file, or one would overwrite the names of classes.
    """
    takers: dict[str, str] = {}
    for name in names:
        file = f"{PurePosixPath(clean_name(name)).with_suffix('')}{FOLDERS[form]}"
        if file in takers:
            raise DataError(f"{takers[file]} and {name} would both be written to {file}; rename one of them")
        if form == "yolo" and file.lower() == CLASSES:  # not all disks tell capitals
            raise DataError(
                f"{name}: its labels would be written to {file}, where the names of classes stand; rename the image, "
                "or choose another form"
            )
        takers[file] = name
        yield file


def refuse_foreign(path: Path, form: Form, files: Collection[str]) -> None:
    """Refuse to replace a folder that holds anything but the files of these images.

    Args:
        path: the folder; it need not exist.
        form: of its files.
        files: that may be replaced, as ``label_files`` gives them.

    Raises:
        OutputError: there is another file.
    """
    own = {*files, CLASSES, _TABLE} if form == "yolo" else set(files)
    for other in sorted(path.rglob("*")) if path.is_dir() else ():
        name = other.relative_to(path).as_posix()
        if other.is_dir() or name in own:
            continue
        why = "belongs to none of the images that are written"
        if other.suffix.lower() != FOLDERS[form]:
            why = f"is no {form} file"
        raise OutputError(
            f"{path}: holds {name}, which {why}, so it is not replaced; remove it, or choose a new folder"
        )


def refuse_other_classes(path: Path, form: Form, classes: Sequence[str]) -> None:
    """Refuse to write beside a data.yaml of other classes, which readers believe more than classes.txt.

    Raises:
        OutputError: it names other classes, or none.
    """
    table = path / _TABLE
    if form != "yolo" or not table.is_file():
        return
    try:
        named = class_names(table)
    except DataError as error:
        raise OutputError(f"{error}; or remove it, or choose a new folder") from error
    if named != dict(enumerate(classes)):
        theirs, ours = (", ".join(names) for names in (named.values(), classes))
        raise OutputError(
            f"{table}: names the classes {theirs}, but {ours} are written; remove it, or choose a new folder"
        )


def keep_table(path: Path, part: Path) -> None:
    """Take the data.yaml of a folder over into the one that replaces it."""
    if (path / _TABLE).is_file():
        shutil.copy2(path / _TABLE, part / _TABLE)
