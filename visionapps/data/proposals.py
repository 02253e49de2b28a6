"""Files of object proposals: boxes that may hold something, made once, for detectors that do not make their own.

A file is an .npz without pickle that numpy alone can write and read: ``format`` () int, ``method`` () text, ``names``
(n,) text, ``sizes`` (n, 2) H and W, ``counts`` (n,), ``boxes`` (T, 4) float32 of all images one after the other, best
first within each image, ``scores`` (T,) float32 or absent, ``fingerprint`` () text. Shapes: n images, P proposals of
one image, T of all.
"""

import hashlib
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visionapps.errors import DataError
from visionapps.files import whole_output

FORMAT = 1  # raise it when an older reader would misread the file
_CHUNK = 1 << 18  # boxes that are checked at a time: the comparisons stay in the cache
_ROUNDING = 0.01  # px; float32 holds 30,000 to within 0.002
_BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError)
Size = tuple[int, int]  # H, W


@dataclass(frozen=True, eq=False)
class Proposals:
    """The proposals of many images. The boxes stay in the file until they are asked for.

    Attributes:
        names: (n,) of the images: paths below the folder of images, with suffix.
        sizes: (n, 2) int64, H and W.
        begins: (n + 1,) int64; image i has the rows from begins[i] to begins[i + 1].
        boxes: (T, 4) float32, x0 y0 x1 y1 in pixels, half-open, best first within an image.
        scores: (T,) float32; None: the order says it all.
        method: how they were made, in words.
        source: the file.
    """

    names: tuple[str, ...]
    sizes: np.ndarray
    begins: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray | None = None
    method: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_places", {name: i for i, name in enumerate(self.names)})

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    @property
    def _index(self) -> dict[str, int]:
        places: dict[str, int] = self.__dict__["_places"]
        return places

    @property
    def fingerprint(self) -> str:
        """What tells one set of images from another: a digest of names and sizes, whatever their order."""
        return fingerprint({name: (int(h), int(w)) for name, (h, w) in zip(self.names, self.sizes, strict=True)})

    def of(self, name: str, most: int | None = None) -> np.ndarray:
        """The proposals of an image.

        Args:
            name: path below the folder of images, with suffix.
            most: only the best so many.

        Returns:
            (P, 4) float32, best first.

        Raises:
            DataError: the file does not know the image.
        """
        rows = self._rows(name)
        return np.array(self.boxes[rows][:most], np.float32)  # a copy: the file may be closed or replaced

    def scores_of(self, name: str, most: int | None = None) -> np.ndarray | None:
        """(P,) float32 scores that belong to ``of``; None where the file has none.

        Raises:
            DataError: the file does not know the image.
        """
        rows = self._rows(name)
        return None if self.scores is None else np.array(self.scores[rows][:most], np.float32)

    def require(self, sizes: Mapping[str, Size]) -> None:
        """Refuse to serve a dataset that the file was not made for. More images than asked for are welcome.

        Args:
            sizes: (H, W) of every image of the dataset by name.

        Raises:
            DataError: images are missing in the file, or have another size there.
        """
        missing = [name for name in sizes if name not in self]
        if missing:
            raise DataError(
                f"{self.source}: has no proposals for {len(missing)} of the {len(sizes)} images "
                f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}); it holds {len(self)} images"
                f"{f' such as {self.names[0]}' if self.names else ''} and belongs to another dataset: make proposals "
                "for this one with `visionapps proposals`"
            )
        for name, (height, width) in sizes.items():
            h, w = self.sizes[self._index[name]].tolist()
            if (h, w) != (height, width):
                raise DataError(
                    f"{self.source}: the proposals of {name} are for an image of {h}x{w} (HxW), but the dataset's has "
                    f"{height}x{width}; the images were changed since: make the proposals again"
                )

    def _rows(self, name: str) -> slice:
        if name not in self:
            raise DataError(
                f"{self.source}: has no proposals for {name}; it holds {len(self)} images"
                f"{f' such as {self.names[0]}' if self.names else ''}; was it made for another dataset?"
            )
        place = self._index[name]
        return slice(int(self.begins[place]), int(self.begins[place + 1]))


