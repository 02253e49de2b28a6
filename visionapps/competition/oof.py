"""Out-of-fold predictions: for every photo of a dataset the scores of the one fold whose model never saw it.

A store is a folder: ``oof.json`` says which photos belong to which fold; ``fold_N/`` appears whole when fold N is
predicted and holds a tiled, compressed GeoTIFF of 8 bit per photo (a plane per class), its true labels, and
``fold.json``. Shapes: K classes, H W photo, h w window.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from visionapps.data.footprints import part_of
from visionapps.data.images import resize_image, resize_labels
from visionapps.errors import ConfigError, DataError, OutputError
from visionapps.files import whole_output
from visionapps.inference.geotiff import LABELS, SCORES, MapOptions, read_tiff, tiff_file
from visionapps.inference.sources import ArraySource
from visionapps.structures import GeoRef, LabelSpace
from visionapps.windows import Window

INDEX, FOLD_INDEX = "oof.json", "fold.json"
FORMAT = 1
LEVELS = 255  # a probability p is stored as round(255 * p)


class Folds(Protocol):
    """What a store has to know of a fold plan; see FoldPlan."""

    @property
    def k(self) -> int: ...
    @property
    def key(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def folds(self) -> Mapping[str, int]: ...
    def names(self, fold: int) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class StoredPhoto:
    """A photo of a store.

    Attributes:
        fold: whose model predicted it.
        size: (H, W) of its planes.
        truth: whether its true labels are stored, too.
    """

    fold: int
    size: tuple[int, int]
    truth: bool


class OofStore:
    """Reads what OofWriter wrote; nothing is loaded before it is asked for."""

    def __init__(self, folder: Path, head: Mapping[str, Any], folds: Mapping[int, Mapping[str, Any]]) -> None:
        """Use OofStore.open."""
        self.folder = folder
        self.labels = LabelSpace.from_dict(head["labels"])
        self.plan: str = head["plan"]  # FoldPlan.key
        self.fingerprint: str = head["dataset"]  # FoldPlan.fingerprint
        self.k: int = head["k"]
        self.size: tuple[int, int] | None = tuple(head["size"]) if head["size"] else None  # of all photos; None: theirs
        self.how: dict[str, Any] = dict(head.get("how") or {})
        self.expected: dict[str, int] = {name: int(fold) for name, fold in head["folds"].items()}
        self.members: dict[int, dict[str, Any]] = {number: dict(fold["member"]) for number, fold in folds.items()}
        self.photos = {
            name: StoredPhoto(number, (int(photo["size"][0]), int(photo["size"][1])), bool(photo["truth"]))
            for number, fold in folds.items()
            for name, photo in fold["photos"].items()
        }

    @classmethod
    def open(cls, folder: Path) -> "OofStore":
        """Open a store; folds that are not predicted yet are told by ``missing``.

        Raises:
            DataError: there is none, or a part of it is damaged.
        """
        head = _read_json(folder / INDEX, "no out-of-fold store; `visionapps folds` writes one")
        if head.get("format") != FORMAT:
            raise DataError(f"{folder}: an out-of-fold store of format {head.get('format')}, expected {FORMAT}")
        folds = {}
        try:
            for number in range(int(head["k"])):
                place = folder / f"fold_{number}"
                if place.is_dir():
                    folds[number] = _read_json(place / FOLD_INDEX, "the fold is incomplete; predict it anew")
            store = cls(folder, head, folds)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{folder}: the out-of-fold store is damaged ({error!r}); write it anew") from error
        strange = [name for name, photo in store.photos.items() if store.expected.get(name) != photo.fold]
        if strange:
            raise DataError(
                f"{folder}: {strange[0]} was predicted by fold {store.photos[strange[0]].fold}, but the plan has it in "
                f"{store.expected.get(strange[0], 'none')}; such a model may have seen it: write the store anew"
            )
        return store

    @property
    def names(self) -> tuple[str, ...]:
        """Photos that are predicted, sorted."""
        return tuple(sorted(self.photos))

    def fold(self, name: str) -> int:
        """The fold that a photo validated in, and whose model gave its scores."""
        return self._photo(name).fold

    def shape(self, name: str) -> tuple[int, int]:
        """(H, W) of the planes of a photo."""
        return self._photo(name).size

    def missing(self) -> tuple[int, ...]:
        """Folds that are not predicted yet."""
        return tuple(fold for fold in range(self.k) if fold not in self.members)

    def require_whole(self) -> None:
        """Refuse a store that lacks a fold.

        Raises:
            DataError: which folds are missing.
        """
        missing = self.missing()
        if missing:
            listed = ",".join(map(str, missing))
            raise DataError(
                f"{self.folder}: {len(missing)} of {self.k} folds are missing ({listed}), so some photos have no "
                f"prediction; train them with `visionapps folds ... --only {listed} --resume`"
            )

    def scores(self, name: str, window: Window | None = None) -> np.ndarray:
        """Probabilities of a photo, or of a window of it.

        Returns:
            (K, H, W) uint8, round(255 * p); the planes sum to 255 within a few levels.

        Raises:
            DataError: no such photo, or its file is damaged.
        """
        photo = self._photo(name)
        return self._read(photo, self.path(name), window)

    def truth(self, name: str, window: Window | None = None) -> np.ndarray:
        """(H, W) uint8 true labels of a photo, or of a window of it, at the size of its scores.

        Raises:
            DataError: no such photo, or its truth is unknown.
        """
        photo = self._photo(name)
        if not photo.truth:
            raise DataError(f"{self.folder}: {name} has no true labels; the dataset had no masks")
        return np.asarray(self._read(photo, self.path(name).with_suffix(".truth.tif"), window)[0])

    def path(self, name: str) -> Path:
        """The GeoTIFF with the scores of a photo."""
        return self.folder / f"fold_{self.fold(name)}" / f"{name}.tif"

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())

    def _photo(self, name: str) -> StoredPhoto:
        photo = self.photos.get(name)
        if photo is None:
            why = f"fold {self.expected[name]} is missing" if name in self.expected else "it is none of the plan"
            raise DataError(f"{self.folder}: has no scores of {name}: {why}")
        return photo

    def _read(self, photo: StoredPhoto, path: Path, window: Window | None) -> np.ndarray:
        whole = Window(0, 0, *photo.size)
        if window is not None and window.intersect(whole) != window:
            raise ConfigError(f"{path}: {window} is not inside the photo of {photo.size[0]} x {photo.size[1]} px")
        return read_tiff(path, window or whole)


class OofWriter:
    """Writes a store, fold by fold. Each fold appears whole or not at all."""

    def __init__(
        self,
        folder: Path,
        *,
        labels: LabelSpace,
        plan: Folds,
        size: tuple[int, int] | None = None,
        how: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            folder: of the store; made, or gone on with.
            labels: the classes of the planes.
            plan: which photo belongs to which fold.
            size: (H, W) that all scores and truths are stored in; None: each photo's own.
            how: plain data that says how all folds are predicted (views, precision).

        Nothing is written before the first fold is.

        Raises:
            OutputError: the folder holds a store of another plan, other classes, another size, or predicted otherwise,
                or something else than a store.
        """
        self.folder = folder
        self._labels, self._plan, self._size = labels, plan, size
        self._head = {
            "format": FORMAT,
            "labels": labels.to_dict(),
            "plan": plan.key,
            "dataset": plan.fingerprint,
            "k": plan.k,
            "size": list(size) if size else None,
            "how": dict(how or {}),
            "folds": dict(sorted(plan.folds.items())),
        }
        if (folder / INDEX).exists():
            _require_same(folder, json.loads(json.dumps(self._head)))
        elif folder.exists() and (not folder.is_dir() or any(not p.name.startswith(".") for p in folder.iterdir())):
            raise OutputError(f"{folder}: holds something else than out-of-fold predictions; choose another folder")

    def members(self) -> dict[int, dict[str, Any]]:
        """By fold that is there already, what was said of its model.

        Raises:
            DataError: the store is damaged.
        """
        return OofStore.open(self.folder).members if (self.folder / INDEX).exists() else {}

    @contextmanager
    def fold(self, number: int, member: Mapping[str, Any], *, overwrite: bool = False) -> "Iterator[FoldWriter]":
        """Write the photos of one fold; an error inside the block leaves nothing of it.

        Args:
            number: of the fold.
            member: plain data that says which model it was.
            overwrite: replace the fold if it is there.

        Raises:
            OutputError: the fold is there already, or the disk refuses it.
            DataError: photos of the fold were not written.
        """
        if not 0 <= number < self._plan.k:
            raise ConfigError(f"fold {number}: the plan has folds from 0 to {self._plan.k - 1}")
        if not (self.folder / INDEX).exists():
            with whole_output(self.folder / INDEX) as part:
                part.write_text(json.dumps(self._head, indent=1) + "\n")
        wanted = self._plan.names(number)
        with whole_output(self.folder / f"fold_{number}", overwrite) as part:
            part.mkdir(parents=True)
            writer = FoldWriter(part, frozenset(wanted), len(self._labels), self._size)
            yield writer
            lacking = [name for name in wanted if name not in writer.photos]
            if lacking:
                raise DataError(
                    f"{self.folder}: fold {number} lacks the scores of {len(lacking)} photos ({', '.join(lacking[:3])})"
                )
            index = {"member": dict(member), "photos": writer.photos}
            (part / FOLD_INDEX).write_text(json.dumps(index, indent=1) + "\n")


