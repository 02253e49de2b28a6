"""YOLO annotations: one txt per image, shares of its size; and that the three forms of the real set agree."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from visionapps.data.annotations import read_annotations, read_table
from visionapps.data.object_dataset import ObjectClass, ObjectDataset, ObjectPolicies
from visionapps.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path):
    """images/a.png of 100 x 200 px, and an empty folder labels."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    Image.fromarray(np.zeros((100, 200, 3), np.uint8)).save(tmp_path / "images" / "a.png")
    return tmp_path


def read(folder, annotations="labels", policies=None, **more):
    chosen = ObjectPolicies(**(policies or {}))
    given = {"images": str(folder / "images"), "annotations": str(folder / annotations), "policies": chosen}
    return read_annotations(ObjectDataset(**given | more))


def test_shares_become_pixels_and_numbers_classes(folder):
    (folder / "labels" / "a.txt").write_text("2 0.5 0.5 0.25 0.5\n\n0 0.1 0.2 0.1 0.2\n")
    found = read(folder)
    objects = found.images[0].objects
    np.testing.assert_array_equal(objects.boxes, [[75, 25, 125, 75], [10, 10, 30, 30]])
    assert objects.labels.tolist() == [2, 0]
    assert found.labels.names == ("class 0", "class 1", "class 2")
    assert found.category_ids == (0, 1, 2)
    assert [p.kind for p in found.problems] == ["unnamed_classes"]
    assert found.images[0].places[1].endswith("a.txt: line 3")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels/classes.txt", "car\nvan\n"),
        ("classes.txt", "car\nvan\n"),
        ("data.yaml", "names: [car, van]\ntrain: nowhere\n"),
        ("data.yaml", "names: {0: car, 1: van}\n"),
    ],
)
def test_names_of_classes_come_from_a_list_or_a_data_yaml(folder, name, text):
    (folder / name).write_text(text)
    (folder / "labels" / "a.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    where = [name, "labels"] if name == "data.yaml" else ["labels"]
    for annotations in where:
        found = read(folder, annotations)
        assert found.labels.names == ("car", "van")
        assert found.images[0].objects.labels.tolist() == [1]


def test_a_class_table_without_ids_numbers_unnamed_classes_by_position(folder):
    (folder / "labels" / "a.txt").write_text("1 0.5 0.5 0.25 0.5\n0 0.2 0.2 0.1 0.1\n")
    found = read(folder, classes=("car", "van"))
    assert found.labels.names == ("car", "van")
    assert found.images[0].objects.labels.tolist() == [1, 0]
    assert not found.problems
    assert [p.kind for p in read(folder, classes=("car",)).errors] == ["unknown_category"]


def test_rows_of_polygons_give_boxes_and_masks(folder):
    (folder / "labels" / "a.txt").write_text("0 0.1 0.1 0.3 0.1 0.3 0.4 0.1 0.4\n")
    image = read(folder).images[0]
    np.testing.assert_array_equal(image.objects.boxes, [[20, 10, 60, 40]])
    assert image.objects.areas.tolist() == [1200]
    assert image.polygons == (((20, 10, 60, 10, 60, 40, 20, 40),),)
    assert read(folder, masks=False).images[0].objects.masks is None


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("car 0.5 0.5 0.1 0.1", "could not convert string to float: 'car'"),
        ("0 0.5 0.5 0.1", "3 numbers after the class"),
        ("0.5 0.5 0.5 0.1 0.1", "'0.5' is no class number"),
        ("1e9 0.5 0.5 0.1 0.1", "'1e9' is no class number"),
        ("-1 0.5 0.5 0.1 0.1", "'-1' is no class number"),
        ("0 0.5 0.5 0.1 x", "could not convert string to float: 'x'"),
    ],
)
def test_a_row_that_cannot_be_read_is_reported_with_its_line_and_spares_the_others(folder, row, text):
    (folder / "labels" / "a.txt").write_text(f"0 0.5 0.5 0.25 0.5\n{row}\n")
    found = read(folder)
    (problem,) = found.errors
    assert problem.message.startswith(f"{folder / 'labels' / 'a.txt'}: line 2: {text}")
    assert len(found.images[0].objects) == 1


