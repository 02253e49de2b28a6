"""One pass over a dataset of objects: pixels stored, photos divided, everything wrong reported together."""

import json

import numpy as np
import pytest
from PIL import Image

from visionapps.data.dataset import Split
from visionapps.data.object_dataset import ObjectDataset, ObjectPolicies
from visionapps.data.object_doctor import examine_objects
from visionapps.data.proposals import write_proposals
from visionapps.errors import DataError
from visionapps.windows import Window


@pytest.fixture
def folder(tmp_path):
    """Six photos of 48 x 64 px: flights a and b of three, each with one object per photo; b3 is empty."""
    rng = np.random.default_rng(0)
    rows, images = [], []
    for i, name in enumerate(("a1", "a2", "a3", "b1", "b2", "b3"), 1):
        pixels = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((64, 48))
        path = tmp_path / "images" / name[0] / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels.save(path)
        images.append({"id": 10 * i, "file_name": f"{name[0]}/{name}.png", "height": 48, "width": 64})
        if name != "b3":
            rows.append({"id": i, "image_id": 10 * i, "category_id": 1 + i % 2, "bbox": [i, i, 20, 10]})
    names = [{"id": 1, "name": "car"}, {"id": 2, "name": "van"}, {"id": 3, "name": "bus"}]
    save(tmp_path, {"images": images, "annotations": rows, "categories": names})
    return tmp_path


def save(folder, content):
    (folder / "a.json").write_text(json.dumps(content))


def content(folder):
    return json.loads((folder / "a.json").read_text())


def dataset(folder, policies=None, **more):
    split = Split(group="^([ab])/", val_groups=("b",))
    settings = {"images": str(folder / "images"), "annotations": str(folder / "a.json"), "split": split}
    policies = ObjectPolicies(**(policies or {}))
    return ObjectDataset(**settings | {"cache": str(folder / "cache"), "policies": policies} | more)


def kinds(found):
    return sorted((p.kind, p.action) for p in found.problems)


def test_photos_are_divided_by_group_and_give_their_pixels_and_objects(folder):
    found = examine_objects(dataset(folder))
    assert [photo.name for photo in found.train] == ["a/a1.png", "a/a2.png", "a/a3.png"]
    assert [photo.group for photo in found.val] == ["b", "b", "b"]
    assert [photo.image_id for photo in found.val] == [40, 50, 60]
    assert (found.bands, found.dtype, found.category_ids) == (3, "uint8", (1, 2, 3))
    photo = found.train[1]
    stored = np.asarray(Image.open(folder / "images" / "a" / "a2.png"))
    np.testing.assert_array_equal(photo.image(Window(3, 4, 20, 30)), stored[3:23, 4:34])
    assert photo.objects.boxes.tolist() == [[2, 2, 22, 12]]
    assert kinds(found) == [("empty_image", "warning"), ("unused_class", "warning")]
    found.raise_on_errors()


def test_the_report_counts_objects_by_class_size_and_fate(folder):
    data = content(folder)
    data["annotations"][0]["bbox"] = [0, 0, 60, 40]
    data["annotations"].append({"id": 9, "image_id": 10, "category_id": 1, "bbox": [5, 5, -3, 4]})
    data["annotations"].append({"id": 10, "image_id": 20, "category_id": 1, "bbox": [60, 5, 9, 9]})
    save(folder, data)
    report = examine_objects(dataset(folder, {"inverted_box": "drop"})).to_dict()
    train = report["splits"]["train"]
    assert train["class_objects"] == {"car": 2, "van": 2, "bus": 0}
    assert train["class_photos"] == {"car": 1, "van": 2, "bus": 0}
    assert train["sizes"] == {"small": 3, "medium": 1, "large": 0}  # 60 x 40 = 2400 lies between 32^2 and 96^2
    assert train["most_objects"] == 2
    assert report["splits"]["val"]["empty_photos"] == 1
    assert report["objects_met"] == [
        {"kind": "inverted_box", "action": "dropped", "class": "car", "objects": 1},
        {"kind": "overhanging_box", "action": "fixed", "class": "car", "objects": 1},
    ]
    assert {"kind": "inverted_box", "action": "dropped", "count": 1} in report["counts"]
    assert json.loads(json.dumps(report)) == report


def test_truncated_photos_are_found_and_their_objects_counted(folder):
    path = folder / "images" / "a" / "a1.png"
    path.write_bytes(path.read_bytes()[:-60])
    found = examine_objects(dataset(folder))
    (problem,) = found.errors
    assert (problem.kind, problem.file) == ("corrupt", str(path))
    assert "truncated or corrupt" in problem.message
    with pytest.raises(DataError, match=r"has 1 problem \(1 corrupt\); the first: .*a1.png"):
        found.raise_on_errors()
    assert found.tally["unusable_image", "dropped", "van"] == 1
    assert [p.name for p in examine_objects(dataset(folder, {"corrupt": "drop"})).train] == ["a/a2.png", "a/a3.png"]


