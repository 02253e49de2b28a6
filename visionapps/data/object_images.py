"""Which image file each annotated image is, and what the files say about themselves."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from visionapps.data.images import Header, read_header
from visionapps.data.object_table import ImageRow
from visionapps.errors import DataError
from visionapps.files import IMAGE_SUFFIXES

_THREADS = 8
_DRIVE = re.compile(r"^[A-Za-z]:/")


class ImageFolder:
    """The images below a folder, found by the names that annotation files give them.

    Args:
        root: the folder; hidden files and folders are left out.

    Raises:
        DataError: the folder is missing or holds no image.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            what = "is a file, but a folder of images was expected" if root.exists() else "no such folder"
            raise DataError(f"{root}: {what}; check the path (relative to {Path.cwd()})")
        self.root = root
        self.names: tuple[str, ...] = tuple(sorted(_walk(root)))
        if not self.names:
            raise DataError(f"{root}: the folder holds no {'/'.join(IMAGE_SUFFIXES)} file; check the path")
        self._paths = set(self.names)
        self._by_tail: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        self._by_last_stem: dict[str, list[str]] = defaultdict(list)
        for name in self.names:
            self._by_tail[name.rpartition("/")[2]].append(name)
            self._by_stem[_without_suffix(name)].append(name)
            self._by_last_stem[_without_suffix(name.rpartition("/")[2])].append(name)

    def find(self, row: ImageRow) -> str | None:
        """The name below the folder of the image that a row is about; None: it is not there, or not certain.

        Raises:
            DataError: the name leads out of the folder.
        """
        name = clean_name(row.name)
        if row.number < 0 and not _has_suffix(name):  # VOC and YOLO: the stem says it, or what a VOC file has written
            return self._by_stems(name) or (self._by_parts(clean_name(row.hint)) if row.hint else None)
        found = self._by_parts(f"{clean_name(row.hint)}/{name}") if row.hint else None
        return found or self._by_parts(name) or self._by_stems(name)

    def _by_parts(self, name: str) -> str | None:
        """Look for a path, then for it without its first folder, and so on; last for its file name in any folder."""
        for path in _tails(name):
            if path in self._paths:
                return path
        return _only(self._by_tail.get(name.rpartition("/")[2], []))

    def _by_stems(self, name: str) -> str | None:
        """The same by names without suffix; labels/a.txt may belong to images/a.jpg."""
        swapped = "/".join("images" if part == "labels" else part for part in name.split("/"))
        for path in (*_tails(name), *_tails(swapped)):
            if path in self._by_stem:
                return _only(self._by_stem[path])
        return _only(self._by_last_stem.get(name.rpartition("/")[2], []))


def _tails(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[first:]) for first in range(len(parts))]


def _only(found: Sequence[str]) -> str | None:
    return found[0] if len(found) == 1 else None


def clean_name(name: str) -> str:
    """A name of an image with forward slashes and without detours.

    Raises:
        DataError: it is absolute, or leads out of its folder.
    """
    plain = name.replace("\\", "/")
    absolute = plain.startswith("/") or _DRIVE.match(plain)
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    depth = 0
    for part in parts:
        depth += -1 if part == ".." else 1
        if depth < 0 or absolute:
            break
    if absolute or depth < 0 or not parts or "\0" in plain:
        raise DataError(f"image name {name!r} leads out of the folder of images; write a path below it")
    return os.path.normpath("/".join(parts)).replace("\\", "/")


def read_headers(root: Path, names: Sequence[str], bands: Sequence[str | int] | None) -> dict[str, Header | DataError]:
    """What the files say about themselves, or why one cannot be read. Nothing is decoded.

    Args:
        root: the folder.
        names: paths below it.
        bands: as for read_image.
    """

    def look(name: str) -> Header | DataError:
        try:
            return read_header(root / name, bands)
        except DataError as error:
            return error

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(look, names), strict=True))


def _walk(root: Path) -> Iterable[str]:
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(folder).relative_to(root).as_posix()
        prefix = "" if below == "." else f"{below}/"
        yield from (f"{prefix}{f}" for f in files if not f.startswith(".") and _has_suffix(f))


def _has_suffix(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _without_suffix(name: str) -> str:
    return name[: -len(PurePosixPath(name).suffix) or None]
