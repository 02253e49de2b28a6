"""Conversion between forms: what the target can express survives, and what it cannot is counted."""

import json
import shutil
import string
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from visionapps.cli.main import main
from visionapps.data.annotations import AnnotatedImage, AnnotationSet, read_annotations, read_table
from visionapps.data.object_dataset import ObjectDataset, ObjectPolicies
from visionapps.data.object_masks import box_mask, mask_area, mask_polygons, shape_mask
from visionapps.data.object_writers import write_annotations, write_detections
from visionapps.errors import DataError, OutputError
from visionapps.masks import coco_to_runs, decode, encode, runs_to_coco
from visionapps.objects import Objects
from visionapps.structures import LabelSpace

FORMS = ("coco", "voc", "yolo", "csv")
LOOSE = ObjectPolicies(duplicate_box="warn", zero_area="drop", empty_image="warn")
NAMES = st.text(string.ascii_letters + " -&<>,;\"'éß", min_size=1, max_size=8).map(str.strip).filter(bool)
NAMES = NAMES.filter(lambda name: name.lower() not in ("bg", "background"))


@st.composite
def sets(draw):
    """Annotation sets with corners on a grid of 1e-6 px."""
    names = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    images = []
    number = 1
    for i in range(draw(st.integers(1, 3))):
        h, w = draw(st.integers(8, 4000)), draw(st.integers(8, 4000))
        count = draw(st.integers(0, 3))
        unit = st.integers(0, 10**6 - 1)
        low = np.array([[draw(unit) * w // 10**6, draw(unit) * h // 10**6] for _ in range(count)], np.float64)
        low = np.round(low.reshape(-1, 2) + draw(st.sampled_from([0, 0.25, 0.123456])), 6)
        low = np.minimum(low, [w - 2, h - 2])
        high = np.round(low + (np.array([w, h]) - low) * draw(st.sampled_from([0.3, 0.77, 1.0])), 6)
        flags = [np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool) for _ in range(3)]
        labels = np.array([draw(st.integers(0, len(names) - 1)) for _ in range(count)], np.int64)
        areas = (high - low).prod(1) if count else np.zeros(0)
        areas = areas * draw(st.sampled_from([1.0, 0.5]))
        ids = np.arange(number, number + count) * 3
        number += count
        boxes = np.concatenate([low, high], 1)
        objects = Objects(boxes, labels, None, flags[0], flags[1], areas, ids)
        images.append(AnnotatedImage(f"sub {i % 2}/photo {i}.jpg", 5 + 2 * i, (h, w), objects, (), None, flags[2]))
    images.sort(key=lambda image: image.name)
    return AnnotationSet(tuple(images), LabelSpace.named(names), tuple(range(1, 2 * len(names), 2)))


def path_of(folder, form):
    return folder / {"coco": "a.json", "csv": "a.csv"}.get(form, form)


def again(annotations, folder, form, images=""):
    """What is read from what was written."""
    path = path_of(folder, form)
    shutil.rmtree(path, ignore_errors=True)  # labels of other images are not replaced
    lost = write_annotations(annotations, path, form, overwrite=True)
    table = ObjectDataset(
        images=images, annotations=str(path), form=form, classes=annotations.labels.names, policies=LOOSE
    )
    return read_annotations(table), lost


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sets(), st.sampled_from(["coco", "csv", "voc"]), st.sampled_from(["coco", "csv"]))
def test_any_two_forms_in_a_row_keep_everything_that_both_express(tmp_path, annotations, first, second):
    middle, _ = again(annotations, tmp_path, first)
    found, _ = again(middle, tmp_path, second)
    assert not found.errors
    assert len(found.images) == len(annotations.images)
    for a, b in zip(annotations.images, found.images, strict=True):
        assert (a.name, a.size) == (b.name, b.size)
        np.testing.assert_array_equal(a.objects.boxes, b.objects.boxes)
        np.testing.assert_array_equal(a.objects.labels, b.objects.labels)
        assert (a.truncated is None or not a.truncated.any()) or b.truncated.tolist() == a.truncated.tolist()
        if first == "voc":  # has no crowds: they are difficult there
            np.testing.assert_array_equal(a.objects.ignored, b.objects.difficult)
        else:
            np.testing.assert_array_equal(a.objects.crowd, b.objects.crowd)
            np.testing.assert_array_equal(a.objects.difficult, b.objects.difficult)
            np.testing.assert_array_equal(a.objects.areas, b.objects.areas)
            np.testing.assert_array_equal(a.objects.ids, b.objects.ids)
            assert a.image_id == b.image_id
            used = np.unique(a.objects.labels).tolist()
            assert [annotations.category_ids[k] for k in used] == [found.category_ids[k] for k in used]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sets())
