"""A dataset of photos with one class each, as a person describes it in YAML, and one photo of it.

Shapes: K classes, H W photo, C bands.
"""

import os
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args, get_type_hints

import numpy as np

from visionapps.data.dataset import Action, Split
from visionapps.data.images import Bands, read_image, resize_image
from visionapps.errors import ConfigError, DataError

ClassForm = Literal["auto", "folders", "list", "cifar10", "cifar100"]
_OUTCOME: dict[str, Action] = {"error": "error", "fix": "fixed", "drop": "dropped", "warn": "warning"}


@dataclass(frozen=True)
class ClassPolicies:
    """What to do about each kind of problem: refuse to train, mend it, leave it out, or only say so.

    Args:
        corrupt: a photo that cannot be decoded to its end.
        missing_image: a line of a list names a photo that is not there.
        wrong_suffix: a file holds another format than its name says.
        stray: a photo that lies beside the folders of classes.
        bands: a photo differs from the others in bands or data type; fix: a grey one becomes as colourful as they are.
        unknown_class: a class that the table lacks, or that validates and never trains.
        empty_class: a class without a photo.
        tiny_class: a class of which fewer than ten photos train.
        one_sided_class: a class that trains and never validates.
        duplicate: a photo of the training split has the very pixels of one that validates; drop: out of training.
        contested: the very same photo in two classes; drop: all of them.
        repeated: the very same photo twice in a class of one split; drop: once.
        near_duplicate: a photo of the training split looks like one that validates (turned or mirrored too); drop: out
            of the training split.
    """

    corrupt: Literal["error", "drop"] = "error"
    missing_image: Literal["error", "drop"] = "error"
    wrong_suffix: Literal["error", "warn"] = "warn"
    stray: Literal["error", "warn"] = "warn"
    bands: Literal["error", "fix", "drop"] = "error"
    unknown_class: Literal["error", "drop"] = "error"
    empty_class: Literal["error", "warn"] = "error"
    tiny_class: Literal["error", "warn"] = "warn"
    one_sided_class: Literal["error", "warn"] = "warn"
    duplicate: Literal["error", "drop", "warn"] = "error"
    contested: Literal["error", "drop", "warn"] = "error"
    repeated: Literal["error", "drop", "warn"] = "warn"
    near_duplicate: Literal["error", "drop", "warn"] = "warn"

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for each in fields(self):
            value, allowed = getattr(self, each.name), get_args(hints[each.name])
            if value not in allowed:
                raise ConfigError(f"policies.{each.name}: {value!r} is no choice; write one of {', '.join(allowed)}")

    def action(self, kind: str) -> Action:
        """What becomes of a problem of this kind; kinds without a policy are warnings."""
        return _OUTCOME[getattr(self, kind, "warn")]


