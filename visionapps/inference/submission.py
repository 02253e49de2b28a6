"""Run-length submissions: written from label maps, read back, and checked against what was meant."""

import csv
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionapps.data.images import image_size, read_mask
from visionapps.errors import ConfigError, DataError, OutputError
from visionapps.files import list_files, refuse_sources, whole_output
from visionapps.inference.dialects import Dialect, Size, image_of
from visionapps.inference.submission_check import (
    NamedMask,
    Report,
    by_image,
    count_rows,
    images_of,
    match_keys,
    match_sample,
    read_sample,
    some,
    verify,
)
from visionapps.inference.submission_rows import (
    Places,
    Row,
    decode_rows,
    encode_rows,
    plain_bytes,
    read_submission,
    resize_nearest,
    to_places,
)
from visionapps.inference.void_masks import VoidCheck
from visionapps.structures import IGNORE

__all__ = [
    "NamedMask",
    "Report",
    "Row",
    "image_sizes",
    "mask_files",
    "match_images",
    "match_sample",
    "read_masks",
    "read_submission",
    "resize_nearest",
    "verify",
    "write_submission",
]

Cells = tuple[str, ...]
PACKED = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")  # lossless: JPEG smears labels


def mask_files(folder: Path) -> list[Path]:
    """The mask files of a folder, by name."""
    return list_files(folder, MASK_SUFFIXES)


def read_masks(files: Iterable[Path]) -> Iterator[NamedMask]:
    """Index masks, one at a time, each with its file name without suffix.

    Raises:
        DataError: a file cannot be read, or holds colours instead of labels.
    """
    for path in files:
        mask = read_mask(path)
        if mask.values.ndim != 2:
            raise DataError(
                f"{path}: holds colours, but an index mask (one channel, value = label) is expected; "
                "submit the index masks that predict writes"
            )
        labels, void = plain_bytes(mask.values), mask.nodata
        if void not in (None, 0, IGNORE):
            labels = np.where(labels == void, IGNORE, labels)
        yield path.stem, labels


def image_sizes(folder: Path, rule: str = "(.+)") -> dict[str, Size]:
    """(H, W) of the images of a folder by their ids, from the headers alone.

    Args:
        folder: of photos or rasters.
        rule: finds the id in a file name, see ``Dialect.image_id``.

    Raises:
        DataError: there is no image, one cannot be read, or two have one id.
    """
    sizes: dict[str, Size] = {}
    for path in list_files(folder):
        image = image_of(path.stem, rule)
        if image in sizes:
            raise DataError(f"{path}: another image has the id {image!r} already; give another --image-id")
        sizes[image] = image_size(path)
    return sizes


def match_images(ids: Sequence[str], sizes: Mapping[str, Size], *, where: Path) -> None:
    """Raise DataError unless there is one mask for every image.

    Args:
        ids: of the masks.
        sizes: of the images, by id.
        where: the masks come from or go to, for the message.
    """
    for one, all_of, what in ((sizes, ids, "images have no mask"), (ids, sizes, "masks have no image")):
        there = frozenset(all_of)
        missing = [image for image in one if image not in there]
        if missing:
            raise DataError(f"{where}: {len(missing)} {what}: {some(missing)}; check both folders, or --image-id")


def write_submission(
    masks: Iterable[NamedMask],
    path: Path,
    *,
    dialect: Dialect,
    classes: int | None = None,
    sample: Path | None = None,
    sizes: Mapping[str, Size] | None = None,
    overwrite: bool = False,
    allow_empty: bool = False,
) -> Report:
    """Write label maps as a run-length CSV, then read it back and compare every pixel before it takes its name.

    Args:
        masks: file name (without suffix) and (H, W) label map of each image, taken one at a time.
        path: the CSV.
        dialect: its rules.
        classes: labels of the model, the background included; needed when the dialect names no labels.
        sample: the competition's sample_submission.csv: its ids are written, all of them, in its order.
        sizes: (H, W) of the test images by id: each must have a mask, of its size unless the dialect resizes.
        overwrite: replace an existing file.
        allow_empty: 255 is void in these masks, as in those of our models; without it, masks that hold nothing else
            but background are refused.

    Raises:
        DataError: a mask has an unknown label or another size than its image, two masks have one id, or the sample or
            the images ask for a mask that is not there.
        ConfigError: the file has the name of an archive.
        OutputError: the file exists, is the sample, cannot be written, or does not read back as it was meant.
    """
    _refuse_packed(path)
    refuse_sources(path, [sample])
    wanted = None if sample is None else read_sample(sample, dialect)
    asked = None if wanted is None else images_of(wanted.keys, dialect)
    known = {} if dialect.resize else {**(wanted.sizes if wanted else {}), **(sizes or {})}
    tally = _Tally(dialect, dialect.written(classes), classes, asked, known)
    with whole_output(path, overwrite) as temporary:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(dialect.header)
            if sample is None or wanted is None:
                for name, mask in masks:
                    writer.writerows(cells for _, cells in tally.add(name, mask))
            else:  # text of all rows in memory: the sample decides on their order
                rows = [row for name, mask in masks for row in tally.add(name, mask)]
                match_keys(tally.keys(), wanted.keys, sample=sample, dialect=dialect, ids=tally.ids)
                writer.writerows(_in_order(rows, wanted.keys, dialect))
        tally.refuse_nothing(path, allow_empty)
        if sizes is not None:
            match_images(tally.ids, sizes, where=path)
        return _read_back(path, temporary, tally=tally)