def test_yolo_keeps_boxes_and_classes_and_counts_the_rest(tmp_path, annotations):
    path = tmp_path / "yolo"
    shutil.rmtree(path, ignore_errors=True)
    lost = write_annotations(annotations, path, "yolo", overwrite=True)
    table = read_table(path, "yolo")
    names = [image.name for image in table.images]
    for image in annotations.images:
        rows = np.flatnonzero(table.image == names.index(image.name.removesuffix(".jpg")))
        kept = image.objects.take(~image.objects.crowd)
        h, w = image.size
        np.testing.assert_array_equal(np.round(table.boxes[rows] * [w, h, w, h], 6) + 0.0, kept.boxes)
        assert [table.categories[c].name for c in table.category[rows]] == [
            annotations.labels.names[k] for k in kept.labels
        ]
    crowds = sum(int(image.objects.crowd.sum()) for image in annotations.images)
    assert lost.get("crowd regions are left out", 0) == crowds


def test_polygons_and_run_lengths_survive_between_coco_and_yolo(tmp_path):
    outline = (10.0, 10.0, 40.5, 10.0, 40.5, 50.25, 10.0, 50.25)
    square = box_mask(np.array([100.0, 20, 120, 30]), (100, 200))
    masks = (shape_mask([outline], (100, 200)), square)
    boxes = np.array([[10, 10, 40.5, 50.25], [100, 20, 120, 30]])
    objects = Objects(boxes, np.zeros(2), areas=mask_area(masks), ids=np.array([4, 9]), masks=masks)
    image = AnnotatedImage("a.jpg", 1, (100, 200), objects, (), ((outline,), None))
    annotations = AnnotationSet((image,), LabelSpace.named(["car"]), (1,))
    (found,) = again(annotations, tmp_path, "coco")[0].images
    assert found.polygons == ((outline,), None)
    assert found.objects.masks == masks
    lost = write_annotations(annotations, tmp_path / "yolo", "yolo")
    assert lost == {"ids of objects": 2, "numbers of classes": 1}
    rows = read_table(tmp_path / "yolo").shapes
    assert np.round(np.array(rows[0][0]) * ([200, 100] * 4), 6).tolist() == list(outline)
    assert shape_mask([(np.array(rows[1][0]) * ([200, 100] * 4)).tolist()], (100, 200)) == square


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 24), st.integers(1, 24))
def test_outlines_of_a_mask_fill_to_the_same_mask_with_its_holes_closed(seed, h, w):
    from skimage.morphology import reconstruction

    pixels = np.random.default_rng(seed).random((h, w)) < 0.5
    rle = runs_to_coco(encode(pixels, order="column"), (h, w))
    padded = np.pad(pixels, 1)
    marker = np.ones_like(padded)
    marker[0], marker[-1], marker[:, 0], marker[:, -1] = padded[0], padded[-1], padded[:, 0], padded[:, -1]
    outside_4 = reconstruction(marker, padded, method="erosion", footprint=np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]))
    filled = outside_4.astype(bool)[1:-1, 1:-1]
    outlines = mask_polygons(rle)
    if not pixels.any():
        assert outlines == []
        return
    back = decode(coco_to_runs(shape_mask(outlines, (h, w))), (h, w), order="column")
    np.testing.assert_array_equal(back, filled)


