"""All the files of one scene, drawn together: bands in any order go in, whole files come out, or none.

Shapes: N product planes, H W raster, h W band.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from visionapps.errors import DataError, OutputError
from visionapps.files import output_error, refuse_existing
from visionapps.inference.geotiff import MapOptions
from visionapps.inference.inputs import Input
from visionapps.inference.journal import Journal, left_by_a_kill
from visionapps.inference.products import Band, Products
from visionapps.inference.sinks import Sink, mask_file, overlay_file, scores_file
from visionapps.inference.sources import Source
from visionapps.inference.vectors import VectorOptions, vector_file
from visionapps.structures import InputSpec, LabelSpace

_SIDE_FILES = (".aux.xml", ".ovr", ".msk")  # that GIS programs keep beside a raster; they belong to the old one


@dataclass(frozen=True)
class Job:
    """An image and the files to draw of it, all in one folder."""

    image: Input
    mask: Path | None  # .tif of a raster, .png of a photo
    overlay: Path | None  # .tif of a raster, .jpg of a photo
    scores: Path | None = None  # .tif
    vectors: Path | None = None  # .gpkg, .geojson, .fgb or .parquet

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The files that will be written."""
        return tuple(path for path in (self.mask, self.overlay, self.scores, self.vectors) if path)

    @property
    def journal(self) -> Path:
        """The folder of finished bands, the same whichever files are drawn of the image."""
        return self.outputs[0].with_name(f".{self.image.filename}.journal")

    def without_existing(self) -> "Job":
        """The files that are not there yet."""
        mask, overlay, scores, vectors = (
            None if path is None or path.exists() else path
            for path in (self.mask, self.overlay, self.scores, self.vectors)
        )
        return Job(self.image, mask, overlay, scores, vectors)

    def refuse_existing(self, overwrite: bool) -> None:
        """Raise OutputError when a file stands there already and may not be replaced, or a folder has its name.

        What a run has left that was killed while its files took their places may be.
        """
        leftover = left_by_a_kill(self.journal)
        for path in self.outputs:
            if path.is_dir():
                raise OutputError(f"{path}: is a folder, but the result is a file; choose another output")
            refuse_existing(path, overwrite or path.name in leftover)


@dataclass(frozen=True)
class Drawn:
    """What a map shows."""

    shape: tuple[int, int]  # (H, W)
    pixels: tuple[int, ...]  # of each class

    @property
    def valid(self) -> float:
        """Share of the pixels that have data."""
        return sum(self.pixels) / (self.shape[0] * self.shape[1])


class _AbandonedError(Exception):
    """Closes sinks as an error does."""