@dataclass(frozen=True)
class ClassDataset:
    """Photos with one class each.

    Args:
        train: folder with one folder of photos per class; or a CSV list with the columns image and class; or the folder
            of CIFAR-10 or CIFAR-100 as it is published, for Python or binary, unpacked or as .tar.gz.
        val: the same for validation; None: a part of ``train``, see split (CIFAR: its test batch).
        form: of both; "auto": by what is there.
        classes: names, in the order of labels; None: all classes of ``train``, sorted by name (CIFAR: as published).
        images: folder that the names in a list belong to; None: that of the list.
        split: how to divide ``train`` where there is no ``val``; groups are sought in the name of a photo below
            ``train``, without suffix ("oak/tile3_12").
        policies: what to do about problems.
        bands: bands to read, by 1-based number or name; None: all but alpha.
        keep_px: photos are kept decoded, with a shorter side of at most this; None: they are decoded again for every
            look, for sets that fit on no disk. Those of CIFAR are kept as they are.
        cache: folder of decoded photos; None: visionapps/photos in the user's cache folder.
        cache_gb: most that the decoded photos of this dataset may take.
    """

    train: str
    val: str | None = None
    form: ClassForm = "auto"
    classes: tuple[str, ...] | None = None
    images: str | None = None
    split: Split = Split()  # noqa: RUF009 - frozen
    policies: ClassPolicies = ClassPolicies()
    bands: tuple[int | str, ...] | None = None
    keep_px: int | None = 512
    cache: str | None = None
    cache_gb: float = 32.0

    def __post_init__(self) -> None:
        for name in ("classes", "bands"):  # YAML brings lists
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        if self.classes is not None and (not self.classes or len(set(self.classes)) != len(self.classes)):
            raise ConfigError(f"classes: {', '.join(self.classes) or 'none'}: give at least one, all different")
        if self.split.block_px is not None or self.split.block_m is not None:
            raise ConfigError("split: block_px and block_m cut label maps; photos with one class have groups only")
        if self.keep_px is not None and self.keep_px < 1:
            raise ConfigError(f"keep_px: {self.keep_px} must be at least 1 pixel, or null to keep nothing")
        if self.cache_gb <= 0:
            raise ConfigError(f"cache_gb: {self.cache_gb} must be positive")

    def require_px(self, side: int, what: str) -> None:
        """Refuse to show photos larger than they are kept, which would enlarge what was reduced before.

        Args:
            side: shorter side that photos are to be brought to, in pixels.
            what: asks for it, as in messages.

        Raises:
            ConfigError: it is above keep_px.
        """
        if self.keep_px is not None and side > self.keep_px:
            raise ConfigError(
                f"{what}: brings photos to a shorter side of {side} px, but they are kept with {self.keep_px} at most; "
                f"set the dataset's keep_px to {side} or more, or to null"
            )

    def cache_folder(self) -> Path:
        """Where decoded photos are kept."""
        if self.cache is not None:
            return Path(self.cache).expanduser()
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(home).expanduser() / "visionapps" / "photos"


@dataclass(frozen=True)
class ClassPhoto:
    """One photo and its class. Holds paths and numbers only, so it travels to workers for free.

    Attributes:
        name: below the folder of its split, without suffix; of CIFAR its number.
        label: in [0, K).
        group: what it may not be torn from when data are split.
        size: (H, W) as it is kept.
        source: the file that it was made from.
        bands: channels.
        dtype: of the pixels, as numpy names it.
        store: file of decoded photos; empty: it is decoded for every look.
        offset: where its pixels begin there, in bytes.
        chosen: the bands to read from the source.
    """

    name: str
    label: int
    group: str
    size: tuple[int, int]
    source: str
    bands: int
    dtype: str
    store: str = ""
    offset: int = 0
    chosen: tuple[int | str, ...] | None = None

    def image(self) -> np.ndarray:
        """(H, W, C) pixels, raw dtype."""
        shape = (*self.size, self.bands)
        if not self.store:
            return as_bands(decoded(Path(self.source), self.chosen, None), self.bands)
        dtype = np.dtype(self.dtype)
        count = int(np.prod(shape))
        flat = _bytes_of(self.store)[self.offset : self.offset + count * dtype.itemsize]
        return np.array(flat).view(dtype).reshape(shape)


def decoded(path: Path, bands: Bands, keep_px: int | None) -> np.ndarray:
    """(H, W, C) of a photo, no larger than it is kept.

    Raises:
        DataError: it cannot be read.
    """
    image = read_image(path, bands)
    short = min(image.shape[:2])
    if keep_px is None or short <= keep_px:
        return image
    factor = keep_px / short
    return resize_image(image, (round(image.shape[0] * factor), round(image.shape[1] * factor)))


def as_bands(image: np.ndarray, bands: int) -> np.ndarray:
    """A grey photo with as many bands as the others; others as they are."""
    return np.repeat(image, bands, 2) if image.shape[2] == 1 and bands > 1 else image


@lru_cache(maxsize=8)
def _bytes_of(store: str) -> np.ndarray:
    try:
        found: np.ndarray = np.memmap(store, np.uint8, "r")
    except FileNotFoundError as error:
        raise DataError(f"{store}: the decoded photos are gone; start again, they are decoded anew") from error
    return found