def fingerprint(sizes: Mapping[str, Size]) -> str:
    """A digest of a set of images, by name and size: equal for equal sets, whatever their order."""
    lines = (f"{name}\t{height}\t{width}\n" for name, (height, width) in sorted(sizes.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_proposals(
    path: Path,
    by_image: Mapping[str, np.ndarray],
    scores: Mapping[str, np.ndarray] | None = None,
    *,
    sizes: Mapping[str, Size],
    method: str = "",
    overwrite: bool = False,
) -> None:
    """Write proposals whole or not at all.

    Args:
        path: the file; its suffix must be .npz.
        by_image: (P, 4) boxes of every image by name, x0 y0 x1 y1 in pixels, half-open, best first.
        scores: (P,) of every image by name, falling.
        sizes: (H, W) of every image by name.
        method: how they were made, in words; for people.
        overwrite: replace the file.

    Raises:
        DataError: a box is not finite, empty, inverted or outside of its image, or numbers do not match.
        OutputError: the file exists already, or cannot be written.
    """
    if path.suffix != ".npz":
        raise DataError(f"{path}: proposals are kept in .npz files; choose a name that ends so")
    names = sorted(by_image)
    unknown = [name for name in names if name not in sizes or (scores is not None and name not in scores)]
    if unknown:
        raise DataError(f"{path}: sizes or scores of {unknown[0]} and {len(unknown) - 1} more are missing; give all")
    parts = [np.asarray(by_image[name], np.float32).reshape(-1, 4) for name in names]
    arrays: dict[str, Any] = {
        "format": np.int64(FORMAT),
        "method": np.str_(method),
        "names": np.array(names, np.str_),
        "sizes": np.array([sizes[name] for name in names], np.int64).reshape(-1, 2),
        "counts": np.array([len(part) for part in parts], np.int64),
        "boxes": np.concatenate([np.zeros((0, 4), np.float32), *parts]),
        "fingerprint": np.str_(fingerprint({name: sizes[name] for name in names})),
    }
    if scores is not None:
        flat = [np.asarray(scores[name], np.float32).reshape(-1) for name in names]
        arrays["scores"] = np.concatenate([np.zeros(0, np.float32), *flat])
        for name, part, values in zip(names, parts, flat, strict=True):
            if len(part) != len(values):
                raise DataError(f"{path}: {name} has {len(part)} boxes, but {len(values)} scores; give one per box")
    _assembled(arrays, path)
    with whole_output(path, overwrite) as part_path:
        np.savez(part_path, **arrays)  # not compressed: readers map the boxes into memory


def read_proposals(path: Path) -> Proposals:
    """Open a file of proposals. The boxes are checked once and stay in the file: 5,000 images cost little memory.

    Args:
        path: as write_proposals wrote it, or any .npz of the same arrays.

    Raises:
        DataError: the file is missing, damaged, of another kind or version, or holds boxes that are not finite, empty,
            inverted, or outside of their image.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file of proposals; `visionapps proposals` makes one")
    try:
        arrays = _arrays(path)
        version = int(arrays["format"]) if "format" in arrays else None
    except _BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be read as proposals ({reason}); make the file again") from error
    if version != FORMAT:
        found = "no format number" if version is None else f"format {version}"
        raise DataError(f"{path}: has {found}, but format {FORMAT} of proposals is expected; make the file again")
    return _assembled(arrays, path)


def _assembled(arrays: Mapping[str, Any], path: Path) -> Proposals:
    """The proposals of the arrays of a file, checked."""
    wanted = {"names": ("U", 1), "sizes": ("iu", 2), "counts": ("iu", 1), "boxes": ("f", 2)}
    for key, (kinds, dims) in wanted.items():
        if key not in arrays or arrays[key].dtype.kind not in kinds or arrays[key].ndim != dims:
            found = f"{arrays[key].dtype} of shape {arrays[key].shape}" if key in arrays else "nothing"
            raise DataError(f"{path}: has {found} under {key!r}; see visionapps.data.proposals for what is expected")
    names, sizes, counts = arrays["names"], arrays["sizes"].astype(np.int64), arrays["counts"].astype(np.int64)
    boxes, scores = arrays["boxes"], arrays.get("scores")
    total = int(counts.sum())
    shapes = {"sizes": (len(names), 2), "counts": (len(names),), "boxes": (total, 4), "scores": (total,)}
    for key, shape in shapes.items():
        if key in arrays and arrays[key].shape != shape:
            raise DataError(
                f"{path}: {key} has the shape {arrays[key].shape}, not {shape}; the file contradicts itself"
            )
    if len(set(names.tolist())) != len(names) or (counts < 0).any() or (sizes < 1).any():
        raise DataError(f"{path}: names an image twice, or has a negative count or an empty image; make it again")
    begins = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    method = str(arrays["method"]) if "method" in arrays else ""
    proposals = Proposals(tuple(names.tolist()), sizes, begins, boxes, scores, method, str(path))
    if "fingerprint" in arrays and str(arrays["fingerprint"]) != proposals.fingerprint:
        raise DataError(f"{path}: its names and sizes do not belong to its fingerprint; the file was changed by hand")
    _check_boxes(proposals, path)
    return proposals


def _check_boxes(proposals: Proposals, path: Path) -> None:
    """Go over all boxes once."""
    counts = np.diff(proposals.begins)
    for first in range(0, len(proposals.boxes), _CHUNK):
        boxes = np.asarray(proposals.boxes[first : first + _CHUNK])
        begin = np.searchsorted(proposals.begins, first, side="right") - 1
        end = np.searchsorted(proposals.begins, first + len(boxes), side="left")
        image = np.repeat(np.arange(begin, end), counts[begin:end])[first - proposals.begins[begin] :][: len(boxes)]
        height, width = proposals.sizes[image].T + _ROUNDING
        x0, y0, x1, y1 = boxes.T
        # NaN compares false with everything, so it is caught as well
        good = (x0 >= -_ROUNDING) & (y0 >= -_ROUNDING) & (x1 > x0) & (y1 > y0) & (x1 <= width) & (y1 <= height)
        if not good.all():
            place = int(np.flatnonzero(~good)[0])
            name, (h, w) = proposals.names[image[place]], proposals.sizes[image[place]].tolist()
            row = first + place - int(proposals.begins[image[place]])
            box = ", ".join(f"{v:g}" for v in boxes[place])
            raise DataError(
                f"{path}: box {row} of {name} is ({box}), but x0 < x1 and y0 < y1 inside an image of {h}x{w} (HxW) are "
                "expected; boxes are x0 y0 x1 y1 in pixels: were width and height written, or is the image another?"
            )
    scores = proposals.scores
    if scores is not None and not np.isfinite(scores).all():
        raise DataError(f"{path}: score {int(np.flatnonzero(~np.isfinite(scores))[0])} is not finite; mend the file")


def _arrays(path: Path) -> dict[str, Any]:
    """The arrays of an .npz: members that are not compressed are mapped, the others are read."""
    loaded = np.load(path, allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise ValueError("it is a single array")
    with loaded as archive:
        names = [name for name in archive.files if name not in ("boxes", "scores")]
        arrays: dict[str, Any] = {name: archive[name] for name in names}
        for name in ("boxes", "scores"):
            if name in archive.files:
                mapped = _mapped(path, f"{name}.npy")
                arrays[name] = archive[name] if mapped is None else mapped
    return arrays


def _mapped(path: Path, member: str) -> np.ndarray | None:
    """A member of an .npz as a memory map; None where that is not possible."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        info = archive.getinfo(member)
        if info.compress_type != zipfile.ZIP_STORED:
            return None
        file.seek(info.header_offset + 26)  # of the local header: the lengths of name and extra field follow
        name, extra = np.frombuffer(file.read(4), "<u2").tolist()
        file.seek(name + extra, os.SEEK_CUR)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which are never read")
        if not np.prod(shape):
            return np.zeros(shape, dtype)
        order = "F" if fortran else "C"
        return np.memmap(path, dtype, "r", file.tell(), shape, order)  # type: ignore[call-overload,no-any-return]
