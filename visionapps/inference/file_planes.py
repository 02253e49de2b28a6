"""Label maps as the values of mask files, files as values, and what files a competition asks for."""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visionapps.errors import DataError
from visionapps.inference.archives import read_entries
from visionapps.inference.dialects import Size
from visionapps.inference.file_dialects import FileDialect
from visionapps.inference.submission_rows import Places, check_mask, csv_lines
from visionapps.structures import IGNORE

_PIXEL_LIMIT = 2**31  # of one mask: headers of others may claim anything
_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "bmp": ("BMP", {}),
}


class Plane(NamedTuple):
    """What is remembered of the mask in a file."""

    size: Size
    digest: bytes
    filled: bool


class SampleFiles(NamedTuple):
    """The files that a competition asks for."""

    names: tuple[str, ...]
    sizes: dict[str, Size]  # by image, where the sample holds files


def planes_of(
    name: str, mask: NDArray[Any], *, dialect: FileDialect, written: Sequence[int], classes: int | None
) -> Iterator[tuple[str, Places]]:
    """The files of one image: their names and (h, w) values."""
    labels = check_mask(name, mask, {0, IGNORE, *written, *range(classes or 0)}, dialect.resize, dialect.nearest)
    image = dialect.image_of(name)
    if dialect.foreground is None:
        table = np.full(256, dialect.void, np.uint8)
        table[list(written)] = [dialect.value_of(label) for label in written]
        yield dialect.name_of(image), table[labels]
        return
    for group in [(label,) for label in written] if dialect.per_class else [written]:
        table = np.zeros(256, np.uint8)
        table[list(group)] = dialect.foreground
        yield dialect.name_of(image, group[0]), table[labels]


def size_of(plane: Places) -> Size:
    """(H, W)."""
    return plane.shape[0], plane.shape[1]


def remember(plane: Places) -> Plane:
    """What tells a mask from others."""
    return Plane(
        size_of(plane), hashlib.blake2b(np.ascontiguousarray(plane).data, digest_size=16).digest(), bool(plane.any())
    )


def encode_plane(plane: Places, dialect: FileDialect) -> bytes:
    """The bytes of a file, in the format of its suffix."""
    form, settings = _FORMATS[dialect.file.rpartition(".")[2].lower()]
    data = io.BytesIO()
    Image.fromarray(plane).save(data, form, **settings)
    return data.getvalue()


def decode_plane(data: bytes) -> Places:
    """(H, W) values of a file.

    Raises:
        DataError: it is no image of one channel of 8 bits, or broken.
    """
    with _open(data) as check, _open(data) as picture:
        if picture.mode not in ("L", "P"):
            raise DataError(f"holds {picture.mode} pixels, but one channel of 8 bits is expected")
        try:
            check.verify()  # to the very end, where a decoder would have stopped at the last pixel
            return np.asarray(picture)
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise DataError(f"is broken ({error})") from error


def _open(data: bytes) -> Image.Image:
    Image.MAX_IMAGE_PIXELS = None  # as in data.images: large masks are ordinary here; the limit below is ours
    try:
        picture = Image.open(io.BytesIO(data))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError("is no image that can be read") from error
    if picture.width * picture.height > _PIXEL_LIMIT:
        raise DataError(f"claims {picture.width} x {picture.height} px; no mask is as large")
    return picture


def read_sample_files(sample: Path, dialect: FileDialect, *, classes: int | None = None) -> SampleFiles:
    """What files a competition asks for: from an archive or folder of such files, or from a list.

    Args:
        sample: a folder, .zip, .tar or .tar.gz; a .csv, whose first column under its header holds the ids or the names
            of the files; or a .txt, the same without header.
        dialect: the rules.
        classes: labels of the model, the background included.

    Raises:
        DataError: it cannot be read, or a name is not that of a file in the dialect.
    """
    if sample.suffix.lower() in (".csv", ".txt"):
        names = [cells[0] for _, cells in csv_lines(sample)][sample.suffix.lower() == ".csv" :]  # without its header
        labels = dialect.written(classes) if dialect.per_class else (0,)
        # A name or an id: those of an image stand for all of its files.
        listed = [[n] if dialect.is_name(n) else [dialect.name_of(n, label) for label in labels] for n in names]
        return SampleFiles(_some_names(sample, dict.fromkeys(name for one in listed for name in one)), {})
    sizes: dict[str, Size] = {}
    names = []
    for entry in read_entries(sample):
        try:
            if entry.wrong:
                raise DataError(f"file {entry.name!r} {entry.wrong}")
            image, _ = dialect.split(entry.name)
            with _open(entry.data) as picture:
                sizes[image] = picture.height, picture.width
        except DataError as error:
            raise DataError(f"{sample}: {error}; give the competition's own sample, or another dialect") from error
        names.append(entry.name)
    return SampleFiles(_some_names(sample, names), sizes)


def _some_names(sample: Path, names: Iterable[str]) -> tuple[str, ...]:
    found = tuple(names)
    if not found:
        raise DataError(f"{sample}: holds no file and no id; give the competition's own sample")
    return found
