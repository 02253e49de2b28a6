"""The test images that a sample submission asks for: found among the inputs of a notebook, held against its ids."""

import hashlib
import os
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from visionapps.data.images import image_size
from visionapps.errors import ConfigError, DataError
from visionapps.files import IMAGE_SUFFIXES
from visionapps.inference.dialects import Dialect, Size
from visionapps.inference.file_dialects import FileDialect
from visionapps.inference.file_submission import read_sample_files
from visionapps.inference.submission_check import read_sample, some

Rules = Dialect | FileDialect
_DEEP = 5  # folders below a root that are looked into: a home folder may have no end


def asked_ids(sample: Path, rules: Rules, classes: int) -> tuple[str, ...]:
    """The ids of the images that a sample submission asks for, each once, in its order.

    Raises:
        ConfigError: it is of another dialect.
        DataError: it cannot be read, or asks for nothing.
    """
    if isinstance(rules, Dialect):
        return tuple(dict.fromkeys(rules.split_key(key)[0] for key in read_sample(sample, rules).keys))
    names = read_sample_files(sample, rules, classes=classes).names
    return tuple(dict.fromkeys(rules.split(name)[0] for name in names))


def find_images(
    wanted: Sequence[str],
    rules: Rules,
    *,
    folder: Path | None = None,
    roots: Sequence[Path] = (),
    without: Collection[Path] = (),
) -> dict[str, Path]:
    """The image of every id.

    Args:
        wanted: ids.
        rules: find ids in names of files.
        folder: of the images; None: the one below the roots that has them all.
        roots: where to look.
        without: folders that are not looked into.

    Returns:
        Files by id, in the order of the ids; other images of the folder are left out.

    Raises:
        DataError: images are missing, or two have one id.
        ConfigError: several folders have them all.
    """
    if folder is not None:
        return _all_of(wanted, _image_files(folder), rules, folder)
    asked = frozenset(wanted)
    best: tuple[int, Path | None] = 0, None
    whole: list[Path] = []
    for place in _folders(roots, without):
        count = len(asked & _ids(_image_files(place), rules).keys())
        best = max(best, (count, place if count else None), key=lambda item: (item[0], _is_test(item[1])))
        whole += [place] if count == len(asked) else []
    named = [place for place in whole if _is_test(place)]
    chosen = named if len(named) == 1 else whole
    if len(chosen) > 1:
        raise ConfigError(
            f"several folders hold all {len(asked)} images that the sample asks for: "
            f"{', '.join(map(str, chosen[:4]))}; say which one with --images"
        )
    if chosen:
        return _all_of(wanted, _image_files(chosen[0]), rules, chosen[0])
    if best[1] is None:
        raise DataError(
            f"no image of the {len(asked)} that the sample asks for ({some(list(wanted))}) lies below "
            f"{', '.join(map(str, roots)) or 'any folder'}; say where with --images, and hold the dialect's image_id "
            "against the names of the files"
        )
    return _all_of(wanted, _image_files(best[1]), rules, best[1])


def find_sample(
    name: str, roots: Sequence[Path], *, folder: bool = False, without: Collection[Path] = ()
) -> Path | None:
    """The sample submission of that name among the inputs: where test sets are hidden, it is another than was packed.

    Args:
        name: of the file or folder.
        roots: where to look.
        folder: it is a folder of mask files.
        without: folders that are not looked into, and files that are passed over.

    Returns:
        None where there is none.

    Raises:
        ConfigError: there are several that differ.
    """
    hidden = {path.resolve() for path in without}
    there = (path / name for path, names in _walk(roots, without) if name in names)
    found = [path for path in there if (path.is_dir() if folder else path.is_file()) and path.resolve() not in hidden]
    if len(found) > 1 and len({_contents(path) for path in found}) > 1:
        raise ConfigError(
            f"several {'folders' if folder else 'files'} are called {name}, and they differ: "
            f"{', '.join(map(str, found[:4]))}; say which one with --sample"
        )
    return found[0] if found else None


def _contents(path: Path) -> frozenset[tuple[str, bytes]]:
    """What tells files, or folders with all that they hold, apart."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return frozenset((file.relative_to(path).as_posix(), hashlib.sha256(file.read_bytes()).digest()) for file in files)


def sizes_of(files: Mapping[str, Path]) -> tuple[dict[str, Size], dict[str, str]]:
    """(H, W) of images by id, from their headers; where one cannot be read, the size that most others have.

    Returns:
        Sizes in the order of the files, and by id why a header cannot be read.

    Raises:
        DataError: none can be read.
    """
    known: dict[str, Size] = {}
    errors: dict[str, DataError] = {}
    for image, path in files.items():
        try:
            known[image] = image_size(path)
        except DataError as error:
            errors[image] = error
    if not known:
        raise next(iter(errors.values()))
    usual = Counter(known.values()).most_common(1)[0][0]
    return {image: known.get(image, usual) for image in files}, {
        image: " ".join(str(error).split()) for image, error in errors.items()
    }


def _all_of(wanted: Sequence[str], files: Sequence[Path], rules: Rules, folder: Path) -> dict[str, Path]:
    found = _ids(files, rules)
    missing = [image for image in wanted if image not in found]
    if missing:
        names = ", ".join(path.name for path in files[:3]) or "none"
        raise DataError(
            f"{folder}: {len(missing)} of the {len(wanted)} images that the sample asks for are missing: "
            f"{some(missing)}; the files there are {names}{', ...' if len(files) > 3 else ''}: give the right folder "
            "with --images, the right sample, or another image_id in the dialect"
        )
    twice = [image for image in wanted if len(found[image]) > 1]
    if twice:
        names = ", ".join(path.name for path in found[twice[0]])
        raise DataError(f"{folder}: {names} have one id, {twice[0]}; keep one of them, or mend image_id in the dialect")
    return {image: found[image][0] for image in wanted}


def _ids(files: Iterable[Path], rules: Rules) -> dict[str, list[Path]]:
    """Files by their ids; those without one are none of the competition's."""
    found: dict[str, list[Path]] = {}
    for path in files:
        try:
            found.setdefault(rules.image_of(path.stem), []).append(path)
        except DataError:
            continue
    return found


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images; check --images")
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def _is_test(folder: Path | None) -> bool:
    """By its name."""
    return folder is not None and "test" in folder.name.lower()


def _folders(roots: Sequence[Path], without: Collection[Path]) -> Iterator[Path]:
    """Folders with images."""
    for path, files in _walk(roots, without):
        if any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in files):
            yield path


def _walk(roots: Sequence[Path], without: Collection[Path]) -> Iterator[tuple[Path, list[str]]]:
    """All folders below and the names in them, each once, the nearest first.

    Linked folders are followed, for inputs of notebooks may be links, but none to what a root lies in, as circles do.
    """
    seen = {path.resolve() for path in without}
    above = {path for root in roots for path in root.resolve().parents}
    waiting = deque((root, _DEEP) for root in roots)
    while waiting:
        place, deep = waiting.popleft()
        real = place.resolve()
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError:  # what may not be read is none of the inputs
            continue
        yield place, [entry.name for entry in entries]
        folders = [Path(entry) for entry in entries if deep and not entry.name.startswith(".") and _is_folder(entry)]
        waiting += [(path, deep - 1) for path in folders if not (path.is_symlink() and path.resolve() in above)]


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
