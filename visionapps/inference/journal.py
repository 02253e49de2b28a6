"""Finished bands of one scene on disk, so that an interrupted run goes on where it was.

A journal is a hidden folder beside the maps: what decides their bytes (identity.json), a lock, and one file per
band, each written under another name first and renamed when it is safe on the disk. Killed at any moment, it holds
whole bands only. Bands come in any order and are read back in any order.

Shapes: N product planes, h W band.
"""

import json
import logging
import os
import shutil
import socket
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from visionapps.errors import OutputError
from visionapps.files import output_error
from visionapps.inference.products import Band
from visionapps.windows import Window

_FORMAT = 1  # of the files here; a journal of another format is not continued
_MAGIC = b"VABAND01"
_HEAD = struct.Struct("<8sIIIIQ")  # magic, first row, rows, columns, planes, bytes of the payload
_CRC = struct.Struct("<I")  # of the head and the payload, after both
_SUFFIX = ".band"
_IDENTITY, _LOCK, _FINISHING = "identity.json", "lock", "finishing.json"
_CHUNK = 2**22  # bytes checked at a time
log = logging.getLogger(__name__)


class _Head(NamedTuple):
    row: int
    height: int
    width: int
    planes: int
    length: int  # of the payload, in bytes


class Journal:
    """The bands of one scene that are finished. Locked: a second run of the same scene is refused. A context manager.

    The process may die at any moment; a lock dies with it.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Open a journal, or begin one.

        Args:
            folder: where it lives; made if it is not there.
            identity: everything that decides the bytes of the bands, as plain data for JSON.
            overwrite: begin anew where the journal belongs to another identity.

        Raises:
            OutputError: another run draws the scene just now, the journal belongs to another identity, or the disk
                refuses the write.
        """
        self.folder = folder
        self._ends: dict[int, int] = {}  # end row of each finished band, by its first row
        try:
            self._lock = _lock(folder)
        except OSError as error:
            raise output_error(folder, error) from error
        try:
            self._adopt({"format": _FORMAT, **json.loads(json.dumps(identity))}, overwrite)
        except OSError as error:
            self._unlock()
            raise output_error(folder, error) from error
        except BaseException:
            self._unlock()
            raise

    def __len__(self) -> int:
        return len(self._ends)

    def __contains__(self, row: int) -> bool:
        """Whether a finished band begins at a row."""
        return row in self._ends

    def missing(self, height: int) -> list[tuple[int, int]]:
        """The [begin, end) of rows, of a raster of that height, that no finished band covers."""
        gaps, at = [], 0
        for begin, end in [*sorted(self._ends.items()), (height, height)]:
            if begin > at:
                gaps.append((at, begin))
            at = max(at, end)
        return gaps

    def add(self, band: Band) -> None:
        """Keep a band; one that is there already is left as it is.

        Raises:
            OutputError: the disk refuses it.
        """
        import pyarrow

        row, end = band.window.row, band.window.row_end
        if self._ends.get(row) == end:
            return
        assert not any(begin < end and row < until for begin, until in self._ends.items()), f"{band.window}: cut anew"
        # zstd takes a third of the time of zlib on labels, for fewer bytes.
        planes = np.ascontiguousarray(band.planes)
        payload = pyarrow.Codec("zstd", compression_level=1).compress(planes)
        head = _HEAD.pack(_MAGIC, row, band.window.height, band.window.width, len(planes), len(payload))
        crc = _CRC.pack(zlib.crc32(payload, zlib.crc32(head)))
        try:
            _keep(self._path(row), head, payload, crc)
        except OSError as error:
            raise output_error(self.folder, error) from error
        self._ends[row] = end

    def read(self, row: int) -> Band:
        """The finished band that begins at a row. Its planes are read-only.

        Raises:
            OutputError: the file has been damaged since the journal was opened.
        """
        import pyarrow

        path = self._path(row)
        try:
            head = _checked(path)
            with path.open("rb") as file:
                file.seek(_HEAD.size)
                payload = file.read(head.length)
        except (OSError, ValueError) as error:
            raise OutputError(
                f"{path}: cannot be read back ({error}); start again, the band is then redrawn"
            ) from error
        shape = (head.planes, head.height, head.width)
        planes = pyarrow.Codec("zstd").decompress(payload, decompressed_size=int(np.prod(shape)))
        return Band(Window(row, 0, head.height, head.width), np.frombuffer(planes, np.uint8).reshape(shape))

    def replay(self) -> Iterator[Band]:
        """All finished bands from top to bottom."""
        yield from map(self.read, sorted(self._ends))

    def finishing(self, names: Sequence[str]) -> None:
        """Note that the finished maps of those names are about to take their places: a run that is killed then has
        left some of them, which the next one may replace.

        Raises:
            OutputError: the disk refuses it.
        """
        try:
            _keep(self.folder / _FINISHING, json.dumps(list(names)).encode())
        except OSError as error:
            raise output_error(self.folder, error) from error

    def close(self) -> None:
        """Let go of the lock; the bands stay. A journal without bands leaves nothing behind."""
        if self._lock >= 0 and not self._ends:
            _clear(self.folder)
        self._unlock()

    def remove(self) -> None:
        """Delete the journal: its maps are complete."""
        self._ends.clear()
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _path(self, row: int) -> Path:
        return self.folder / f"{row:010}{_SUFFIX}"

    def _adopt(self, identity: dict[str, Any], overwrite: bool) -> None:
        """Take over the bands of an earlier run with the same identity; delete everything else."""
        path = self.folder / _IDENTITY
        known: Any = None
        with suppress(FileNotFoundError, ValueError):  # without its identity nobody knows what the bands show
            known = json.loads(path.read_bytes())
        bands = sorted(self.folder.glob(f"*{_SUFFIX}"))
        if isinstance(known, dict) and known != identity and bands and not overwrite:
            key, old, new = _first_difference(known, identity)
            raise OutputError(
                f"{self.folder}: an unfinished map of other settings is kept here ({key} was {old}, is now {new}); "
                f"use the same settings to continue it, or begin anew with --overwrite"
            )
        if known != identity:
            _sweep(self.folder, lambda _: False)
            _keep(path, json.dumps(identity, indent=1).encode())
            return
        _sweep(self.folder, lambda file: file in bands or file.name in (_IDENTITY, _FINISHING))
        for band in bands:
            self._take_over(band)

    def _take_over(self, path: Path) -> None:
        try:
            head = _checked(path)
            if self._path(head.row) != path or head.row < max(self._ends.values(), default=0):
                raise ValueError("it overlaps another band")
        except (OSError, ValueError) as error:
            log.warning("%s: dropped, %s; its rows are drawn again", path, error)
            path.unlink()
            return
        self._ends[head.row] = head.row + head.height


