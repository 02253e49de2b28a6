"""Random crops and validation tiles, checked against plain numpy on small photos held in memory."""

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from visionapps.data.balance import Balance, Sliding
from visionapps.data.crops import (
    EpochIndices,
    EvalTiles,
    RandomCrops,
    Sample,
    collate,
    cut,
    drawn_share,
    init_worker,
)
from visionapps.data.dataset import CELL
from visionapps.data.draws import ClassCells
from visionapps.data.transforms import aerial
from visionapps.errors import ConfigError
from visionapps.windows import Window


@dataclass(frozen=True)
class MemoryPhoto:
    """A photo without a store."""

    pixels: np.ndarray
    truth: np.ndarray
    classes: int = 4
    name: str = "photo"
    group: str = "site"

    @property
    def size(self):
        return self.truth.shape

    @property
    def presence(self):
        rows, cols = (-(-n // CELL) for n in self.size)
        counts = np.zeros((rows, cols, self.classes), dtype=np.uint16)
        for row in range(rows):
            for col in range(cols):
                cell = self.truth[row * CELL : (row + 1) * CELL, col * CELL : (col + 1) * CELL]
                counts[row, col] = [(cell == k).sum() for k in range(self.classes)]
        return counts

    def image(self, window):
        assert window.intersect(Window(0, 0, *self.size)) == window, "a photo is only read inside"
        return self.pixels[window.slices]

    def labels(self, window):
        assert window.intersect(Window(0, 0, *self.size)) == window, "a photo is only read inside"
        return self.truth[window.slices]

    weight = 1.0

    def draw_labels(self, window, rng):
        return self.labels(window)


def photo(height, width, *, bands=3, dtype=np.uint8, seed=0, **fields):
    """Every pixel different from its neighbours, labels in stripes of four classes."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 200, (height, width, bands)).astype(dtype)
    truth = np.broadcast_to((np.arange(width) // 16 % 4).astype(np.uint8), (height, width)).copy()
    return MemoryPhoto(pixels, truth, **fields)


def rare(height=640, width=640):
    """Class 0 everywhere, and 20 x 20 pixels of class 2 in one corner of cell (3, 7)."""
    truth = np.zeros((height, width), dtype=np.uint8)
    truth[3 * CELL : 3 * CELL + 20, 7 * CELL : 7 * CELL + 20] = 2
    return MemoryPhoto(np.zeros((height, width, 3), dtype=np.uint8), truth)


def same(a, b):
    return torch.equal(a.image, b.image) and torch.equal(a.labels, b.labels)


def test_a_crop_is_the_pixels_of_the_window_that_draw_names():
    photos = [photo(90, 120, seed=1), photo(100, 80, seed=2)]
    crops = RandomCrops(photos, size=32, length=20)
    for i in range(20):
        number, window = crops.draw(i)
        sample = crops[i]
        assert np.array_equal(sample.image.permute(1, 2, 0).numpy(), photos[number].pixels[window.slices])
        assert np.array_equal(sample.labels.numpy(), photos[number].truth[window.slices])
        assert sample.image.is_contiguous()


@pytest.mark.parametrize(
    ("dtype", "bands"), [(np.uint8, 1), (np.uint8, 8), (np.uint16, 4), (np.float32, 5), (np.int32, 3)]
)
def test_raw_dtype_and_bands_arrive_unchanged(dtype, bands):
    source = photo(50, 70, bands=bands, dtype=dtype)
    sample = RandomCrops([source], size=64, length=1)[0]
    assert sample.image.shape == (bands, 64, 64)
    assert sample.image.numpy().dtype == dtype
    assert sample.labels.dtype == torch.uint8


def test_workers_and_order_do_not_change_a_crop():
    photos = [photo(150, 200, seed=k) for k in range(3)]
    crops = RandomCrops(photos, size=48, length=12, augment=aerial(), seed=5, scale=(0.8, 1.25))
    alone = [crops[i] for i in reversed(range(12))][::-1]
    for workers in (0, 2):
        loader = DataLoader(
            crops,
            batch_size=4,
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=init_worker,
            sampler=EpochIndices(12),
        )
        batches = list(loader)
        assert same(Sample(*map(torch.cat, zip(*batches, strict=True))), collate(alone))
    assert same(pickle.loads(pickle.dumps(crops))[7], alone[7])
    other = RandomCrops(photos, size=48, length=12, augment=aerial(), seed=6, scale=(0.8, 1.25))
    assert not same(other[7], alone[7])


def test_every_epoch_has_crops_of_its_own_even_with_persistent_workers():
    crops = RandomCrops([photo(150, 200)], size=16, length=6)
    loader = DataLoader(
        crops, sampler=EpochIndices(6), batch_size=3, num_workers=1, persistent_workers=True, collate_fn=collate
    )
    seen = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        seen.append(Sample(*map(torch.cat, zip(*loader, strict=True))))
    assert same(seen[0], seen[2])
    assert not same(seen[0], seen[1])
    assert len(loader.sampler) == 6
    loader.sampler.set_epoch(2)
    assert list(loader.sampler) == [12, 13, 14, 15, 16, 17]


def test_a_batch_travels_as_uint8_and_contiguous():
    crops = RandomCrops([photo(100, 100)], size=24, length=2)
    batch = collate([crops[0], crops[1]])
    assert isinstance(batch, Sample)
    assert (batch.image.dtype, batch.labels.dtype) == (torch.uint8, torch.uint8)
    assert batch.image.shape == (2, 3, 24, 24)
    assert batch.labels.shape == (2, 24, 24)
    assert batch.image.is_contiguous()
    assert same(Sample(batch.image[1], batch.labels[1]), crops[1])


def test_a_photo_smaller_than_the_crop_is_reflected_and_labelled_as_ignored_around():
    source = photo(20, 30)
    image, labels = cut(source, Window(-5, -2, 40, 40))
    assert np.array_equal(image, np.pad(source.pixels, ((5, 15), (2, 8), (0, 0)), mode="reflect"))
    assert np.array_equal(labels, np.pad(source.truth, ((5, 15), (2, 8)), constant_values=255))


def test_a_small_photo_is_always_whole_in_its_crop():
    source = photo(20, 200)
    crops = RandomCrops([source], size=64, length=30)
    rows = set()
    for i in range(30):
        _, window = crops.draw(i)
        assert window.row <= 0
        assert window.row_end >= 20
        assert window.col >= 0
        assert window.col_end <= 200
        rows.add(window.row)
        assert (crops[i].labels != 255).sum() == 20 * 64
    assert len(rows) > 5


def test_without_balance_every_place_is_drawn_alike():
    # 1-pixel crops of two photos, 30 and 90 pixels: each pixel is to come 1/120 of the time.
    photos = [photo(5, 6), photo(9, 10)]
    crops = RandomCrops(photos, size=1, length=1, balance=0.0)
    counts = [np.zeros(p.size) for p in photos]
    for i in range(12000):
        number, window = crops.draw(i)
        counts[number][window.row, window.col] += 1
    hits = np.concatenate([c.ravel() for c in counts])
    expected = 100
    chi_square = ((hits - expected) ** 2 / expected).sum()
    assert chi_square < 119 + 4 * np.sqrt(2 * 119)


def test_balance_draws_rare_classes_as_often_as_it_promises():
    # With balance b half of those draws are for class 2, so its cell is in at least b / 2 of the crops.
    source = rare()
    for balance in (0.0, 0.5, 1.0):
        crops = RandomCrops([source], size=128, length=1, balance=balance)
        found = np.mean([(crops[i].labels == 2).any().item() for i in range(400)])
        by_chance = 0.08  # (128 + 20)^2 / 513^2 of all places touch the patch
        expected = balance / 2 + (1 - balance / 2) * by_chance
        assert found == pytest.approx(expected, abs=0.07)


def test_weights_of_another_number_of_classes_are_told_where_no_crop_is_balanced_yet():
    for rate in (0.0, Sliding(0.0, 0.0, 2), 0.5):
        with pytest.raises(ConfigError, match=r"crops: weights \[1.0, 2.0\] must be 4 numbers >= 0, one per class"):
            RandomCrops([photo(64, 64)], size=16, length=1, balance=Balance(rate, (1.0, 2.0)))
    RandomCrops([photo(64, 64)], size=16, length=1, balance=Balance(0.0, (1.0, 2.0, 0.0, 1.0)))


def test_a_balanced_crop_holds_the_whole_cell_and_moves_around_it():
    crops = RandomCrops([rare()], size=128, length=1, balance=Balance(1.0, (0, 0, 1, 0)))
    places = set()
    for i in range(200):
        _, window = crops.draw(i)
        assert window.row <= 3 * CELL
        assert window.row_end >= 4 * CELL
        assert window.col <= 7 * CELL
        assert window.col_end >= 8 * CELL
        places.add((window.row - 2 * CELL, window.col - 6 * CELL))
    # Every offset from "cell at the bottom right" to "cell at the top left" can come.
    assert min(p[0] for p in places) <= 3
    assert max(p[0] for p in places) >= CELL - 3
    assert len(places) > 150


def test_balanced_crops_stay_inside_the_photo_at_its_corners():
    truth = np.zeros((200, 150), dtype=np.uint8)
    truth[-1, -1] = 3
    crops = RandomCrops(
        [MemoryPhoto(np.zeros((200, 150, 3), np.uint8), truth)],
        size=100,
        length=1,
        balance=Balance(1.0, (0, 0, 0, 1)),
    )
    for i in range(30):
        window = crops.draw(i)[1]
        assert window.row_end == 200
        assert window.col_end == 150


def test_a_crop_smaller_than_a_cell_lies_inside_it():
    crops = RandomCrops([rare()], size=16, length=1, balance=Balance(1.0, (0, 0, 1, 0)))
    for i in range(50):
        window = crops.draw(i)[1]
        assert window.intersect(Window(3 * CELL, 7 * CELL, CELL, CELL)) == window


def test_cells_are_drawn_in_proportion_to_the_pixels_of_the_class():
    truth = np.full((CELL, 3 * CELL), 255, dtype=np.uint8)
    truth[:10, :10] = 1  # 100 pixels in cell 0
    truth[:15, 2 * CELL : 2 * CELL + 20] = 1  # 300 in cell 2
    other = np.full((CELL, CELL), 255, dtype=np.uint8)
    other[:20, :30] = 1  # 600 in the other photo
    photos = [MemoryPhoto(np.zeros((*t.shape, 3), np.uint8), t) for t in (truth, other)]
    cells = ClassCells(photos)
    rng = np.random.default_rng(0)
    drawn = [cells.draw(rng) for _ in range(4000)]
    places = [(0, Window(0, 0, CELL, CELL)), (0, Window(0, 2 * CELL, CELL, CELL)), (1, Window(0, 0, CELL, CELL))]
    shares = [drawn.count(place) / len(drawn) for place in places]
    assert shares == pytest.approx([0.1, 0.3, 0.6], abs=0.03)


def test_classes_are_drawn_by_their_weights_and_never_where_they_are_absent():
    source = photo(64, 256)  # four classes in stripes of 16
    lone = MemoryPhoto(np.zeros((64, 64, 3), np.uint8), np.full((64, 64), 3, np.uint8))
    rng = np.random.default_rng(1)
    cells = ClassCells([source, lone], weights=[1, 0, 0, 0])
    assert {cells.draw(rng)[0] for _ in range(50)} == {0}
    even = ClassCells([MemoryPhoto(source.pixels, np.where(source.truth == 1, 255, source.truth)), lone])
    number = np.mean([even.draw(rng)[0] for _ in range(3000)])
    assert number == pytest.approx(4096 / (4096 + 4096) / 3, abs=0.03)  # class 3 one time in three, half its pixels


def test_scale_draws_other_windows_and_keeps_the_labels_in_place():
    truth = np.zeros((400, 400), dtype=np.uint8)
    truth[:, 200:] = 1
    source = MemoryPhoto(np.repeat((truth * 200)[..., None], 3, axis=2), truth)
    crops = RandomCrops([source], size=100, length=1, scale=(0.4, 2.0))
    sides = []
    for i in range(60):
        window = crops.draw(i)[1]
        sample = crops[i]
        sides.append(window.height)
        assert window.height == window.width
        assert sample.image.shape == (3, 100, 100)
        edge = (200 - window.col) * 100 / window.width  # where the step is to lie in the crop
        inner = np.arange(100)
        sure = np.abs(inner + 0.5 - edge) > 2
        expected = inner + 0.5 > edge
        assert np.array_equal(sample.labels[50].numpy()[sure], expected[sure].astype(np.uint8))
        assert np.array_equal(sample.image[0, 50].numpy()[sure], expected[sure] * np.uint8(200))
    assert 50 <= min(sides) < 60
    assert 220 < max(sides) <= 250


def test_drawn_share_tells_what_balancing_does():
    source = rare()
    plain = drawn_share(RandomCrops([source], size=64, length=1, balance=0.0), 200)
    assert plain.photos == pytest.approx([1 - 400 / 640**2, 0, 400 / 640**2, 0])
    assert plain.drawn[2] < 0.01
    balanced = drawn_share(RandomCrops([source], size=64, length=1, balance=1.0), 200)
    assert balanced.drawn[2] == pytest.approx(0.5 * 400 / 64**2, abs=0.01)
    assert balanced.drawn.sum() == pytest.approx(1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.integers(0, 39))
def test_validation_tiles_count_every_labelled_pixel_exactly_once(height, width, size, overlap):
    overlap = min(overlap, size - 1)
    rng = np.random.default_rng(0)
    source = MemoryPhoto(
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8), rng.integers(0, 4, (height, width), dtype=np.uint8)
    )
    tiles = EvalTiles([source, photo(3, 4)], size=size, overlap=overlap)
    counted = np.zeros((height, width), dtype=int)
    for i, (number, window, _) in enumerate(tiles.tiles):
        sample = tiles[i]
        assert sample.image.shape == (3, size, size)
        inside = window.intersect(Window(0, 0, *tiles.photos[number].size))
        if number:
            continue
        labels = sample.labels.numpy()[: inside.height, : inside.width]
        here = labels != 255
        assert np.array_equal(labels[here], source.truth[inside.slices][here])
        shown = sample.image.permute(1, 2, 0).numpy()[: inside.height, : inside.width]
        assert np.array_equal(shown, source.pixels[inside.slices])
        assert (sample.labels != 255).sum() == here.sum()
        counted[inside.slices] += here
    assert (counted == 1).all()
    assert {number for number, _, _ in tiles.tiles} == {0, 1}


def test_context_surrounds_the_core_of_an_inner_tile():
    tiles = EvalTiles([photo(100, 100)], size=40, overlap=10)
    inner = next(t for t in tiles.tiles if t.window == Window(30, 30, 40, 40))
    assert inner.core == Window(35, 35, 30, 30)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"photos": []}, "no photo to draw from"),
        ({"size": 0}, "size 0 and length 5 must be at least 1"),
        ({"balance": 1.5}, r"balance 1.5 must be in \[0, 1\]"),
        ({"scale": (2.0, 1.0)}, "positive and ascending"),
        ({"balance": Balance(0.5, (1, 1))}, "must be 4 numbers >= 0"),
        ({"balance": Balance(0.5, (0, 0, 0, 0))}, "nothing to balance"),
    ],
)
def test_wrong_arguments_are_named(change, text):
    arguments = {"photos": [photo(70, 70)], "size": 16, "length": 5, **change}
    with pytest.raises(ConfigError, match=text):
        RandomCrops(arguments.pop("photos"), **arguments)


def test_photos_without_any_label_cannot_be_balanced():
    blank = MemoryPhoto(np.zeros((70, 70, 3), np.uint8), np.full((70, 70), 255, np.uint8))
    with pytest.raises(ConfigError, match="check the masks, or set balance to 0"):
        RandomCrops([blank], size=16, length=1)
    assert (RandomCrops([blank], size=16, length=1, balance=0)[0].labels == 255).all()
