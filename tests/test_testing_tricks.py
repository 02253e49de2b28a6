"""Photos looked at densely, by squares, at several scales, and by several models."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from visionapps.backbones.library_networks import LibraryNetwork
from visionapps.classification import crops as cropping
from visionapps.classification import fusion
from visionapps.classification.base import Classifier
from visionapps.data.class_crops import middle_square
from visionapps.data.images import resize_image
from visionapps.errors import ConfigError, DataError
from visionapps.inference.bundle import Bundle
from visionapps.inference.testing_tricks import PhotoTester, predictions
from visionapps.networks.base import PooledHead
from visionapps.structures import Frame, InputSpec, LabelSpace

FRAME = Frame(16, 0.8)  # photos are brought to 20 px
PHOTO = np.random.default_rng(0).integers(0, 256, (30, 44, 3), np.uint8)


def model(seed: int = 0, classes: int = 4) -> Classifier:
    torch.manual_seed(seed)
    features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU())
    network = LibraryNetwork(OrderedDict(body=features), PooledHead(8, classes), 16)
    nn.init.normal_(network.get_parameter("head.linear.weight"))
    return Classifier(network, InputSpec(), classes).eval()


def bundle(seed: int = 0, frame: Frame = FRAME, names: str = "abcd") -> Bundle:
    return Bundle(model(seed, len(names)), LabelSpace.named(tuple(names)), frame.side, frame=frame)


def probabilities(classifier: Classifier, images: Sequence[np.ndarray]) -> np.ndarray:
    """Each image by itself, in the plainest way."""
    with torch.no_grad():
        rows = [classifier(torch.from_numpy(i.transpose(2, 0, 1).copy())[None]).softmax(1)[0] for i in images]
    return torch.stack(rows).numpy()


@given(st.integers(1, 40), st.integers(0, 60), st.integers(0, 60), st.sampled_from([1, 10, 50]))
def test_squares_lie_inside_and_reach_from_edge_to_edge(
    side: int, down: int, right: int, crops: cropping.Crops
) -> None:
    found = cropping.places((side + down, side + right), side, crops)
    assert len(found) == {1: 1, 10: 5, 50: 25}[crops]
    assert all(0 <= top <= down and 0 <= left <= right for top, left in found)
    if crops > 1:
        assert {(0, 0), (0, right), (down, 0), (down, right)} <= set(found)
    if crops == 50:
        gaps = np.diff(sorted({top for top, _ in found}))
        assert down < 8 or gaps.max() - gaps.min() <= 1


def test_a_grid_of_256_px_has_the_corners_of_the_paper() -> None:
    assert sorted({top for top, _ in cropping.places((256, 256), 224, 50)}) == [0, 8, 16, 24, 32]
    assert cropping.places((256, 300), 224, 10) == ((0, 0), (0, 76), (16, 38), (32, 0), (32, 76))


def test_squares_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        ConfigError, match="squares of 16 px do not fit into a photo of 15 x 30 px; choose scales of 16"
    ):
        cropping.places((15, 30), 16, 10)


def test_one_square_is_what_validation_sees() -> None:
    expected = probabilities(model(), [middle_square(PHOTO, FRAME)])[0]
    found = predictions(bundle(), PHOTO, fusion.TestPlan())
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_ten_squares_are_averaged_with_their_mirror_images() -> None:
    scaled = resize_image(PHOTO, FRAME.size(30, 44))
    squares = [scaled[t : t + 16, x : x + 16] for t, x in ((0, 0), (0, 13), (4, 0), (4, 13), (2, 6))]
    assert scaled.shape == (20, 29, 3)
    expected = probabilities(model(), squares + [square[:, ::-1] for square in squares]).mean(0)
    found = predictions(bundle(), PHOTO, fusion.TestPlan(crops=10))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_dense_answers_average_mirrored_photos_and_scales_after_the_softmax() -> None:
    looks = [resize_image(PHOTO, size) for size in ((18, 26), (24, 35))]  # a pooled head averages over positions itself
    expected = probabilities(model(), looks + [look[:, ::-1] for look in looks]).mean(0)
    plan = fusion.TestPlan(dense=True, crops=None, scales=(18, 24))
    np.testing.assert_allclose(predictions(bundle(), PHOTO, plan), expected, atol=1e-6)


def test_fusion_is_the_mean_of_dense_and_squares() -> None:
    scales = (18, 24)
    dense = predictions(bundle(), PHOTO, fusion.TestPlan(dense=True, crops=None, scales=scales))
    squares = predictions(bundle(), PHOTO, fusion.TestPlan(crops=50, scales=scales))
    both = predictions(bundle(), PHOTO, fusion.TestPlan(dense=True, crops=50, scales=scales))
    np.testing.assert_allclose(both, (dense + squares) / 2, atol=1e-6)
    assert abs(dense - squares).max() > 1e-3


def test_members_are_averaged_each_in_its_own_frame() -> None:
    other = Frame(12, 1.0)
    alone = [predictions(each, PHOTO, fusion.TestPlan()) for each in (bundle(), bundle(1, other))]
    tester = PhotoTester([bundle(), bundle(1, other)], "cpu", "fp32", plan=fusion.TestPlan())
    found = next(tester.probabilities([PHOTO]))
    np.testing.assert_allclose(found, np.mean(alone, 0), atol=1e-6)


def test_a_stream_gives_what_single_photos_give_and_counts_its_cost() -> None:
    rng = np.random.default_rng(1)
    photos = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((30, 44), (44, 30), (30, 44), (25, 25), (30, 44))]
    plan = fusion.TestPlan(dense=True, crops=10, scales=(18, 24))
    tester = PhotoTester([bundle()], "cpu", "fp32", 41, plan=plan)
    found = list(tester.probabilities(iter(photos)))
    for photo, row in zip(photos, found, strict=True):
        np.testing.assert_allclose(row, predictions(bundle(), photo, plan), atol=1e-6)
    assert (tester.cost.photos, tester.cost.forwards) == (5, 5 * (2 * 2 + 2 * 10))
    squares = 5 * 20 * 16 * 16
    assert tester.cost.pixels == squares + 2 * (4 * (18 * 26 + 24 * 35) + 18 * 18 + 24 * 24)
    assert tester.cost.seconds > 0


def test_a_stream_reads_no_further_than_a_batch_ahead() -> None:
    read = 0

    def photos() -> Iterator[np.ndarray]:
        nonlocal read
        while True:
            read += 1
            yield PHOTO

    tester = PhotoTester([bundle()], "cpu", "fp32", 20, plan=fusion.TestPlan(crops=10))
    next(tester.probabilities(photos()))
    assert read == 2


def test_scales_of_the_papers() -> None:
    assert fusion.scales_after(256) == (224, 256, 288)
    assert fusion.scales_after(384) == (352, 384, 416)
    assert fusion.scales_after((256, 512)) == (256, 384, 512)


def test_plans_describe_themselves() -> None:
    assert fusion.TestPlan().describe() == "1 crop"
    assert fusion.TestPlan(dense=True, crops=50, scales=(256, 384)).describe() == (
        "dense + mirrored and 50 crops at 256, 384 px"
    )
    assert fusion.TestPlan(crops=10, flips=False).describe() == "5 crops"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crops": 144}, "144 crops is no choice; write 1, 10 or 50"),
        ({"crops": None}, "neither dense nor crops"),
        ({"scales": (256, 256)}, "scales 256, 256 must be shorter sides in pixels, all different"),
    ],
)
def test_impossible_plans_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fusion.TestPlan(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("names", ["acbd", "abce", "abcde"])
def test_models_of_other_classes_are_not_averaged(names: str) -> None:
    with pytest.raises(ConfigError, match=r"classes that differ from class \d on .*only bundles of the same classes"):
        PhotoTester([bundle(), bundle(names=names)], "cpu", plan=fusion.TestPlan())


def test_a_grey_photo_is_repeated_and_one_of_two_bands_is_refused() -> None:
    grey = PHOTO[:, :, :1]
    expected = predictions(bundle(), np.repeat(grey, 3, 2), fusion.TestPlan())
    assert np.array_equal(predictions(bundle(), grey, fusion.TestPlan()), expected)
    with pytest.raises(DataError, match="a photo has 2 bands, but the model takes 3"):
        predictions(bundle(), PHOTO[:, :, :2], fusion.TestPlan())