def _refuse_packed(path: Path) -> None:
    """Raise ConfigError where the name promises an archive: readers that go by it would not find a CSV inside."""
    if path.suffix.lower() in PACKED:
        raise ConfigError(f"{path}: rows go to a plain .csv file; name it so, and pack it afterwards")


def _in_order(rows: Iterable[tuple[str, Cells]], wanted: Sequence[str], dialect: Dialect) -> Iterator[Cells]:
    """The rows as the sample has their ids; those of skipped classes fall out, and the images decide."""
    skip = dialect.absent == "skip"
    of_key: dict[str, list[Cells]] = {}
    for key, cells in rows:
        of_key.setdefault(dialect.split_key(key)[0] if skip else key, []).append(cells)
    order = dict.fromkeys(dialect.split_key(key)[0] for key in wanted) if skip else wanted
    return (cells for key in order for cells in of_key.get(key, ()))


@dataclass
class _Tally:
    """Encodes masks one by one and remembers a digest of each, to hold the finished file against."""

    dialect: Dialect
    written: Sequence[int]
    classes: int | None
    wanted: frozenset[str] | None  # images that the sample names
    sizes: Mapping[str, Size]  # that masks must have
    ids: list[str] = field(default_factory=list)  # of all masks
    images: dict[str, tuple[Size, bytes, int]] = field(default_factory=dict)  # size, digest, rows
    left_out: int = 0

    def __post_init__(self) -> None:
        self.voids = VoidCheck(self.written)

    def add(self, name: str, mask: NDArray[Any]) -> list[tuple[str, Cells]]:
        """The key and the cells of every row of one image; none when the sample does not ask for it."""
        image = self.dialect.image_of(name)
        if image in self.images:
            raise _twice(name, image)
        self.ids.append(image)
        if self.wanted is not None and image not in self.wanted:
            self.left_out += 1
            return []
        places = to_places(name, mask, dialect=self.dialect, written=self.written, classes=self.classes)
        size = _size(places)
        if self.sizes.get(image, size) != size:
            raise _another_size(name, size, self.sizes[image])
        self.voids.add(mask)
        rows = encode_rows(places, image, dialect=self.dialect, written=self.written)
        self.images[image] = size, _digest(places), len(rows)
        return rows

    def keys(self) -> set[str]:
        """Of the rows that can be written, those of skipped classes included."""
        labels = self.written if self.dialect.per_class else self.written[:1]
        return {self.dialect.key(image, label) for image in self.images for label in labels}

    def refuse_nothing(self, path: Path, allow_empty: bool) -> None:
        """A file without an image, or 0/255 masks that would become a valid file without a single run."""
        if not self.images:
            raise DataError(f"{path}: there was no mask to write; give at least one")
        self.voids.refuse(path, allow_empty=allow_empty)


def _size(places: Places) -> Size:
    return places.shape[0], places.shape[1]


def _another_size(name: str, size: Size, wanted: Size) -> DataError:
    return DataError(
        f"{name}: mask is {size[0]} x {size[1]} px (H x W), but {wanted[0]} x {wanted[1]} are wanted; predict at the "
        "size of the image, or set --resize if the competition wants all masks of one size"
    )


def _digest(places: Places) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(places).data, digest_size=16).digest()


def _twice(name: str, image: str) -> DataError:
    return DataError(f"{name}: another mask has the id {image!r} already; keep one of them, or give another --image-id")


def _read_back(path: Path, temporary: Path, *, tally: _Tally) -> Report:
    rows = read_submission(temporary, tally.dialect)
    of_image = by_image(rows)
    for image, (size, digest, count) in tally.images.items():
        own = of_image.get(image, [])
        found = _digest(decode_rows(own, size, dialect=tally.dialect, written=tally.written))
        if found != digest or len(own) != count:
            raise OutputError(
                f"{path}: image {image} does not read back as its mask; a real row may equal the empty text "
                f"{tally.dialect.empty!r}; choose another, or try another disk"
            )
    return count_rows(rows, tally.dialect, written=tally.written, voids=tally.voids, left_out=tally.left_out)
