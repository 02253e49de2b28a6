"""Competition metrics against loops over pixels, other libraries, and numbers worked out by hand."""

import json
import math

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label as skimage_label

from visionapps.errors import ConfigError, DataError
from visionapps.metrics.competition import METRICS, Global, PerImage, build_metric
from visionapps.metrics.measures import Overlap, areas
from visionapps.metrics.object_precision import ObjectPairs, object_pairs
from visionapps.metrics.surface import near_points, outline, rim


def blobs(rng: np.random.Generator, classes: int = 4, side: int = 24, void: bool = True) -> np.ndarray:
    """A label map of overlapping boxes, with some void."""
    labels = np.zeros((side, side + 3), np.uint8)
    for _ in range(8):
        y, x, h, w = rng.integers(0, side - 4, 2).tolist() + rng.integers(2, 9, 2).tolist()
        labels[y : y + h, x : x + w] = rng.integers(0, classes)
    if void:
        labels[:2, :3] = 255
    return labels


def total(metric, pairs):
    return sum(metric.count(prediction, truth) for prediction, truth in pairs)


def naive_cells(pairs, classes, formula):
    """(image, class) -> value or None, by sets of pixels."""
    cells = []
    for prediction, truth in pairs:
        row = []
        for k in range(classes):
            valid = {tuple(p) for p in np.argwhere(truth != 255)}
            p = {tuple(q) for q in np.argwhere(prediction == k)} & valid
            t = {tuple(q) for q in np.argwhere(truth == k)}
            if not p and not t:
                row.append(None)
            elif formula == "dice":
                row.append(2 * len(p & t) / (len(p) + len(t)))
            else:
                row.append(len(p & t) / len(p | t))
        cells.append(row)
    return cells


def test_dice_of_two_images_by_hand():
    truth = [np.array([[0, 1], [1, 1]], np.uint8), np.array([[0, 0], [0, 0]], np.uint8)]
    prediction = [np.array([[0, 1], [1, 0]], np.uint8), np.array([[0, 0], [0, 2]], np.uint8)]
    pairs = list(zip(prediction, truth, strict=True))
    # Class 1: 2 * 2 / (2 + 3) = 0.8 and both empty; class 2: both empty and 0.
    expected = {"one": (0.8 + 1 + 1 + 0) / 4, "zero": 0.8 / 4, "skip": (0.8 + 0) / 2}
    for empty, score in expected.items():
        metric = build_metric({"name": "dice_per_image", "empty": empty, "exclude": [0]}, 3)
        assert metric.score(total(metric, pairs)) == pytest.approx(score)
    by_class = metric.per_class(total(metric, pairs))
    assert math.isnan(by_class[0])
    assert by_class[1:].tolist() == [0.8, 0.0]
    # Over all images: class 1 0.8, class 2 0 of one predicted pixel.
    everything = build_metric({"name": "dice_global", "exclude": [0]}, 3)
    assert everything.score(total(everything, pairs)) == pytest.approx(0.4)
    pooled = build_metric({"name": "dice_global", "exclude": [0], "mean": "pooled"}, 3)
    assert pooled.score(total(pooled, pairs)) == pytest.approx(2 * 2 / (3 + 3))


@pytest.mark.parametrize("formula", ["dice", "iou"])
@pytest.mark.parametrize("empty", ["one", "zero", "skip"])
def test_overlaps_are_those_of_a_loop_over_sets_of_pixels(formula, empty):
    rng = np.random.default_rng(3)
    pairs = [(blobs(rng, void=False), blobs(rng)) for _ in range(5)]
    cells = naive_cells(pairs, 6, formula)  # labels 4 and 5 occur nowhere
    fill = {"one": 1.0, "zero": 0.0, "skip": None}[empty]
    filled = [[fill if value is None else value for value in row[1:]] for row in cells]
    known = [value for row in filled for value in row if value is not None]
    images = [np.mean([v for v in row if v is not None]) for row in filled]
    columns = [[v for v in column if v is not None] for column in zip(*filled, strict=True)]
    expected = {
        "cells": np.mean(known),
        "images": np.mean(images),
        "classes": np.mean([np.mean(column) for column in columns if column]),
    }
    for mean, score in expected.items():
        spec = {"name": f"{formula}_per_image", "empty": empty, "mean": mean, "exclude": [0]}
        metric = build_metric(spec, 6)
        assert metric.score(total(metric, pairs)) == pytest.approx(score), mean


