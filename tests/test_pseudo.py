"""Which pixels of a map teach: counted, chosen and told, against loops over pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visionapps.competition.pseudo import Rule, Tally, count_levels, unsure
from visionapps.errors import ConfigError

LABELS = np.array([[0, 0, 0, 1], [1, 2, 255, 0]], np.uint8)
CONFIDENCE = np.array([[254, 229, 228, 254], [100, 0, 255, 10]], np.uint8)


def test_pixels_are_counted_by_label_and_confidence_and_those_without_data_are_not():
    counts = count_levels(LABELS, CONFIDENCE, 4)
    assert counts.shape == (4, 255)
    assert {(k, level): int(counts[k, level]) for k, level in np.argwhere(counts).tolist()} == {
        (0, 254): 1,
        (0, 229): 1,
        (0, 228): 1,
        (0, 10): 1,
        (1, 254): 1,
        (1, 100): 1,
        (2, 0): 1,
    }


def test_a_confidence_of_0_9_keeps_steps_from_229_of_254_on():
    least = Rule(confidence=0.9).least(count_levels(LABELS, CONFIDENCE, 3))
    np.testing.assert_array_equal(least, [229] * 3)
    np.testing.assert_array_equal(unsure(LABELS, CONFIDENCE, least), [[0, 0, 1, 0], [1, 1, 1, 1]])


def test_without_a_rule_everything_with_data_is_kept():
    void = unsure(LABELS, CONFIDENCE, Rule().least(count_levels(LABELS, CONFIDENCE, 3)))
    np.testing.assert_array_equal(void, LABELS == 255)


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 1.0))
def test_keep_is_the_fewest_whole_levels_from_the_top_that_reach_the_share_of_every_class(seed, share):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, (6, 5)).astype(np.uint8)
    confidence = rng.choice([3, 80, 200, 254], (6, 5)).astype(np.uint8)
    void = unsure(labels, confidence, Rule(keep=share).least(count_levels(labels, confidence, 4)))
    for k in range(3):
        own = sorted(confidence[labels == k].tolist(), reverse=True)
        kept = sorted(confidence[(labels == k) & ~void].tolist(), reverse=True)
        assert kept == own[: len(kept)]
        assert len(kept) >= share * len(own) - 1e-6
        if own:  # without its lowest level it would be too few
            assert sum(c > kept[-1] for c in kept) < share * len(own)


def test_a_rare_class_that_is_never_sure_is_kept_by_share_and_lost_by_confidence():
    labels, confidence = np.zeros((10, 10), np.uint8), np.full((10, 10), 250, np.uint8)
    labels[0], confidence[0] = 1, np.arange(100, 110)
    counts = count_levels(labels, confidence, 2)
    by_share = Tally(("common", "rare"), {"a": counts}, Rule(keep=0.3).least(counts))
    np.testing.assert_array_equal(by_share.kept(counts), [90, 3])  # 90 pixels of one level stay together
    assert Tally(("common", "rare"), {"a": counts}, Rule(0.9).least(counts)).kept(counts).tolist() == [90, 0]


def test_the_report_has_shares_mean_confidences_and_the_photos_without_any():
    one, other = count_levels(LABELS, CONFIDENCE, 4), np.zeros((4, 255), np.int64)
    other[1, 100] = 2
    tally = Tally(("a", "b", "c", "d"), {"one": one, "other": other}, Rule(confidence=0.9).least(one + other))
    a, b, c, d = tally.rows()
    assert (a["pixels"], a["kept"], a["share_kept"]) == (4, 2, 0.5)
    assert a["confidence"] == pytest.approx((254 + 229 + 228 + 10) / 4 / 254)
    assert a["confidence_kept"] == pytest.approx((254 + 229) / 2 / 254)
    assert a["least"] == pytest.approx(229 / 254)
    assert (b["pixels"], b["kept"]) == (4, 1)
    assert (c["kept"], c["confidence_kept"]) == (0, None)
    assert (d["pixels"], d["share_kept"], d["confidence"]) == (0, None, None)
    assert tally.empty == ("other",)
    assert {key: tally.to_dict()[key] for key in ("photos", "pixels", "kept", "share_kept")} == {
        "photos": 2,
        "pixels": 9,
        "kept": 3,
        "share_kept": 3 / 9,
    }


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((1.5, None), "--confidence 1.5 must be above 0 and at most 1, such as 0.9"),
        ((0, None), "--confidence 0 must be"),
        ((None, -0.1), "--keep -0.1 must be"),
        ((float("nan"), None), "--confidence nan must be"),
        ((0.9, 0.5), "--confidence and --keep are two ways to choose; give one"),
    ],
)
def test_numbers_that_choose_nothing_are_refused(values, text):
    with pytest.raises(ConfigError, match=text):
        Rule(*values)
