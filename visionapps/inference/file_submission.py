"""Submissions of mask files: written from label maps as a folder or an archive, and read back."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from visionapps.errors import DataError, OutputError
from visionapps.files import refuse_sources, whole_output
from visionapps.inference.archives import Put, archive_form, read_entries, write_entries
from visionapps.inference.dialects import Size
from visionapps.inference.file_check import verify_files
from visionapps.inference.file_dialects import FileDialect
from visionapps.inference.file_planes import (
    Plane,
    decode_plane,
    encode_plane,
    planes_of,
    read_sample_files,
    remember,
    size_of,
)
from visionapps.inference.submission import match_images
from visionapps.inference.submission_check import NamedMask, Report, some
from visionapps.inference.void_masks import VoidCheck

__all__ = ["match_sample_files", "read_sample_files", "refuse_foreign", "verify_files", "write_files"]


def write_files(
    masks: Iterable[NamedMask],
    path: Path,
    *,
    dialect: FileDialect,
    classes: int | None = None,
    sample: Path | None = None,
    sizes: Mapping[str, Size] | None = None,
    overwrite: bool = False,
    allow_empty: bool = False,
) -> Report:
    """Write label maps as mask files, then read them back and compare every pixel before they take their name.

    Args:
        masks: file name (without suffix) and (H, W) label map of each image, taken one at a time.
        path: a folder, or an archive by its suffix: .zip, .tar, .tar.gz or .tgz.
        dialect: its rules.
        classes: labels of the model, the background included.
        sample: what the competition asks for, see ``read_sample_files``; masks that it does not name are left out.
        sizes: (H, W) of the test images by id: each must have a mask, of its size unless the dialect resizes.
        overwrite: replace what is there; a folder, if all that it holds is files of this dialect.
        allow_empty: as ``write_submission`` has it.

    Raises:
        DataError: a mask has an unknown label or another size than its image, two masks have one id, or the sample or
            the images ask for a mask that is not there.
        OutputError: something is there, it cannot be written, or does not read back as it was meant.
    """
    form = archive_form(path)
    refuse_sources(path, [sample])
    if overwrite and form == "folder" and path.is_dir():
        refuse_foreign(path, dialect)
    wanted = None if sample is None else read_sample_files(sample, dialect, classes=classes)
    known = {} if dialect.resize else {**(wanted.sizes if wanted else {}), **(sizes or {})}
    tally = _Tally(dialect, dialect.written(classes), classes, known)
    if wanted is not None:
        tally.asked = frozenset(dialect.split(name)[0] for name in wanted.names)
    with whole_output(path, overwrite) as temporary:
        with write_entries(temporary, form) as put:
            for name, mask in masks:
                tally.add(name, mask, put)
        tally.refuse_nothing(path, allow_empty)
        if wanted is not None and sample is not None:
            _match_names(tally.planes, wanted.names, sample)
        if sizes is not None:
            match_images(list(tally.ids), sizes, where=path)
        _read_back(path, temporary, form, tally.planes)
    images = len(tally.planes) // tally.per_image
    filled = sum(plane.filled for plane in tally.planes.values())
    return Report(
        len(tally.planes),
        images,
        tally.per_image,
        filled,
        compared=images,
        left_out=len(tally.ids) - images,
        void_only=tally.voids.void_only,
    )


def refuse_foreign(folder: Path, dialect: FileDialect) -> None:
    """Raise OutputError if a folder that is to be replaced holds anything that this dialect would not have written."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_dir() or dialect.is_name(name)):
            raise OutputError(
                f"{folder}: holds {name}, which is no file of this dialect and would be lost; choose another output, "
                "or remove the folder"
            )


@dataclass
class _Tally:
    """Writes masks one by one and remembers a digest of each file, to hold the finished archive against."""

    dialect: FileDialect
    written: Sequence[int]
    classes: int | None
    sizes: Mapping[str, Size]  # that masks must have
    asked: frozenset[str] | None = None  # images that the sample names
    ids: dict[str, None] = field(default_factory=dict)  # of all masks, in their order
    planes: dict[str, Plane] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.voids = VoidCheck.of_files(self.written, self.dialect.foreground)

    @property
    def per_image(self) -> int:
        """Files of one image."""
        return len(self.written) if self.dialect.per_class else 1

    def add(self, name: str, mask: NDArray[Any], put: Put) -> None:
        """Write the files of one image, unless the sample does not ask for it."""
        image = self.dialect.image_of(name)
        if image in self.ids:
            raise DataError(
                f"{name}: another mask has the id {image!r} already; keep one of them, or give another --image-id"
            )
        self.ids[image] = None
        if self.asked is not None and image not in self.asked:
            return
        for file, plane in planes_of(name, mask, dialect=self.dialect, written=self.written, classes=self.classes):
            _require_size(name, size_of(plane), self.sizes.get(image))
            put(file, encode_plane(plane, self.dialect))
            self.planes[file] = remember(plane)
        self.voids.add(mask)

    def refuse_nothing(self, path: Path, allow_empty: bool) -> None:
        """A result without an image, or 0/255 masks that would become valid files without any foreground."""
        if not self.planes:
            raise DataError(f"{path}: there was no mask to write; give at least one the sample names")
        self.voids.refuse(path, allow_empty=allow_empty)


def _require_size(name: str, size: Size, wanted: Size | None) -> None:
    if wanted is not None and size != wanted:
        raise DataError(
            f"{name}: mask is {size[0]} x {size[1]} px (H x W), but {wanted[0]} x {wanted[1]} are wanted; predict at "
            "the size of the image, or set --resize if the competition wants all masks of one size"
        )


def match_sample_files(names: Iterable[str], dialect: FileDialect, *, sample: Path, classes: int | None = None) -> None:
    """Check by names alone, before any mask is decoded, that there is a mask for every file that is asked for.

    Args:
        names: file names of the masks, without suffix.
        dialect: the rules.
        sample: see ``read_sample_files``.
        classes: labels of the model, the background included.

    Raises:
        DataError: files of the sample have no mask, or it lacks files of an image that it names.
    """
    wanted = read_sample_files(sample, dialect, classes=classes).names
    asked = {dialect.split(name)[0] for name in wanted}
    labels = dialect.written(classes) if dialect.per_class else (0,)
    images = [image for name in names if (image := dialect.image_of(name)) in asked]
    _match_names([dialect.name_of(image, label) for image in images for label in labels], wanted, sample)


def _match_names(names: Collection[str], wanted: Sequence[str], sample: Path) -> None:
    for one, other, what in ((wanted, names, "files have no mask"), (names, wanted, "files are not in the sample")):
        there = frozenset(other)
        missing = [name for name in one if name not in there]
        if missing:
            raise DataError(
                f"{sample}: {len(missing)} {what}: {some(missing)}; predict those images too, or check --image-id and "
                "--classes"
            )


def _read_back(path: Path, temporary: Path, form: str, planes: Mapping[str, Plane]) -> None:
    found = {entry.name: remember(decode_plane(entry.data)) for entry in read_entries(temporary, form)}
    if found != planes:
        name = next(name for name in [*planes, *found] if found.get(name) != planes.get(name))
        raise OutputError(f"{path}: file {name} does not read back as its mask; try another disk")