@pytest.mark.parametrize(
    ("share", "kind"), [("nan", "not_finite"), ("1.7", "outside_box"), ("0.99", "overhanging_box")]
)
def test_bad_numbers_are_found_in_pixels(folder, share, kind):
    (folder / "labels" / "a.txt").write_text(f"0 {share} 0.5 0.1 0.5\n")
    assert kind in [p.kind for p in read(folder).problems]


def test_labels_lie_in_folders_like_the_images(tmp_path):
    for split in ("train", "valid"):
        (tmp_path / split / "images").mkdir(parents=True)
        (tmp_path / split / "labels").mkdir()
        Image.fromarray(np.zeros((10, 10, 3), np.uint8)).save(tmp_path / split / "images" / "a.png")
        (tmp_path / split / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("names: [car]\n")
    found = read_annotations(ObjectDataset(images=str(tmp_path), annotations=str(tmp_path / "data.yaml")))
    assert not found.problems
    assert [image.name for image in found.images] == ["train/images/a.png", "valid/images/a.png"]


def test_folders_and_tables_without_labels_are_refused(folder):
    with pytest.raises(DataError, match="no YOLO file here; expected a folder of"):
        read_table(folder / "labels", "yolo")
    (folder / "labels" / "a.txt").write_text("")
    (folder / "data.yaml").write_text("train: images\n")
    with pytest.raises(DataError, match="has no names; expected names"):
        read_table(folder / "data.yaml")
    (folder / "data.yaml").unlink()
    with pytest.raises(ConfigError, match="the files name no class, for they hold no object; write classes"):
        read(folder)
    (folder / "labels" / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DataError, match="the sizes of the images are needed"):
        read(folder, images="")


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 30_000),
    st.integers(1, 30_000),
    st.tuples(*[st.integers(0, 10**6)] * 4),
)
def test_any_written_number_comes_back_exactly(height, width, parts):
    """Corners on a grid of 1e-6 px, written as the writer does, are read as they were."""
    xs = sorted(round(p / 10**6 * width, 6) for p in parts[:2])
    ys = sorted(round(p / 10**6 * height, 6) for p in parts[2:])
    x, y, w, h = (xs[0] + xs[1]) / 2, (ys[0] + ys[1]) / 2, xs[1] - xs[0], ys[1] - ys[0]
    words = [float(f"{v:.12g}") for v in (x / width, y / height, w / width, h / height)]
    corners = [words[0] - words[2] / 2, words[1] - words[3] / 2, words[0] + words[2] / 2, words[1] + words[3] / 2]
    back = np.round(np.array(corners) * [width, height, width, height], 6).tolist()
    assert back == [xs[0], ys[0], xs[1], ys[1]]


def test_the_three_forms_of_the_real_set_give_equal_boxes(shared_data):
    """Their maker wrote COCO numbers into VOC files, and YOLO files one pixel too far to the upper left."""
    root = shared_data / "vehicles"
    forms = {"annotations_coco.json": None, "voc_xml": 0.0, "yolo_txt": -1.0}
    sets = [
        read_annotations(
            ObjectDataset(images=str(root / "images"), annotations=str(root / name), classes=("car",), origin=origin)
        )
        for name, origin in forms.items()
    ]
    assert [found.form for found in sets] == ["coco", "voc", "yolo"]
    assert not any(found.problems for found in sets)
    assert sum(len(image.objects) for image in sets[0].images) == 2628
    for other in sets[1:]:
        for ours, theirs in zip(sets[0].images, other.images, strict=True):
            assert (ours.name, ours.image_id, ours.size) == (theirs.name, theirs.image_id, theirs.size)
            np.testing.assert_array_equal(ours.objects.boxes, theirs.objects.boxes)
            np.testing.assert_array_equal(ours.objects.labels, theirs.objects.labels)
            np.testing.assert_array_equal(ours.objects.areas, theirs.objects.areas)


def test_the_shift_of_the_real_yolo_files_shows_without_anything_to_compare_with(shared_data):
    root = shared_data / "vehicles"
    dataset = ObjectDataset(images=str(root / "images"), annotations=str(root / "yolo_txt"), classes=("car",))
    (problem,) = read_annotations(dataset).errors
    assert problem.kind == "origin"
    assert "has the coordinate -1, and so have 267 objects" in problem.message
    assert "set origin: -1," in problem.message


