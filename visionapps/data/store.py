"""The decoded cache: each photo is decoded and labelled once, then read by windows through memory maps.

A crop of 512 px from a 12-megapixel JPEG costs 62 ms of decoding; from here about 0.1 ms, and the page cache is
shared by all worker processes. An entry is a folder that appears whole under its final name or not at all.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from visionapps.data.dataset import CELL
from visionapps.data.soft import draw_labels
from visionapps.errors import ConfigError, DataError, OutputError
from visionapps.files import output_error
from visionapps.windows import Window

VERSION = 1  # of the entries' layout and of the mapping to labels: raise it, and old entries are no longer found
_GB = 1e9
_OPEN_FILES = 256  # memory maps that a process keeps open: each holds a file descriptor, of which 1024 are usual
_STALE_SECONDS = 86400  # a part that old belongs to no running process


@dataclass(frozen=True)
class Finding:
    """Something noted while a photo was stored; Policies say what it means."""

    kind: str
    message: str


@dataclass(frozen=True)
class Entry:
    """What is known of a stored photo without opening its arrays.

    Attributes:
        folder: where its arrays are; empty: it is not usable, see findings.
        height: of the stored photo, in pixels.
        width: likewise.
        bands: channels of the image.
        dtype: of the image.
        class_pixels: (K,) labelled pixels per class.
        likeness: small grey picture, row by row, for finding near-duplicates.
        findings: problems, mended or not.
        digest: of the contents of the image file, in hex; empty: stored before digests were; see seen.content.
    """

    folder: str
    height: int = 0
    width: int = 0
    bands: int = 0
    dtype: str = ""
    class_pixels: tuple[int, ...] = ()
    likeness: tuple[float, ...] = ()
    findings: tuple[Finding, ...] = ()
    digest: str = ""


@dataclass(frozen=True)
class Photo:
    """One item of a dataset: a stored photo, or a block of one. Holds paths only, so it travels to workers for free.

    Attributes:
        name: stem of the image; with the block's place where photos are cut into blocks.
        group: what it may not be torn from when data are split.
        window: the part of the stored photo that this item covers; begins on the CELL grid.
        class_pixels: (K,) labelled pixels per class.
        source: the image file it was made from.
        folder: where the arrays are stored.
        origin: the extra source that it belongs to, as its user wrote it; empty: the dataset itself.
        weight: how often crops are drawn from it, relative to its area.
        soft: its labels are probabilities, of which ``labels`` are the largest.
    """

    name: str
    group: str
    window: Window
    class_pixels: tuple[int, ...]
    source: str
    folder: str
    origin: str = ""
    weight: float = 1.0
    soft: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of this item."""
        return self.window.height, self.window.width

    @property
    def presence(self) -> np.ndarray:
        """(gh, gw, K) uint16: labelled pixels per class in each cell of CELL x CELL px, from the item's corner on."""
        rows = slice(self.window.row // CELL, -(-self.window.row_end // CELL))
        cols = slice(self.window.col // CELL, -(-self.window.col_end // CELL))
        return np.array(_array(self.folder, "presence")[rows, cols])

    def image(self, window: Window) -> np.ndarray:
        """(h, w, C) pixels, raw dtype, of a window that is relative to this item and inside it."""
        return np.array(_array(self.folder, "image")[self._inside(window).slices])

    def labels(self, window: Window) -> np.ndarray:
        """(h, w) uint8 labels of a window that is relative to this item and inside it."""
        return np.array(_array(self.folder, "labels")[self._inside(window).slices])

    def draw_labels(self, window: Window, rng: np.random.Generator) -> np.ndarray:
        """Labels as a crop takes them: those of ``labels``, or drawn from the probabilities, see soft.draw_labels."""
        if not self.soft:
            return self.labels(window)
        rows, cols = self._inside(window).slices
        return draw_labels(_array(self.folder, "soft")[:, rows, cols], rng)

    def cut(self, window: Window) -> "Photo":
        """Only a part of this item, a window of the stored photo that begins on the CELL grid."""
        part = replace(self, window=window)
        return replace(part, class_pixels=tuple(part.presence.sum((0, 1), dtype=np.int64).tolist()))

    def _inside(self, window: Window) -> Window:
        moved = window.shift(self.window.row, self.window.col)
        if moved.intersect(self.window) != moved:
            raise ConfigError(f"{self.name}: {window} is not inside the photo of {self.size[0]} x {self.size[1]} px")
        return moved


def likeness(folder: str) -> tuple[float, ...]:
    """The small grey picture of a stored photo, row by row; empty where it is not stored any more."""
    return tuple(_fact(folder, "likeness") or ())


def digest(folder: str) -> str:
    """The digest of the image file of a stored photo, in hex; empty where it is not known."""
    return str(_fact(folder, "digest") or "")


def _fact(folder: str, name: str) -> Any:
    """What the entry of a stored photo says; None where it says nothing, or is not stored any more."""
    try:
        return json.loads((Path(folder) / "entry.json").read_text())[name]
    except (OSError, ValueError, KeyError):
        return None


@lru_cache(maxsize=_OPEN_FILES)
def _array(folder: str, name: str) -> np.ndarray:
    try:
        array: np.ndarray = np.load(Path(folder) / f"{name}.npy", mmap_mode="r")
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: the stored photo is gone, removed by another run that needed the room; "
            "raise cache_gb or give each run its own cache, then start again"
        ) from error
    return array


class Store:
    """A folder of decoded photos with an upper size.

    Args:
        folder: made when something is first stored.
        limit_gb: most that all entries together may hold, in 10^9 bytes.
    """

    def __init__(self, folder: Path, limit_gb: float) -> None:
        self.folder = folder
        self.limit_gb = limit_gb

    def find(self, key: str) -> Entry | None:
        """The entry of a key if it is stored whole; finding it marks it as used."""
        place = self.folder / key
        try:
            data = json.loads((place / "entry.json").read_text())
            os.utime(place / "entry.json")
        except (FileNotFoundError, ValueError):  # never stored, or cut short by a crash of the machine
            return None
        if data["folder"]:
            if not (place / "image.npy").exists():
                return None
            data["folder"] = str(place.absolute())  # the cache may have been moved
        findings = tuple(Finding(**f) for f in data.pop("findings"))
        pixels, likeness = tuple(data.pop("class_pixels")), tuple(data.pop("likeness"))
        return Entry(**data, class_pixels=pixels, likeness=likeness, findings=findings)

    def put(
        self,
        key: str,
        entry: Entry,
        image: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        *,
        soft: np.ndarray | None = None,
    ) -> Entry:
        """Store a photo, or only what was found wrong with it.

        Args:
            key: see photo_key.
            entry: its facts; folder and class_pixels are filled in here.
            image: (H, W, C).
            labels: (H, W) uint8; None: the photo belongs to objects, and only its pixels are stored.
            soft: (K, H, W) uint8 probabilities of which the labels are the largest; None: there are labels only.

        Raises:
            OutputError: the disk is full or refuses.
        """
        final = self.folder / key
        arrays: dict[str, np.ndarray] = {}
        data = asdict(entry)
        if image is not None:
            arrays = {"image": image}
            data["folder"] = str(final.absolute())
        if image is not None and labels is not None:
            arrays |= {"labels": labels, "presence": count_cells(labels, len(entry.class_pixels))}
            data["class_pixels"] = arrays["presence"].sum((0, 1), dtype=np.int64).tolist()
        if soft is not None:
            arrays |= {"soft": soft}
        part = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(prefix=".part-", dir=self.folder))
            for name, array in arrays.items():
                np.save(part / f"{name}.npy", array)
            (part / "entry.json").write_text(json.dumps(data))
            _publish(part, final)
        except OSError as error:
            raise output_error(final, error) from error
        finally:
            if part is not None:
                shutil.rmtree(part, ignore_errors=True)
        return Entry(**data | {"findings": entry.findings, "class_pixels": tuple(data["class_pixels"])})

    def make_room(self, needed: int, keep: Collection[str]) -> int:
        """Remove the least recently used entries of other datasets until there is room for more bytes.

        Args:
            needed: bytes about to be stored.
            keep: keys of the dataset at hand; never removed.

        Returns:
            How many entries were removed.

        Raises:
            ConfigError: the dataset does not fit, whatever is removed.
            OutputError: the disk has less room than that.
        """
        entries = self._entries()
        own = needed + sum(size for key, (size, _) in entries.items() if key in keep)
        if own > self.limit_gb * _GB:
            raise ConfigError(
                f"{self.folder}: the decoded photos need {own / _GB:.2f} GB, but cache_gb is {self.limit_gb:g}; "
                "raise cache_gb, set resize, or choose another folder with cache"
            )
        others = sorted((used, key, size) for key, (size, used) in entries.items() if key not in keep)
        excess = own + sum(size for _, _, size in others) - self.limit_gb * _GB
        removed = 0
        for _, key, size in others:
            if excess <= 0:
                break
            _remove(self.folder / key)
            excess, removed = excess - size, removed + 1
        free = shutil.disk_usage(_existing(self.folder)).free
        if needed > free:
            raise OutputError(
                f"{self.folder}: the decoded photos need {needed / _GB:.2f} GB more, but the disk has {free / _GB:.2f} "
                "free; free some, set resize, or choose another folder with cache"
            )
        return removed

    def _entries(self) -> dict[str, tuple[int, float]]:
        """Bytes and time of last use of each entry; parts that a killed process left are removed."""
        found = {}
        for place in self.folder.iterdir() if self.folder.is_dir() else ():
            try:
                if place.name.startswith(".part-"):
                    if time.time() - place.stat().st_mtime > _STALE_SECONDS:
                        shutil.rmtree(place, ignore_errors=True)
                elif (place / "entry.json").exists():  # anything else is not ours
                    size = sum(file.stat().st_size for file in place.iterdir())
                    found[place.name] = (size, (place / "entry.json").stat().st_mtime)
            except FileNotFoundError:  # another process removed it meanwhile
                continue
        return found


