"""Small files in a folder, a tar or a zip: written so that the same files are the same bytes, read one at a time."""

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from visionapps.errors import ConfigError, DataError

_FORMS = {".tar.gz": "tar.gz", ".tgz": "tar.gz", ".tar": "tar", ".zip": "zip"}
_FILE_LIMIT = 2**30  # bytes of one file: archives of others may claim anything
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip can tell

Put = Callable[[str, bytes], None]


class Entry(NamedTuple):
    """One file of an archive."""

    name: str  # folders apart by /
    data: bytes
    wrong: str | None = None  # why it has no data


def archive_form(path: Path) -> str:
    """ "folder", "tar", "tar.gz" or "zip", by the suffix.

    Raises:
        ConfigError: the suffix is that of something else.
    """
    for suffix, form in _FORMS.items():
        if path.name.lower().endswith(suffix):
            return form
    if path.is_dir() or not path.suffix:
        return "folder"
    raise ConfigError(
        f"{path}: mask files go to a folder or into {', '.join(_FORMS)}, not into {path.suffix}; name it so, or choose "
        "a dialect of rows"
    )


@contextmanager
def write_entries(place: Path, form: str) -> Iterator[Put]:
    """Give a function that adds a file by name and bytes; no dates and owners go with it.

    Args:
        place: of the archive or folder.
        form: as ``archive_form`` tells it.
    """
    with ExitStack() as stack:
        if form == "folder":
            place.mkdir()
            yield lambda name, data: _put_file(place / name, data)
        elif form == "zip":
            packed = stack.enter_context(zipfile.ZipFile(place, "w"))
            yield lambda name, data: packed.writestr(zipfile.ZipInfo(name, _EPOCH), data)
        else:
            file = stack.enter_context(place.open("wb"))
            # Images are compressed already: the lowest level takes what is left.
            out = stack.enter_context(gzip.GzipFile("", "wb", 1, file, mtime=0)) if form == "tar.gz" else file
            tar = stack.enter_context(tarfile.open(fileobj=out, mode="w"))
            yield lambda name, data: _put_tar(tar, name, data)


def _put_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _put_tar(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def read_entries(path: Path, form: str | None = None) -> Iterator[Entry]:
    """The files of a folder or an archive, one at a time; nothing is unpacked to disk.

    Args:
        path: of the archive or folder.
        form: as ``archive_form`` tells it; None: by the suffix.

    Raises:
        DataError: it is missing, or cannot be read to its end.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; check the path")
    form = form or archive_form(path)
    read = {"folder": _read_folder, "zip": _read_zip}.get(form, _read_tar)
    try:
        yield from read(path)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError) as error:
        raise DataError(f"{path}: cannot be read as {form} ({error}); it may be cut off") from error


def _read_folder(path: Path) -> Iterator[Entry]:
    for file in sorted(p for p in path.rglob("*") if not p.is_dir()):
        yield Entry(file.relative_to(path).as_posix(), file.read_bytes())


def _read_zip(path: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(path) as packed:
        for info in packed.infolist():
            if info.is_dir():
                continue
            wrong = _unusable(info.filename, info.file_size)
            if info.flag_bits & 1:
                wrong = "is encrypted"
            yield Entry(info.filename, b"" if wrong else packed.read(info), wrong)


def _read_tar(path: Path) -> Iterator[Entry]:
    with tarfile.open(path, "r:*") as tar:
        for info in tar:
            if info.isdir():
                continue
            name = info.name.removeprefix("./")  # what tar puts before the names of its own folder
            wrong = _unusable(name, info.size) if info.isfile() else "is a link or a device, not a file"
            file = None if wrong else tar.extractfile(info)
            yield Entry(name, file.read() if file else b"", wrong)
        # The list ends before the stream does: only its last bytes tell whether it was compressed to the end.
        while tar.fileobj is not None and tar.fileobj.read(2**20):
            pass


def _unusable(name: str, size: int) -> str | None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return "leads out of the archive"
    return f"has {size} bytes, more than a mask may have" if size > _FILE_LIMIT else None
