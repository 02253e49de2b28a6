"""The made-up detection data set: what its files say is what its pictures show."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from visionapps.data.fake_objects import CLASSES, COLORS, write_fake_objects
from visionapps.errors import ConfigError


def test_boxes_and_areas_are_those_of_the_masks_as_pycocotools_reads_them(tmp_path):
    files = write_fake_objects(tmp_path, images=12, size=128)
    coco = COCO(str(files.annotations))
    assert len(coco.anns) > 20
    for entry in coco.anns.values():
        rows, cols = coco.annToMask(entry).nonzero()
        x0, y0 = cols.min(), rows.min()
        assert entry["bbox"] == [x0, y0, cols.max() + 1 - x0, rows.max() + 1 - y0]
        assert entry["area"] == len(rows)


def test_every_object_has_the_colour_of_its_class(tmp_path):
    files = write_fake_objects(tmp_path, images=8)
    coco = COCO(str(files.annotations))
    names = {c["id"]: c["name"] for c in coco.cats.values()}
    for entry in coco.anns.values():
        image = np.array(Image.open(files.images / coco.imgs[entry["image_id"]]["file_name"]))
        mean = image[coco.annToMask(entry).astype(bool)].mean(0)
        cosine = [mean @ np.array(c) / np.linalg.norm(mean) / np.linalg.norm(c) for c in COLORS]
        assert CLASSES[int(np.argmax(cosine))] == names[entry["category_id"]]


def test_some_images_are_empty_and_some_have_a_crowd_and_nothing_overlaps(tmp_path):
    content = json.loads(write_fake_objects(tmp_path, images=24, size=96).annotations.read_text())
    with_objects = {a["image_id"] for a in content["annotations"]}
    assert {i["id"] for i in content["images"]} - with_objects == {6, 12, 18, 24}
    assert {a["image_id"] for a in content["annotations"] if a["iscrowd"]} == {3, 7, 11, 15, 19, 23}
    assert {a["category_id"] for a in content["annotations"]} == {3, 7, 20}
    for image in with_objects:
        cover = np.zeros((96, 96), int)
        for entry in content["annotations"]:
            if entry["image_id"] == image:
                x, y, w, h = entry["bbox"]
                cover[y : y + h, x : x + w] += 1
        assert cover.max() == 1


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_ones(tmp_path):
    first, again, other = (
        write_fake_objects(tmp_path / name, images=3, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first.annotations.read_bytes() == again.annotations.read_bytes() != other.annotations.read_bytes()
    for name in ("site1_1.png", "site1_2.png", "site1_3.png"):
        assert (first.images / name).read_bytes() == (again.images / name).read_bytes()


def test_sizes_that_hold_nothing_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="size 16 >= 32"):
        write_fake_objects(tmp_path, size=16)