def photo_key(image: Path, mask: Path | None, settings: dict[str, Any]) -> str:
    """A name for what storing these files with these settings gives; another when a file or a setting changes."""
    files = [(str(p.absolute()), p.stat().st_size, p.stat().st_mtime_ns) for p in (image, mask) if p is not None]
    text = json.dumps([VERSION, files, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def count_cells(labels: np.ndarray, classes: int) -> np.ndarray:
    """Labelled pixels per class in each cell.

    Args:
        labels: (H, W) uint8.
        classes: K; labels from K on are void.

    Returns:
        (ceil(H / CELL), ceil(W / CELL), K) uint16.
    """
    height, width = labels.shape
    columns = -(-width // CELL)
    offset = (np.arange(width) // CELL * (classes + 1)).astype(np.int32)
    rows = []
    for top in range(0, height, CELL):
        index = np.minimum(labels[top : top + CELL], classes) + offset
        counts = np.bincount(index.ravel(), minlength=columns * (classes + 1))
        rows.append(counts.reshape(columns, classes + 1)[:, :classes].astype(np.uint16))
    return np.stack(rows)


def _publish(part: Path, final: Path) -> None:
    part.chmod(0o755)  # mkdtemp makes it private; a cache may be shared
    try:
        part.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not (final / "image.npy").exists():  # the ruins of an entry
            _remove(final)
            part.rename(final)
        # else another process stored the same photo first


def _remove(place: Path) -> None:
    """Take an entry away under its name at once, so that nobody finds half of it, then delete it."""
    gone = place.with_name(f".part-{place.name}-{os.getpid()}")
    try:
        place.rename(gone)
    except FileNotFoundError:  # another process was faster
        return
    shutil.rmtree(gone, ignore_errors=True)


def _existing(folder: Path) -> Path:
    return next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
