"""Scores of submissions, counted on run lengths, against the pixels that they stand for."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionapps.competition import scoring_rows
from visionapps.competition.scoring import score_submission
from visionapps.errors import ConfigError, DataError
from visionapps.inference.dialects import Dialect, load_dialect
from visionapps.inference.submission import write_submission
from visionapps.metrics.competition import METRICS, build_metric

SIDE = (20, 24)
COLUMN = Dialect(order="column", base=0, relative=True, empty="-1", row_id="{id}_{class}", labels=(1, 2, 4))
ROW = Dialect(order="row", row_id="{id}_{class}", labels=(1, 2, 4), resize=SIDE)


def naive_text(mask: np.ndarray, dialect: Dialect) -> str:
    """Runs of a mask, pixel by pixel."""
    pixels = (mask if dialect.order == "row" else mask.T).reshape(-1).tolist()
    words, last = [], 0
    i = 0
    while i < len(pixels):
        if pixels[i]:
            j = i
            while j < len(pixels) and pixels[j]:
                j += 1
            words += [i - last if dialect.relative and words else i + dialect.base, j - i]
            last = i = j
        else:
            i += 1
    return " ".join(map(str, words)) or dialect.empty


def random_maps(rng: np.random.Generator, count: int = 4) -> dict[str, np.ndarray]:
    """Label maps with the classes 0, 1, 2, 4; the last one is background alone."""
    maps = {}
    for i in range(count):
        labels = np.zeros(SIDE, np.uint8)
        for _ in range(9):
            y, x, h, w = *rng.integers(0, 18, 2), *rng.integers(1, 9, 2)
            labels[y : y + h, x : x + w] = rng.choice([0, 1, 2, 4])
        maps[f"p{i}"] = labels if i < count - 1 else np.zeros(SIDE, np.uint8)
    return maps


def write(path: Path, maps: dict[str, np.ndarray], dialect: Dialect, usage: dict[str, str] | None = None) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*dialect.header, *(["Usage"] if usage else [])])
        for image, labels in maps.items():
            for k in dialect.labels or (1,):
                mask = labels == k if dialect.per_class else labels != 0
                cells = [dialect.key(image, k), naive_text(mask, dialect)]
                writer.writerow([*cells, *([usage[image]] if usage else [])])
    return path


@pytest.fixture
def maps() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(11)
    return random_maps(rng), random_maps(rng)


def expected(metric, predicted, true):
    return metric.score(sum(metric.count(predicted[name], true[name]) for name in true))


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_of_two_files_is_that_of_their_label_maps(tmp_path, maps, name):
    predicted, true = maps
    spec = {"name": name, "exclude": [2]}
    metric = build_metric({"name": name, "exclude": [0, 2, 3]}, 5)
    files = [write(tmp_path / f"{i}.csv", side, ROW) for i, side in enumerate(maps)]
    found = score_submission(*files, dialect=ROW, metric=spec)
    assert found.boards[0].score == pytest.approx(expected(metric, predicted, true))
    assert found.labels == (1, 4)
    assert (found.images, found.boards[0].rows, found.same_order) == (4, 8, True)
    assert score_submission(files[1], files[1], dialect=ROW, metric=spec).boards[0].score == 1


@pytest.mark.parametrize("empty", ["one", "zero", "skip"])
def test_dice_needs_no_size_and_reads_every_dialect(tmp_path, maps, empty):
    metric = build_metric({"name": "dice_per_image", "empty": empty, "exclude": [0, 3]}, 5)
    files = [write(tmp_path / f"{i}.csv", side, COLUMN) for i, side in enumerate(maps)]
    found = score_submission(*files, dialect=COLUMN, metric={"name": "dice_per_image", "empty": empty})
    assert found.boards[0].score == pytest.approx(expected(metric, *maps))
    by_class = metric.per_class(sum(metric.count(maps[0][name], maps[1][name]) for name in maps[1]))
    assert np.allclose(found.boards[0].per_class, by_class, equal_nan=True)
    assert found.true_images.tolist() == [0] + [sum((m == k).any() for m in maps[1].values()) for k in range(1, 5)]


def test_binary_rows_are_one_class(tmp_path, maps):
    dialect = load_dialect("kaggle")
    files = [write(tmp_path / f"{i}.csv", side, dialect) for i, side in enumerate(maps)]
    found = score_submission(*files, dialect=dialect, metric="dice_per_image")
    metric = build_metric({"name": "dice_per_image", "exclude": [0]}, 2)
    binary = [{name: (m != 0).astype(np.uint8) for name, m in side.items()} for side in maps]
    assert found.boards[0].score == pytest.approx(expected(metric, *binary))
    assert found.labels == (1,)


def test_a_folder_of_masks_is_the_truth_with_void_as_background(tmp_path, maps):
    predicted, true = maps
    (tmp_path / "masks").mkdir()
    true["p0"][:3, :3] = 255
    for name, labels in true.items():
        Image.fromarray(labels).save(tmp_path / "masks" / f"{name}.png")
    dialect = replace(ROW, resize=None)
    file = write(tmp_path / "s.csv", predicted, dialect)
    found = score_submission(file, tmp_path / "masks", dialect=dialect, metric="surface_dice_per_image")
    true["p0"][:3, :3] = 0
    metric = build_metric({"name": "surface_dice_per_image", "exclude": [0, 3]}, 5)
    assert found.boards[0].score == pytest.approx(expected(metric, predicted, true))


def test_the_usage_column_gives_both_leaderboards_and_leaves_out_what_is_ignored(tmp_path, maps):
    predicted, true = maps
    usage = {"p0": "Private", "p1": "Public", "p2": "Public", "p3": "Ignored"}
    files = [write(tmp_path / "s.csv", predicted, ROW), write(tmp_path / "t.csv", true, ROW, usage)]
    metric = build_metric({"name": "dice_per_image", "exclude": [0, 3]}, 5)
    found = score_submission(*files, dialect=ROW, metric="dice_per_image")
    assert [(board.name, board.rows) for board in found.boards] == [("all", 9), ("Public", 6), ("Private", 3)]
    for board, names in zip(found.boards, (["p0", "p1", "p2"], ["p1", "p2"], ["p0"]), strict=True):
        some = [{name: side[name] for name in names} for side in maps]
        assert board.score == pytest.approx(expected(metric, *some)), board.name
    assert math.isnan(found.boards[2].interval.low)  # one image says nothing about others
    assert found.boards[0].interval.low <= found.boards[0].score <= found.boards[0].interval.high


def test_rows_may_be_divided_within_an_image(tmp_path):
    (tmp_path / "t.csv").write_text("Usage,rle_mask,ImageClassId\nPublic,1 4,a_1\nPrivate,5 4,a_2\nPrivate,,a_4\n")
    (tmp_path / "s.csv").write_text("ImageClassId,rle_mask\na_2,5 2\na_1,1 4\na_4,\n")
    dialect = replace(ROW, header=("ImageClassId", "rle_mask"))
    found = score_submission(tmp_path / "s.csv", tmp_path / "t.csv", dialect=dialect, metric="dice_per_image")
    scores = {board.name: board.score for board in found.boards}
    assert scores == pytest.approx({"all": (1 + 4 / 6 + 1) / 3, "Public": 1, "Private": (4 / 6 + 1) / 2})
    assert not found.same_order


def test_objects_with_rows_of_their_own_are_not_joined(tmp_path):
    # Two nuclei that touch: as components they would be one object.
    (tmp_path / "t.csv").write_text("ImageId,EncodedPixels\na,1 4\na,5 4\nb,1 2\n")
    (tmp_path / "s.csv").write_text("ImageId,EncodedPixels\nb,1 2\na,1 4\na,5 3\na,20 1\n")
    dialect = load_dialect("dsb2018")
    spec = {"name": "map_per_image", "thresholds": [0.5, 0.75]}
    found = score_submission(tmp_path / "s.csv", tmp_path / "t.csv", dialect=dialect, metric=spec)
    # a: 2 hits and one invented; IoU 3/4 is not above 0.75: 1 hit, 2 invented, 1 missed. b: 1.
    assert found.boards[0].score == pytest.approx(((2 / 3 + 1 / 4) / 2 + 1) / 2)
    dice = score_submission(tmp_path / "s.csv", tmp_path / "t.csv", dialect=dialect, metric="dice_per_image")
    assert dice.boards[0].score == pytest.approx((2 * 7 / (8 + 8) + 1) / 2)


def save(folder: Path, **masks: np.ndarray) -> Path:
    folder.mkdir()
    for name, mask in masks.items():
        Image.fromarray(mask).save(folder / f"{name}.png")
    return folder


def test_true_masks_of_0_and_255_are_refused_and_right_with_their_label(tmp_path):
    shape = np.zeros((4, 4), np.uint8)
    shape[1:3, 1] = 255
    folder = save(tmp_path / "masks", a=shape, b=np.zeros((4, 4), np.uint8))  # an image without objects is normal
    (tmp_path / "s.csv").write_text("ImageId,EncodedPixels\na,6 2\nb,\n")
    dialect = load_dialect("kaggle")
    with pytest.raises(DataError) as caught:
        score_submission(tmp_path / "s.csv", folder, dialect=dialect, metric="dice_per_image")
    assert f"{folder}: no mask holds foreground: 1 of 2 hold only background and 255" in str(caught.value)
    assert "give --labels 255" in str(caught.value)
    found = score_submission(
        tmp_path / "s.csv", folder, dialect=replace(dialect, labels=(255,)), metric="dice_per_image"
    )
    assert found.boards[0].score == 1
    assert found.true_images.tolist() == [0, 1]


@pytest.mark.parametrize("neighbours", [4, 8])
def test_objects_of_true_masks_are_cut_as_the_dialect_cuts_them(tmp_path, neighbours):
    mask = np.zeros((6, 6), np.uint8)
    mask[0:2, 0:2] = mask[2:4, 2:4] = 1  # they touch at a corner
    folder = save(tmp_path / "masks", a=mask)
    dialect = Dialect(order="column", instances=neighbours)
    apart, whole = "a,1 2 7 2\na,15 2 21 2\n", "a,1 2 7 2 15 2 21 2\n"
    scores = []
    for text in (apart, whole):
        (tmp_path / "s.csv").write_text("ImageId,EncodedPixels\n" + text)
        found = score_submission(tmp_path / "s.csv", folder, dialect=dialect, metric="map_per_image")
        scores.append(found.boards[0].score)
    # The wrong one: two objects for one, or one for two, whose IoU of 0.5 lies above no threshold.
    assert scores == ([1, 0] if neighbours == 4 else [0, 1])


@pytest.mark.parametrize("instances", [0, 8])
def test_a_mask_as_one_object_needs_no_size(tmp_path, instances):
    (tmp_path / "t.csv").write_text("ImageId,EncodedPixels\na,1 8 100 1\nb,\n")
    rows = "a,1 3\na,4 4\n" if instances else "a,1 7\n"
    (tmp_path / "s.csv").write_text("ImageId,EncodedPixels\n" + rows + "b,\n")
    spec = {"name": "map_per_image", "objects": "whole"}
    dialect = Dialect(order="column", instances=instances)
    found = score_submission(tmp_path / "s.csv", tmp_path / "t.csv", dialect=dialect, metric=spec)
    assert found.boards[0].score == pytest.approx((0.6 + 1) / 2)


@pytest.mark.parametrize("encoding", ["coco", "coco_zlib"])
def test_counts_of_a_mask_of_another_size_are_refused(tmp_path, encoding):
    dialect = Dialect(order="column", encoding=encoding)
    large = np.zeros((20, 20), np.uint8)
    large[5:15, 5:15] = 1
    files = []
    for name, mask in (("s.csv", large[5:15, 5:15]), ("t.csv", large)):
        write_submission([("a", mask), ("b", mask)], tmp_path / name, dialect=dialect)
        files.append(tmp_path / name)
    with pytest.raises(DataError) as caught:
        score_submission(*files, dialect=dialect, metric="dice_per_image")
    assert f"image a: its counts add up to 100 pixels, but to 400 in {files[1]} (the first of 2" in str(caught.value)
    folder = save(tmp_path / "masks", a=large, b=large)
    with pytest.raises(DataError) as caught:
        score_submission(files[0], folder, dialect=dialect, metric="dice_per_image")
    assert "line 2 (a): the counts add up to 100 pixels, but a mask of 20 x 20 has 400" in str(caught.value)
    assert score_submission(files[1], folder, dialect=dialect, metric="dice_per_image").boards[0].score == 1
    lines = [file.read_text().splitlines() for file in files]
    files[0].write_text("\n".join([*lines[0][:2], lines[1][2].replace("b,", "a,")]))
    with pytest.raises(DataError) as caught:
        score_submission(*files, dialect=replace(dialect, instances=8), metric="dice_per_image")
    assert "line 3 (a): its counts add up to 400 pixels, but those of another row of a to 100" in str(caught.value)


def test_runs_outside_of_true_masks_are_refused_without_looking_at_every_row_for_every_image(tmp_path, monkeypatch):
    folder = save(tmp_path / "masks", **{f"p{i}": np.ones((2, 2 + i), np.uint8) for i in range(20)})
    file = tmp_path / "s.csv"
    text = "ImageId,EncodedPixels\n" + "".join(f"p{i},1 {4 + 2 * i}\n" for i in range(20))
    file.write_text(text)
    dialect, looked_at = load_dialect("kaggle"), []
    monkeypatch.setattr(scoring_rows, "check_runs", lambda runs, *rest, **named: looked_at.append(runs))
    assert score_submission(file, folder, dialect=dialect, metric="dice_per_image").boards[0].score == 1
    assert not looked_at  # all of them were judged at once
    monkeypatch.undo()
    file.write_text(text.replace("p7,1 18", "p7,1 19"))
    with pytest.raises(DataError) as caught:
        score_submission(file, folder, dialect=dialect, metric="dice_per_image")
    assert "p7: run 1 (1 19): ends at pixel 19, but the last pixel is 18" in str(caught.value)


def test_a_run_too_far_away_to_be_counted_is_refused_where_no_size_is_known(tmp_path):
    file = tmp_path / "s.csv"
    file.write_text("ImageId,EncodedPixels\na,1 4\nb,9000000000000000000 1\n")
    with pytest.raises(DataError) as caught:
        score_submission(file, file, dialect=load_dialect("kaggle"), metric="dice_per_image")
    assert "s.csv: b: has a run that ends farther away than in any image" in str(caught.value)


def test_a_file_without_rows_and_a_column_that_is_not_there_are_told(tmp_path):
    empty, file = tmp_path / "empty.csv", tmp_path / "t.csv"
    empty.write_text("ImageId,EncodedPixels\n")
    file.write_text("ImageId,EncodedPixels\na,1 4\n")
    dialect = load_dialect("kaggle")
    for submission, truth in ((empty, file), (file, empty), (empty, empty)):
        with pytest.raises(DataError) as caught:
            score_submission(submission, truth, dialect=dialect, metric="dice_per_image")
        assert str(caught.value) == f"{empty}: holds a header and no row; give a file with rows"
    skip = replace(dialect, absent="skip")  # there a submission may say that nothing is anywhere
    assert score_submission(empty, file, dialect=skip, metric="dice_per_image").boards[0].score == 0
    with pytest.raises(DataError) as caught:
        score_submission(file, empty, dialect=skip, metric="dice_per_image")
    assert "empty.csv: holds a header and no row" in str(caught.value)
    for truth, there in ((file, "its columns are ImageId, EncodedPixels"), (save(tmp_path / "m"), "it is a folder")):
        with pytest.raises(DataError) as caught:
            score_submission(file, truth, dialect=dialect, metric="dice_per_image", usage="Split")
        assert f"{truth}: has no column 'Split'; {there}" in str(caught.value)


def test_classes_are_excluded_by_the_names_of_the_dialect(tmp_path, maps):
    dialect = replace(ROW, names=("road", "river", "roof"))
    files = [write(tmp_path / f"{i}.csv", side, dialect) for i, side in enumerate(maps)]
    for exclude in (["background", "river"], "river", [0, 2]):
        spec = {"name": "dice_per_image", "exclude": exclude}
        assert score_submission(*files, dialect=dialect, metric=spec).labels == (1, 4)
    found = score_submission(*files, dialect=dialect, metric={"name": "dice_per_image", "exclude": [2, 6]}, classes=7)
    assert found.labels == (1, 4)  # label 6 of the model has no rows
    for exclude, message in (
        (["rivers"], "exclude 'rivers' is no class; known are background, road, river, roof; did you mean river?"),
        ([5], "excludes label 5, but the 5 labels begin with 0"),
    ):
        with pytest.raises(ConfigError) as caught:
            score_submission(*files, dialect=dialect, metric={"name": "dice_per_image", "exclude": exclude})
        assert message in str(caught.value)


def test_rows_that_a_dialect_leaves_out_are_empty(tmp_path):
    dialect = replace(ROW, absent="skip", header=("Id", "Rle"))
    (tmp_path / "t.csv").write_text("Id,Rle\na_1,1 4\nb_2,1 4\n")
    (tmp_path / "s.csv").write_text("Id,Rle\na_1,1 4\nb_4,1 4\n")
    found = score_submission(tmp_path / "s.csv", tmp_path / "t.csv", dialect=dialect, metric="dice_per_image")
    # Two images of three classes: b_2 and b_4 are wrong, neither side has a_2, a_4 and b_1.
    assert (found.boards[0].rows, found.boards[0].score) == (6, pytest.approx(4 / 6))
    assert found.same_order
    assert found.only_named
    true = np.zeros((2, 4), np.uint8)
    folder = save(tmp_path / "masks", a=np.uint8([[1] * 4, [0] * 4]), b=np.uint8([[2] * 4, [0] * 4]), c=true)
    found = score_submission(tmp_path / "s.csv", folder, dialect=replace(dialect, resize=None), metric="dice_per_image")
    assert (found.boards[0].rows, found.boards[0].score) == (9, pytest.approx(7 / 9))  # c was not named
    assert not found.only_named
    (tmp_path / "s.csv").write_text("Id,Rle\na_1,1 4\nd_4,1 4\n")
    with pytest.raises(DataError) as caught:
        score_submission(tmp_path / "s.csv", folder, dialect=replace(dialect, resize=None), metric="dice_per_image")
    assert f"1 images are not in {folder}: d" in str(caught.value)


def test_a_class_that_only_the_prediction_has_counts_where_its_image_does(tmp_path):
    dialect = Dialect(order="row", row_id="{id}_{class}", header=("Id", "Rle"), labels=(1, 2), absent="skip")
    files = tmp_path / "s.csv", tmp_path / "t.csv"
    files[0].write_text("Id,Rle\nb_1,1 4\na_1,1 4\na_2,9 4\n")
    files[1].write_text("Id,Rle,Usage\na_1,1 4,Public\nb_1,1 4,Private\n")
    found = score_submission(*files, dialect=dialect, metric="dice_per_image")
    assert [(board.name, board.rows, board.score) for board in found.boards] == [
        ("all", 4, 0.75),
        ("Public", 2, 0.5),
        ("Private", 2, 1),
    ]
    assert not found.same_order
    files[0].write_text("Id,Rle\na_1,1 4\na_2,9 4\nb_1,1 4\n")
    assert score_submission(*files, dialect=dialect, metric="dice_per_image").same_order  # of the rows that both have
    for text, message in (
        (
            "b_2,1 4,Public\n",
            "t.csv: image b has rows of Private and of Public and does not tell which leaderboard label 3",
        ),
        ("b_2,,Private\n", "t.csv: it has no row of image c and does not tell which leaderboard label 1 of it"),
    ):
        files[0].write_text("Id,Rle\na_1,1 4\nc_2,9 4\nb_1,1 4\n")
        files[1].write_text("Id,Rle,Usage\na_1,1 4,Public\nb_1,5 4,Private\n" + text)
        with pytest.raises(DataError) as caught:
            score_submission(*files, dialect=replace(dialect, labels=(1, 2, 3)), metric="dice_per_image")
        assert message in str(caught.value)


GOOD = "ImageId,EncodedPixels\na_1,1 4\na_2,5 2\na_4,\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\ufeff" + GOOD, "s.csv: line 1: begins with a byte order mark, as Excel writes it, which some readers"),
        ("Id,EncodedPixels\na_1,1 4\n", "s.csv: header 'Id,EncodedPixels', but the dialect has 'ImageId,Encoded"),
        ("ImageId,EncodedPixels,Usage\na_1,1 4,Public\n", "header 'ImageId,EncodedPixels,Usage', but the dialect has"),
        (GOOD.replace("a_4,\n", ""), "s.csv: 1 of 3 rows are missing: a_4"),
        (GOOD + "b_1,\n", "s.csv: 1 rows are not in"),
        (GOOD + "a_1,\n", "s.csv: line 5 (a_1): stands there already, in line 2"),
        (GOOD.replace("5 2", "4 2"), "image a: labels 1 and 2 both claim pixel 4; classes overlap"),
        (GOOD.replace("5 2", "5 x"), "line 3 (a_2): run 1: 'x' is no whole number"),
        (GOOD.replace("5 2", "5 2 6 1"), "a_2: run 2 (6 1): starts before run 1 ends"),
        (GOOD.replace("5 2", "480 2"), "a_2: run 1 (480 2): ends at pixel 481, but the last pixel is 480"),
        (GOOD.replace("5 2", "5 2,1"), "line 3: 3 columns, but the header has 2"),
        (GOOD.replace("a_2", "a2"), "line 3: id 'a2' does not have the form {id}_{class}"),
        (GOOD.replace("5 2", "0 2").replace("a_4,", "a4,"), "(the first of 2 problems); `visionapps submit --verify`"),
    ],
)
def test_a_file_that_cannot_be_scored_says_why(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(GOOD)
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        score_submission(tmp_path / "s.csv", tmp_path / "t.csv", dialect=ROW, metric="dice_per_image")
    assert message in str(caught.value)


def test_outlines_without_a_size_and_labels_without_rows_are_refused(tmp_path):
    for name in ("t.csv", "s.csv"):
        (tmp_path / name).write_text(GOOD)
    files = tmp_path / "s.csv", tmp_path / "t.csv"
    for name in ("surface_dice_per_image", "map_per_image"):
        with pytest.raises(ConfigError) as caught:
            score_submission(*files, dialect=replace(ROW, resize=None), metric=name)
        assert "image a: objects and outlines need the size of the masks; give --resize HxW" in str(caught.value)
    with pytest.raises(DataError) as caught2:
        score_submission(*files, dialect=replace(ROW, labels=(1, 2)), metric="dice_per_image")
    assert "t.csv: label 4 has no rows in this dialect" in str(caught2.value)
