"""Rules after the network: components and holes against scipy, labels against rules applied by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from visionapps.competition.calibration import Calibration, fit_calibration, histograms, plain_table
from visionapps.competition.components import EVEN, NOBODY, components, contest
from visionapps.competition.postprocess import PostProcess, Rule, to_level, to_share
from visionapps.competition.regions import cells_of, fill_holes, hole_table, overlap_of, regions_of
from visionapps.errors import ConfigError, DataError
from visionapps.metrics.measures import areas

NAMES = ("ground", "roof", "tree")
_sides = st.tuples(st.integers(1, 12), st.integers(1, 12))
_keys = hnp.arrays(np.uint8, _sides, elements=st.sampled_from([0, 1, 2, NOBODY]))
# Thin walls around ground: about one map in two has holes, some of them in one another.
_labels = st.tuples(st.integers(3, 14), st.integers(3, 14), st.integers(0, 2**32 - 1)).map(
    lambda drawn: np.random.default_rng(drawn[2]).choice(np.array([0, 0, 0, 1, 1, 1, 1, 2], np.uint8), drawn[:2])
)
_scores = hnp.arrays(np.uint8, st.tuples(st.integers(2, 5), st.integers(1, 9), st.integers(1, 9)))


def tables(classes: int) -> np.ndarray:
    return np.tile(plain_table(), (classes, 1))


def two_classes(roof: np.ndarray) -> np.ndarray:
    """(2, H, W) scores of ground and roof that sum to 255."""
    roof = np.asarray(roof, np.uint8)
    return np.stack([255 - roof, roof])


@given(_keys, st.booleans())
@settings(max_examples=60, deadline=None)
def test_components_are_those_of_scipy_with_their_area_and_highest_level(keys, diagonal):
    levels = (np.arange(keys.size, dtype=np.uint32) * 37 % 251).astype(np.uint8).reshape(keys.shape)
    found = components(keys, levels, diagonal=diagonal)
    count = 0
    for key in (0, 1, 2):
        inside = keys == key
        ids, number = ndimage.label(inside, np.ones((3, 3)) if diagonal else None)
        pairs = set(zip(ids[inside].tolist(), found.ids[inside].tolist(), strict=True))
        assert len(pairs) == number  # the same partition under other numbers
        for theirs, ours in pairs:
            assert found.keys[ours] == key
            assert found.areas[ours] == (ids == theirs).sum()
            assert found.tops[ours] == levels[ids == theirs].max()
        count += number
    assert len(found.areas) == count
    assert (found.ids[keys == NOBODY] == -1).all()


def filled_by_scipy(labels: np.ndarray, k: int, largest: int) -> np.ndarray:
    """Where class k fills holes of at most so many pixels."""
    ids, count = ndimage.label(ndimage.binary_fill_holes(labels == k) & (labels != k))
    return np.isin(ids, [i for i in range(1, count + 1) if (ids == i).sum() <= largest])


@given(_labels, st.lists(st.sampled_from([0, 1, 2, 5, 99]), min_size=3, max_size=3))
@settings(max_examples=60, deadline=None)
def test_holes_are_what_scipy_fills_one_class_after_the_other(labels, largest):
    filled, expected = labels.copy(), labels.copy()
    fill_holes(filled, largest)
    for k, most in enumerate(largest):
        expected[filled_by_scipy(expected, k, most)] = k
    np.testing.assert_array_equal(filled, expected)


@given(_labels, st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_the_table_of_holes_counts_the_pixels_that_scipy_fills(labels, seed):
    truth = np.random.default_rng(seed).choice(np.array([0, 1, 2, 255], np.uint8), labels.shape)
    found, ids = regions_of(labels)
    cells = cells_of(ids, truth)
    np.testing.assert_array_equal(overlap_of(found.owners, cells, 3), areas(labels, truth, 3).parts())
    table = hole_table(found, cells, 3, skipped=2)
    assert not (table.holes[:, 0] == 2).any()
    for k in (0, 1):
        holes, count = ndimage.label(ndimage.binary_fill_holes(labels == k) & (labels != k))
        expected = []
        for i in range(1, count + 1):
            own, true = labels[holes == i], truth[holes == i]
            known = true != 255
            falls = [n for r in range(3) for n in ((known & (own == r)).sum(), ((true == r) & (own == r)).sum())]
            expected.append([k, len(own), known.sum(), (true == k).sum(), *falls])
        ours = table.holes[:, 0] == k
        both = np.stack([table.falls[ours], table.fall_hits[ours]], -1).reshape(-1, 6)
        assert sorted(expected) == sorted(np.hstack([table.holes[ours], both]).tolist())


@given(_scores, st.booleans())
@settings(max_examples=80, deadline=None)
def test_without_rules_labels_are_the_argmax_with_and_without_a_background(scores, with_background):
    background = len(scores) - 1 if with_background else None
    process = PostProcess.none(len(scores), background)
    np.testing.assert_array_equal(process.apply(scores), scores.argmax(0))


@given(_scores, st.sampled_from([None, 0, 1]))
@settings(max_examples=60, deadline=None)
def test_the_fast_contest_is_the_one_that_looks_scores_up(scores, background):
    plain = tables(len(scores))
    twisted = plain.copy()
    twisted[0, 255] = 1.001  # tables are no longer equal, so that they are looked up
    scores = np.minimum(scores, 254)  # and yet the same for all that occurs
    for fast, slow in zip(contest(scores, plain, background), contest(scores, twisted, background), strict=True):
        np.testing.assert_array_equal(fast, slow)


def test_a_threshold_is_the_probability_where_there_are_two_classes():
    scores = two_classes([[0, 101, 102, 127, 128, 153, 154, 255]])
    rules = (Rule(), Rule(threshold=0.4))
    assert PostProcess(rules, background=0).apply(scores).tolist() == [[0, 0, 1, 1, 1, 1, 1, 1]]
    assert PostProcess((Rule(), Rule(threshold=0.6)), background=0).apply(scores).tolist() == [[0, 0, 0, 0, 0, 1, 1, 1]]


def test_without_a_background_what_a_class_loses_falls_to_the_runner_up():
    scores = np.array([[[10, 20]], [[130, 200]], [[115, 35]]], np.uint8)
    rules = (Rule(), Rule(threshold=0.6), Rule())
    assert PostProcess(rules).apply(scores).tolist() == [[2, 1]]


def test_a_seed_keeps_its_whole_component_and_no_seed_keeps_nothing():
    roof = [[200, 100, 0, 100, 100], [0, 0, 90, 0, 0], [0, 0, 0, 0, 0], [100, 110, 0, 0, 230]]
    rules = (Rule(), Rule(threshold=0.75, bottom=0.38))
    labels = PostProcess(rules, background=0).apply(two_classes(np.array(roof)))
    # 90 / 255 = 0.353 is below the bottom, so the right part has no seed; 230 stands alone and is one.
    assert labels.tolist() == [[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]


def test_small_components_rare_classes_and_all_but_the_largest_go():
    roof = np.zeros((5, 7))
    roof[0, :3] = roof[4, 5:] = roof[2, 0] = 255  # 3, 2 and 1 pixels
    scores = two_classes(roof)

    def kept(**rule: int) -> int:
        return int(PostProcess((Rule(), Rule(**rule)), background=0).apply(scores).sum())

    assert (kept(), kept(min_area=2), kept(min_area=3), kept(min_area=4)) == (6, 5, 3, 0)
    assert (kept(keep=1), kept(keep=2), kept(keep=3)) == (3, 5, 6)
    assert (kept(min_present=6), kept(min_present=7)) == (6, 0)
    assert (kept(min_present=5, min_area=2), kept(min_present=6, min_area=2)) == (5, 0)


def test_holes_up_to_a_size_are_filled_and_bays_are_not():
    roof = np.full((7, 9), 255)
    roof[2, 2] = roof[4, 4] = roof[4, 5] = roof[0, 6] = 0
    labels = PostProcess((Rule(), Rule(holes=1)), background=0).apply(two_classes(roof))
    assert (labels[2, 2], labels[4, 4], labels[0, 6]) == (1, 0, 0)
    assert PostProcess((Rule(), Rule(holes=2)), background=0).apply(two_classes(roof)).sum() == 62


def test_by_priority_the_first_class_that_claims_a_pixel_has_it():
    scores = np.array([[[100, 10]], [[100, 60]], [[55, 185]]], np.uint8)
    rules = (Rule(), Rule(threshold=0.2), Rule(threshold=0.2))
    first = PostProcess(rules, "priority", 0)
    assert first.apply(scores).tolist() == [[1, 1]]
    assert PostProcess(rules, "priority", 0, (2, 1)).apply(scores).tolist() == [[2, 2]]


def test_pixels_without_data_stay_so_and_join_no_component():
    roof = np.full((1, 5), 255)
    valid = np.array([[True, True, False, True, True]])
    labels = PostProcess((Rule(), Rule(min_area=3)), background=0).apply(two_classes(roof), valid)
    assert labels.tolist() == [[0, 0, 255, 0, 0]]


def test_floats_are_rounded_as_a_store_rounds_them():
    p = np.random.default_rng(0).dirichlet((1, 1, 1), (6, 7)).transpose(2, 0, 1)
    process = PostProcess((Rule(threshold=0.7), Rule(), Rule(threshold=0.6)))
    np.testing.assert_array_equal(process.apply(p), process.apply(np.rint(p * 255).astype(np.uint8)))


def test_rules_survive_plain_data_by_name_and_leave_out_what_says_nothing():
    rules = (
        Rule(),
        Rule(threshold=0.4, bottom=0.25, min_area=9, calibration=Calibration("platt", (0.9, -0.2))),
        Rule(holes=4, keep=2, min_present=3),
    )
    process = PostProcess(rules, background=0)
    plain = process.to_dict(NAMES)
    assert plain["rules"]["tree"] == {"min_present": 3, "keep": 2, "holes": 4}
    assert set(plain["rules"]) == {"roof", "tree"}
    assert PostProcess.from_dict(plain, NAMES) == process


def test_shares_and_levels_are_the_same_both_ways():
    assert [to_level(to_share(level)) for level in range(256)] == list(range(256))
    assert to_level(0.5) == EVEN


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"rules": {"house": {}}}, "no class 'house'; there are ground, roof, tree"),
        ({"rules": {"roof": {"treshold": 0.3}}}, "post-processing of roof: rule: unknown key 'treshold'"),
        ({"rules": {"roof": {"threshold": 30}}}, "threshold 30 must be a share in [0, 1]"),
        ({"rules": {"roof": {"threshold": 0.3, "bottom": 0.4}}}, "bottom 0.4 must not be above threshold 0.3"),
        ({"rules": {"roof": {"min_area": -1}}}, "min_area -1 must be a whole number from 0 on"),
        ({"background": "roof", "rules": {"roof": {"holes": 3}}}, "background (label 1) can have no rule"),
        ({"resolve": "priority"}, "needs a background"),
        ({"resolve": "vote"}, "resolve 'vote' is unknown"),
        ({"threshold": 0.3}, "unknown key 'threshold'"),
        ({"rules": {"roof": {"calibration": {"kind": "platt", "numbers": [-1, 0]}}}}, "-1.0 must be positive"),
        ({"rules": {"roof": {"calibration": {"kind": "platt", "numbers": ["x", 1]}}}}, "must be a list of numbers"),
        ({"rules": {"roof": {"calibration": {"kind": "platt", "numbers": "12"}}}}, "numbers '12' must be a list"),
        ({"rules": {"roof": {"calibration": {"kind": "beta", "numbers": [1]}}}}, "calibration 'beta' is unknown"),
        ({"rules": {"roof": {"calibration": 5}}}, "post-processing of roof: calibration 5: expected kind and numbers"),
        ({"rules": {"roof": {"calibration": {"kind": "platt"}}}}, "expected kind and numbers, {kind: platt"),
        ({"rules": {"roof": 0.5}}, "post-processing of roof: rule: 0.5 is no mapping; expected such as {threshold"),
        ({"rules": {"roof": {"threshold": None}}}, "threshold None must be a share in [0, 1]"),
        ({"resolve": "priority", "background": "ground", "order": 5}, "order 5 is no list; expected classes"),
        ({"order": "roof"}, "order 'roof' is no list"),
    ],
)
def test_wrong_rules_say_what_is_wrong(data, text):
    with pytest.raises(ConfigError) as error:
        PostProcess.from_dict(data, NAMES)
    assert text in str(error.value)


def test_an_order_that_is_left_open_is_that_of_the_labels():
    open_ = {"resolve": "priority", "background": "ground", "order": None}
    assert PostProcess.from_dict(open_, NAMES) == PostProcess((Rule(),) * 3, "priority", 0)


def test_scores_of_other_classes_are_refused():
    with pytest.raises(DataError, match="a plane for each rule"):
        PostProcess.none(3).apply(np.zeros((4, 2, 2), np.uint8))
    with pytest.raises(DataError, match="uint8"):
        PostProcess.none(3).apply(np.zeros((3, 2, 2), np.int32))


def of_truth(rng: np.random.Generator, true_logit) -> np.ndarray:
    """(2, 256) histogram of scores whose true probability is sigmoid(true_logit(logit))."""
    score = rng.integers(0, 256, 200_000)
    p = np.clip(score / 255, 0.25 / 255, 1 - 0.25 / 255)
    real = 1 / (1 + np.exp(-true_logit(np.log(p / (1 - p)))))
    hit = rng.random(len(score)) < real
    return np.stack([np.bincount(score[~hit], minlength=256), np.bincount(score[hit], minlength=256)])


def test_platt_and_temperature_find_the_numbers_that_made_the_data():
    rng = np.random.default_rng(3)
    platt = fit_calibration("platt", of_truth(rng, lambda x: 0.6 * x - 0.8))
    assert platt is not None
    np.testing.assert_allclose(platt.numbers, (0.6, -0.8), atol=0.03)
    hot = fit_calibration("temperature", of_truth(rng, lambda x: x / 2.5))
    assert hot is not None
    np.testing.assert_allclose(hot.numbers, (2.5,), rtol=0.03)


def test_isotonic_calibration_is_the_monotone_least_squares_fit():
    histogram = of_truth(np.random.default_rng(1), lambda x: 0.5 * x + np.sin(x))
    found = fit_calibration("isotonic", histogram)
    assert found is not None
    count, hits = histogram.sum(0), histogram[1]
    # The max-min formula of isotonic regression (Barlow et al. 1972), level by level.
    total, right = np.append(0, count.cumsum()), np.append(0, hits.cumsum())
    mean = (right[None, 1:] - right[:-1, None]) / np.maximum(total[None, 1:] - total[:-1, None], 1)
    for level in range(0, 256, 15):
        expected = max(min(mean[s, t] for t in range(level, 256)) for s in range(level + 1))
        np.testing.assert_allclose(found.table()[level], expected, atol=1e-5)
    # Expected calibration error over 15 bins (Guo et al. 2017), against the frequencies, before and after.
    before, after = (
        sum(abs((count * p - hits)[np.minimum((p * 15).astype(int), 14) == i].sum()) for i in range(15)) / count.sum()
        for p in (plain_table(), found.table())
    )
    assert after < 0.01 < before


def test_a_class_that_never_occurs_is_left_as_it_is():
    assert fit_calibration("platt", np.stack([np.ones(256, int), np.zeros(256, int)])) is None


def test_histograms_count_labelled_pixels_by_their_truth():
    scores = np.array([[[7, 7, 9]], [[1, 2, 3]]], np.uint8)
    found = histograms(scores, np.array([[0, 1, 255]], np.uint8))
    assert (found[0, 1, 7], found[0, 0, 7], found[1, 1, 2], found[1, 0, 1], found.sum()) == (1, 1, 1, 1, 4)


def test_a_calibration_can_change_who_wins():
    scores = np.array([[[120]], [[135]]], np.uint8)
    rules = (Rule(), Rule(calibration=Calibration("platt", (1.0, -1.0))))
    assert (PostProcess.none(2).apply(scores)[0, 0], PostProcess(rules).apply(scores)[0, 0]) == (1, 0)