def test_global_scores_are_those_of_the_images_laid_side_by_side():
    rng = np.random.default_rng(4)
    pairs = [(blobs(rng, void=False), blobs(rng)) for _ in range(4)]
    side_by_side = [(np.hstack([p for p, _ in pairs]), np.hstack([t for _, t in pairs]))]
    for formula in ("dice", "iou"):
        metric = build_metric(f"{formula}_global", 5)
        (row,) = naive_cells(side_by_side, 5, formula)
        known = [value for value in row if value is not None]
        assert row[4] is None
        assert metric.score(total(metric, pairs)) == pytest.approx(np.mean(known))
        assert metric.score(metric.count(*side_by_side[0])) == pytest.approx(np.mean(known))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(METRICS))
def test_masks_score_as_labels_do_and_counts_add_up_in_any_order(seed, name):
    rng = np.random.default_rng(seed)
    pairs = [(blobs(rng, void=False), blobs(rng, void=False)) for _ in range(2)]
    metric = build_metric(name, 4)
    for prediction, truth in pairs:
        masks = [np.stack([side == k for k in range(4)]) for side in (prediction, truth)]
        counts = metric.count(prediction, truth)
        assert np.array_equal(counts, metric.count(masks[0], masks[1]))
        assert np.array_equal(counts, metric.count(masks[0], truth))
        assert metric.score(metric.count(truth, truth)) == 1
    forth, back = total(metric, pairs), total(metric, pairs[::-1])
    assert metric.score(forth) == pytest.approx(metric.score(back), abs=1e-12)
    assert 0 <= metric.score(forth) <= 1


def test_parts_of_many_images_at_once_give_the_counts_of_each():
    rng = np.random.default_rng(5)
    pairs = [(blobs(rng), blobs(rng)) for _ in range(3)]
    parts = np.stack([areas(prediction, truth, 4).parts() for prediction, truth in pairs])
    for name in ("dice_per_image", "iou_global"):
        metric = build_metric({"name": name, "exclude": [2]}, 4)
        together = metric.of_parts(parts)
        for counts, pair in zip(together, pairs, strict=True):
            assert np.array_equal(counts, metric.count(*pair))
        assert np.array_equal(
            metric.per_class(together), np.stack([metric.per_class(c) for c in together]), equal_nan=True
        )


def test_void_counts_for_nobody():
    truth = np.repeat(np.array([[1, 1, 255, 255]], np.uint8), 4, axis=1)
    right, wrong = (np.repeat(np.array([row], np.uint8), 4, axis=1) for row in ([1, 1, 1, 0], [1, 255, 1, 1]))
    for name in METRICS:
        metric = build_metric({"name": name, "exclude": [0]}, 2)
        assert metric.score(metric.count(right, truth)) == 1, name
        assert metric.score(metric.count(wrong, truth)) < 1, name


# Objects


def naive_objects(prediction, truth, thresholds):
    """Data Science Bowl 2018: hits at every threshold, object by object."""
    ours, theirs = skimage_label(prediction), skimage_label(truth)  # 8 neighbours
    ours = [ours == i for i in range(1, ours.max() + 1)]
    theirs = [theirs == i for i in range(1, theirs.max() + 1)]
    found = []
    for t in thresholds:
        hits = sum(any((a & b).sum() / (a | b).sum() > t for a in ours) for b in theirs)
        found.append((hits, len(ours) - hits, len(theirs) - hits))
    return found


def test_the_score_of_the_data_science_bowl_by_hand():
    truth = np.zeros((12, 12), np.uint8)
    truth[0:4, 0:5] = truth[6:10, 0:4] = 1  # 20 and 16 pixels
    prediction = np.zeros_like(truth)
    prediction[0:4, 0:4] = prediction[6:9, 0:4] = prediction[6:8, 8:10] = (
        1  # IoU 16/20 = 0.8, 12/16 = 0.75, a false one
    )
    metric = build_metric({"name": "map_per_image", "exclude": [0]}, 2)
    # Above 0.5 to 0.7: 2 hits of 2 + 1 false; 0.75: the second does not exceed it; from 0.8 on: none.
    expected = (5 * 2 / 3 + 1 * 1 / 4) / 10
    assert metric.score(metric.count(prediction, truth)) == pytest.approx(expected)
    at_half = build_metric({"name": "map_per_image", "exclude": [0], "thresholds": [0.5], "formula": "f2"}, 2)
    assert at_half.score(at_half.count(prediction, truth)) == pytest.approx(5 * 2 / (5 * 2 + 4 * 0 + 1))
    right = build_metric({"name": "map_global", "exclude": [0], "thresholds": [0.5], "formula": "precision"}, 2)
    assert right.score(right.count(prediction, truth)) == pytest.approx(2 / 3)


