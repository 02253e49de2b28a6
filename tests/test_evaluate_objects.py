"""evaluate judges files of detections in every form, and bundles: numbers, pictures, refusals."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionapps.cli.main import main
from visionapps.data.annotations import AnnotatedImage, AnnotationSet, read_annotations
from visionapps.data.fake_objects import write_fake_objects
from visionapps.data.object_dataset import ObjectDataset
from visionapps.data.object_writers import write_detections
from visionapps.errors import DataError
from visionapps.inference.object_evaluation import evaluate_objects
from visionapps.inference.prediction_files import place_predictions, read_predictions
from visionapps.masks import encode, runs_to_coco
from visionapps.metrics.coco import coco_scores
from visionapps.objects import Objects
from visionapps.structures import LabelSpace


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_fake_objects(tmp_path_factory.mktemp("fake"), images=10, size=96)


@pytest.fixture(scope="module")
def truth(files):
    return read_annotations(ObjectDataset(images=str(files.images), annotations=str(files.annotations)))


@pytest.fixture(scope="module")
def detections(truth):
    """Most objects, moved a little on a grid of quarter pixels that every form can express; some of nothing."""
    rng = np.random.default_rng(0)
    made = []
    for image in truth.images:
        found = image.objects.take(np.flatnonzero(~image.objects.crowd)[:3])
        boxes = found.boxes + rng.integers(-6, 7, found.boxes.shape) / 4
        boxes = np.concatenate([boxes, [[1, 1, 21, 31]]]).clip(0, 96)
        labels = np.append(found.labels, rng.integers(len(truth.labels)))
        scores = rng.integers(10, 99, len(boxes)) / 100
        made.append(replace(image, objects=Objects(boxes, labels, scores), places=(), polygons=None))
    return made


def write(detections, truth, form, folder):
    path = folder / {"coco": "found.json", "csv": "found.csv"}.get(form, "found")
    write_detections(path, form, detections, truth.labels, truth.category_ids)
    return path


@pytest.mark.parametrize("form", ["coco", "yolo", "voc", "csv"])
def test_detections_of_every_form_come_back_to_their_images_and_labels(form, detections, truth, tmp_path):
    found = place_predictions(read_predictions(write(detections, truth, form, tmp_path)), truth)
    for image, objects in zip(detections, found, strict=True):
        order, back = np.lexsort(image.objects.boxes.T), np.lexsort(objects.boxes.T)
        np.testing.assert_allclose(objects.boxes[back], image.objects.boxes[order], atol=1e-4)
        np.testing.assert_array_equal(objects.labels[back], image.objects.labels[order])
        np.testing.assert_allclose(objects.scores[back], image.objects.scores[order], atol=1e-6)


@pytest.mark.parametrize("form", ["coco", "yolo", "voc", "csv"])
def test_evaluate_prints_the_scores_of_files_in_every_form(form, files, detections, truth, tmp_path, capsys):
    path = write(detections, truth, form, tmp_path)
    command = ["evaluate", "--images", str(files.images), "--annotations", str(files.annotations), "--pred", str(path)]
    assert main([*command, "--voc", "--json", str(tmp_path / "scores.json")]) == 0
    printed = capsys.readouterr().out
    expected = coco_scores([i.objects for i in truth.images], [i.objects for i in detections], len(truth.labels))
    saved = json.loads((tmp_path / "scores.json").read_text())
    assert saved["coco"]["box"]["ap"] == pytest.approx(expected.ap, abs=1e-4)
    assert 0.2 < expected.ap < 0.99
    assert f"{expected.ap50:.3f}" in printed
    for name in (*truth.labels.names, "background", "localisation", "PASCAL VOC mAP at IoU 0.5, 11 points"):
        assert name in printed
    assert "nan" not in printed.lower()
    low, high = saved["ap50_interval"]
    assert low < expected.ap50 < high
    assert f"between {low:.3f} and {high:.3f}" in printed


def test_the_report_holds_curves_confusion_and_the_worst_images(files, detections, truth, tmp_path, capsys):
    path, report = write(detections, truth, "coco", tmp_path), tmp_path / "report"
    command = ["evaluate", "--images", str(files.images), "--annotations", str(files.annotations), "--pred", str(path)]
    assert main([*command, "--report", str(report), "--worst", "3"]) == 0
    names = sorted(p.name for p in report.iterdir())
    pictures = [name for name in names if name.endswith(".jpg")]
    assert pictures[-3:] == [f"worst_{i}.jpg" for i in (1, 2, 3)]
    assert set(names) - set(pictures) == {"confusion.png", "precision_recall.png", "scores.json"}
    with Image.open(report / "worst_1.jpg") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    assert (np.abs(pixels - [255, 60, 50]).max(1) < 30).sum() > 40  # a false detection is drawn
    scores = json.loads((report / "scores.json").read_text())
    assert scores["thresholds"].keys() <= set(truth.labels.names)
    assert main([*command, "--report", str(report)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_pictures_are_left_out_where_there_are_no_images(files, detections, truth, tmp_path):
    path, report = write(detections, truth, "coco", tmp_path), tmp_path / "report"
    assert (
        main(["evaluate", "--annotations", str(files.annotations), "--pred", str(path), "--report", str(report)]) == 0
    )
    assert sorted(p.suffix for p in report.iterdir()) == [".json", ".png", ".png"]


def test_masks_are_scored_where_both_sides_have_them(files, truth, tmp_path):
    rows = [
        {"image_id": image.image_id, "category_id": truth.category_ids[label], "score": 0.9, "segmentation": mask}
        for image in truth.images
        for label, mask, crowd in zip(image.objects.labels, image.objects.masks, image.objects.crowd, strict=True)
        if not crowd
    ]
    path, out = tmp_path / "masks.json", tmp_path / "scores.json"
    path.write_text(json.dumps(rows))
    assert main(["evaluate", "--annotations", str(files.annotations), "--pred", str(path), "--json", str(out)]) == 0
    scores = json.loads(out.read_text())["coco"]
    assert scores["mask"]["ap"] == pytest.approx(1)
    assert scores["box"]["ap"] == pytest.approx(1)  # drawn around the masks


@pytest.mark.parametrize(
    ("rows", "cols", "box"),
    [
        (slice(2, 5), slice(3, 9), (3, 2, 9, 5)),
        (slice(0, 7), slice(4, 6), (4, 0, 6, 7)),  # whole columns
        (slice(6, 7), slice(0, 1), (0, 6, 1, 7)),
        (slice(0, 0), slice(0, 0), (0, 0, 0, 0)),
    ],
)
def test_the_box_of_a_mask_is_drawn_around_its_pixels(rows, cols, box):
    from visionapps.inference.prediction_files import _around

    mask = np.zeros((7, 10), bool)
    mask[rows, cols] = True
    assert _around(runs_to_coco(encode(mask, order="column"), (7, 10), base=1)) == box
    mask[[2, 6], [1, 0]] = mask.any()  # runs apart, and one that goes on at the top of the next column
    if mask.any():
        y, x = np.nonzero(mask)
        expected = (x.min(), y.min(), x.max() + 1, y.max() + 1)
        assert _around(runs_to_coco(encode(mask, order="column"), (7, 10), base=1)) == expected


def test_all_objects_found_is_perfect_in_every_respect(truth):
    found = [replace(i.objects, scores=np.full(len(i.objects), 0.9)).take(~i.objects.crowd) for i in truth.images]
    judged = evaluate_objects([i.objects for i in truth.images], found, truth.labels.names, voc=True)
    assert judged.box.ap == judged.mask.ap == pytest.approx(1)
    assert [scores.mean for scores in judged.voc] == pytest.approx([1, 1])
    assert not any(judged.errors.counts.values())
    assert judged.confusion.matrix.sum() == np.trace(judged.confusion.matrix) == judged.table.true_counts.sum()


def results(tmp_path, rows):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(rows))
    return path


GOOD = {"image_id": 1, "category_id": 0, "bbox": [1, 2, 3, 4], "score": 0.5}


def test_the_same_image_predicted_twice_is_refused(truth, tmp_path):
    row = GOOD | {"category_id": truth.category_ids[0], "image_id": truth.images[0].image_id}
    predictions = read_predictions(results(tmp_path, [row, row | {"score": 0.4}, row]))
    with pytest.raises(DataError, match=r"1 of 3 detections stand there twice.*box 1, 2, 4, 6 with score 0.5"):
        place_predictions(predictions, truth)


def test_images_that_the_truth_lacks_are_told_and_left_out(truth, tmp_path, caplog):
    row = GOOD | {"category_id": truth.category_ids[0], "image_id": truth.images[0].image_id}
    found = place_predictions(read_predictions(results(tmp_path, [row, row | {"image_id": 999}])), truth)
    assert sum(map(len, found)) == 1
    assert "1 of 2 images (such as 999) are not in the annotations" in caplog.text
    with pytest.raises(DataError, match=r"none of its 1 images .such as 999. is in the annotations"):
        place_predictions(read_predictions(results(tmp_path, [row | {"image_id": 999}])), truth)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (
            {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]},
            "result 0 is .* but image_id, category_id, score and bbox",
        ),
        (GOOD | {"bbox": [1, 2, 3]}, "a bbox is no list of four numbers"),
        (GOOD | {"score": "high"}, "a bbox is no list of four numbers, or a score no number"),
        (GOOD | {"category_id": 4242}, "class 4242 is none of the annotations, which have"),
        (
            {"image_id": 1, "category_id": 3, "score": 0.5, "segmentation": {"size": [5, 5], "counts": "1"}},
            "cannot be read",
        ),
    ],
)
def test_results_that_cannot_be_used_are_refused_with_their_place(row, text, truth, tmp_path):
    with pytest.raises(DataError, match=text):
        place_predictions(read_predictions(results(tmp_path, [row])), truth)


@pytest.mark.parametrize("bbox", [[10, 2, -3, 4], [10, 2, 3, -4]])
def test_inverted_boxes_of_detections_are_refused_by_name(bbox, truth, tmp_path):
    with pytest.raises(DataError, match=r"results\.json: result 1: box 10, .* is inverted"):
        read_predictions(results(tmp_path, [GOOD, GOOD | {"bbox": bbox}]))
    path = tmp_path / "found.csv"
    path.write_text(
        "image,x,y,w,h,class,score\na.png,1,2,3,4,disc,0.5\na.png," + ",".join(map(str, bbox)) + ",disc,0.5\n"
    )
    with pytest.raises(DataError, match=r"found\.csv: line 3: box 10, .* is inverted; x1 and y1 must not lie before"):
        read_predictions(path)
    with pytest.raises(DataError, match=r"scores: detections of image 0: box \[5.0, 5.0, 2.0, 9.0\] is inverted"):
        evaluate_objects([Objects.none()], [Objects([[5, 5, 2, 9]], [0], [0.5])], ("car",))


@pytest.mark.parametrize("number", ["1", 1.0, " 1 "])
def test_numbers_of_images_and_classes_are_taken_as_annotations_have_them(number, truth, tmp_path):
    image = truth.images[0]
    number = type(number)(image.image_id)
    row = GOOD | {"image_id": number, "category_id": str(truth.category_ids[1])}
    found = place_predictions(read_predictions(results(tmp_path, [row])), truth)
    assert [len(objects) for objects in found] == [1] + [0] * 9
    assert found[0].labels.tolist() == [1]
    for bad in (None, True, 1.5):
        with pytest.raises(DataError, match=rf"result 0: image_id is {bad}, but a number or a name is expected"):
            read_predictions(results(tmp_path, [row | {"image_id": bad}]))


def named_truth(*names):
    one = Objects([[0, 0, 10, 10]], [0])
    images = tuple(AnnotatedImage(name, i, (50, 50), one) for i, name in enumerate(names, 1))
    return AnnotationSet(images, LabelSpace.named(["car"]), (1,))


def predicted(tmp_path, *names):
    path = tmp_path / "found.csv"
    rows = [f"{name},{i},0,{i + 10},10,car,0.9" for i, name in enumerate(names)]
    path.write_text("image,xmin,ymin,xmax,ymax,class,score\n" + "\n".join(rows) + "\n")
    return read_predictions(path)


def test_two_predicted_images_never_land_on_one(tmp_path, caplog):
    with pytest.raises(
        DataError, match=r"found\.csv: train/a\.png and val/a\.png could both be a\.png of the annotations"
    ):
        place_predictions(predicted(tmp_path, "train/a.png", "val/a.png"), named_truth("a.png", "b.png"))
    with pytest.raises(DataError, match=r"a\.jpg and a\.png could both be a\.tif"):
        place_predictions(predicted(tmp_path, "a.jpg", "a.png"), named_truth("a.tif"))
    for names in (
        ("train/a.png", "val/a.png"),
        ("train/a", "val/a"),
        ("a.png", "val/a.png"),
        ("val/a.jpg", "val/a.png"),
    ):
        found = place_predictions(predicted(tmp_path, *names), named_truth("val/a.png", "b.png"))
        assert [objects.boxes[:, 0].tolist() for objects in found] == [[1], []]
        assert f"1 of 2 images (such as {names[0]}) are not in the annotations" in caplog.text
        caplog.clear()
    found = place_predictions(predicted(tmp_path, "run/a.png", "run/b.png"), named_truth("a.png", "b.png"))
    assert [objects.boxes[:, 0].tolist() for objects in found] == [[0], [1]]


@pytest.mark.parametrize(("scale", "shift"), [(100, 0), (10, -8)])
def test_scores_that_are_no_shares_give_no_thresholds(scale, shift, files, detections, truth, tmp_path, capsys):
    moved = [replace(i, objects=replace(i.objects, scores=i.objects.scores * scale + shift)) for i in detections]
    path, out = write(moved, truth, "coco", tmp_path), tmp_path / "scores.json"
    assert main(["evaluate", "--annotations", str(files.annotations), "--pred", str(path), "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "not in [0, 1], so no calibration and no thresholds are given" in printed
    saved = json.loads(out.read_text())
    assert saved["thresholds"] == saved["curves"]["thresholds"] == {}
    assert set(saved["curves"]["calibration_error"].values()) == {None}
    assert {best["threshold"] for best in saved["curves"]["best_f1"].values()} == {None}
    plain = evaluate_objects([i.objects for i in truth.images], [i.objects for i in detections], truth.labels.names)
    assert saved["coco"]["box"]["ap"] == pytest.approx(plain.box.ap)
    assert [best["f1"] for best in saved["curves"]["best_f1"].values()] == pytest.approx(
        [one.best.f1 for one in plain.curves.classes]
    )


def test_detections_without_scores_are_refused(files, tmp_path):
    label = tmp_path / "labels" / "a.txt"
    label.parent.mkdir()
    label.write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DataError, match=r"a.txt: line 1: has no score; detections need one"):
        read_predictions(label.parent)
    with pytest.raises(DataError, match="has no score"):
        read_predictions(files.annotations)


def test_an_empty_list_of_results_is_worth_nothing_and_no_error(files, truth, tmp_path, capsys):
    path = results(tmp_path, [])
    assert main(["evaluate", "--annotations", str(files.annotations), "--pred", str(path)]) == 0
    assert "0 detections" in capsys.readouterr().out


def test_annotations_with_errors_are_refused_before_anything_is_scored(files, tmp_path, capsys):
    content = json.loads(Path(files.annotations).read_text())
    content["annotations"][0]["bbox"] = [10, 10, -5, 5]
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(content))
    assert main(["evaluate", "--annotations", str(bad), "--pred", str(results(tmp_path, []))]) == 1
    error = capsys.readouterr().err
    assert "visionapps check" in error
    assert str(content["annotations"][0]["id"]) in error


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--annotations", "A"], "give either a BUNDLE that detects, or --pred PATH"),
        (["B", "--annotations", "A"], "B: no such bundle"),
        (["--annotations", "A", "--pred", "P", "--masks", "M"], "--masks and --annotations exclude each other"),
        (["--annotations", "A", "--pred", "P", "--score", "2"], "--score 2.0: expected a number in"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, text, capsys):
    assert main(["evaluate", *options]) == 1
    assert text in capsys.readouterr().err


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, truth):
    """A detector that was never trained and gives everything that it suspects."""
    import torch

    from visionapps.detection.base import Limits
    from visionapps.detection.rpn import ProposalLimits
    from visionapps.inference.bundle import Bundle
    from visionapps.models import faster_rcnn
    from visionapps.models.detection import Features, Proposing, Regions

    torch.manual_seed(0)
    model = faster_rcnn(
        "mobilenetv3_small_050",
        3,
        features=Features(channels=16),
        proposing=Proposing(limits=ProposalLimits(before=(50, 50), after=(20, 20))),
        regions=Regions(hidden=32, limits=Limits(score=0.0, most=20)),
    )
    folder = tmp_path_factory.mktemp("bundle") / "detector"
    Bundle(model, truth.labels, tile=64).save(folder)
    return folder


def test_a_bundle_needs_the_images_that_it_shall_look_at(bundle, capsys):
    assert main(["evaluate", str(bundle), "--annotations", "A"]) == 1
    assert "give the folder of --images, too" in capsys.readouterr().err


def test_a_bundle_is_judged_by_what_it_finds_in_whole_images(bundle, files, truth, tmp_path, capsys):
    from visionapps.inference.bundle import load
    from visionapps.inference.detecting import ObjectPredictor
    from visionapps.inference.sources import open_source

    out = tmp_path / "scores.json"
    where = ["--images", str(files.images), "--annotations", str(files.annotations)]
    assert main(["evaluate", str(bundle), *where, "--precision", "fp32", "--json", str(out)]) == 0
    assert "images/s" in capsys.readouterr().out
    loaded = load(bundle)
    predictor = ObjectPredictor(loaded.detector, tile=64, precision="fp32")
    found = [predictor.detect(open_source(files.images / image.name, loaded.spec)) for image in truth.images]
    assert sum(map(len, found)) > 50
    expected = evaluate_objects([i.objects for i in truth.images], found, truth.labels.names)
    saved = json.loads(out.read_text())
    assert saved["detections"] == sum(map(len, found))
    assert saved["coco"]["box"]["ap"] == pytest.approx(expected.box.ap)
    assert saved["confusion"]["matrix"] == expected.confusion.matrix.tolist()


def test_the_photos_of_a_run_are_judged_by_split(bundle, files, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"data: {{dataset: {{images: {files.images}, annotations: {files.annotations}, cache: {tmp_path / 'cache'}, "
        "split: {group: '^site(\\d+)', val_groups: ['3']}, policies: {near_duplicate: warn}}}\n"
    )
    counts = {}
    for split in ("val", "train", "all"):
        out = tmp_path / f"{split}.json"
        command = ["evaluate", str(bundle), "--config", str(config), "--split", split, "--json", str(out)]
        assert main(command) == 0, capsys.readouterr().err
        counts[split] = json.loads(out.read_text())["images"]
    assert counts == {"val": 2, "train": 8, "all": 10}


def test_a_bundle_of_other_classes_is_refused(bundle, files, tmp_path, capsys):
    table = tmp_path / "classes.yaml"
    table.write_text("[square, disc, triangle]\n")
    where = ["--images", str(files.images), "--annotations", str(files.annotations), "--classes", str(table)]
    assert main(["evaluate", str(bundle), *where]) == 1
    assert "was trained on the classes disc, square, triangle, but the data has square, disc" in capsys.readouterr().err
