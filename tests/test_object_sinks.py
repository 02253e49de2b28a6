"""Files of objects: what images are called in them, which numbers they have, and pictures with boxes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionapps.errors import ConfigError, DataError, OutputError
from visionapps.inference.inputs import Input
from visionapps.inference.object_sinks import (
    Entry,
    ObjectFiles,
    ObjectWriter,
    image_names,
    image_numbers,
    write_overlay,
)
from visionapps.inference.sources import ArraySource
from visionapps.objects import Objects
from visionapps.structures import InputSpec, LabelSpace

LABELS = LabelSpace(("car", "bus"), ((250, 0, 0), (0, 250, 0)))


def test_images_are_called_by_their_path_below_the_folder_they_share() -> None:
    one = [Input("/data/a/x.png", False), Input("/data/a/y.png", False)]
    assert image_names(one) == ["x.png", "y.png"]
    two = [Input("/data/a/x.png", False), Input("/data/b/c/x.png", False)]
    assert image_names(two) == ["a/x.png", "b/c/x.png"]
    assert image_names([Input("/vsizip/s.zip/x.png", True), one[0]]) == ["vsizip/s.zip/x.png", "data/a/x.png"]
    with pytest.raises(ConfigError, match=r"x\.png: was named twice"):
        image_names([one[0], one[0]])


def test_numbers_come_from_the_annotations_by_name_or_count_from_one(tmp_path: Path) -> None:
    like = tmp_path / "like.json"
    images = [{"id": 7, "file_name": "a/x.png"}, {"id": 9, "file_name": "b/x.png"}, {"id": 3, "file_name": "z.png"}]
    like.write_text(json.dumps({"images": images, "annotations": []}))
    assert image_numbers(["x.png", "y.png"], None) == [1, 2]
    assert image_numbers(["b/x.png", "deep/z.png", "a/x.png"], like) == [9, 3, 7]
    with pytest.raises(DataError, match=r"does not list y\.png and 1 more images"):
        image_numbers(["y.png", "w.png", "z.png"], like)
    like.write_text(json.dumps({"images": [{"file_name": "x.png"}]}))
    with pytest.raises(DataError, match="images without file_name and whole id"):
        image_numbers(["x.png"], like)


def test_a_name_that_two_images_of_the_annotations_share_is_not_guessed(tmp_path: Path) -> None:
    like = tmp_path / "like.json"
    images = [{"id": 7, "file_name": "a/x.png"}, {"id": 9, "file_name": "b/x.png"}]
    like.write_text(json.dumps({"images": images}))
    with pytest.raises(DataError, match=r"lists several images called x\.png"):
        image_numbers(["x.png"], like)


def test_what_stands_in_the_way_is_found_before_anything_is_computed(tmp_path: Path) -> None:
    inputs = [Input(str(tmp_path / "a.png"), False)]
    files = ObjectFiles(tmp_path, ("coco", "gpkg"), overlay=True)
    files.refuse_existing(inputs)
    assert [path.name for path in files.of_image(inputs[0])] == ["a.gpkg", "a_overlay.png"]
    (tmp_path / "images.json").write_text("{}")
    with pytest.raises(OutputError, match=r"images\.json: exists already"):
        files.refuse_existing(inputs)
    (tmp_path / "a.gpkg").mkdir()
    with pytest.raises(OutputError, match=r"a\.gpkg: is a folder, but the result is a file"):
        ObjectFiles(tmp_path, ("gpkg",), overwrite=True).refuse_existing(inputs)
    with pytest.raises(ConfigError, match="form 'kml': not known"):
        ObjectFiles(tmp_path, ("kml",))  # type: ignore[arg-type]


def test_a_picture_shows_boxes_where_they_are_also_when_it_is_shrunk(tmp_path: Path) -> None:
    found = Objects(np.array([[100.0, 2, 300, 8]]), np.array([1]), np.array([0.5]))
    image = np.full((3, 10, 400), 90, np.uint8)
    write_overlay(tmp_path / "a.png", found, ArraySource(image), LABELS, InputSpec())
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture)
    assert pixels[4, 100].tolist() == pixels[7, 200].tolist() == [0, 250, 0]
    assert pixels[5, 299].tolist() == [0, 250, 0]
    assert pixels[5, 300].tolist() == [90, 90, 90]
    long = Objects(found.boxes * [30, 1, 30, 1], found.labels)
    deep = np.full((4, 10, 12_000), 3000, np.uint16)  # near infrared, red, green, blue
    spec = InputSpec(("nir", "red", "green", "blue"), 10_000.0, (0.5,) * 4, (0.2,) * 4)
    valid = np.ones((10, 12_000), bool)
    valid[:, 11_000:] = False
    write_overlay(tmp_path / "b.png", long, ArraySource(deep, valid=valid), LABELS, spec)
    with Image.open(tmp_path / "b.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (3, 4096, 3)
    assert (pixels == [0, 250, 0]).all(2).any(0).nonzero()[0][0] == pytest.approx(1024, abs=2)
    assert pixels[1, 500].tolist() == [76, 76, 76]
    assert pixels[1, 4000].tolist() == [0, 0, 0]


@pytest.mark.parametrize("form", ["yolo", "voc"])
def test_folders_that_could_not_be_written_are_refused_before_anything_is_computed(tmp_path: Path, form: str) -> None:
    inputs = [Input(str(tmp_path / name), False) for name in ("a.png", "b.png")]
    folder = tmp_path / "out" / form
    folder.mkdir(parents=True)
    files = ObjectFiles(tmp_path / "out", (form,), overwrite=True)  # type: ignore[arg-type]
    (folder / {"yolo": "a.txt", "voc": "a.xml"}[form]).write_text("")
    files.refuse_existing(inputs)
    with pytest.raises(DataError, match=r"a\.png and a\.jpg would both be written to a\."):
        files.refuse_existing([*inputs, Input(str(tmp_path / "a.jpg"), False)])
    (folder / "labels.cache").write_text("")
    with pytest.raises(OutputError, match=rf"holds labels\.cache, which is no {form} file, so it is not replaced"):
        files.refuse_existing(inputs)


def test_a_data_yaml_of_other_classes_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "yolo").mkdir()
    (tmp_path / "yolo" / "data.yaml").write_text("names: [plane]\n")
    files = ObjectFiles(tmp_path, ("yolo",), overwrite=True)
    with pytest.raises(OutputError, match=r"data\.yaml: names the classes plane, but car, bus are written"):
        ObjectWriter(files, LABELS, InputSpec())


def test_labels_of_images_that_failed_this_time_are_replaced_too(tmp_path: Path) -> None:
    (tmp_path / "yolo").mkdir()
    (tmp_path / "yolo" / "b.txt").write_text("0 0.5 0.5 0.1 0.1 0.9\n")
    writer = ObjectWriter(
        ObjectFiles(tmp_path, ("yolo",), overwrite=True), LABELS, InputSpec(), names=("a.png", "b.png")
    )
    entry = Entry(Input("a.png", False), "a.png", 1)
    writer.take(entry, Objects.none(scored=True), ArraySource(np.zeros((3, 10, 10), np.uint8)), size=(10, 10))
    writer.finish()
    assert sorted(p.name for p in (tmp_path / "yolo").iterdir()) == ["a.txt", "classes.txt"]


def test_two_images_with_one_number_are_refused(tmp_path: Path) -> None:
    like = tmp_path / "like.json"
    like.write_text(json.dumps({"images": [{"id": 7, "file_name": "x.png"}, {"id": 7, "file_name": "y.png"}]}))
    with pytest.raises(DataError, match=r"like\.json: x\.png and y\.png would both have the number 7"):
        image_numbers(["x.png", "y.png"], like)
    assert image_numbers(["y.png"], like) == [7]
    with pytest.raises(DataError, match=r"a/x\.png and b/x\.png would both have the number 7"):
        image_numbers(["a/x.png", "b/x.png"], like)
