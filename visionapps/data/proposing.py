"""Proposals of whole folders: several images at a time, and what is finished survives an interruption."""

import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import numpy as np

from visionapps.data.images import image_size, read_image
from visionapps.data.proposals import Proposals, Size, read_proposals, write_proposals
from visionapps.data.selective_search import SelectiveSearch, selective_search
from visionapps.errors import DataError, OutputError
from visionapps.runtime import total_memory

_BYTES = 300  # of memory per pixel while an image is searched, measured
_CHUNK = 32  # images per file of finished ones: half a minute of work is the most that an interruption costs


def propose(
    images: Mapping[str, Path],
    out: Path,
    search: SelectiveSearch,
    *,
    workers: int | None = None,
    bands: tuple[int | str, ...] | None = None,
    overwrite: bool = False,
    progress: Callable[[int], object] = lambda count: None,
) -> Proposals:
    """Search images and write one file of proposals.

    While it works, finished images stand in a folder beside the file, ``<out>.parts``; started again after an
    interruption it goes on from there. The result does not depend on that, nor on the number of workers.

    Args:
        images: paths by name.
        out: file to write, .npz.
        search: mode and limits.
        workers: threads; None: as many as there are processors, fewer where images are so large that the memory would
            not suffice.
        bands: of the images, three or one.
        overwrite: replace the file.
        progress: called with the number of images finished since the last call.

    Raises:
        DataError: images cannot be read; the others are kept for the next try.
        OutputError: the file exists already, or cannot be written.
    """
    if out.exists() and not overwrite:
        raise OutputError(f"{out}: exists already; choose another output, or replace it with --overwrite")
    parts = out.with_name(f"{out.name}.parts")
    found = dict(_finished(parts, images, search))
    progress(len(found))
    failures: list[DataError] = []
    waiting = [name for name in sorted(images) if name not in found]
    chunk: dict[str, tuple[np.ndarray, Size]] = {}
    number = itertools.count(len(list(parts.glob("*.npz"))))
    for name, result in _searched(waiting, images, search, workers or _workers(images, waiting), bands):
        if isinstance(result, DataError):
            failures.append(result)
        else:
            chunk[name] = result
        if len(chunk) == _CHUNK or (chunk and len(found) + len(chunk) + len(failures) == len(images)):
            _write(parts / f"{next(number):06d}.npz", chunk, search)
            found |= chunk
            chunk = {}
        progress(1)
    if failures:
        raise DataError(
            f"{len(failures)} of {len(images)} images cannot be searched, the first: {failures[0]}; the proposals of "
            f"the others are kept in {parts} for the next try"
        )
    _write(out, found, search, overwrite=overwrite)
    shutil.rmtree(parts, ignore_errors=True)
    return read_proposals(out)


def _workers(images: Mapping[str, Path], names: Iterable[str]) -> int:
    """As many as there are processors and half of the memory suffices for."""
    largest = 1
    for name in names:
        with suppress(DataError):  # it is reported when it is searched
            height, width = image_size(images[name])
            largest = max(largest, height * width)
    room = total_memory() // 2 // (_BYTES * largest) if total_memory() else 1
    return max(1, min(os.cpu_count() or 1, room))


def _write(
    path: Path, found: Mapping[str, tuple[np.ndarray, Size]], search: SelectiveSearch, *, overwrite: bool = True
) -> None:
    boxes = {name: each[0] for name, each in found.items()}
    sizes = {name: each[1] for name, each in found.items()}
    write_proposals(path, boxes, sizes=sizes, method=search.method, overwrite=overwrite)


def _finished(
    parts: Path, images: Mapping[str, Path], search: SelectiveSearch
) -> Iterator[tuple[str, tuple[np.ndarray, Size]]]:
    """What an interrupted run has left, as far as it searched for the same; images changed since are searched again."""
    for path in sorted(parts.glob("*.npz")):
        part = read_proposals(path)
        if part.method != search.method:
            raise OutputError(
                f"{parts}: holds what a run that searched otherwise ({part.method}) has left; remove the folder, or "
                "search as before"
            )
        written = path.stat().st_mtime
        for name, (height, width) in zip(part.names, part.sizes.tolist(), strict=True):
            if name in images and images[name].exists() and images[name].stat().st_mtime < written:
                yield name, (part.of(name), (height, width))


def _searched(
    names: Iterable[str],
    images: Mapping[str, Path],
    search: SelectiveSearch,
    workers: int,
    bands: tuple[int | str, ...] | None,
) -> Iterator[tuple[str, tuple[np.ndarray, Size] | DataError]]:
    """Results as they come, of a bounded number of images at a time. Threads: the search holds no interpreter lock."""

    def one(name: str) -> tuple[np.ndarray, Size] | DataError:
        try:
            image = read_image(images[name], bands)
            return selective_search(image, search), (image.shape[0], image.shape[1])
        except DataError as error:
            return error

    waiting = iter(names)
    pool = ThreadPoolExecutor(workers)
    try:
        running: dict[Future[tuple[np.ndarray, Size] | DataError], str] = {}
        while True:
            for name in itertools.islice(waiting, 2 * workers - len(running)):
                running[pool.submit(one, name)] = name
            if not running:
                return
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(done), done.result()
    finally:
        pool.shutdown(cancel_futures=True)
