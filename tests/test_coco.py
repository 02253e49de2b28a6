"""COCO's scores: those of pycocotools fed from files, defined where pycocotools fails, by either engine."""

import io
import math
from contextlib import redirect_stdout

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from visionapps.errors import ConfigError, DataError
from visionapps.masks import encode, runs_to_coco
from visionapps.metrics import coco
from visionapps.metrics.coco import coco_scores
from visionapps.metrics.object_table import make_table
from visionapps.objects import Objects

ENGINES = ("pycocotools", "faster")


@pytest.fixture(autouse=True)
def fresh_trust(monkeypatch):
    """Each test is the first evaluation of its process."""
    monkeypatch.setattr(coco, "_agreed", set())
    monkeypatch.setattr(coco, "_distrusted", set())


def scene(seed, *, images=12, classes=4, most=9):
    """Objects of all sizes with crowds, and detections of them: moved, of other classes, twice, of nothing."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(images):
        count = int(rng.integers(0, most))
        size = np.exp(rng.normal(3.6, 1, (count, 2))).clip(3, 250)
        corner = rng.uniform(0, 300, (count, 2))
        boxes = np.concatenate([corner, corner + size], 1).round(2)
        labels = rng.integers(0, classes, count)
        truth.append(Objects(boxes, labels, crowd=rng.random(count) < 0.15))
        near = rng.integers(0, max(count, 1), 2 * count)
        moved = boxes[near] + rng.normal(0, 0.07, (len(near), 4)) * np.tile(size[near], 2)
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        other = rng.random(len(near)) < 0.2
        kept = np.where(other, rng.integers(0, classes, len(near)), labels[near])
        false = rng.uniform(0, 300, (3, 2))
        boxes = np.concatenate([moved, np.concatenate([false, false + 40], 1)]).round(2)
        scores = rng.random(len(boxes)).round(2)  # ties
        found.append(Objects(boxes, np.concatenate([kept, rng.integers(0, classes, 3)]), scores))
    return truth, found


def from_dicts(truth, found, classes, *, most=100):
    """The twelve numbers of pycocotools used as its own demo shows: ids from 1, lists of results."""
    annotations, rows = [], []
    for i, (true, detected) in enumerate(zip(truth, found, strict=True), 1):
        for box, label, crowd, area in zip(true.boxes, true.labels, true.crowd, true.areas, strict=True):
            row = {"image_id": i, "category_id": int(label) + 1, "iscrowd": int(crowd), "area": float(area)}
            annotations.append(row | {"id": len(annotations) + 1, "bbox": [*box[:2], *(box[2:] - box[:2]).round(9)]})
        for box, label, score in zip(detected.boxes, detected.labels, detected.scores, strict=True):
            row = {"image_id": i, "category_id": int(label) + 1, "score": float(score)}
            rows.append(row | {"bbox": [*box[:2], *(box[2:] - box[:2]).round(9)]})
    api = COCO()
    api.dataset = {
        "images": [{"id": i} for i in range(1, len(truth) + 1)],
        "categories": [{"id": k, "name": str(k)} for k in range(1, classes + 1)],
        "annotations": annotations,
    }
    with redirect_stdout(io.StringIO()):
        api.createIndex()
        evaluation = COCOeval(api, api.loadRes(rows), "bbox")
        evaluation.params.maxDets = [1, 10, most]
        evaluation.evaluate()
        evaluation.accumulate()
        if most == 100:
            evaluation.summarize()
    return evaluation


def numbers(scores):
    return np.array(list(scores.numbers.to_dict().values()), float)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", range(4))
def test_all_twelve_numbers_and_the_ap_of_each_class_are_those_of_pycocotools(seed, engine):
    truth, found = scene(seed)
    reference = from_dicts(truth, found, 4)
    scores = coco_scores(truth, found, 4, engine=engine)
    assert scores.engine == engine
    np.testing.assert_allclose(numbers(scores), reference.stats, atol=1e-12)
    np.testing.assert_allclose(scores.per_class, reference.eval["precision"][:, :, :, 0, 2].mean((0, 1)), atol=1e-12)
    np.testing.assert_allclose(scores.per_class_50, reference.eval["precision"][0, :, :, 0, 2].mean(0), atol=1e-12)


def some_mask(rng, box, size=(60, 80)):
    """An ellipse that fills a box."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    x0, y0, x1, y1 = box
    inside = ((x - (x0 + x1) / 2) / (x1 - x0)) ** 2 + ((y - (y0 + y1) / 2) / (y1 - y0)) ** 2 < 0.25
    return runs_to_coco(encode(inside, order="column", base=0), size, base=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_masks_are_compared_as_pycocotools_compares_them(engine):
    rng = np.random.default_rng(5)
    truth, found, annotations, rows = [], [], [], []
    for i in range(1, 9):
        corner = rng.uniform(0, 40, (5, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(6, 30, (5, 2))], 1)
        moved = boxes + rng.normal(0, 1.5, boxes.shape)
        labels, scores = rng.integers(0, 2, 5), rng.random(5)
        true, detected = ([some_mask(rng, box) for box in each] for each in (boxes, moved))
        areas = [float(rng.uniform(20, 2000)) for _ in boxes]
        truth.append(Objects(boxes, labels, areas=areas, masks=tuple(true)))
        found.append(Objects(moved, labels, scores, masks=tuple(detected)))
        for mask, label, area in zip(true, labels, areas, strict=True):
            row = {"id": len(annotations) + 1, "image_id": i, "category_id": int(label), "area": area, "iscrowd": 0}
            annotations.append(row | {"segmentation": mask, "bbox": [0, 0, 1, 1]})
        for mask, label, score in zip(detected, labels, scores, strict=True):
            row = {"image_id": i, "category_id": int(label), "score": float(score)}
            rows.append(row | {"segmentation": mask})
    api = COCO()
    images = [{"id": i, "height": 60, "width": 80} for i in range(1, 9)]
    api.dataset = {"images": images, "annotations": annotations, "categories": [{"id": 0}, {"id": 1}]}
    with redirect_stdout(io.StringIO()):
        api.createIndex()
        evaluation = COCOeval(api, api.loadRes(rows), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    scores = coco_scores(truth, found, 2, kind="mask", engine=engine)
    assert scores.engine == engine
    expected = np.where(evaluation.stats < 0, np.nan, evaluation.stats)
    np.testing.assert_allclose(numbers(scores), expected, atol=1e-12)


def test_more_than_255_masks_in_a_set_have_areas():
    # pycocotools' own area overflows there.
    rng = np.random.default_rng(0)
    mask = some_mask(rng, (5, 5, 25, 35))
    one = Objects(np.tile([5, 5, 25, 35], (300, 1)), np.zeros(300, int), np.linspace(0, 1, 300), masks=(mask,) * 300)
    table = make_table([Objects.none()], [one], 1, kind="mask")
    assert set(table.found.areas) == {float(np.sum(some_mask_pixels()))}


def some_mask_pixels():
    from visionapps.masks import coco_to_runs, decode

    return decode(coco_to_runs(some_mask(None, (5, 5, 25, 35)), base=1), (60, 80), order="column", base=1)


def perfect(label=0):
    return Objects([[10, 10, 60, 60]], [label]), Objects([[10, 10, 60, 60]], [label], [0.9])


@pytest.mark.parametrize("engine", ENGINES)
def test_the_first_object_of_the_first_image_counts(engine):
    # pycocotools takes a match with annotation id 0 for no match at all.
    true, found = perfect()
    scores = coco_scores([Objects(true.boxes, true.labels, ids=[0])], [found], 1, engine=engine)
    assert scores.ap == pytest.approx(1)


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_found_is_zero_and_nothing_to_find_is_undefined(engine):
    true, found = perfect()
    nothing = coco_scores([true], [Objects.none(scored=True)], 2, engine=engine)
    assert nothing.ap == 0
    assert nothing.numbers.ar100 == 0
    assert math.isnan(nothing.numbers.ap_small)  # no such object
    assert nothing.to_dict(["a", "b"])["classes"][1] == {
        "name": "b",
        "ap": None,
        "ap50": None,
        "objects": 0,
        "ignored": 0,
        "detections": 0,
    }
    empty = coco_scores([Objects.none()], [found], 2, engine=engine)
    assert math.isnan(empty.ap)
    assert empty.absent_found == 1
    assert math.isnan(coco_scores([], [], 1, engine=engine).ap)


def test_detections_of_a_class_that_the_truth_lacks_are_told_and_change_no_ap():
    true, _ = perfect()
    both = Objects([[10, 10, 60, 60], [80, 80, 90, 90], [0, 0, 5, 5]], [0, 1, 1], [0.9, 0.99, 0.98])
    scores = coco_scores([true], [both], 2)
    assert scores.ap == pytest.approx(1)
    assert math.isnan(scores.per_class[1])
    assert scores.absent_found == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_who_finds_a_difficult_object_neither_gains_nor_loses(engine):
    truth = Objects([[0, 0, 50, 50], [100, 100, 150, 150]], [0, 0], difficult=np.array([False, True]))
    alone = Objects([[0, 0, 50, 50]], [0], [0.5])
    also = Objects([[100, 100, 150, 150], [0, 0, 50, 50]], [0, 0], [0.9, 0.5])
    twice = Objects([[100, 100, 150, 150], [100, 100, 150, 150], [0, 0, 50, 50]], [0, 0, 0], [0.9, 0.8, 0.5])
    scores = [coco_scores([truth], [found], 1, engine=engine) for found in (alone, also, twice)]
    assert [s.ap for s in scores] == pytest.approx([1, 1, 0.5])  # one object excuses one detection
    assert scores[0].true_counts.tolist() == [1]
    assert scores[0].ignored_counts.tolist() == [1]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_crowd_excuses_any_number_of_detections_inside(engine):
    truth = Objects([[0, 0, 50, 50], [100, 100, 200, 200]], [0, 0], crowd=np.array([False, True]))
    inside = [[110 + 10 * i, 110, 130 + 10 * i, 130] for i in range(5)]
    found = Objects([*inside, [0, 0, 50, 50]], [0] * 6, [0.9, 0.9, 0.8, 0.8, 0.8, 0.5])
    assert coco_scores([truth], [found], 1, engine=engine).ap == pytest.approx(1)


@pytest.mark.parametrize("engine", ENGINES)
def test_caps_follow_the_data_and_the_standard_numbers_stand_beside(engine):
    # 150 objects in one image, all found: with 100 detections two thirds are.
    corner = np.stack(np.meshgrid(np.arange(15), np.arange(10)), -1).reshape(-1, 2) * 20.0
    boxes = np.concatenate([corner, corner + 10], 1)
    truth, found = Objects(boxes, np.zeros(150, int)), Objects(boxes, np.zeros(150, int), np.linspace(0.9, 0.1, 150))
    scores = coco_scores([truth], [found], 1, engine=engine)
    assert scores.most == 150
    assert scores.ap == pytest.approx(1)
    assert scores.numbers.ar100 == pytest.approx(1)
    assert scores.standard.ar100 == pytest.approx(100 / 150)
    assert scores.standard.ap == pytest.approx(67 / 101)  # recalls 0, 0.01, ..., 0.66 are reached
    assert coco_scores([truth], [found], 1, engine=engine, most=100).ap == scores.standard.ap
    few = coco_scores([truth], [found], 1, engine=engine, most=5)
    assert few.numbers.ar10 == few.numbers.ar100 == pytest.approx(5 / 150)
    assert few.standard.ar100 == pytest.approx(100 / 150)


def test_a_cap_of_pycocotools_that_is_not_100_gives_the_same_arrays():
    truth, found = scene(9, images=3, classes=1, most=80)
    reference = from_dicts(truth, found, 1, most=30)
    expected = reference.eval["precision"][:, :, 0, 0, 2].mean()
    assert coco_scores(truth, found, 1, most=30).ap == pytest.approx(expected, abs=1e-12)


def test_the_faster_engine_is_used_only_after_it_agreed(monkeypatch, caplog):
    truth, found = scene(1)
    calls = []

    def wrong(table, caps):
        calls.append(table.images)
        precision, recall = coco.run_pycocotools(table, caps)
        return coco.CocoArrays(precision + 1e-4, recall)

    monkeypatch.setitem(coco._ENGINES, "faster", wrong)
    scores = coco_scores(truth, found, 4, engine="faster")
    assert scores.engine == "pycocotools"
    assert "faster-coco-eval differs from pycocotools by 0.0001 on 12 images of this evaluation" in caplog.text
    assert coco_scores(truth, found, 4, engine="faster").engine == "pycocotools"
    assert calls == [12]  # it was asked once


def test_a_faster_engine_that_fails_is_not_used(monkeypatch, caplog):
    def broken(table, caps):
        raise AttributeError("no such function in this release")

    monkeypatch.setitem(coco._ENGINES, "faster", broken)
    true, found = perfect()
    assert coco_scores([true], [found], 1, engine="faster").ap == pytest.approx(1)
    assert "faster-coco-eval fails (AttributeError: no such function in this release)" in caplog.text


def test_the_trial_of_the_faster_engine_takes_images_throughout_a_large_set(monkeypatch):
    truth, found = scene(2)
    table = make_table(truth, found, 4)
    monkeypatch.setattr(coco, "_TRIAL_DETECTIONS", len(table.found) // 3)
    part = coco._part(table)
    assert part.images == 3
    chosen = [truth[i] for i in (0, 4, 8)]
    assert len(part.truth) == sum(map(len, chosen))
    again = make_table(chosen, [found[i] for i in (0, 4, 8)], 4)
    np.testing.assert_array_equal(part.found.boxes, again.found.boxes)
    np.testing.assert_array_equal(part.truth.image, again.truth.image)
    assert coco_scores(truth, found, 4, engine="faster").engine == "faster"


def test_detections_stand_best_first_and_know_where_they_came_from():
    found = Objects([[0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 3]], [0, 1, 0], [0.2, 0.9, 0.9])
    table = make_table([Objects.none()] * 2, [Objects.none(scored=True), found], 2)
    assert table.source.tolist() == [1, 2, 0]  # equal scores in the order given
    assert table.found.scores.tolist() == [0.9, 0.9, 0.2]
    assert table.places.tolist() == [0, 0, 1]
    assert table.found.areas.tolist() == [4, 9, 1]


@pytest.mark.parametrize(
    ("truth", "found", "text"),
    [
        ([Objects.none()], [], "truth of 1 images, but detections of 0"),
        ([Objects.none()], [perfect()[0]], "detections of image 0: 1 objects without scores"),
        ([perfect(3)[0]], [Objects.none()], "truth of image 0: label 3, but there are 2 classes"),
        ([Objects.none()], [Objects([[0, 0, 1, 1]], [-1], [0.5])], "detections of image 0: label -1"),
        ([Objects.none()], [Objects([[0, 0, 1, 1]], [0], [math.nan])], r"score nan must be finite"),
        ([Objects([[0, 0, math.inf, 1]], [0])], [Objects.none()], r"truth of image 0: box \[0.0, 0.0, inf, 1.0\]"),
    ],
)
def test_truth_and_detections_that_do_not_fit_are_refused(truth, found, text):
    with pytest.raises(DataError, match=text):
        coco_scores(truth, found, 2)


def test_masks_that_are_missing_or_of_another_size_are_refused():
    true, found = perfect()
    with pytest.raises(DataError, match="image 0: 1 true objects without masks; compare boxes instead"):
        coco_scores([true], [found], 1, kind="mask")
    rng = np.random.default_rng(0)
    small, large = some_mask(rng, (5, 5, 20, 20), (30, 30)), some_mask(rng, (5, 5, 20, 20))
    with pytest.raises(DataError, match=r"image 0: masks of 30 x 30 and 60 x 80 px"):
        coco_scores(
            [Objects(true.boxes, true.labels, masks=(small,))],
            [Objects(found.boxes, found.labels, found.scores, masks=(large,))],
            1,
            kind="mask",
        )


def test_caps_and_engines_that_do_not_exist_are_refused():
    with pytest.raises(ConfigError, match="most 0: at least 1 detection"):
        coco_scores([], [], 1, most=0)
    with pytest.raises(ConfigError, match="engine 'numpy': expected pycocotools or faster"):
        coco_scores([], [], 1, engine="numpy")
