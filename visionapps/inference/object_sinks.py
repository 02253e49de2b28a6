"""Where the objects of images go: files of all images together, and files of each image.

Shapes: N objects, H W image.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from visionapps.data.annotations import AnnotatedImage
from visionapps.data.coco_files import load_json
from visionapps.data.label_folders import FOLDERS, label_files, refuse_foreign, refuse_other_classes
from visionapps.data.object_dataset import Form
from visionapps.data.object_writers import write_detections
from visionapps.errors import ConfigError, DataError, OutputError
from visionapps.files import refuse_existing, whole_output
from visionapps.inference.detecting import resized
from visionapps.inference.inputs import Input
from visionapps.inference.object_vectors import write_object_layer
from visionapps.inference.resample import ResampledSource
from visionapps.inference.sources import Source
from visionapps.objects import Objects
from visionapps.structures import Color, InputSpec, LabelSpace
from visionapps.windows import Window

ObjectForm = Literal["coco", "yolo", "voc", "csv", "gpkg", "geojson", "fgb"]
_TOGETHER: dict[str, str] = {"coco": "detections.json", "csv": "detections.csv", "yolo": "yolo", "voc": "voc"}
_IMAGES = "images.json"  # what the numbers of images and classes in detections.json mean
_VECTORS = ("gpkg", "geojson", "fgb")
_LARGEST = 4096  # pixels of an overlay's longer side


@dataclass(frozen=True)
class ObjectFiles:
    """Which files a run writes into a folder.

    Attributes:
        folder: where they go.
        forms: detections.json and images.json (COCO results), detections.csv, folders yolo and voc; and for each image
            NAME.gpkg, NAME.geojson, NAME.fgb.
        overlay: whether to draw boxes on a picture of each image, NAME_overlay.png.
        overwrite: replace what is there.
    """

    folder: Path
    forms: tuple[ObjectForm, ...]
    overlay: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        unknown = [form for form in self.forms if form not in get_args(ObjectForm)]
        if unknown:
            raise ConfigError(f"form {unknown[0]!r}: not known; use {', '.join(get_args(ObjectForm))}")

    @property
    def together(self) -> dict[Form, Path]:
        """The files and folders that hold all images."""
        return {form: self.folder / _TOGETHER[form] for form in self.forms if form in _TOGETHER}  # type: ignore[misc]

    @property
    def images(self) -> Path | None:
        """The file that says what the numbers in COCO results mean."""
        return self.folder / _IMAGES if "coco" in self.forms else None

    def of_image(self, image: Input) -> tuple[Path, ...]:
        """The files of one image."""
        names = [f"{image.stem}.{form}" for form in self.forms if form in _VECTORS]
        return tuple(self.folder / name for name in [*names, *([f"{image.stem}_overlay.png"] if self.overlay else [])])

    def refuse_existing(self, inputs: Sequence[Input]) -> None:
        """Raise what would go wrong at the end of a long run.

        Raises:
            OutputError: a file is there already, or a folder would be replaced that holds files of something else.
            ConfigError: two images would be written to one file, or an image would be overwritten.
            DataError: two images would share a label file.
        """
        originals = {image.path.resolve() for image in inputs if image.path}
        takers: dict[Path, str] = {}
        for image in inputs:
            for path in self.of_image(image):
                if path in takers:
                    raise ConfigError(
                        f"{path}: both {takers[path]} and {image.name} would be drawn to it; predict them separately"
                    )
                takers[path] = image.name
        for path in [*self.together.values(), *([self.images] if self.images else []), *takers]:
            if path.resolve() in originals:
                raise ConfigError(f"{path}: is an input itself and would be overwritten; choose another --out")
            refuse_existing(path, self.overwrite)
            if path.is_dir() and path.suffix:
                raise OutputError(f"{path}: is a folder, but the result is a file; choose another --out")
        for form, path in self.together.items():
            if form in FOLDERS:
                refuse_foreign(path, form, set(label_files(image_names(inputs), form)))


class Entry(NamedTuple):
    """An image of a run."""

    image: Input
    name: str  # in annotation files
    number: int  # likewise


def image_names(inputs: Sequence[Input]) -> list[str]:
    """What each image is called in annotation files: its path below the folder that all have in common."""
    parents = {image.path.parent.resolve() for image in inputs if image.path}
    if len(parents) <= 1 and len({image.filename for image in inputs}) == len(inputs):
        return [image.filename for image in inputs]
    paths = [image.path.resolve() if image.path else Path("/", image.name) for image in inputs]
    parts = [path.relative_to(path.anchor).parts for path in paths]
    folders = [len(set(level)) == 1 for level in zip(*(each[:-1] for each in parts), strict=False)]
    shared = (*folders, False).index(False)
    names = ["/".join(each[shared:]) for each in parts]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{twice}: was named twice among the images; name it once")
    return names


def image_numbers(names: Sequence[str], like: Path | None) -> list[int]:
    """The number of each image in COCO files.

    Args:
        names: see image_names.
        like: a COCO file whose numbers are taken, by file name; None: counted from 1.

    Raises:
        DataError: it cannot be read, lacks an image, or has one number for two.
    """
    if like is None:
        return list(range(1, len(names) + 1))
    data = load_json(like)
    listed = data.get("images") if isinstance(data, Mapping) else None
    try:
        known = {str(entry["file_name"]): int(entry["id"]) for entry in listed or ()}
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(f"{like}: has images without file_name and whole id ({error!r}); give a COCO file") from error
    by_end: dict[str, list[int]] = {}
    for name, number in known.items():
        by_end.setdefault(name.rsplit("/", 1)[-1], []).append(number)
    numbers: list[int | None] = []
    for name in names:
        alike = by_end.get(name.rsplit("/", 1)[-1], [])
        if name not in known and len(alike) > 1:
            raise DataError(f"{like}: lists several images called {name}; predict the folder that holds all of them")
        numbers.append(known.get(name, alike[0] if alike else None))
    missing = [name for name, number in zip(names, numbers, strict=True) if number is None]
    if missing:
        raise DataError(
            f"{like}: does not list {missing[0]}{f' and {len(missing) - 1} more images' if missing[1:] else ''}; give "
            "the COCO file of these images"
        )
    given = [number for number in numbers if number is not None]
    takers: dict[int, str] = {}
    for name, number in zip(names, given, strict=True):
        if takers.setdefault(number, name) != name:
            raise DataError(
                f"{like}: {takers[number]} and {name} would both have the number {number}, and what is found in them "
                "could not be told apart; number them apart there"
            )
    return given


@dataclass
class ObjectWriter:
    """Takes the objects of images one by one, and writes what holds all images at the end.

    Attributes:
        files: which.
        labels: the label space.
        spec: scale and bands of the images, for pictures of them.
        category_ids: (K,) numbers of the classes in COCO files and CSV; None: from 1.
        names: of all images of the run, those too that will fail: their earlier files are replaced.
        taken: what has come so far.
        lost: what forms could not express, and how many objects had it.
    """

    files: ObjectFiles
    labels: LabelSpace
    spec: InputSpec
    category_ids: tuple[int, ...] | None = None
    names: Sequence[str] = ()
    taken: list[AnnotatedImage] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for form, path in self.files.together.items():
            refuse_other_classes(path, form, self.labels.names)

    def take(self, entry: Entry, objects: Objects, source: Source, *, size: tuple[int, int]) -> None:
        """Write the files of one image.

        Args:
            entry: which image.
            objects: in pixels of the source.
            source: as it was read.
            size: (H, W) of the image's file, in whose pixels annotation files are written; the source has another one
                where its ground resolution was changed.

        Raises:
            OutputError: the disk refuses a file.
            DataError: the image lies nowhere that vectors can be drawn.
        """
        for path in self.files.of_image(entry.image):
            if path.suffix == ".png":
                write_overlay(path, objects, source, self.labels, self.spec, overwrite=self.files.overwrite)
            else:
                names, overwrite = self.labels.names, self.files.overwrite
                write_object_layer(path, objects, source, names, image=entry.name, overwrite=overwrite)
        own = objects if size == source.shape else resized(objects, source.shape, size)
        self.taken.append(AnnotatedImage(entry.name, entry.number, size, own))

    def finish(self) -> None:
        """Write the files of all images, in the order in which they came."""
        files = self.files
        for form, path in files.together.items():
            numbers = self.category_ids
            lost = write_detections(
                path, form, self.taken, self.labels, numbers, overwrite=files.overwrite, replacing=self.names
            )
            self.lost |= {f"{form}: {what}": times for what, times in lost.items()}
        if files.images:
            with whole_output(files.images, files.overwrite) as part:
                part.write_text(json.dumps(self._contents(), indent=1) + "\n", encoding="utf-8")

    def _contents(self) -> dict[str, object]:
        numbers = self.category_ids or range(1, len(self.labels) + 1)
        images = [
            {"id": image.image_id, "file_name": image.name, "height": image.size[0], "width": image.size[1]}
            for image in self.taken
        ]
        categories = [{"id": n, "name": name} for n, name in zip(numbers, self.labels.names, strict=True)]
        return {"images": images, "categories": categories}


def write_overlay(
    path: Path, objects: Objects, source: Source, labels: LabelSpace, spec: InputSpec, *, overwrite: bool = False
) -> None:
    """A picture of an image with its boxes, class names and scores; large images are shrunk to 4096 px.

    Args:
        path: .png.
        objects: in pixels of the source.
        source: what to show.
        labels: names and colours.
        spec: which bands are red, green and blue, and which raw value is white.
        overwrite: replace an existing file.

    Raises:
        OutputError: the file exists already, or the disk refuses it.
    """
    from PIL import Image, ImageDraw

    step = max(1.0, max(source.shape) / _LARGEST)
    small = ResampledSource(source, (step, step)) if step > 1 else source
    picture = Image.fromarray(_shown(small, spec))
    pen = ImageDraw.Draw(picture)
    factors = np.array([small.shape[1] / source.shape[1], small.shape[0] / source.shape[0]] * 2)
    boxes = objects.boxes * factors
    thick = max(1, round(max(small.shape) / 1000))
    for i in reversed(range(len(objects))):  # the best on top
        x0, y0, x1, y1 = boxes[i].tolist()
        label = int(objects.labels[i])
        color: Color = labels.colors[label]
        pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=color, width=thick)
        score = "" if objects.scores is None else f" {objects.scores[i]:.2f}"
        pen.text((x0 + thick, max(0.0, y0 - 11)), f"{labels.names[label]}{score}", fill=color)
    with whole_output(path, overwrite) as part:
        picture.save(part)


def _shown(source: Source, spec: InputSpec) -> np.ndarray:
    """(H, W, 3) uint8 picture of a source, read by rows."""
    wanted = [spec.bands.index(c) if c in spec.bands else 0 for c in ("red", "green", "blue")]
    if len(spec.bands) >= 3 and not {"red", "green", "blue"} <= set(spec.bands):
        wanted = [0, 1, 2]
    picture = np.zeros((*source.shape, 3), np.uint8)
    for window in _strips(source):
        values, valid = source.read(window)
        scaled = np.nan_to_num(values[wanted].astype(np.float32) * np.float32(255 / spec.scale))
        picture[window.slices] = np.moveaxis((scaled.clip(0, 255) * valid).astype(np.uint8), 0, -1)
    return picture


def _strips(source: Source) -> Iterator[Window]:
    height, width = source.shape
    rows = max(1, source.block[0], 2**21 // width)
    for top in range(0, height, rows):
        yield Window(top, 0, min(rows, height - top), width)
