"""What a detector sees of the photos: items, their targets, and the way back to the photo."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn import MemoryPhoto, bounds, rectangles
from hypothesis import given, settings
from hypothesis import strategies as st

from visionapps.data.object_crops import EvalObjects, RandomObjects, View, collate_objects
from visionapps.data.object_draws import ObjectIndex, PhotoOrder, draw_window
from visionapps.data.object_transforms import object_aerial
from visionapps.errors import ConfigError
from visionapps.objects import Objects
from visionapps.structures import Rescale


def photos(count=4, size=(96, 128)):
    """Photos with two to four objects; the second is empty."""
    found = []
    for number in range(count):
        rng = np.random.default_rng(number)
        boxes = [] if number == 1 else [(9 * k, 20 * k, 9 * k + 12, 20 * k + 15) for k in range(2 + number % 3)]
        photo = rectangles(size, boxes, labels=rng.integers(0, 3, len(boxes)))
        found.append(replace(photo, proposals=photo.objects.boxes.astype(np.float32), name=f"{number}.png"))
    return found


def check_targets(batch, tolerance=0.51):
    """Every target is where its grey value is."""
    for image, size, target in zip(batch.image, batch.sizes, batch.targets, strict=True):
        plane = image[0].numpy()
        assert (plane[size[0] :] == 0).all()
        assert (plane[:, size[1] :] == 0).all()
        for box, mask in zip(target.boxes.numpy(), target.masks.numpy(), strict=True):
            assert mask.shape == size
            if min(box[2] - box[0], box[3] - box[1]) >= 3:
                assert bounds(mask) == pytest.approx(box, abs=tolerance)
                assert (plane[: size[0], : size[1]][mask > 0] > 20).mean() > 0.8


VIEWS = {
    "whole": View(),
    "rescaled": View(rescale=Rescale(60, 100), scale=(0.7, 1.2)),
    "tiles": View(tile=48, scale=(0.6, 1.6)),
    "large tiles": View(tile=300),
    "mosaic of photos": View(rescale=Rescale(60, 100), mosaic=1.0),
    "mosaic of tiles": View(tile=64, mosaic=1.0, around=1.0),
    "copy-paste": View(tile=96, copy_paste=1.0, balance=1.0),
    "all": View(tile=64, scale=(0.5, 2.0), mosaic=0.5, copy_paste=0.5, around=0.7, balance=0.5),
}


@pytest.mark.parametrize("name", VIEWS)
def test_targets_of_every_view_lie_on_their_objects(name):
    items = RandomObjects(photos(), view=VIEWS[name], masks=True, seed=1)
    found = 0
    for index in range(12):
        batch = items[index]
        check_targets(batch)
        target = batch.targets[0]
        # A proposal for each object goes the way of the object, save those that are pasted in.
        mine = {tuple(np.rint(box).astype(int)) for box in batch.proposals[0].numpy()}
        theirs = {tuple(np.rint(box).astype(int)) for box in target.boxes.numpy()}
        assert mine <= theirs
        if not items.view.copy_paste:
            assert mine == theirs
        found += len(target.boxes)
    assert found > 6


@pytest.mark.parametrize("name", VIEWS)
def test_an_item_depends_on_seed_and_index_alone_and_survives_a_worker(name):
    items = RandomObjects(photos(), view=VIEWS[name], augment=object_aerial(), seed=5)
    copy = pickle.loads(pickle.dumps(items))
    forward = [items[i] for i in range(6)]
    for index in (4, 0, 5, 2):
        again = copy[index]
        assert torch.equal(again.image, forward[index].image)
        assert torch.equal(again.targets[0].boxes, forward[index].targets[0].boxes)
    other = RandomObjects(photos(), view=VIEWS[name], augment=object_aerial(), seed=6)
    assert any(not torch.equal(other[i].image, forward[i].image) for i in range(6))


def test_whole_photos_come_once_per_epoch_in_another_order_each_time():
    many = [rectangles((20, 20), [(0, 0, 5, 5)]) for _ in range(50)]
    items = RandomObjects(many, view=View())
    assert len(items) == 50
    epochs = [[items[50 * epoch + i].keys[0] for i in range(50)] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(50))
    assert epochs[0] != epochs[1]
    order = PhotoOrder(7, seed=3)
    assert [order[i] for i in (20, 3, 15)] == [PhotoOrder(7, seed=3)[i] for i in (20, 3, 15)]


def test_random_tiles_are_exact_windows_of_their_photo():
    rng = np.random.default_rng(0)
    source = MemoryPhoto(rng.integers(0, 256, (90, 70, 3), dtype=np.uint8), Objects(np.array([[3, 5, 30, 20.0]]), [1]))
    items = RandomObjects([source], view=View(tile=32))
    places = set()
    for index in range(80):
        batch = items[index]
        row, col = batch.origins[0]
        places.add((row, col))
        assert batch.factors == (1.0,)
        assert np.array_equal(batch.image[0].permute(1, 2, 0).numpy(), source.pixels[row : row + 32, col : col + 32])
    assert min(p[0] for p in places) == 0 or min(p[1] for p in places) == 0
    assert len(places) > 40
    assert {RandomObjects([source], view=View(tile=32, scale=(0.5, 2.0)))[i].sizes[0] for i in range(20)} == {(32, 32)}


def test_items_of_tiles_are_photos_where_photos_are_smaller():
    items = RandomObjects([rectangles((20, 200), [(0, 0, 10, 10)])], view=View(tile=64))
    assert items[0].sizes == ((20, 64),)
    assert items.shape(0) == (20, 64)


def test_around_bounds_the_share_of_empty_tiles():
    large = rectangles((1000, 1000), [(500, 500, 520, 520)])
    for around in (0.0, 0.6, 1.0):
        items = RandomObjects([large], view=View(tile=100, around=around))
        full = np.mean([len(items[i].targets[0].boxes) > 0 for i in range(200)])
        assert full == pytest.approx(around, abs=0.11)
    none = RandomObjects([rectangles((100, 100), [])], view=View(tile=50, around=1.0, copy_paste=1.0))
    assert none[0].targets[0].boxes.shape == (0, 4)


def test_balance_draws_classes_alike_and_never_ignored_objects():
    boxes = np.tile([[0, 0, 5, 5.0]], (100, 1))
    labels = np.where(np.arange(100) < 98, 0, 2)
    difficult = np.arange(100) == 99
    photo = MemoryPhoto(np.zeros((9, 9, 3), np.uint8), Objects(boxes, labels, difficult=difficult))
    empty = rectangles((9, 9), [])
    index, rng = ObjectIndex([empty, photo]), np.random.default_rng(0)
    assert len(index) == 99
    for balance, share in ((0.0, 1 / 99), (1.0, 0.5), (0.5, 0.255)):
        drawn = [index.draw(rng, balance) for _ in range(2000)]
        assert {number for number, _ in drawn} == {1}
        assert {k for _, k in drawn} <= set(range(99))
        assert np.mean([k == 98 for _, k in drawn]) == pytest.approx(share, abs=0.035)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 80),
    st.integers(0, 40),
    st.integers(1, 50),
    st.integers(0, 9),
)
def test_a_window_around_an_object_holds_it_whole_where_it_fits(height, width, side, start, length, seed):
    col = min(start, width - 1)
    box = np.array([col, 0, min(width, col + length), height], float)
    window = draw_window(np.random.default_rng(seed), (height, width), (side, side), box)
    assert window.row >= 0
    assert window.row_end <= height
    assert window.col >= 0
    assert window.col_end <= width
    assert window.width == min(side, width)
    if box[2] - box[0] <= side:
        assert window.col <= box[0]
        assert window.col_end >= box[2]
    else:
        assert box[0] <= window.col
        assert window.col_end <= box[2]


@pytest.mark.parametrize(
    "view", [View(tile=40), View(tile=40, overlap=0), View(tile=500), View(), View(rescale=Rescale(77, 90))]
)
def test_validation_sees_every_object_and_boxes_return_to_the_photo_exactly(view):
    rng = np.random.default_rng(2)
    sizes = [(96, 128), (33, 150), (1, 1), (64, 40)]
    sources = []
    for height, width in sizes:
        low = rng.uniform(0, [max(1, width - 13), max(1, height - 13)], (6, 2))
        boxes = np.concatenate([low, np.minimum(low + rng.uniform(2, 12, (6, 2)), [width, height])], 1)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        sources.append(
            MemoryPhoto(pixels, Objects(boxes if min(height, width) > 1 else boxes[:0], [0] * (6 * (height > 1))))
        )
    items = EvalObjects(sources, view=view)
    covered = [np.zeros(size, int) for size in sizes]
    seen = [set() for _ in sizes]
    for index in range(len(items)):
        batch = items[index]
        key, (row, col), factor = batch.keys[0], batch.origins[0], batch.factors[0]
        h, w = (max(1, round(n / factor)) for n in batch.sizes[0])
        covered[key][row : row + h, col : col + w] += 1
        assert batch.sizes[0] == items.shape(index)
        target = batch.targets[0]
        returned = target.boxes.numpy() / factor + np.array([col, row] * 2)
        for box in returned[~target.ignore.numpy()]:
            away = np.abs(sources[key].objects.boxes - box).max(1)
            seen[key].add(int(away.argmin()))
            if view.tile is None:
                # Half a pixel of the item at most may be missing at the right and bottom edge of a photo.
                assert away.min() < 0.5 / factor + 1e-3
    for key, source in enumerate(sources):
        assert covered[key].min() >= 1
        if view.overlap is None:  # tiles share more than the objects measure: every one is whole in some tile
            assert seen[key] == set(range(len(source.objects)))


def test_objects_cut_by_a_tile_are_ignored_there():
    photo = rectangles((40, 80), [(30, 0, 50, 20), (0, 30, 79, 34), (36, 22, 46, 30)])
    items = EvalObjects([photo], view=View(tile=40, overlap=0, keep=0.6))
    left, right = (items[i].targets[0] for i in range(2))
    # Of the first and the second half is left on each side, of the last 4 and 6 of 10 columns.
    assert left.ignore.tolist() == [True, True, True]
    assert right.ignore.tolist() == [True, True, False]
    assert right.boxes.tolist() == [[0, 0, 10, 20], [0, 30, 39, 34], [0, 22, 6, 30]]


def test_a_batch_is_padded_with_zeros_to_multiples_of_32():
    items = RandomObjects(photos(4, (40, 70)) + photos(1, (90, 33)), view=View(), masks=True)
    batch = collate_objects([items[i] for i in range(5)])
    assert batch.image.shape == (5, 3, 96, 96)
    assert batch.image.dtype == torch.uint8
    assert sorted(batch.sizes) == [(40, 70)] * 4 + [(90, 33)]
    check_targets(batch)
    for i in range(5):
        alone = items[i]
        h, w = alone.sizes[0]
        assert torch.equal(batch.image[i, :, :h, :w], alone.image[0])
        assert torch.equal(batch.targets[i].boxes, alone.targets[0].boxes)
        assert torch.equal(batch.targets[i].ignore, alone.targets[0].ignore)
        assert torch.equal(batch.proposals[i], alone.proposals[0])
        assert (batch.keys[i], batch.origins[i]) == (alone.keys[0], alone.origins[0])
    # One storage per kind of target, whatever the size of the batch.
    assert len({t.boxes.untyped_storage().data_ptr() for t in batch.targets}) == 1


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
def test_batches_keep_the_raw_values_of_any_dtype(dtype):
    pixels = np.arange(20 * 30 * 5).reshape(20, 30, 5).astype(dtype)
    items = EvalObjects([MemoryPhoto(pixels, Objects.none())], view=View())
    batch = collate_objects([items[0], items[0]])
    assert batch.image.shape == (2, 5, 32, 32)
    assert np.array_equal(batch.image[1, :, :20, :30].numpy(), pixels.transpose(2, 0, 1))
    assert batch.proposals is None


def test_ten_thousand_objects_in_one_photo_are_all_there():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 990, (10_000, 2))
    objects = Objects(np.concatenate([low, low + 8], 1), rng.integers(0, 9, 10_000))
    photo = MemoryPhoto(np.zeros((1000, 1000, 3), np.uint8), objects)
    whole = RandomObjects([photo], view=View(copy_paste=1.0), augment=object_aerial(0))[0]
    assert len(whole.targets[0].boxes) == 10_000
    tiles = EvalObjects([photo], view=View(tile=256, overlap=32))
    assert sum(int((~tiles[i].targets[0].ignore).sum()) for i in range(len(tiles))) >= 10_000


def test_a_strip_of_30000_pixels_is_seen_whole_and_in_tiles():
    strip = MemoryPhoto(np.zeros((40, 30_000, 3), np.uint8), Objects(np.array([[29_990, 0, 30_000, 40.0]]), [0]))
    small = EvalObjects([strip], view=View(rescale=Rescale(800, 1333)))[0]
    assert small.sizes == ((2, 1333),)
    assert len(small.targets[0].boxes) == 1
    tiles = EvalObjects([strip], view=View(tile=512))
    assert tiles[len(tiles) - 1].targets[0].boxes[0, 3] == 40
    assert {tiles.shape(i)[0] for i in range(len(tiles))} == {40}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"tile": 0}, "tile 0 must be at least 1 pixel"),
        ({"tile": 64, "rescale": Rescale(6, 9)}, "tile and rescale exclude each other"),
        ({"tile": 64, "overlap": 64}, r"overlap 64 is for tiles, and must be in \[0, tile 64\)"),
        ({"overlap": 3}, "overlap 3 is for tiles"),
        ({"scale": (1.2, 0.8)}, "two positive factors, the smaller first"),
        ({"keep": 0.0}, r"keep 0.0 must be in \(0, 1\]"),
        ({"per_epoch": 0}, "per_epoch 0 must be at least 1"),
        ({"mosaic": 1.5}, r"mosaic 1.5 must be in \[0, 1\]"),
        ({"around": -0.1}, "around -0.1 must be"),
    ],
)
def test_settings_out_of_range_are_named(arguments, text):
    with pytest.raises(ConfigError, match=text):
        View(**arguments)


def test_without_photos_there_is_nothing_to_draw():
    with pytest.raises(ConfigError, match="no photo to draw from; check the folders and the split"):
        RandomObjects([], view=View())
