"""What a model was trained on, in 272 bytes a photo: enough to know each of them again, and what looks like it.

A model's labels of photos that it learned from tell what it remembers, not what it knows. Shapes: N photos.
"""

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import numpy as np

from visionapps.data.likeness import SIDE, near_duplicates
from visionapps.data.store import Photo, digest, likeness
from visionapps.errors import DataError

DIGEST = 16  # bytes of a SHA-256 that are kept: two of 10^9 photos agree with a probability of 10^-21
_ROWS = 2000  # pictures compared with all others at a time: 80 MB for ten thousand photos


class Recognised(NamedTuple):
    """A photo that a model saw."""

    number: int  # among those asked about
    likeness: float | None  # of the closest photo that trained it; None: this very file did


@dataclass(frozen=True, eq=False)
class Seen:
    """The photos that trained a model.

    Attributes:
        digests: (N, DIGEST) uint8, of the contents of their files, all different, sorted.
        pictures: (N, SIDE * SIDE) uint8, small grey pictures of them; see visionapps.data.likeness.
    """

    digests: np.ndarray
    pictures: np.ndarray

    def __len__(self) -> int:
        return len(self.digests)

    @classmethod
    def of(cls, photos: Sequence[Photo]) -> "Seen":
        """What training on photos, or on blocks of photos, shows a model.

        Raises:
            DataError: a file has gone.
        """
        sources = {photo.source: photo for photo in photos}
        digests = [bytes.fromhex(digest(photo.folder)) or content(Path(name)) for name, photo in sources.items()]
        return cls.from_parts(digests, [_small(photo) for photo in sources.values()])

    @classmethod
    def from_parts(cls, digests: Sequence[bytes], pictures: Sequence[np.ndarray]) -> "Seen":
        """From the digests and (SIDE, SIDE) pictures of N photos; one that occurs twice is kept once."""
        unique = dict(zip(digests, pictures, strict=True))
        names = sorted(unique)
        small = [np.rint(np.clip(unique[name], 0, 255)).astype(np.uint8).ravel() for name in names]
        return cls(
            np.frombuffer(b"".join(names), np.uint8).reshape(-1, DIGEST),
            np.array(small, np.uint8).reshape(-1, SIDE * SIDE),
        )

    def joined(self, other: "Seen") -> "Seen":
        """What both saw."""
        digests = [row.tobytes() for row in (*self.digests, *other.digests)]
        return Seen.from_parts(digests, [*self.pictures, *other.pictures])

    def recognise(self, digests: Sequence[bytes | None], pictures: np.ndarray) -> list[Recognised]:
        """Which of some photos it knows.

        Args:
            digests: of M photos; None: not known.
            pictures: (M, SIDE, SIDE) of them, flat where there is none.

        Returns:
            Those of the same content, and those that look like a photo that it saw (turned or mirrored, too), in order.
        """
        known = {row.tobytes() for row in self.digests}
        same = {number for number, found in enumerate(digests) if found in known}
        ours = self.pictures.reshape(-1, SIDE, SIDE).astype(np.float32)
        alike: dict[int, float] = {}
        for begin in range(0, len(pictures), _ROWS):
            part = pictures[begin : begin + _ROWS]
            apart = np.zeros((len(part), len(ours)), bool)
            alike |= {begin + i: value for i, _, value in near_duplicates(part, ours, apart)}
        return [Recognised(n, None if n in same else alike[n]) for n in sorted(same | alike.keys())]

    def arrays(self) -> dict[str, np.ndarray]:
        """Plain arrays, from which ``from_arrays`` makes it again."""
        return {"digests": self.digests, "pictures": self.pictures}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], where: str) -> "Seen":
        """Back from plain arrays.

        Raises:
            DataError: they are of another kind; ``where`` says whose.
        """
        try:
            digests, pictures = arrays["digests"], arrays["pictures"]
        except KeyError as error:
            raise DataError(f"{where}: the list of training photos has no {error}; export the bundle anew") from error
        expected = {"digests": (len(digests), DIGEST), "pictures": (len(digests), SIDE * SIDE)}
        for name, array in (("digests", digests), ("pictures", pictures)):
            if array.shape != expected[name] or array.dtype != np.uint8:
                raise DataError(
                    f"{where}: {name} of training photos are {array.shape} {array.dtype}, expected {expected[name]} "
                    "uint8; export the bundle anew"
                )
        return cls(digests, pictures)

    def save(self, path: Path) -> None:
        """Write it as an archive of two arrays, without pickle."""
        with path.open("wb") as file:
            np.savez_compressed(file, digests=self.digests, pictures=self.pictures)

    @classmethod
    def load(cls, path: Path) -> "Seen":
        """Read what ``save`` wrote.

        Raises:
            DataError: the file is missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: damaged ({error}); export the bundle anew") from error
        return cls.from_arrays(arrays, str(path))


def joined(parts: Sequence[Seen | None]) -> Seen | None:
    """What several saw together; None where one of them does not know."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    return reduce(Seen.joined, known)


def content(path: Path) -> bytes:
    """The first DIGEST bytes of the SHA-256 of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()[:DIGEST]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def _small(photo: Photo) -> np.ndarray:
    values = likeness(photo.folder)
    return np.array(values or np.zeros(SIDE * SIDE), np.float32)
