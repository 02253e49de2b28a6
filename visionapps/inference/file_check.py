"""Submissions of mask files under examination: everything that is wrong with an archive or a folder."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visionapps.errors import DataError
from visionapps.inference.archives import read_entries
from visionapps.inference.dialects import Size
from visionapps.inference.file_dialects import FileDialect
from visionapps.inference.file_planes import Plane, decode_plane, planes_of, read_sample_files, remember, size_of
from visionapps.inference.submission_check import NamedMask, Report, some
from visionapps.inference.submission_rows import Places
from visionapps.inference.void_masks import VoidCheck


def verify_files(
    path: Path,
    dialect: FileDialect,
    *,
    classes: int | None = None,
    sample: Path | None = None,
    sizes: Mapping[str, Size] | None = None,
    masks: Iterable[NamedMask] = (),
    allow_empty: bool = False,
) -> Report:
    """Decode every file of a submission and report everything that is wrong with it.

    Checked are names, files that are missing, superfluous or doubled, their channels, values and sizes, classes that
    share pixels, and, for the masks given, every pixel.

    Args:
        path: a folder or an archive.
        dialect: its rules.
        classes: labels of the model, the background included.
        sample: what the competition asks for, see ``read_sample_files``.
        sizes: (H, W) of the test images by id.
        masks: file name (without suffix) and label map of images to compare with; those that the sample does not name
            are passed over, as in writing.
        allow_empty: 255 is void in the masks, even where none holds anything else but background.

    Raises:
        DataError: the archive or the sample cannot be read, a mask is unusable, or all are of 0 and 255 and mean
            nothing here.
    """
    wanted = None if sample is None else read_sample_files(sample, dialect, classes=classes)
    known = {**(wanted.sizes if wanted else {}), **(sizes or {})}
    check = _Check(dialect, dialect.written(classes), known, classes is not None)
    for entry in read_entries(path):
        try:
            if entry.wrong:
                raise DataError(f"file {entry.name!r} {entry.wrong}")
            check.add(entry.name, entry.data)
        except DataError as error:
            check.problems.append(str(error))
    check.names(None if wanted is None else wanted.names, sizes)
    left_out, voids = 0, VoidCheck.of_files(check.written, dialect.foreground)
    asked = None if wanted is None else frozenset(dialect.split(name)[0] for name in wanted.names)
    for name, mask in masks:
        if asked is not None and dialect.image_of(name) not in asked:
            left_out += 1
            continue
        for file, plane in planes_of(name, mask, dialect=dialect, written=check.written, classes=classes):
            check.compare(file, remember(plane))
        voids.add(mask)
    voids.refuse(path, allow_empty=allow_empty)
    return Report(
        len(check.found),
        len(check.images),
        len(check.written) if dialect.per_class else 1,
        sum(plane.filled for plane in check.planes.values()),
        compared=voids.masks,
        left_out=left_out,
        problems=tuple(check.problems),
        void_only=voids.void_only,
    )


@dataclass
class _Check:
    """What has been seen of a submission, and what is wrong with it."""

    dialect: FileDialect
    written: Sequence[int]
    sizes: Mapping[str, Size]
    strict: bool  # whether the classes are known, and so the values of index masks
    problems: list[str] = field(default_factory=list)
    found: set[str] = field(default_factory=set)  # names of the right form
    images: dict[str, Size | None] = field(default_factory=dict)
    planes: dict[str, Plane] = field(default_factory=dict)
    claimed: dict[str, tuple[int, NDArray[np.uint8]]] = field(default_factory=dict)  # files seen and their pixels, bits

    def add(self, name: str, data: bytes) -> None:
        """Look at one file.

        Raises:
            DataError: what is wrong with it.
        """
        image, label = self.dialect.split(name)
        if label is not None and label not in self.written:
            raise DataError(f"file {name}: label {label} has no files in this dialect")
        if name in self.found:
            raise DataError(f"file {name} is there more than once")
        self.found.add(name)
        self.images.setdefault(image, None)
        try:
            plane = decode_plane(data)
        except DataError as error:
            raise DataError(f"file {name} {error}") from error
        self.planes[name] = remember(plane)
        size = self.dialect.resize or self.sizes.get(image) or self.images[image] or size_of(plane)
        self.images[image] = size
        if size_of(plane) != size:
            raise DataError(
                f"file {name}: {size_of(plane)[0]} x {size_of(plane)[1]} px (H x W), not {size[0]} x {size[1]}"
            )
        self._check_values(name, plane)
        if self.dialect.per_class:
            self._check_overlap(image, name, plane)

    def _check_values(self, name: str, plane: Places) -> None:
        if self.dialect.foreground is not None:
            known = {0, self.dialect.foreground}
        elif self.strict or self.dialect.labels is not None:
            known = {self.dialect.void, *map(self.dialect.value_of, self.written)}
        else:
            return
        strange = [value for value in np.flatnonzero(np.bincount(plane.ravel(), minlength=256)) if value not in known]
        if strange:
            listed = ", ".join(map(str, sorted(known)[:20])) + (", ..." if len(known) > 20 else "")
            raise DataError(f"file {name}: holds the value {strange[0]}; known are {listed}")

    def _check_overlap(self, image: str, name: str, plane: Places) -> None:
        bits = np.packbits(plane != 0)
        seen, union = self.claimed.pop(image, (0, np.zeros_like(bits)))
        if seen + 1 < len(self.written):  # an image whose files are all seen is forgotten
            self.claimed[image] = seen + 1, union | bits
        shared = int(np.bitwise_count(union & bits).sum())
        if shared:
            raise DataError(f"file {name}: shares {shared} pixels with other classes of image {image}")

    def names(self, wanted: Sequence[str] | None, sizes: Mapping[str, Size] | None) -> None:
        """Hold the names against the sample, or else against what the images should have; and against the images."""
        labels = self.written if self.dialect.per_class else (0,)
        expected = wanted
        if expected is None:
            expected = [self.dialect.name_of(image, label) for image in self.images for label in labels]
        missing = sorted(set(expected) - self.found)
        extra = sorted(self.found - set(expected))
        strange = sorted(self.images.keys() - sizes.keys()) if sizes is not None else []
        without = sorted(sizes.keys() - self.images.keys()) if sizes is not None else []
        for ids, what in (
            (missing, "files are missing"),
            (extra, "files are not in the sample"),
            (strange, "ids belong to no image"),
            (without, "images have no files"),
        ):
            if ids:
                self.problems.append(f"{len(ids)} {what}: {some(ids)}")

    def compare(self, name: str, plane: Plane) -> None:
        """Hold a file against the mask that it should be."""
        found = self.planes.get(name)
        if found is None:
            self.problems.append(f"file {name}: cannot be compared with its mask, it is missing or cannot be read")
        elif found.size != plane.size:
            sizes = [f"{height} x {width}" for height, width in (found.size, plane.size)]
            self.problems.append(f"file {name}: {sizes[0]} px (H x W), but its mask is {sizes[1]}")
        elif found != plane:
            self.problems.append(f"file {name}: differs from its mask")