class FoldWriter:
    """Takes the photos of one fold in any order."""

    def __init__(self, folder: Path, wanted: frozenset[str], classes: int, size: tuple[int, int] | None) -> None:
        self.folder = folder
        self.photos: dict[str, dict[str, Any]] = {}
        self._wanted, self._classes, self._size = wanted, classes, size

    def write(
        self,
        name: str,
        scores: np.ndarray | Iterable[np.ndarray],
        *,
        shape: tuple[int, int] | None = None,
        truth: np.ndarray | None = None,
        georef: GeoRef | None = None,
    ) -> None:
        """Store a photo.

        Args:
            name: of the photo; it must belong to the fold.
            scores: (K, H, W) uint8 = round(255 * p), or float probabilities in [0, 1]; or full-width rows (K, h, W)
                of that kind from top to bottom, of which only a few are held in memory.
            shape: (H, W) of the photo, where rows are given.
            truth: (H, W) uint8 labels.
            georef: where the photo lies.

        Raises:
            ConfigError: the photo validates in another fold, or shapes do not agree.
        """
        if name not in self._wanted:
            raise ConfigError(f"{name}: does not validate in this fold, so its model may have seen it")
        rows: Iterable[np.ndarray] = [scores] if isinstance(scores, np.ndarray) else scores
        if isinstance(scores, np.ndarray):
            shape = (scores.shape[1], scores.shape[2])
        if shape is None:
            raise ConfigError(f"{name}: rows of scores need the shape of the photo")
        if truth is not None and truth.shape != shape:
            raise ConfigError(f"{name}: truth of {truth.shape} px, but scores of {shape}")
        if self._size is not None and self._size != shape:
            whole = np.concatenate([as_levels(part) for part in rows], axis=1)
            rows = [np.stack([_resized(plane, self._size) for plane in whole])]
            truth = None if truth is None else resize_labels(truth, self._size)
            georef = None if georef is None else part_of(georef, shape, self._size, Window(0, 0, *self._size))
            shape = self._size
        path = self.folder / f"{name}.tif"
        source = ArraySource(np.broadcast_to(np.uint8(0), (1, *shape)), georef=georef, name=name)
        options = MapOptions(overviews=False)
        with tiff_file(path, source, SCORES, bands=self._classes, options=options) as file:
            for part in rows:
                if part.shape[0] != self._classes or part.shape[2] != shape[1]:
                    raise ConfigError(f"{name}: rows of {part.shape}, expected ({self._classes}, h, {shape[1]})")
                file.write(as_levels(part))
        if truth is not None:
            with tiff_file(path.with_suffix(".truth.tif"), source, LABELS, bands=1, options=options) as file:
                file.write(truth[None])
        self.photos[name] = {"size": list(shape), "truth": truth is not None}


def as_levels(scores: np.ndarray) -> np.ndarray:
    """Probabilities in [0, 1] as uint8 = round(255 * p); uint8 as it is."""
    if scores.dtype == np.uint8:
        return scores
    return np.asarray(np.rint(np.clip(scores, 0, 1) * LEVELS).astype(np.uint8))


def _resized(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(resize_image(plane[..., None], size)).reshape(size)


def _require_same(folder: Path, head: dict[str, Any]) -> None:
    """Raise OutputError unless a store has this very head."""
    old = _read_json(folder / INDEX, "cannot be gone on with")
    kinds = {"plan": "another fold plan", "labels": "other classes", "size": "another size", "how": "other views"}
    for key, what in (kinds | {"format": "another format"}).items():
        if old.get(key) != head[key]:
            raise OutputError(
                f"{folder}: holds out-of-fold predictions of {what}; choose another folder with --oof, or remove it"
            )


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise DataError(f"{path.parent}: {what}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}); write it anew") from error
    if not isinstance(data, dict):
        raise DataError(f"{path}: holds {type(data).__name__}, expected a mapping; write it anew")
    return data