def test_objects_are_those_of_a_loop_over_components():
    rng = np.random.default_rng(6)
    metric = build_metric("map_per_image", 2)
    for _ in range(10):
        prediction, truth = blobs(rng, 2, void=False), blobs(rng, 2, void=False)
        parts = metric.measure.parts(prediction, truth, 2)
        for k in range(2):
            expected = naive_objects(prediction == k, truth == k, metric.measure.thresholds)
            assert parts[k].tolist() == [list(line) for line in expected]


def test_pixels_that_touch_at_a_corner_are_one_object_or_two():
    mask = np.eye(3, dtype=bool)
    for connectivity, objects in ((8, [3]), (4, [1, 1, 1])):
        pairs = object_pairs(mask, mask, connectivity=connectivity)
        assert pairs.predicted_px.tolist() == pairs.true_px.tolist() == pairs.both_px.tolist() == objects
        assert pairs.predicted.tolist() == pairs.true.tolist() == list(range(len(objects)))


def test_a_mask_as_one_object_is_the_score_of_the_salt_competition():
    truth, prediction = np.zeros((2, 10, 10), np.uint8)
    truth[0, :8] = truth[9, 9] = 1  # two pieces
    prediction[0, :7] = 1
    empty = np.zeros((10, 10), np.uint8)
    metric = build_metric({"name": "map_per_image", "exclude": [0], "objects": "whole"}, 2)
    # IoU 7/9 = 0.78 lies above six of the ten thresholds; nothing for nothing is right, and anything for nothing wrong.
    pairs = [(prediction, truth), (empty, empty), (prediction, empty), (empty, truth)]
    scores = [metric.score(metric.count(*pair)) for pair in pairs]
    assert scores == pytest.approx([0.6, 1, 0, 0])
    assert metric.to_dict() == {"name": "map_per_image", "exclude": [0], "objects": "whole"}


def test_one_threshold_is_as_good_as_a_list_of_one():
    spec = {"name": "map_per_image", "thresholds": 0.5}
    assert build_metric(spec, 2).measure.thresholds == (0.5,)
    assert build_metric(spec, 2).to_dict()["thresholds"] == [0.5]


def test_below_a_half_the_pairing_with_the_most_hits_counts():
    # The first prediction fits both objects, the second only the first: greedily by IoU there would be one hit.
    pairs = ObjectPairs(*np.array([[0, 0, 1], [0, 1, 0], [45, 40, 30]]), np.array([90, 60]), np.array([80, 60]))
    measure = build_metric({"name": "map_per_image", "thresholds": [0.2]}, 1).measure
    assert measure.of_pairs(pairs).tolist() == [[2, 0, 0]]


def test_precision_of_coco_is_that_of_pycocotools_when_order_does_not_help():
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(8)
    metric = build_metric({"name": "map_global", "formula": "coco", "exclude": [0]}, 2)
    counts, images, annotations, results = 0, [], [], []
    for image in range(1, 7):
        truth = blobs(rng, 2, side=40, void=False)
        prediction = np.roll(truth, 1, axis=1)
        prediction[30:, 30:] = rng.integers(0, 2)
        counts = counts + metric.count(prediction, truth)
        images.append({"id": image, "height": truth.shape[0], "width": truth.shape[1]})
        for mask, rows in ((truth, annotations), (prediction, results)):
            objects = skimage_label(mask)
            for i in range(1, objects.max() + 1):
                rle = coco_mask.encode(np.asfortranarray(objects == i, dtype=np.uint8))
                row = {"image_id": image, "category_id": 1, "segmentation": rle, "id": len(rows) + 1, "score": 0.5}
                rows.append(row | {"area": int((objects == i).sum()), "iscrowd": 0, "bbox": [0, 0, 1, 1]})
    got = metric.measure.ratio(counts)
    data = COCO()
    data.dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1}]}
    data.createIndex()
    values = []
    for i, threshold in enumerate(metric.measure.thresholds):
        # Equal confidence: the step is the same for every order only if hits come last, so misses get a higher score.
        for row in results:
            own = [a["segmentation"] for a in annotations if a["image_id"] == row["image_id"]]
            row["score"] = 0.5 if coco_mask.iou([row["segmentation"]], own, [0] * len(own)).max() >= threshold else 0.9
        evaluation = COCOeval(data, data.loadRes([dict(row) for row in results]), "segm")
        evaluation.params.iouThrs = np.array([threshold])
        evaluation.evaluate()
        evaluation.accumulate()
        values.append(evaluation.eval["precision"][0, :, 0, 0, 2].mean())
        assert counts[1, i].sum() > 0
    assert 0 < got[1] < 1
    assert metric.score(metric.count(truth, truth)) == 1  # the recall of 1 is reached, too
    assert got[1] == pytest.approx(np.mean(values))