@pytest.mark.parametrize("form", FORMS)
def test_detections_are_written_with_their_scores_in_every_form(tmp_path, form):
    boxes = np.array([[1.25, 2, 30, 40], [5, 6, 7.5, 8]])
    objects = Objects(boxes, np.array([1, 0]), np.array([np.float32(0.9), 0.125]))
    images = (AnnotatedImage(f"{i}.jpg", i, (100, 200), objects if i else Objects.none(scored=True)) for i in (0, 1))
    path = path_of(tmp_path, form)
    write_detections(path, form, images, LabelSpace.named(["car", "van"]), (3, 7))
    if form == "coco":
        rows = json.loads(path.read_text())
        assert [(r["image_id"], r["category_id"], r["bbox"]) for r in rows] == [
            (1, 7, [1.25, 2, 28.75, 38]),
            (1, 3, [5, 6, 2.5, 2]),
        ]
        assert [np.float32(r["score"]) for r in rows] == [np.float32(0.9), np.float32(0.125)]
        return
    table = read_table(path, form)
    assert table.scores.astype(np.float32).tolist() == [np.float32(0.9), 0.125]
    assert [table.categories[k].name for k in table.category] == ["van", "car"]
    assert len(table.images) == 2
    scale = [200, 100, 200, 100] if form == "yolo" else 1
    corner = [1, 1, 0, 0] if form == "voc" else 0
    np.testing.assert_allclose(table.boxes * scale - corner, boxes, atol=1e-9)


def test_an_error_on_the_way_leaves_nothing_behind(tmp_path):
    def images():
        yield AnnotatedImage("a.jpg", 1, (10, 10), Objects(np.array([[1, 1, 5, 5]]), np.zeros(1), np.ones(1)))
        raise DataError("the raster ends here")

    for form in FORMS:
        with pytest.raises(DataError, match="the raster ends here"):
            write_detections(path_of(tmp_path, form), form, images(), LabelSpace.named(["car"]))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_refused(tmp_path):
    labels = LabelSpace.named(["car"])
    one = Objects(np.array([[1, 1, 5, 5]]), np.zeros(1), np.ones(1))
    twins = [AnnotatedImage(name, 1, (10, 10), one) for name in ("a.jpg", "a.png")]
    with pytest.raises(DataError, match="would both be written to a"):
        write_detections(tmp_path / "voc", "voc", twins, labels)
    with pytest.raises(DataError, match="its size is not known"):
        write_detections(tmp_path / "yolo", "yolo", [AnnotatedImage("a.jpg", 1, (0, 0), one)], labels)
    bare = Objects(np.array([[1, 1, 5, 5]]), np.zeros(1))
    with pytest.raises(DataError, match="detections have scores, but these objects have none"):
        write_detections(tmp_path / "a.json", "coco", [AnnotatedImage("a.jpg", 1, (9, 9), bare)], labels)
    with pytest.raises(DataError, match=r"'\.\./a\.jpg' leads out of the folder"):
        write_detections(tmp_path / "voc", "voc", [AnnotatedImage("../a.jpg", 1, (9, 9), one)], labels)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("precious")
    with pytest.raises(OutputError, match=r"holds a\.jpg, which is no voc file, so it is not replaced"):
        write_detections(tmp_path / "photos", "voc", twins[:1], labels, overwrite=True)
    assert (tmp_path / "photos" / "a.jpg").read_text() == "precious"


@pytest.fixture
def coco(tmp_path, monkeypatch):
    """a.json with one ordinary, one crowd and one inverted box of a car; the working folder is there."""
    rows = [{"id": i, "image_id": 1, "category_id": 1, "bbox": [i, i, 20, 10], "iscrowd": i == 2} for i in (1, 2, 3)]
    rows[2]["bbox"] = [50, 50, -5, 5]
    images = [{"id": 1, "file_name": "a.jpg", "height": 100, "width": 200}]
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "car"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    return tmp_path


CONVERT = ["convert", "--annotations", "a.json", "--to", "voc", "--out", "voc"]


