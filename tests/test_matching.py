"""Matching, against torchvision's matcher and a plain loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import Matcher as TheirMatcher
from torchvision.ops import box_iou

from visionapps.boxes import iof, iou
from visionapps.detection import matching
from visionapps.detection.matching import BACKGROUND, NEITHER, OBJECT, Matcher, nearest
from visionapps.errors import ConfigError

NONE = torch.zeros(0, 4)


def some(count, seed, extent=200.0):
    generator = torch.Generator().manual_seed(seed)
    corner, side = torch.rand(2, count, 2, generator=generator)
    return torch.cat((corner * extent, corner * extent + side * 60 + 1), 1)


@pytest.mark.parametrize(("pairs", "least"), [(2**18, 4096), (50, 10), (50, 4096), (2000, 100), (1, 1)])
@pytest.mark.parametrize("keep_best", [False, True])
def test_states_and_matches_are_torchvisions_in_one_piece_and_in_many(keep_best, pairs, least, monkeypatch):
    monkeypatch.setitem(matching._PAIRS, "cpu", pairs)
    monkeypatch.setattr(matching, "_LEAST_PIECE", least)
    candidates, objects = some(500, 0), some(9, 1)
    theirs = TheirMatcher(0.7, 0.3, keep_best)(box_iou(objects, candidates))
    ours = Matcher(0.7, (0.0, 0.3), keep_best=keep_best).states(candidates, objects, NONE)
    assert torch.equal(ours == OBJECT, theirs >= 0)
    assert torch.equal(ours == BACKGROUND, theirs == -1)
    assert torch.equal(ours == NEITHER, theirs == -2)
    found = theirs >= 0
    assert found.sum() >= (5 if keep_best else 1)
    assert torch.equal(nearest(candidates[found], objects), theirs[found])


def test_background_is_a_range_and_an_image_without_objects_is_all_background():
    objects = torch.tensor([[0.0, 0, 100, 100]])
    candidates = torch.tensor([[0.0, 0, 100, 60], [0, 0, 100, 40], [0, 0, 10, 10], [200, 200, 300, 300]])
    paper = Matcher(0.5, (0.1, 0.5))
    assert paper.states(candidates, objects, NONE).tolist() == [OBJECT, BACKGROUND, NEITHER, NEITHER]  # .6 .4 .01 0
    assert paper.states(candidates, NONE, NONE).tolist() == [BACKGROUND] * 4


def test_the_best_candidate_of_an_object_is_it_however_little_it_overlaps_but_not_without_overlap():
    objects = torch.tensor([[0.0, 0, 100, 100], [500, 500, 510, 510]])
    candidates = torch.tensor([[0.0, 0, 20, 20], [0, 0, 10, 10], [0, 0, 20, 20], [300, 300, 400, 400]])
    states = Matcher(0.7, (0.0, 0.3), keep_best=True).states(candidates, objects, NONE)
    assert states.tolist() == [OBJECT, BACKGROUND, OBJECT, BACKGROUND]  # two share the first place
    # torchvision makes every candidate an object here, since all share the greatest overlap with the second: none.
    assert (TheirMatcher(0.7, 0.3, True)(box_iou(objects, candidates)) >= 0).all()


def test_background_inside_an_ignored_region_is_neither_and_objects_inside_remain():
    ignored = torch.tensor([[0.0, 0, 100, 100]])
    objects = torch.tensor([[10.0, 10, 30, 30]])
    candidates = torch.tensor(
        [[10.0, 10, 30, 30], [60, 60, 80, 80], [90, 90, 110, 110], [95, 0, 105, 10], [0, 0, 400, 400]]
    )
    states = Matcher(0.5, (0.0, 0.5)).states(candidates, objects, ignored)
    # The object itself; wholly inside; a quarter inside; half inside; so large that the region is a small part of it.
    assert states.tolist() == [OBJECT, NEITHER, BACKGROUND, NEITHER, BACKGROUND]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 6), st.integers(0, 3), st.integers(0, 10_000), st.booleans())
def test_states_are_what_the_words_say(count, regions, seed, keep_best):
    candidates, objects, ignored = some(30, seed, 60), some(count, seed + 1, 60), some(regions, seed + 2, 60)
    matcher = Matcher(0.6, (0.1, 0.4), keep_best=keep_best, ignore=0.7)
    states = matcher.states(candidates, objects, ignored)
    overlap, inside = iou(candidates, objects), iof(candidates, ignored)
    for i, state in enumerate(states.tolist()):
        best = max(overlap[i].tolist(), default=0.0)
        first = any(overlap[i, j] > 0 and overlap[i, j] == overlap[:, j].max() for j in range(count))
        if best >= 0.6 or (keep_best and first):
            expected = OBJECT
        elif (0.1 if count else 0) <= best < 0.4 and not any(inside[i] >= 0.7):
            expected = BACKGROUND
        else:
            expected = NEITHER
        assert state == expected


def test_ten_thousand_objects_need_no_matrix_of_all_pairs(monkeypatch):
    sizes = []
    original = matching.iou
    monkeypatch.setattr(matching, "iou", lambda a, b: sizes.append(len(a) * len(b)) or original(a, b))
    candidates, objects = some(2000, 0), some(10_000, 1)
    states = Matcher(0.7, (0.0, 0.3), keep_best=True).states(candidates, objects, NONE)
    assert max(sizes) <= 2**18 < len(candidates) * len(objects)
    assert (states == OBJECT).any()


def test_without_candidates_there_are_no_states():
    for objects in (NONE, some(3, 0)):
        assert Matcher(keep_best=True).states(NONE, objects, some(1, 0)).shape == (0,)
    assert nearest(NONE, some(3, 0)).shape == (0,)


@pytest.mark.parametrize("negative", [(0.0, 0.8), (0.3, 0.3), (-0.1, 0.2)])
def test_thresholds_that_contradict_each_other_are_refused(negative):
    with pytest.raises(ConfigError, match=r"must be a range below positive 0\.7"):
        Matcher(0.7, negative)
