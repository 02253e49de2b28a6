"""The published ground truth and detections give the published numbers, by both engines and from the command line."""

import json

import numpy as np
import pytest

from visionapps.cli.main import main
from visionapps.metrics.coco import coco_scores
from visionapps.objects import Objects

BOX = (0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564)
MASK = (0.320, 0.562, 0.299, 0.387, 0.310, 0.327, 0.268, 0.415, 0.417, 0.469, 0.377, 0.381)


@pytest.fixture(scope="module")
def golden(shared_data):
    folder = shared_data / "coco_golden"
    if not folder.is_dir():
        pytest.skip(f"absent: {folder}")
    return folder


@pytest.fixture(scope="module")
def truth_file(golden):
    return golden / "instances_val2014_100.json"


def results(golden, kind):
    return golden / f"instances_val2014_fake{'bbox' if kind == 'box' else 'segm'}100_results.json"


def read_objects(golden, truth_file, kind):
    """Objects straight from the files, without any reader of ours."""
    from pycocotools import mask as coco

    truth = json.loads(truth_file.read_text())
    found = json.loads(results(golden, kind).read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    label = {number: k for k, number in enumerate(sorted(c["id"] for c in truth["categories"]))}

    def packed(shape, size):
        runs = coco.merge(coco.frPyObjects(shape, *size)) if isinstance(shape, list) else shape
        runs = coco.frPyObjects(runs, *size) if isinstance(runs["counts"], list) else runs
        counts = runs["counts"]
        return {"size": list(size), "counts": counts if isinstance(counts, str) else counts.decode()}

    def gather(rows, image, scored):
        rows = [row for row in rows if row["image_id"] == image]
        if not rows:
            return Objects.none(scored=scored)
        masks = tuple(packed(row["segmentation"], sizes[image]) for row in rows) if kind == "mask" else None
        boxes = np.array([row.get("bbox", [0, 0, 1, 1]) for row in rows], float)
        boxes[:, 2:] += boxes[:, :2]
        return Objects(
            boxes,
            [label[row["category_id"]] for row in rows],
            [row["score"] for row in rows] if scored else None,
            crowd=np.array([row.get("iscrowd", 0) for row in rows], bool),
            areas=np.zeros(0) if scored else [row["area"] for row in rows],
            masks=masks,
        )

    images = sorted(sizes)
    return [gather(truth["annotations"], i, False) for i in images], [gather(found, i, True) for i in images]


@pytest.mark.parametrize("engine", ["pycocotools", "faster"])
@pytest.mark.parametrize(("kind", "published"), [("box", BOX), ("mask", MASK)])
def test_objects_built_of_the_files_give_the_published_numbers(golden, truth_file, kind, published, engine):
    truth, found = read_objects(golden, truth_file, kind)
    scores = coco_scores(truth, found, 80, kind=kind, engine=engine)
    assert scores.engine == engine
    assert [round(value, 3) for value in scores.numbers.to_dict().values()] == list(published)
    assert scores.numbers == scores.standard
    assert scores.images == 100


@pytest.mark.parametrize(("kind", "published"), [("box", BOX), ("mask", MASK)])
def test_evaluate_prints_the_published_numbers_of_the_files(golden, truth_file, kind, published, capsys, tmp_path):
    file = tmp_path / "scores.json"
    command = ["evaluate", "--annotations", str(truth_file), "--pred", str(results(golden, kind)), "--json", str(file)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith(kind)]
    assert [float(word) for word in line.split()[1:]] == list(published)
    assert "9 detections are of classes that the truth does not have" in printed
    saved = json.loads(file.read_text())
    assert round(saved["coco"][kind]["ap"], 3) == published[0]
    assert saved["coco"][kind]["detections_of_absent_classes"] == 9
    assert 0 < saved["thresholds"]["person"] < 1
    assert "fire hydrant" not in saved["thresholds"]  # not one in the truth: no threshold can be told