# Outlines


def naive_outline(mask):
    """Corner -> length, by hand for each square of four pixels."""
    padded = np.pad(mask, 1)
    found = {}
    for y in range(mask.shape[0] + 1):
        for x in range(mask.shape[1] + 1):
            a, b, c, d = (bool(v) for v in padded[y : y + 2, x : x + 2].reshape(-1))
            inside = a + b + c + d
            if inside in (1, 3):
                found[y, x] = math.sqrt(0.5)
            elif inside == 2:
                found[y, x] = 2 * math.sqrt(0.5) if a == d else 1.0
    return found


def naive_surface(prediction, truth, tolerance):
    ours, theirs = naive_outline(prediction), naive_outline(truth)

    def near(some, others):
        return sum(length for p, length in some.items() if any(math.dist(p, q) <= tolerance for q in others))

    return near(ours, theirs) + near(theirs, ours), sum(ours.values()) + sum(theirs.values())


@pytest.mark.parametrize("tolerance", [0, 1, 2**0.5, 3, 5])
def test_surface_dice_is_that_of_a_loop_over_all_pairs_of_corners(tolerance):
    rng = np.random.default_rng(9)
    metric = build_metric({"name": "surface_dice_global", "tolerance_px": tolerance}, 3)
    prediction, truth = blobs(rng, 3, void=False), blobs(rng, 3, void=False)
    parts = metric.measure.parts(prediction, truth, 3)
    for k in range(3):
        assert parts[k] == pytest.approx(naive_surface(prediction == k, truth == k, tolerance))


@pytest.mark.parametrize("tolerance", [0, 1.4, 2, 6.5, 100])
@pytest.mark.parametrize("count", [3, 400])
def test_points_are_near_whether_they_are_looked_up_or_transformed(tolerance, count):
    rng = np.random.default_rng(12)
    points, others = rng.integers(0, 40, (count, 2)), rng.integers(0, 40, (5, 2))
    expected = [any(math.dist(p, q) <= tolerance for q in others) for p in points]
    assert near_points(points, others, (40, 40), tolerance).tolist() == expected


def test_a_mask_that_is_shifted_by_the_tolerance_is_right_and_one_further_is_not():
    truth = np.zeros((30, 30), np.uint8)
    truth[10:20, 5:15] = 1
    for tolerance, shift, score in ((3, 3, 1.0), (0, 3, None), (2.9, 3, None)):
        metric = build_metric({"name": "surface_dice_per_image", "tolerance_px": tolerance, "exclude": [0]}, 2)
        value = metric.score(metric.count(np.roll(truth, shift, 1), truth))
        assert value == 1.0 if score else value < 1.0


def test_the_outline_of_a_square_and_of_a_diamond_is_as_long_as_the_polygon():
    _, square = outline(np.ones((5, 7), bool))
    assert square.sum() == pytest.approx(2 * (4 + 6) + 4 * math.sqrt(0.5))  # corners are cut
    y, x = np.mgrid[-6:7, -6:7]
    smaller, larger = (outline(abs(y) + abs(x) <= radius)[1].sum() for radius in (4, 5))
    assert larger - smaller == pytest.approx(4 * math.sqrt(2))  # each side grows by one diagonal of a pixel


@pytest.mark.parametrize("width", [1, 2, 5])
def test_rims_are_those_of_repeated_erosion_by_a_square(width):
    from scipy import ndimage

    rng = np.random.default_rng(10)
    for k in range(3):
        mask = blobs(rng, 3, void=False) == k
        eroded = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=width, border_value=0)
        assert np.array_equal(rim(mask, width), mask & ~eroded)


