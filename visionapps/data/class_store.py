"""Decoded photos of a classification dataset in one file, read through a memory map: small photos by the thousand
would be lost in folders of their own.

Every photo is decoded once, ever. What is remembered of each: where it lies, its size, a digest of its pixels, and a
small picture by which near-duplicates are found.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from visionapps.data.class_dataset import ClassDataset, decoded
from visionapps.data.class_listing import Listed
from visionapps.data.images import MissingBand, read_header
from visionapps.data.likeness import thumbnail
from visionapps.errors import ConfigError, DataError
from visionapps.files import whole_output

VERSION = 1  # of the layout: raise it, and old files are no longer found
PIXELS, INDEX = "pixels.bin", "index.json"
_THREADS = 8  # decoders release the interpreter lock; more would only hold more photos in memory
_AT_A_TIME = 256  # photos that may wait to be written
_FORMATS = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
}


@dataclass(frozen=True)
class Kept:
    """What is known of a photo without its pixels.

    Attributes:
        size: (H, W) as it is kept; (0, 0): it cannot be read, see error.
        bands: channels.
        dtype: of the pixels.
        offset: where they begin in the file, in bytes; -1: they are not kept.
        digest: of the pixels.
        likeness: small grey picture, row by row, rounded to whole numbers.
        error: why it cannot be read.
        missing_band: whether that is for want of a band.
        format: what the file holds, where its suffix says otherwise.
    """

    size: tuple[int, int] = (0, 0)
    bands: int = 0
    dtype: str = ""
    offset: int = -1
    digest: str = ""
    likeness: tuple[int, ...] = ()
    error: str = ""
    missing_band: bool = False
    format: str = ""


def keep_photos(dataset: ClassDataset, photos: Sequence[Listed], *, progress: bool = False) -> tuple[Path, list[Kept]]:
    """Decode all photos of a dataset, unless that was done before.

    Returns:
        The file of their pixels, and what is known of each, in order.

    Raises:
        ConfigError: they do not fit into cache_gb.
        OutputError: the disk is full or refuses.
    """
    folder = dataset.cache_folder() / f"classes-{_key(dataset, photos)}"
    index = folder / INDEX
    if index.is_file() and (folder / PIXELS).is_file():
        return folder / PIXELS, [_revived(row) for row in json.loads(index.read_text())]
    quiet = None if progress else True  # None: silent where stderr is no terminal
    bar = tqdm(total=len(photos), desc="reading photos", unit="photo", disable=quiet, leave=False)
    kept: list[Kept] = []
    offset = 0
    with whole_output(folder, overwrite=True) as part, bar:
        part.mkdir()
        with (part / PIXELS).open("wb") as file:
            for known, image in _decode_all(dataset, photos):
                bar.update()
                # Photos that share a file have none to be decoded from again.
                if image is not None and (dataset.keep_px is not None or photos[len(kept)].pixels is not None):
                    file.write(np.ascontiguousarray(image).data)
                    known = _placed(known, offset)
                    offset += image.nbytes
                    _require_room(dataset, folder, offset, len(kept) + 1, len(photos))
                kept.append(known)
        (part / INDEX).write_text(json.dumps([asdict(one) for one in kept]))
    return folder / PIXELS, kept


def _decode_all(dataset: ClassDataset, photos: Sequence[Listed]) -> Iterator[tuple[Kept, np.ndarray | None]]:
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        for start in range(0, len(photos), _AT_A_TIME):
            yield from pool.map(lambda photo: _decode(dataset, photo), photos[start : start + _AT_A_TIME])


def _decode(dataset: ClassDataset, photo: Listed) -> tuple[Kept, np.ndarray | None]:
    try:
        image = photo.pixels if photo.pixels is not None else decoded(photo.path, dataset.bands, dataset.keep_px)
        shape = image.shape[:2]
        if photo.pixels is None and dataset.keep_px is None:
            header = read_header(photo.path, dataset.bands)
            shape = (header.height, header.width)
    except DataError as error:
        return Kept(error=str(error), missing_band=isinstance(error, MissingBand)), None
    known = Kept(
        size=(shape[0], shape[1]),
        bands=image.shape[2],
        dtype=str(image.dtype),
        digest=hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()[:32] + f"-{shape[0]}x{shape[1]}",
        likeness=tuple(np.rint(thumbnail(image)).astype(int).ravel().tolist()),
        format="" if photo.pixels is not None else _other_format(photo.path),
    )
    return known, image


def _other_format(path: Path) -> str:
    """What a photo is, if its suffix says something else."""
    try:
        with Image.open(path) as photo:
            found = str(photo.format)
    except OSError:  # GDAL reads it, Pillow does not
        return ""
    return found if path.suffix.lower() not in _FORMATS.get(found, (path.suffix.lower(),)) else ""


def _require_room(dataset: ClassDataset, folder: Path, used: int, done: int, count: int) -> None:
    if used > dataset.cache_gb * 1e9:
        raise ConfigError(
            f"{folder.parent}: {done} of {count} decoded photos take {used / 1e9:.2f} GB, but cache_gb is "
            f"{dataset.cache_gb:g}; raise it, lower keep_px ({dataset.keep_px}), or set keep_px to null to decode "
            "photos for every look"
        )


def _placed(known: Kept, offset: int) -> Kept:
    return Kept(**{**asdict(known), "offset": offset})


def _revived(row: dict[str, Any]) -> Kept:
    return Kept(**row | {"size": (row["size"][0], row["size"][1]), "likeness": tuple(row["likeness"])})


def _key(dataset: ClassDataset, photos: Sequence[Listed]) -> str:
    """A name for what decoding these files with these settings gives; another when a file or a setting changes."""
    files = {path: path.stat() for path in dict.fromkeys(photo.path for photo in photos) if path.exists()}
    stamps = [(str(p.absolute()), s.st_size, s.st_mtime_ns) for p, s in files.items()]
    names = [photo.name for photo in photos]
    size = "whole" if any(photo.pixels is not None for photo in photos) else dataset.keep_px
    text = json.dumps([VERSION, stamps, names, dataset.bands, size])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
