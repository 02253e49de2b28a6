"""CSV annotations: a row per object, columns by their usual names."""

import pytest

from visionapps.data.annotations import read_annotations, read_table
from visionapps.data.object_dataset import ObjectDataset, ObjectPolicies
from visionapps.errors import DataError


def read(tmp_path, text, **policies):
    path = tmp_path / "boxes.csv"
    path.write_text(text)
    return read_annotations(ObjectDataset(images="", annotations=str(path), policies=ObjectPolicies(**policies)))


@pytest.mark.parametrize(
    "text",
    [
        "image,xmin,ymin,xmax,ymax,class\na.jpg,1,2,31,42,car\n",
        "image_path,xmin,ymin,xmax,ymax,label\na.jpg,1,2,31,42,car\n",
        "filename;width;height;class;xmin;ymin;xmax;ymax\na.jpg;200;100;car;1;2;31;42\n",
        "File\tX\tY\tWidth\tHeight\tLabel\na.jpg\t1\t2\t30\t40\tcar\n",
        "img,x1,y1,x2,y2,category\na.jpg,1,2,31,42,car\n",
        "img,x0,y0,x1,y1,category\na.jpg,1,2,31,42,car\n",
        "\ufefffile_name,bbox_x,bbox_y,bbox_width,bbox_height,class_name\na.jpg,1,2,30,40,car\n",
        "a.jpg,1,2,31,42,car\n",
    ],
)
def test_columns_are_found_by_their_usual_names(tmp_path, text):
    found = read(tmp_path, text)
    assert not found.problems
    assert found.labels.names == ("car",)
    assert [(image.name, image.objects.boxes.tolist()) for image in found.images] == [("a.jpg", [[1, 2, 31, 42]])]


def test_width_and_height_beside_corners_are_those_of_the_image(tmp_path):
    found = read(tmp_path, "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,200,100,car,1,2,31,42\n")
    assert found.images[0].size == (100, 200)


def test_rows_without_a_box_are_images_without_objects_and_extras_are_kept(tmp_path):
    text = (
        "image,image_id,xmin,ymin,xmax,ymax,class,category_id,crowd,difficult,truncated,area,id\n"
        "a.jpg,7,1,2,31,42,car,3,0,1,1,55.5,12\n"
        "b.jpg,9,,,,,,,,,,,\n"
        'a.jpg,7,5,5,9,9,"van, white",8,true,0,0,,\n'
    )
    found = read(tmp_path, text)
    first, second = found.images
    assert (first.image_id, second.image_id, len(second.objects)) == (7, 9, 0)
    assert found.labels.names == ("car", "van, white")
    assert found.category_ids == (3, 8)
    assert first.objects.crowd.tolist() == [False, True]
    assert first.objects.difficult.tolist() == [True, False]
    assert first.truncated.tolist() == [True, False]
    assert first.objects.areas.tolist() == [55.5, 16]
    assert first.objects.ids.tolist() == [12, -1]


def test_scores_make_them_detections(tmp_path):
    found = read(tmp_path, "image,xmin,ymin,xmax,ymax,class,confidence\na.jpg,1,2,31,42,car,0.75\n")
    assert found.images[0].objects.scores.tolist() == [0.75]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("a.jpg,1,2,x,42,car", "line 3: the box is '1', '2', 'x', '42', but four numbers are expected"),
        (",1,2,3,42,car", "line 3: the image has no name"),
        ("a.jpg,1,2", "line 3: the box is '1', '2', '', ''"),
    ],
)
def test_bad_rows_are_reported_with_their_line(tmp_path, row, text):
    found = read(tmp_path, f"image,xmin,ymin,xmax,ymax,class\na.jpg,5,5,9,9,car\n{row}\n")
    (problem,) = found.errors
    assert problem.kind == "unreadable"
    assert text in problem.message
    assert len(found.images[0].objects) == 1


def test_files_without_the_columns_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("image,xmin,ymin,class\n")
    with pytest.raises(DataError, match="has the columns image, xmin, ymin, class, but an image, a box"):
        read_table(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(DataError, match="is empty; the first line names the columns"):
        read_table(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("")
    with pytest.raises(DataError, match="has 2 CSV files; name the one"):
        read_table(tmp_path, "csv")


def test_flags_are_read_however_a_program_writes_them(tmp_path):
    flags = ["1.0", "True", "yes", "2", "0.0", "False", "no", ""]
    rows = [f"a.jpg,{10 * i},2,{10 * i + 5},42,car,{flag}" for i, flag in enumerate(flags)]
    found = read(tmp_path, "image,xmin,ymin,xmax,ymax,class,iscrowd\n" + "\n".join(rows) + "\n")
    assert not found.problems
    assert found.images[0].objects.crowd.tolist() == [True] * 4 + [False] * 4
    found = read(tmp_path, "image,xmin,ymin,xmax,ymax,class,iscrowd\na.jpg,1,2,31,42,car,perhaps\n" + rows[0] + "\n")
    (problem,) = found.errors
    assert "line 2: crowd is 'perhaps', but 0 or 1 is expected" in problem.message
    assert len(found.images[0].objects) == 1


@pytest.mark.parametrize("row", ["a.jpg,1,2,31,42,,", "a.jpg,1,2,31,42,,x"])
def test_an_object_without_a_class_is_reported(tmp_path, row):
    found = read(tmp_path, f"image,xmin,ymin,xmax,ymax,class,category_id\na.jpg,5,5,9,9,car,3\n{row}\n")
    assert found.labels.names == ("car",)
    (problem,) = found.errors
    assert problem.kind == "unreadable"
    assert "boxes.csv: line 3: the object has no class; write it" in problem.message
    assert len(found.images[0].objects) == 1
