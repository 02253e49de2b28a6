"""What a validation gathers, and what a detection task asks of its data; geometry is counted by hand."""

import numpy as np
import pytest
import torch

from visionapps.boxes import Batch, Detections, Targets
from visionapps.data.object_dataset import ObjectPhoto
from visionapps.inference.merging import Merging
from visionapps.masks import coco_to_runs, decode
from visionapps.objects import Objects
from visionapps.training.detection import TermMeans
from visionapps.training.found import Found


def photo(size: tuple[int, int]) -> ObjectPhoto:
    return ObjectPhoto("a.png", "a", "a.png", 1, size, Objects.none())


def batch(*images: tuple[int, tuple[int, int], tuple[int, int], float]) -> Batch:
    """Images as (key, origin, (h, w), factor); pixels do not matter here."""
    keys, origins, sizes, factors = zip(*images, strict=True)
    nothing = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
    return Batch(torch.zeros(len(keys), 3, 8, 8), sizes, (nothing,) * len(keys), None, keys, origins, factors)


def detections(boxes: list[list[float]], scores: list[float], masks: torch.Tensor | None = None) -> Detections:
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    return Detections(torch.tensor(boxes).reshape(-1, 4), labels, torch.tensor(scores), masks)


def test_detections_of_a_scaled_photo_come_back_to_its_own_pixels():
    found = Found()
    found.add(
        batch((0, (0, 0), (50, 100), 0.5)),
        [detections([[10, 5, 30.5, 25], [90, 40, 101, 50]], [0.9, 0.5])],
        [(100, 200)],
    )
    (objects,) = found.merged([photo((100, 200))], 1, Merging()).values()
    assert objects.boxes.tolist() == [[20, 10, 61, 50], [180, 80, 200, 100]]  # the last is cut at the photo's edge
    assert objects.scores.tolist() == pytest.approx([0.9, 0.5])


def test_a_scale_that_rounds_the_sides_still_shows_the_whole_photo():
    # 101 px at a factor of 0.33 are 33.33: 33 px, which stand for 100 px of the photo, and yet all of it was seen.
    found, factor = Found(), 0.33
    box = [0.0, 0.0, 101 * factor, 101 * factor]
    found.add(batch((0, (0, 0), (33, 33), factor)), [detections([box, box], [0.9, 0.8])], [(101, 101)])
    (objects,) = found.merged([photo((101, 101))], 1, Merging()).values()
    assert len(objects) == 2  # as the detector gave them: no tiles were merged, so nothing was suppressed again
    assert objects.boxes[0] == pytest.approx([0, 0, 101, 101])


def test_an_object_that_two_tiles_see_is_found_once_and_in_its_place():
    found = Found()
    left = detections([[30, 10, 50, 30]], [0.9])  # rows 10 to 30, columns 30 to 50 of the photo
    right = detections([[0, 10, 18, 30]], [0.8])  # what the tile that begins at column 32 sees of it
    found.add(batch((0, (0, 0), (64, 64), 1.0)), [left], [(64, 96)])
    found.add(batch((0, (0, 32), (64, 64), 1.0)), [right], [(64, 96)])
    (objects,) = found.merged([photo((64, 96))], 1, Merging()).values()
    assert objects.boxes.tolist() == [[30, 10, 50, 30]]
    assert objects.scores.tolist() == pytest.approx([0.9])


def test_a_photo_that_is_seen_twice_counts_once_and_an_empty_one_counts():
    found = Found()
    one = detections([[1, 1, 5, 5]], [0.9])
    for _ in range(2):  # shares of several processes are padded with photos of others
        found.add(batch((1, (0, 0), (8, 8), 1.0)), [one], [(8, 8), (8, 8)])
    found.add(batch((0, (0, 0), (8, 8), 1.0)), [detections([], [])], [(8, 8), (8, 8)])
    merged = found.merged([photo((8, 8)), photo((8, 8))], 1, Merging())
    assert {key: len(objects) for key, objects in merged.items()} == {0: 0, 1: 1}


def test_masks_come_back_to_the_pixels_of_the_photo():
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 1:3, 0:2] = True
    found = Found()
    found.add(batch((0, (0, 0), (4, 4), 0.5)), [detections([[0, 1, 2, 3]], [0.9], mask)], [(8, 8)])
    (objects,) = found.merged([photo((8, 8))], 1, Merging()).values()
    expected = np.zeros((8, 8), bool)
    expected[2:6, 0:4] = True
    drawn = decode(coco_to_runs(objects.masks[0]), (8, 8), order="column")
    assert np.array_equal(drawn, expected)
    assert objects.areas[0] == drawn.sum()


def test_a_mask_in_a_tile_lies_where_the_tile_lies():
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 1:3, 0:2] = True
    found = Found()
    found.add(batch((0, (2, 4), (4, 4), 1.0)), [detections([[0, 1, 2, 3]], [0.9], mask)], [(8, 8)])
    (objects,) = found.merged([photo((8, 8))], 1, Merging()).values()
    drawn = decode(coco_to_runs(objects.masks[0]), (8, 8), order="column")
    assert np.argwhere(drawn).tolist() == [[3, 4], [3, 5], [4, 4], [4, 5]]


def test_means_of_terms_are_read_together_and_begin_anew():
    means = TermMeans()
    for a, b in ((1.0, 10.0), (3.0, 20.0)):
        total = means.add({"a": torch.tensor(a, requires_grad=True), "b": torch.tensor(b)})
        assert float(total.detach()) == a + b
        assert total.requires_grad
    assert means.read() == {"a": 2.0, "b": 15.0}
    means.add({"a": torch.tensor(5.0), "b": torch.tensor(5.0)})
    assert means.read() == {"a": 5.0, "b": 5.0}


@pytest.mark.parametrize(("side", "seen", "factor"), [(6002, 1200, 0.2), (6003, 1201, 0.2), (6004, 1201, 0.2)])
def test_a_photo_that_was_made_smaller_is_seen_to_its_edge(side, seen, factor):
    found = Found()
    box = [side * factor - 10, 10.0, side * factor, 20.0]
    found.add(batch((0, (0, 0), (800, seen), factor)), [detections([box], [0.9])], [(4000, side)])
    (objects,) = found.merged([photo((4000, side))], 1, Merging()).values()
    assert objects.boxes[0] == pytest.approx([side - 50, 50, side, 100], abs=1e-2)
