"""A made-up detection data set to try things on: coloured shapes with exact masks, learnable in a minute on a CPU."""

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image

from visionapps.errors import ConfigError
from visionapps.masks import encode, runs_to_coco
from visionapps.windows import Window

Form = Literal["coco", "voc", "yolo", "csv"]

CLASSES = ("disc", "square", "triangle")
CATEGORY_IDS = (3, 7, 20)  # with gaps and not from 0, as in files that people bring
COLORS = ((214, 64, 52), (58, 92, 214), (240, 204, 66))
SITE = 4  # images of one site, which look alike: split by site, group "^(site\d+)_"
EMPTY_EVERY, CROWD_EVERY = 6, 4
SIDES = (0.11, 0.30)  # of an object, as shares of the image
LARGEST = 160  # px: larger images show more objects, not larger ones
GAP = 2  # px between objects: none hides another, so that every mask is whole
TRIES = 40


class ObjectFiles(NamedTuple):
    """Where a detection data set lies."""

    images: Path  # folder
    annotations: Path  # file, or folder of files


@dataclass(frozen=True, eq=False)
class _Shape:
    label: int
    place: Window  # tight around the mask
    mask: np.ndarray  # (h, w) bool, of the place
    crowd: bool = False


def write_fake_objects(
    folder: Path, *, images: int = 12, size: int = 128, seed: int = 0, form: Form = "coco"
) -> ObjectFiles:
    """Write discs, squares and triangles on a textured ground, with boxes and masks; no network, the same every time.

    Every sixth image is empty and every fourth has a crowd of discs. Images are ``site<k>_<n>.png``, four per site.

    Args:
        folder: gets the folder ``images`` and the annotations: ``annotations.json``, ``annotations.csv``, or the
            folder ``annotations``.
        images: how many.
        size: height and width in pixels, at least 32.
        seed: another seed, other shapes.
        form: of the annotations. COCO says everything; what another form cannot express is left out.

    Raises:
        ConfigError: nothing could be drawn.
    """
    if images < 1 or size < 32 or seed < 0:
        raise ConfigError(f"fake objects: images {images} >= 1, size {size} >= 32 and seed {seed} >= 0 are expected")
    suffix = {"coco": ".json", "csv": ".csv"}.get(form, "")
    files = ObjectFiles(folder / "images", folder / f"annotations{suffix}")
    files.images.mkdir(parents=True, exist_ok=True)
    content = _content(files.images, images, size, seed)
    if form == "coco":
        files.annotations.write_text(json.dumps(content), encoding="utf-8")
    else:
        _convert(content, files, form)
    return files


