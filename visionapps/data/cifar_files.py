"""CIFAR-10 and CIFAR-100 as they are published: Python or binary, unpacked or as .tar.gz; no foreign code is run.

The Python form is pickled. A pickle can call anything, so it is read by an unpickler that knows the few functions that
numpy's arrays need, and no others.
"""

import io
import pickle
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from visionapps.errors import DataError

SIDE = 32  # px
_PIXELS = 3 * SIDE * SIDE


@dataclass(frozen=True)
class Cifar:
    """How one of the two sets is laid out.

    Attributes:
        title: as people call it.
        train: stems of the batches that train.
        test: stems of those that test.
        names: stems of the files of class names, for Python and binary.
        label_bytes: before the pixels of a photo in the binary form; the last one is the class.
        key: of the labels in the Python form.
        names_key: of the class names in the Python form.
    """

    title: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: tuple[str, str]
    label_bytes: int
    key: str
    names_key: str


CIFAR: Mapping[str, Cifar] = {
    "cifar10": Cifar(
        title="CIFAR-10",
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test=("test_batch",),
        names=("batches.meta", "batches.meta.txt"),
        label_bytes=1,
        key="labels",
        names_key="label_names",
    ),
    "cifar100": Cifar(
        title="CIFAR-100",
        train=("train",),
        test=("test",),
        names=("meta", "fine_label_names.txt"),
        label_bytes=2,  # coarse, then fine
        key="fine_labels",
        names_key="fine_label_names",
    ),
}


class CifarBatch(NamedTuple):
    """A side of a set."""

    images: np.ndarray  # (N, 32, 32, 3) uint8
    labels: np.ndarray  # (N,) int64
    names: tuple[str, ...]  # K
    source: Path


def find_cifar(path: Path) -> str | None:
    """Which of the two sets a folder or archive holds; None: neither."""
    try:
        files = _Files(path)
    except DataError:
        return None
    for name, kind in CIFAR.items():
        if any(files.has(stem) or files.has(f"{stem}.bin") for stem in kind.train[:1]) and any(
            map(files.has, kind.names)
        ):
            return name
    return None


def read_names(path: Path, kind: Cifar) -> tuple[str, ...]:
    """The names of the classes, in the order of labels.

    Raises:
        DataError: there are none.
    """
    files = _Files(path)
    python, binary = kind.names
    if files.has(binary):
        lines = files.read(binary).decode("utf-8", "replace").splitlines()
        return tuple(line.strip() for line in lines if line.strip())
    if files.has(python):
        content = _unpickled(files.read(python), f"{path}: {python}")
        return tuple(_text(name) for name in content[kind.names_key])
    raise DataError(f"{path}: holds neither {python} nor {binary}; unpack {kind.title} whole")


def read_batches(path: Path, kind: Cifar, side: str) -> CifarBatch:
    """The photos of a side.

    Args:
        path: folder, or .tar.gz, as published.
        kind: of CIFAR.
        side: "train" or "test".

    Raises:
        DataError: a file is missing, damaged, or holds more than plain arrays.
    """
    files, names = _Files(path), read_names(path, kind)
    parts = [_batch(files, stem, kind, path) for stem in (kind.train if side == "train" else kind.test)]
    pixels, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    if labels.size and not 0 <= labels.min() <= labels.max() < len(names):
        raise DataError(f"{path}: has labels up to {labels.max()}, but {len(names)} names of classes; it is damaged")
    images = np.ascontiguousarray(pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
    return CifarBatch(images, labels, names, path)


def _batch(files: "_Files", stem: str, kind: Cifar, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3072) uint8 and (N,) int64 of one file."""
    where = f"{path}: {stem}"
    if files.has(f"{stem}.bin"):
        raw = np.frombuffer(files.read(f"{stem}.bin"), np.uint8)
        row = kind.label_bytes + _PIXELS
        if raw.size == 0 or raw.size % row:
            raise DataError(f"{where}.bin: {raw.size} bytes are no multiple of {row}; copy or download it again")
        table = raw.reshape(-1, row)
        return table[:, kind.label_bytes :], table[:, kind.label_bytes - 1].astype(np.int64)
    if not files.has(stem):
        raise DataError(f"{where}: no such file, nor {stem}.bin; unpack {kind.title} whole")
    content = _unpickled(files.read(stem), where)
    pixels, labels = np.asarray(content.get("data")), np.asarray(content.get(kind.key))
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _PIXELS or labels.shape != pixels.shape[:1]:
        raise DataError(f"{where}: does not hold {_PIXELS} bytes and a label per photo; copy or download it again")
    return pixels, labels.astype(np.int64)


class _Files:
    """Files of a folder, or of an archive, by their last name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._members: dict[str, str] = {}
        if path.is_dir():
            inner = [p for p in path.iterdir() if p.is_dir() and p.name.startswith("cifar-")]
            for folder in (*inner, path):
                self._members |= {p.name: str(p) for p in folder.iterdir() if p.is_file()}
        elif path.is_file() and path.name.endswith((".tar.gz", ".tgz", ".tar")):
            with self._open() as archive:
                self._members = {m.name.rsplit("/", 1)[-1]: m.name for m in archive.getmembers() if m.isfile()}
        else:
            raise DataError(f"{path}: no such folder or .tar.gz; check the path (relative to {Path.cwd()})")

    def has(self, name: str) -> bool:
        return name in self._members

    def read(self, name: str) -> bytes:
        if self._path.is_dir():
            return Path(self._members[name]).read_bytes()
        with self._open() as archive:
            file = archive.extractfile(self._members[name])
            assert file is not None, "only plain files are members"
            return file.read()

    def _open(self) -> tarfile.TarFile:
        try:
            return tarfile.open(self._path)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DataError(f"{self._path}: cannot be read as an archive ({error}); download it again") from error


# All that the published files name; "_codecs.encode" is how Python 3 reads the bytes of Python 2.
_HARMLESS = frozenset(
    {
        *(("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")),
        *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")),
    }
)


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _unpickled(content: bytes, where: str) -> dict[str, Any]:
    try:
        found = _Plain(io.BytesIO(content), encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise DataError(
            f"{where}: is damaged or holds more than arrays and text ({error}); nothing in it was run; download it "
            "again, or take the binary version"
        ) from error
    if not isinstance(found, dict):
        raise DataError(f"{where}: holds {type(found).__name__}, expected a mapping; download it again")
    return {_text(key): value for key, value in found.items()}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
