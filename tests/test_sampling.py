"""Sampling: counts by hand, chances by counting."""

import pytest
import torch

from visionapps.detection.matching import BACKGROUND, NEITHER, OBJECT
from visionapps.detection.sampling import BalancedSampler
from visionapps.errors import ConfigError


def states(objects, background, neither, seed=0):
    row = torch.tensor([OBJECT] * objects + [BACKGROUND] * background + [NEITHER] * neither, dtype=torch.int8)
    return row[torch.randperm(len(row), generator=torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((50, 100, 20), (8, 24)),  # plenty of both
        ((3, 100, 20), (3, 29)),  # few objects: more background
        ((50, 4, 20), (8, 4)),  # little background: objects stay a fraction
        ((0, 100, 20), (0, 32)),
        ((5, 0, 20), (5, 0)),
        ((0, 0, 9), (0, 0)),
        ((1, 1, 0), (1, 1)),  # fewer candidates than asked for
        ((0, 0, 0), (0, 0)),
    ],
)
def test_a_draw_has_the_right_numbers_of_the_right_candidates_each_once(given, expected):
    row = states(*given)
    draw = BalancedSampler(32, 0.25).draw(row)
    assert tuple(draw.counts.tolist()) == expected
    for index, count, state in zip((draw.objects, draw.background), expected, (OBJECT, BACKGROUND), strict=True):
        taken = index[:count]
        assert (row[taken] == state).all()
        assert len(set(taken.tolist())) == count


def test_images_are_drawn_from_apart():
    rows = torch.stack((states(40, 60, 0, 1), states(1, 99, 0, 2)))
    draw = BalancedSampler(20, 0.5).draw(rows)
    assert draw.counts.tolist() == [[10, 10], [1, 19]]
    assert (rows.gather(1, draw.objects)[0] == OBJECT).all()
    assert rows[1, draw.objects[1, 0]] == OBJECT


def test_every_candidate_of_a_kind_has_the_same_chance():
    row, sampler = states(8, 24, 8), BalancedSampler(8, 0.5)
    generator = torch.Generator().manual_seed(0)
    times = torch.zeros(len(row))
    for _ in range(3000):
        draw = sampler.draw(row, generator)
        times[draw.objects[: int(draw.counts[0])]] += 1
        times[draw.background[: int(draw.counts[1])]] += 1
    assert (times[row == OBJECT] - 1500).abs().max() < 150  # 4 of 8; five deviations are 137
    assert (times[row == BACKGROUND] - 500).abs().max() < 110  # 4 of 24; five deviations are 102
    assert times[row == NEITHER].sum() == 0


def test_a_generator_decides_the_draw_and_the_global_stream_does_without():
    row, sampler = states(100, 100, 0), BalancedSampler(20, 0.5)
    first, again = (sampler.draw(row, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first.objects, again.objects)
    torch.manual_seed(3)
    a = sampler.draw(row)
    torch.manual_seed(3)
    assert torch.equal(a.background, sampler.draw(row).background)
    assert not torch.equal(a.background, sampler.draw(row).background)


def test_numbers_that_cannot_be_are_refused():
    for size, fraction in ((0, 0.5), (8, 0.0), (8, 1.5)):
        with pytest.raises(ConfigError, match="must be at least 1 and fraction"):
            BalancedSampler(size, fraction)
