"""The shared values: what they accept, what they refuse, and that plain data brings them back."""

import dataclasses
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from visionapps.errors import ConfigError
from visionapps.structures import GeoRef, InputSpec, LabelSpace, Level, distinct_colors


def test_the_default_input_is_8_bit_rgb_with_imagenet_statistics():
    spec = InputSpec()
    assert spec.bands == ("red", "green", "blue")
    assert (spec.scale, spec.mean, spec.std) == (255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("codec", [(json.dumps, json.loads), (yaml.safe_dump, yaml.safe_load)])
@pytest.mark.parametrize(
    "value",
    [
        InputSpec(("red", "nir"), 10_000.0, (0.1, 0.2), (0.3, 0.4)),
        LabelSpace(("road", "roof"), ((1, 2, 3), (4, 5, 6)), ignore=9),
    ],
)
def test_values_come_back_from_files_as_they_were(value, codec):
    write, read = codec
    again = type(value).from_dict(read(write(value.to_dict())))
    assert again == value
    assert hash(again) == hash(value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bands": ("red",)}, "1 bands, 3 means and 3 deviations; give one mean and one std per band"),
        ({"bands": (), "mean": (), "std": ()}, "0 bands, 0 means and 0 deviations"),
        ({"scale": 0.0}, "scale 0.0 and std (0.229, 0.224, 0.225) must be positive"),
        ({"std": (0.2, 0.0, 0.2)}, "std (0.2, 0.0, 0.2) must be positive"),
    ],
)
def test_an_input_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ConfigError) as caught:
        InputSpec(**arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": (), "colors": ()}, "0 names and 0 colours; give one colour per class"),
        ({"names": ("a", "b"), "colors": ((0, 0, 0),)}, "2 names and 1 colours"),
        ({"names": ("a", "b", "a"), "colors": ((0, 0, 0),) * 3}, "class names must differ, but a occur more than once"),
        ({"names": ("a", "b"), "colors": ((0, 0, 0),) * 2, "ignore": 1}, "2 classes with ignore label 1"),
    ],
)
def test_a_label_space_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ConfigError) as caught:
        LabelSpace(**arguments)
    assert message in str(caught.value)


def test_255_classes_are_the_most_that_fit_beside_void():
    space = LabelSpace.named([f"class {i}" for i in range(255)])
    assert len(space) == space.ignore == 255


@given(st.integers(0, 255))
def test_default_colours_are_distinct_and_8_bit(count):
    colors = distinct_colors(count)
    assert len(set(colors)) == len(colors) == count
    assert all(0 <= channel <= 255 for color in colors for channel in color)


def test_colours_do_not_change_when_classes_are_added():
    assert distinct_colors(5) == distinct_colors(30)[:5]


@pytest.mark.parametrize(
    "value", [InputSpec(), LabelSpace.named(["a"]), GeoRef("EPSG:4326", (1.0, 0.0, 0.0, 0.0, -1.0, 0.0))]
)
def test_values_cannot_be_changed(value):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, None)


def test_a_level_reads_as_stride_and_channels():
    assert Level(8, 40) == (8, 40)
    assert Level(stride=8, channels=40).stride == 8


def test_boxes_may_have_more_classes_than_masks():
    assert len(LabelSpace.named([str(i) for i in range(1203)])) == 1203
