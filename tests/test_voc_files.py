"""Pascal VOC annotations: one XML per image."""

import shutil

import numpy as np
import pytest
from PIL import Image

from visionapps.data.annotations import read_annotations, read_table
from visionapps.data.object_dataset import ObjectDataset, ObjectPolicies
from visionapps.errors import DataError

OBJECT = """
  <object><name>{name}</name><truncated>{cut}</truncated><difficult>{hard}</difficult>
    <bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"""


def voc(folder, stem, *boxes, filename=None, size=(100, 200), name="car", hard=0, cut=0):
    """A VOC file of an image of 100 x 200 px."""
    objects = "".join(OBJECT.format(*box, name=name, hard=hard, cut=cut) for box in boxes)
    head = f"<filename>{filename or stem + '.png'}</filename>"
    head += f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    path = folder / f"{stem}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation>\n{head}{objects}\n</annotation>")
    return path


def photo(folder, name, size=(100, 200)):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(folder / name)


def read(path, images="", policies=None, **settings):
    chosen = ObjectPolicies(**(policies or {}))
    return read_annotations(ObjectDataset(images=str(images), annotations=str(path), policies=chosen, **settings))


def test_the_standard_counts_pixels_from_one_and_includes_the_last(tmp_path):
    voc(tmp_path, "a", (1, 1, 200, 100), (3, 5, 3, 8), hard=1, cut=1)
    (image,) = read(tmp_path).images
    assert image.name == "a.png"
    assert image.objects.boxes.tolist() == [[0, 0, 200, 100], [2, 4, 3, 8]]  # the second is one pixel wide
    assert image.objects.difficult.all()
    assert image.truncated.tolist() == [True, True]
    assert image.size == (100, 200)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [9, 19, 30, 40]),
        ({"origin": 1}, [9, 19, 30, 40]),
        ({"origin": 0}, [10, 20, 30, 40]),
        ({"origin": 0, "inclusive": True}, [10, 20, 31, 41]),
        ({"origin": 1, "inclusive": False}, [9, 19, 29, 39]),
        ({"origin": -0.5}, [10.5, 20.5, 30.5, 40.5]),
    ],
)
def test_origin_and_inclusive_say_what_numbers_mean(tmp_path, settings, expected):
    voc(tmp_path, "a", (10, 20, 30, 40))
    assert read(tmp_path, **settings).images[0].objects.boxes.tolist() == [expected]


def test_one_coordinate_of_0_shows_that_a_set_does_not_count_from_1(tmp_path):
    voc(tmp_path, "a", (10, 20, 30, 40))
    voc(tmp_path, "b", (0, 20, 30, 40), (50, 0, 200, 100))
    found = read(tmp_path)
    (problem,) = found.errors
    assert problem.kind == "origin"
    assert "b.xml: line 3: has the coordinate 0, and so have 2 objects" in problem.message
    assert "set origin: 0" in problem.message
    assert "inclusive" not in problem.message  # x1 = 200 is the right edge of 200 px
    assert not read(tmp_path, origin=0).errors
    voc(tmp_path, "b", (0, 20, 30, 40), (50, 0, 199, 99))
    assert "inclusive: true" in read(tmp_path).errors[0].message


def test_the_stem_of_the_file_names_its_image_and_else_what_is_written_in_it(tmp_path):
    images, xml = tmp_path / "images", tmp_path / "xml"
    for name in ("a.png", "sub/b.png", "c.png", "deep/down/d.png"):
        photo(images, name)
    voc(xml, "a", (5, 5, 9, 9), filename="of\\another\\time.jpg")
    voc(xml, "sub/b", (5, 5, 9, 9))
    voc(xml, "0001", (5, 5, 9, 9), filename="D:/old/c.png".removeprefix("D:/"))
    voc(xml, "d", (5, 5, 9, 9))
    found = read(xml, images)
    assert [image.name for image in found.images] == ["a.png", "c.png", "deep/down/d.png", "sub/b.png"]
    assert [image.image_id for image in found.images] == [1, 2, 3, 4]
    assert not found.problems


@pytest.mark.parametrize("written", ["../../secret.png", "/etc/a.png", "C:\\photos\\a.png", "x/../../a.png"])
def test_names_that_leave_the_folder_of_images_are_refused(tmp_path, written):
    photo(tmp_path / "images", "b.png")
    photo(tmp_path, "secret.png")
    voc(tmp_path / "xml", "b", (5, 5, 9, 9))
    voc(tmp_path / "xml", "zzz", (5, 5, 9, 9), filename=written)
    found = read(tmp_path / "xml", tmp_path / "images")
    assert [(p.kind, p.action) for p in found.problems] == [("path", "error")]
    assert f"zzz.xml: image name {written!r} leads out of the folder of images" in found.problems[0].message
    assert [image.name for image in found.images] == ["b.png"]


