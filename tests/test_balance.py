"""How often training looks for a class, and at which of its places, checked against loops and by hand."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visionapps.class_weights import ClassWeights
from visionapps.data.balance import Balance, Sliding, bins_of, class_counts, shares_around
from visionapps.data.crops import RandomCrops
from visionapps.data.dataset import CELL
from visionapps.data.draws import ClassCells
from visionapps.errors import ConfigError
from visionapps.windows import Window


@dataclass(frozen=True)
class Cells:
    """A photo of which only its cells are known: each holds so many pixels of each class."""

    presence: np.ndarray
    weight: float = 1.0

    @property
    def size(self):
        return self.presence.shape[0] * CELL, self.presence.shape[1] * CELL

    @property
    def class_pixels(self):
        return tuple(self.presence.sum(axis=(0, 1)).tolist())


def cells(rows, classes=2):
    """Cells of a photo from lists of pixels of class 1; the rest of each cell is class 0."""
    own = np.array(rows)
    presence = np.zeros((*own.shape, classes), np.uint16)
    presence[..., 1], presence[..., 0] = own, CELL**2 - own
    return Cells(presence)


def test_a_sliding_rate_goes_evenly_from_its_start_to_its_end_and_stays():
    rate = Sliding(0.8, 0.2, 4)
    assert [rate.at(epoch) for epoch in range(6)] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.2, 0.2])
    assert Balance(rate).at(1) == pytest.approx(0.6)
    assert [Balance(0.3).at(epoch) for epoch in (0, 9)] == [0.3, 0.3]
    assert Balance(Sliding(0.0, 0.1, 2)).ever
    assert not Balance(Sliding(0.0, 0.0, 2)).ever


def test_crops_of_an_epoch_are_drawn_at_its_rate_and_depend_on_their_index_alone():
    field = cells(np.zeros((40, 40), int))
    field.presence[0, 0] = CELL**2 - 9, 9  # a single small object
    balance = Balance(Sliding(1.0, 0.0, 3), (0, 1))
    crops = RandomCrops([field], size=CELL, length=200, balance=balance)
    near = Window(0, 0, 2 * CELL, 2 * CELL)
    windows = [crops.draw(i)[1] for i in range(800)]
    found = [w.intersect(near) == w for w in windows]
    assert np.mean(found[:200]) == 1
    assert np.mean(found[200:400]) == pytest.approx(0.5, abs=0.1)
    assert np.mean(found[400:]) < 0.02  # the object is in 1 of 1,600 places
    shuffled = RandomCrops([field], size=CELL, length=200, balance=balance)
    assert [shuffled.draw(i)[1] for i in reversed(range(800))][::-1] == windows


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 400))
def test_shares_are_those_of_crops_around_each_cell(height, width, side):
    rng = np.random.default_rng(height * 300 + width)
    truth = rng.integers(0, 3, (height, width))
    grid = -(-height // CELL), -(-width // CELL)
    blocks = [
        [truth[r * CELL : (r + 1) * CELL, c * CELL : (c + 1) * CELL] for c in range(grid[1])] for r in range(grid[0])
    ]
    presence = np.array([[[(block == k).sum() for k in range(3)] for block in row] for row in blocks], np.uint16)
    shares = shares_around(presence, (height, width), side)
    count = max(1, round(side / CELL))
    for row, col in np.ndindex(grid):
        spans = []
        for at, number in ((row, grid[0]), (col, grid[1])):
            length = min(count, number)
            begin = min(max(0, at - (length - 1) // 2), number - length)
            assert begin <= at < begin + length
            spans.append(slice(begin * CELL, (begin + length) * CELL))
        crop = truth[spans[0], spans[1]]
        assert shares[row, col] == pytest.approx([(crop == k).mean() for k in range(3)], abs=1e-6)


def test_bins_are_equal_ratios_between_the_smallest_and_the_largest_share_of_each_class():
    classes = np.array([0, 0, 0, 0, 1, 1, 2])
    shares = np.array([0.001, 0.009, 0.2, 1.0, 0.1, 0.4, 0.5])
    # Class 0 spans a factor of 1,000: three bins of a factor of 10. Class 1: 0.1, 0.159, 0.252, 0.4. Class 2: one.
    assert bins_of(classes, shares, 3).tolist() == [0, 0, 2, 2, 0, 2, 2]
    assert bins_of(classes, shares, (0.01, 0.4)).tolist() == [0, 0, 1, 2, 1, 2, 2]
    assert bins_of(classes, shares, None).tolist() == [0] * 7


def test_bins_are_drawn_alike_so_that_a_small_object_is_seen_as_often_as_a_field():
    field = cells(np.full((1, 9), CELL**2))
    pond = cells([[0] * 3, [0, 40, 0], [0] * 3])
    rng = np.random.default_rng(0)
    plain, binned = (
        np.mean([chosen.draw(rng)[0] == 1 for _ in range(2000)])
        for chosen in (
            ClassCells([field, pond], (0, 1)),
            ClassCells([field, pond], (0, 1), area_bins=3, side=CELL),
        )
    )
    assert plain < 0.01  # 40 of 36,904 pixels
    assert binned == pytest.approx(0.5, abs=0.05)  # the bin between them is empty


def test_cells_of_a_bin_are_drawn_by_their_pixels_and_by_the_weight_of_their_photo():
    photos = [cells([[100, 300]]), Cells(cells([[200, 0]]).presence, weight=3.0)]
    chosen = ClassCells(photos, (0, 1), area_bins=1)
    rng = np.random.default_rng(1)
    drawn = [chosen.draw(rng) for _ in range(4000)]
    places = [(0, Window(0, 0, CELL, CELL)), (0, Window(0, CELL, CELL, CELL)), (1, Window(0, 0, CELL, CELL))]
    assert [drawn.count(place) / 4000 for place in places] == pytest.approx([0.1, 0.3, 0.6], abs=0.03)
    assert class_counts(("rest", "own"), photos).pixels == (2 * CELL**2 - 400 + 3 * (2 * CELL**2 - 200), 400 + 600)


def test_a_class_of_few_pixels_in_a_source_of_little_weight_still_occurs():
    photos = [cells([[0]]), Cells(cells([[100]]).presence, weight=0.001)]
    counts = class_counts(("rest", "own"), photos)
    assert counts.pixels == (CELL**2 + 4, 1)
    assert min(ClassWeights("inverse").of(counts)) > 0


def test_a_bin_that_no_class_fills_is_named_with_what_occurs():
    photos = [cells([[41, 410]])]  # 1 % and 10 % of a cell
    ClassCells(photos, (0, 1), area_bins=(0.05,), side=CELL)
    text = r"no class covers 50.000% to 100.000% of a crop anywhere, .* what occurs is 1.001% to 10.010%: choose"
    with pytest.raises(ConfigError, match=text):
        ClassCells(photos, (0, 1), area_bins=(0.05, 0.5), side=CELL)
    ClassCells(photos, (1, 1), area_bins=(0.05, 0.5), side=CELL)  # the other class fills it


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Sliding(1.2, 0.2, 5), r"balance.start is 1.2; choose a value in \[0, 1\]"),
        (lambda: Sliding(0.2, -0.1, 5), r"balance.end is -0.1; choose a value in \[0, 1\]"),
        (lambda: Sliding(0.2, 0.1, 1), "balance.epochs is 1, but a change takes at least 2 epochs"),
        (lambda: Balance(-0.5), r"balance -0.5 must be in \[0, 1\]"),
        (
            lambda: Balance(None),
            "balance has no value; write 0 to draw crops evenly .* or leave the line out for 0.5",
        ),
        (lambda: Balance(0.5, area_bins=0), "area_bins is 0; choose a number from 1 to 100"),
        (lambda: Balance(0.5, area_bins=(0.5, 0.1)), r"area_bins \[0.5, 0.1\] must be shares .* ascending"),
        (lambda: Balance(0.5, area_bins=(0.5, 1.0)), "between 0 and 1, ascending"),
        (lambda: Balance(0.5, area_bins=()), "or give the number of bins"),
    ],
)
def test_settings_out_of_range_are_refused(make, text):
    with pytest.raises(ConfigError, match=text):
        make()