def test_boundary_iou_by_hand_and_its_width():
    truth, prediction = np.zeros((2, 20, 20), np.uint8)
    truth[4:12, 4:12] = 1  # 64 pixels, a rim of 28
    prediction[4:12, 4:13] = 1  # 72 pixels, a rim of 30
    metric = build_metric({"name": "boundary_iou_per_image", "distance": 1, "exclude": [0]}, 2)
    # Shared: the left column (8) and both rows as far as both reach (2 * 7).
    assert metric.score(metric.count(prediction, truth)) == pytest.approx(22 / (28 + 30 - 22))
    assert build_metric("boundary_iou_global", 2).measure.width_px(300, 400) == 10
    assert build_metric("boundary_iou_global", 2).measure.width_px(10, 10) == 1


# Plain data and mistakes


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_plain_data_both_ways(name):
    metric = build_metric({"name": name, "exclude": ["sky", 2], "empty": "zero"}, ("sky", "roof", "road", "tree"))
    plain = json.loads(json.dumps(metric.to_dict()))
    assert plain == {"name": name, "exclude": [0, 2], "empty": "zero"}
    assert build_metric(yaml.safe_load(yaml.safe_dump(plain)), 4) == metric
    assert metric.kept == (1, 3)
    assert metric.name == name
    assert metric.better == "higher"


def test_options_of_a_measure_survive_being_plain():
    spec = {"name": "map_global", "thresholds": [0.5, 0.75], "formula": "coco", "mean": "pooled"}
    metric = build_metric(spec, 3)
    assert metric.to_dict() == spec
    assert isinstance(metric, Global)
    assert isinstance(build_metric("dice_per_image", 3), PerImage)
    assert build_metric("dice_per_image", 3).measure == Overlap("dice")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dice_per_imge", "did you mean dice_per_image?"),
        ({"empty": "one"}, "metric None is unknown; known are dice_per_image, dice_global"),
        ({"name": "dice_global", "tolerance_px": 1}, "unknown option 'tolerance_px'; known are exclude, empty, mean"),
        ({"name": "dice_global", "empty": "two"}, "empty 'two' is unknown; give one or zero or skip"),
        ({"name": "dice_global", "mean": "cells"}, "mean 'cells' is unknown; give classes or pooled"),
        ({"name": "dice_global", "exclude": [3]}, "excludes label 3, but the 3 labels begin with 0"),
        ({"name": "dice_global", "exclude": [0, 1, 2]}, "all 3 classes are excluded"),
        ({"name": "dice_global", "exclude": "sky"}, "exclude 'sky' is no class; give labels"),
        ({"name": "map_global", "objects": "rows"}, "objects 'rows' is unknown; give components or whole"),
        ({"name": "map_global", "thresholds": [50]}, "thresholds (50,) must be numbers between 0 and 1"),
        ({"name": "map_global", "formula": "ap"}, "formula 'ap' is unknown"),
        ({"name": "map_global", "connectivity": 6}, "connectivity 6 must be 4 or 8"),
        ({"name": "surface_dice_global", "tolerance_px": -1}, "tolerance_px -1 must be a number from 0 on"),
        ({"name": "boundary_iou_global", "distance": 0}, "distance 0 must be a number above 0"),
    ],
)
def test_a_wrong_metric_says_what_is_possible(spec, message):
    with pytest.raises(ConfigError) as caught:
        build_metric(spec, 3)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), "prediction of 2 x 3 pixels, truth of 3 x 2"),
        (np.zeros((2, 3)), np.zeros((2, 3), np.uint8), "prediction: shape (2, 3) of float64"),
        (np.full((2, 3), 9, np.uint8), np.zeros((2, 3), np.uint8), "prediction: has label 9, but there are 3 classes"),
        (np.zeros((2, 3), np.uint8), np.full((2, 3), -1), "truth: has label -1, but there are 3 classes"),
        (np.zeros((4, 2, 3), bool), np.zeros((2, 3), np.uint8), "prediction: 4 masks, but there are 3 classes"),
    ],
)
def test_pairs_that_cannot_be_compared_are_refused(prediction, truth, message):
    for name in ("dice_per_image", "map_per_image"):
        with pytest.raises(DataError) as caught:
            build_metric(name, 3).count(prediction, truth)
        assert message in str(caught.value)


def test_nothing_to_score_is_not_a_number():
    metric = build_metric({"name": "dice_per_image", "empty": "skip", "exclude": [0]}, 3)
    nothing = np.zeros((2, 2), np.uint8)
    assert math.isnan(metric.score(metric.count(nothing, nothing)))
    assert math.isnan(build_metric({"name": "iou_global", "exclude": [0]}, 3).score(np.zeros((3, 3))))