def test_the_verb_refuses_problems_until_a_policy_is_given_and_says_what_is_lost(coco, capsys):
    assert main(CONVERT) == 1
    assert "1 problems forbid converting, the first: a.json: annotation 3: box 50 50 45 55" in capsys.readouterr().err
    assert not (coco / "voc").exists()
    assert main([*CONVERT, "--policy", "inverted_box=fix"]) == 0
    out = capsys.readouterr().out
    assert "voc: 1 images, 3 objects, 1 classes" in out
    assert "voc cannot express: crowd regions are written as difficult objects (1)" in out
    assert "voc cannot express: ids of objects (3)" in out
    boxes = read_table(coco / "voc").boxes
    assert boxes.tolist() == [[2, 2, 21, 11], [3, 3, 22, 12], [46, 51, 50, 55]]  # from 1, the last pixel included
    assert main([*CONVERT, "--policy", "inverted_box=fix"]) == 1
    assert "exists already" in capsys.readouterr().err


def test_the_verb_writes_numbers_from_another_origin(coco):
    more = ["--policy", "inverted_box=drop", "--out-origin", "0", "--out-inclusive", "false"]
    assert main([*CONVERT, *more]) == 0
    assert read_table(coco / "voc").boxes.tolist() == [[1, 1, 21, 11], [2, 2, 22, 12]]


@pytest.mark.parametrize("form", FORMS)
def test_scores_of_a_set_are_kept_in_every_form(tmp_path, form):
    scores = np.array([0.25, np.nan, 1 / 3])
    objects = Objects(np.array([[1, 1, 5, 5], [6, 6, 9, 9], [2, 5, 7, 9]]), np.zeros(3), scores)
    annotations = AnnotationSet(
        (AnnotatedImage("a.jpg", 1, (10, 10), objects),), LabelSpace.named(["car"]), (int(form != "yolo"),)
    )
    path = path_of(tmp_path, form)
    assert write_annotations(annotations, path, form) == {}
    table = read_table(path)
    np.testing.assert_allclose(table.scores, scores, rtol=1e-8)
    assert len(table.images) == 1


def test_numbers_of_objects_are_kept_and_gaps_filled(tmp_path):
    objects = Objects(np.array([[i, 1, i + 3, 5] for i in range(5)]), np.zeros(5), ids=np.array([7, -1, 1, -1, 7]))
    image = AnnotatedImage("a.jpg", 1, (10, 10), objects)
    write_annotations(AnnotationSet((image,), LabelSpace.named(["car"]), (1,)), tmp_path / "a.json", "coco")
    rows = json.loads((tmp_path / "a.json").read_text())["annotations"]
    assert [row["id"] for row in rows] == [7, 2, 1, 3, 4]


def test_areas_that_yolo_cannot_express_are_counted(tmp_path):
    boxes = np.array([[10, 10, 30, 30], [40, 10, 60, 30], [70, 10, 90, 30.0]])
    objects = Objects(boxes, np.zeros(3), crowd=np.array([0, 0, 1], bool), areas=np.array([400.0, 111, 222]))
    image = AnnotatedImage("a.jpg", 1, (100, 200), objects)
    annotations = AnnotationSet((image,), LabelSpace.named(["car"]), (0,))
    lost = write_annotations(annotations, tmp_path / "yolo", "yolo")
    assert lost == {"crowd regions are left out": 1, "areas other than those of the box": 1}
    masks = tuple(box_mask(box, (100, 200)) for box in boxes)
    masked = replace(annotations, images=(replace(image, objects=replace(objects, masks=masks)),))
    lost = write_annotations(masked, tmp_path / "masks", "yolo")
    assert lost == {"crowd regions are left out": 1, "areas other than those of the mask": 1}


def one_image(name, category=0):
    objects = Objects(np.array([[1, 1, 5, 5]]), np.zeros(1))
    return AnnotationSet((AnnotatedImage(name, 1, (10, 10), objects),), LabelSpace.named(["car"]), (category,))


