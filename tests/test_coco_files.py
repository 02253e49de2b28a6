"""COCO annotations: what is read, what is refused, what is reported with its number."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from visionapps.data.annotations import find_form, read_annotations, read_table
from visionapps.data.object_dataset import ObjectClass, ObjectDataset, ObjectPolicies
from visionapps.errors import ConfigError, DataError
from visionapps.masks import coco_to_runs, decode


def coco(tmp_path, annotations, *, images=None, categories=None, name="a.json"):
    """A COCO file of 100 x 200 px (H x W) images 1 and 2, and categories 3 car and 7 van."""
    images = (
        [{"id": i, "file_name": f"{i}.jpg", "height": 100, "width": 200} for i in (1, 2)] if images is None else images
    )
    categories = [{"id": 3, "name": "car"}, {"id": 7, "name": "van"}] if categories is None else categories
    path = tmp_path / name
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def box(number, bbox, category=3, image=1, **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, **more}


def read(path, **settings):
    policies = ObjectPolicies(**settings.pop("policies", {}))
    return read_annotations(ObjectDataset(images="", annotations=str(path), policies=policies, **settings))


def told(found):
    return [(p.kind, p.action, p.message.partition(": ")[2]) for p in found.problems if p.kind != "unused_class"]


def test_numbers_become_half_open_pixels_and_ids_with_gaps_become_labels(tmp_path):
    rows = [box(5, [1, 2, 10, 20]), box(6, [0.1, 0, 0.2, 7], 7, area=3.5, iscrowd=1), box(7, [3, 3, 4, 5], 7, ignore=1)]
    found = read(coco(tmp_path, rows), policies={"tiny_box": "warn"})
    first, second = found.images
    assert found.labels.names == ("car", "van")
    assert found.category_ids == (3, 7)
    np.testing.assert_array_equal(first.objects.boxes, [[1, 2, 11, 22], [0.1, 0, 0.3, 7], [3, 3, 7, 8]])
    assert first.objects.labels.tolist() == [0, 1, 1]
    assert first.objects.areas.tolist() == [200, 3.5, 20]
    assert first.objects.crowd.tolist() == [False, True, False]
    assert first.objects.difficult.tolist() == [False, False, True]
    assert first.objects.ids.tolist() == [5, 6, 7]
    assert first.size == (100, 200)
    assert (second.name, second.image_id, len(second.objects)) == ("2.jpg", 2, 0)  # an empty image exists


def test_the_golden_file_gives_what_pycocotools_reads(shared_data):
    path = shared_data / "coco_golden" / "instances_val2014_100.json"
    theirs, found = COCO(str(path)), read(path)
    assert len(found.images) == len(theirs.imgs)
    total = 0
    for image in found.images:
        rows = theirs.loadAnns(theirs.getAnnIds(imgIds=image.image_id))
        ours = {number: i for i, number in enumerate(image.objects.ids.tolist())}
        assert len(ours) == len(rows)
        for row in rows:
            i = ours[row["id"]]
            x, y, w, h = row["bbox"]
            np.testing.assert_allclose(image.objects.boxes[i], [x, y, x + w, y + h], atol=1e-6)
            assert found.category_ids[image.objects.labels[i]] == row["category_id"]
            assert image.objects.areas[i] == row["area"]
            assert image.objects.crowd[i] == row["iscrowd"]
            packed = theirs.annToRLE(row)
            assert image.objects.masks[i]["counts"].encode() == packed["counts"]
            total += 1
    assert total == 839


@pytest.mark.parametrize(
    ("row", "kind", "text"),
    [
        (box(9, [10, 10, -4, 5]), "inverted_box", "annotation 9: box 10 10 6 15 (x0 y0 x1 y1) is inverted"),
        (box(9, [10, 10, 0, 5]), "zero_area", "annotation 9: box 10 10 10 15 (x0 y0 x1 y1) has no area"),
        (box(9, [10, float("nan"), 3, 5]), "not_finite", "annotation 9: box 10 nan 13 nan (x0 y0 x1 y1) is not finite"),
        (box(9, [10, 10, float("inf"), 5]), "not_finite", "annotation 9: box 10 10 inf 15"),
        (box(9, [300, 10, 5, 5]), "outside_box", "lies beside its image 1.jpg of 100 x 200 px (H x W)"),
        (box(9, [190, 10, 15, 5]), "overhanging_box", "box 190 10 205 15 (x0 y0 x1 y1) reaches out of its image 1.jpg"),
        (box(9, [10, 10, 1.5, 5]), "tiny_box", "has a side below 2 px"),
        (box(9, [0, 0, 200, 100]), "full_box", "covers the whole of its image 1.jpg"),
        (box(9, [10, 10, 5, 5], 8), "unknown_category", "annotation 9: its class number 8 is not in the class table"),
        (
            box(9, [10, 10, 5, 5], image=4),
            "unknown_image",
            "annotation 9: belongs to an image that the file does not list",
        ),
        (
            box(9, [10, 10, 5]),
            "unreadable",
            "annotation 9: bbox is [10, 10, 5], but x, y, width and height are expected",
        ),
        (box(9, [10, 10, 5, 10**400]), "unreadable", "annotation 9: bbox is [10, 10, 5, 1000"),
        (box(9, [1e308, 10, 1e308, 5]), "not_finite", "annotation 9: box inf 10 inf 15"),
        (box(9, "10 10 5 5"), "unreadable", "annotation 9: bbox is 10 10 5 5, but"),
        (box(1, [10, 10, 5, 5]), "duplicate_id", "annotation 1: number 1 is given twice"),
        (box(9, [1, 2, 10, 20]), "duplicate_box", "stands twice in 1.jpg with the same class"),
        (box(9, [1, 2, 10, 20], 7), "contested_box", "stands twice in 1.jpg with different classes"),
    ],
)
def test_a_bad_annotation_is_reported_with_its_number_and_spares_the_good_one(tmp_path, row, kind, text):
    path = coco(tmp_path, [box(1, [1, 2, 10, 20]), row])
    found = read(path)
    problem = next(p for p in found.problems if p.kind == kind)
    assert text in problem.message
    assert str(path) in problem.message
    assert found.images[0].objects.boxes[0].tolist() == [1, 2, 11, 22]
    kept = len(found.images[0].objects) == 2
    assert kept == (problem.action in ("fixed", "warning"))
    if kind != "unreadable":
        assert sum(n for (k, action, _), n in found.tally.items() if (k, action) == (kind, problem.action)) == 1


def test_policies_mend_and_drop(tmp_path):
    rows = [box(1, [10, 10, -4, 5]), box(1, [-5, 90, 10, 20]), box(3, [50, 50, 0, 5])]
    found = read(coco(tmp_path, rows), policies={"inverted_box": "fix", "duplicate_id": "fix", "zero_area": "drop"})
    objects = found.images[0].objects
    assert objects.boxes.tolist() == [[6, 10, 10, 15], [0, 90, 5, 100]]  # swapped; clipped
    assert objects.ids.tolist() == [1, -1]
    assert not found.errors
    assert dict(found.tally) == {
        ("inverted_box", "fixed", "car"): 1,
        ("overhanging_box", "fixed", "car"): 1,
        ("zero_area", "dropped", "car"): 1,
        ("duplicate_id", "fixed", "car"): 1,
    }


def test_several_source_classes_become_one_and_others_are_ignored_or_left_out(tmp_path):
    names = [{"id": i, "name": n} for i, n in enumerate(["car", "van", "truck", "trailer", "crane", "zone"], 1)]
    rows = [box(i, [10 * i, 10, 5, 5], i) for i in range(1, 7)]
    vehicle = ObjectClass("vehicle", names=("car", "van"), ids=(3,), ignore=("trailer",))
    settings = {"classes": (vehicle, "ship"), "leave_out": ("crane",), "ignore": ("zone",)}
    found = read(coco(tmp_path, rows, categories=names), **settings)
    objects = found.images[0].objects
    assert found.labels.names == ("vehicle", "ship")
    assert objects.labels.tolist() == [0, 0, 0, 0, 0, 1]  # the zone stands in both classes
    assert objects.difficult.tolist() == [False, False, False, True, True, True]
    assert objects.ids.tolist() == [1, 2, 3, 4, 6, 6]
    assert ("left_out", "dropped", "class crane: 1 objects are left out on purpose (leave_out)") in [
        (p.kind, p.action, p.message) for p in found.problems
    ]
    assert found.tally["left_out", "dropped", "crane"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"leave_out": ("vans",)}, "no category is called 'vans'; there are van"),
        (
            {"classes": (ObjectClass("a", ids=(3,)), ObjectClass("b", names=("car",)))},
            "b claims car of the files, but so",
        ),
        ({"classes": ("car",), "leave_out": ("car",)}, "car claims car of the files, but so does leave_out or ignore"),
        ({"classes": ("background", "car")}, "background is no class of a detector"),
        ({"leave_out": ("car", "van")}, "no class is left"),
    ],
)
def test_a_class_table_that_contradicts_the_files_is_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        read(coco(tmp_path, []), **settings)


def test_background_gets_no_label_and_its_objects_are_reported(tmp_path):
    names = [{"id": 0, "name": "background"}, {"id": 1, "name": "car"}]
    found = read(coco(tmp_path, [box(1, [1, 1, 5, 5], 0), box(2, [9, 9, 5, 5], 1)], categories=names))
    assert found.labels.names == ("car",)
    assert found.category_ids == (1,)
    assert [p.kind for p in found.errors] == ["background_category"]
    assert "annotation 1: its class is called 'background'" in found.errors[0].message


def test_masks_equal_those_of_pycocotools_whatever_they_are_written_as(tmp_path):
    outline = [10.0, 10.0, 40.5, 12.0, 30.0, 50.0]
    two = [outline, [60.0, 60.0, 80.0, 60.0, 80.0, 70.0]]
    pixels = np.zeros((100, 200), np.uint8)
    pixels[20:30, 40:45] = 1
    packed = coco_mask.encode(np.asfortranarray(pixels))
    packed = {"size": packed["size"], "counts": packed["counts"].decode()}
    plain = {"size": [100, 200], "counts": [40 * 100 + 20, 10, 90, 10, 90, 10, 90, 10, 90, 10, 20000 - 4430]}
    shapes = [[outline], two, packed, plain]
    found = read(coco(tmp_path, [box(i, [10 + i, 10, 40, 40], segmentation=s) for i, s in enumerate(shapes, 1)]))
    assert told(found) == []
    image = found.images[0]
    for shape, rle in zip(shapes[:2], image.objects.masks[:2], strict=True):
        theirs = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(shape, 100, 200)))
        np.testing.assert_array_equal(decode(coco_to_runs(rle), (100, 200), order="column"), theirs)
    for rle in image.objects.masks[2:]:
        np.testing.assert_array_equal(decode(coco_to_runs(rle), (100, 200), order="column"), pixels)
    assert image.polygons == ((tuple(outline),), tuple(map(tuple, two)), None, None)
    assert image.objects.areas[2] == 50  # of the mask, as the file does not say
    assert found.images[1].objects.masks == ()


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ([[1, 2, 3, 4]], "a polygon has 4 numbers"),
        ([[1, 2, 3, 4, 5, "x"]], "but numbers x, y, x, y"),
        ({"size": [100, 200], "counts": [5]}, "the counts add up to 5 pixels"),
        ({"size": [10, 20], "counts": [200]}, "run lengths of an image of [10, 20] (H, W), but it has [100, 200]"),
        ("yes", "segmentation is 'yes'"),
    ],
)
def test_masks_that_cannot_be_read_are_reported_or_become_the_box(tmp_path, shape, text):
    rows = [
        box(1, [10, 10, 20, 30], segmentation=shape),
        box(2, [50, 50, 9, 9], segmentation=[[50, 50, 59, 50, 59, 59]]),
    ]
    found = read(coco(tmp_path, rows))
    assert [(p.kind, p.action) for p in found.problems] == [("bad_mask", "error")]
    assert text in found.problems[0].message
    assert "annotation 1: its mask" in found.problems[0].message
    assert found.images[0].objects.ids.tolist() == [2]
    assert len(found.images[0].objects.masks) == 1
    mended = read(coco(tmp_path, rows), policies={"bad_mask": "fix"}).images[0].objects
    pixels = decode(coco_to_runs(mended.masks[0]), (100, 200), order="column")
    assert pixels[10:40, 10:30].all()
    assert pixels.sum() == 600


def test_an_object_without_a_mask_among_masks_is_reported(tmp_path):
    rows = [box(1, [10, 10, 20, 30]), box(2, [50, 50, 9, 9], segmentation=[[50, 50, 59, 50, 59, 59]])]
    assert [p.kind for p in read(coco(tmp_path, rows)).errors] == ["missing_mask"]
    assert len(read(coco(tmp_path, rows), policies={"missing_mask": "fix"}).images[0].objects.masks) == 2
    plain = read(coco(tmp_path, rows), masks=False)
    assert plain.images[0].objects.masks is None
    assert not plain.problems


def test_an_annotation_without_a_box_gets_that_of_its_polygon(tmp_path):
    row = {"id": 1, "image_id": 1, "category_id": 3, "segmentation": [[10, 20, 30, 20, 30, 50]]}
    assert read(coco(tmp_path, [row])).images[0].objects.boxes.tolist() == [[10, 20, 30, 50]]


def test_several_files_of_a_folder_are_one_set_with_numbers_of_its_own(tmp_path):
    (tmp_path / "train").mkdir()
    coco(tmp_path, [box(1, [1, 1, 5, 5])], images=[{"id": 1, "file_name": "x.jpg"}], name="train/a.json")
    names = [{"id": 1, "name": "van"}, {"id": 2, "name": "car"}]
    more = [{"id": 1, "file_name": "y.jpg"}]
    coco(tmp_path, [box(1, [2, 2, 5, 5], 1)], images=more, categories=names, name="b.json")
    found = read(tmp_path)
    assert not found.problems
    assert [(i.name, i.image_id, i.objects.ids.tolist()) for i in found.images] == [
        ("x.jpg", 2, [3]),
        ("y.jpg", 1, [1]),
    ]
    told_names = [[found.labels.names[k] for k in i.objects.labels] for i in found.images]
    assert told_names == [["car"], ["van"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is a list, as COCO results are"),
        ("{", "is no valid JSON"),
        ('{"images": [], "annotations": []}', "has no list 'categories'"),
        ('"text"', "has no list 'images'"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "a.json")


def test_broken_lists_of_images_and_categories_are_reported(tmp_path):
    images = [{"id": 1, "file_name": "1.jpg"}, {"file_name": "2.jpg"}, 7, {"id": 1, "file_name": "3.jpg"}]
    names = [{"id": 3, "name": "car"}, {"id": 3, "name": "van"}, {"name": "bus"}]
    found = read(coco(tmp_path, [], images=images, categories=names))
    assert [(p.kind, p.message.partition("a.json: ")[2][:44]) for p in found.problems] == [
        ("unreadable", "image 1 of the list has no id or no file_nam"),
        ("unreadable", "image 2 of the list has no id or no file_nam"),
        ("duplicate_image", "image 1: two images have this number (1.jpg "),
        ("unreadable", "category 3: two categories have this number;"),
        ("unreadable", "category 2 of the list has no id; give it a "),
    ]


def test_the_form_is_seen_from_what_is_there(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        find_form(tmp_path / "none")
    with pytest.raises(DataError, match="no annotations here; expected a COCO"):
        find_form(tmp_path)
    (tmp_path / "a.xml").write_text("")
    assert find_form(tmp_path) == "voc"
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match="in the forms voc and yolo; choose one with form"):
        find_form(tmp_path)
    assert find_form(tmp_path, "yolo") == "yolo"


def test_flags_may_be_words_and_others_are_reported(tmp_path):
    given = ["false", "true", "1.0", 0.0, None, True, 1]
    rows = [box(i, [10 * i, 1, 5, 5], iscrowd=flag) for i, flag in enumerate(given, 1)]
    found = read(coco(tmp_path, rows))
    assert not found.problems
    assert found.images[0].objects.crowd.tolist() == [False, True, True, False, False, True, True]
    found = read(coco(tmp_path, [*rows, box(9, [90, 1, 5, 5], ignore="maybe"), box(10, [90, 9, 5, 5], iscrowd=[1])]))
    assert [p.message.partition("a.json: ")[2] for p in found.errors] == [
        "annotation 9: difficult is 'maybe', but 0 or 1 is expected; correct it",
        "annotation 10: crowd is [1], but 0 or 1 is expected; correct it",
    ]
    assert len(found.images[0].objects) == 7


@pytest.mark.parametrize("number", ["--3", "-", "3-", "\u00b2"])
def test_an_id_that_is_no_number_is_a_name(tmp_path, number):
    found = read(coco(tmp_path, [box(number, [1, 1, 5, 5]), box(4, [9, 1, 5, 5], image=number)]))
    assert [p.kind for p in found.errors] == ["unknown_image"]
    assert found.images[0].objects.ids.tolist() == [-1]


def test_a_box_of_five_numbers_is_reported_also_where_there_is_a_mask(tmp_path):
    shape = [[10, 20, 30, 20, 30, 50]]
    rows = [box(1, [10, 20, 20, 30, 9], segmentation=shape), box(2, [], segmentation=shape), box(3, [1, 1, 5, 5])]
    found = read(coco(tmp_path, rows), masks=False)
    (problem,) = found.errors
    assert problem.kind == "unreadable"
    assert "annotation 1: bbox is [10, 20, 20, 30, 9], but x, y, width and height are expected" in problem.message
    assert found.images[0].objects.ids.tolist() == [2, 3]


def test_two_categories_of_one_name_are_one_class_and_reported(tmp_path):
    names = [{"id": 1, "name": "car"}, {"id": 2, "name": "van"}, {"id": 4, "name": "car"}]
    path = coco(tmp_path, [box(1, [1, 1, 5, 5], 1), box(2, [9, 9, 5, 5], 4)], categories=names)
    found = read(path)
    assert found.labels.names == ("car", "van")
    (problem,) = [p for p in found.problems if p.kind == "shared_name"]
    assert problem.action == "warning"
    assert "a.json: category 4: is called 'car' like category 1, so both are one class" in problem.message
    assert [p.kind for p in read(path, policies={"shared_name": "error"}).errors] == ["shared_name"]
