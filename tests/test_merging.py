"""Detections of tiles as objects of an image: suppression, fusion, and what the edges of tiles have cut."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms

from visionapps.errors import ConfigError, DataError
from visionapps.inference.detecting_masks import placed
from visionapps.inference.merging import Merging, fuse, merge_tiles, nms
from visionapps.masks import coco_to_runs, encode, runs_to_coco
from visionapps.objects import Objects
from visionapps.windows import Window, starts


def some_boxes(count: int, seed: int, side: float = 60.0, place: float = 200.0, classes: int = 3):
    """(N, 4) boxes of very different sizes, (N,) distinct scores, (N,) labels."""
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, place, (count, 2)), side ** rng.uniform(0, 1, (count, 2)) * rng.uniform(0.5, 1.5)
    scores = (rng.permutation(count) + 0.5) / max(1, count)
    return np.concatenate([corner, corner + size], axis=1), scores, rng.integers(0, classes, count)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), st.integers(0, 2**32 - 1), st.floats(0.02, 1.0), st.sampled_from([3.0, 60.0, 2000.0]))
def test_suppression_keeps_exactly_what_torchvision_keeps(count: int, seed: int, iou: float, side: float) -> None:
    boxes, scores, labels = some_boxes(count, seed, side)
    # One class at a time: torchvision's batched_nms moves boxes of different classes apart, which rounds them.
    expected = np.zeros(count, bool)
    for label in range(3):
        which = np.flatnonzero(labels == label)
        kept = torch.ops.torchvision.nms(torch.from_numpy(boxes[which]), torch.from_numpy(scores[which]), iou)
        expected[which[kept.numpy()]] = True
    found = nms(boxes, scores, labels, iou)
    assert np.array_equal(np.sort(found), np.flatnonzero(expected))
    assert (np.diff(scores[found]) < 0).all()


def test_suppression_of_many_boxes_agrees_with_batched_nms_of_torchvision() -> None:
    boxes, scores, labels = (array for array in some_boxes(4000, 7, place=1000))
    boxes = boxes.round()  # whole pixels stay exact where batched_nms moves classes apart
    kept = batched_nms(torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(labels), 0.4)
    assert np.array_equal(nms(boxes, scores, labels, 0.4), kept.numpy())


def fused_by_loop(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, iou: float) -> set[tuple[float, ...]]:
    """The definition of weighted boxes fusion, without any short cut."""

    def overlap(a: np.ndarray, b: np.ndarray) -> float:
        sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
        common = sides.clip(0).prod()
        return float(common / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - common))

    clusters: list[tuple[int, list[int]]] = []

    def mean(members: list[int]) -> np.ndarray:
        return np.asarray((boxes[members] * scores[members, None]).sum(0) / scores[members].sum())

    for i in np.argsort(-scores):
        overlaps = [overlap(mean(m), boxes[i]) if label == labels[i] else 0.0 for label, m in clusters]
        if overlaps and max(overlaps) > iou:
            clusters[int(np.argmax(overlaps))][1].append(int(i))
        else:
            clusters.append((int(labels[i]), [int(i)]))
    return {(label, *mean(m).round(6), scores[m].mean().round(6)) for label, m in clusters}


@pytest.mark.parametrize("seed", range(6))
def test_fusion_gives_the_averages_of_its_definition(seed: int) -> None:
    boxes, scores, labels = some_boxes(250, seed, side=20, place=10)
    fused = fuse(boxes, scores, labels, 0.45)
    rows = np.concatenate([fused.labels[:, None], fused.boxes.round(6), fused.scores[:, None].round(6)], axis=1)
    expected = fused_by_loop(boxes, scores, labels, 0.45)
    assert {tuple(row) for row in rows.tolist()} == expected
    assert len(expected) < 240


def seen(objects: np.ndarray, labels: np.ndarray, shape: tuple[int, int], tile: int, overlap: int, noise: float = 0):
    """What a perfect detector finds in each tile: every object as far as the tile shows it, 4 px at least."""
    rng = np.random.default_rng(3)
    parts = []
    for row, col in itertools.product(*(starts(side, tile, overlap) for side in shape)):
        window = Window(row, col, min(tile, shape[0] - row), min(tile, shape[1] - col))
        frame = np.array([col, row, window.col_end, window.row_end])
        boxes = np.concatenate([np.maximum(objects[:, :2], frame[:2]), np.minimum(objects[:, 2:], frame[2:])], axis=1)
        shown = (boxes[:, 2:] - boxes[:, :2]).min(1) >= 4
        boxes = boxes[shown] + rng.uniform(-noise, noise, (shown.sum(), 4))
        boxes = np.concatenate([np.maximum(boxes[:, :2], frame[:2]), np.minimum(boxes[:, 2:], frame[2:])], axis=1)
        parts.append((window, Objects(boxes, labels[shown], rng.uniform(0.5, 1, int(shown.sum())))))
    return parts


def apart(count: int, shape: tuple[int, int], smallest: int, largest: int, seed: int) -> np.ndarray:
    """(N, 4) whole-pixel rectangles that keep a distance of 6 px."""
    rng = np.random.default_rng(seed)
    boxes: list[tuple[int, ...]] = []
    for _ in range(50 * count):
        h, w = rng.integers(smallest, largest, 2)
        y, x = rng.integers(0, shape[0] - h), rng.integers(0, shape[1] - w)
        near = any(x < b[2] + 6 and b[0] < x + w + 6 and y < b[3] + 6 and b[1] < y + h + 6 for b in boxes)
        if not near and len(boxes) < count:
            boxes.append((x, y, x + w, y + h))
    return np.array(boxes, np.float64)


def by_place(found: Objects) -> np.ndarray:
    """Label and box of each, in an order in which differences of a few pixels play no part: objects keep 6 apart."""
    rows = np.concatenate([found.labels[:, None] * 1000, found.boxes], axis=1)
    middle = (found.boxes[:, :2] + found.boxes[:, 2:]) @ np.array([1.0, 7.3])
    return rows[np.lexsort((middle, found.labels))]


@pytest.mark.parametrize("how", ["nms", "wbf"])
@pytest.mark.parametrize(("tile", "overlap"), [(128, 0), (128, 32), (96, 40), (200, 64), (64, 16), (500, 100)])
def test_objects_are_the_same_whatever_the_tiles_that_saw_them(tile: int, overlap: int, how: str) -> None:
    shape = (410, 530)
    objects = apart(40, shape, 12, 150, seed=1)
    labels = np.arange(len(objects)) % 3
    found = merge_tiles(seen(objects, labels, shape, tile, overlap), shape, 3, Merging(how))  # type: ignore[arg-type]
    # What sticks out of a tile by less than 4 px no tile shows.
    assert len(found) == len(objects)
    assert np.abs(by_place(found) - by_place(Objects(objects, labels))).max() < 4


def test_objects_survive_boxes_that_miss_by_some_pixels() -> None:
    shape = (600, 600)
    objects = apart(40, shape, 40, 200, seed=2)
    labels = np.zeros(len(objects), np.int64)
    found = merge_tiles(seen(objects, labels, shape, 160, 48, noise=1.5), shape, 1)
    assert len(found) == len(objects)
    assert np.abs(by_place(found) - by_place(Objects(objects, labels))).max() < 6


def test_the_result_does_not_depend_on_the_order_of_tiles_or_boxes() -> None:
    shape = (300, 300)
    objects = apart(20, shape, 12, 150, seed=4)
    parts = seen(objects, np.arange(len(objects)) % 2, shape, 96, 24, noise=3)
    boxes, scores, labels = some_boxes(200, 5, place=230)
    parts.append((Window(0, 0, 300, 300), Objects(boxes, labels % 2, scores.round(1))))  # many ties
    rng = np.random.default_rng(0)
    for how in ("nms", "wbf"):
        results = []
        for _ in range(3):
            rng.shuffle(parts)
            parts = [(window, found.take(rng.permutation(len(found)))) for window, found in parts]
            results.append(merge_tiles(parts, shape, 2, Merging(how)))  # type: ignore[arg-type]
        for other in results[1:]:
            assert other.boxes.tobytes() == results[0].boxes.tobytes()
            assert np.array_equal(other.scores, results[0].scores)
            assert np.array_equal(other.labels, results[0].labels)


LEFT, RIGHT = Window(0, 0, 100, 100), Window(0, 80, 100, 100)


def one(box: tuple[float, ...], score: float = 0.9, label: int = 0) -> Objects:
    return Objects(np.array([box]), np.array([label]), np.array([score]))


def merged(left: Objects, right: Objects, **options: object) -> list[list[float]]:
    return merge_tiles([(LEFT, left), (RIGHT, right)], (100, 180), 2, Merging(**options)).boxes.tolist()  # type: ignore[arg-type]


def test_a_whole_object_replaces_the_part_of_it_that_another_tile_saw() -> None:
    # IoU is 0.25, so that suppression alone would keep both.
    assert merged(one((90, 10, 100, 30), 0.99), one((90, 10, 130, 30), 0.4)) == [[90, 10, 130, 30]]
    both = merged(one((90, 10, 100, 30), 0.99), one((90, 10, 130, 30), 0.4), join_cut=False)
    assert both == [[90, 10, 100, 30], [90, 10, 130, 30]]


def test_a_part_of_another_class_or_another_shape_stays() -> None:
    assert len(merged(one((90, 10, 100, 30)), one((90, 10, 130, 30), label=1))) == 2
    assert len(merged(one((85, 10, 100, 20), 0.9), one((85, 10, 150, 90), 0.4))) == 2
    # Here the larger one is the surer one, and covers it.
    assert merged(one((85, 10, 100, 20), 0.3), one((85, 10, 150, 90), 0.4)) == [[85, 10, 150, 90]]


def test_two_parts_of_one_object_are_joined_with_the_better_score() -> None:
    found = merge_tiles([(LEFT, one((20, 10, 100, 30), 0.6)), (RIGHT, one((80, 11, 170, 30), 0.8))], (100, 180), 1)
    assert found.boxes.tolist() == [[20, 10, 170, 30]]
    assert found.scores is not None
    assert found.scores.tolist() == [0.8]


def test_two_objects_that_end_at_different_edges_are_not_joined() -> None:
    assert len(merged(one((20, 10, 100, 30)), one((80, 40, 170, 60)))) == 2  # at other heights
    assert len(merged(one((20, 10, 90, 30)), one((95, 10, 170, 30)))) == 2  # neither is cut
    # The image ends here, and no object is cut by that.
    assert len(merge_tiles([(LEFT, one((20, 80, 99, 100))), (RIGHT, one((101, 80, 170, 100)))], (100, 180), 1)) == 2


def test_an_object_larger_than_any_tile_is_joined_from_all_of_them() -> None:
    objects = np.array([[30.0, 20, 470, 410]])
    found = merge_tiles(seen(objects, np.zeros(1, int), (430, 500), 128, 32), (430, 500), 1)
    assert found.boxes.tolist() == objects.tolist()


def test_joined_masks_are_the_union_of_the_parts() -> None:
    picture = np.zeros((100, 180), bool)
    picture[10:30, 20:170] = True
    picture[15:20, 60:90] = False

    def part(cols: slice, box: tuple[float, ...]) -> Objects:
        shown = np.zeros_like(picture)
        shown[:, cols] = picture[:, cols]
        mask = runs_to_coco(encode(shown, order="column"), (100, 180))
        return Objects(np.array([box]), np.zeros(1), np.ones(1), areas=np.array([shown.sum()]), masks=(mask,))

    parts = [(LEFT, part(slice(0, 100), (20, 10, 100, 30))), (RIGHT, part(slice(80, 180), (80, 10, 170, 30)))]
    found = merge_tiles([*parts, (Window(0, 0, 1, 1), Objects.none(scored=True))], (100, 180), 1)
    assert found.masks is not None
    assert np.array_equal(coco_to_runs(found.masks[0]), encode(picture, order="column"))
    assert found.areas.tolist() == [picture.sum()]


@given(st.integers(0, 2**32 - 1), st.integers(-6, 20), st.integers(-6, 20))
def test_a_mask_in_its_place_has_the_runs_of_the_whole_image(seed: int, row: int, col: int) -> None:
    mask = np.random.default_rng(seed).random((7, 9)) < 0.6
    whole = np.zeros((40, 50), bool)
    whole[10 + row : 17 + row, 10 + col : 19 + col] = mask
    whole = whole[10:28, 10:32]
    expected = encode(whole, order="column")
    assert np.array_equal(coco_to_runs(placed(mask, row, col, (18, 22))), expected)


def test_boxes_are_clipped_and_what_lies_outside_is_left_out() -> None:
    boxes = np.array([[-5.0, 10, 20, 30], [170, 90, 190, 130], [181, 0, 190, 10], [5, 5, 5, 9]])
    outside = Objects(boxes, np.zeros(4), np.linspace(0.9, 0.6, 4))
    found = merge_tiles([(Window(0, 0, 140, 200), outside)], (100, 180), 1)
    assert found.boxes.tolist() == [[0, 10, 20, 30], [170, 90, 180, 100]]


def test_what_one_tile_has_found_is_not_suppressed_again() -> None:
    close = Objects(np.array([[10.0, 10, 30, 30], [11, 10, 31, 30]]), np.zeros(2), np.array([0.5, 0.9]))
    found = merge_tiles([(LEFT, close)], (100, 180), 1)
    assert found.boxes.tolist() == [[11, 10, 31, 30], [10, 10, 30, 30]]
    assert len(merge_tiles([(LEFT, close), (RIGHT, one((120, 0, 130, 10)))], (100, 180), 1)) == 2


def test_no_tile_and_no_object_give_none() -> None:
    for parts in ([], [(LEFT, Objects.none(scored=True))]):
        found = merge_tiles(parts, (100, 180), 2)
        assert len(found) == 0
        assert found.scores is not None


def test_bad_input_is_refused_in_words() -> None:
    with pytest.raises(DataError, match="have no scores; give detections"):
        merge_tiles([(LEFT, Objects(np.zeros((1, 4)), np.zeros(1)))], (100, 180), 2)
    with pytest.raises(DataError, match="not finite numbers"):
        merge_tiles([(LEFT, one((np.nan, 0, 1, 1)))], (100, 180), 2)
    with pytest.raises(DataError, match="a label 2, but 2 classes"):
        merge_tiles([(LEFT, one((0, 0, 1, 1), label=2))], (100, 180), 2)
    with pytest.raises(ConfigError, match="'soft' is not known; use nms or wbf"):
        Merging("soft")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"iou 0 and agree 0.5 must be in \(0, 1\]"):
        Merging(iou=0)


def test_ten_thousand_boxes_in_one_place_and_a_strip_of_one_pixel() -> None:
    boxes, scores, labels = some_boxes(10_000, 9, side=4, place=5, classes=1)
    parts = [(Window(0, 0, 40, 40), Objects(boxes, labels, scores)), (Window(30, 30, 10, 10), one((30, 30, 31, 31)))]
    assert 0 < len(merge_tiles(parts, (40, 40), 1)) < 3000
    strip = np.array([[0.0, 0, 29_000, 1]])
    found = merge_tiles(seen(np.array([[0.0, 0, 29_000, 8]]), np.zeros(1, int), (8, 30_000), 512, 64), (8, 30_000), 1)
    assert found.boxes.tolist() == [[0, 0, 29_000, 8]]
    assert len(merge_tiles([(Window(0, 0, 1, 30_000), Objects(strip, np.zeros(1), np.ones(1)))], (1, 30_000), 1)) == 1