@pytest.mark.parametrize("name", ["classes.png", "Classes.jpg"])
def test_an_image_called_classes_has_no_place_among_yolo_files(tmp_path, name):
    with pytest.raises(DataError, match=r"its labels would be written to \w+\.txt, where the names of classes stand"):
        write_annotations(one_image(name), tmp_path / "yolo", "yolo")
    assert write_annotations(one_image(f"sub/{name}"), tmp_path / "yolo", "yolo") == {}


@pytest.mark.parametrize(
    ("form", "other", "told"),
    [
        ("yolo", "b.txt", "holds b.txt, which belongs to none of the images that are written"),
        ("yolo", "notes/classes.txt", "holds notes/classes.txt, which belongs to none of the images"),
        ("yolo", "run.yaml", "holds run.yaml, which is no yolo file"),
        ("yolo", "labels.cache", "holds labels.cache, which is no yolo file"),
        ("voc", "b.xml", "holds b.xml, which belongs to none of the images that are written"),
        ("voc", "data.yaml", "holds data.yaml, which is no voc file"),
    ],
)
def test_only_files_of_the_images_are_replaced(tmp_path, form, other, told):
    path = tmp_path / form
    write_annotations(one_image("a.jpg"), path, form)
    write_annotations(one_image("a.jpg"), path, form, overwrite=True)
    (path / other).parent.mkdir(exist_ok=True)
    (path / other).write_text("precious")
    with pytest.raises(OutputError, match=told):
        write_annotations(one_image("a.jpg"), path, form, overwrite=True)
    assert (path / other).read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == [form]


def test_a_data_yaml_stays_where_it_names_the_same_classes(tmp_path):
    path = tmp_path / "yolo"
    write_annotations(one_image("a.jpg"), path, "yolo")
    (path / "data.yaml").write_text("names: [car]\ntrain: there\n")
    write_annotations(one_image("a.jpg"), path, "yolo", overwrite=True)
    assert (path / "data.yaml").read_text() == "names: [car]\ntrain: there\n"
    (path / "data.yaml").write_text("names: [bus]\n")
    with pytest.raises(OutputError, match=r"data\.yaml: names the classes bus, but car are written; remove it"):
        write_annotations(one_image("a.jpg"), path, "yolo", overwrite=True)
    assert (path / "data.yaml").exists()


def test_the_verb_keeps_an_ignored_object_once_with_its_number(coco, capsys):
    data = json.loads((coco / "a.json").read_text())
    data["categories"] += [{"id": 5, "name": "van"}, {"id": 9, "name": "blur"}]
    data["annotations"][2] |= {"bbox": [50, 50, 5, 5], "category_id": 9, "id": 33}
    (coco / "a.json").write_text(json.dumps(data))
    assert main(["convert", "--annotations", "a.json", "--to", "coco", "--out", "b.json", "--ignore", "blur"]) == 0
    assert "coco cannot express: that objects are ignored whatever class is found there (1)" in capsys.readouterr().out
    written = json.loads((coco / "b.json").read_text())
    assert [(row["id"], row["category_id"], row.get("ignore", 0)) for row in written["annotations"]] == [
        (1, 1, 0),
        (2, 1, 0),
        (33, 9, 1),
    ]
    assert written["categories"] == data["categories"]
    (coco / "classes.yaml").write_text("[van, car]\n")
    table = ["--classes", "classes.yaml", "--ignore", "9"]
    assert main(["convert", "--annotations", "a.json", "--to", "csv", "--out", "b.csv", *table]) == 0
    table = read_table(coco / "b.csv")
    assert [table.categories[k].name for k in table.category] == ["car", "car", "blur"]
    assert table.flags["difficult"].tolist() == [False, False, True]


def test_the_verb_takes_everything_that_the_file_of_classes_says(coco, capsys):
    (coco / "classes.yaml").write_text("{classes: [car], policies: {inverted_box: fix, tiny_box: error}, form: coco}\n")
    assert main([*CONVERT, "--classes", "classes.yaml"]) == 0
    assert len(read_table(coco / "voc")) == 3
    assert main([*CONVERT, "--classes", "classes.yaml", "--policy", "inverted_box=error", "--overwrite"]) == 1
    assert "1 problems forbid converting" in capsys.readouterr().err