def left_by_a_kill(folder: Path) -> frozenset[str]:
    """Names of the maps that a run left in place when it was killed while the last ones took theirs."""
    with suppress(FileNotFoundError, ValueError):
        return frozenset(json.loads((folder / _FINISHING).read_bytes()))
    return frozenset()


def _checked(path: Path) -> _Head:
    """The head of a band's file.

    Raises:
        ValueError: the file is damaged.
    """
    with path.open("rb") as file:
        packed = file.read(_HEAD.size)
        if len(packed) < _HEAD.size:
            raise ValueError("the file is cut off")
        magic, *numbers = _HEAD.unpack(packed)
        head = _Head(*numbers)
        if magic != _MAGIC or path.stat().st_size != _HEAD.size + head.length + _CRC.size:
            raise ValueError("the file is cut off or no band")
        crc, left = zlib.crc32(packed), head.length
        while left:
            chunk = file.read(min(_CHUNK, left))
            if not chunk:
                raise ValueError("the file is cut off")
            crc = zlib.crc32(chunk, crc)
            left -= len(chunk)
        if file.read() != _CRC.pack(crc):
            raise ValueError("its checksum is wrong")
    return head


def _keep(path: Path, *parts: Any) -> None:
    """Write a file so that it is whole under its name or not there at all, even after a power cut."""
    temporary = path.with_name(f"{path.name}.part")
    with temporary.open("wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _lock(folder: Path) -> int:
    """Lock a folder for this process, making it if need be: an open file descriptor that holds the lock.

    Raises:
        OutputError: another run holds it.
    """
    path = folder / _LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # another run has just finished and removed the folder
            continue
        try:
            _lock_file(lock)
        except BlockingIOError as error:
            holder = os.read(lock, 200).decode(errors="replace") or "unknown"
            os.close(lock)
            raise OutputError(
                f"{folder}: another run ({holder}) draws this scene just now; wait for it or stop it"
            ) from error
        with suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(lock).st_ino:
                os.ftruncate(lock, 0)
                os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return lock
        os.close(lock)  # locked a file that its holder has removed meanwhile


def _lock_file(lock: int) -> None:
    """Lock an open file until it is closed, be it by the death of the process.

    Raises:
        BlockingIOError: it is locked by someone else.
    """
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except (ImportError, OSError) as error:
        log.warning("files cannot be locked here (%s): never draw one scene in two runs at once", error)


def _clear(folder: Path) -> None:
    """Delete a journal, its lock last. Killed on the way, it is no journal any more: the maps in place are complete."""
    with suppress(OSError):  # a rest does no harm
        (folder / _FINISHING).unlink(missing_ok=True)
        (folder / _IDENTITY).unlink(missing_ok=True)
        _sweep(folder, lambda path: False)
        (folder / _LOCK).unlink()
        folder.rmdir()


def _sweep(folder: Path, keep: Callable[[Path], bool]) -> None:
    """Delete what is not to be kept; the lock stays."""
    for path in folder.iterdir():
        if path.name == _LOCK or keep(path):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _first_difference(old: Any, new: Any, key: str = "") -> tuple[str, str, str]:
    """The first key, dotted, whose values differ, and both values as a person reads them."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return key, _short(old), _short(new)
    absent = object()
    name = next(name for name in {**new, **old} if old.get(name, absent) != new.get(name, absent))
    key = f"{key}.{name}" if key else str(name)
    if name in old and name in new:
        return _first_difference(old[name], new[name], key)
    was, now = (_short(side[name]) if name in side else "not there" for side in (old, new))
    return key, was, now


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