def test_files_that_are_no_annotations_and_boxes_without_numbers_are_reported_with_their_line(tmp_path):
    voc(tmp_path, "a", (10, 20, 30, 40), ("ten", 20, 30, ""))
    (tmp_path / "b.xml").write_text("<annotation><object>")
    (tmp_path / "c.xml").write_text("<html></html>")
    found = read(tmp_path)
    assert [p.message.removeprefix(str(tmp_path))[1:41] for p in found.errors] == [
        "a.xml: line 5: bndbox has 'ten', '20', '",
        "b.xml: is no valid XML (no element found",
        "c.xml: begins with <html>, but a VOC fil",
    ]
    assert len(found.images) == 1
    assert len(found.images[0].objects) == 1
    assert not read(tmp_path, policies={"unreadable": "drop"}).errors


def test_entities_that_blow_up_or_fetch_files_are_refused(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    xml = tmp_path / "xml"
    xml.mkdir()
    for name, entity in (("a", '"ha ha ha"'), ("b", f'SYSTEM "{tmp_path / "secret.txt"}"')):
        doctype = f"<!DOCTYPE annotation [<!ENTITY e {entity}>]>"
        (xml / f"{name}.xml").write_text(f"{doctype}<annotation><filename>&e;</filename></annotation>")
    found = read_table(xml)
    assert len(found.images) == 0
    assert [note.kind for note in found.notes] == ["unreadable", "unreadable"]
    assert all("EntitiesForbidden" in note.message for note in found.notes)


def test_images_and_annotations_without_each_other_are_reported(tmp_path):
    photo(tmp_path / "images", "a.png")
    photo(tmp_path / "images", "alone.png")
    voc(tmp_path / "xml", "a", (5, 5, 9, 9))
    voc(tmp_path / "xml", "gone", (5, 5, 9, 9))
    found = read(tmp_path / "xml", tmp_path / "images")
    assert [(p.kind, p.action) for p in found.problems] == [("missing_image", "error"), ("unlisted_image", "dropped")]
    assert "gone.xml: there is no image gone" in found.problems[0].message
    assert "alone.png: no annotation mentions this image" in found.problems[1].message
    welcome = read(tmp_path / "xml", tmp_path / "images", {"unlisted_image": "fix", "missing_image": "drop"})
    assert [(image.name, len(image.objects)) for image in welcome.images] == [("a.png", 1), ("alone.png", 0)]
    shutil.rmtree(tmp_path / "xml")
    voc(tmp_path / "xml", "gone", (5, 5, 9, 9))
    with pytest.raises(DataError, match=r"none of its 1 images \(such as gone\) is in .*images, which holds 2 others"):
        read(tmp_path / "xml", tmp_path / "images")


def test_an_image_of_another_size_than_its_annotation_says_is_reported_and_the_image_is_right(tmp_path):
    photo(tmp_path / "images", "a.png", (100, 180))
    voc(tmp_path / "xml", "a", (150, 5, 200, 9))
    found = read(tmp_path / "xml", tmp_path / "images")
    assert [p.kind for p in found.errors] == ["size_mismatch"]
    assert "a.xml: the annotation is for 100 x 200 px (H x W), but" in found.errors[0].message
    assert "a.png has 100 x 180" in found.errors[0].message
    mended = read(tmp_path / "xml", tmp_path / "images", {"size_mismatch": "fix"}).images[0]
    assert mended.size == (100, 180)
    assert mended.objects.boxes.tolist() == [[149, 4, 180, 9]]  # clipped to the image that is there


def test_exif_turned_photos_are_named_and_boxes_drawn_on_the_turned_one_refused(tmp_path):
    (tmp_path / "images").mkdir()
    tag = Image.Exif()
    tag[0x0112] = 6
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(np.zeros((100, 200, 3), np.uint8)).save(tmp_path / "images" / name, exif=tag)
    voc(tmp_path / "xml", "a", (5, 5, 9, 9))
    voc(tmp_path / "xml", "b", (5, 5, 9, 9), size=(200, 100))
    found = read(tmp_path / "xml", tmp_path / "images")
    assert [(p.kind, p.action) for p in found.problems] == [("rotated", "warning"), ("size_mismatch", "error")]
    assert all("EXIF says that viewers turn it (orientation 6)" in p.message for p in found.problems)


def test_an_object_without_a_name_and_a_flag_that_is_none_are_reported(tmp_path):
    voc(tmp_path, "a", (10, 20, 30, 40), cut="Unspecified")
    voc(tmp_path, "b", (10, 20, 30, 40), name="")
    voc(tmp_path, "c", (10, 20, 30, 40), hard="hard")
    found = read(tmp_path)
    assert found.labels.names == ("car",)
    assert [(p.kind, p.message.removeprefix(f"{tmp_path}/")) for p in found.errors] == [
        ("unreadable", "b.xml: line 3: the object has no <name>; write its class"),
        ("unreadable", "c.xml: line 3: difficult is 'hard', but 0 or 1 is expected; correct it"),
    ]
    assert [len(image.objects) for image in found.images] == [1, 0, 0]


def test_where_every_file_is_broken_the_message_names_the_first(tmp_path):
    (tmp_path / "a.xml").write_text("<annotation><object>")
    (tmp_path / "b.xml").write_text("<annotation")
    with pytest.raises(DataError, match=r"a\.xml: is no valid XML .* \(2 such places\); the files name no class"):
        read(tmp_path)