def _content(folder: Path, images: int, size: int, seed: int) -> dict[str, Any]:
    """Draw the images, and give what a COCO file says of them."""
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(images):
        rng = np.random.default_rng((seed, number))
        shapes = [] if number % EMPTY_EVERY == EMPTY_EVERY - 1 else _shapes(rng, size, number % CROWD_EVERY == 2)
        name = f"site{number // SITE + 1}_{number % SITE + 1}.png"
        tone = np.random.default_rng((seed, 1 << 32, number // SITE)).uniform(70, 130, 3)
        Image.fromarray(_picture(rng, size, tone, shapes)).save(folder / name)
        listed.append({"id": number + 1, "file_name": name, "width": size, "height": size})
        for shape in shapes:
            annotations.append({"id": len(annotations) + 1, "image_id": number + 1, **_annotation(shape, size)})
    categories = [{"id": i, "name": n} for i, n in zip(CATEGORY_IDS, CLASSES, strict=True)]
    return {"images": listed, "annotations": annotations, "categories": categories}


def _shapes(rng: np.random.Generator, size: int, crowd: bool) -> list[_Shape]:
    """What one image shows: nothing overlaps."""
    found: list[_Shape] = []
    if crowd:
        side = round(0.35 * min(size, LARGEST))
        found.append(_placed(_swarm(rng, side), rng, size))
    wanted = max(1, round((max(size, 128) / 128) ** 2 * rng.uniform(1.5, 4.5)))
    for _ in range(wanted):
        label = int(rng.integers(len(CLASSES)))
        side = max(6, round(rng.uniform(*SIDES) * min(size, LARGEST)))
        for _ in range(TRIES):
            shape = _placed(_Shape(label, Window(0, 0, side, side), _outline(label, side)), rng, size)
            grown = Window(shape.place.row - GAP, shape.place.col - GAP, side + 2 * GAP, side + 2 * GAP)
            if not any(grown.intersect(other.place).height * grown.intersect(other.place).width for other in found):
                found.append(shape)
                break
    return found


def _placed(shape: _Shape, rng: np.random.Generator, size: int) -> _Shape:
    rows, cols = (np.flatnonzero(shape.mask.any(axis)) for axis in (1, 0))
    mask = shape.mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    height, width = mask.shape
    place = Window(int(rng.integers(size - height + 1)), int(rng.integers(size - width + 1)), height, width)
    return replace(shape, place=place, mask=mask)


def _outline(label: int, side: int) -> np.ndarray:
    """(side, side) bool."""
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    shape: np.ndarray
    if CLASSES[label] == "disc":
        shape = (x - 0.5) ** 2 + (y - 0.5) ** 2 <= 0.25
    elif CLASSES[label] == "square":
        shape = np.ones((side, side), bool)
    else:
        shape = np.abs(x - 0.5) <= y / 2
    return shape


def _swarm(rng: np.random.Generator, side: int) -> _Shape:
    """Discs so close to each other that nobody would box each."""
    mask = np.zeros((side, side), bool)
    for _ in range(12):
        small = max(4, side // 4)
        row, col = rng.integers(side - small + 1, size=2)
        mask[row : row + small, col : col + small] |= _outline(0, small)
    return _Shape(0, Window(0, 0, side, side), mask, crowd=True)


def _picture(rng: np.random.Generator, size: int, tone: np.ndarray, shapes: list[_Shape]) -> np.ndarray:
    """(size, size, 3) uint8: soft patches, grain, and the shapes, each in a shade of its class colour."""
    patches = rng.normal(0, 28, (max(2, size // 16), max(2, size // 16), 3))
    image = tone + cv2.resize(patches, (size, size), interpolation=cv2.INTER_CUBIC)
    for shape in shapes:
        inside = image[shape.place.slices]
        inside[shape.mask] = np.array(COLORS[shape.label]) * rng.uniform(0.75, 1.05)
    grainy: np.ndarray = np.clip(image + rng.normal(0, 9, image.shape), 0, 255).astype(np.uint8)
    return grainy


def _annotation(shape: _Shape, size: int) -> dict[str, Any]:
    """COCO's entry: crowds and round things as run lengths, what polygons say exactly as polygons."""
    row, col, height, width = shape.place.row, shape.place.col, shape.place.height, shape.place.width
    segmentation: Any
    if CLASSES[shape.label] == "square":
        segmentation = [[col, row, col + width, row, col + width, row + height, col, row + height]]
    else:
        whole = np.zeros((size, size), bool)
        whole[shape.place.slices] = shape.mask
        segmentation = runs_to_coco(encode(whole, order="column"), (size, size))
    return {
        "category_id": CATEGORY_IDS[shape.label],
        "bbox": [col, row, width, height],
        "area": int(shape.mask.sum()),
        "iscrowd": int(shape.crowd),
        "segmentation": segmentation,
    }


def _convert(content: dict[str, Any], files: ObjectFiles, form: Form) -> None:
    """Say the same in another form; crowds are left out where they would become plain objects."""
    from visionapps.data.annotations import read_annotations
    from visionapps.data.object_dataset import ObjectDataset
    from visionapps.data.object_writers import write_annotations

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "annotations.json"
        single = [entry for entry in content["annotations"] if form == "csv" or not entry["iscrowd"]]
        path.write_text(json.dumps({**content, "annotations": single}), encoding="utf-8")
        annotations = read_annotations(ObjectDataset(str(files.images), str(path), form="coco"))
        write_annotations(annotations, files.annotations, form)
