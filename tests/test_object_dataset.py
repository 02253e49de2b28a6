"""What a person may write about a dataset of objects, and what a photo of it gives."""

import numpy as np
import pytest

from visionapps.data.dataset import Split
from visionapps.data.object_dataset import ObjectDataset, ObjectPhoto, ObjectPolicies
from visionapps.errors import ConfigError, DataError
from visionapps.objects import Objects
from visionapps.windows import Window


def test_every_policy_names_its_outcome_and_refuses_other_words():
    policies = ObjectPolicies(zero_area="drop", inverted_box="fix", tiny_box="error")
    outcomes = [policies.action(kind) for kind in ("zero_area", "inverted_box", "tiny_box", "full_box", "no_such_kind")]
    assert outcomes == ["dropped", "fixed", "error", "warning", "warning"]
    with pytest.raises(ConfigError, match=r"policies.zero_area: 'fix' is no choice; write one of error, drop"):
        ObjectPolicies(zero_area="fix")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "pascal"}, "form: 'pascal' is no choice; write one of auto, coco, voc, yolo, csv"),
        ({"split": Split(block_px=64)}, "split.block_px: photos with objects are not cut"),
        ({"cache_gb": 0}, "cache_gb: 0 must be positive"),
        ({"origin": float("nan")}, "origin: nan must be a number"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        ObjectDataset(images="i", annotations="a", **settings)


def test_lists_from_yaml_become_tuples():
    dataset = ObjectDataset(images="i", annotations="a", classes=["car"], leave_out=["van"], bands=[1, 2])
    assert (dataset.classes, dataset.leave_out, dataset.bands) == (("car",), ("van",), (1, 2))


def test_a_photo_gives_the_pixels_of_windows_inside_it(tmp_path):
    pixels = np.arange(60, dtype=np.uint16).reshape(4, 5, 3)
    np.save(tmp_path / "image.npy", pixels)
    photo = ObjectPhoto("a.png", "a", "a.png", 1, (4, 5), Objects.none(), folder=str(tmp_path))
    np.testing.assert_array_equal(photo.image(Window(1, 2, 3, 2)), pixels[1:4, 2:4])
    with pytest.raises(ConfigError, match="is not inside the photo of 4 x 5 px"):
        photo.image(Window(2, 0, 3, 2))


def test_a_photo_without_pixels_says_why(tmp_path):
    bare = ObjectPhoto("a.png", "a", "photos/a.png", 1, (4, 5), Objects.none())
    with pytest.raises(DataError, match="photos/a\\.png: its pixels were not stored"):
        bare.image(Window(0, 0, 1, 1))
    gone = ObjectPhoto("a.png", "a", "photos/a.png", 1, (4, 5), Objects.none(), folder=str(tmp_path / "gone"))
    with pytest.raises(DataError, match="the stored photo is gone"):
        gone.image(Window(0, 0, 1, 1))
