"""A dataset of photos and objects as a person describes it in YAML, and one photo of it.

Shapes: N objects, P proposals, H W photo, h w window, C bands.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args, get_type_hints

import numpy as np

from visionapps.data.dataset import Action, Split
from visionapps.errors import ConfigError, DataError
from visionapps.objects import Objects
from visionapps.windows import Window

Form = Literal["coco", "voc", "yolo", "csv"]
AnyForm = Literal["auto", "coco", "voc", "yolo", "csv"]
FORMS: tuple[Form, ...] = get_args(Form)

_OUTCOME: Mapping[str, Action] = {"error": "error", "fix": "fixed", "drop": "dropped", "warn": "warning"}
_OPEN_FILES = 256  # memory maps that a process keeps open: each holds a file descriptor, of which 1024 are usual


@dataclass(frozen=True)
class ObjectClass:
    """One class of a detector, and what the annotation files call it.

    Without ids and names it is what the files call by its own name; in YOLO files without names, what has its
    position as number.

    Args:
        name: shown to people, stored with the model.
        ids: numbers in the files that mean this class; several merge.
        names: names in the files that mean this class; several merge.
        ignore: names or numbers in the files whose objects look like this class but need not be found: difficult.
    """

    name: str
    ids: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    ignore: tuple[str | int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("ids", "names", "ignore"):  # YAML brings lists
            object.__setattr__(self, name, tuple(getattr(self, name)))


@dataclass(frozen=True)
class ObjectPolicies:
    """What to do about each kind of problem: refuse to train, mend it, leave it out, or only say so.

    Args:
        unreadable: an annotation that cannot be read: broken XML, a row without four numbers or without a class;
            drop: leave it out.
        path: an image name that leads out of the folder of images.
        missing_image: annotations of an image that is not there.
        unlisted_image: an image that no annotation file mentions; fix: it is taken as an image without objects.
        unknown_image: an object of an image number that the file does not list.
        duplicate_image: an image listed twice; fix: the objects of both together.
        duplicate_id: two objects with one number; fix: the later ones lose theirs.
        corrupt: an image that cannot be decoded to its end.
        size_mismatch: the image has another size than its annotation says; fix: the image is right.
        rotated: EXIF says that viewers turn the image; boxes belong to the pixels as they are stored.
        bands: an image differs from the others in bands or data type.
        not_finite: a box with NaN or infinity.
        inverted_box: x1 below x0 or y1 below y0; fix: swap them.
        zero_area: a box without width or height.
        outside_box: a box that lies beside its image.
        overhanging_box: a box that reaches out of its image; fix: clip it.
        tiny_box: a side below 2 px.
        full_box: a box that covers its whole image.
        duplicate_box: the same box and class twice in an image; drop: once.
        contested_box: the same box in two classes.
        unknown_category: an object of a class that the class table lacks.
        background_category: an object of a class called background.
        shared_name: two categories of a COCO file have one name; they become one class.
        bad_mask: a polygon or run lengths that cannot be read; fix: the box becomes the mask.
        missing_mask: an object without a mask among others that have one; fix: the box becomes the mask.
        origin: coordinates that contradict the dataset's origin.
        empty_image: an image without objects; drop: out of both splits.
        near_duplicate: a photo of the training split looks like one of the validation split (turned or mirrored too);
            drop: out of the training split.
        unused_class: a class of the table without an object.
        one_sided_class: a class occurs in one split only.
    """

    unreadable: Literal["error", "drop"] = "error"
    path: Literal["error", "drop"] = "error"
    missing_image: Literal["error", "drop"] = "error"
    unlisted_image: Literal["error", "fix", "drop"] = "drop"
    unknown_image: Literal["error", "drop"] = "error"
    duplicate_image: Literal["error", "fix", "drop"] = "error"
    duplicate_id: Literal["error", "fix", "drop"] = "error"
    corrupt: Literal["error", "drop"] = "error"
    size_mismatch: Literal["error", "fix", "drop"] = "error"
    rotated: Literal["error", "drop", "warn"] = "warn"
    bands: Literal["error", "drop"] = "error"
    not_finite: Literal["error", "drop"] = "error"
    inverted_box: Literal["error", "fix", "drop"] = "error"
    zero_area: Literal["error", "drop"] = "error"
    outside_box: Literal["error", "drop"] = "error"
    overhanging_box: Literal["error", "fix", "drop"] = "fix"
    tiny_box: Literal["error", "drop", "warn"] = "warn"
    full_box: Literal["error", "drop", "warn"] = "warn"
    duplicate_box: Literal["error", "drop", "warn"] = "drop"
    contested_box: Literal["error", "drop", "warn"] = "warn"
    unknown_category: Literal["error", "drop"] = "error"
    background_category: Literal["error", "drop"] = "error"
    shared_name: Literal["error", "warn"] = "warn"
    bad_mask: Literal["error", "fix", "drop"] = "error"
    missing_mask: Literal["error", "fix", "drop"] = "error"
    origin: Literal["error", "warn"] = "error"
    empty_image: Literal["error", "drop", "warn"] = "warn"
    near_duplicate: Literal["error", "drop", "warn"] = "error"
    unused_class: Literal["error", "warn"] = "warn"
    one_sided_class: Literal["error", "warn"] = "warn"

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
class ObjectDataset:
    """Photos and their objects.

    Numbers of the files become half-open pixels so: x0 = file - origin, x1 = file - origin, plus 1 if inclusive; y
    likewise. In YOLO files the numbers are first multiplied by the size of the image.

    Args:
        images: folder of photos or rasters, subfolders too; empty: there are none at hand, only annotations are read.
        annotations: COCO: a JSON file, or a folder of them read as one; VOC: a folder of XML; YOLO: a folder of txt,
            laid out like the images, or a data.yaml; CSV: a file.
        form: of the annotations; auto: seen from what is there.
        classes: the class table, in the order of labels; a plain name is a class of that name. None: all classes of
            the files: by number in COCO and YOLO, by name in VOC and CSV.
        leave_out: names or numbers in the files whose objects are left out on purpose; counted.
        ignore: names or numbers in the files whose objects need not be found, whatever class is found there; they
            become difficult objects of every class. For one class, see ObjectClass.ignore.
        origin: the number that the files give to the left and upper edge of the image: of the first pixel, where
            pixels are counted. None: 1 in VOC, 0 elsewhere.
        inclusive: x1 and y1 name the last pixel inside a box, not the edge behind it. None: in VOC with origin 1, as
            its standard has it, and nowhere else.
        masks: read polygons and run lengths, where there are any.
        bands: bands to read, by 1-based number or name; None: all but alpha.
        split: how to divide training and validation; names of photos have their folder below images in front, so
            "^(train|val)/" divides by folder.
        policies: what to do about problems.
        proposals: file of proposals, for detectors that do not make their own.
        cache: folder of decoded photos; None: visionapps/photos in the user's cache folder.
        cache_gb: most that the cache may hold.
    """

    images: str
    annotations: str
    form: AnyForm = "auto"
    classes: tuple[ObjectClass | str, ...] | None = None
    leave_out: tuple[str | int, ...] = ()
    ignore: tuple[str | int, ...] = ()
    origin: float | None = None
    inclusive: bool | None = None
    masks: bool = True
    bands: tuple[int | str, ...] | None = None
    split: Split = field(default=Split())
    policies: ObjectPolicies = field(default=ObjectPolicies())
    proposals: str | None = None
    cache: str | None = None
    cache_gb: float = 32.0

    def __post_init__(self) -> None:
        for name in ("classes", "leave_out", "ignore", "bands"):  # YAML brings lists
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        if self.form not in get_args(AnyForm):
            raise ConfigError(f"form: {self.form!r} is no choice; write one of {', '.join(get_args(AnyForm))}")
        if self.split.block_px is not None:
            raise ConfigError("split.block_px: photos with objects are not cut into blocks; use group or block_m")
        if self.cache_gb <= 0:
            raise ConfigError(f"cache_gb: {self.cache_gb} must be positive")
        if self.origin is not None and not np.isfinite(self.origin):
            raise ConfigError(f"origin: {self.origin} must be a number, of the image's left and upper edge: 0")

    def cache_folder(self) -> Path:
        """Where decoded photos are kept."""
        if self.cache is not None:
            return Path(self.cache).expanduser()
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(home).expanduser() / "visionapps" / "photos"


@dataclass(frozen=True, eq=False)
class ObjectPhoto:
    """One photo with its objects. Pixels stay on disk, so it travels to workers for little.

    Attributes:
        name: path below the folder of images, with suffix and forward slashes.
        group: what it may not be torn from when data are split.
        source: path of the image file.
        image_id: number of the image in its annotation file; else its place among the images, from 1.
        size: (H, W).
        objects: what is in it.
        proposals: (P, 4) float32 boxes; None where the dataset has none.
        folder: where its pixels are stored; empty: they are not, only headers were looked at.
    """

    name: str
    group: str
    source: str
    image_id: int
    size: tuple[int, int]
    objects: Objects
    proposals: np.ndarray | None = None
    folder: str = ""

    def image(self, window: Window) -> np.ndarray:
        """(h, w, C) pixels, raw dtype, of a window inside the photo.

        Raises:
            ConfigError: the window leaves the photo.
            DataError: the photo was not stored, or has been removed.
        """
        if window.intersect(Window(0, 0, *self.size)) != window:
            raise ConfigError(f"{self.name}: {window} is not inside the photo of {self.size[0]} x {self.size[1]} px")
        if not self.folder:
            raise DataError(f"{self.source}: its pixels were not stored; examine the dataset with pixels")
        return np.array(_pixels(self.folder)[window.slices])


@lru_cache(maxsize=_OPEN_FILES)
def _pixels(folder: str) -> np.ndarray:
    try:
        array: np.ndarray = np.load(Path(folder) / "image.npy", mmap_mode="r")
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: the stored photo is gone, removed by another run that needed the room; "
            "raise cache_gb or give each run its own cache, then start again"
        ) from error
    return array
