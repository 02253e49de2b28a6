"""What a person may name as an image: files, folders, lists of them, archives, and addresses on the web."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from visionapps.errors import DataError
from visionapps.files import list_files

# Photos are decoded as in training; everything else is left to GDAL.
_PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_LIST_SUFFIX = ".txt"
# How GDAL spells addresses.
_SCHEMES = {
    "http://": "/vsicurl/http://",
    "https://": "/vsicurl/https://",
    "ftp://": "/vsicurl/ftp://",
    "s3://": "/vsis3/",
    "gs://": "/vsigs/",
    "az://": "/vsiaz/",
}


@dataclass(frozen=True)
class Input:
    """One image to draw a map of.

    Attributes:
        name: a path, or GDAL's name of a virtual file (/vsizip/..., /vsicurl/...); what open_source takes.
        raster: GDAL reads it, and its map is a GeoTIFF; else it is a photo, and its map an index PNG.
    """

    name: str
    raster: bool

    @property
    def filename(self) -> str:
        """The file's name without folders and query."""
        return PurePosixPath(self.name.split("?")[0] if is_virtual(self.name) else self.name).name

    @property
    def stem(self) -> str:
        """The file's name without suffix, too: what outputs are called after."""
        return PurePosixPath(self.filename).stem

    @property
    def path(self) -> Path | None:
        """Where it lies on this machine; None for virtual files."""
        return None if is_virtual(self.name) else Path(self.name)


def list_inputs(texts: Sequence[str]) -> list[Input]:
    """The images that a person named, in the order given, folders sorted by name.

    Args:
        texts: each an image, a folder of images, a list (``@scenes.lst`` or any ``.txt``: one entry per line, relative
            to the list's folder, ``#`` begins a comment line), a virtual file of GDAL (``/vsizip/scenes.zip/a.tif``),
            or an address (``https://...``, ``s3://bucket/key``).

    Raises:
        DataError: a file or folder is missing, a folder has no images, a list is empty, unreadable or names itself.
    """
    return [image for text in texts for image in _expand(text, Path(), where="", lists=())]


def gdal_name(text: str) -> str:
    """An address as GDAL spells it; paths and names of virtual files stay as they are."""
    for scheme, prefix in _SCHEMES.items():
        if text.lower().startswith(scheme):
            return prefix + text[len(scheme) :]
    return text


def is_virtual(name: str) -> bool:
    """Whether a name is one of GDAL's virtual files, which only GDAL can open."""
    return name.startswith("/vsi")


def is_raster(image: Path | str) -> bool:
    """Whether an image is left to GDAL, which reads it by windows and knows where it lies.

    A photo beside which a world file stands (``.jgw``, ``.wld``, ...) lies somewhere, too, and is a raster.
    """
    name = gdal_name(str(image))
    if is_virtual(name):
        return True
    path = Path(name)
    suffix = path.suffix
    if suffix.lower() not in _PHOTO_SUFFIXES:
        return True
    worlds = (".wld", f"{suffix}w", f".{suffix[1]}{suffix[-1]}w")
    return any(path.with_suffix(world).is_file() for world in (*worlds, *map(str.upper, worlds)))


def _expand(text: str, folder: Path, *, where: str, lists: tuple[Path, ...]) -> Iterator[Input]:
    """The images that one entry names, relative to a folder; ``where`` says in which line of which list it stands."""
    name = gdal_name(text)
    if is_virtual(name):
        yield Input(name, raster=True)
        return
    path = folder / text.removeprefix("@")
    if text.startswith("@") or (path.suffix.lower() == _LIST_SUFFIX and path.is_file()):
        yield from _expand_list(path, where=where, lists=lists)
    elif path.is_dir():
        try:
            yield from (Input(str(image), is_raster(image)) for image in list_files(path))
        except DataError as error:
            raise DataError(f"{where}{error}") from error
    elif path.is_file():
        yield Input(str(path), is_raster(path))
    elif re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise DataError(f"{where}{text}: no address that can be read; known are {', '.join(_SCHEMES)}")
    else:
        raise DataError(f"{where}{path}: no such file or folder; check the path (relative to {Path.cwd()})")


def _expand_list(path: Path, *, where: str, lists: tuple[Path, ...]) -> Iterator[Input]:
    if path.resolve() in lists:
        raise DataError(f"{where}{path}: the list names itself; it must name images, folders or other lists")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise DataError(f"{where}{path}: no such list; check the path (relative to {Path.cwd()})") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise DataError(f"{where}{path}: cannot be read as a list ({reason}); expected one image per line") from error
    entries = [(number, text) for number, line in enumerate(lines, 1) if (text := line.strip()) and text[0] != "#"]
    if not entries:
        raise DataError(f"{where}{path}: the list is empty; one image, folder or list per line is expected")
    for number, text in entries:
        yield from _expand(text, path.parent, where=f"{path}: line {number}: ", lists=(*lists, path.resolve()))