def test_headers_alone_are_enough_for_a_quick_look(folder):
    found = examine_objects(dataset(folder), pixels=False)
    assert not found.errors
    assert not (folder / "cache").exists()
    with pytest.raises(DataError, match="its pixels were not stored"):
        found.train[0].image(Window(0, 0, 2, 2))


def test_a_photo_that_looks_like_one_of_the_other_split_is_a_leak(folder):
    twin = Image.open(folder / "images" / "b" / "b1.png").transpose(Image.Transpose.ROTATE_90)
    twin.save(folder / "images" / "a" / "a3.png")
    found = examine_objects(dataset(folder, {"size_mismatch": "fix"}))
    (problem,) = found.errors
    assert problem.kind == "near_duplicate"
    assert "a3.png: trains, but looks like b/b1.png" in problem.message
    clean = examine_objects(dataset(folder, {"size_mismatch": "fix", "near_duplicate": "drop"}))
    assert [photo.name for photo in clean.train] == ["a/a1.png", "a/a2.png"]
    assert clean.tally["near_duplicate", "dropped", "van"] == 1


def test_photos_of_other_bands_are_reported(folder):
    Image.open(folder / "images" / "a" / "a1.png").convert("L").save(folder / "images" / "a" / "a1.png")
    found = examine_objects(dataset(folder, {"bands": "drop"}))
    assert ("bands", "dropped") in kinds(found)
    assert [photo.name for photo in found.train] == ["a/a2.png", "a/a3.png"]


def test_empty_images_are_welcome_unless_asked_to_leave(folder):
    assert len(examine_objects(dataset(folder)).val) == 3
    left = examine_objects(dataset(folder, {"empty_image": "drop"}))
    assert [photo.name for photo in left.val] == ["b/b1.png", "b/b2.png"]
    (problem,) = [p for p in left.problems if p.kind == "empty_image"]
    assert problem.message.startswith("1 of 6 images have no objects, so they are background (b/b3.png)")


def test_classes_on_one_side_only_are_reported(folder):
    data = content(folder)
    for row in data["annotations"]:
        row["category_id"] = 1 if row["id"] < 4 else 2
    save(folder, data)
    found = [p.message for p in examine_objects(dataset(folder)).problems if p.kind == "one_sided_class"]
    assert found == [
        "class car occurs in training only, so it cannot be judged; choose another split",
        "class van occurs in validation only, so it cannot be learned; choose another split",
    ]


def test_one_image_under_two_names_is_reported_and_its_objects_may_be_joined(folder):
    data = content(folder)
    data["images"].append({"id": 70, "file_name": ".\\a\\a1.png", "height": 48, "width": 64})
    data["annotations"].append({"id": 9, "image_id": 70, "category_id": 1, "bbox": [30, 5, 9, 9]})
    save(folder, data)
    (problem,) = examine_objects(dataset(folder)).errors
    assert problem.kind == "duplicate_image"
    assert "a.json: image 70: is a/a1.png, which" in problem.message
    sizes = [
        len(examine_objects(dataset(folder, {"duplicate_image": how})).train[0].objects) for how in ("fix", "drop")
    ]
    assert sizes == [2, 1]


def test_photos_are_decoded_once(folder, monkeypatch):
    examine_objects(dataset(folder))
    monkeypatch.setattr("visionapps.data.object_store.read_image", lambda *_: pytest.fail("decoded again"))
    assert len(examine_objects(dataset(folder)).train) == 3


def test_proposals_reach_the_photos_and_those_of_another_dataset_are_refused(folder):
    found = examine_objects(dataset(folder))
    photos = (*found.train, *found.val)
    boxes = {p.name: np.array([[0, 0, i + 1, 5]], np.float32) for i, p in enumerate(photos)}
    sizes = {p.name: p.size for p in photos}
    write_proposals(folder / "p.npz", boxes, sizes=sizes)
    again = examine_objects(dataset(folder, proposals=str(folder / "p.npz")))
    assert again.train[2].proposals.tolist() == [[0, 0, 3, 5]]
    assert found.train[2].proposals is None
    del boxes["a/a1.png"], sizes["a/a1.png"]
    write_proposals(folder / "q.npz", boxes, sizes=sizes)
    with pytest.raises(DataError, match="belongs to another dataset"):
        examine_objects(dataset(folder, proposals=str(folder / "q.npz")))


def test_the_real_set_is_sound_when_split_by_flight(shared_data, tmp_path):
    root = shared_data / "vehicles"
    settings = {"images": str(root / "images"), "annotations": str(root / "annotations_coco.json")}
    found = examine_objects(ObjectDataset(**settings, split=Split(group="^([^_]+)_")), pixels=False)
    assert not found.problems
    sides = [found.to_dict()["splits"][side] for side in ("train", "val")]
    assert sum(side["objects"] for side in sides) == 2628
    assert not set(sides[0]["groups"]) & set(sides[1]["groups"])