class Drawing:
    """The files of one scene in the making. A context manager: leaving it before ``finish`` abandons them.

    Files are written from top to bottom in one pass, so that their bytes depend neither on the order in which bands
    come nor on interruptions: a band that comes early waits on the disk. Calls may come from different threads, one
    after the other.
    """

    def __init__(
        self,
        job: Job,
        source: Source,
        *,
        labels: LabelSpace,
        spec: InputSpec,
        products: Products | None = None,
        identity: Mapping[str, Any] | None = None,
        options: MapOptions | None = None,
        vectors: VectorOptions | None = None,
    ) -> None:
        """
        Args:
            job: what is drawn where.
            source: gives size, georeference, and the picture of an overlay; stays open until the end.
            labels: names and colours.
            spec: which bands are red, green and blue.
            products: what the planes of the bands are; None: labels only.
            identity: everything that decides the pixels, as plain data for JSON: finished bands are then kept in a
                journal, and a later run of the same identity goes on from there. None: nothing is kept (a scene that
                is drawn in a moment).
            options: how pictures are written.
            vectors: how polygons are drawn.

        Raises:
            OutputError: a file exists already, another run draws the same scene, or a journal of other settings is
                in the way.
        """
        self._job, self._source = job, source
        self._labels, self._spec, self._products = labels, spec, products or Products()
        self._options, self._vectors = options or MapOptions(), vectors
        job.refuse_existing(self._options.overwrite)
        self._stack = ExitStack()
        self._sinks: list[Sink] | None = None  # opened by the first band that can be written
        self._staging: Path | None = None
        self._row = 0  # the next one to be written
        self._counts = np.zeros(256, np.int64)
        self._kept = identity is not None
        self._journal: Journal | None = None
        if identity is not None:
            self._journal = Journal(job.journal, identity, overwrite=self._options.overwrite)

    @property
    def missing(self) -> list[tuple[int, int]]:
        """[begin, end) of the rows that are still to be drawn; not all of them if an earlier run was interrupted."""
        height = self._source.shape[0]
        if self._journal is not None:
            return [(max(begin, self._row), end) for begin, end in self._journal.missing(height) if end > self._row]
        return [(self._row, height)] if self._row < height else []

    def add(self, band: Band) -> None:
        """Take a finished band; one that came before is left out.

        Raises:
            OutputError: the disk refuses it.
            DataError: the source of an overlay cannot be read.
        """
        row = band.window.row
        if self._journal is None and row > self._row:  # it has to wait somewhere
            self._journal = self._waiting_room()
        if self._journal is not None and (self._kept or row > self._row):
            self._journal.add(band)
        if row == self._row:
            self._write(band)
        self._write_waiting()

    def finish(self) -> Drawn:
        """Complete the files and put them in their places, all at once; the journal goes.

        Raises:
            OutputError: the disk refuses it.
            DataError: the scene has no valid pixel.
        """
        self._write_waiting()
        assert self._row == self._source.shape[0], f"{self._source.name}: rows {self.missing} have not been drawn"
        pixels = tuple(int(n) for n in self._counts[: len(self._labels)])
        if not sum(pixels):
            self._drop_journal()
            self.abandon()
            raise DataError(
                f"{self._source.name}: no valid pixel, all are nodata or masked; there is nothing to predict"
            )
        with self._final_names():
            self._stack.close()
            self._put_in_place()
        self._drop_journal()
        return Drawn(self._source.shape, pixels)

    def abandon(self) -> None:
        """Drop the files; the bands that are finished stay in the journal for the next run."""
        with suppress(_AbandonedError), self._stack:
            raise _AbandonedError
        if self._staging is not None:
            shutil.rmtree(self._staging, ignore_errors=True)
        if self._journal is not None:
            self._journal.close() if self._kept else self._journal.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.abandon()

    def _write_waiting(self) -> None:
        """Write the bands from the disk whose turn it is."""
        while self._journal is not None and self._row in self._journal:
            self._write(self._journal.read(self._row))

    def _write(self, band: Band) -> None:
        from PIL import Image

        with self._final_names():
            if self._sinks is None:
                self._sinks = [self._stack.enter_context(sink) for sink in self._files()]
            for sink in self._sinks:
                sink.write(band)
        # Pillow counts values of 8 bits four times as fast as numpy does.
        self._counts += np.array(Image.fromarray(band.planes[0]).histogram())
        self._row = band.window.row_end

    def _files(self) -> Iterator[AbstractContextManager[Sink]]:
        """Every file that is wanted, to be opened under its own name in the folder of unfinished ones."""
        job, source, options = self._job, self._source, self._options
        folder = self._stage()
        if job.mask:
            yield mask_file(folder / job.mask.name, source, self._labels, options=options)
        if job.overlay:
            yield overlay_file(folder / job.overlay.name, source, self._labels, spec=self._spec, options=options)
        if job.scores:
            yield scores_file(folder / job.scores.name, source, self._products.names(self._labels), options=options)
        if job.vectors:
            extras = self._products.extras
            # Quantities that are one plane each stand before the classes' probabilities.
            plane = 1 + extras.index("confidence") if "confidence" in extras else None
            path = folder / job.vectors.name
            yield vector_file(path, source, self._labels, options=self._vectors, confidence=plane)

    def _stage(self) -> Path:
        """Make the folder where files lie until all are complete."""
        if self._journal is not None and self._kept:
            self._staging = self._journal.folder / "files"
        else:
            self._staging = self._job.outputs[0].with_name(f".{self._job.image.filename}.part-{os.getpid()}")
        self._staging.mkdir(parents=True, exist_ok=True)
        return self._staging

    def _put_in_place(self) -> None:
        assert self._staging is not None
        folder = self._job.outputs[0].parent
        files = sorted(self._staging.iterdir())
        if self._journal is not None:
            self._journal.finishing([file.name for file in files])
        for path in self._job.outputs:
            if path.exists():
                for suffix in _SIDE_FILES:
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
        for file in files:  # the journal goes next: after a power cut the files must be there, and whole
            _sync(file)
            os.replace(file, folder / file.name)
        self._staging.rmdir()
        _sync(folder)

    def _drop_journal(self) -> None:
        if self._journal is None and self._job.journal.exists():  # an earlier run with other settings left it
            self._journal = self._waiting_room()
        if self._journal is not None:
            self._journal.remove()

    def _waiting_room(self) -> Journal:
        """A journal that no other run continues."""
        return Journal(self._job.journal, {"process": os.getpid()}, overwrite=True)

    @contextmanager
    def _final_names(self) -> Iterator[None]:
        """Let errors name files as the user knows them."""
        place = self._job.outputs[0]
        try:
            yield
        except OSError as error:
            raise output_error(place, error) from error
        except OutputError as error:
            text = str(error)
            if self._staging is not None:
                for path in self._job.outputs:
                    text = text.replace(str(self._staging / path.name), str(path))
            raise OutputError(text) from error


def _sync(path: Path) -> None:
    """Have a file or a folder's list of names on the disk, not only on its way there."""
    if os.name == "nt":  # there folders cannot be opened, and files only for writing
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
