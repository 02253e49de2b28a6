"""Run-length submissions: written from label maps, read back, and checked against what was meant."""

import csv
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionapps.data.images import read_mask
from visionapps.errors import DataError, OutputError
from visionapps.files import list_files, whole_output
from visionapps.inference.dialects import Dialect
from visionapps.inference.submission_check import (
    NamedMask,
    Report,
    by_image,
    count_rows,
    images_of,
    match_keys,
    match_sample,
    sample_keys,
    verify,
)
from visionapps.inference.submission_rows import (
    Places,
    Row,
    Size,
    decode_rows,
    encode_rows,
    read_submission,
    resize_nearest,
    to_places,
)
from visionapps.structures import IGNORE

__all__ = [
    "NamedMask",
    "Report",
    "Row",
    "mask_files",
    "match_sample",
    "read_masks",
    "read_submission",
    "resize_nearest",
    "verify",
    "write_submission",
]

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
        labels, void = mask.values, mask.nodata
        if void not in (None, 0, IGNORE):
            labels = np.where(labels == void, IGNORE, labels)
        yield path.stem, labels


def write_submission(
    masks: Iterable[NamedMask],
    path: Path,
    *,
    dialect: Dialect,
    classes: int | None = None,
    sample: Path | None = None,
    overwrite: bool = False,
) -> Report:
    """Write label maps as a run-length CSV, then read it back and compare every pixel before it takes its name.

    Args:
        masks: file name (without suffix) and (H, W) label map of each image, taken one at a time.
        path: the CSV.
        dialect: its rules.
        classes: labels of the model, the background included; needed when the dialect names no labels.
        sample: the competition's sample_submission.csv: its ids are written, all of them, in its order.
        overwrite: replace an existing file.

    Raises:
        DataError: a mask has an unknown label, two masks have one id, or the sample asks for a mask that is not there.
        OutputError: the file exists, cannot be written, or does not read back as it was meant.
    """
    wanted = None if sample is None else sample_keys(sample, dialect)
    tally = _Tally(dialect, dialect.written(classes), classes, None if wanted is None else images_of(wanted, dialect))
    with whole_output(path, overwrite) as temporary:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(dialect.header)
            if sample is None or wanted is None:
                for name, mask in masks:
                    writer.writerows(tally.add(name, mask))
            else:  # text of all rows in memory: the sample decides on their order
                texts = {key: text for name, mask in masks for key, text in tally.add(name, mask)}
                match_keys(texts, wanted, sample=sample)
                writer.writerows((key, texts[key]) for key in wanted)
        tally.refuse_nothing(path)
        return _read_back(path, temporary, tally=tally)


@dataclass
class _Tally:
    """Encodes masks one by one and remembers a digest of each, to hold the finished file against."""

    dialect: Dialect
    written: Sequence[int]
    classes: int | None
    wanted: frozenset[str] | None  # images that the sample names
    images: dict[str, tuple[Size, bytes]] = field(default_factory=dict)
    left_out: int = 0
    void_only: int = 0  # masks that hold the ignore label and no foreground

    def add(self, name: str, mask: NDArray[Any]) -> list[tuple[str, str]]:
        """The id and the text of every row of one image; none when the sample does not ask for it."""
        image = self.dialect.image_of(name)
        if image in self.images:
            raise _twice(name, image)
        if self.wanted is not None and image not in self.wanted:
            self.left_out += 1
            return []
        places = to_places(name, mask, dialect=self.dialect, written=self.written, classes=self.classes)
        self.images[image] = _size(places), _digest(places)
        if IGNORE not in self.written and not places.any() and (mask == IGNORE).any():
            self.void_only += 1
        return encode_rows(places, image, dialect=self.dialect, written=self.written)

    def refuse_nothing(self, path: Path) -> None:
        """A file without an image, or 0/255 masks that would become a valid file without a single run."""
        if not self.images:
            raise DataError(f"{path}: there was no mask to write; give at least one")
        if self.void_only == len(self.images):
            raise DataError(
                f"{path}: all {self.void_only} masks hold only background and {IGNORE}, which means void; "
                f"if it means foreground here, give --labels {IGNORE}"
            )


def _size(places: Places) -> Size:
    return places.shape[0], places.shape[1]


def _digest(places: Places) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(places).data, digest_size=16).digest()


def _twice(name: str, image: str) -> DataError:
    return DataError(f"{name}: another mask has the id {image!r} already; keep one of them, or give another --image-id")


def _read_back(path: Path, temporary: Path, *, tally: _Tally) -> Report:
    rows = read_submission(temporary, tally.dialect)
    of_image = by_image(rows)
    for image, (size, digest) in tally.images.items():
        if _digest(decode_rows(of_image.get(image, []), size, dialect=tally.dialect, written=tally.written)) != digest:
            raise OutputError(
                f"{path}: image {image} does not read back as its mask; a real row may equal the empty text "
                f"{tally.dialect.empty!r}; choose another, or try another disk"
            )
    return count_rows(rows, tally.dialect, written=tally.written, compared=len(tally.images), left_out=tally.left_out)