def test_a_number_beyond_the_names_is_no_new_class(folder):
    (folder / "data.yaml").write_text("names: [car, van]\n")
    (folder / "labels" / "a.txt").write_text("1 0.5 0.5 0.25 0.5\n7 0.2 0.2 0.1 0.1\n")
    for settings_ in ({}, {"classes": ("car", "van")}):
        found = read(folder, **settings_)
        assert found.labels.names == ("car", "van")
        (problem,) = found.problems
        assert (problem.kind, problem.action) == ("unknown_category", "error")
        assert "a.txt: line 2: its class number 7 is not in the class table" in problem.message
        assert found.images[0].objects.labels.tolist() == [1]
    known = read(folder, classes=(ObjectClass("bus", ids=(7,)), "car", "van"))
    assert known.images[0].objects.labels.tolist() == [2, 0]
    assert read(folder, leave_out=(7,)).labels.names == ("car", "van")


@pytest.mark.parametrize("stem", ["test", "train", "val", "classes", "labels", "readme"])
def test_an_image_may_be_called_like_a_list(folder, stem):
    (folder / "images" / "a.png").rename(folder / "images" / f"{stem}.png")
    (folder / "labels" / f"{stem}.txt").write_text("0 0.5 0.5 0.25 0.5\n")
    (folder / "data.yaml").write_text("names: [car]\n")
    found = read(folder, form="auto")
    assert not found.problems
    assert [(image.name, len(image.objects)) for image in found.images] == [(f"{stem}.png", 1)]
    (folder / "labels" / f"{stem}.txt").write_text("")  # an image without objects
    assert [(image.name, len(image.objects)) for image in read(folder, form="yolo").images] == [(f"{stem}.png", 0)]


def test_lists_beside_the_labels_are_no_labels(folder):
    (folder / "labels" / "a.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    lists = {
        "classes": "car\nvan\n",
        "train": "images/a.png\n",
        "test": "",
        "readme": "Rows are:\n0 0.5 0.5 1 1\nx\ny\n",
    }
    for name, text in lists.items():
        (folder / "labels" / f"{name}.txt").write_text(text)
    found = read(folder)
    assert not found.problems
    assert found.labels.names == ("car", "van")
    assert [image.name for image in found.images] == ["a.png"]


POSE = "0 0.5 0.5 0.25 0.5 0.45 0.4 2 0.55 0.6 1 0 0 0"


def test_rows_of_poses_give_the_box_that_they_begin_with(folder):
    (folder / "data.yaml").write_text("names: [person]\nkpt_shape: [3, 3]\n")
    (folder / "labels" / "a.txt").write_text(
        f"{POSE}\n{POSE.replace('0.25', '0.3')} 0.9\n0 0.5 0.5 0.1 0.1 0.5 0.5 2\n"
    )
    found = read(folder)
    assert [p.message.partition(": line ")[2] for p in found.errors] == [
        "3: 7 numbers after the class, but kpt_shape [3, 3] of data.yaml means 4 and 9 more; expected: class x_centre "
        "y_centre width height, as shares"
    ]
    np.testing.assert_array_equal(found.images[0].objects.boxes, [[75, 25, 125, 75], [70, 25, 130, 75]])
    assert found.images[0].objects.masks is None
    (folder / "data.yaml").write_text("names: [person]\nkpt_shape: many\n")
    with pytest.raises(DataError, match=r"kpt_shape is 'many', but \[number of key points, 2 or 3\] is expected"):
        read(folder)


@pytest.mark.parametrize("row", [POSE, "0 0.5 0.5 0.25 0.5 0.45 0.4 0.55 0.6 0.5 0.3"])
def test_poses_are_not_taken_for_polygons(folder, row):
    (folder / "labels" / "a.txt").write_text(f"{row}\n{row}\n")
    (folder / "classes.txt").write_text("person\n")
    found = read(folder)
    assert [p.kind for p in found.errors] == ["unreadable", "unreadable"]
    count = len(row.split()) - 1
    assert (
        f"a.txt: line 1: {count} numbers after the class that look like a box and key points" in found.errors[0].message
    )
    assert "write kpt_shape: [number of key points, 2 or 3] into a data.yaml" in found.errors[0].message
