"""Photos of objects into the store of decoded photos, and what shows only when pixels are read."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visionapps.data.images import Header, read_image
from visionapps.data.likeness import thumbnail
from visionapps.data.object_dataset import ObjectDataset
from visionapps.data.store import Entry, Finding, Store, photo_key
from visionapps.errors import DataError

_THREADS = 8  # decoders release the interpreter lock; more would only hold more photos in memory


@dataclass(frozen=True)
class PhotoIngest:
    """Puts photos without masks into a store, or finds them there.

    Attributes:
        dataset: what was asked for.
        store: where decoded photos are kept.
    """

    dataset: ObjectDataset
    store: Store

    def key(self, path: Path) -> str:
        """Under which a photo is stored."""
        return photo_key(path, None, {"bands": self.dataset.bands, "of": "objects"})

    def put(self, path: Path) -> Entry:
        """The entry of a photo, decoded now if it was not before.

        Returns:
            An entry; one without a folder cannot be read. That is not remembered: the cause may be the disk.

        Raises:
            OutputError: the cache cannot be written.
        """
        key = self.key(path)
        known = self.store.find(key)
        if known is not None:
            return known
        try:
            image = read_image(path, self.dataset.bands)
        except DataError as error:
            return Entry("", findings=(Finding("corrupt", str(error)),))
        likeness = tuple(np.round(thumbnail(image), 2).ravel().tolist())
        height, width, bands = image.shape
        return self.store.put(key, Entry("", height, width, bands, str(image.dtype), likeness=likeness), image)

    def put_all(self, headers: Mapping[str, Header], *, progress: bool) -> dict[str, Entry]:
        """The entries of all photos, by name.

        Args:
            headers: by name below the folder of images.
            progress: show a bar on stderr.

        Raises:
            ConfigError: the decoded photos do not fit into the cache.
            OutputError: the cache cannot be written.
        """
        from tqdm import tqdm

        root = Path(self.dataset.images)
        names = sorted(headers)
        paths = [root / name for name in names]
        self._make_room(paths, [headers[name] for name in names])
        pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
        try:
            jobs = pool.map(self.put, paths)
            quiet = None if progress else True  # None: silent where stderr is no terminal
            bar = tqdm(jobs, "reading photos", len(paths), unit="photo", disable=quiet, leave=False)
            return dict(zip(names, bar, strict=True))
        finally:
            pool.shutdown(cancel_futures=True)  # on Ctrl-C or a full disk nobody waits for the rest

    def _make_room(self, paths: Sequence[Path], headers: Sequence[Header]) -> None:
        keys = [self.key(path) for path in paths]
        needed = sum(
            header.height * header.width * header.bands * np.dtype(header.dtype).itemsize
            for key, header in zip(keys, headers, strict=True)
            if self.store.find(key) is None
        )
        if needed:
            self.store.make_room(needed, set(keys))


def blank_entry(header: Header) -> Entry:
    """What is known of a photo that was not decoded."""
    facts: dict[str, Any] = {name: getattr(header, name) for name in ("height", "width", "bands", "dtype")}
    return Entry("", **facts)
