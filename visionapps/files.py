"""Reading lists of files and writing results whole or not at all."""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from visionapps.errors import DataError, OutputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".jp2", ".vrt")


def list_files(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """The files of a folder that have one of the suffixes (any case), sorted by name; hidden files are left out.

    Raises:
        DataError: the folder is missing, is no folder, or holds no such file.
    """
    if not folder.exists():
        raise DataError(f"{folder}: no such folder; check the path (relative to {Path.cwd()})")
    if not folder.is_dir():
        raise DataError(f"{folder}: is a file, but a folder of {'/'.join(suffixes)} files was expected")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith("."))
    if not found:
        raise DataError(f"{folder}: the folder holds no {'/'.join(suffixes)} file; check the path")
    return found


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise OutputError when a result stands there already (a folder with content, a file) and may not be replaced."""
    if overwrite or not path.exists():
        return
    if path.is_dir() and not any(path.iterdir()):
        return
    raise OutputError(f"{path}: exists already; choose another output, or replace it with --overwrite")


def refuse_sources(path: Path, sources: Iterable[Path | None]) -> None:
    """Raise OutputError when a result would replace what it is made from.

    Args:
        path: the final place of a file or folder.
        sources: files and folders that are read; None is passed over.
    """
    place = path.resolve()
    for source in sources:
        if source is not None and place in (source.resolve(), *source.resolve().parents):
            raise OutputError(f"{path}: {source} is read to make the result, which would replace it; choose another")


@contextmanager
def whole_output(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write a file or folder to; it takes the final name if all goes well.

    On any error, Ctrl-C included, the temporary is removed and ``path`` stays as it was.

    Args:
        path: the final place of the file or folder; parent folders are made.
        overwrite: replace what is there.

    Raises:
        OutputError: ``path`` exists and overwrite is off, a folder stands where a file is to go, or the disk is full or
            refuses the write.
    """
    refuse_existing(path, overwrite)
    # Same suffix: writers choose the format by it.
    temporary = path.with_name(f".{path.stem}.part-{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if path.is_dir() and not temporary.is_dir():  # --out . --overwrite must not empty a folder for one file
            raise OutputError(f"{path}: is a folder, but the result is a file; give a file name inside it")
        if path.is_dir():
            shutil.rmtree(path)
        elif temporary.is_dir():
            path.unlink(missing_ok=True)
        os.replace(temporary, path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):  # the first error says more than one about tidying up after it
                temporary.unlink()


def output_error(path: Path, error: OSError) -> OutputError:
    """Say in one line why writing failed and what to do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"{path}: no space left on the device; free some, or choose another output folder")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(f"{path}: writing is not permitted here; choose another output folder")
    return OutputError(f"{path}: cannot be written ({error.strerror or error})")


def is_full(folder: Path) -> bool:
    """Whether the disk of a folder has less room than one block of a map: libraries do not say why a write failed."""
    return shutil.disk_usage(folder).free < 2**20
