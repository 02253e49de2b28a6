"""Groups of settings: what YAML and Python bring, and what is refused."""

import pytest

from visionapps.errors import ConfigError
from visionapps.models.options import Features, Proposing, Pyramids, Regions


def test_lists_of_yaml_become_tuples():
    assert Features(strides=[8, 16]).strides == (8, 16)
    assert Proposing(sizes=[[16, 24], [32]]).sizes == ((16.0, 24.0), (32.0,))
    assert Regions(background=[0.1, 0.5]).background == (0.1, 0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Features(strides=16), r"features\.strides: 16 must be a list of numbers"),
        (lambda: Proposing(sizes=(32, 64)), r"proposing\.sizes: \(32, 64\) must be one list of anchor sizes per map"),
        (lambda: Proposing(sizes=[["a"]]), r"proposing\.sizes: \['a'\] must be a list of numbers"),
        (lambda: Proposing(ratios=0.5), r"proposing\.ratios: 0\.5 must be a list of numbers"),
        (lambda: Regions(background=(0.5,)), r"regions\.background: \(0\.5,\) must be 2 numbers"),
        (lambda: Pyramids(bins=6), r"pyramids\.bins: 6 must be a list of numbers"),
        (lambda: Pyramids(scales=()), r"pyramids\.scales: \(\) must be a list of numbers"),
    ],
)
def test_plain_mistakes_say_what_is_expected(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
